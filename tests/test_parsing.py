"""One way from plain data to a dataclass: what annotations and metadata say is what is accepted."""

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from search.errors import UserError
from search.evaluation.supernet import Description
from search.parsing import limited, one_of, parse, several
from search.recipe import Recipe
from search.space.attention_space import GraphSpace
from search.space.search_space import SearchSpace
from search.training.finetuning import FinetuningBudget
from search.training.pretraining import PretrainingBudget


@dataclass(frozen=True)
class Part:
    size: int = limited(least=2, most=9)


@dataclass(frozen=True)
class Everything:
    count: int
    share: float = limited(least=0, most=1, default=0.5)
    rate: float | None = limited(above=0, default=None)
    flag: bool = False
    kind: Literal["a", "b", None] = "a"
    word: str = one_of("one", "two", default="one")
    sizes: tuple[int, ...] = several(least=1, default=(1,))
    names: tuple[str, ...] = ()
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    inner: int = dataclasses.field(default=7, metadata={"data": False})


def test_what_is_accepted():
    data = {
        "count": -3, "share": 1, "rate": 2.5, "flag": True, "kind": None, "word": "two", "sizes": [3, 1],
        "names": ["x"], "more": {"any": [1]}, "part": {"size": 2}, "parts": [{"size": 9}, {"size": 3}],
    }  # fmt: skip
    expected = Everything(-3, 1, 2.5, True, None, "two", (3, 1), ("x",), {"any": [1]}, Part(2), (Part(9), Part(3)))
    assert parse(Everything, data, "here") == expected
    assert parse(Everything, {"count": 1}, "here") == Everything(1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"count": 1.0}, "count: 1.0 is not accepted, expected int"),
        ({"count": None}, "count: None is not accepted, expected int"),
        ({"share": 1.5}, "share: 1.5 is not accepted, expected at most 1"),
        ({"share": -1}, "share: -1 is not accepted, expected at least 0"),
        ({"share": float("nan")}, "share: nan is not accepted, expected a finite number"),
        ({"share": True}, "share: True is not accepted, expected float"),
        ({"rate": 0}, "rate: 0 is not accepted, expected a finite number above 0"),
        ({"rate": float("inf")}, "rate: inf is not accepted, expected a finite number above 0"),
        ({"rate": "x"}, "rate: 'x' is not accepted, expected float | None"),
        ({"flag": 1}, "flag: 1 is not accepted, expected bool"),
        ({"kind": "c"}, "kind: 'c' is not accepted, known: 'a', 'b', None"),
        ({"kind": ["a"]}, "kind: ['a'] is not accepted"),
        ({"word": "three"}, "word: 'three' is not accepted, known: one, two"),
        ({"sizes": []}, "sizes: [] is not accepted, expected a list of whole numbers of at least 1"),
        ({"sizes": [0]}, "sizes: [0] is not accepted"),
        ({"sizes": [2, 2]}, "sizes: [2, 2] holds a value twice"),
        ({"names": "abc"}, "names: 'abc' is not accepted, expected a list of names"),
        ({"more": []}, "more: expected an object"),
        ({"part": {"size": 1}}, "part: size: 1 is not accepted, expected a whole number from 2 to 9"),
        ({"part": {}}, "part: size is missing"),
        ({"parts": [{"size": 2}, 3]}, "parts[1]: expected an object"),
        ({"parts": [{"size": 2}, {"size": 2.0}]}, "parts[1]: size: 2.0 is not accepted"),
        ({"inner": 3}, "unknown key 'inner', known: count, share"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(UserError) as error:
        parse(Everything, {"count": 1, **change}, "here")
    assert str(error.value).startswith(f"here: {message}")


def test_what_is_missing():
    with pytest.raises(UserError, match="^here: count is missing"):
        parse(Everything, {}, "here")


JUNK = [None, True, -1, 0, 3, 1e400, float("nan"), 10**400, "", "x", [], [[]], [None], {}, {"x": 1}, [1, "a"], "\0"]
OPERATION = {"op": "self_attention"}
SPACE = {
    "num_layers": [2], "hidden_size": [16], "num_heads": [2], "operations": [OPERATION], "feed_forward_size": [8],
}  # fmt: skip
CLASSES = {
    Recipe: {"description": "d"}, SearchSpace: SPACE, GraphSpace: {}, PretrainingBudget: {}, FinetuningBudget: {},
    Description: {"space": SPACE, "fields": {}},
}  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_junk_is_read_or_refused_in_one_line(cls):
    """Whatever stands in whatever field."""
    rng = random.Random(0)
    read = getattr(cls, "from_dict", lambda data, path: parse(cls, data, path))
    names = [f.name for f in dataclasses.fields(cls)] + ["other"]
    refused = 0
    for _ in range(1000):
        try:
            read({**CLASSES[cls], rng.choice(names): rng.choice(JUNK)}, "here")
        except UserError as error:
            refused += 1
            assert str(error).startswith("here") and "\n" not in str(error)
    assert refused > 200
