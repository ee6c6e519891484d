"""Draws the pictures of README and guides again.

    python docs/pictures.py runs/quickstart

An encoder as the report draws it, and the progress of a finished run.
"""

import argparse
import re
import shutil
from pathlib import Path

from flexibert.spec import parse_layers
from search.artifacts import charts


IMAGES = Path(__file__).parent / "images"
LAYERS = [
    {
        "hidden_size": 256,
        "operations": [
            {"op": "self_attention", "num_heads": 2},
            {"op": "linear_transform", "num_heads": 1, "transform": "cosine"},
            {"op": "dynamic_convolution", "num_heads": 1, "kernel_size": 9},
        ],
        "feed_forward": [512, 512, 512],
    },
    {"hidden_size": 128, "operations": [{"op": "self_attention", "num_heads": 4}], "feed_forward": [1024]},
]


def alone(svg: str) -> str:
    """A picture of the report's page as a file: with a namespace and the style sheet's rules that it needs."""
    page = (Path(charts.__file__).parent / "report.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    rules = re.findall(
        r":root \{.*?\n\}|@media \(prefers.*?\n\}|svg text \{[^}]*\}|rect\.group \{[^}]*\}", style, re.DOTALL
    )
    rules.append("svg { background: var(--back); font-family: system-ui, sans-serif; }")
    body = svg if "xmlns" in svg else svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" width="480"', 1)
    return re.sub(r"(<svg[^>]*>)", lambda opening: f"{opening[1]}<style>{' '.join(rules)}</style>", body, count=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run with its report")
    run = parser.parse_args().run
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "encoder.svg").write_text(alone(charts.encoder(parse_layers(LAYERS))) + "\n", encoding="utf-8")
    shutil.copyfile(run / "report" / "best_so_far.png", IMAGES / "search.png")


if __name__ == "__main__":
    main()
