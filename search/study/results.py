"""What a study found, as data: its results, the best ones, the Pareto front, and a summary for JSON.

A completed trial carries its score as its first value and the user attributes of `samplers/trials.py`, which also
says which trials count.
"""

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from flexibert.spec import LayerSpec, layers_to_dicts, parse_layers

from ..cost import COSTS, SCORE
from ..errors import UserError
from ..samplers.trials import (
    DUPLICATE_OF,
    FAILURE,
    FINGERPRINT,
    INTERRUPTED,
    LAYERS,
    LEVEL,
    MEASURED,
    METRICS,
    PREDICTION,
    RETRY_OF,
    STOPPED,
    counts,
    is_repetition,
    is_stopped,
)
from .trials import finished, stopped


STATES = {"complete": "completed", "fail": "failed", "pruned": "pruned", "running": "running", "waiting": "waiting"}
PACKAGES = ("flexibert", "torch", "transformers", "optuna", "datasets", "accelerate", "huggingface-hub")


@dataclass(frozen=True)
class Result:
    """A completed trial with finite values that repeats no other one."""

    number: int
    values: tuple[float, ...]
    layers: tuple[LayerSpec, ...]
    fingerprint: str
    metrics: dict[str, float]
    prediction: dict[str, float] | None
    level: int | None
    measured: Mapping[str, Any] | None = None

    @property
    def score(self) -> float:
        return self.values[0]


def read_results(study: optuna.Study) -> list[Result]:
    """The trials that count, in the order of their numbers.

    Raises:
        UserError: If one holds no architecture, so that the study is none of this package's.
    """
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return [_result(trial) for trial in trials if counts(trial)]


def problems(study: optuna.Study) -> list[tuple[int, str]]:
    """Number and reason of each trial that failed or does not count."""
    trials = study.get_trials(deepcopy=False)
    again = {trial.user_attrs[RETRY_OF]: trial.number for trial in trials if RETRY_OF in trial.user_attrs}
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.FAIL)]
    return [(trial.number, problem) for trial in ended if (problem := _problem(trial, again)) is not None]


def count_trials(study: optuna.Study) -> dict[str, int]:
    """Trials by what became of them; those that repeat another are counted apart from the completed ones, and those
    that a pruner stopped apart from the pruned ones, which were passed over untrained."""
    numbers = dict.fromkeys([*STATES.values(), "repeated", "stopped"], 0)
    for trial in study.get_trials(deepcopy=False):
        state = "stopped" if is_stopped(trial) else STATES[trial.state.name.lower()]
        numbers["repeated" if is_repetition(trial) else state] += 1
    return numbers


def savings(study: optuna.Study) -> dict[str, float] | None:
    """What stopping hopeless candidates saved, against training each to the end; None where none was stopped.

    Returns:
        `stopped` candidates, `tokens_trained` and `tokens_saved` of pretraining by all that finished or were stopped,
        `saved_percent` of these tokens, and `finetunings_saved`.
    """
    ended = stopped(study)
    if not ended:
        return None
    identity = study.user_attrs.get("identity", {})
    budget, tasks = identity.get("pretraining", {}), identity.get("objective", {}).get("tasks", [])
    whole = math.prod(budget.get(name, 0) for name in ("steps", "batch_size", "sequence_length"))
    shares = [stop["step"] / stop["of"] if "step" in stop else 1.0 for stop in (t.user_attrs[STOPPED] for t in ended)]
    saved = whole * sum(1 - share for share in shares)
    candidates = whole * (len(finished(study)) + len(ended))
    return {
        "stopped": len(ended),
        "tokens_trained": round(candidates - saved),
        "tokens_saved": round(saved),
        "saved_percent": 100 * saved / candidates if candidates else 0.0,
        "finetunings_saved": len(tasks) * len(ended),
    }


