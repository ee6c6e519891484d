"""How the next architecture is chosen: Optuna's samplers and this package's own, by name.

A sampler is a function of the study's trials and a seed, see `base.py`.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import optuna
from optuna.samplers import BaseSampler

from flexibert.attention_graph import show
from flexibert.spec import Architecture as Architecture

from ..errors import UserError
from ..space.search_space import SearchSpace
from .base import Feasible, ReseededSampler
from .boshnas import BoshnasSampler
from .evolution import EvolutionSampler
from .hierarchical import HierarchicalSampler
from .op_nas import OpNasSampler
from .population import PopulationSampler


SAMPLERS: dict[str, tuple[str, Callable[..., BaseSampler]]] = {
    "boshnas": ("Bayesian optimisation after FlexiBERT", BoshnasSampler),
    "boshnas-paper": ("the same with the settings of the paper", partial(BoshnasSampler, preset="paper")),
    "opnas": ("evolution by operation priority, after AutoBERT-Zero", OpNasSampler),
    "evolution": ("regularised evolution", EvolutionSampler),
    "random": ("uniform choices", lambda space, seed: optuna.samplers.RandomSampler(seed=seed)),
    "tpe": (
        "tree-structured Parzen estimators (Optuna)",
        lambda space, seed, n_startup_trials=10: optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=n_startup_trials
        ),
    ),
    "gp": (
        "Gaussian process (Optuna)",
        lambda space, seed, n_startup_trials=10: optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=n_startup_trials
        ),
    ),
    "nsga2": (
        "evolution by non-dominated sorting (Optuna)",
        lambda space, seed, population_size=20: optuna.samplers.NSGAIISampler(
            seed=seed, population_size=population_size
        ),
    ),
}
"""Name -> (what it is, how to make it from a space, a seed and options)."""


def create_sampler(
    options: Mapping[str, Any],
    space: SearchSpace,
    seed: int,
    feasible: Feasible | None = None,
    hierarchy_trials: int | None = None,
    objectives: int = 1,
) -> ReseededSampler:
    """The sampler called `options["name"]`, with the other options as its own; one serves a whole search.

    Args:
        hierarchy_trials: Searches level by level, over so many trials in all, see `HierarchicalSampler`; the whole
            space at once where it is None.
        objectives: Of the search.

    Raises:
        UserError: No such sampler, no such option, or one that does not suit the space or the objectives.
    """
    options = dict(options)
    name = options.pop("name")
    if name not in SAMPLERS:
        raise UserError(f"unknown sampler {show(name)}, known: {', '.join(SAMPLERS)}")
    make = SAMPLERS[name][1]
    known = inspect.signature(make).parameters
    free = [option for option in known if option not in ("space", "seed", "candidates", "feasible")]
    for option in options:
        if option not in free:
            raise UserError(f"sampler {name} has no option {show(option)}, known: {', '.join(free) or 'none'}")
        kind = type(known[option].default)
        if kind is int and (type(options[option]) is not int or options[option] < 1):
            expected = "a whole number of at least 1"
            raise UserError(f"{option}: {show(options[option])} is not accepted, expected {expected}")
    if "feasible" in known:
        options["feasible"] = feasible

    def create(part: SearchSpace, seed: int) -> BaseSampler:
        try:
            return make(part, seed=seed, **options)
        except UserError:
            raise
        except (TypeError, ValueError) as error:  # Optuna's, whose messages name the option
            raise UserError(f"sampler {name}: {error}") from None

    first = create(space, seed)  # options are checked now, not when the data have been loaded
    if objectives > 1 and isinstance(first, PopulationSampler):
        raise UserError(f"--objectives: the sampler {name} searches for one objective")
    if hierarchy_trials is None:
        return ReseededSampler(space, partial(create, space), seed, feasible)

    def create_hierarchical(seed: int) -> BaseSampler:
        return HierarchicalSampler(space, partial(create, seed=seed), hierarchy_trials, seed, feasible)

    create_hierarchical(seed)  # nor shall a space without levels wait for the data
    return ReseededSampler(space, create_hierarchical, seed, feasible)
