"""Search policies that are compared: ours, Optuna's, and what the field knows as strong and simple."""

import random
from collections.abc import Callable, Generator
from functools import partial

import numpy as np
import optuna
from scipy.stats import norm
from sklearn.ensemble import RandomForestRegressor

from benchmarks.search_problems import Problem, one_hot
from flexibert.spec import Architecture
from search.samplers.boshnas import BoshnasSampler


Policy = Generator[Architecture, tuple[Architecture, float], None]
"""Yields what it wants to be measured; is sent what was measured in its place, and the score."""


def with_sampler(create: Callable[[Problem, int], optuna.samplers.BaseSampler], problem: Problem, seed: int) -> Policy:
    """An Optuna sampler, which is told of what was measured as if it had proposed it."""
    space = problem.encoding.space
    study = optuna.create_study(direction="maximize", sampler=create(problem, seed))
    while True:
        trial = study.ask()
        proposed = space.suggest(trial)
        measured, score = yield proposed
        if measured == proposed:
            study.tell(trial, score)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            params, distributions = space.parameters(measured), space.distributions()
            study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=score))


def boshnas(problem: Problem, seed: int, preset: str) -> optuna.samplers.BaseSampler:
    candidates = None if problem.members is None else [problem.architecture(row) for row in problem.members]
    return BoshnasSampler(problem.encoding.space, preset=preset, seed=seed, candidates=candidates)


def random_search(problem: Problem, seed: int) -> Policy:
    rng = random.Random(seed)
    while True:
        yield problem.encoding.space.sample(rng)


def regularised_evolution(problem: Problem, seed: int, population: int = 20, tournament: int = 5) -> Policy:
    """Real et al. 2019, arXiv 1802.01548: a mutant of the best of a random few of the youngest."""
    rng, space = random.Random(seed), problem.encoding.space
    measured: list[tuple[Architecture, float]] = []
    while True:
        if len(measured) < population:
            proposal = space.sample(rng)
        else:
            parent, _ = max(rng.sample(measured[-population:], tournament), key=lambda pair: pair[1])
            proposal = space.mutate(parent, rng)
        measured.append((yield proposal))


def local_search(problem: Problem, seed: int, patience: int = 20) -> Policy:
    """White et al. 2020, arXiv 2005.02960: moves to the first better neighbour, restarts where there is none.

    Neighbours are drawn at random, `patience` of them in vain stand for all.
    """
    rng, space = random.Random(seed), problem.encoding.space
    while True:
        center, best = yield space.sample(rng)
        failures = 0
        while failures < patience:
            neighbour, score = yield space.mutate(center, rng)
            if score > best:
                center, best, failures = neighbour, score, 0
            else:
                failures += 1


def forest_expected_improvement(problem: Problem, seed: int, initial: int = 10, trees: int = 50) -> Policy:
    """A forest on one-hot features, whose trees' scatter is the uncertainty; candidates are the pool, or 500 random
    encoders and 500 mutants of the ten best."""
    rng, encoding = np.random.default_rng(seed), problem.encoding
    rows, scores = np.empty((0, len(encoding.names)), dtype=np.int64), np.empty(0)
    while True:
        best = rows[np.argsort(-scores)[:10]]
        candidates = problem.members
        if candidates is None:
            mutants = encoding.mutate(np.repeat(best, 50, axis=0), rng)
            candidates = np.concatenate([encoding.sample(500, rng), mutants])
        known = {row.tobytes() for row in rows}
        candidates = candidates[[row.tobytes() not in known for row in candidates]]
        choice = rng.integers(len(candidates))
        if len(rows) >= initial:
            forest = RandomForestRegressor(trees, random_state=int(rng.integers(2**31)))
            forest.fit(one_hot(encoding, rows), scores)
            features = one_hot(encoding, candidates)
            answers = np.stack([tree.predict(features) for tree in forest.estimators_])
            mean, deviation = answers.mean(0), answers.std(0) + 1e-9
            z = (mean - scores.max()) / deviation
            choice = np.argmax(deviation * (z * norm.cdf(z) + norm.pdf(z)))
        measured, score = yield problem.architecture(candidates[choice])
        rows, scores = np.concatenate([rows, problem.row(measured)[None]]), np.append(scores, score)


POLICIES: dict[str, Callable[[Problem, int], Policy]] = {
    "boshnas": partial(with_sampler, partial(boshnas, preset="default")),
    "boshnas-paper": partial(with_sampler, partial(boshnas, preset="paper")),
    "random": random_search,
    "optuna-tpe": partial(with_sampler, lambda problem, seed: optuna.samplers.TPESampler(seed=seed)),
    "optuna-gp": partial(with_sampler, lambda problem, seed: optuna.samplers.GPSampler(seed=seed)),
    "regularised-evolution": regularised_evolution,
    "local-search": local_search,
    "forest-ei": forest_expected_improvement,
}
