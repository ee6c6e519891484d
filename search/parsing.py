"""A dataclass out of plain JSON data: known keys, right types, values in range; errors say where something is wrong.

Annotations say what is accepted: int, float, bool, str, `Literal`, any of these or None, tuples of one of them,
objects, and further dataclasses. What an annotation cannot say stands beside it, in the metadata of the field
(`limited`, `one_of`, `several`); a field with `data=False` there is none of the data. `flexibert.spec` does the same
for layers, where it may import nothing.
"""

import dataclasses
import json
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from flexibert.attention_graph import show

from .errors import UserError


T = TypeVar("T")

KINDS: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}
"""Annotation -> what is accepted for it."""

PLURALS = {int: "whole numbers", float: "numbers", bool: "flags", str: "names"}


def limited(
    *, least: float | None = None, above: float | None = None, most: float | None = None, **arguments: Any
) -> Any:
    """A field for a number within limits, or for a list of such numbers; `arguments` as of `dataclasses.field`."""
    return dataclasses.field(metadata={"least": least, "above": above, "most": most}, **arguments)


def one_of(*known: str, **arguments: Any) -> Any:
    """A field for one of these texts."""
    return dataclasses.field(metadata={"known": known}, **arguments)


def several(
    *,
    least: float | None = None,
    most: float | None = None,
    parse: Callable[[Any, str], Any] | None = None,
    noun: str = "",
    **arguments: Any,
) -> Any:
    """A field for a list of one item or more, no two of them equal.

    Args:
        least, most: Of each number.
        parse: Makes an item of plain data and its path; by default its type decides, see the annotation.
        noun: What the items are called; needed beside `parse`.
    """
    return dataclasses.field(
        metadata={
            "least": least,
            "most": most,
            "parse": parse,
            "noun": noun,
            "filled": True,
            "distinct": parse is None,
        },
        **arguments,
    )


def parse(cls: type[T], data: Any, path: str, separator: str = ": ") -> T:
    """Makes an object of a dataclass.

    Args:
        data: Plain JSON data, or objects where the dataclass has objects.
        path: Where the data stands, for messages; `separator` comes between it and the name of a field.

    Raises:
        UserError: Something is unknown, missing, of the wrong type or out of range.
    """
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected an object")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.metadata.get("data", True)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise UserError(f"{path}: unknown key {show(key)}, known: {', '.join(fields)}")
    for name, f in fields.items():
        if f.default is f.default_factory is dataclasses.MISSING and name not in data:
            raise UserError(f"{path}: {name} is missing")
    return cls(**{name: _value(fields[name], data[name], f"{path}{separator}{name}") for name in data})


def read_json(file: Path, title: str) -> Any:
    """The content of a JSON file, with or without a byte order mark; UserError where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{title}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{title} is not JSON: {error}") from None


def _value(f: dataclasses.Field, value: Any, path: str) -> Any:
    kind: Any = f.type
    if isinstance(kind, types.UnionType):
        [kind] = [part for part in get_args(kind) if part is not type(None)]
        if value is None:
            return None
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind)[0], f.metadata, value, path)
    if get_origin(kind) is Mapping:
        if not isinstance(value, dict):
            raise UserError(f"{path}: expected {f.metadata.get('noun', 'an object')}")
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else _dataclass(kind, value, path)
    known = f.metadata.get("known")
    if get_origin(kind) is Literal:
        known = get_args(kind)
        if not _among(value, known):
            raise UserError(f"{path}: {show(value)} is not accepted, known: {', '.join(map(repr, known))}")
    elif known is not None:
        if not _among(value, known):
            raise UserError(f"{path}: {show(value)} is not accepted, known: {', '.join(known)}")
    elif reason := _problem(
        kind, f.metadata, value, str(f.type) if kind is not f.type else getattr(kind, "__name__", str(kind))
    ):
        raise UserError(f"{path}: {show(value)} is not accepted, expected {reason}")
    return value


def _dataclass(cls: Any, value: Any, path: str) -> Any:
    """By its own `from_dict`, where it has one."""
    return cls.from_dict(value, path) if hasattr(cls, "from_dict") else parse(cls, value, path)


def _among(value: Any, known: tuple) -> bool:
    return any(type(value) is type(option) and value == option for option in known)


def _tuple(kind: Any, limits: Mapping[str, Any], value: Any, path: str) -> tuple:
    own = limits.get("parse")
    if own is None and dataclasses.is_dataclass(kind):
        own, noun = (lambda item, place: _dataclass(kind, item, place)), "objects"
    else:
        noun = limits.get("noun") or PLURALS[kind]
    if limits.get("most") is not None:
        noun += f" from {limits['least']} to {limits['most']}"
    elif limits.get("least") is not None:
        noun += f" of at least {limits['least']}"
    good = isinstance(value, (list, tuple)) and (bool(value) or not limits.get("filled"))
    if not good or (own is None and any(_problem(kind, limits, item, noun) for item in value)):
        raise UserError(f"{path}: {show(value)} is not accepted, expected a list of {noun}")
    if own is not None:
        return tuple(own(item, f"{path}[{index}]") for index, item in enumerate(value))
    if limits.get("distinct") and len(set(value)) != len(value):
        raise UserError(f"{path}: {show(value)} holds a value twice")
    return tuple(value)


def _problem(kind: type, limits: Mapping[str, Any], value: Any, name: str) -> str | None:
    """What is expected instead of a value, or None where it is accepted."""
    least, above, most = (limits.get(key) for key in ("least", "above", "most"))
    fits = isinstance(value, KINDS[kind]) and (kind is bool or not isinstance(value, bool))
    if kind is int and least is not None and most is not None:
        return None if fits and least <= value <= most else f"a whole number from {least} to {most}"
    if not fits:
        return name
    if above is not None and not above < value <= sys.float_info.max:
        return f"a finite number above {above}"
    if kind is float and not abs(value) <= sys.float_info.max:  # NaN, infinity, and whole numbers beyond
        return "a finite number"
    if least is not None and value < least:
        return f"at least {least}"
    if most is not None and value > most:
        return f"at most {most}"
    return None
