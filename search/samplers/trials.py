"""What is noted of a trial, and which trials count.

Samplers and study share these definitions. They stand here and not in `study/` because a study is told to samplers,
never the other way round; `study/trials.py` has what only a running search asks.

A trial of a search has these user attributes, each named by a constant below. Parameter values are the study's own.
"""

import math

from optuna.trial import FrozenTrial, TrialState


LAYERS = "layers"
"""The architecture as plain data, see `flexibert.spec`."""

FINGERPRINT = "fingerprint"
"""Of the architecture."""

FUNCTION = "function"
"""Equal for architectures that compute the same function."""

METRICS = "metrics"
"""Flat dictionary with units in the names. Each of them also stands alone, under its own name, for dashboards."""

MEASURED = "measured"
"""How its latency and energy were measured: conditions, quartiles, drift of the machine, see `runtimes.bench`."""

DUPLICATE_OF = "duplicate_of"
"""Number of the trial whose values this one repeats: it was not trained and is no measurement."""

FAILURE = "failure"
"""Why the training of the architecture failed."""

PREDICTION = "prediction"
"""{"mean", "standard_deviation"} of the score, as the sampler believed before the trial, in the score's unit."""

STOPPED = "stopped"
"""{"loss"} on the validation text, of a candidate that a pruner stopped, and where it stopped, in steps of
pretraining: {"step", "of"}. Other trials in the state PRUNED were passed over untrained."""

LEVEL = "level"
"""Of a hierarchical search, from 1."""

WORKER = "worker"
"""Who trained it."""

INTERRUPTED = "interrupted"
"""Why a trial ended that says nothing about its architecture: a killed worker, a full disk. It is done again."""

RETRY_OF = "retry_of"
"""Number of the interrupted trial that this one does again."""

OUT_OF_MEMORY = "out_of_memory"
"""Whether an interrupted trial had no memory left. It is done again with smaller micro-batches."""

SPLIT = "batches_split"
"""Into how many times more micro-batches than the budgets say the batches of a trial are cut, because there was no
memory for larger ones."""


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is a measurement: completed, of its own, and every value a finite number."""
    return trial.state == TrialState.COMPLETE and not is_repetition(trial) and all(map(math.isfinite, trial.values))


def is_evidence(trial: FrozenTrial) -> bool:
    """Whether a trial that ended says something about its architecture; interrupted ones do not."""
    return trial.state != TrialState.FAIL or INTERRUPTED not in trial.user_attrs


def is_failure(trial: FrozenTrial) -> bool:
    """Whether the training of the architecture failed, for a reason that is noted."""
    return trial.state == TrialState.FAIL and FAILURE in trial.user_attrs and is_evidence(trial)


def is_stopped(trial: FrozenTrial) -> bool:
    """Whether a pruner stopped the training of the architecture."""
    return trial.state == TrialState.PRUNED and STOPPED in trial.user_attrs


def is_repetition(trial: FrozenTrial) -> bool:
    """Whether a trial has the values of an earlier one with the same architecture."""
    return DUPLICATE_OF in trial.user_attrs
