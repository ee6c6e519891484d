"""What samplers share: one object that serves a whole search, and the base of this package's own samplers.

A search may be killed anywhere, and several workers may add to its study. So whatever a sampler proposes is a function
of the study's trials and a seed, and trials that were interrupted (see `trials.is_evidence`) change nothing: the same
command goes on as if it had not been stopped.
"""

import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from flexibert.spec import Architecture

from ..space.parameters import Values
from ..space.search_space import SearchSpace
from .trials import counts, is_evidence, is_failure, is_repetition, is_stopped


Feasible = Callable[[Architecture], bool]
"""Whether an architecture keeps within the limits of a search (parameters, latency)."""

SEEDS_PER_TRIAL = 1000


class ReseededSampler(BaseSampler):
    """Any sampler, made anew for every trial with a seed that follows from the trials.

    Optuna's samplers draw from a stream of random numbers, which a killed process takes with it. Made anew they are
    functions of the trials, as this package's own are.

    Attributes:
        space: What is searched.
        feasible: Which architectures may be proposed. Samplers that can, propose no others; for the rest the search
            passes over them. None: all may.

    Args:
        create: Makes the sampler from a seed.
        seed: Of the search.
    """

    def __init__(
        self, space: SearchSpace, create: Callable[[int], BaseSampler], seed: int, feasible: Feasible | None = None
    ):
        self.space = space
        self.feasible = feasible
        self._create = create
        self._seed = seed
        self._current: tuple[int, BaseSampler] | None = None

    def seed(self, study: optuna.Study) -> int:
        """The seed of the next trial: it grows with every trial that counts, failed or was stopped, and with every
        proposal in a row that brought nothing new."""
        trials = study.get_trials(deepcopy=False)
        settled = sum(counts(trial) or is_failure(trial) or is_stopped(trial) for trial in trials)
        return self._seed + SEEDS_PER_TRIAL * settled + repetitions(trials)

    def sampler(self, study: optuna.Study, trial: FrozenTrial) -> BaseSampler:
        """The sampler of a trial, the same from its first question to its last."""
        if self._current is None or self._current[0] != trial._trial_id:
            self._current = trial._trial_id, self._create(self.seed(study))
        return self._current[1]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.sampler(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.sampler(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.sampler(study, trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.sampler(study, trial).before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self.sampler(study, trial).after_trial(study, trial, state, values)


class SpaceSampler(BaseSampler):
    """Base of samplers that are a function of the study's trials, a seed and the turn of the new trial.

    Nothing is kept between proposals but what saves reading the same trials again, and the order in which trials
    finish does not matter. Parameters outside the space are sampled independently and uniformly.

    Args:
        space: Where to search.
        seed: Source of all randomness; drawn where it is None.
        feasible: Tells of an architecture whether it may be proposed (size, latency); all may where it is None.
    """

    def __init__(self, space: SearchSpace, seed: int | None, feasible: Feasible | None):
        self.space = space
        self.seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self.feasible = feasible

    @abstractmethod
    def propose(self, study: optuna.Study, trial: FrozenTrial) -> tuple[Values, Mapping[str, Any]]:
        """Parameter values for a new trial, and user attributes to note with it."""

    def is_feasible(self, layers: Architecture) -> bool:
        """Whether an architecture may be proposed."""
        return self.feasible is None or bool(self.feasible(layers))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space.distributions()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        if search_space.keys() <= trial.system_attrs.get("fixed_params", {}).keys():
            return {}  # an enqueued trial: nothing is left to choose
        values, notes = self.propose(study, trial)
        for name, note in notes.items():
            study._storage.set_trial_user_attr(trial._trial_id, name, note)
        return {name: values[name] for name in search_space if name in values}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        seed = random.Random(f"{self.seed} {turn(study, trial)} {param_name}").getrandbits(32)
        uniform = optuna.samplers.RandomSampler(seed=seed)
        return uniform.sample_independent(study, trial, param_name, param_distribution)


def turn(study: optuna.Study, trial: FrozenTrial) -> int:
    """The number that a trial would have if no trial had been interrupted."""
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return trial.number - sum(other.number < trial.number and not is_evidence(other) for other in failed)


def repetitions(trials: Sequence[FrozenTrial]) -> int:
    """How many trials in a row, up to the last that ended, brought nothing new."""
    count = 0
    for trial in sorted(trials, key=lambda trial: -trial.number):
        if not trial.state.is_finished() or not is_evidence(trial):
            continue
        if is_stopped(trial) or (trial.state != TrialState.PRUNED and not is_repetition(trial)):
            break
        count += 1
    return count
