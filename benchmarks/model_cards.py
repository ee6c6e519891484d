"""Writes model_cards/ from the result files of `like_for_like.py`.

    python benchmarks/model_cards.py --results benchmarks/results/like_for_like --output model_cards
    python benchmarks/model_cards.py --results benchmarks/results/resident --output model_cards \
        --checkpoint runs/like_for_like/NAME-seed0/pretrained --name NAME

Without a checkpoint every model gets its configuration and a card. With one, the only model of the results becomes a
resident: the checkpoint in bfloat16 with its tokenizer, code and golden logits.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search.artifacts.checkpoint import save_checkpoint
from search.artifacts.model_card import CardFacts, Score, write_card


def read_results(folder: Path) -> dict[str, list[dict]]:
    """Model -> one result per seed."""
    runs: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        runs.setdefault(run["model"], []).append(run)
    if not runs:
        raise SystemExit(f"{folder} holds no results")
    return runs


def card_facts(name: str, runs: list[dict]) -> CardFacts:
    """What the card of a model says; every number is read from its results."""
    first = runs[0]
    budget = first["finetuning"]
    fine_tuning = (
        f"{budget['epochs']:g} epochs, batch {budget['batch_size']}, learning rate {budget['learning_rate']:g}"
    )
    scores = [score(runs, "masked language modelling", "mlm_loss_nats", first["corpus"], pretrained("mlm_loss_nats"))]
    scores += [
        score(runs, task, f"{metric}_percent", describe_data(first, task), measured(task, metric), fine_tuning)
        for task, metrics in first["tasks"].items()
        for metric in metrics
    ]
    text = "the eight GLUE tasks above"
    scores.append(score(runs, "GLUE", "mean_of_8_percent", text, lambda run: run["mean_of_8_percent"], fine_tuning))
    pretraining = {
        **first["pretraining"],
        "precision": first["machine"]["precision"],
        "train_seconds": round(statistics.fmean(map(pretrained("seconds"), runs))),
        "machine": f"{first['machine']['device']}, {first['machine']['threads']} threads",
    }
    seeds = tuple(run["seed"] for run in runs)
    return CardFacts(name, first["corpus"], pretraining, seeds, tuple(scores), language="en")


def score(runs, task: str, metric: str, data: str, value: Callable[[dict], float], budget: str = "") -> Score:
    """Mean and spread over the seeds."""
    values = [value(run) for run in runs]
    return Score(
        task,
        metric,
        statistics.fmean(values),
        data,
        budget=budget,
        seeds=tuple(run["seed"] for run in runs),
        standard_deviation=statistics.stdev(values) if len(values) > 1 else None,
        task_type="fill-mask" if metric == "mlm_loss_nats" else "text-classification",
    )


def pretrained(name: str) -> Callable[[dict], float]:
    return lambda run: run["pretrained"][name]


def measured(task: str, metric: str) -> Callable[[dict], float]:
    return lambda run: 100 * run["tasks"][task][metric]


GLUE_SIZES = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "stsb": (5749, 1500),
    "qqp": (363846, 40430),
    "mnli": (392702, 9815, 9832),
    "qnli": (104743, 5463),
    "rte": (2490, 277),
}
"""Examples of GLUE's training and validation splits."""


def describe_data(run: dict, task: str) -> str:
    """How many examples there were, and where that was a sample."""
    counts = [run["train_examples"][task], *run["validation_examples"][task].values()]
    sizes = GLUE_SIZES.get(task, counts)
    train, *validation = (f"{'a sample of ' if count < size else ''}{count:,}" for count, size in zip(counts, sizes))
    return f"{task} ({train} training and {' + '.join(validation)} validation examples)"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("model_cards"))
    parser.add_argument("--checkpoint", type=Path, help="weights of the resident")
    parser.add_argument("--name", help="of the resident")
    options = parser.parse_args(arguments)
    results = read_results(options.results)
    if options.checkpoint is None:
        for name, runs in results.items():
            folder = options.output / name
            structure = ("layers", "position_embedding_type", "classifier_pooling", "vocab_size")
            config = {key: runs[0][key] for key in structure}
            config["max_position_embeddings"] = runs[0]["pretraining"]["sequence_length"]
            config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # as they were trained
            folder.mkdir(parents=True, exist_ok=True)
            FlexiBertConfig(**config).to_json_file(folder / "config.json")
            write_card(folder, card_facts(name, runs))
            print(folder)
        return
    if len(results) != 1 or options.name is None:
        raise SystemExit("a resident needs --name, and results of one model")
    (runs,) = results.values()
    model = FlexiBertForMaskedLM.from_pretrained(options.checkpoint, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    save_checkpoint(model, tokenizer, options.output / options.name, card_facts(options.name, runs))
    print(options.output / options.name)


if __name__ == "__main__":
    main()
