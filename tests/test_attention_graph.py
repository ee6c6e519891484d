"""Attention graphs: grammar and shapes, canonical form, recognition of softmax attention."""

import random
import re

import pytest
import torch

from flexibert import FlexiBertConfig, FlexiBertModel
from flexibert.attention_graph import (
    GRAPHS,
    INPUTS,
    MAX_NODES,
    PRIMITIVES,
    UNARY,
    canonical,
    parse_graph,
    result_shape,
    softmax_tail,
)
from flexibert.operations import MixingContext, SearchedAttentionOperation
from flexibert.spec import LayerSpec, SearchedAttention, parse_layers


def random_graph(rng: random.Random, size: int) -> list[str]:
    """A legal graph of at least `size` nodes that prefers to go on from its last node."""
    shapes = dict.fromkeys(INPUTS, ("L", "D"))
    lines = []
    while len(lines) < size or list(shapes.values())[-1] != ("L", "D"):
        if len(lines) == MAX_NODES:
            return random_graph(rng, size)
        primitive = rng.choice(PRIMITIVES)
        operands = rng.choices(list(shapes), k=1 if primitive in UNARY else 2)
        if rng.random() < 0.5:
            operands[0] = list(shapes)[-1]
        try:
            shape = result_shape(primitive, [shapes[operand] for operand in operands])
        except ValueError:
            continue
        name = f"n{len(lines)}"
        shapes[name] = shape
        lines.append(f"{name} = {primitive}({', '.join(operands)})")
    return lines


def run(graph, inputs, padding_mask=None) -> torch.Tensor:
    """The graph on projections (B, h, L, d), node by node."""
    spec = SearchedAttention(inputs["q"].shape[1], graph.lines)
    layer = LayerSpec(inputs["q"].shape[1] * inputs["q"].shape[-1], (spec,), (8,))
    operation = SearchedAttentionOperation(FlexiBertConfig(layers=[layer]), layer, spec)
    operation.tail, operation.nodes, operation.shapes = None, graph.nodes, graph.shapes()
    return operation(inputs, None, MixingContext(None, padding_mask, None))[0]


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    return {name: torch.randn(2, 2, 5, 4, dtype=torch.float64) for name in INPUTS}


# --- grammar ------------------------------------------------------------------------------------------------------


def test_lines_of_a_graph():
    graph = parse_graph(["kt=transpose( k )", " s = matmul(q,kt)", "w = softmax(s)", "out = matmul(w, v)"])
    assert graph.lines == ("kt = transpose(k)", "s = matmul(q, kt)", "w = softmax(s)", "out = matmul(w, v)")
    assert graph.inputs == ("q", "k", "v")
    assert graph.shapes() == {
        **dict.fromkeys((*INPUTS, "out"), ("L", "D")),
        "kt": ("D", "L"),
        "s": ("L", "L"),
        "w": ("L", "L"),
    }
    assert graph.mixes_tokens() and not parse_graph(["a = neg(v)"]).mixes_tokens()


@pytest.mark.parametrize(
    "lines, message",
    [
        ("a = neg(q)", "nodes: expected a list of 1 to 64 lines, got 'a = neg(q)'"),
        ([], "nodes: expected a list of 1 to 64 lines, got []"),
        (["a = neg(q)"] * 65, "nodes: expected a list of 1 to 64 lines, got ["),
        ([3], "nodes[0]: expected 'name = primitive(operand[, operand])', got 3"),
        (["a = neg(q"], "nodes[0]: expected 'name = primitive(operand[, operand])', got 'a = neg(q'"),
        (["a = neg(q) "] + [" " * 500], "nodes[1]: expected 'name = primitive(operand[, operand])', got '    "),
        (["a = exp(q)"], "nodes[0]: unknown primitive 'exp', known: transpose, softmax, neg"),
        (["a = neg(q, k)"], "nodes[0]: neg takes 1 operand, got 2"),
        (["a = add(q)"], "nodes[0]: add takes 2 operands, got 1"),
        (["q = neg(k)"], "nodes[0]: name 'q' is already taken; inputs are q, k, v, p"),
        (["a = neg(q)", "a = neg(k)"], "nodes[1]: name 'a' is already taken"),
        (["a = neg(b)", "b = neg(a)"], "nodes[0]: 'b' is not defined before, known: q, k, v, p"),
        (["a = neg(a)"], "nodes[0]: 'a' is not defined before"),
        (["a = matmul(q, k)"], "nodes[0]: matmul does not take shapes (L, D) and (L, D)"),
        (["a = transpose(q)", "b = add(a, q)"], "nodes[1]: add does not take shapes (D, L) and (L, D)"),
        (["a = transpose(q)", "b = matmul(q, a)"], "nodes[1]: the result has shape (L, L), expected (L, D)"),
    ],
)
def test_mistakes_are_named_with_their_line(lines, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse_graph(lines)


# --- canonical form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines, expected",
    [
        (["a = neg(q)", "b = neg(a)", "c = scale(b)"], ["t0 = scale(q)"]),
        (["a = neg(q)", "dead = softmax(k)", "c = scale(a)"], ["t0 = neg(q)", "t1 = scale(t0)"]),
        (["a = neg(q)", "b = neg(q)", "c = add(a, b)"], ["t0 = neg(q)", "t1 = add(t0, t0)"]),
        (["a = add(v, q)"], ["t0 = add(q, v)"]),
        (["a = transpose(q)", "b = neg(a)", "c = transpose(b)"], ["t0 = neg(q)"]),
        (["a = neg(q)", "b = neg(a)"], ["t0 = neg(q)", "t1 = neg(t0)"]),
        (
            ["a = transpose(q)", "b = transpose(k)", "c = matmul(a, k)", "d = transpose(c)", "e = matmul(v, d)"],
            ["t0 = transpose(q)", "t1 = matmul(t0, k)", "t2 = transpose(t1)", "t3 = matmul(v, t2)"],
        ),
    ],
)
def test_canonical_form(lines, expected):
    assert canonical(parse_graph(lines)).lines == tuple(expected)


