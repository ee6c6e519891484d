"""Which members of a space a super-network trains in a step: a table of rules.

A rule is a function of the space, the seed, the step and the part of the batch, so a killed training goes on to the
bit. Parts are the micro-batches of a step, over all processes.
"""

import dataclasses
import random
from collections.abc import Callable

from flexibert.spec import Architecture

from ..errors import UserError
from ..space.search_space import SearchSpace, random_values
from ..training.pretraining import PretrainingBudget


Rule = Callable[[SearchSpace, int, int, int], Architecture]

SIZES = ("num_layers", "hidden_size", "num_heads", "feed_forward_depth", "feed_forward_size")
"""Parts of an architecture that have a largest and a smallest value."""

SANDWICH_PARTS = 4
"""The largest member, the smallest, and as many random ones as in Yu and Huang's experiments."""


def random_member(space: SearchSpace, seed: int, step: int, part: int = 0) -> Architecture:
    """A random member for the whole batch of a step (AutoBERT-Zero's super-network, SPOS)."""
    return space.build(random_values(space, random.Random(f"{seed} {step}")))


def fair_member(space: SearchSpace, seed: int, step: int, part: int = 0) -> Architecture:
    """One member a step; in a round of as many steps as there are operations, every place of an operation holds each
    operation once: strict fairness (FairNAS, arXiv 1907.01845).

    There all operations of a round make one step of the optimiser. Depth is drawn once a round, other sizes are drawn
    every step (own choice; FairNAS searches operations alone).
    """
    values = dict(random_values(space, random.Random(f"{seed} {step}")))
    for name, parameter in space.table.items():
        if parameter.part == "operation":
            cycle, place = divmod(step, len(parameter.values))
            values[name] = random.Random(f"{seed} {cycle} {name}").sample(parameter.values, len(parameter.values))[
                place
            ]
        elif parameter.part == "num_layers":
            values[name] = random.Random(f"{seed} {step // len(space.operations)} {name}").choice(parameter.values)
    return space.build(space.normalize(values))


def sandwich_member(space: SearchSpace, seed: int, step: int, part: int = 0) -> Architecture:
    """In the first part of a batch the largest member, in the second the smallest, then random ones: the sandwich rule
    (Yu and Huang 2019, arXiv 1903.05134).

    There every member sees the whole batch. Largest and smallest are so in all sizes; their operations, which have no
    order, are random.
    """
    values = dict(random_values(space, random.Random(f"{seed} {step} {part}")))
    if part < 2:
        extreme = (max, min)[part]
        for name, parameter in space.table.items():
            if parameter.part in SIZES:
                values[name] = extreme(int(value) for value in parameter.values)
    return space.build(space.normalize(values))


MEMBER_SAMPLING: dict[str, Rule] = {"random": random_member, "fair": fair_member, "sandwich": sandwich_member}
"""Name -> rule."""


def with_parts(budget: PretrainingBudget, sampling: str, processes: int) -> PretrainingBudget:
    """The budget with as many parts of a batch as a rule needs.

    Raises:
        UserError: Processes would have to train several members each between two exchanges of gradients, which data
            parallelism does not add up.
    """
    if sampling != "sandwich":
        return budget
    if processes == 1:
        return dataclasses.replace(budget, micro_batches=max(budget.micro_batches, SANDWICH_PARTS))
    if processes < 3 or budget.micro_batches > 1:
        raise UserError("--sampling sandwich: takes one process, or at least three with one micro-batch each")
    return budget
