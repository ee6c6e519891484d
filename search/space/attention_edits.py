"""Small typed changes of attention graphs: AutoML-Zero's mutations (arXiv 2003.03384) with symbolic shapes."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flexibert.attention_graph import INPUTS, UNARY, Node, result_shape


Shape = tuple[str, str]

Choose = Callable[[str, Sequence[str]], str]
Options = dict[str, list[tuple[str, ...]]]
"""Takes a position (`node3.primitive`) and the legal primitives there, and picks one."""


@dataclass(frozen=True)
class Program:
    """The part of a graph that may change.

    A place where a value is read is (node, operand), or (number of nodes, output).

    Attributes:
        nodes: In order, each reads inputs and earlier nodes.
        outputs: The values that leave them.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def known(self, index: int) -> dict[str, Shape]:
        """Shapes of all values that node `index` may read."""
        shapes: dict[str, Shape] = dict.fromkeys(INPUTS, ("L", "D"))
        for node in self.nodes[:index]:
            shapes[node.name] = result_shape(node.primitive, [shapes[operand] for operand in node.operands])
        return shapes

    def live(self) -> tuple[Node, ...]:
        """The nodes that the outputs depend on."""
        names = set(self.outputs)
        for node in reversed(self.nodes):
            if node.name in names:
                names.update(node.operands)
        return tuple(node for node in self.nodes if node.name in names)

    def places(self) -> list[tuple[int, int]]:
        """Every place where a value is read."""
        return [(i, j) for i, reader in enumerate(self._readers()) for j in range(len(reader))]

    def read(self, place: tuple[int, int]) -> str:
        """The value that is read there."""
        return self._readers()[place[0]][place[1]]

    def redirect(self, place: tuple[int, int], value: str) -> "Program":
        """The program that reads another value there."""
        readers = [list(reader) for reader in self._readers()]
        readers[place[0]][place[1]] = value
        nodes = (Node(node.name, node.primitive, tuple(reader)) for node, reader in zip(self.nodes, readers))
        return Program(tuple(nodes), tuple(readers[-1]))

    def _readers(self) -> list[tuple[str, ...]]:
        return [*(node.operands for node in self.nodes), self.outputs]


def fit(primitive: str, shapes: Sequence[Shape]) -> Shape | None:
    """Shape of a primitive's result, or None where it does not take operands of these shapes."""
    try:
        return result_shape(primitive, shapes)
    except ValueError:
        return None


# An edit takes a program, the primitives of the space, a source of randomness, and who chooses a primitive. It returns
# another program, in which nodes may be dead or double, or None where it found nothing to do.


def change_primitive(
    program: Program, primitives: Sequence[str], rng: random.Random, choose: Choose
) -> Program | None:
    """Another primitive on one of a node's operands, with a result of the same shape."""
    if not program.nodes:
        return None
    index = rng.choice(range(len(program.nodes)))
    node = program.nodes[index]
    shape = program.known(index + 1)[node.name]
    options = _applications(primitives, rng.choice(node.operands), shape, program.known(index))
    options.pop(node.primitive, None)
    if not options:
        return None
    primitive = choose(f"node{index}.primitive", list(options))
    changed = Node(node.name, primitive, rng.choice(options[primitive]))
    return Program((*program.nodes[:index], changed, *program.nodes[index + 1 :]), program.outputs)


def insert_node(program: Program, primitives: Sequence[str], rng: random.Random, choose: Choose) -> Program | None:
    """A new node between a value and one of its readers."""
    place = rng.choice(program.places())
    index, value = place[0], program.read(place)
    known = program.known(index)
    options = _applications(primitives, value, known[value], known)
    primitive = choose(f"node{index}.primitive", list(options))
    node = Node("new", primitive, rng.choice(options[primitive]))
    program = program.redirect(place, node.name)
    return Program((*program.nodes[:index], node, *program.nodes[index:]), program.outputs)


def change_operand(program: Program, primitives: Sequence[str], rng: random.Random, choose: Choose) -> Program | None:
    """Another value of the same shape in one place."""
    place = rng.choice(program.places())
    known, value = program.known(place[0]), program.read(place)
    others = [other for other, shape in known.items() if shape == known[value] and other != value]
    return program.redirect(place, rng.choice(others)) if others else None


def delete_node(program: Program, primitives: Sequence[str], rng: random.Random, choose: Choose) -> Program | None:
    """One node less: its readers get one of its operands."""
    if not program.nodes:
        return None
    node = rng.choice(program.nodes)
    shapes = program.known(len(program.nodes))
    operands = [operand for operand in node.operands if shapes[operand] == shapes[node.name]]
    if not operands:
        return None
    operand = rng.choice(operands)
    for place in program.places():
        if program.read(place) == node.name:
            program = program.redirect(place, operand)
    return program


EDITS = (change_primitive, insert_node, change_operand, delete_node)


def _applications(primitives: Sequence[str], value: str, shape: Shape, known: dict[str, Shape]) -> Options:
    """Primitive -> operands out of `known`, `value` among them, whose result has this shape."""
    pairs: list[tuple[str, ...]] = [(value, other) for other in known]
    pairs += [(other, value) for other in known if other != value]
    alone: list[tuple[str, ...]] = [(value,)]
    options = {
        primitive: [
            operands
            for operands in (alone if primitive in UNARY else pairs)
            if fit(primitive, [known[operand] for operand in operands]) == shape
        ]
        for primitive in primitives
    }
    return {primitive: operands for primitive, operands in options.items() if operands}
