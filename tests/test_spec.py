"""Layer specs: round trips, identity, defaults, and one clear line for each kind of mistake."""

import json

import pytest
from conftest import EVERY_OPERATION, GENERAL_GRAPH, SPECS, layer, op

from flexibert.operations import OPERATION_CLASSES
from flexibert.spec import (
    OPERATIONS,
    DynamicConvolution,
    LayerSpec,
    LightweightConvolution,
    LinearTransform,
    SearchedAttention,
    SelfAttention,
    fingerprint,
    layers_to_dicts,
    parse_layers,
)


@pytest.mark.parametrize("layers", [*SPECS.values(), EVERY_OPERATION])
def test_round_trip_through_json(layers):
    specs = parse_layers(layers)
    data = json.loads(json.dumps(layers_to_dicts(specs)))
    assert parse_layers(data) == parse_layers(specs) == specs
    assert hash(parse_layers(data)) == hash(specs)
    assert layers_to_dicts(parse_layers(data)) == data
    assert fingerprint(parse_layers(data)) == fingerprint(specs)


def test_every_operation_has_a_spec_and_a_module():
    assert OPERATIONS.keys() == OPERATION_CLASSES.keys()
    assert {operation["op"] for operation in EVERY_OPERATION[0]["operations"]} == OPERATIONS.keys()


def test_fingerprints_tell_architectures_apart():
    fingerprints = {fingerprint(parse_layers(layers)) for layers in SPECS.values()}
    assert len(fingerprints) == len(SPECS)
    assert all(len(text) == 12 and int(text, 16) >= 0 for text in fingerprints)
    default = layer(32, op("self_attention", 4))
    spelled_out = layer(32, op("self_attention", 4, similarity="scaled_dot_product"), output_projection=True)
    assert fingerprint(parse_layers([default])) == fingerprint(parse_layers([spelled_out]))


def test_fingerprints_never_change():
    """They name trials, caches and checkpoints, so they outlive processes and versions."""
    assert fingerprint(parse_layers(SPECS["mixed_heads"])) == "640ccd2601d3"
    assert fingerprint(parse_layers(SPECS["graph"])) == "be50c427d99e"


def test_layers_built_from_classes():
    spec = LayerSpec(48, (SelfAttention(2), LinearTransform(1, "cosine"), DynamicConvolution(1, 5)), (64, 64), 12)
    assert parse_layers([spec]) == (spec,)
    assert (spec.num_heads, spec.mixing_size) == (4, 48)
    assert spec.to_dict()["operations"][1] == {"op": "linear_transform", "num_heads": 1, "transform": "cosine"}
    with pytest.raises(ValueError, match=r"^layers\[0\]\.operations\[0\]\.kernel_size: 4 is not accepted"):
        parse_layers([LayerSpec(48, (DynamicConvolution(4, 4),), (64,))])


def test_projections_of_an_operation():
    assert SelfAttention(2).inputs == ("q", "k", "v")
    assert LinearTransform(2).inputs == ("v",)
    assert LinearTransform(2, source="layer").inputs == ()
    assert LinearTransform(2, relative_attention=True).inputs == ("q", "v")
    assert DynamicConvolution(2).inputs == ("q", "v")
    assert DynamicConvolution(2, mixed_attention=True).inputs == ("q", "k", "v")
    assert DynamicConvolution(4, mixed_attention=True).projected_heads == 2
    assert LightweightConvolution(2).inputs == ("v", "g")
    assert LightweightConvolution(2, gated=False).inputs == ("v",)
    assert SearchedAttention(2, tuple(GENERAL_GRAPH)).inputs == ("q", "k", "v", "p")


def changed(path, value):
    """A valid two-layer encoder with the value at `path` replaced."""
    data = json.loads(json.dumps([SPECS["homogeneous"][0], EVERY_OPERATION[0]]))
    *parents, last = path
    target = data
    for key in parents:
        target = target[key]
    target[last] = value
    return data


