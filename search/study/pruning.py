"""Which candidates are stopped before their training is done: Optuna's pruners, by name.

Candidates tell the validation loss of their pretraining at rungs, and those that look hopeless beside the others stop
there. The score of a search is larger where it is better, and a pruner compares in the study's direction, so what a
trial reports is minus the loss.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna
from optuna.pruners import BasePruner

from flexibert.attention_graph import show

from ..errors import UserError


REDUCTION = 3
"""Of so many candidates that reach a rung, successive halving lets one go on."""

RUNGS = (1 / 9, 1 / 3, 2 / 3)
"""Shares of the steps of pretraining after which candidates are compared."""


@dataclass(frozen=True)
class Pruning:
    """A pruner as searches use it.

    Attributes:
        text: What it stops, for people.
        create: Takes the rungs, in steps, and all steps.
        over_parts: Whether it compares losses on parts of the validation text after pretraining, and so saves the
            fine-tuning, instead of losses at rungs.
    """

    text: str
    create: Callable[[Sequence[int], int], BasePruner]
    over_parts: bool = False


class Alone(BasePruner):
    """A pruner that samplers do not know of: beside a Hyperband of Optuna's they would see one bracket only, and
    propose again what the others have tried."""

    def __init__(self, pruner: BasePruner):
        self.pruner = pruner

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return self.pruner.prune(study, trial)


PRUNERS: dict[str, Pruning] = {
    "median": Pruning(
        "whose loss is above the median of the finished ones at a rung",
        lambda rungs, steps: optuna.pruners.MedianPruner(n_startup_trials=4),
    ),
    "successive-halving": Pruning(
        "that are not in the best third of all that reached a rung",
        lambda rungs, steps: optuna.pruners.SuccessiveHalvingPruner(rungs[0], REDUCTION),
    ),
    "hyperband": Pruning(
        "like successive-halving, in brackets that begin at different rungs",
        lambda rungs, steps: Alone(optuna.pruners.HyperbandPruner(rungs[0], steps, REDUCTION)),
    ),
    "wilcoxon": Pruning(
        "whose loss is above that of the best one over the parts of the validation text, before fine-tuning",
        lambda rungs, steps: optuna.pruners.WilcoxonPruner(p_threshold=0.1),
        over_parts=True,
    ),
}
"""Name -> pruner."""


def rungs(steps: int) -> tuple[int, ...]:
    """After how many steps candidates are compared; none where pretraining is too short for that."""
    return tuple(sorted({int(share * steps + 1e-9) for share in RUNGS} - {0}))


def create_pruner(name: str | None, steps: int, objectives: int) -> BasePruner:
    """The pruner called `name`, or one that stops nothing.

    Args:
        steps: Of pretraining.
        objectives: Of the search.

    Raises:
        UserError: Nothing can be pruned in this search.
    """
    if name is None:
        return optuna.pruners.NopPruner()
    if name not in PRUNERS:
        raise UserError(f"unknown pruner {show(name)}, known: {', '.join(PRUNERS)}, none")
    if objectives > 1:
        raise UserError(f"--pruner {name} stops candidates for one objective only, this search has {objectives}")
    if not PRUNERS[name].over_parts and not rungs(steps):
        raise UserError(f"--pruner {name} compares candidates during pretraining, which has {steps} steps here")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return PRUNERS[name].create(rungs(steps), steps)
