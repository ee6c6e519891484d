"""Does a short training tell which encoder is better? Masked language modelling against a teacher, in equal time.

    python benchmarks/teacher_signal.py --teacher sentence-transformers/all-MiniLM-L6-v2 \
        --corpus Salesforce/wikitext --corpus-config wikitext-2-raw-v1 --output teacher_signal.json
    python benchmarks/teacher_signal.py --output teacher_signal.json --table

Random encoders of a recipe's space are trained from two seeds each, with either objective, for `--seconds` of
processor time and, anew, for four times as long. Steps follow from the encoder's own speed, so that a slow one has
fewer. After the long training its sentences are compared (STS-B's validation set, mean of the last states, without
fine-tuning), and it is fine-tuned on `--tasks`. Every training is a row of the output; rows that exist are not made
again. Tokenizer and text are the same for both objectives.

`--table` prints rank correlations (Kendall's tau) over the encoders, the mean of the seeds where there are two.
"""

import argparse
import dataclasses
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from scipy.stats import kendalltau


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flexibert.spec import layers_to_dicts  # noqa: E402
from search.data.blocks import tokenized_blocks  # noqa: E402
from search.data.corpus import load_corpus  # noqa: E402
from search.data.passages import passages  # noqa: E402
from search.data.tasks import load_tasks  # noqa: E402
from search.data.tokenizer import load_tokenizer  # noqa: E402
from search.evaluation.first_weights import FromScratch  # noqa: E402
from search.evaluation.model_config import model_fields  # noqa: E402
from search.evaluation.zero_shot import SentenceEncoder, zero_shot  # noqa: E402
from search.files import replace_file  # noqa: E402
from search.recipe import load_recipe  # noqa: E402
from search.space.search_space import random_values  # noqa: E402
from search.training.finetuning import FinetuningBudget, finetune  # noqa: E402
from search.training.memory import keep_freed_memory  # noqa: E402
from search.training.pretraining import pretrain  # noqa: E402
from search.training.teacher import Teacher, taught_text  # noqa: E402


OBJECTIVES = ("masked language modelling", "teacher")
LONGER = 4
"""Times the short budget."""


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    rows = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else []
    if options.table:
        print(table(rows))
        return
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for row in Experiment(options).missing(rows):
        rows.append(row)
        replace_file(options.output, json.dumps(rows, indent=1) + "\n")
        print({name: value for name, value in row.items() if name not in ("layers", "machine")}, flush=True)


