"""The trials of a study that a running search asks for; what is noted of them is in `samplers/trials.py`."""

import optuna
from optuna.trial import FrozenTrial, TrialState

from ..samplers.trials import counts, is_failure, is_stopped


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count, in the order of their numbers."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted((trial for trial in trials if counts(trial)), key=lambda trial: trial.number)


def diverged(study: optuna.Study) -> list[FrozenTrial]:
    """Trials whose training failed, in contrast to those that were interrupted."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return [trial for trial in trials if is_failure(trial)]


def stopped(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that a pruner stopped, in the order of their numbers."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    return sorted((trial for trial in trials if is_stopped(trial)), key=lambda trial: trial.number)


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The trial that counts with the highest score; the first objective is the score."""
    return max(finished(study), key=lambda trial: trial.values[0], default=None)
