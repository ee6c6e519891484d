"""Builds the wheel, installs it alone in an empty environment, and runs every command from an empty folder.

    python tests/installed/check.py [--oldest]

With `--oldest` the oldest versions that `pyproject.toml` allows are installed instead of those of `constraints.txt`.
The environment is of the Python that runs this; `make wheel-test` takes it with several.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
TINY = ("--steps", "4", "--batch-size", "4", "--sequence-length", "32")
TASKS = ("--max-train-examples", "32", "--epochs", "1")
SHORT = ("--epochs", "1", "--max-length", "32")
ENCODER = '[{"hidden_size": 16, "operations": [{"op": "self_attention", "num_heads": 2}], "feed_forward": [16]}]'


def commands() -> list[tuple[tuple[str, ...], int, str]]:
    """Arguments, the status that they end with, and what has to be in the output."""
    model = "encoder/trained"
    return [
        (("list",), 0, "quickstart"),
        (("run", "--trials", "1", *TINY, *TASKS, "--name", "first"), 0, "load it"),
        (("report", "runs/first"), 0, "index.html"),
        (("pretrain", "--architecture", "encoder/layers.json", "--output", model, *TINY), 0, "validation loss"),
        (("finetune", "--model", model, "--tasks", "mine.csv", "--output", "tasks", *SHORT), 0, "accuracy"),
        (("evaluate", model, "--tasks", "pairs.csv", "--max-length", "32"), 0, "spearmanr"),
        (("supernet", "--recipe", "quickstart", "--output", "shared", *TINY), 0, "shared"),
        (("publish", "tasks/mine", "--repo-id", "someone/mine"), 0, "Nothing was uploaded"),
        (("export", "tasks/mine"), 2, "not installed here is onnx"),
        (("pull", "someone/mine"), 2, "someone/mine is not in the cache"),
    ]


def build(folder: Path) -> Path:
    """The wheel of a copy of the sources, so that nothing is left beside them."""
    ignored = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "model_cards", "site")
    copy = shutil.copytree(ROOT, folder / "sources", ignore=ignored)
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)])
    (wheel,) = folder.glob("*.whl")
    return wheel


def oldest(wheel: Path) -> str:
    """Pins to the lower bounds of what the wheel needs."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        needs = re.findall(r"^Requires-Dist: ([\w.-]+)>=([\w.]+)$", archive.read(name).decode(), re.MULTILINE)
    return "".join(f"{package}=={version}\n" for package, version in needs)


def run(command: list[str], **options) -> None:
    if subprocess.run(command, **options).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oldest", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = build(folder)
        pins = folder / "pins.txt"
        text = oldest(wheel) if options.oldest else (ROOT / "constraints.txt").read_text(encoding="utf-8")
        pins.write_text(text, encoding="utf-8")
        venv.create(folder / "environment", with_pip=True)
        binaries = folder / "environment" / "bin"
        torch = re.findall(r"^torch==\S+$", text, re.MULTILINE)[0]
        install = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*install, torch])  # with it installed, no other package asks for its largest build
        run([*install, "--constraint", str(pins), str(wheel)])
        place = folder / "place"
        (place / "encoder").mkdir(parents=True)
        (place / "encoder" / "layers.json").write_text(ENCODER, encoding="utf-8")
        rows = [f"text {number} is {'good' if number % 2 else 'bad'},{number % 2}" for number in range(40)]
        (place / "mine.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
        pairs = [f"text {number},word {number % 5},{number % 7 + 0.5}" for number in range(40)]
        (place / "pairs.csv").write_text("\n".join(["first,second,label", *pairs]), encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
        environment = {**kept, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        wrong = []
        for arguments, status, wanted in commands():
            done = subprocess.run(
                [str(binaries / "flexibert-search"), *arguments],
                cwd=place, env=environment, capture_output=True, text=True,
            )  # fmt: skip
            said = done.stdout + done.stderr
            fine = done.returncode == status and wanted in said and "Traceback" not in said
            print(f"{'ok' if fine else 'FAILED':8}{arguments[0]}", flush=True)
            if not fine:
                wrong.append(f"{' '.join(arguments)} ended with {done.returncode}:\n{said[-3000:]}")
        if wrong:
            raise SystemExit("\n\n".join(wrong))
        print(f"Python {sys.version.split()[0]}: the wheel stands alone{', with the oldest' * options.oldest}")


if __name__ == "__main__":
    main()
