"""Fine-tunes an encoder on tasks and prints their scores."""

import dataclasses
import json
from pathlib import Path

from ..corpus import load_corpus, load_tokenizer
from ..errors import UserError
from ..files import replace_file
from ..finetuning import FinetuningBudget
from ..finetuning_runs import finetune_tasks, summarize
from ..metrics import RULES, average
from ..tasks import load_tasks
from .setup import start


def main(options) -> None:
    """Fine-tunes an encoder on tasks and prints their scores."""
    if not options.tasks:
        raise UserError("--tasks: expected at least one task")
    output = Path(options.output) if options.output else None
    accelerator = start(options, output or Path("."))
    budget = FinetuningBudget(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        max_length=options.max_length,
        precision={None: "auto", "no": "fp32"}.get(options.precision, options.precision),
    )
    trackers = {"report_to": list(options.report_to)} if options.report_to else {}
    with accelerator.main_process_first():
        corpus = load_corpus(options.corpus, options.corpus_config, options.text_column)
        tokenizer = load_tokenizer(options.tokenizer or options.model, corpus, Path("runs") / ".cache")
        tasks = load_tasks(options.tasks, corpus, options.glue, options.max_train_examples)
    results = finetune_tasks(
        options.model,
        tasks,
        tokenizer,
        budget,
        options.seeds,
        output,
        options.sweep,
        start_from=options.start_from,
        **trackers,
    )
    if accelerator.is_main_process:
        print_scores(results, output)


def print_scores(results: dict[str, list], output: Path | None) -> None:
    """A line per task and metric, mean and spread over seeds in percent, and the averages that can be named."""
    means = {}
    for task, runs in results.items():
        summary = summarize(runs)
        means[task] = {name: mean for name, (mean, _) in summary.items() if name != "score"}
        for name, (mean, spread) in summary.items():
            if name != "score":
                tail = f" +- {100 * spread:.2f} over {len(runs)} seeds" if len(runs) > 1 else ""
                print(f"{task:16} {name:24} {100 * mean:7.2f} %{tail}")
    for rule in RULES:
        value = average(means, rule)
        if value is not None:
            print(f"{'average':16} {rule:24} {100 * value:7.2f} %")
    if output is not None:
        rows = {task: [dataclasses.asdict(run) for run in runs] for task, runs in results.items()}
        replace_file(output / "scores.json", json.dumps(rows, indent=2))
