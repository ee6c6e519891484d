"""Which trials count, and what is noted of them."""

from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that trained an architecture, without repetitions of known ones."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [trial for trial in trials if "duplicate_of" not in trial.user_attrs]


def diverged(study: optuna.Study) -> list[FrozenTrial]:
    """Trials whose training failed, in contrast to those that were interrupted."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial for trial in trials if "failure" in trial.user_attrs]


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The finished trial with the highest score; the first objective is the score."""
    return max(finished(study), key=lambda trial: trial.values[0], default=None)


def trial_folder(run: Path, number: int, name: str) -> Path:
    """Where a run keeps the checkpoint of a trial with this architecture fingerprint."""
    return run / "trials" / f"{number:04d}-{name}"
