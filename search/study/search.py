"""The search itself: an Optuna study, and the loop that asks, evaluates and tells.

The study is the only state. Its trials live in the run folder's SQLite file or in any Optuna storage that several
workers share; whoever starts the same command again goes on where the study stands. Within a trial all processes of an
`accelerate launch` train together: the main one talks to the study, the others follow its broadcasts.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from optuna.trial import FrozenTrial, TrialState

from flexibert.spec import Architecture, fingerprint, layers_to_dicts, parse_layers

from ..errors import TrainingDiverged, UserError
from ..progress import RunProgress
from ..samplers.base import ReseededSampler, repetitions
from ..samplers.trials import DUPLICATE_OF, FAILURE, FINGERPRINT, FUNCTION, LAYERS, METRICS, WORKER, counts
from ..space.functional_hash import function_fingerprint
from .recovery import enqueue_again, retry_interrupted, this_worker
from .results import objective_names
from .run_folder import RunFolder
from .trials import best_trial, diverged, finished


MAX_FAILURES = 5
MAX_REPEATS = 20

Evaluate = Callable[[Architecture, Path, Path | None], dict[str, float]]
"""Trains an architecture, leaves its checkpoint in the folder and returns metrics with units in their names. The third
argument is the checkpoint to start from, if any."""

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
    ):
        self.study = study
        self.sampler = sampler
        self.space = sampler.space
        self.evaluate = evaluate
        self.folder = folder
        self.accelerator = accelerator
        self.progress = progress
        self.find_source = find_source
        self.after_trial = after_trial

    def run(self, trials: int, patience: int | None = None) -> None:
        """Works until the study has so many finished trials, its own and other workers' together.

        Args:
            patience: Ends the search when so many trials in a row brought no better score.
        """
        if not self.accelerator.is_main_process:
            self._follow()
            return
        self.study.sampler = self.sampler
        self._lead(trials, patience)
        self._broadcast(None)

    # --- main process ---------------------------------------------------------------------------------------------

    def _lead(self, trials: int, patience: int | None) -> None:
        interrupted = retry_interrupted(self.study)
        if interrupted:
            self.progress.say(f"{interrupted} interrupted trial{'s' * (interrupted > 1)} will be done again")
        best = best_trial(self.study)
        self.progress.start_search(len(finished(self.study)), best.values[0] if best else None)
        failures = 0
        while len(finished(self.study)) < min(trials, self.space.size() or trials):
            if patience is not None and self._has_converged(patience):
                self.progress.say(f"no better score in {patience} trials; stopping early")
                break
            if repetitions(self.study.get_trials(deepcopy=False)) >= MAX_REPEATS and not self._enqueue_unseen():
                self.progress.say("the sampler finds nothing new in this space; stopping early")
                break
            ended: list[FrozenTrial] = []
            self.study.optimize(
                self._objective,
                n_trials=1,
                catch=(TrainingDiverged,),
                callbacks=[lambda study, trial: ended.append(trial)],  # noqa: B023
            )
            trial = ended[0]
            failures = failures + 1 if trial.state == TrialState.FAIL else 0
            if counts(trial) and self.after_trial is not None:
                self.after_trial()
            if failures >= MAX_FAILURES:
                self._broadcast(None)  # else the other processes would wait for the next trial
                raise UserError(f"{failures} trials in a row failed, the last one: {trial.user_attrs[FAILURE]}")
        if self.space.size() is not None and trials > self.space.size():
            self.progress.say(f"the space has {self.space.size()} architectures, all of them are trained")

    def _has_converged(self, patience: int) -> bool:
        scores = [trial.values[0] for trial in finished(self.study)]
        return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])

    def _objective(self, trial: optuna.Trial) -> list[float]:
        trial.set_user_attr(WORKER, this_worker())
        layers = self.space.suggest(trial)
        name = fingerprint(layers)
        trial.set_user_attr(LAYERS, layers_to_dicts(layers))
        # First said and then looked, so that of two workers with the same proposal at least one sees the other.
        trial.set_user_attr(FINGERPRINT, name)
        trial.set_user_attr(FUNCTION, function_fingerprint(layers))
        known = self._known(layers, trial.number)
        if known is not None:
            if known.state != TrialState.COMPLETE:
                time.sleep(random.random())  # two workers in step would step aside together for ever
                raise optuna.TrialPruned("another worker trains the same architecture, or its training has failed")
            trial.set_user_attr(DUPLICATE_OF, known.number)
            return known.values
        if not self._is_feasible(layers):
            raise optuna.TrialPruned("beyond the limits of the search")
        self.progress.start_trial(f"trial {trial.number} {name}")
        folder = self.folder.trial(trial.number, name)
        source = self._source(layers)
        self._broadcast((layers_to_dicts(layers), folder, source))
        try:
            metrics = self.evaluate(layers, folder, source)
            values = [metrics[objective] for objective in objective_names(self.study)]
            if not all(map(math.isfinite, values)):
                raise TrainingDiverged(f"the result is {values}")
        except TrainingDiverged as error:
            trial.set_user_attr(FAILURE, str(error))
            self.progress.end_trial(None, str(error))
            raise
        except (KeyboardInterrupt, UserError):  # which say nothing about the architecture
            enqueue_again(self.study, trial.number)
            raise
        trial.set_user_attr(METRICS, metrics)
        self.progress.end_trial(values[0])
        return values

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
        for trial in (*finished(self.study), *running, *diverged(self.study)):
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
        while (message := self._broadcast(None)) is not None:
            layers, folder, source = message
            try:
                self.evaluate(parse_layers(layers), folder, source)
            except TrainingDiverged:  # the main process has told the study
                continue
