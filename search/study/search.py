"""The search itself: an Optuna study, and the loop that asks, evaluates and tells.

The study is the only state. Its trials live in the run folder's SQLite file or in any Optuna storage that several
workers share; whoever starts the same command again goes on where the study stands. Within a trial all processes of an
`accelerate launch` train together: the main one talks to the study, the others follow its broadcasts.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from flexibert.spec import Architecture, fingerprint, layers_to_dicts, parse_layers

from ..errors import OutOfTime, StartAnew, TrainingDiverged, UserError
from ..progress import RunProgress
from ..samplers.base import Feasible, ReseededSampler, repetitions
from ..samplers.trials import (
    DUPLICATE_OF,
    FAILURE,
    FINGERPRINT,
    FUNCTION,
    INTERRUPTED,
    LAYERS,
    METRICS,
    OUT_OF_MEMORY,
    SPLIT,
    counts,
    is_failure,
    is_stopped,
)
from ..space.functional_hash import function_fingerprint
from .faults import ALIKE, is_lost_process, is_users, reason
from .processes import Failure, can_start_anew, failure_of_another, say_failure
from .pruning import Pruning
from .results import objective_names
from .run_folder import RunFolder
from .trials import best_trial, diverged, finished, stopped
from .watch import Watch
from .workers import TakenOver, ask, failures_in_a_row, heartbeat, note, recover, release_own, tell


MAX_FAILURES = 5
MAX_REPEATS = 20

Evaluate = Callable[[Architecture, Path, Path | None], dict[str, float]]
"""Trains an architecture, leaves its checkpoint in the folder and returns metrics with units in their names. The third
argument is the checkpoint to start from, if any. There are further ones by name where there is need: `watch`, and
`split`, into how many times more micro-batches the batches are to be cut."""

FindSource = Callable[[Architecture, Sequence[tuple[Architecture, Path]]], Path | None]
"""Chooses, among trained architectures and their checkpoints, the one to start from."""


class Search:
    """One worker of a search.

    Args:
        study: As `open_study` returns it; None on processes that are not the main one.
        sampler: As `create_sampler` makes it. It knows the space and which architectures are feasible.
        evaluate: Trains one architecture; called on all processes. Its metrics include the study's objectives.
        folder: Of the run.
        accelerator: Of the processes that train together.
        progress: Shows what happens.
        find_source: Chooses the trained encoder that a candidate starts from; none does where it is None.
        after_trial: Called on the main process after every trial that trained an architecture.
        pruning: What the pruner of the study compares; None where it has none.
        admit: Tells of an architecture that was proposed whether it may be trained, where that takes more than the
            sampler asks for; `sampler.feasible` decides where it is None.
        notes: Makes further user attributes for a trial that trained an architecture.
    """

    def __init__(
        self,
        study: optuna.Study | None,
        sampler: ReseededSampler,
        evaluate: Evaluate,
        folder: RunFolder,
        accelerator: Accelerator,
        progress: RunProgress,
        find_source: FindSource | None = None,
        after_trial: Callable[[], None] | None = None,
        pruning: Pruning | None = None,
        admit: Feasible | None = None,
        notes: Callable[[Architecture], Mapping[str, Any]] | None = None,
    ):
        self._study = study
        self.sampler = sampler
        self.space = sampler.space
        self.evaluate = evaluate
        self.folder = folder
        self.accelerator = accelerator
        self.progress = progress
        self.find_source = find_source
        self.after_trial = after_trial
        self.pruning = pruning
        self.admit = admit
        self.notes = notes
        self.deadline: float | None = None
        self.trial_timeout: float | None = None
        self._in_step = True

    @property
    def study(self) -> optuna.Study:
        """Of the main process; no other asks for it."""
        assert self._study is not None
        return self._study

    def run(
        self,
        trials: int,
        patience: int | None = None,
        max_failures: int = MAX_FAILURES,
        hours: float | None = None,
        trial_timeout: float | None = None,
    ) -> None:
        """Works until the study has so many trials that finished or were stopped, its own and other workers' together.

        Whatever ends it, no trial of this worker is left running.

        Args:
            patience: Ends the search when so many trials in a row brought no better score.
            max_failures: Ends it when so many trials of this worker in a row failed.
            hours: Ends it after so much time; the trial at work is left for another start.
            trial_timeout: Seconds after which a trial has failed.

        Raises:
            UserError: Too many failed, or an error that would meet every trial, see `faults.py`.
            StartAnew: Of several processes one has failed, and its trial with it.
        """
        self.deadline = None if hours is None else time.monotonic() + 3600 * hours
        self.trial_timeout = trial_timeout
        if not self.accelerator.is_main_process:
            self._follow()
            return
        self.study.sampler = self.sampler
        try:
            self._lead(trials, patience, max_failures)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            release_own(self.study, "the worker was stopped" if interrupted else reason(error))
            if is_users(error) and not isinstance(error, UserError):  # after a trial, while something was written
                raise UserError(reason(error)) from error
            raise
        self._broadcast(None)

    # --- main process ---------------------------------------------------------------------------------------------

    def _lead(self, trials: int, patience: int | None, max_failures: int) -> None:
        self._recover()
        self._count()
        while self._done() < min(trials, self.space.size() or trials):
            if patience is not None and self._has_converged(patience):
                self.progress.say(f"no better score in {patience} trials; stopping early")
                break
            if repetitions(self.study.get_trials(deepcopy=False)) >= MAX_REPEATS and not self._enqueue_unseen():
                self.progress.say("the sampler finds nothing new in this space; stopping early")
                break
            try:
                Watch(deadline=self.deadline).tick()
                trial = self._next_trial()
            except OutOfTime:
                release_own(self.study, "the time was over")
                self.progress.say("the hours that were given are over; the same command goes on from here")
                break
            if counts(trial) and self.after_trial is not None:
                self.after_trial()
            failures = failures_in_a_row(self.study) if is_failure(trial) else 0
            if failures >= max_failures:
                if self._in_step:
                    self._broadcast(None)  # else the other processes would wait for the next trial
                raise UserError(f"{failures} trials in a row failed, the last one: {trial.user_attrs[FAILURE]}")
            self._recover()
            if not self._in_step:
                raise self._start_anew()
        size = self.space.size()
        if size is not None and trials > size:
            self.progress.say(f"the space has {size} architectures, all of them are trained")

    def _recover(self) -> None:
        again = recover(self.study)
        if again:
            self.progress.say(f"{again} interrupted trial{'s' * (again > 1)} will be done again")

    def _count(self) -> None:
        """Tells the display where the study stands, all workers together."""
        best = best_trial(self.study)
        self.progress.count_trials(self._done(), best.values[0] if best else None)

    def _done(self) -> int:
        return len(finished(self.study)) + len(stopped(self.study))

    def _next_trial(self) -> FrozenTrial:
        """Asks for a trial, trains its architecture and tells the study, which is how it ended."""
        trial = ask(self.study)
        try:
            with heartbeat(self.study, trial):
                values, state = self._attempt(trial)
                tell(self.study, trial, values, state)
        except (TakenOver, UpdateFinishedTrialError):
            self.progress.say(f"trial {trial.number} was taken over by another worker; its result is left alone")
        frozen = self.study._storage.get_trial(trial._trial_id)
        self._count()
        if METRICS in frozen.user_attrs or is_failure(frozen):
            self.progress.end_trial(frozen.values[0] if counts(frozen) else None, frozen.user_attrs.get(FAILURE, ""))
        elif is_stopped(frozen):
            self.progress.end_trial(None, "stopped, hopeless beside the others")
        elif OUT_OF_MEMORY in frozen.user_attrs:
            self.progress.end_trial(None, frozen.user_attrs[INTERRUPTED])
        return frozen

    def _has_converged(self, patience: int) -> bool:
        scores = [trial.values[0] for trial in finished(self.study)]
        return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])

    def _attempt(self, trial: optuna.Trial) -> tuple[list[float] | None, TrialState]:
        """Trains the architecture of a trial, unless that is known or beyond the limits."""
        layers = self.space.suggest(trial)
        name = fingerprint(layers)
        note(trial, LAYERS, layers_to_dicts(layers))
        # First said and then looked, so that of two workers with the same proposal at least one sees the other.
        note(trial, FINGERPRINT, name)
        note(trial, FUNCTION, function_fingerprint(layers))
        known = self._known(layers, trial.number)
        if known is not None and known.state == TrialState.COMPLETE:
            note(trial, DUPLICATE_OF, known.number)
            for step, value in known.intermediate_values.items():
                trial.report(value, step)  # a pruner may take it for the best trial
            return known.values, TrialState.COMPLETE
        if known is not None:  # another worker trains it, or it was stopped or failed
            if known.state == TrialState.RUNNING:
                time.sleep(random.random())  # two workers in step would step aside together for ever
            return None, TrialState.PRUNED
        if not (self._is_feasible(layers) and (self.admit is None or self.admit(layers))):
            return None, TrialState.PRUNED
        self.progress.start_trial(f"trial {trial.number} {name}")
        try:
            folder, source = self.folder.trial(trial.number, name), self._source(layers)
            parts = {"split": trial.user_attrs[SPLIT]} if SPLIT in trial.user_attrs else {}
            self._broadcast((layers_to_dicts(layers), folder, source, parts))
            metrics = self.evaluate(layers, folder, source, **parts, **self._watch(trial))
            self.accelerator.wait_for_everyone()  # whether another process failed shall be known by now
            values = [metrics[objective] for objective in objective_names(self.study)]
            if not all(map(math.isfinite, values)):
                raise TrainingDiverged(f"the result is {values}")
            for attribute, content in (self.notes(layers) if self.notes else {}).items():
                note(trial, attribute, content)
        except optuna.TrialPruned:
            return None, TrialState.PRUNED
        except Exception as error:
            if isinstance(error, (UserError, OutOfTime)):
                raise
            failure = self._failure(error)
            if failure.memory and SPLIT not in trial.user_attrs:
                note(trial, INTERRUPTED, f"{failure.reason}; to be tried again with smaller micro-batches")
                note(trial, OUT_OF_MEMORY, True)
            else:
                note(trial, FAILURE, failure.reason)
            return None, TrialState.FAIL
        note(trial, METRICS, metrics)
        for metric, value in metrics.items():
            note(trial, metric, value)  # dashboards plot attributes that are numbers
        return values, TrialState.COMPLETE

    def _failure(self, error: Exception) -> Failure:
        """What an error in a trial was, on whichever process, and that the others hear of it.

        Raises:
            UserError: The search has to end.
        """
        failure = Failure.of(error)
        if self.accelerator.num_processes > 1 and not isinstance(error, ALIKE):
            self._in_step = False
            told = failure_of_another()
            if told is not None:
                failure = told
            elif is_lost_process(error):
                raise UserError(f"a process of this worker is gone: {failure.reason}") from error
            else:
                say_failure(failure)
        if failure.users:
            raise UserError(failure.reason) from error
        return failure

    def _start_anew(self) -> Exception:
        """What the main program is asked for by processes that are out of step."""
        if not can_start_anew():
            return UserError(str(StartAnew()))
        return StartAnew(None if self.deadline is None else (self.deadline - time.monotonic()) / 3600)

    def _watch(self, trial: optuna.Trial | None) -> dict[str, Watch]:
        """Who looks on at a trial, as an argument for `evaluate`; none where nobody may end it."""
        if self.pruning is None and self.deadline is None and self.trial_timeout is None:
            return {}
        trial_deadline = None if self.trial_timeout is None else time.monotonic() + self.trial_timeout
        return {"watch": Watch(trial, self.pruning, self.deadline, trial_deadline, self._broadcast)}

    def _source(self, layers: Architecture) -> Path | None:
        """The checkpoint that the candidate starts from, among those that this machine has."""
        if self.find_source is None:
            return None
        trained = [
            (parse_layers(trial.user_attrs[LAYERS]), checkpoint)
            for trial in finished(self.study)
            if (checkpoint := self.folder.checkpoint(trial)) is not None
        ]
        return self.find_source(layers, trained)

    def _is_feasible(self, layers: Architecture) -> bool:
        return self.sampler.feasible is None or self.sampler.feasible(layers)

    def _known(self, layers: Architecture, number: int) -> FrozenTrial | None:
        """The trial that has trained an architecture of the same function, else one that trains it or failed."""
        name, function = fingerprint(layers), function_fingerprint(layers)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in (*finished(self.study), *running, *diverged(self.study), *stopped(self.study)):
            same = trial.user_attrs.get(FINGERPRINT) == name or trial.user_attrs.get(FUNCTION) == function
            if same and trial.number != number:
                return trial
        return None

    def _enqueue_unseen(self) -> bool:
        """Makes the next trial a random architecture whose function no trial has; False where none is found."""
        seen = {trial.user_attrs.get(FUNCTION) for trial in self.study.get_trials(deepcopy=False)}
        rng = random.Random(self.sampler.seed(self.study))
        for _ in range(10_000):
            layers = self.space.sample(rng)
            if function_fingerprint(layers) not in seen and self._is_feasible(layers):
                self.study.enqueue_trial(self.space.parameters(layers))
                return True
        return False

    # --- all processes --------------------------------------------------------------------------------------------

    def _broadcast(self, message):
        return broadcast_object_list([message])[0]

    def _follow(self) -> None:
        while True:
            try:
                message = self._broadcast(None)
                if message is None:
                    return
                layers, folder, source, parts = message
                self.evaluate(parse_layers(layers), folder, source, **parts, **self._watch(None))
                self.accelerator.wait_for_everyone()
            except (optuna.TrialPruned, OutOfTime, *ALIKE):
                continue  # the main process has met the same and told the study
            except Exception as error:
                self._failure(error)
                raise self._start_anew() from error