class Experiment:
    """Texts, tasks and encoders, the same for all trainings."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        recipe = load_recipe(options.recipe)
        if recipe.space is None:
            raise SystemExit(f"recipe {options.recipe}: has no space")
        self.accelerator = Accelerator(cpu=True, mixed_precision=options.precision)
        self.tokenizer, teacher = load_tokenizer(options.teacher), Teacher(options.teacher)
        self.budget = dataclasses.replace(
            recipe.pretraining, batch_size=options.batch_size, learning_rate=options.learning_rate
        )
        corpus, length = load_corpus(options.corpus, options.corpus_config), self.budget.sequence_length
        cache = Path(options.cache)
        self.texts: dict[str, list[Any]] = {name: [] for name in OBJECTIVES}
        for part, tokens in ((corpus.train, options.tokens), (corpus.validation, options.tokens // 50)):
            blocks = tokenized_blocks(part, self.tokenizer, length, cache)[: tokens // length]
            some = passages(part, self.tokenizer, length, cache).head(tokens)
            taught = taught_text(
                some, teacher, self.tokenizer.pad_token_id, self.accelerator, cache, 1e3, print, lambda *_: None
            )
            self.texts[OBJECTIVES[0]].append(blocks)
            self.texts[OBJECTIVES[1]].append(taught)
        fields = model_fields(self.tokenizer, length, recipe.model)
        self.first = {OBJECTIVES[0]: FromScratch(fields), OBJECTIVES[1]: FromScratch(fields, teacher)}
        self.similarity, *self.tasks = load_tasks(["stsb", *options.tasks], options.max_train_examples, options.glue)
        rng, drawn = random.Random(0), {}
        while len(drawn) < options.encoders:
            layers = recipe.space.build(random_values(recipe.space, rng))
            drawn[tuple(layers)] = layers
        self.encoders = list(drawn)

    def missing(self, rows: list[dict]) -> Iterator[dict]:
        """Trains what has no row yet: all seeds of the first encoder, then of the next."""
        known = {(row["encoder"], row["seed"], row["objective"], row["times"]) for row in rows}
        for encoder, layers in enumerate(self.encoders):
            for objective in OBJECTIVES:
                wanted = [
                    (encoder, seed, objective, times) for seed in range(self.options.seeds) for times in (1, LONGER)
                ]
                wanted = [key for key in wanted if key not in known]
                seconds = self.step_seconds(layers, objective) if wanted else 0
                for _, seed, _, times in wanted:
                    steps = max(1, round(times * self.options.seconds / seconds))
                    row = {"encoder": encoder, "seed": seed, "objective": objective, "times": times, "steps": steps}
                    yield {**row, **self.train(layers, objective, seed, steps, times > 1)}

    def step_seconds(self, layers, objective: str) -> float:
        """Processor time of a step, the median of five groups of steps."""
        marks = []
        budget = dataclasses.replace(self.budget, steps=60)
        text = self.texts[objective][0]
        set_seed(0)
        pretrain(
            self.first[objective].model(layers).model, text, self.texts[objective][1], self.tokenizer, budget, 0,
            self.accelerator, progress=lambda done, loss, rate: marks.append((done, time.process_time())),
        )  # fmt: skip
        groups = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in zip(marks, marks[1:])]
        return statistics.median(groups)

    def train(self, layers, objective: str, seed: int, steps: int, measured: bool) -> dict:
        """One row: the loss on the validation text and, if asked for, what the encoder is good for."""
        set_seed(seed)
        model = self.first[objective].model(layers).model
        text, validation = self.texts[objective]
        budget, started = dataclasses.replace(self.budget, steps=steps), time.process_time()
        result = pretrain(model, text, validation, self.tokenizer, budget, seed, self.accelerator)
        row = {
            "layers": layers_to_dicts(layers),
            "parameters": model.config.num_parameters,
            "processor_seconds": time.process_time() - started,
            "loss": result.validation_loss,
            "budget": dataclasses.asdict(budget),
            "precision": self.options.precision,
            "machine": {"processor": platform.processor() or platform.machine(), "torch": torch.__version__},
        }
        if measured:
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                self.tokenizer.save_pretrained(folder)
                encoder = SentenceEncoder(folder, torch.device("cpu"))
                row["scores"] = {"stsb": zero_shot(encoder, self.similarity, 128)["validation"]["spearmanr"]}
                for task in self.tasks:
                    spent = FinetuningBudget(
                        epochs=self.options.epochs, learning_rate=2e-4, precision=self.options.precision,
                        pair_encoding="separate" if len(task.text_columns) == 2 else None,
                    )  # fmt: skip
                    row["scores"][task.name] = finetune(folder, task, self.tokenizer, spent, 0).score
        return row


def table(rows: list[dict]) -> str:
    """Rank correlations over the encoders that have all their trainings."""
    lines = ["| | " + " | ".join(OBJECTIVES) + " |", "|---|---|---|"]
    found = {name: correlations([row for row in rows if row["objective"] == name]) for name in OBJECTIVES}
    for name in found[OBJECTIVES[0]]:
        lines.append(
            f"| {name} | " + " | ".join(f"{found[objective].get(name, '-')}" for objective in OBJECTIVES) + " |"
        )
    return "\n".join(lines)


def correlations(rows: list[dict]) -> dict[str, str]:
    """What is compared -> tau, of one objective's rows."""
    by_key = {(row["encoder"], row["seed"], row["times"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    encoders = sorted({row["encoder"] for row in rows})
    complete = [e for e in encoders if all((e, seed, times) in by_key for seed in seeds for times in (1, LONGER))]

    def losses(seed: int, times: int) -> list[float]:
        return [by_key[encoder, seed, times]["loss"] for encoder in complete]

    def tau(pairs) -> str:
        return f"{statistics.mean(kendalltau(*pair).statistic for pair in pairs):.2f}"

    found = {"encoders": f"{len(complete)}"}
    for times, name in ((1, "short"), (LONGER, "long")):
        found[f"seed to seed, {name}"] = tau(
            [(losses(a, times), losses(b, times)) for a in seeds for b in seeds if a < b]
        )
        spread = statistics.mean(statistics.stdev(losses(seed, times)) for seed in seeds)
        found[f"spread over encoders, {name}"] = f"{spread:.3f}"
    found[f"short to {LONGER} times longer, same seed"] = tau([(losses(s, 1), losses(s, LONGER)) for s in seeds])
    found["short to longer, other seed"] = tau(
        [(losses(a, 1), losses(b, LONGER)) for a in seeds for b in seeds if a != b]
    )
    for task in by_key[complete[0], seeds[0], LONGER]["scores"] if complete else ():
        for times, name in ((1, "short"), (LONGER, "long")):
            pairs = [
                ([-loss for loss in losses(s, times)], [by_key[e, s, LONGER]["scores"][task] for e in complete])
                for s in seeds
            ]
            found[f"loss, {name}, to {task}"] = tau(pairs)
        scores = [by_key[e, s, LONGER]["scores"][task] for e in complete for s in seeds]
        found[f"{task}, mean over encoders"] = f"{100 * statistics.mean(scores):.1f}"
    return found


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--teacher", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--corpus", default="Salesforce/wikitext")
    parser.add_argument("--corpus-config")
    parser.add_argument("--glue", default="nyu-mll/glue")
    parser.add_argument("--recipe", default="flexibert_cpu")
    parser.add_argument("--encoders", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=500_000, help="of the corpus, for either objective")
    parser.add_argument("--tasks", type=lambda text: text.split(",") if text else [], default=["sst2", "mrpc"])
    parser.add_argument("--max-train-examples", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--cache", default=".cache")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
