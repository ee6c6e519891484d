"""Is fine-tuning right? A published encoder through this package's fine-tuning, beside published numbers.

    python benchmarks/yardstick.py --model sentence-transformers/all-MiniLM-L6-v2 \
        --output benchmarks/results/yardstick [--tasks mrpc,rte] [--learning-rates 5e-5,1e-4] [--epochs 5] ...
    python benchmarks/yardstick.py --output benchmarks/results/yardstick --table

Every task, learning rate, seed and set of other options is one JSON file in the output folder. Those that exist are
not made again, so a killed run goes on where it was, and a finished one can be widened by other learning rates.
`--table` prints for each task the best learning rate, chosen on the validation set as is custom on GLUE, beside the
published numbers.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import statistics
from pathlib import Path

import datasets
import torch
import transformers

from search.data.tasks import load_tasks
from search.files import replace_file
from search.metrics import GLUE_TASKS
from search.training.finetuning import FinetuningBudget, finetune
from search.training.memory import keep_freed_memory


PUBLISHED = {
    "sst2": ("accuracy", 90.6),
    "mrpc": ("f1", 88.0),
    "qnli": ("accuracy", 89.6),
    "mnli": ("accuracy_matched", 81.9),
    "rte": ("accuracy", 64.7),
    "stsb": ("pearson", 87.3),
}
"""Task -> (metric, percent) of another encoder of this shape, six layers of width 384 distilled from BERT-base."""


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    if options.table:
        print(table(options.output))
        return
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    options.output.mkdir(parents=True, exist_ok=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    for task in load_tasks(options.tasks, None, options.glue, options.max_train_examples):
        for learning_rate in options.learning_rates:
            for seed in options.seeds:
                budget = FinetuningBudget(
                    epochs=options.epochs,
                    batch_size=options.batch_size,
                    learning_rate=learning_rate,
                    max_length=options.max_length,
                    precision=options.precision,
                )
                settings = {
                    "model": Path(options.model).name,
                    "task": task.name,
                    "train_examples": len(task.train),
                    **dataclasses.asdict(budget),
                }
                file = options.output / f"{task.name}-{digest(settings)}-seed{seed}.json"
                if file.exists():
                    continue
                result = finetune(options.model, task, tokenizer, budget, seed)
                row = {**settings, **dataclasses.asdict(result), "machine": machine()}
                replace_file(file, json.dumps(row, indent=1) + "\n")
                print(f"{file}: {100 * result.score:.2f}", flush=True)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, train nothing")
    parser.add_argument(
        "--model", default="sentence-transformers/all-MiniLM-L6-v2", help="folder or Hub id of an encoder"
    )
    parser.add_argument("--glue", default="nyu-mll/glue", help="folder or Hub id of GLUE")
    parser.add_argument(
        "--tasks", type=lambda text: text.split(","), default=[task for task in GLUE_TASKS if task != "wnli"]
    )
    parser.add_argument(
        "--learning-rates", type=lambda text: [float(rate) for rate in text.split(",")], default=[3e-5, 5e-5, 1e-4]
    )
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--max-train-examples", type=int, help="of each task; default: all")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    return parser.parse_args(arguments)


def digest(settings: dict) -> str:
    """Short name of everything but the seed."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()


def machine() -> dict:
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(folder: Path) -> str:
    """One line a task: the settings whose mean over seeds is best."""
    runs: dict[str, dict[tuple, list[dict]]] = {}
    for file in sorted(folder.glob("*.json")):
        row = json.loads(file.read_text(encoding="utf-8"))
        key = (row["learning_rate"], row["epochs"], row["train_examples"])
        runs.setdefault(row["task"], {}).setdefault(key, []).append(row)
    lines = [
        "| task | training examples | epochs | learning rate | seeds | here | published |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in filter(runs.__contains__, GLUE_TASKS):
        (rate, epochs, examples), rows = max(
            runs[task].items(), key=lambda item: statistics.mean(row["score"] for row in item[1])
        )
        names = list(rows[0]["metrics"])
        here = ", ".join(f"{name} {100 * statistics.mean(row['metrics'][name] for row in rows):.1f}" for name in names)
        published = "{} {}".format(*PUBLISHED[task]) if task in PUBLISHED else "-"
        lines.append(f"| {task} | {examples:,} | {epochs:g} | {rate:g} | {len(rows)} | {here} | {published} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
