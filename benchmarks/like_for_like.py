"""Encoders of BERT-Mini's budget on equal terms: same text, tokenizer, token budget, recipe and fine-tuning for all.

    python benchmarks/like_for_like.py --output benchmarks/results/like_for_like \
        [--searched runs/NAME/best] [--models bert-mini,fnet-mini] [--seeds 0,1,2] [--steps N] ...
    python benchmarks/like_for_like.py --output benchmarks/results/like_for_like --table

Every model and seed is one JSON file in the output folder. Those that exist are not made again, and a killed run goes
on at the last checkpoint of pretraining or at the first task without a score; several processes may share the work
with different `--models` or `--seeds`. Work and results of other settings are refused. A seed decides first weights,
order of the text, masks, heads and the order of examples; the training examples of a task are the same in all runs.
`--table` prints mean and spread over the seeds.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, architecture
from flexibert.spec import LayerSpec, LinearTransform
from search.artifacts.checkpoint import save_checkpoint
from search.cost import count_parameters, forward_flops
from search.data.blocks import tokenized_blocks
from search.data.corpus import load_corpus
from search.data.tasks import Task, load_tasks
from search.data.tokenizer import load_tokenizer
from search.evaluation.cards import pretraining_card
from search.evaluation.model_config import build_config
from search.files import replace_file
from search.metrics import GLUE_TASKS, average, primary
from search.training.finetuning import FinetuningBudget, finetune
from search.training.memory import keep_freed_memory
from search.training.pretraining import PretrainingBudget, pretrain


FNET_LAYER = LayerSpec(256, (LinearTransform(4, "fourier", source="layer"),), (1024,))
AUTOBERT_ZERO = architecture("autobert-zero-small")

MODELS = {
    "bert-mini": (architecture("bert-mini"), "absolute"),
    "flexibert-mini": (architecture("flexibert-mini"), "relative_key"),
    # The first and the last block of the published network, in four layers of BERT-Mini's width.
    "autobert-zero-mini": (AUTOBERT_ZERO[:2] + AUTOBERT_ZERO[-2:], "absolute"),
    "fnet-mini": (4 * (FNET_LAYER,), "absolute"),
    "convbert-mini": (architecture("convbert-mini"), "absolute"),
}
"""Name -> layers, and the positions that the model's own paper has. All else is the same for all."""

SETTINGS = ("corpus", "vocab_size", "classifier_pooling", "pretraining", "finetuning", "train_examples")
"""What has to be the same in all runs of a table."""

PUBLISHED_GAP = 8.9
"""GLUE points by which FlexiBERT-Mini is said to lead BERT-Mini (arXiv 2205.11656, abstract)."""


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    if options.table:
        print(table(options.output))
        return
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    models = dict(MODELS)
    if options.searched:
        config = FlexiBertConfig.from_pretrained(options.searched)
        models["searched"] = (config.layer_specs, config.position_embedding_type)
    unknown = set(options.models or ()) - models.keys()
    if unknown:
        raise SystemExit(f"unknown model {min(unknown)!r}, known: {', '.join(models)}")
    options.output.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(options)
    for seed in options.seeds:
        for name in options.models or models:
            result = options.output / f"{name}-seed{seed}.json"
            if result.exists():
                check_settings(json.loads(result.read_text()), experiment.settings, result)
            else:
                replace_file(result, json.dumps(experiment.run(name, *models[name], seed), indent=1) + "\n")
                print(f"{result} written", flush=True)
    print("all runs are there")


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, train nothing")
    parser.add_argument("--work", type=Path, default=Path("runs/like_for_like"), help="checkpoints, caches")
    parser.add_argument("--corpus", default="wikimedia/wikipedia", help="folder or Hub id of text")
    parser.add_argument("--corpus-config", default="20231101.en")
    parser.add_argument("--glue", default="nyu-mll/glue", help="folder or Hub id of GLUE")
    parser.add_argument("--tokenizer", help="folder or Hub id; trained on the text otherwise")
    parser.add_argument("--models", type=lambda text: text.split(","), help="default: all")
    parser.add_argument("--searched", help="checkpoint whose architecture joins as the model 'searched'")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=8, help="sequences of 128 tokens per step")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--max-train-examples", type=int, default=640, help="of each task")
    parser.add_argument("--max-validation-examples", type=int, default=500, help="of each split")
    parser.add_argument("--finetuning-epochs", type=float, default=2)
    parser.add_argument("--finetuning-learning-rate", type=float, default=3e-4)
    parser.add_argument("--classifier-pooling", choices=("cls", "mean"), default="mean")
    return parser.parse_args(arguments)


