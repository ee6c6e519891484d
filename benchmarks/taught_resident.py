"""Measures an encoder that learnt from a teacher, and makes a resident of it.

    python -m search pretrain --architecture LAYERS.json --teacher sentence-transformers/all-MiniLM-L6-v2 \
        --corpus wikimedia/wikipedia --corpus-config 20231101.en --recipe RECIPE.json --precision bf16 \
        --output runs/NAME
    python benchmarks/taught_resident.py --checkpoint runs/NAME --tasks stsb,sst2,mrpc --results FILE.json
    python benchmarks/taught_resident.py --checkpoint runs/NAME --results FILE.json --output model_cards/NAME

With `--tasks` it adds to the results what the encoder knows of STS-B untouched, and its scores after fine-tuning;
tasks that the file holds already are not done again. With `--output` it writes the checkpoint in bfloat16, with a card
whose numbers come from that file and from the card that `pretrain` left.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from transformers import AutoTokenizer


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flexibert import FlexiBertForMaskedLM  # noqa: E402
from search.artifacts.checkpoint import save_checkpoint  # noqa: E402
from search.artifacts.model_card import CardFacts, Score  # noqa: E402
from search.artifacts.sentence_files import read_state_map  # noqa: E402
from search.data.tasks import load_tasks  # noqa: E402
from search.evaluation.zero_shot import SentenceEncoder, zero_shot  # noqa: E402
from search.files import replace_file  # noqa: E402
from search.metrics import average, primary  # noqa: E402
from search.training.finetuning import FinetuningBudget, finetune  # noqa: E402


GLUE = "nyu-mll/glue"


def measure(
    checkpoint: Path,
    tasks: Sequence[str],
    encodings: Sequence[str],
    glue: str,
    budget: FinetuningBudget,
    results: dict,
    seed: int,
):
    """Yields the results after each measurement that they lack."""
    if "zero_shot" not in results:
        (task,) = load_tasks(["stsb"], None, glue)
        encoder = SentenceEncoder(str(checkpoint), torch.device("cpu"))
        results["zero_shot"] = {"stsb": zero_shot(encoder, task, budget.max_length)["validation"]}
        yield results
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for name in tasks:
        task = load_tasks([name], None, glue)[0]
        pairs = len(task.text_columns) == 2
        for encoding in encodings if pairs else (None,):
            key = f"{name} {encoding}" if pairs else name
            if key in results.setdefault("fine_tuned", {}):
                continue
            chosen = dataclasses.replace(budget, pair_encoding=encoding)
            result = finetune(checkpoint, task, tokenizer, chosen, seed)
            results["fine_tuned"][key] = {
                "metrics": result.metrics,
                "seed": seed,
                "training_examples": len(task.train),
                "budget": dataclasses.asdict(chosen),
            }
            results |= mean_of_8(results["fine_tuned"])
            yield results


def mean_of_8(fine_tuned: dict) -> dict:
    """The mean over GLUE in percent, once all tasks are there, and how pairs were encoded: as was better for each."""
    best: dict[str, tuple[float, str]] = {}
    for key, run in fine_tuned.items():
        task, _, encoding = key.partition(" ")
        best[task] = max(best.get(task, (-1.0, "")), (primary(task, run["metrics"]), encoding))
    chosen = {task: f"{task} {encoding}".rstrip() for task, (_, encoding) in best.items()}
    mean = average({task: fine_tuned[key]["metrics"] for task, key in chosen.items()})
    encodings = {task: encoding for task, (_, encoding) in best.items() if encoding}
    return {} if mean is None else {"mean_of_8_percent": 100 * mean, "pair_encodings": encodings}


def told(card: ModelCard, corpus: str | None) -> dict:
    """What the card that `pretrain` left says of the training, as a part of the results."""
    teacher, _, told_corpus = card.text.partition("Learnt from the last hidden states of ")[2].partition(", on: ")
    rows = card.text.partition("\n## Training\n")[2].partition("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("| ")]
    return {
        "teacher": teacher,
        "corpus": corpus or told_corpus.split("\n")[0].rstrip("."),
        "pretraining": {
            name: value for name, value in cells if name and not name.startswith("---") and name != "seeds"
        },
        "pretrained": [
            {
                "task": entry.task_name,
                "metric": entry.metric_type,
                "value": entry.metric_value,
                "task_type": entry.task_type,
            }
            for entry in card.data.eval_results
        ],
    }


def scores(results: dict) -> tuple[Score, ...]:
    """What the card of `pretrain` said, and what was measured since, on whole validation sets of GLUE."""
    pretrained = [Score(**entry, dataset=results["corpus"]) for entry in results["pretrained"]]
    untouched = [
        Score(task, f"{metric}_percent", 100 * value, f"{task}, cosine of two sentences", budget="none",
              task_type="sentence-similarity", hub_dataset=GLUE, config=task, for_hub=False)
        for task, metrics in results["zero_shot"].items()
        for metric, value in metrics.items()
    ]  # fmt: skip
    runs = results.get("fine_tuned", {})
    best: dict[str, str] = {}  # of the ways of encoding pairs, by the first metric
    for key in sorted(runs, key=lambda key: next(iter(runs[key]["metrics"].values()))):
        best[key.partition(" ")[0]] = key
    fine_tuned = []
    for key, run in runs.items():
        task, _, encoding = key.partition(" ")
        spent = f"{run['budget']['epochs']:g} epochs, batch {run['budget']['batch_size']}, learning rate "
        spent += f"{run['budget']['learning_rate']:g}" + (f", pairs {encoding}" if encoding else "")
        where = f"{task} ({run['training_examples']:,} training examples)"
        fine_tuned += [
            Score(task, f"{metric}_percent", 100 * value, where, budget=spent, seeds=(run["seed"],),
                  hub_dataset=GLUE, config=task, for_hub=best[task] == key)
            for metric, value in run["metrics"].items()
        ]  # fmt: skip
    return (*pretrained, *untouched, *fine_tuned)


def card(name: str, results: dict) -> CardFacts:
    """What the card of the resident says; every number is in its results."""
    return CardFacts(
        name=name,
        corpus=results["corpus"],
        pretraining=results["pretraining"],
        seeds=(0,),
        scores=scores(results),
        search=results.get("search", {}),
        language="en",
        teacher=results["teacher"],
        fills_masks=False,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--tasks", default="", help="comma-separated tasks of GLUE to fine-tune on")
    parser.add_argument("--pair-encodings", default="joint,separate", help="for tasks of two texts")
    parser.add_argument("--glue", default=GLUE)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--search", type=json.loads, help="how the architecture was found: names and values, as JSON")
    parser.add_argument("--corpus", help="what it learnt on, in words (default: as its card says)")
    options = parser.parse_args(arguments)
    results = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
    if options.tasks:
        budget = FinetuningBudget(
            epochs=options.epochs, learning_rate=options.learning_rate, precision=options.precision
        )
        for done in measure(
            options.checkpoint,
            options.tasks.split(","),
            options.pair_encodings.split(","),
            options.glue,
            budget,
            results,
            seed=0,
        ):
            replace_file(options.results, json.dumps(done, indent=1) + "\n")
            print(json.dumps(done)[-300:], flush=True)
    if options.output:
        results |= told(ModelCard.load(options.checkpoint / "README.md"), options.corpus)
        results |= {"search": options.search} if options.search else {}
        replace_file(options.results, json.dumps(results, indent=1) + "\n")
        save_checkpoint(
            FlexiBertForMaskedLM.from_pretrained(options.checkpoint, dtype=torch.bfloat16),
            AutoTokenizer.from_pretrained(options.checkpoint),
            options.output,
            card(options.output.name, results),
            read_state_map(options.checkpoint),
        )


if __name__ == "__main__":
    main()
