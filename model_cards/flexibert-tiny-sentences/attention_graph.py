"""Searched attention as data: a small graph of primitive operations on the projections of one attention head.

The primitives are those of AutoBERT-Zero (arXiv 2107.07445, Table 1). A graph is written as one line per node,
`name = primitive(operand[, operand])`, over the inputs `q`, `k`, `v` and `p`; the last line is the result. Scaled dot
product attention is

    scores = matmul(q, kt)      with  kt = transpose(k)
    scaled = scale(scores)
    weights = softmax(scaled)
    out = matmul(weights, v)

This module knows shapes, not numbers: it imports the standard library only, so a graph is checked (and a mutation
found legal or not) without a forward pass. `operations.py` runs graphs.

Notation: L sequence length, D head size; a shape is a pair over {L, D}, and L and D are never taken as equal.
"""

import hashlib
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any


INPUTS = ("q", "k", "v", "p")
ELEMENTWISE = ("neg", "scale", "logsigmoid", "softsign")
UNARY = ("transpose", "softmax", *ELEMENTWISE)
BINARY = ("add", "matmul", "cosine_similarity", "euclidean_distance")
PRIMITIVES = (*UNARY, *BINARY)
MAX_NODES = 64

_TOKENS = ("L", "D")
_LINE = re.compile(
    r"\s*([A-Za-z]\w{0,31})\s*=\s*([a-z_]{1,31})\s*\(\s*(\w{1,32})\s*(?:,\s*(\w{1,32})\s*)?\)\s*", re.ASCII
)


@dataclass(frozen=True)
class Node:
    """One application of a primitive: `name = primitive(*operands)`."""

    name: str
    primitive: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} = {self.primitive}({', '.join(self.operands)})"


