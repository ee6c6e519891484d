"""Speed of masked-language-model training: this package against BertForMaskedLM in transformers' Trainer, in one run.

    python benchmarks/pretraining_speed.py --corpus wikimedia/wikipedia --corpus-config 20231101.en \
        --tokenizer google-bert/bert-base-uncased

Both train BERT of one shape from the same first weights on the same blocks of tokens, with batches of the same size,
the same optimiser and schedule. The peer is what one would write: Trainer with DataCollatorForLanguageModeling and its
defaults. Every run has a process of its own, and the ways take turns; speeds are medians over the rounds. On a machine
that does other things as well, tokens per second of processor time (of all threads) say more than those of the clock.
`--curve-steps` then trains further, with several seeds, and compares losses: how far apart the ways are, and how far
seeds are. Results are written after each run. Those that stand in the file are kept, so a stopped benchmark goes on.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from datasets import Dataset
from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling, Trainer, TrainingArguments

from flexibert import convert_transformers_model
from search.data.blocks import tokenized_blocks
from search.data.corpus import load_corpus
from search.data.tokenizer import load_tokenizer
from search.files import replace_file
from search.training.memory import keep_freed_memory
from search.training.pretraining import PretrainingBudget, pretrain


SHAPES = {
    "mini": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
WAYS = ("trainer", "search", "trainer bf16", "search bf16")
"""The first one is the stock setting that the others are compared with."""

CLOCKS = ("tokens_per_second", "tokens_per_processor_second")

WARM_UP = 2
"""Steps at the start of a run whose time does not count."""

SMOOTHING = 10
"""Steps over which losses are averaged before curves are compared."""


def train(way: str, shape: str, data: tuple, budget: PretrainingBudget, seed: int, log: bool = False) -> dict:
    """Tokens per second, from the median time of a step, or with `log` the loss of every step in nats."""
    blocks, validation_blocks, tokenizer = data
    transformers.set_seed(seed)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SHAPES[shape]))
    if way.startswith("search"):
        model = convert_transformers_model(model)
    starts: list[tuple[float, float]] = []

    def note_start(*_) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else this is when work is handed over, not when it is done
        starts.append((time.perf_counter(), time.process_time()))

    model.register_forward_pre_hook(note_start)
    bf16 = way.endswith("bf16")
    if way.startswith("search"):
        keep_freed_memory()  # as the command does
        accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
        losses = pretrain(model, blocks, validation_blocks[:1], tokenizer, budget, seed, accelerator).losses
    else:
        losses = train_like_everybody(model, blocks, tokenizer, budget, seed, bf16, log)
    if log:
        return {"losses": [round(loss, 5) for loss in losses]}
    seconds = np.median(np.diff(starts[: budget.steps], axis=0)[WARM_UP:], axis=0)
    speeds = budget.batch_size * budget.sequence_length / seconds
    return dict(zip(CLOCKS, speeds.tolist()))


def train_like_everybody(model, blocks, tokenizer, budget: PretrainingBudget, seed: int, bf16: bool, log: bool):
    """Losses of transformers' Trainer with its defaults, but for the optimiser's settings."""
    rows = blocks[np.random.default_rng(seed).permutation(len(blocks))[: budget.steps * budget.batch_size]]
    special = np.isin(rows, tokenizer.all_special_ids)
    columns = {"input_ids": rows.astype(np.int64), "attention_mask": np.ones_like(rows, dtype=np.int64)}
    dataset = Dataset.from_dict({**columns, "special_tokens_mask": special.astype(np.int64)})
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=budget.batch_size,
            max_steps=budget.steps,
            learning_rate=budget.learning_rate,
            warmup_steps=round(budget.warmup_fraction * budget.steps),
            weight_decay=budget.weight_decay,
            adam_beta2=budget.adam_beta2,
            adam_epsilon=budget.adam_epsilon,
            max_grad_norm=budget.max_grad_norm,
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            logging_steps=1 if log else 500,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=DataCollatorForLanguageModeling(tokenizer),
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def in_own_process(*arguments) -> dict:
    """`train` in a fresh process, whose memory and settings no other run has touched."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(train, arguments)


def measure_speed(options, data: tuple, record: dict) -> None:
    """Adds rounds of all ways and batch sizes to the record."""
    budgets = {size: budget(options, options.steps, size) for size in options.batch_sizes}
    for seed, (size, settings) in itertools.product(range(options.rounds), budgets.items()):
        runs = record["speed"].setdefault(str(size), {way: [] for way in options.ways})
        for way in options.ways if seed % 2 == 0 else reversed(options.ways):
            if len(runs[way]) <= seed:
                runs[way].append(in_own_process(way, options.shape, data, settings, seed))
                save(options, record)
        print(f"batch {size}, times the speed of {WAYS[0]}: {json.dumps(ratios(runs))}", flush=True)


