"""Random damage to valid specs: the parser answers with specs or with a ValueError that says where."""

import copy
import dataclasses
import json
import random
import re
import string
from pathlib import Path

import pytest
import torch
from conftest import EVERY_OPERATION, SPECS

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, config_from_model_dict, parse_graph, parse_layers
from flexibert.attention_graph import GRAPHS, PRIMITIVES
from flexibert.spec import fingerprint, layers_to_dicts
from search import recipe
from search.errors import UserError
from search.evaluation.model_config import check_fields
from search.evaluation.supernet import Description
from search.parsing import parse


def bomb(depth: int, kind: str = "list"):
    """A value inside a value inside a value."""
    value = []
    for _ in range(depth):
        value = [value] if kind == "list" else {"operations": value}
    return value


CYCLE: list = []
CYCLE.append(CYCLE)
JUNK = [
    None, True, False, 0, -1, 1, 2, 3, 7, 1024, 65537, 2**31, 2**64, 10**5000, -(10**5000), 0.0, 4.0, -1.5, 1e308,
    float("nan"), float("inf"), 1j, "", "0", "4", "self_attention", "attention_graph", "op", "\x00", "ж" * 40,
    "x" * 100_000, b"bytes", (), [], {}, set(), [[]], [{}], {"op": None}, {"": {}}, {1: 2}, {None: None},
    {(): []}, object(), int, len, range(3), bomb(50), bomb(5000), bomb(5000, "dict"), CYCLE, {"operations": CYCLE},
    [1] * 5000, ["a = neg(q)"] * 100, ["a = neg(a)"], ["a = add(b, c)", "b = neg(a)", "c = neg(b)"],
]  # fmt: skip
KEYS = [
    "hidden_size",
    "operations",
    "feed_forward",
    "head_size",
    "op",
    "num_heads",
    "nodes",
    "kernel_size",
    "x",
    "",
    0,
]