def conditions(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Under which conditions latency and energy were measured: one entry for all trials with the same ones.

    Returns:
        The conditions (see `runtimes.conditions`), how many `trials` they hold for, the smallest and largest
        `reference_ms`, the latency of the model that is the same in all searches, and what was last known about the
        `predictor`, None where there was none.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        if result.measured is not None:
            key = json.dumps(result.measured["conditions"], sort_keys=True)
            groups.setdefault(key, []).append(result.measured)
    entries = []
    for key, members in groups.items():
        reference = [member["reference_ms"] for member in members]
        predictors = [member["predictor"] for member in members if "predictor" in member]
        entries.append(
            {
                **json.loads(key),
                "trials": len(members),
                "reference_ms": [min(reference), max(reference)],
                "predictor": max(predictors, key=lambda predictor: predictor["samples"], default=None),
            }
        )
    return entries


def objective_names(study: optuna.Study) -> list[str]:
    """Names of the study's values, the score first: as set in the study, else score_percent, objective_2, ..."""
    others = range(2, len(study.directions) + 1)
    return study.metric_names or [SCORE, *(f"objective_{index}" for index in others)]


def score_sign(study: optuna.Study) -> int:
    """1 where more score is better, -1 where less is."""
    return 1 if study.directions[0] == StudyDirection.MAXIMIZE else -1


def scores(results: Sequence[Result]) -> np.ndarray:
    """(N,)"""
    return np.array([result.score for result in results])


def metric(results: Sequence[Result], name: str) -> np.ndarray:
    """A metric of every result, (N,), NaN where it was not measured."""
    return np.array([result.metrics.get(name, math.nan) for result in results], dtype=float)


def ranked(study: optuna.Study, results: Sequence[Result]) -> list[Result]:
    """Best score first; of equal ones the earlier trial."""
    return sorted(results, key=lambda result: (-score_sign(study) * result.score, result.number))


def front(study: optuna.Study, results: Sequence[Result]) -> list[Result]:
    """The results that no other one beats, best score first.

    With several objectives that is Optuna's front over them; with one, the front of score and parameters.
    """
    if len(study.directions) > 1:
        numbers = {trial.number for trial in study.best_trials}
    else:
        mask = pareto_mask(score_sign(study) * scores(results), metric(results, "parameters"))
        numbers = {result.number for result, on_front in zip(results, mask) if on_front}
    return ranked(study, [result for result in results if result.number in numbers])


def pareto_mask(scores: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Which points no other one beats in both, more score and less cost; points without a finite cost are left out.

    Args:
        scores: (N,), more is better.
        costs: (N,), less is better.

    Returns:
        (N,) bool. Of equal points the first is on the front.
    """
    mask = np.zeros(len(scores), dtype=bool)
    best = -np.inf
    for index in np.lexsort((-scores, costs)):
        if np.isfinite(costs[index]) and scores[index] > best:
            mask[index], best = True, scores[index]
    return mask


def summarise(study: optuna.Study) -> dict[str, Any]:
    """The study as plain JSON data: best trial, Pareto front, counts of trials, and what it ran on."""
    results = read_results(study)
    best = ranked(study, results)[0] if results else None
    return {
        "study": study.study_name,
        "objectives": objective_names(study),
        "trials": count_trials(study),
        "best": best and {**_plain(best, study), "metrics": _finite(best.metrics), "measured": best.measured},
        "front": [_plain(result, study) for result in front(study, results)],
        "savings": savings(study),
        "conditions": conditions(results),
        "environment": environment(),
    }


def environment() -> dict[str, Any]:
    """Versions of the packages, commit of the checkout that the code is run from (None outside of one), and device."""
    return {
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "git_commit": _git_commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({platform.machine()})",
        "cpu_threads": torch.get_num_threads(),
    }


def _problem(trial: FrozenTrial, again: Mapping[int, int]) -> str | None:
    """Why a finished trial does not count, or None; `again` says which trial does an interrupted one again."""
    if trial.state == TrialState.FAIL:
        if INTERRUPTED in trial.user_attrs:
            done = f" (done again as trial {again[trial.number]})" if trial.number in again else ""
            return f"{trial.user_attrs[INTERRUPTED]}{done}"
        return trial.user_attrs.get(FAILURE, "failed without a reason; perhaps the process was killed")
    if counts(trial):
        return None
    if is_repetition(trial):
        return f"repeats trial {trial.user_attrs[DUPLICATE_OF]}"
    return f"value {', '.join(map(str, trial.values))} is not finite"


def _result(trial: FrozenTrial) -> Result:
    attributes = trial.user_attrs
    if LAYERS not in attributes or FINGERPRINT not in attributes:
        raise UserError(f"trial {trial.number} of the study holds no architecture, so it was no search of flexibert")
    prediction = attributes.get(PREDICTION)
    if prediction is not None and not all(math.isfinite(value) for value in prediction.values()):
        prediction = None
    return Result(
        number=trial.number,
        values=tuple(trial.values),
        layers=parse_layers(attributes[LAYERS]),
        fingerprint=attributes[FINGERPRINT],
        metrics=attributes.get(METRICS, {}),
        prediction=prediction,
        level=attributes.get(LEVEL),
        measured=attributes.get(MEASURED),
    )


def _plain(result: Result, study: optuna.Study) -> dict[str, Any]:
    """A result as JSON data, with the objectives under their names."""
    costs = {name: result.metrics[name] for name in COSTS if name in result.metrics}
    return {
        "number": result.number,
        "fingerprint": result.fingerprint,
        **_finite({**costs, **dict(zip(objective_names(study), result.values))}),
        "layers": layers_to_dicts(result.layers),
    }


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN and no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a checkout without installing it
        return None


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", os.fspath(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