OPERATION = (0, "operations", 0)
MISTAKES = [
    (None, r"layers: expected a list of 1 to 1024 layers, got None"),
    ([], r"layers: expected a list of 1 to 1024 layers, got \[\]"),
    ("bert", r"layers: expected a list of 1 to 1024 layers, got 'bert'"),
    (changed([0], 3), r"layers\[0\]: expected an object, got 3"),
    (changed([1, "hiden_size"], 3), r"layers\[1\]: unknown key 'hiden_size', known: hidden_size, operations"),
    ([{"hidden_size": 4}], r"layers\[0\]: operations is missing"),
    (
        changed([0, "hidden_size"], 0),
        r"layers\[0\]\.hidden_size: 0 is not accepted, expected a whole number from 1 to",
    ),
    (changed([0, "hidden_size"], -8), r"layers\[0\]\.hidden_size: -8 is not accepted"),
    (changed([0, "hidden_size"], 32.0), r"layers\[0\]\.hidden_size: 32\.0 is not accepted"),
    (changed([0, "hidden_size"], True), r"layers\[0\]\.hidden_size: True is not accepted"),
    (changed([0, "hidden_size"], 10**5000), r"layers\[0\]\.hidden_size: a huge int is not accepted"),
    (changed([0, "hidden_size"], 30), r"layers\[0\]\.hidden_size: 30 is not a multiple of the 4 heads"),
    (changed([1, "head_size"], 0), r"layers\[1\]\.head_size: 0 is not accepted"),
    (changed([1, "head_size"], 9999), r"layers\[1\]\.head_size: 12 heads of 9999 features are 119988, at most 65536"),
    (changed([1, "output_projection"], False), r"layers\[1\]\.output_projection: false needs num_heads \* head_size"),
    (
        changed([0, "output_projection"], "no"),
        r"layers\[0\]\.output_projection: 'no' is not accepted, known: false, tr",
    ),
    (changed([0, "feed_forward"], []), r"layers\[0\]\.feed_forward: expected a list of 1 to 16 items, got \[\]"),
    (changed([0, "feed_forward"], 64), r"layers\[0\]\.feed_forward: expected a list of 1 to 16 items, got 64"),
    (changed([0, "feed_forward"], [8, "8"]), r"layers\[0\]\.feed_forward\[1\]: '8' is not accepted"),
    (changed([0, "operations"], {}), r"layers\[0\]\.operations: expected a list of 1 to 1024 items, got {}"),
    (
        changed(OPERATION, "self_attention"),
        r"layers\[0\]\.operations\[0\]: not an operation 'self_attention', known: ",
    ),
    (changed(OPERATION, {}), r"layers\[0\]\.operations\[0\]: unknown operation None, known: self_attention, "),
    (changed([*OPERATION, "op"], "atention"), r"layers\[0\]\.operations\[0\]: unknown operation 'atention'"),
    (changed([*OPERATION, "op"], []), r"layers\[0\]\.operations\[0\]: unknown operation \[\]"),
    (
        changed([*OPERATION, "kernel"], 3),
        r"layers\[0\]\.operations\[0\]: unknown key 'kernel', known: num_heads, simil",
    ),
    (changed([*OPERATION, "num_heads"], 0), r"layers\[0\]\.operations\[0\]\.num_heads: 0 is not accepted"),
    (
        changed([*OPERATION, "similarity"], "dot"),
        r"layers\[0\]\.operations\[0\]\.similarity: 'dot' is not accepted, kn",
    ),
    (changed([1, "operations", 4, "num_heads"], 3), r"layers\[1\]\.operations\[4\]\.num_heads: 3 is odd, mixed"),
    (changed([1, "operations", 4, "source"], "head"), r"layers\[1\]\.operations\[4\]\.mixed_attention: goes with"),
    (
        changed([1, "operations", 2, "source"], "layer"),
        r"layers\[1\]\.operations\[2\]\.source: 'layer' transforms all",
    ),
    (
        changed([1, "operations", 5, "kernel_size"], 8),
        r"layers\[1\]\.operations\[5\]\.kernel_size: 8 .* odd whole num",
    ),
    (
        changed([1, "operations", 9, "nodes"], []),
        r"layers\[1\]\.operations\[9\]\.nodes: expected a list of 1 to 64 lin",
    ),
    (
        changed([1, "operations", 9, "nodes", 0], "a = b"),
        r"layers\[1\]\.operations\[9\]\.nodes\[0\]: expected 'name =",
    ),
]


@pytest.mark.parametrize("data, message", MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_mistakes_are_named_with_their_path(data, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        parse_layers(data)