def places(value, path=()):
    """Paths of all values inside plain data, parents before their children."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def damaged(text: str, count: int, rng: random.Random):
    """The data of a JSON text with `count` values replaced, removed, copied or added, anywhere."""
    data, pristine = json.loads(text), json.loads(text)
    paths = list(places(pristine))
    # From the back, so that no place moves before its turn.
    for index in sorted(rng.sample(range(len(paths)), count), reverse=True):
        if not paths[index]:
            return rng.choice(JUNK)
        parent, key = at(data, paths[index][:-1]), paths[index][-1]
        kind = rng.choice(["junk", "junk", "number", "remove", "copy", "add", "text"])
        copied = copy.deepcopy(at(pristine, rng.choice([paths[index], rng.choice(paths)])))
        if kind == "junk":
            parent[key] = rng.choice(JUNK)
        elif kind == "number":
            parent[key] = rng.randint(-3, 70)
        elif kind == "remove":
            del parent[key]
        elif kind == "copy":
            parent[key] = copied
        elif kind == "text":
            parent[key] = garble(copied if isinstance(copied, str) else json.dumps(copied), rng)
        elif isinstance(parent, dict):
            parent[rng.choice([key for key in KEYS if key not in parent])] = rng.choice(JUNK)
        else:
            parent.insert(key, rng.choice([*JUNK, copied]))
    return data


def garble(text: str, rng: random.Random) -> str:
    characters = list(text)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(characters) + 1)
        characters[start : start + rng.randint(0, 2)] = rng.choice(
            [*string.printable, "", "q", "transpose", "\u2028", "٣"]
        )
    return "".join(characters)


def check(parse, data):
    """`parse` accepts `data`, and then what it made can be written and read back, or names the place."""
    try:
        specs = parse(data)
    except ValueError as error:
        assert re.match(r"layers(\[\d+\]|\.\w+)*: \S", str(error)), str(error)
        assert len(str(error)) < 1000
        return False
    assert parse_layers(json.loads(json.dumps(layers_to_dicts(specs)))) == specs
    assert len(fingerprint(specs)) == 12
    return True


SOURCES = [json.dumps(layers) for layers in (*SPECS.values(), EVERY_OPERATION)]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_specs(seed):
    rng = random.Random(seed)
    accepted = sum(
        check(parse_layers, damaged(rng.choice(SOURCES), rng.choice([1, 1, 2, 4]), rng)) for _ in range(3000)
    )
    assert 100 < accepted < 1500  # the damage is neither always fatal nor mostly harmless


def test_damaged_configurations():
    rng = random.Random(9)
    for _ in range(2000):
        layers = damaged(rng.choice(SOURCES), 1, rng)
        if layers is not None:  # None asks for the default layers
            check(lambda layers: FlexiBertConfig(layers=layers, vocab_size=8).layer_specs, layers)


FIELDS = [field.name for field in dataclasses.fields(FlexiBertConfig)] + [
    "num_labels", "torch_dtype", "attn_implementation", "per_layer_config", "hidden_size", "num_hidden_layers",
    "output_attentions", "layer_specs", "fingerprint", "n_embd", "intermediate_size",
]  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_junk_in_a_configuration(name):
    """Also in the fields of transformers, whose own errors are of many kinds and lines."""
    for value in JUNK:
        try:
            FlexiBertConfig(**{name: value})
        except ValueError as error:
            assert "\n" not in str(error) and 0 < len(str(error)) < 1000, name


def test_numbers_in_a_configuration():
    """Whatever is accepted makes a model, on a device that holds no numbers, or is too large for one."""
    rng, sizes, accepted = random.Random(3), [0, 1, 2, 7, 64, 1 << 10, 1 << 16, 1 << 17, 1 << 24, 1 << 40, -1], 0
    names = [
        "vocab_size",
        "embedding_size",
        "max_position_embeddings",
        "type_vocab_size",
        "num_labels",
        "pad_token_id",
    ]
    for _ in range(300):
        fields = {name: rng.choice(sizes) for name in rng.sample(names, rng.randint(1, 4))}
        fields["tie_word_embeddings"] = rng.random() < 0.5
        try:
            config = FlexiBertConfig(layers=SPECS["widening"][:1], **fields)
        except ValueError as error:
            assert re.match(r"\w+: \S", str(error)), str(error)
        else:
            accepted += 1
            with torch.device("meta"):
                FlexiBertForMaskedLM(config)
    assert accepted > 20


@pytest.mark.parametrize("value", JUNK, ids=range(len(JUNK)))
def test_junk_instead_of_layers(value):
    with pytest.raises(ValueError, match=r"^layers"):
        parse_layers(value)
    with pytest.raises(ValueError, match=r"^layers\[0\]"):
        parse_layers([value])


def test_damaged_graphs():
    rng = random.Random(5)
    accepted = 0
    for _ in range(4000):
        lines = list(rng.choice(list(GRAPHS.values())))
        for _ in range(rng.randint(1, 2)):
            index = rng.randrange(len(lines))
            lines[index] = rng.choice(
                [
                    garble(lines[index], rng),
                    re.sub(r"\w+\(", rng.choice(PRIMITIVES) + "(", lines[index]),
                    re.sub(r"\b[a-z]\b", rng.choice("qkvpabc"), lines[index]),
                    rng.choice(lines),
                ]
            )
        try:
            graph = parse_graph(lines, "graph")
        except ValueError as error:
            assert re.match(r"graph(\[\d+\])?: \S", str(error)), str(error)
        else:
            accepted += 1
            assert parse_graph(graph.lines) == graph
    assert accepted > 100


# --- recipes, model dictionaries, super-networks -------------------------------------------------------------------


RECIPES = [file.read_text(encoding="utf-8") for file in sorted(Path(str(recipe.RECIPES)).glob("*.json"))]
DICTIONARIES = [
    json.dumps(model_dict)
    for model_dict in (
        {"l": 2, "o": ["sa", "c"], "h": [256, 128], "n": [4, 2], "f": [[1024], [512, 512]], "p": ["sdp", 9]},
        {"l": 1, "o": [["sa_wma_64", "l_dct_64", "c_5_64"]], "h": [192], "f": [[1024]]},
    )
]
SPACE = json.loads(next(text for text in RECIPES if '"space"' in text))["space"]
NETWORKS = [json.dumps({"space": SPACE, "fields": {"vocab_size": 50, "hidden_act": "gelu"}, "written_back": [1, 2]})]


def read_network(data):
    description = parse(Description, data, "supernet.json")
    check_fields(description.fields, "supernet.json: fields")


READERS = {
    "recipe": (RECIPES, lambda data: recipe.parse_recipe(data, "recipe.json"), UserError),
    "model_dict": (DICTIONARIES, config_from_model_dict, ValueError),
    "supernet": (NETWORKS, read_network, UserError),
    "layers": (SOURCES, parse_layers, ValueError),
    "config": (SOURCES, lambda layers: FlexiBertConfig(layers=layers, vocab_size=8), ValueError),
}
"""What is read -> texts to damage, how it is read, and how it is refused."""


def read_damaged(kind: str, seed: int) -> bool:
    """Whether damaged data were accepted; else they were refused in one short line."""
    sources, read, refusal = READERS[kind]
    rng = random.Random(f"{kind} {seed}")
    data = damaged(rng.choice(sources), rng.choice([1, 1, 2, 4]), rng)
    try:
        read(data)
    except refusal as error:
        text = str(error)
        assert text and len(text) < 2000 and len(text.splitlines()) == 1, text[:2000]
        return False
    return True


@pytest.mark.parametrize("kind", ["recipe", "model_dict", "supernet"])
def test_other_damaged_data(kind):
    accepted = sum(read_damaged(kind, seed) for seed in range(200))
    assert 0 < accepted < 150


@pytest.mark.parametrize(
    "change",
    [{"feed_forward_depth": [1024]}, {"feed_forward_size": [2**64]}, {"hidden_size": [10**5000]}],
    ids=range(3),
)
def test_sizes_that_no_layer_may_have(change):
    """Each took minutes, or ended in another error."""
    with pytest.raises(UserError, match=f"space.{next(iter(change))}: .* is not accepted, expected a list of whole"):
        recipe.parse_recipe({"description": "", "space": {**SPACE, **change}, "sampler": {"name": "boshnas"}}, "r")


@pytest.mark.slow
@pytest.mark.parametrize("kind", READERS)
def test_very_many_damaged_data(kind):
    accepted = sum(read_damaged(kind, seed) for seed in range(1000, 21_000))
    assert 0 < accepted < 15_000
