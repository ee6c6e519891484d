"""Writes model_cards/ from result files and `model_facts.json`; whatever a card says comes from them or is computed.

    python benchmarks/model_cards.py
    python benchmarks/model_cards.py --results benchmarks/results/resident --output model_cards \
        --checkpoint runs/like_for_like/NAME-seed0/pretrained --name NAME

Without options every named architecture and every model of `like_for_like.py` gets its configuration, a drawing and a
card, and the residents get theirs anew. With a checkpoint, the only model of the results becomes a resident: the
checkpoint in bfloat16 with its tokenizer, code and golden outputs.
"""

import argparse
import fnmatch
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import taught_resident  # noqa: E402
from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, list_architectures, named_config  # noqa: E402
from search.artifacts.checkpoint import save_checkpoint  # noqa: E402
from search.artifacts.model_card import CardFacts, Score, write_card  # noqa: E402


ROOT = Path(__file__).resolve().parent
RESULTS, OUTPUT = ROOT / "results", ROOT.parent / "model_cards"
TAUGHT = RESULTS / "taught_resident"


def taught_facts(name: str) -> CardFacts:
    """Of a resident that learnt from a teacher."""
    return taught_resident.card(name, json.loads((TAUGHT / f"{name}.json").read_text(encoding="utf-8")))


RESIDENTS = {
    "flexibert-mini-wikipedia": lambda name: card_facts(name, next(iter(read_results(RESULTS / "resident").values()))),
    "flexibert-mini-sentences": taught_facts,
    "flexibert-tiny-sentences": taught_facts,
}
"""Name of a resident -> what its card says."""


def read_results(folder: Path) -> dict[str, list[dict]]:
    """Model -> one result per seed."""
    runs: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        runs.setdefault(run["model"], []).append(run)
    if not runs:
        raise SystemExit(f"{folder} holds no results")
    return runs


def known_facts(name: str) -> dict[str, Any]:
    """What `model_facts.json` says of a model; the pattern that says most of its name counts."""
    table = json.loads((ROOT / "model_facts.json").read_text(encoding="utf-8"))
    found = max((pattern for pattern in table if fnmatch.fnmatchcase(name, pattern)), key=len, default=None)
    return table[found] if found else {}


def card_facts(name: str, runs: list[dict]) -> CardFacts:
    """What the card of a measured model says; every number is read from its results."""
    first = runs[0]
    budget = first["finetuning"]
    fine_tuning = (
        f"{budget['epochs']:g} epochs, batch {budget['batch_size']}, learning rate {budget['learning_rate']:g}"
    )
    scores = [score(runs, "masked language modelling", "mlm_loss_nats", first["corpus"], pretrained("mlm_loss_nats"))]
    scores += [
        replace(
            score(runs, task, f"{metric}_percent", describe_data(first, task), measured(task, metric), fine_tuning),
            **hub_data(first, task),
        )
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


GLUE = "nyu-mll/glue"
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


def counts(run: Mapping[str, Any], task: str) -> list[int]:
    """Examples that were trained and validated on."""
    return [run["train_examples"][task], *run["validation_examples"][task].values()]


def describe_data(run: dict, task: str) -> str:
    """How many examples there were, and where that was a sample."""
    sizes = GLUE_SIZES.get(task, counts(run, task))
    train, *validation = (
        f"{'a sample of ' if count < size else ''}{count:,}" for count, size in zip(counts(run, task), sizes)
    )
    return f"{task} ({train} training and {' + '.join(validation)} validation examples)"


def hub_data(run: dict, task: str) -> dict[str, Any]:
    """The data set on the Hub, and whether a part of its validation split was left out."""
    if task not in GLUE_SIZES:
        return {}
    return {
        "hub_dataset": GLUE,
        "config": task,
        "for_hub": counts(run, task)[1:] == list(GLUE_SIZES[task][1:]),
    }


def measured_config(run: Mapping[str, Any]) -> FlexiBertConfig:
    """The configuration that was trained."""
    structure = ("layers", "position_embedding_type", "classifier_pooling", "vocab_size")
    fields = {key: run[key] for key in structure}
    fields["max_position_embeddings"] = run["pretraining"]["sequence_length"]
    return FlexiBertConfig(**fields, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def write(folder: Path, config: FlexiBertConfig, facts: CardFacts) -> None:
    """A configuration without weights, its drawing and its card."""
    folder.mkdir(parents=True, exist_ok=True)
    config.to_json_file(folder / "config.json")
    known = known_facts(folder.name)
    write_card(folder, replace(facts, origin=known.get("origin", ""), reported=tuple(known.get("reported", ()))))
    print(folder)


def write_measured(results: Mapping[str, list[dict]], output: Path) -> None:
    for name, runs in results.items():
        write(output / name, measured_config(runs[0]), card_facts(name, runs))


def write_all(output: Path) -> None:
    """Every named architecture, every measured one, and the cards of the residents that are there."""
    results = read_results(RESULTS / "like_for_like")
    names = {*list_architectures(), *(name for name in results if name not in list_architectures()), "fnet-mini-pure"}
    for name in sorted(names):
        runs = results.get(known_facts(name).get("results", name))
        config = measured_config(runs[0]) if runs else None
        if runs is None or (name in list_architectures() and config.layer_specs != named_config(name).layer_specs):
            write(output / name, named_config(name), CardFacts(name, "", {}, ()))  # another one of that name
        else:
            write(output / name, config, card_facts(name, runs))
    for name, facts in RESIDENTS.items():
        if (output / name / "model.safetensors").is_file():
            write_card(output / name, facts(name))
            print(output / name)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="of one experiment alone")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--checkpoint", type=Path, help="weights of the resident")
    parser.add_argument("--name", help="of the resident")
    options = parser.parse_args(arguments)
    if options.results is None:
        write_all(options.output)
        return
    results = read_results(options.results)
    if options.checkpoint is None:
        write_measured(results, options.output)
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
