"""Searched attention as a part of a search space: which graphs a layer may have, and how to move between them.

AutoBERT-Zero (arXiv 2107.07445) searches the attention of every layer as a graph of primitives. How it encodes and
bounds graphs is not public; here a graph has at most 12 nodes (the published ones have up to 11), any earlier value
may be an operand, shapes are checked as nodes are made, and illegal mutants are drawn again. Two modes:

- `tail`: matmul(softmax(scale(matmul(q, transpose(keys)))), values) with searched `keys` and `values`, which see one
  token at a time. Holds all published graphs and runs on fused attention kernels.
- `free`: any typed graph that mixes tokens and has no towers of products that could overflow.

A graph is spelled by categorical parameters, a primitive and two operands for each node, in the manner of Cartesian
genetic programming (Miller and Thomson 2000): nodes that no output reaches have no say. Every spelling is legal.

Shapes are symbolic: no model is built to find a graph legal.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

from flexibert.attention_graph import (
    GRAPHS,
    INPUTS,
    MAX_NODES,
    PRIMITIVES,
    UNARY,
    AttentionGraph,
    Node,
    canonical,
    parse_graph,
    softmax_tail,
)

from ..parsing import limited, one_of, parse
from .attention_edits import EDITS, Choose, Program, fit, insert_node
from .parameters import Values, word


TOKEN_WISE = ("neg", "scale", "logsigmoid", "softsign", "softmax", "add")
"""Primitives that make (L, D) of (L, D), each token by itself."""

RESTART_RATE = 0.05
"""Share of mutations that draw a new graph, without which `free` mode would not be connected."""

MAX_GROWTH = 9
"""How fast a value may grow with its inputs, see `growth`; more can overflow in a forward pass."""

_SIDES = ("left", "right")
_TOKENS = ("L", "D")
_PLAIN = canonical(parse_graph(GRAPHS["scaled-dot-product"]))


@dataclass(frozen=True)
class GraphSpace:
    """The attention graphs of one mode whose canonical form has at most `max_nodes` nodes.

    Attributes:
        mode: "tail" or "free", see the module.
        max_nodes: The five nodes of the softmax tail count.
    """

    mode: str = one_of("tail", "free", default="tail")
    max_nodes: int = limited(least=len(_PLAIN.nodes), most=MAX_NODES, default=12)

    @classmethod
    def from_dict(cls, data: Any, path: str = "graph") -> "GraphSpace":
        """Parses plain data; UserError with the path of what is wrong."""
        return parse(cls, data, path, separator=".")

    @cached_property
    def _primitives(self) -> tuple[str, ...]:
        return TOKEN_WISE if self.mode == "tail" else PRIMITIVES

    @cached_property
    def _slots(self) -> range:
        """One for every node that can be searched."""
        return range(self.max_nodes - len(_PLAIN.nodes) if self.mode == "tail" else self.max_nodes)

    @cached_property
    def _outputs(self) -> tuple[str, ...]:
        """What the rest of the graph, or nobody, reads."""
        return ("keys", "values") if self.mode == "tail" else ("result",)

    # --- parameters <-> graph -------------------------------------------------------------------------------------

    @cached_property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Every parameter of a graph and its values."""
        names = (*INPUTS, *(f"node{slot}" for slot in self._slots))
        table: dict[str, tuple[str, ...]] = {}
        for slot in self._slots:
            table[f"node{slot}.primitive"] = self._primitives
            table[f"node{slot}.left"] = table[f"node{slot}.right"] = names[: len(INPUTS) + slot]
        return {**table, **dict.fromkeys(self._outputs, names if self.mode == "tail" else names[len(INPUTS) :])}

    def decode(self, values: Values, prefix: str = "") -> AttentionGraph:
        """The canonical graph that parameter values spell, under names that start with `prefix`.

        In `tail` mode everything fits. In `free` mode an operand that does not fit is replaced by the next value that
        does, and a node that nothing fits is left out. A result that is not (L, D), or does not mix tokens yet, is
        completed to attention: it becomes the keys, the weights, or the matrix that is applied to the queries. Where
        that takes too many nodes the next result counts, in the end scaled dot product attention.
        """
        return self._decode(self._spelled(values, prefix))[0]

    def active(self, values: Values, prefix: str = "") -> list[str]:
        """Names of the parameters of all nodes that the graph uses, and of its outputs."""
        names = self._decode(self._spelled(values, prefix))[1]
        return [prefix + name for name in names]

    def _genes(self, values: Values, prefix: str) -> tuple[str, ...]:
        return tuple(word(values, prefix + name) for name in self.choices)

    @lru_cache(maxsize=1 << 14)  # noqa: B019 - spaces are few and compare by value
    def _decode(self, genes: tuple[str, ...]) -> tuple[AttentionGraph, tuple[str, ...]]:
        values = dict(zip(self.choices, genes))
        shapes = dict.fromkeys(INPUTS, _TOKENS)
        nodes = []
        for slot in self._slots:
            name, primitive = f"node{slot}", values[f"node{slot}.primitive"]
            lefts, rights = ([x for x in self._from(f"{name}.{side}", values) if x in shapes] for side in _SIDES)
            for operands in zip(lefts) if primitive in UNARY else product(lefts, rights):
                shape = fit(primitive, [shapes[operand] for operand in operands])
                if shape is not None:
                    shapes[name] = shape
                    nodes.append(Node(name, primitive, operands))
                    break
        if self.mode == "tail":
            program = Program(tuple(nodes), (values["keys"], values["values"]))
            graph = self._graph(program)
            assert graph is not None  # everything fits
            return graph, self._parameters(program)
        for result in self._from("result", values):
            for completion in _COMPLETIONS[shapes[result]] if result in shapes else ():
                added = completion(result)
                graph = self._graph(Program((*nodes, *added), (added[-1].name if added else result,)))
                if graph is not None:
                    return graph, self._parameters(Program(tuple(nodes), (result,)))
        return _PLAIN, ("result",)

    def _from(self, parameter: str, values: Mapping[str, str]) -> tuple[str, ...]:
        """The values of a parameter, from the chosen one onwards and around."""
        options = self.choices[parameter]
        start = options.index(values[parameter])
        return options[start:] + options[:start]

    def _parameters(self, program: Program) -> tuple[str, ...]:
        """Names of the parameters that a program, whose nodes are named after slots, depends on."""
        nodes = (
            f"{node.name}.{part}" for node in program.live() for part in ("primitive", *_SIDES[: len(node.operands)])
        )
        return (*nodes, *self._outputs)

    def encode(self, graph: AttentionGraph, prefix: str = "") -> dict[str, str]:
        """The parameter values that spell a graph; inverse of `decode`. The others are at their first value.

        Raises:
            ValueError: The graph is not in the space.
        """
        program = self._program(graph)
        values = {name: options[0] for name, options in self.choices.items()}
        names = {node.name: f"node{slot}" for slot, node in enumerate(program.nodes)}
        for node in program.nodes:
            values[f"{names[node.name]}.primitive"] = node.primitive
            for side, operand in zip(_SIDES, node.operands):
                values[f"{names[node.name]}.{side}"] = names.get(operand, operand)
        values.update((name, names.get(x, x)) for name, x in zip(self._outputs, program.outputs))
        return {prefix + name: value for name, value in values.items()}

    def __contains__(self, graph: AttentionGraph) -> bool:
        try:
            self._program(graph)
        except ValueError:
            return False
        return True

    def _graph(self, program: Program) -> AttentionGraph | None:
        """The canonical graph of a program, or None where the space has no such graph."""
        nodes = program.live()
        if self.mode == "tail":
            nodes += _tail(*program.outputs)
        elif not nodes:
            return None
        graph = canonical(AttentionGraph(nodes))
        legal = len(graph.nodes) <= self.max_nodes and graph.mixes_tokens() and growth(graph) <= MAX_GROWTH
        return graph if legal else None

    def _spelled(self, values: Values, prefix: str) -> tuple[str, ...]:
        return tuple(word(values, prefix + name) for name in self.choices)

    @lru_cache(maxsize=1 << 14)  # noqa: B019 - spaces are few and compare by value
    def _program(self, graph: AttentionGraph) -> Program:
        """The searched part of a graph's canonical form; ValueError where it is not in the space."""
        graph = canonical(graph)
        tail = softmax_tail(graph)
        if self.mode == "free":
            program = Program(graph.nodes, (graph.nodes[-1].name,))
        elif tail is not None and all(node.primitive in TOKEN_WISE for node in tail.prefix):
            program = Program(tail.prefix, (tail.keys, tail.values))
        else:
            program = None
        if program is None or self._graph(program) != graph:
            raise ValueError(f"the graph is not in the space: {'; '.join(graph.lines)}")
        return program

    # --- moving about ---------------------------------------------------------------------------------------------

    def sample(self, rng: random.Random) -> AttentionGraph:
        """A random graph; every parameter uniform over its values."""
        return self.decode({name: rng.choice(options) for name, options in self.choices.items()})

    def mutate(self, graph: AttentionGraph, rng: random.Random, choose: Choose | None = None) -> AttentionGraph:
        """A canonical graph that is one edit away.

        An edit changes a primitive or an operand, inserts or deletes a node, or, rarely, draws a new graph.

        Args:
            graph: A member of the space.
            rng: Source of all randomness.
            choose: Picks a new primitive; uniformly by default.

        Raises:
            ValueError: `graph` is not in the space.
        """
        program, graph = self._program(graph), canonical(graph)
        choose = choose or (lambda position, options: rng.choice(options))
        full = len(program.nodes) == len(self._slots)
        edits = [edit for edit in EDITS if not (full and edit is insert_node)]
        while True:
            if rng.random() < RESTART_RATE:
                mutant: AttentionGraph | None = self.sample(rng)
            else:
                edited = rng.choice(edits)(program, self._primitives, rng, choose)
                mutant = None if edited is None else self._graph(edited)
            if mutant is not None and mutant != graph:
                return mutant


