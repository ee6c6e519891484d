"""Hierarchical search (FlexiBERT, arXiv 2205.11656, Section 3.3) around any sampler, within one study.

The study's trials have the parameters of the whole space; levels only narrow what is proposed. A proposal comes from
the inner sampler, which sees a study of the level's own parameters with those trials that lie in the level. So what
was measured on coarse levels counts on fine ones, and a stopped search goes on where its study stands.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from flexibert.spec import Architecture

from ..errors import UserError
from ..space.hierarchy import interpolate, levels
from ..space.parameters import Values
from ..space.search_space import SearchSpace
from .base import Feasible, SpaceSampler, turn
from .trials import LEVEL, counts


MAX_TRIES = 100

TOP_ARCHITECTURES = 5
"""Best architectures between which the next level interpolates, as in the public code."""


class HierarchicalSampler(SpaceSampler):
    """Searches level by level, each between the best architectures of the levels before it.

    Every level has an equal share of the trials, or fewer if it has not so many members. A proposal that a trial
    already has, or that is not feasible, is replaced by a random one of the level; a level without a feasible one is
    left out. The level is noted with the trial, see `trials.LEVEL`.

    Args:
        space: The whole space, which is the last level.
        create: Makes the inner sampler of a level.
        trials: How many architectures the search will train in all.
        seed: Of random replacements.
        feasible: See `SpaceSampler`.

    Raises:
        UserError: The space has no levels (see `levels`), or (on sampling) all trials of the levels before failed.
    """

    def __init__(
        self,
        space: SearchSpace,
        create: Callable[[SearchSpace], BaseSampler],
        trials: int,
        seed: int | None = None,
        feasible: Feasible | None = None,
    ):
        super().__init__(space, seed, feasible)
        self.levels = levels(space)
        self.create = create
        self.trials = trials

    def propose(self, study: optuna.Study, trial: FrozenTrial) -> tuple[Values, dict[str, Any]]:
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        others = [other for other in others if self.space.choices.keys() <= other.params.keys()]
        known = {other.number: self.space.build(other.params) for other in others}
        rng, layers, least = random.Random(f"{self.seed} {turn(study, trial)}"), None, 1
        reason = UserError("no architecture of the space is feasible: relax the constraint or enlarge the space")
        while layers is None and least <= len(self.levels):
            level, part = self._level(study, others, known, least)
            within = [(other, known[other.number]) for other in others if known[other.number] in part]
            try:
                layers, notes = self._propose(study, part, within, set(known.values()), rng)
            except UserError as error:
                reason = error
            least = level + 1
        if layers is None:
            raise reason
        return self.space.parameters(layers), {**notes, LEVEL: level}

    def _propose(
        self,
        study: optuna.Study,
        part: SearchSpace,
        within: Sequence[tuple[FrozenTrial, Architecture]],
        known: set[Architecture],
        rng: random.Random,
    ) -> tuple[Architecture | None, dict[str, Any]]:
        """What the inner sampler proposes in a level with these trials, and what it notes; None: nothing feasible."""
        inner = optuna.create_study(directions=study.directions, sampler=self.create(part))
        inner.add_trials([_translated(other, part, layers) for other, layers in within])
        proposed = part.suggest(inner.ask())
        layers = self._new(proposed, part, known, rng)
        return layers, inner.get_trials(deepcopy=False)[-1].user_attrs if layers == proposed else {}

    def _level(
        self, study: optuna.Study, others: Sequence[FrozenTrial], known: Mapping[int, Architecture], least: int
    ) -> tuple[int, SearchSpace]:
        """The level whose turn it is, from `least`, and the part of the space that it searches; where nothing new is
        left in any, the last one without bounds."""
        finished = [other for other in others if counts(other)]
        reached = max((other.user_attrs.get(LEVEL, 1) for other in others), default=1)
        due = 1 + len(finished) * len(self.levels) // self.trials
        for level in range(max(least, reached, min(due, len(self.levels))), len(self.levels) + 1):
            part = self.levels[level - 1]
            if any(other.user_attrs.get(LEVEL, 1) < level for other in others):
                # An enqueued trial has no level, and may be finer than this one.
                before = [o for o in finished if o.user_attrs.get(LEVEL, 1) < level and known[o.number] in part]
                part = interpolate(part, best_architectures(before, self.space, study.directions[0]))
            size = part.size()
            if size is None or size > sum(layers in part for layers in set(known.values())):
                return level, part
        return len(self.levels), self.space

    def _new(
        self, layers: Architecture, part: SearchSpace, known: set[Architecture], rng: random.Random
    ) -> Architecture | None:
        """These layers, or random ones of the level where they are known or not feasible; None: all are infeasible."""
        feasible = None
        for _ in range(MAX_TRIES):
            if self.is_feasible(layers):
                feasible = layers
                if layers not in known:
                    break
            layers = part.sample(rng)
        return feasible


def _translated(trial: FrozenTrial, space: SearchSpace, layers: Architecture) -> FrozenTrial:
    """The same trial in the parameters of another space that holds its architecture."""
    return optuna.trial.create_trial(
        state=trial.state,
        values=trial.values,
        params=space.parameters(layers),
        distributions=space.distributions(),
        user_attrs=trial.user_attrs,
    )


def best_architectures(
    trials: Iterable[FrozenTrial], space: SearchSpace, direction: StudyDirection, count: int = TOP_ARCHITECTURES
) -> list[Architecture]:
    """The best different architectures of finished trials, by their first value, best first."""
    sign = -1 if direction == StudyDirection.MAXIMIZE else 1
    ranked = sorted(trials, key=lambda trial: (sign * trial.values[0], trial.number))
    return list(dict.fromkeys(space.build(trial.params) for trial in ranked))[:count]
