"""Regularised evolution (Real et al. 2019, arXiv 1802.01548), the usual baseline, as an Optuna sampler."""

import random
from collections.abc import Callable, Sequence

import numpy as np

from ..space.parameters import Values
from ..space.search_space import SearchSpace
from .base import Feasible
from .population import Member, PopulationSampler, check_flag, check_number, ranking


class EvolutionSampler(PopulationSampler):
    """Mutates the best of a random sample of the population.

    Args:
        space, seed, feasible: See `SpaceSampler`.
        population: The first so many trials are random, and so many of the finished ones can become parents.
        tournament: How many of those are drawn, of which the best becomes the parent.
        aging: Whether the population is the youngest or, in plain evolution, the best.

    Raises:
        UserError: An option is out of range, or the study has several objectives.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int | None = None,
        population: int = 100,
        tournament: int = 25,
        aging: bool = True,
        feasible: Feasible | None = None,
    ):
        super().__init__(space, seed, feasible)
        check_number("population", population, 1, whole=True)
        check_number("tournament", tournament, 1, whole=True)
        check_flag("aging", aging)
        self.population = population
        self.tournament = tournament
        self.aging = aging

    def policy(self, number: int, finished: Sequence[Member], scores: np.ndarray) -> Callable[[random.Random], Values]:
        if number < self.population or not finished:
            return lambda rng: self.space.normalize(self.space.sample_values(rng))
        ranked = ranking(scores)
        youngest = len(finished) - self.population
        population = [i for i in ranked if i >= youngest] if self.aging else ranked[: self.population]

        def draw(rng: random.Random) -> Values:
            drawn = rng.sample(range(len(population)), min(self.tournament, len(population)))
            parent = finished[population[min(drawn)]].values
            return self.space.mutate_values(parent, rng) if self.space.movable(parent) else parent

        return draw