class Experiment:
    """Everything that is the same for all models: data and budgets."""

    def __init__(self, options: argparse.Namespace):
        self.work = options.work
        # No dropout: no text is seen twice.
        self.fields = {
            "classifier_pooling": options.classifier_pooling,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        self.accelerator = Accelerator(mixed_precision=options.precision)
        self.pretraining = PretrainingBudget(
            steps=options.steps,
            batch_size=options.batch_size,
            sequence_length=128,
            learning_rate=options.learning_rate,
            checkpoint_steps=max(1, options.steps // 5),
        )
        self.finetuning = FinetuningBudget(
            epochs=options.finetuning_epochs,
            batch_size=16,
            learning_rate=options.finetuning_learning_rate,
            precision={"no": "fp32"}.get(options.precision, options.precision),
        )
        cache = options.work / ".cache"
        self.corpus = load_corpus(options.corpus, options.corpus_config)
        self.tokenizer = load_tokenizer(options.tokenizer, self.corpus, cache)
        self.blocks = tokenized_blocks(self.corpus.train, self.tokenizer, 128, cache)
        self.validation_blocks = tokenized_blocks(self.corpus.validation, self.tokenizer, 128, cache)
        tasks = [name for name in GLUE_TASKS if name != "wnli"]
        loaded = load_tasks(tasks, self.corpus, options.glue, options.max_train_examples)
        self.tasks = [shorten(task, options.max_validation_examples) for task in loaded]
        self.settings = {
            "corpus": self.corpus.name,
            "vocab_size": len(self.tokenizer),
            "classifier_pooling": options.classifier_pooling,
            "pretraining": {**dataclasses.asdict(self.pretraining), "tokens": self.pretraining.tokens},
            "finetuning": {k: v for k, v in dataclasses.asdict(self.finetuning).items() if v is not None},
            "train_examples": {task.name: len(task.train) for task in self.tasks},
            "validation_examples": {
                task.name: {split: len(rows) for split, rows in task.validation.items()} for task in self.tasks
            },
        }

    def run(self, name: str, layers, positions: str, seed: int) -> dict:
        """Pretrains and fine-tunes one model; says all that is needed to judge it."""
        folder = self.work / f"{name}-seed{seed}"
        settings = folder / "settings.json"
        if settings.exists():
            check_settings(json.loads(settings.read_text()), self.settings, folder)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(settings, json.dumps(self.settings, indent=1) + "\n")
        config = build_config(layers, self.tokenizer, 128, {"position_embedding_type": positions, **self.fields})
        pretrained_file = folder / "pretraining.json"
        if not pretrained_file.exists():
            replace_file(pretrained_file, json.dumps(self.pretrain(config, folder, seed)))
        results = {}
        for task in self.tasks:
            result = folder / f"{task.name}.json"
            if not result.exists():
                scores = finetune(folder / "pretrained", task, self.tokenizer, self.finetuning, seed)
                replace_file(result, json.dumps(dataclasses.asdict(scores)))
            results[task.name] = json.loads(result.read_text())
        metrics = {task: result["metrics"] for task, result in results.items()}
        predictions = round(self.pretraining.mask_fraction * 128)
        return {
            "model": name,
            "seed": seed,
            "layers": [layer.to_dict() for layer in config.layer_specs],
            "position_embedding_type": positions,
            "parameters": count_parameters(config),
            "embedding_parameters": config.vocab_size * config.embedding_size,
            "forward_flops_per_token": round(forward_flops(config, 128, predictions) / 128),
            **self.settings,
            "pretrained": json.loads(pretrained_file.read_text()),
            "tasks": metrics,
            "finetuning_seconds": sum(result["seconds"] for result in results.values()),
            "mean_of_8_percent": 100 * average(metrics),
            "machine": machine(self.accelerator),
        }

    def pretrain(self, config: FlexiBertConfig, folder: Path, seed: int) -> dict[str, float]:
        """Leaves a checkpoint in `folder / "pretrained"`."""
        set_seed(seed)
        model = FlexiBertForMaskedLM(config)
        result = pretrain(
            model,
            self.blocks,
            self.validation_blocks,
            self.tokenizer,
            self.pretraining,
            seed,
            self.accelerator,
            folder / "training",
        )
        card = pretraining_card(folder.name, self.corpus.name, self.pretraining, result, seed)
        save_checkpoint(model, self.tokenizer, folder / "pretrained", card)
        return {
            "mlm_loss_nats": result.validation_loss,
            "mlm_accuracy_percent": result.metrics["mlm_accuracy_percent"],
            "seconds": result.seconds,
            "tokens_per_second": result.tokens_per_second,
        }


def check_settings(there: dict, settings: dict, place: Path) -> None:
    """Stops where results or work are of another experiment."""
    changed = [name for name, value in settings.items() if there.get(name) != value]
    if changed:
        raise SystemExit(f"{place} is of an experiment with another {', '.join(changed)}; use another folder")


def shorten(task: Task, examples: int) -> Task:
    """The task with the first examples of each validation split."""
    splits = {split: rows.select(range(min(examples, len(rows)))) for split, rows in task.validation.items()}
    return dataclasses.replace(task, validation=splits)


def machine(accelerator: Accelerator) -> dict:
    """Where it ran. The times of runs that shared the machine are no measurement of speed."""
    on_cpu = accelerator.device.type == "cpu"
    return {
        "device": platform.machine() if on_cpu else torch.cuda.get_device_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": accelerator.mixed_precision,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(folder: Path) -> str:
    """Markdown: mean and, after ±, sample standard deviation over the seeds; best mean of 8 first."""
    runs: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        run = json.loads(path.read_text())
        runs.setdefault(run["model"], []).append(run)
    if not runs:
        raise SystemExit(f"{folder} holds no results")
    first, *others = (run for model in runs.values() for run in model)
    settings = {name: first[name] for name in SETTINGS}
    for run in others:
        check_settings(run, settings, folder / f"{run['model']}-seed{run['seed']}.json")
    tasks = list(first["tasks"])
    order = sorted(runs, key=lambda name: -mean(runs[name], lambda run: run["mean_of_8_percent"]))
    lines = [
        f"| model | parameters | masked-LM loss, nats | mean of 8 | {' | '.join(tasks)} | seeds |",
        "|---|" + "--:|" * (len(tasks) + 4),
    ]
    for name in order:
        cells = [
            f"{runs[name][0]['parameters'] / 1e6:.2f} M",
            spread(runs[name], lambda run: run["pretrained"]["mlm_loss_nats"], 3),
            spread(runs[name], lambda run: run["mean_of_8_percent"]),
            *(spread(runs[name], lambda run, task=task: 100 * primary(task, run["tasks"][task])) for task in tasks),
            str(len(runs[name])),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if "bert-mini" in runs:
        base = mean(runs["bert-mini"], lambda run: run["mean_of_8_percent"])
        lines.append("")
        for name in order:
            if name != "bert-mini":
                gap = mean(runs[name], lambda run: run["mean_of_8_percent"]) - base
                lines.append(f"{name} - bert-mini: {gap:+.1f} points; FlexiBERT's paper claims {PUBLISHED_GAP:+}")
    return "\n".join(lines)


def mean(runs: list[dict], value) -> float:
    return statistics.fmean(map(value, runs))


def spread(runs: list[dict], value, digits: int = 1) -> str:
    text = f"{mean(runs, value):.{digits}f}"
    return text if len(runs) == 1 else f"{text} ± {statistics.stdev(list(map(value, runs))):.{digits}f}"


if __name__ == "__main__":
    main()
