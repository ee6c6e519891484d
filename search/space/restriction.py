"""Parts of a space: with some parameters fixed, or around an architecture."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from flexibert.attention_graph import show
from flexibert.spec import Architecture

from ..errors import UserError
from .parameters import Value
from .search_space import SearchSpace


def fix(space: SearchSpace, wanted: Mapping[str, Any], path: str) -> SearchSpace:
    """The part of a space in which the named parameters have one value, or one of a list.

    Args:
        wanted: Name of a parameter -> value or values, both as in `SearchSpace.choices`; `*` stands for anything in
            names and in texts: {"num_layers": 4, "layer0.operation": "self_attention*", "*.num_heads": [1, 2]}.

    Raises:
        UserError: A name fits no parameter, or a value none of its values.
    """
    free = [name for name, parameter in space.table.items() if not parameter.spells_graph]
    choices: dict[str, list[Value]] = {}
    for pattern, value in wanted.items():
        names = [name for name in free if fnmatchcase(name, pattern)]
        if not names:
            raise UserError(f"{path}: {show(pattern)} is no parameter of the space, known: {', '.join(free)}")
        for name in names:
            options = choices.get(name, space.choices[name])
            kept = [option for option in options if any(_fits(option, item) for item in _list(value))]
            if not kept:
                known = ", ".join(map(str, options))
                raise UserError(f"{path}: {pattern}: {show(value)} is not accepted for {name}, known: {known}")
            choices[name] = kept
    return space.restrict(choices)


def around(space: SearchSpace, layers: Architecture, path: str) -> SearchSpace:
    """The part of a space around an architecture: its sizes, the next smaller and the next larger ones, any operation.

    Layers beyond its depth, which the next larger depth brings, may be any.

    Raises:
        UserError: The architecture is not in the space.
    """
    try:
        values = space.parameters(layers)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    choices = {}
    for name in space.active(values):
        if isinstance(values[name], int):
            sizes = sorted(space.choices[name])
            place = sizes.index(values[name])
            choices[name] = sizes[max(0, place - 1) : place + 2]
    return space.restrict(choices)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _fits(option: Value, wanted: Any) -> bool:
    if isinstance(option, str) and isinstance(wanted, str):
        return fnmatchcase(option, wanted)
    return type(option) is type(wanted) and option == wanted