def ratios(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Median speeds as multiples of the first way's, by the clock and by processor time."""
    medians = {
        way: {clock: statistics.median(run[clock] for run in rows) for clock in CLOCKS} for way, rows in runs.items()
    }
    stock = medians[WAYS[0]]
    return {way: {clock: round(row[clock] / stock[clock], 2) for clock in CLOCKS} for way, row in medians.items()}


def measure_curves(options, data: tuple, record: dict) -> None:
    """Adds the losses of all ways and seeds, at the first batch size, to the record."""
    settings = budget(options, options.curve_steps, options.batch_sizes[0])
    for seed, way in itertools.product(options.seeds, options.ways):
        curves = record["curves"].setdefault(way, {})
        if str(seed) not in curves:
            curves[str(seed)] = in_own_process(way, options.shape, data, settings, seed, True)["losses"]
            save(options, record)
    for way, curves in record["curves"].items():
        ends = ", ".join(f"{np.mean(losses[-SMOOTHING:]):.3f}" for losses in curves.values())
        print(f"{way}: loss at the end of {options.curve_steps} steps {ends} nats")
    print("mean absolute difference of smoothed losses in nats:", compare_curves(record["curves"]))


def compare_curves(curves: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Mean absolute differences of smoothed losses, between seeds of one way, and between each way and the first."""
    smooth = {way: [smoothed(losses) for losses in runs.values()] for way, runs in curves.items()}
    stock, *others = smooth
    pairs = [pair for runs in smooth.values() for pair in itertools.combinations(runs, 2)]
    differences = {"between seeds": float(np.mean([np.abs(a - b).mean() for a, b in pairs]))} if pairs else {}
    for way in others:
        pairs = itertools.product(smooth[stock], smooth[way])
        differences[f"{stock} to {way}"] = float(np.mean([np.abs(a - b).mean() for a, b in pairs]))
    return differences


def smoothed(losses: list[float]) -> np.ndarray:
    """Means over `SMOOTHING` steps."""
    return np.array(losses[: len(losses) // SMOOTHING * SMOOTHING]).reshape(-1, SMOOTHING).mean(1)


def budget(options, steps: int, batch_size: int) -> PretrainingBudget:
    return PretrainingBudget(steps=steps, batch_size=batch_size, learning_rate=options.learning_rate)


def save(options, record: dict) -> None:
    """Writes the record with what follows from it."""
    speed_ratios = {size: ratios(runs) for size, runs in record["speed"].items() if all(runs.values())}
    differences = compare_curves(record["curves"]) if WAYS[0] in record["curves"] else {}
    content = {**record, "speed_ratios": speed_ratios, "curve_differences_nats": differences}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(options.output, json.dumps(content, indent=2) + "\n")


def load_data(options) -> tuple:
    """Blocks to train on, blocks to validate with, and the tokenizer, whose cache is used once."""
    corpus = load_corpus(options.corpus, options.corpus_config)
    with tempfile.TemporaryDirectory() as cache:
        tokenizer = load_tokenizer(options.tokenizer, corpus, Path(cache))
        splits = (tokenized_blocks(split, tokenizer, 128, Path(cache)) for split in (corpus.train, corpus.validation))
        blocks, validation_blocks = (np.array(split) for split in splits)
    return blocks, validation_blocks, tokenizer


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="as of the command pretrain (default: text that comes with Python)")
    parser.add_argument("--corpus-config", help="configuration of the corpus")
    parser.add_argument("--tokenizer", help="folder or Hub id (default: one trained on the corpus)")
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="the first must be 'trainer'")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 64], help="sequences of 128 tokens")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each way (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="steps of a run for speed (default: %(default)s)")
    parser.add_argument("--curve-steps", type=int, default=0, help="steps of a run for losses, 0 for no such runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of the runs for losses")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "pretraining_speed.json")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    settings = {
        "shape": options.shape,
        "sequence_length": 128,
        "corpus": "/".join(filter(None, [Path(options.corpus or "python").name, options.corpus_config])),
        "learning_rate": options.learning_rate,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    record = {"settings": settings, "speed": {}, "curves": {}}
    if options.output.is_file():
        before = json.loads(options.output.read_text(encoding="utf-8"))
        if before["settings"] == settings:
            record |= {key: before[key] for key in ("speed", "curves")}
    data = load_data(options)
    measure_speed(options, data, record)
    if options.curve_steps:
        measure_curves(options, data, record)


if __name__ == "__main__":
    main()
