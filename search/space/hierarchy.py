"""Hierarchical search: ever finer spaces between the best architectures of the coarser ones (FlexiBERT, Section 3.3).

Level by level, stacks of two equal layers become single layers, then hidden feed-forward layers of one layer may
differ in width, then heads of one layer in operation (FlexiBERT 2). A level does not search its space at large but
interpolates: whatever stands at a place in one of the best architectures of the levels before may stand there, in all
combinations. `samplers/hierarchical.py` searches so.
"""

import dataclasses
from collections.abc import Sequence

from flexibert.spec import Architecture

from ..errors import UserError
from .parameters import Value
from .search_space import SearchSpace


def levels(space: SearchSpace) -> list[SearchSpace]:
    """The levels that lead to `space`, coarsest first; `space` itself is the last. Levels that restrict nothing are
    left out: homogeneous feed-forwards and heads are one level where `space` has no mixed ones.

    Raises:
        UserError: The space is restricted, has searched graphs, or has no even depth, so that layers cannot be stacked
            in pairs.
    """
    if space.graph_space is not None:
        raise UserError("hierarchy: the space has searched graphs, which have no coarser levels")
    if space.restrictions:
        raise UserError("hierarchy: expected a space without restrictions")
    finest = [dataclasses.replace(space, mixed_feed_forward=False, mixed_heads=False)]
    if space.mixed_feed_forward:
        finest.append(dataclasses.replace(space, mixed_heads=False))
    if space.mixed_heads:
        finest.append(space)
    if space.layers_per_stack > 1:
        return finest
    paired = tuple(depth for depth in space.num_layers if depth % 2 == 0)
    if not paired:
        raise UserError(f"hierarchy: no depth of {list(space.num_layers)} is even, layers cannot be stacked in pairs")
    return [dataclasses.replace(finest[0], num_layers=paired, layers_per_stack=2), *finest]


def interpolate(space: SearchSpace, architectures: Sequence[Architecture]) -> SearchSpace:
    """The part of a space between architectures: what one of them has at a place may be at that place.

    Mixed heads of a layer share what any head of that layer has in one of them, and so do mixed feed-forward layers. A
    layer beyond the depth of an architecture takes nothing from it, as the original extends the shorter one by the
    tail of the longer. The original interpolates between pairs; here all architectures contribute at once, which
    includes every pair.

    Args:
        space: The finer level.
        architectures: Best ones of the coarser level.

    Raises:
        UserError: There is no architecture, or one is not in the space.
    """
    if not architectures:
        raise UserError("hierarchy: the level before has no finished architecture to interpolate between")
    seen: dict[tuple[str | None, str], set[Value]] = {}

    def place(name: str) -> tuple[str | None, str]:
        """Mixed parts of one layer are one place."""
        return space.table[name].unit, space.table[name].part

    for layers in architectures:
        try:
            values = space.parameters(layers)
        except ValueError as error:
            raise UserError(f"hierarchy: {error}") from None
        for name in space.active(values):
            seen.setdefault(place(name), set()).add(values[name])
    return space.restrict({name: list(seen[place(name)]) for name in space.table if place(name) in seen})
