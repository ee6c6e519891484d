"""Fine-tunes an encoder on tasks and prints their scores."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from flexibert import FlexiBertConfig

from ..artifacts.finetuned_card import write_finetuned_card
from ..artifacts.golden import load_whole, write_golden
from ..data.corpus import load_corpus
from ..data.sources import source_name
from ..data.tasks import load_tasks
from ..data.tokenizer import load_tokenizer
from ..errors import UserError
from ..evaluation.cards import finetuned_card
from ..files import replace_file, reported
from ..metrics import RULES, average
from ..study.run_folder import CACHE
from ..training.encoders import model_type
from ..training.finetuning import FinetuningBudget, FinetuningResult
from ..training.finetuning_runs import FROM_MNLI, finetune_tasks, summarize
from ..training.soft_labels import TaskTeacher
from .common import own_data, start


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
        classifier_pooling=options.classifier_pooling,
        class_weights=options.class_weights,
        pair_encoding=options.pair_encoding,
    )
    trackers = {"report_to": list(options.report_to)} if options.report_to else {}
    with accelerator.main_process_first():
        corpus = load_corpus(options.corpus, options.corpus_config, options.text_column, options.encoding)
        tokenizer = load_tokenizer(options.tokenizer or options.model, corpus, Path("runs") / CACHE)
        tasks = load_tasks(options.tasks, corpus, options.glue, options.max_train_examples, options=own_data(options))
    for task in tasks if accelerator.is_main_process else ():
        if task.columns:
            print(f"{task.name}: {task.columns}", flush=True)
    scores = Scores(output)
    known, base = {task.name: task for task in tasks}, source_name(options.model)

    teacher = source_name(options.teacher_model) if options.teacher_model else ""

    def report(name: str, runs: Sequence[FinetuningResult]) -> None:
        scores.add(name, runs)
        if output is not None:
            begun = options.start_from if options.start_from and name in FROM_MNLI else None
            card = finetuned_card(source_name(begun) if begun else base, known[name], budget, runs, teacher)
            with reported(output / name):
                if model_type(output / name) == FlexiBertConfig.model_type:
                    write_golden(load_whole(output / name), output / name)
                write_finetuned_card(output / name, card)

    finetune_tasks(
        options.model,
        tasks,
        tokenizer,
        budget,
        options.seeds,
        output,
        options.sweep,
        start_from=options.start_from,
        teacher=TaskTeacher(options.teacher_model, options.temperature, options.label_weight)
        if options.teacher_model
        else None,
        report=report if accelerator.is_main_process else lambda task, runs: None,
        **trackers,
    )
    if accelerator.is_main_process:
        scores.print_averages()


class Scores:
    """Prints scores as they come, in percent, and keeps them in `output / "scores.json"`, if there is an output."""

    def __init__(self, output: Path | None):
        self.file = output and output / "scores.json"
        self.rows: dict[str, list[dict]] = self.earlier()
        self.means: dict[str, dict[str, float]] = {}

    def earlier(self) -> dict[str, list[dict]]:
        """Scores of tasks that were fine-tuned before, which those of this start come beside."""
        if self.file is None or not self.file.is_file():
            return {}
        try:
            rows = json.loads(self.file.read_text(encoding="utf-8"))
        except ValueError:
            rows = None
        if not isinstance(rows, dict):
            raise UserError(f"{self.file} holds no scores; move it away or name another folder")
        return rows

    def add(self, task: str, runs: Sequence[FinetuningResult]) -> None:
        """A line per metric of a task, mean and spread over seeds."""
        summary = {name: value for name, value in summarize(runs).items() if name != "score"}
        encoding = runs[0].pair_encoding
        for name, (mean, spread) in summary.items():
            tail = f" +- {100 * spread:.2f} over {len(runs)} seeds" if len(runs) > 1 else ""
            tail += ", pairs encoded separately" if encoding == "separate" else ""
            print(f"{task:16} {name:24} {100 * mean:7.2f} %{tail}", flush=True)
        self.means[task] = {name: mean for name, (mean, _) in summary.items()}
        self.rows[task] = [dataclasses.asdict(run) for run in runs]
        if self.file is not None:
            with reported(self.file):
                replace_file(self.file, json.dumps(self.rows, indent=2))

    def print_averages(self) -> None:
        """Those that have a name."""
        for rule in RULES:
            value = average(self.means, rule)
            if value is not None:
                print(f"{'average':16} {rule:24} {100 * value:7.2f} %")
