"""Draws the pictures of README and guides again.

    python docs/pictures.py runs/quickstart

An encoder as the report draws it, and the progress of a finished run.
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run with its report")
    run = parser.parse_args().run
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "encoder.svg").write_text(
        charts.standalone(charts.encoder(parse_layers(LAYERS))) + "\n", encoding="utf-8"
    )
    shutil.copyfile(run / "report" / "best_so_far.png", IMAGES / "search.png")


if __name__ == "__main__":
    main()