@dataclass(frozen=True)
class AttentionGraph:
    """A legal graph: names defined before use, shapes that fit, a result of shape (L, D). Made by `parse_graph`."""

    nodes: tuple[Node, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The projections that the graph reads, in the order of `INPUTS`."""
        used = {operand for node in self.nodes for operand in node.operands}
        return tuple(name for name in INPUTS if name in used)

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(str(node) for node in self.nodes)

    def shapes(self) -> dict[str, tuple[str, str]]:
        """Symbolic shape of every input and node."""
        shapes = dict.fromkeys(INPUTS, _TOKENS)
        for node in self.nodes:
            shapes[node.name] = result_shape(node.primitive, [shapes[operand] for operand in node.operands])
        return shapes

    def mixes_tokens(self) -> bool:
        """Whether any position can see another: some product sums over the sequence."""
        shapes = self.shapes()
        return any(node.primitive == "matmul" and shapes[node.operands[0]][1] == "L" for node in self.nodes)


@dataclass(frozen=True)
class SoftmaxTail:
    """A graph as softmax(d ** -(scalings / 2) * queries keys^T) values, which a fused attention kernel computes.

    `queries`, `keys` and `values` name a node or an input of shape (L, D); `prefix` holds the nodes that compute them.
    """

    prefix: tuple[Node, ...]
    queries: str
    keys: str
    values: str
    scalings: int


def show(value: object) -> str:
    """A short text of any value, for messages."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to print whole numbers of more than 4,300 digits
        return f"a huge {type(value).__name__}"


def result_shape(primitive: str, shapes: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Shape of `primitive` applied to operands of these shapes; ValueError where they do not fit."""
    first = shapes[0]
    if primitive == "transpose":
        return first[::-1]
    if primitive in UNARY:
        return first
    second = shapes[1]
    if primitive == "add" and first == second:
        return first
    if primitive == "matmul" and first[1] == second[0]:
        return first[0], second[1]
    if primitive in ("cosine_similarity", "euclidean_distance") and first == second == _TOKENS:
        return "L", "L"
    raise ValueError(f"{primitive} does not take shapes ({', '.join(first)}) and ({', '.join(second)})")


def parse_graph(lines: Sequence[str], path: str = "nodes") -> AttentionGraph:
    """Reads and checks a graph. What was parsed before is not parsed again.

    Args:
        lines: One `name = primitive(operand[, operand])` per node; the last one is the result.
        path: Where the graph stands, for messages.

    Raises:
        ValueError: With the path of the offending line and what is accepted.
    """
    if not isinstance(lines, (list, tuple)) or not 1 <= len(lines) <= MAX_NODES:
        raise ValueError(f"{path}: expected a list of 1 to {MAX_NODES} lines, got {show(lines)}")
    try:
        return _known_graph(tuple(lines))
    except (TypeError, ValueError):  # no strings; and of mistakes the path is told
        return _parse_graph(lines, path)


@lru_cache(maxsize=1 << 14)
def _known_graph(lines: tuple[str, ...]) -> AttentionGraph:
    return _parse_graph(lines, "nodes")


def _parse_graph(lines: Sequence[Any], path: str) -> AttentionGraph:
    shapes = dict.fromkeys(INPUTS, _TOKENS)
    nodes: list[Node] = []
    for index, line in enumerate(lines):
        where = f"{path}[{index}]"
        match = _LINE.fullmatch(line) if isinstance(line, str) and len(line) <= 160 else None
        if match is None:
            raise ValueError(f"{where}: expected 'name = primitive(operand[, operand])', got {show(line)}")
        name, primitive, *rest = match.groups()
        operands = tuple(operand for operand in rest if operand is not None)
        if name in shapes:
            raise ValueError(f"{where}: name {name!r} is already taken; inputs are {', '.join(INPUTS)}")
        if primitive not in PRIMITIVES:
            raise ValueError(f"{where}: unknown primitive {primitive!r}, known: {', '.join(PRIMITIVES)}")
        arity = 1 if primitive in UNARY else 2
        if len(operands) != arity:
            raise ValueError(f"{where}: {primitive} takes {arity} operand{'s'[: arity - 1]}, got {len(operands)}")
        for operand in operands:
            if operand not in shapes:
                raise ValueError(f"{where}: {operand!r} is not defined before, known: {', '.join(shapes)}")
        try:
            shapes[name] = result_shape(primitive, [shapes[operand] for operand in operands])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        nodes.append(Node(name, primitive, operands))
    if shapes[nodes[-1].name] != _TOKENS:
        raise ValueError(
            f"{path}[{len(nodes) - 1}]: the result has shape ({', '.join(shapes[nodes[-1].name])}), expected (L, D)"
        )
    return AttentionGraph(tuple(nodes))


# --- canonical form -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Expression:
    """A value of a graph without its name. Equal keys are equal functions, so shared parts are compared only once."""

    key: str
    primitive: str = ""
    operands: tuple["_Expression", ...] = ()


@lru_cache(maxsize=1 << 14)
def canonical(graph: AttentionGraph) -> AttentionGraph:
    """The same function in standard form: dead nodes dropped, equal sub-expressions merged, nodes renamed t0, t1, ...

    Transposes move towards the result (they commute with element-wise primitives and with `add`; a product of two
    transposes is the transpose of the swapped product), double transposes and double negations vanish, and the
    operands of `add` are sorted. The form is sound, not complete: equal forms are equal functions, but two equal
    functions may keep different forms.
    """
    values = {name: _Expression(name) for name in INPUTS}
    for node in graph.nodes:
        values[node.name] = _apply(node.primitive, *(values[operand] for operand in node.operands))
    result = values[graph.nodes[-1].name]
    if not result.primitive:  # everything cancelled, as in neg(neg(q)); but a graph has at least one node
        result = _expression("neg", _expression("neg", result))
    names: dict[str, str] = {name: name for name in INPUTS}
    nodes: list[Node] = []
    _name_nodes(result, names, nodes)
    return AttentionGraph(tuple(nodes))


def _expression(primitive: str, *operands: _Expression) -> _Expression:
    text = f"{primitive}({','.join(operand.key for operand in operands)})"
    return _Expression(hashlib.sha256(text.encode()).hexdigest(), primitive, operands)


def _apply(primitive: str, *operands: _Expression) -> _Expression:
    first = operands[0]
    if primitive in ("neg", "transpose") and first.primitive == primitive:
        return first.operands[0]
    if primitive in ELEMENTWISE and first.primitive == "transpose":
        return _apply("transpose", _apply(primitive, first.operands[0]))
    if primitive in ("add", "matmul") and all(operand.primitive == "transpose" for operand in operands):
        inner = [operand.operands[0] for operand in operands]
        return _apply("transpose", _apply(primitive, *(inner if primitive == "add" else inner[::-1])))
    if primitive == "add":
        operands = tuple(sorted(operands, key=lambda operand: (len(operand.key), operand.key)))  # inputs first
    return _expression(primitive, *operands)


def _name_nodes(expression: _Expression, names: dict[str, str], nodes: list[Node]) -> str:
    if expression.key not in names:
        operands = tuple(_name_nodes(operand, names, nodes) for operand in expression.operands)
        names[expression.key] = f"t{len(nodes)}"
        nodes.append(Node(names[expression.key], expression.primitive, operands))
    return names[expression.key]


@lru_cache(maxsize=1 << 14)
def softmax_tail(graph: AttentionGraph) -> SoftmaxTail | None:
    """Takes the graph apart as softmax attention over token-wise operands, or returns None where it is not.

    Looks for matmul(softmax(scale^n(matmul(a, transpose(b)))), c) with a, b, c of shape (L, D), none of which need be
    inputs, on the canonical form. All six attention layers published with AutoBERT-Zero are of this kind.
    """
    graph = canonical(graph)
    by_name = {node.name: node for node in graph.nodes}
    shapes = graph.shapes()
    product = graph.nodes[-1]
    weights = by_name.get(product.operands[0])
    if product.primitive != "matmul" or weights is None or weights.primitive != "softmax":
        return None
    scores, scalings = by_name.get(weights.operands[0]), 0
    while scores is not None and scores.primitive == "scale":
        scores, scalings = by_name.get(scores.operands[0]), scalings + 1
    if scores is None or scores.primitive != "matmul" or shapes[scores.name] != ("L", "L"):
        return None
    queries, keys = scores.operands[0], by_name.get(scores.operands[1])
    if shapes[queries] != _TOKENS or keys is None or keys.primitive != "transpose":
        return None
    wanted = {queries, keys.operands[0], product.operands[1]}
    prefix: list[Node] = []
    for node in reversed(graph.nodes):
        if node.name in wanted:
            prefix.insert(0, node)
            wanted.update(node.operands)
    return SoftmaxTail(tuple(prefix), queries, keys.operands[0], product.operands[1], scalings)


# --- the published graphs -----------------------------------------------------------------------------------------

_TAIL = ("scaled = scale(scores)", "weights = softmax(scaled)")

GRAPHS: dict[str, tuple[str, ...]] = {
    "scaled-dot-product": ("kt = transpose(k)", "scores = matmul(q, kt)", *_TAIL, "out = matmul(weights, v)"),
    "autobert-zero-layer-2": (
        "a = neg(k)",
        "b = logsigmoid(a)",
        "c = transpose(b)",
        "z = neg(c)",
        "scores = matmul(q, z)",
        *_TAIL,
        "u = add(q, k)",
        "out = matmul(weights, u)",
    ),
    "autobert-zero-layer-4": (
        "a = logsigmoid(q)",
        "b = add(q, k)",
        "c = add(a, b)",
        "d = logsigmoid(c)",
        "e = transpose(d)",
        "z = neg(e)",
        "scores = matmul(q, z)",
        *_TAIL,
        "out = matmul(weights, q)",
    ),
    "autobert-zero-layer-6": (
        "a = logsigmoid(k)",
        "b = transpose(a)",
        "z = neg(b)",
        "scores = matmul(q, z)",
        *_TAIL,
        "out = matmul(weights, q)",
    ),
    "autobert-zero-layer-10": (
        "a = scale(k)",
        "s = softsign(k)",
        "t = scale(s)",
        "b = softsign(t)",
        "c = add(b, v)",
        "d = add(a, c)",
        "z = transpose(d)",
        "scores = matmul(q, z)",
        *_TAIL,
        "out = matmul(weights, v)",
    ),
    "autobert-zero-layer-12": (
        "a = scale(k)",
        "b = add(a, v)",
        "z = transpose(b)",
        "scores = matmul(q, z)",
        *_TAIL,
        "out = matmul(weights, v)",
    ),
}
"""Attention of AutoBERT-Zero's published network (its layer 8 equals layer 6), and the usual one. What its figure
labels "sqrt" is the division by the square root of the head size, i.e. `scale`."""
