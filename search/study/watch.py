"""Who looks on while a candidate trains and may end it: the pruner, and the clock.

All processes that train together ask at the same places, the main one decides, and the others follow its broadcast, so
that they stop in the same step.
"""

import time
from collections.abc import Callable
from typing import Any

import optuna

from ..errors import OutOfTime, TrialTooLong
from ..samplers.trials import STOPPED
from .pruning import Pruning, rungs


class Watch:
    """Looks on at one trial; without arguments, lets it be.

    Args:
        trial: None on processes that are not the main one.
        pruning: What the pruner of the study compares; None where there is none.
        deadline: Of the search, on the clock of `time.monotonic`; None for no end.
        trial_deadline: Of this trial, likewise. Whether either is None is the same on all processes.
        broadcast: Gives every process what the main one has.
    """

    def __init__(
        self,
        trial: optuna.Trial | None = None,
        pruning: Pruning | None = None,
        deadline: float | None = None,
        trial_deadline: float | None = None,
        broadcast: Callable[[Any], Any] = lambda message: message,
    ):
        self.trial = trial
        self.pruning = pruning
        self.deadlines = (deadline, trial_deadline)
        self.broadcast = broadcast

    def rungs(self, steps: int) -> tuple[int, ...]:
        """After which of the steps of pretraining the loss is asked for."""
        return () if self.pruning is None or self.over_parts else rungs(steps)

    @property
    def over_parts(self) -> bool:
        """Whether the losses on parts of the validation text are asked for, after pretraining."""
        return self.pruning is not None and self.pruning.over_parts

    def report(self, step: int, loss: float, steps: int | None = None) -> None:
        """Tells the study what a candidate came to.

        Args:
            step: Of pretraining, or number of the part of the validation text.
            loss: On the validation text, or on that part of it.
            steps: How many steps pretraining has in all; None once it is done.

        Raises:
            optuna.TrialPruned: The candidate is hopeless.
        """
        hopeless = False
        if self.trial is not None:
            try:
                hopeless = self._is_hopeless(self.trial, step, loss, steps)
            except Exception:
                self.broadcast(True)  # else the other processes would wait
                raise
        if self.broadcast(hopeless):
            raise optuna.TrialPruned("hopeless beside the others")

    def _is_hopeless(self, trial: optuna.Trial, step: int, loss: float, steps: int | None) -> bool:
        trial.report(-loss, step)
        hopeless = trial.should_prune()
        if hopeless:
            done = {} if steps is None else {"step": step, "of": steps}
            trial.set_user_attr(STOPPED, {**done, "loss": loss})
        return hopeless

    def tick(self) -> None:
        """Asks the clock; at the same places on all processes.

        Raises:
            OutOfTime: The search has to end.
            TrialTooLong: The trial has to, which counts as a failure.
        """
        if self.deadlines == (None, None):
            return
        now = time.monotonic()
        search_over, trial_over = self.broadcast([end is not None and now > end for end in self.deadlines])
        if search_over:
            raise OutOfTime
        if trial_over:
            raise TrialTooLong("the trial took longer than it may")
