"""Samplers that breed new architectures from the trials of a study, and what those trials say about a space."""

import math
import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from flexibert.spec import Architecture

from ..errors import UserError
from ..space.functional_hash import function_hash
from ..space.search_space import SearchSpace, Values
from .trials import counts


MAX_TRIES = 50
"""Proposals that are drawn before one is accepted that is not feasible, or whose function a trial already has."""


@dataclass(frozen=True)
class Member:
    """A trial whose architecture is in the space.

    Attributes:
        number: Of the trial.
        score: Its objective value, None where it does not count.
        values: Its normal parameter values.
        indices: Which of its values each parameter has, -1 where the parameter has no say.
        function: Equal for architectures that compute the same function.
    """

    number: int
    score: float | None
    values: Values
    indices: Sequence[int]
    function: str


class PopulationSampler(optuna.samplers.BaseSampler):
    """Base of samplers that are a function of the study's trials, a seed and the number of the new trial.

    Nothing is kept between proposals, and the order in which trials finish does not matter. A proposal that is not
    feasible, or whose function a trial already has, is drawn again.

    Args:
        space: Where to search. Other parameters of an objective are sampled independently and uniformly.
        seed: Source of all randomness; drawn where it is None.
        feasible: Tells of an architecture whether it may be proposed (size, latency); all may where it is None.

    Raises:
        UserError: The study has several objectives.
    """

    def __init__(self, space: SearchSpace, seed: int | None, feasible: Callable[[Architecture], bool] | None):
        self.space = space
        self.feasible = feasible
        self.seed = random.SystemRandom().getrandbits(32) if seed is None else seed

    @abstractmethod
    def policy(self, number: int, finished: Sequence[Member], scores: np.ndarray) -> Callable[[random.Random], Values]:
        """How to draw a proposal for a trial.

        Args:
            number: Of the trial.
            finished: Members that have a score, in the order of their numbers.
            scores: (len(finished),) theirs, larger is better.
        """

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space.distributions()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        if len(study.directions) > 1:
            raise UserError(f"{type(self).__name__} searches for one objective, the study has {len(study.directions)}")
        members = [member for member in read_members(study, self.space) if member.number != trial.number]
        known = {member.function for member in members}
        finished = [member for member in members if member.score is not None]
        scores = np.array([member.score for member in finished])
        draw = self.policy(trial.number, finished, scores if study.direction == StudyDirection.MAXIMIZE else -scores)
        rng = random.Random(f"{self.seed} {trial.number}")
        for _ in range(MAX_TRIES):
            values = draw(rng)
            new = function(values, self.space) not in known
            if new and (self.feasible is None or self.feasible(self.space.build(values))):
                break
        return {name: values[name] for name in search_space if name in values}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        rng = random.Random(f"{self.seed} {trial.number} {param_name}")
        uniform = optuna.samplers.RandomSampler(seed=rng.getrandbits(32))
        return uniform.sample_independent(study, trial, param_name, param_distribution)


def ranking(scores: np.ndarray) -> list[int]:
    """Indices from the best score to the worst, the older first among equals."""
    return np.argsort(-scores, kind="stable").tolist()


def check_number(name: str, value: Any, low: float, high: float = math.inf, whole: bool = False) -> None:
    """UserError where an option is not a number of this range."""
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        limit = f" and at most {high:g}" if high < math.inf else ""
        raise UserError(f"{name}: {value!r} is not accepted, expected {kind} of at least {low:g}{limit}")


def check_flag(name: str, value: Any) -> None:
    """UserError where an option is neither true nor false."""
    if not isinstance(value, bool):
        raise UserError(f"{name}: {value!r} is not accepted, known: true, false")


# --- trials -------------------------------------------------------------------------------------------------------

_MEMBERS: WeakKeyDictionary[optuna.Study, tuple[SearchSpace, dict[int, tuple[FrozenTrial, Member]]]]
_MEMBERS = WeakKeyDictionary()
"""What was read before, by trial number: to read a trial takes about a millisecond, and studies only grow."""


def read_members(study: optuna.Study, space: SearchSpace) -> list[Member]:
    """The study's trials with an architecture of the space, in the order of their numbers, whatever their state."""
    known_space, known = _MEMBERS.get(study, (None, {}))
    if known_space is not space:
        known = {}
        _MEMBERS[study] = space, known
    members = []
    for trial in study.get_trials(deepcopy=False):
        entry = known.get(trial.number)
        if entry is None or entry[0] is not trial:
            params = trial.params
            if not all(params.get(name) in options for name, options in space.choices.items()):
                continue
            entry = known[trial.number] = trial, _read_member(trial, space)
        members.append(entry[1])
    return sorted(members, key=attrgetter("number"))


def _read_member(trial: FrozenTrial, space: SearchSpace) -> Member:
    values = space.normalize(trial.params)
    active = set(space.active(values))
    indices = [options.index(values[name]) if name in active else -1 for name, options in space.choices.items()]
    score = trial.value if counts(trial) else None
    return Member(trial.number, score, values, indices, function(values, space))


def function(values: Values, space: SearchSpace) -> str:
    """What an architecture computes: its parameter values, but graphs by `function_hash`."""
    plain = [str(value) for name, value in values.items() if ".graph." not in name]
    return " ".join([*plain, *(f"{unit}:{function_hash(graph)}" for unit, graph in space.graphs(values).items())])
