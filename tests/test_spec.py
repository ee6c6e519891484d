"""Layer specs: round trips, identity, defaults, and one clear line for each kind of mistake."""

import dataclasses
import json
import pickle
import re

import pytest
from conftest import EVERY_OPERATION, GENERAL_GRAPH, SPECS, layer, op

from flexibert import FlexiBertConfig
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
from search.artifacts.describe import head_group
from search.artifacts.plots import FAMILY_COLORS
from search.similarity.computational_graph import KINDS, head_label, label_order


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
    assert parse_layers((spec,))[0] is spec


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SelfAttention(2, "nonsense"), "self_attention.similarity: 'nonsense' is not accepted, known: "),
        (lambda: SelfAttention(0), "self_attention.num_heads: 0 is not accepted"),
        (lambda: DynamicConvolution(4, 4), "dynamic_convolution.kernel_size: 4 is not accepted, expected an odd"),
        (lambda: DynamicConvolution(3, mixed_attention=True), "dynamic_convolution.num_heads: 3 is odd"),
        (lambda: SearchedAttention(2, ("a = neg(b)",)), "attention_graph.nodes[0]: 'b' is not defined before"),
        (lambda: LayerSpec(256, (SelfAttention(3),), (512,)), "layer.hidden_size: 256 is not a multiple of the 3"),
        (lambda: LayerSpec(256, (), (512,)), "layer.operations: expected a list of 1 to 1024 items"),
        (lambda: LayerSpec(256, (3,), (512,)), "layer.operations[0]: not an operation 3, known: "),
        (lambda: LayerSpec(256, (SelfAttention(2),), (0,)), "layer.feed_forward[0]: 0 is not accepted"),
        (lambda: LayerSpec(8, (LinearTransform(1, source="layer"),), (8,), 4), "layer.operations[0].source: 'layer'"),
        (lambda: dataclasses.replace(LayerSpec(8, (SelfAttention(2),), (8,)), hidden_size=9), "layer.hidden_size: 9"),
        (lambda: LayerSpec(9, (SelfAttention(2),), (8,), path="net.layers[3]"), "net.layers[3].hidden_size: 9 is not"),
    ],
)
def test_specs_are_valid_by_construction(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()


def test_there_is_one_form_of_a_spec():
    spec = LayerSpec(48, [SelfAttention(2), {"op": "linear_transform", "num_heads": 2}], [64])
    assert spec == LayerSpec(48, (SelfAttention(2), LinearTransform(2)), (64,))
    assert hash(spec) == hash(dataclasses.replace(spec)) == hash(pickle.loads(pickle.dumps(spec)))
    assert SearchedAttention(1, ("x = neg(q)", "y = neg(x)", "z = add(k, y)")).nodes == ("t0 = add(k, q)",)


def test_equal_data_is_parsed_once(monkeypatch):
    """By content, so that data which is changed in place is read anew; types count, so that 32.0 is not 32."""
    parsed = []
    parse = LayerSpec.from_dict.__func__
    monkeypatch.setattr(LayerSpec, "from_dict", classmethod(lambda *args: parsed.append(args) or parse(*args)))
    data = json.loads(json.dumps(SPECS["homogeneous"]))
    data[0]["feed_forward"] = [41]
    first = parse_layers(data)
    assert len(parsed) == len(data)
    assert parse_layers(json.loads(json.dumps(data))) is first
    assert parse_layers([dict(reversed(layer.items())) for layer in data]) is first
    assert len(parsed) == len(data)
    data[0]["feed_forward"][0] = 43
    assert parse_layers(data)[0].feed_forward == (43,)
    data[0]["feed_forward"][0] = 43.0
    with pytest.raises(ValueError, match=r"^layers\[0\]\.feed_forward\[0\]: 43\.0 is not accepted"):
        parse_layers(data)


# --- what others know about an operation --------------------------------------------------------------------------

MEMBERS = [
    operation
    for layers in (*SPECS.values(), EVERY_OPERATION)
    for layer_spec in parse_layers(layers)
    for operation in layer_spec.operations
]


@pytest.mark.parametrize("operation", dict.fromkeys(MEMBERS), ids=lambda operation: operation.op)
def test_an_operation_says_what_others_have_to_know(operation):
    cls = type(operation)
    fields = {f.name for f in dataclasses.fields(cls)}
    assert OPERATIONS[operation.op] is cls
    assert {"op", "symbol", "searched", "name"} <= vars(cls).keys(), "said by the operation itself"
    assert operation.searched in fields - {"num_heads"}
    assert operation.name and operation.name[0] != "<" and str(operation.num_heads) not in operation.name.split()
    assert isinstance(operation.parameter, str | int) and operation.parameter
    assert operation.mixes_padding == ("mix_padding" in fields and operation.mix_padding)
    assert bool(operation.taps) == ("kernel_size" in fields)
    assert operation.scores_positions or not operation.is_softmax_attention
    assert (operation.graph is None) == ("nodes" not in fields)
    # Kernels have their taps where the spec says.
    spec = LayerSpec(operation.num_heads * 4, (operation,), (8,))
    module = OPERATION_CLASSES[operation.op](FlexiBertConfig(layers=[spec]), spec, operation)
    parameters = dict(module.named_parameters())
    assert operation.num_parameters(spec) == sum(parameter.numel() for parameter in parameters.values())
    assert operation.taps.keys() <= parameters.keys()
    for name, parameter in parameters.items():
        shape, axis = operation.split_taps(name, parameter.shape)
        assert parameter.view(shape).shape == shape
        assert (axis is None) == (name not in operation.taps)
        assert axis is None or shape[axis] == operation.kernel_size
    # Readers: the picture, the words, the graph and its label.
    assert re.fullmatch(r"#[0-9A-F]{6}", FAMILY_COLORS[operation.op])
    assert head_group(operation).startswith(f"{operation.num_heads} × {operation.name}")
    label = head_label(operation, spec)
    assert label.kind == operation.symbol and label_order(label)[0] == KINDS.index(operation.symbol)


def test_operations_are_told_apart():
    assert {type(operation) for operation in MEMBERS} == set(OPERATIONS.values())
    assert len({cls.symbol for cls in OPERATIONS.values()}) == len(OPERATIONS)
    assert len({FAMILY_COLORS[op] for op in OPERATIONS}) == len(OPERATIONS)
    names = {(operation.op, operation.name) for operation in MEMBERS}
    assert len({name for _, name in names}) == len(names)
    parameters = {(operation.op, operation.parameter): operation.name for operation in MEMBERS if not operation.graph}
    assert len(set(parameters.values())) == len(parameters), "what is searched shows in the name"


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
    both = "relative_key_query"  # reads keys where their positions are scored
    assert LinearTransform(2, relative_attention=True).reads(both) == ("q", "k", "v")
    assert LinearTransform(2, relative_attention=True).reads("relative_key") == ("q", "v")
    assert LinearTransform(2).reads(both) == ("v",)
    assert SearchedAttention(2, tuple(GENERAL_GRAPH)).reads(both) == ("q", "k", "v", "p")


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
    (changed([1, "head_size"], 9999), r"layers\[1\]\.head_size: \d+ heads of 9999 features are \d+, at most 65536"),
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
