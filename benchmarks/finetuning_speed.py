"""Fine-tuning speed: this package against the settings of transformers' GLUE example, in one run.

    python benchmarks/finetuning_speed.py --tokenizer google-bert/bert-base-uncased [--model FOLDER]

The example (`run_glue.py`) pads every text to `max_length` and draws batches at random; here batches are padded to
their longest text and grouped by length. Model, data, steps, batch size, learning rate, schedule and seeds are the
same. The two take turns, one round per seed; speeds are medians over rounds, scores means with their spread.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, Trainer, default_data_collator

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search.data.tasks import Task, load_tasks
from search.metrics import compute, primary
from search.training.encoders import load_model
from search.training.finetuning import FinetuningBudget, build_arguments, finetune, quiet
from search.training.task_types import create_head


BERT_TINY_LAYER = {
    "hidden_size": 128,
    "operations": [{"op": "self_attention", "num_heads": 2}],
    "feed_forward": [512],
}


def finetune_like_the_example(
    model_dir: Path, task: Task, tokenizer, budget: FinetuningBudget, seed: int
) -> tuple[float, float]:
    """Examples per second while training, and the task's score, with fixed-length padding."""
    head = create_head(task, tokenizer, budget.max_length)

    def encode(batch):
        texts = (batch[column] for column in task.text_columns)
        encoded = tokenizer(*texts, padding="max_length", truncation=True, max_length=budget.max_length)
        return {**encoded, "label": batch[task.label_column]}

    with quiet(), tempfile.TemporaryDirectory() as folder:
        train, validation = (
            split.map(encode, batched=True, remove_columns=split.column_names, keep_in_memory=True)
            for split in (task.train, *task.validation.values())
        )
        transformers.set_seed(seed)
        trainer = Trainer(
            model=load_model(model_dir, head),
            args=build_arguments(budget, seed, folder, {}),
            train_dataset=train,
            data_collator=default_data_collator,
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        started = time.perf_counter()
        steps = trainer.train().global_step
        seconds = time.perf_counter() - started
        output = trainer.predict(validation)
    predictions = output.predictions[:, 0] if task.num_labels == 1 else output.predictions.argmax(-1)
    score = primary(task.metric, compute(task.metric, predictions, output.label_ids))
    return steps * budget.batch_size / seconds, score


def finetune_here(model_dir: Path, task: Task, tokenizer, budget: FinetuningBudget, seed: int) -> tuple[float, float]:
    """The same of this package."""
    result = finetune(model_dir, task, tokenizer, budget, seed)
    return result.examples_per_second, result.score


WAYS: dict[str, Callable] = {"fixed length": finetune_like_the_example, "grouped by length": finetune_here}


def measure(model_dir: Path, task: Task, tokenizer, budget: FinetuningBudget, rounds: int) -> dict[str, dict]:
    """Way -> examples per second and scores of all rounds."""
    outcomes = {name: [] for name in WAYS}
    for seed in range(rounds):
        order = list(WAYS) if seed % 2 == 0 else list(reversed(WAYS))
        for name in order:
            outcomes[name].append(WAYS[name](model_dir, task, tokenizer, budget, seed))
    return {
        name: {
            "examples_per_second": [speed for speed, _ in pairs],
            "median_examples_per_second": statistics.median(speed for speed, _ in pairs),
            "scores": [score for _, score in pairs],
            "mean_score": statistics.mean(score for _, score in pairs),
            "spread_of_score": statistics.stdev([score for _, score in pairs]) if rounds > 1 else 0.0,
        }
        for name, pairs in outcomes.items()
    }


def show(measured: dict[str, dict], ratio: float) -> None:
    print(f"{'way':<20}{'examples/s':>12}{'score':>10}{'spread':>10}")
    for name, values in measured.items():
        numbers = values["median_examples_per_second"], values["mean_score"], values["spread_of_score"]
        print(f"{name:<20}{numbers[0]:>12.1f}{numbers[1]:>10.3f}{numbers[2]:>10.3f}")
    print(f"ratio of speeds: {ratio:.2f}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", default="nyu-mll/glue", help="Hub id, or folder of the same layout")
    parser.add_argument("--tokenizer", required=True, help="folder or Hub id")
    parser.add_argument("--model", type=Path, help="folder of an encoder (default: BERT-Tiny's shape, random weights)")
    parser.add_argument("--task", default="sst2", help="GLUE task with one validation split (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way, one per seed (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps per run (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "finetuning_speed.json")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    warnings.simplefilter("ignore", RuntimeWarning)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    budget = FinetuningBudget(max_steps=options.steps, learning_rate=options.learning_rate)
    (task,) = load_tasks([options.task], None, options.glue, max_train_examples=options.steps * budget.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        model_dir = options.model or Path(folder)
        if options.model is None:
            torch.manual_seed(0)
            config = FlexiBertConfig(vocab_size=len(tokenizer), layers=[BERT_TINY_LAYER] * 2)
            FlexiBertForMaskedLM(config).save_pretrained(model_dir)
        measured = measure(model_dir, task, tokenizer, budget, options.rounds)
    slow, fast = (values["median_examples_per_second"] for values in measured.values())
    show(measured, fast / slow)
    texts = (list(task.train[column]) for column in task.text_columns)
    record = {
        "task": task.name,
        "model": options.model.name if options.model else "BERT-Tiny's shape, random weights",
        "budget": asdict(budget),
        "mean_tokens_per_example": float(np.mean([len(ids) for ids in tokenizer(*texts)["input_ids"]])),
        "ways": measured,
        "ratio_of_median_speeds": fast / slow,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