def growth(graph: AttentionGraph) -> int:
    """The largest power with which a value of the graph can grow with its inputs and with the length of its sums.

    Inputs have growth 1, bounded primitives reset it to 0, products add their operands' and one for their sum: scores
    have 3, softmax attention 2 and linear attention 5.
    """
    values = dict.fromkeys(INPUTS, 1)
    for node in graph.nodes:
        operands = [values[operand] for operand in node.operands]
        if node.primitive in ("softmax", "softsign", "cosine_similarity"):
            values[node.name] = 0
        else:
            values[node.name] = sum(operands) + 1 if node.primitive == "matmul" else max(operands)
    return max(values.values())


def _tail(keys: str, values: str) -> tuple[Node, ...]:
    """Attention of the queries to keys and values of shape (L, D)."""
    return Node("transposed", "transpose", (keys,)), *_attend("transposed", values)


def _attend(keys: str, values: str) -> tuple[Node, ...]:
    """Attention of the queries to transposed keys."""
    return (
        Node("scores", "matmul", ("q", keys)),
        Node("scaled", "scale", ("scores",)),
        Node("weights", "softmax", ("scaled",)),
        Node("out", "matmul", ("weights", values)),
    )


_COMPLETIONS: dict[tuple[str, str], tuple[Callable[[str], tuple[Node, ...]], ...]] = {
    ("L", "D"): (lambda result: (), lambda result: _tail(result, "v")),
    ("D", "L"): (lambda result: _attend(result, "v"),),
    ("L", "L"): (lambda result: (Node("out", "matmul", (result, "v")),),),
    ("D", "D"): (lambda result: (Node("out", "matmul", ("q", result)),),),
}
"""Shape of a result -> nodes to add, in order of preference, that make it attention."""
