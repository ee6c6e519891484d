"""OP-NAS, the search of AutoBERT-Zero (arXiv 2107.07445): evolution that draws operations by their priority.

No code of it is public, and its text leaves details open; what is this package's own choice is marked so.

Notation: at one position of an architecture, mu_i is the mean score of the trials that have operation i there, N_i
their number, and N the sum of all N_i.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..space.parameters import Value, Values
from ..space.search_space import SearchSpace, draw_by_kind, random_values
from .base import Feasible
from .population import Member, PopulationSampler, check_flag, check_number, ranking


class OperationPriority:
    """u_i = mu_i + alpha sqrt(2 ln N / N_i) of the operations at a position, and choices by softmax(u / temperature).

    An operation that was never tried at a position has N_i = 1 and the best mu_i there, so no priority is larger (own
    choice). Scores are rescaled to run from 0 to 1, whatever the unit of the objective (own choice); for raw scores
    that span a range r, divide alpha and temperature by r.

    Args:
        space: Its parameters are the positions.
        members: Finished trials.
        scores: (len(members),) theirs, larger is better.
        alpha: Weight of exploration; at infinity all choices are uniform.
        temperature: Of the softmax.
        tied_positions: Whether the same positions of all layers share their statistics.
    """

    def __init__(
        self,
        space: SearchSpace,
        members: Sequence[Member],
        scores: np.ndarray,
        *,
        alpha: float = 0.5,
        temperature: float = 1.0,
        tied_positions: bool = False,
    ):
        self.table = space.table
        self.columns = {name: column for column, name in enumerate(space.choices)}
        self.members = members
        self.scores = _rescale(scores)
        self.alpha = alpha
        self.temperature = temperature
        self.tied_positions = tied_positions

    def choose(self, position: str, options: Sequence[Value], rng: random.Random) -> Value:
        """One of these operations for a position, which is the name of a parameter."""
        return rng.choices(options, self.probabilities(position, options).tolist())[0]

    def probabilities(self, position: str, options: Sequence[Value]) -> np.ndarray:
        """(len(options),) how likely each is chosen."""
        if math.isinf(self.alpha):
            return np.full(len(options), 1 / len(options))
        logits = self.priorities(position, options) / self.temperature
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    def priorities(self, position: str, options: Sequence[Value]) -> np.ndarray:
        """(len(options),) their u."""
        counts, means = self._statistics(position)
        best = max(means.values(), default=0.0)
        mu = np.array([means.get(option, best) for option in options])
        visits = np.array([counts.get(option, 1) for option in options])
        return mu + self.alpha * np.sqrt(2 * math.log(max(sum(counts.values()), 1)) / visits)

    def _statistics(self, position: str) -> tuple[dict[Value, int], dict[Value, float]]:
        """N_i and mu_i of all operations that were tried at a position."""
        counts: dict[Value, int] = {}
        totals: dict[Value, float] = {}
        for name in self._shared(position):
            column = self.columns[name]
            indices = np.array([member.indices[column] for member in self.members], dtype=int)
            active = indices >= 0
            visits, sums = np.bincount(indices[active]), np.bincount(indices[active], self.scores[active])
            for index in np.flatnonzero(visits).tolist():
                value = self.table[name].values[index]
                counts[value] = counts.get(value, 0) + int(visits[index])
                totals[value] = totals.get(value, 0.0) + float(sums[index])
        return counts, {value: total / counts[value] for value, total in totals.items()}

    def _shared(self, position: str) -> list[str]:
        """The positions whose statistics count."""
        parameter = self.table[position]
        if not self.tied_positions or parameter.unit is None:
            return [position]
        return [name for name, other in self.table.items() if other.role == parameter.role]


class OpNasSampler(PopulationSampler):
    """Algorithm 1 of AutoBERT-Zero as an Optuna sampler.

    The first `population` trials are random; `Study.enqueue_trial` puts known architectures among them. Then come
    rounds, in which the best `parents` of all trials before the round have `children` each. A child mutates between
    layers, at random (layer type, kernel size), and then within one attention layer, where operations are drawn by
    priority. In spaces without searched graphs, such as FlexiBERT's, every parameter is a position. With
    `alpha=math.inf` this is plain evolution.

    Args:
        space, seed, feasible: See `SpaceSampler`.
        population: Random trials at the start.
        parents: Best trials that have children in a round.
        children: Children of each parent in a round.
        alpha, temperature, tied_positions: See `OperationPriority`.
        inter_rate: Probability of a mutation between layers (own choice).
        inter_priority: Whether layer types and kernel sizes are drawn by priority, too (own choice); else at random.
        max_edits: A child gets one to so many edits within a layer (own choice).

    Raises:
        UserError: An option is out of range, or the study has several objectives.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int | None = None,
        population: int = 100,
        parents: int = 5,
        children: int = 5,
        alpha: float = 0.5,
        temperature: float = 1.0,
        tied_positions: bool = False,
        inter_rate: float = 0.5,
        inter_priority: bool = False,
        max_edits: int = 2,
        feasible: Feasible | None = None,
    ):
        super().__init__(space, seed, feasible)
        counts = {"population": population, "parents": parents, "children": children, "max_edits": max_edits}
        for name, count in counts.items():
            check_number(name, count, 1, whole=True)
        check_number("alpha", alpha, 0)
        check_number("temperature", temperature, 1e-6)
        check_number("inter_rate", inter_rate, 0, 1)
        check_flag("tied_positions", tied_positions)
        check_flag("inter_priority", inter_priority)
        self.population = population
        self.parents = parents
        self.children = children
        self.priority_options: dict[str, Any] = {
            "alpha": alpha,
            "temperature": temperature,
            "tied_positions": tied_positions,
        }
        self.inter_rate = inter_rate
        self.inter_priority = inter_priority
        self.max_edits = max_edits

    def policy(self, number: int, finished: Sequence[Member], scores: np.ndarray) -> Callable[[random.Random], Values]:
        child = number - self.population
        round_start = number - child % (self.parents * self.children)
        pool = [member for member in finished if member.number < round_start]
        if child < 0 or not pool:
            return lambda rng: random_values(self.space, rng)
        scores = scores[: len(pool)]
        best: dict[str, Values] = {}  # parents differ in what they compute
        for index in ranking(scores):
            best.setdefault(pool[index].function, pool[index].values)
            if len(best) == self.parents:
                break
        parent = list(best.values())[child // self.children % len(best)]
        priority = OperationPriority(self.space, pool, scores, **self.priority_options)

        def draw(rng: random.Random) -> Values:
            def choose(position: str, options: Sequence[Value]) -> Value:
                return priority.choose(position, options, rng)

            values = self._inter_level(parent, choose, rng) if rng.random() < self.inter_rate else parent
            return self._intra_level(values, choose, rng)

        return draw

    def _inter_level(self, values: Values, choose: Callable, rng: random.Random) -> Values:
        names = [name for name in self.space.movable(values) if not self.space.table[name].spells_graph]
        if not names:
            return values
        name = rng.choice(names)
        options = [option for option in self.space.choices[name] if option != values[name]]
        value = choose(name, options) if self.inter_priority else draw_by_kind(self.space, options, rng)
        return self.space.change(values, name, value, rng)

    def _intra_level(self, values: Values, choose: Callable, rng: random.Random) -> Values:
        units = list(self.space.graphs(values))
        unit = rng.choice(units) if units else None
        for _ in range(rng.randint(1, self.max_edits)):
            if unit is not None:
                values = self.space.mutate_graph(values, unit, rng, choose)
            elif self.space.graph_space is None and (names := self.space.movable(values)):
                name = rng.choice(names)
                value = choose(name, [option for option in self.space.choices[name] if option != values[name]])
                values = self.space.change(values, name, value, rng)
        return values


def _rescale(scores: np.ndarray) -> np.ndarray:
    """From 0, the worst, to 1, the best; infinite scores count as the finite ones next to them."""
    finite = scores[np.isfinite(scores)]
    if not len(finite) or finite.min() == finite.max():
        return np.zeros(len(scores))
    return (scores.clip(finite.min(), finite.max()) - finite.min()) / (finite.max() - finite.min())
