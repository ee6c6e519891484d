"""Samplers that breed new architectures from the trials of a study, and what those trials say about a space."""

import math
import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from flexibert.attention_graph import show

from ..errors import UserError
from ..space.functional_hash import function_hash
from ..space.parameters import Values
from ..space.search_space import SearchSpace
from .base import SpaceSampler, turn
from .trials import counts, is_evidence


MAX_TRIES = 50
"""Proposals that are drawn before one is accepted that is not feasible, or whose function a trial already has."""


@dataclass(frozen=True)
class Member:
    """A trial whose architecture is in the space.

    Attributes:
        number: The trial's turn, see `base.turn`.
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


class PopulationSampler(SpaceSampler):
    """Base of samplers that breed proposals. One that is not feasible, or whose function a trial already has, is drawn
    again.

    Raises:
        UserError: The study has several objectives.
    """

    @abstractmethod
    def policy(self, number: int, finished: Sequence[Member], scores: np.ndarray) -> Callable[[random.Random], Values]:
        """How to draw a proposal for a trial.

        Args:
            number: The trial's turn.
            finished: Members that have a score, in the order of their numbers.
            scores: (len(finished),) theirs, larger is better.
        """

    def propose(self, study: optuna.Study, trial: FrozenTrial) -> tuple[Values, dict[str, Any]]:
        if len(study.directions) > 1:
            raise UserError(f"{type(self).__name__} searches for one objective, the study has {len(study.directions)}")
        number = turn(study, trial)
        members = read_members(study, self.space, trial.number)
        known = {member.function for member in members}
        finished = [member for member in members if member.score is not None]
        scores = np.array([member.score for member in finished])
        draw = self.policy(number, finished, scores if study.direction == StudyDirection.MAXIMIZE else -scores)
        rng = random.Random(f"{self.seed} {number}")
        for _ in range(MAX_TRIES):
            values = draw(rng)
            new = function(values, self.space) not in known
            if new and self.is_feasible(self.space.build(values)):
                break
        return values, {}


def ranking(scores: np.ndarray) -> list[int]:
    """Indices from the best score to the worst, the older first among equals."""
    return np.argsort(-scores, kind="stable").tolist()


def check_number(name: str, value: Any, low: float, high: float = math.inf, whole: bool = False) -> None:
    """UserError where an option is not a number of this range."""
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        limit = f" and at most {high:g}" if high < math.inf else ""
        raise UserError(f"{name}: {show(value)} is not accepted, expected {kind} of at least {low:g}{limit}")


def check_flag(name: str, value: Any) -> None:
    """UserError where an option is neither true nor false."""
    if not isinstance(value, bool):
        raise UserError(f"{name}: {show(value)} is not accepted, known: true, false")


# --- trials -------------------------------------------------------------------------------------------------------

_MEMBERS: WeakKeyDictionary[optuna.Study, tuple[SearchSpace, dict[int, tuple[FrozenTrial, Member]]]]
_MEMBERS = WeakKeyDictionary()
"""What was read before, by trial number: to read a trial takes about a millisecond, and studies only grow."""


def read_members(study: optuna.Study, space: SearchSpace, new: int | None = None) -> list[Member]:
    """The study's trials with an architecture of the space, in the order of their numbers, whatever their state, but
    for the new one that is asked for."""
    known_space, known = _MEMBERS.get(study, (None, {}))
    if known_space is not space:
        known = {}
        _MEMBERS[study] = space, known
    members, interrupted = [], 0
    for trial in sorted(study.get_trials(deepcopy=False), key=attrgetter("number")):
        number = trial.number - interrupted
        interrupted += not is_evidence(trial)
        entry = known.get(trial.number)
        if entry is None or entry[0] is not trial or entry[1].number != number:
            params = trial.params
            if not all(params.get(name) in options for name, options in space.choices.items()):
                continue
            entry = known[trial.number] = trial, _read_member(trial, number, space)
        if trial.number != new:
            members.append(entry[1])
    return members


def _read_member(trial: FrozenTrial, number: int, space: SearchSpace) -> Member:
    values = space.normalize(trial.params)
    active = set(space.active(values))
    indices = [options.index(values[name]) if name in active else -1 for name, options in space.choices.items()]
    score = trial.value if counts(trial) else None
    return Member(number, score, values, indices, function(values, space))


def function(values: Values, space: SearchSpace) -> str:
    """What an architecture computes: its parameter values, but graphs by `function_hash`."""
    plain = [str(value) for name, value in values.items() if not space.table[name].spells_graph]
    return " ".join([*plain, *(f"{unit}:{function_hash(graph)}" for unit, graph in space.graphs(values).items())])
