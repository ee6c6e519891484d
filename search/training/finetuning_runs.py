"""Fine-tuning more than once: over learning rates, over seeds, over tasks that start from one another."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from transformers import PreTrainedTokenizerBase

from ..data.tasks import Task
from ..errors import TrainingDiverged, UserError
from ..files import check_place
from .finetuning import FinetuningBudget, FinetuningResult, finetune
from .soft_labels import TaskTeacher
from .task_types import is_pair


LEARNING_RATES = (2e-5, 5e-4)
"""The range of a sweep, that of FlexiBERT's fine-tuning."""

FROM_MNLI = ("rte", "mrpc", "stsb")
"""Small tasks that gain from an encoder fine-tuned on MNLI first (RoBERTa, arXiv 1907.11692, Section 5.1)."""


def sweep(
    model_dir: Path | str,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    budget: FinetuningBudget,
    seed: int = 0,
    trials: int = 10,
    learning_rates: Sequence[float] | None = None,
    **training_arguments: Any,
) -> list[FinetuningResult]:
    """Fine-tunes with several learning rates, chosen by the score on the validation split as is custom on GLUE.

    Args:
        trials: How many learning rates Optuna's TPE draws from `LEARNING_RATES`, log-uniformly.
        learning_rates: A grid to try instead.
        training_arguments: As for `finetune`.

    Returns:
        The results, best first; those that diverged are left out.

    Raises:
        TrainingDiverged: All of them did.
    """
    rates = list(learning_rates or ())
    study = quiet_study(optuna.samplers.TPESampler(seed=seed))
    for rate in rates:
        study.enqueue_trial({"learning_rate": rate})
    low, high = min(rates or LEARNING_RATES), max(rates or LEARNING_RATES)
    results = []
    # Processes of one launch need no messages here: equal seeds and scores make their samplers propose the same.
    for _ in range(len(rates) or trials):
        trial = study.ask()
        rate = trial.suggest_float("learning_rate", low, high, log=True)
        try:
            result = finetune(
                model_dir, task, tokenizer, replace(budget, learning_rate=rate), seed, **training_arguments
            )
        except TrainingDiverged as error:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            failure = error
        else:
            study.tell(trial, result.score)
            results.append(result)
    if not results:
        raise failure
    return sorted(results, key=lambda result: result.score, reverse=True)


def quiet_study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="maximize", sampler=sampler)
    finally:
        optuna.logging.set_verbosity(verbosity)


def finetune_tasks(
    model_dir: Path | str,
    tasks: Iterable[Task],
    tokenizer: PreTrainedTokenizerBase,
    budget: FinetuningBudget,
    seeds: Sequence[int] = (0,),
    output_dir: Path | None = None,
    sweep_trials: int = 0,
    learning_rates: Sequence[float] | None = None,
    start_from: Path | None = None,
    teacher: TaskTeacher | None = None,
    report: Callable[[str, list[FinetuningResult]], None] = lambda task, results: None,
    **training_arguments: Any,
) -> dict[str, list[FinetuningResult]]:
    """Fine-tunes on each task with each seed.

    Args:
        output_dir: Where the first seed's checkpoints are left, one folder a task.
        sweep_trials, learning_rates: Whether, and over what, the learning rate of a task is swept first, see `sweep`.
            The first seed serves for it.
        start_from: A checkpoint fine-tuned on MNLI that the tasks of `FROM_MNLI` start from instead of `model_dir`;
            may be `output_dir / "mnli"` of this very call, since MNLI comes first.
        teacher: A fine-tuned model, or one a task, whose logits are learnt too.
        report: Told about each task as soon as it is done, so that an error in a later one loses nothing.
        training_arguments: As for `finetune`.

    Returns:
        Task -> one result per seed.

    Raises:
        UserError: As `finetune`; or a folder of `output_dir` holds something else, or `start_from` is missing.
        TrainingDiverged: The loss was not finite; the message names task and seed.
    """
    tasks = sorted(tasks, key=lambda task: task.name != "mnli")
    check_folders(tasks, output_dir, start_from)
    if budget.pair_encoding == "separate" and not any(map(is_pair, tasks)):
        raise UserError("pair encoding: no task is a classification or regression of two texts")
    results: dict[str, list[FinetuningResult]] = {}
    for task in tasks:
        start = start_from if start_from is not None and task.name in FROM_MNLI else model_dir
        chosen = budget if is_pair(task) else replace(budget, pair_encoding=None)
        if teacher is not None:
            training_arguments["soft_labels"] = teacher.read(task, budget.max_length)
        if sweep_trials or learning_rates:
            best, *_ = sweep(
                start, task, tokenizer, chosen, seeds[0], sweep_trials, learning_rates, **training_arguments
            )
            chosen = replace(chosen, learning_rate=best.learning_rate)
        folders = [output_dir / task.name if output_dir else None, *[None] * (len(seeds) - 1)]
        results[task.name] = []
        for seed, folder in zip(seeds, folders):
            try:
                result = finetune(start, task, tokenizer, chosen, seed, folder, **training_arguments)
            except TrainingDiverged as error:
                raise TrainingDiverged(f"{task.name}, seed {seed}: {error}") from error
            results[task.name].append(result)
        report(task.name, results[task.name])
    return results


def check_folders(tasks: Sequence[Task], output_dir: Path | None, start_from: Path | None) -> None:
    """Raises UserError, before hours of training, where results have no place or the start is not there."""
    if output_dir is not None:
        for task in tasks:
            check_place(Path(output_dir, task.name), "config.json", "checkpoint")
    if start_from is None or Path(start_from).exists():
        return
    names = {task.name for task in tasks}
    made_here = "mnli" in names and output_dir is not None and Path(start_from) == Path(output_dir, "mnli")
    if names & set(FROM_MNLI) and not made_here:
        raise UserError(f"{start_from}: no such checkpoint to start from")


def summarize(results: Sequence[FinetuningResult]) -> dict[str, tuple[float, float]]:
    """Name of a metric, and "score", -> mean and sample standard deviation over seeds (0 for a single one)."""
    rows: list[Mapping[str, float]] = [{**result.metrics, "score": result.score} for result in results]
    freedom = 1 if len(rows) > 1 else 0
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {name: (float(np.mean(values)), float(np.std(values, ddof=freedom))) for name, values in columns.items()}