def test_canonical_form_is_the_same_function(inputs):
    """On random legal graphs: same values, a fixed point, and blind to names, order of definition and dead nodes."""
    rng = random.Random(0)
    for _ in range(150):
        graph = parse_graph(random_graph(rng, rng.randint(1, 12)))
        form = canonical(graph)
        assert canonical(form) == form == canonical(parse_graph(form.lines))
        renamed = parse_graph([re.sub(r"n(\d+)", r"other\1", line) for line in ("dead = neg(p)", *graph.lines)])
        assert canonical(renamed) == form
        torch.testing.assert_close(run(form, inputs), run(graph, inputs))
        real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
        actual, expected = (run(x, inputs, real).transpose(1, 2)[real] for x in (form, graph))
        torch.testing.assert_close(actual, expected)


def test_doubling_does_not_explode():
    """Sixty doublings are one chain of sixty nodes, not 2^60, which would never end."""
    lines = ["n0 = add(q, q)", *(f"n{i} = add(n{i - 1}, n{i - 1})" for i in range(1, 60))]
    graph = canonical(parse_graph(lines))
    assert len(graph.nodes) == 60 and softmax_tail(graph) is None


def test_form_that_outgrows_the_limit_is_refused():
    """Moving transposes may add nodes; a spec whose canonical form could not be read back is not accepted."""
    lines = ["x0 = transpose(k)", "s0 = matmul(q, x0)"]
    for i in range(1, 21):
        lines += [f"x{i} = scale(x{i - 1})", f"m{i} = matmul(q, x{i})", f"s{i} = add(s{i - 1}, m{i})"]
    lines.append("out = matmul(s20, v)")
    assert len(lines) == 63 and len(canonical(parse_graph(lines)).nodes) > MAX_NODES
    operation = {"op": "attention_graph", "num_heads": 1, "nodes": lines}
    with pytest.raises(
        ValueError, match=r"^layers\[0\]\.operations\[0\]\.nodes: 83 nodes in canonical form, at most 64"
    ):
        parse_layers([{"hidden_size": 8, "operations": [operation], "feed_forward": [8]}])


# --- softmax attention --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAPHS)
def test_published_graphs_are_softmax_attention(name, inputs):
    """What the fused kernel is given equals the graph, node by node."""
    graph = parse_graph(GRAPHS[name])
    tail = softmax_tail(graph)
    assert tail.scalings == 1
    spec = SearchedAttention(2, canonical(graph).lines)
    layer = LayerSpec(8, (spec,), (8,))
    operation = SearchedAttentionOperation(FlexiBertConfig(layers=[layer]), layer, spec).eval()
    operation.attention.config._attn_implementation = "sdpa"
    fused, _ = operation({name: inputs[name] for name in spec.inputs}, None, MixingContext(None, None, None))
    torch.testing.assert_close(fused, run(graph, inputs), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "lines",
    [
        ["kt = transpose(k)", "s = matmul(q, kt)", "out = matmul(s, v)"],
        ["kt = transpose(k)", "s = matmul(q, kt)", "n = neg(s)", "w = softmax(n)", "out = matmul(w, v)"],
        ["s = cosine_similarity(q, k)", "w = softmax(s)", "out = matmul(w, v)"],
        ["kt = transpose(k)", "s = matmul(q, kt)", "w = softmax(s)", "o = matmul(w, v)", "out = neg(o)"],
        ["kt = transpose(k)", "s = matmul(kt, q)", "w = softmax(s)", "out = matmul(v, w)"],
        ["w = softmax(q)", "kt = transpose(w)", "s = matmul(kt, k)", "out = matmul(v, s)"],
    ],
)
def test_other_graphs_are_not(lines):
    assert softmax_tail(parse_graph(lines)) is None


def test_number_of_scalings_is_kept(inputs):
    for scalings in range(3):
        names = ["s", *(f"x{i}" for i in range(scalings))]
        lines = ["kt = transpose(k)", "s = matmul(q, kt)"]
        lines += [f"{name} = scale({previous})" for previous, name in zip(names, names[1:])]
        graph = parse_graph([*lines, f"w = softmax({names[-1]})", "out = matmul(w, v)"])
        assert softmax_tail(graph).scalings == scalings


# --- in a model ---------------------------------------------------------------------------------------------------


def test_random_graphs_run_forward_and_backward():
    rng = random.Random(1)
    ids = torch.randint(1, 20, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    for _ in range(40):
        operation = {"op": "attention_graph", "num_heads": 2, "nodes": random_graph(rng, rng.randint(1, 10))}
        config = FlexiBertConfig(
            vocab_size=20, layers=[{"hidden_size": 8, "operations": [operation], "feed_forward": [8]}]
        )
        model = FlexiBertModel(config)
        output = model(ids, mask)
        output.last_hidden_state.sum().backward()
        assert torch.isfinite(output.last_hidden_state).all(), operation["nodes"]
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), (name, operation["nodes"])
        alone = model.eval()(ids[1:, :5]).last_hidden_state
        torch.testing.assert_close(model(ids, mask).last_hidden_state[1:, :5], alone, atol=1e-5, rtol=1e-5)
