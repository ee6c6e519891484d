"""What may be searched: named choices, and the architectures that they spell.

A space is a table of categorical parameters (`layer2.operation`, `layer2.num_heads`, ...) and a pair of functions
between values for them and architectures. Everything else (sampling, mutation, membership, Optuna's define-by-run
`suggest`) follows from the table. FlexiBERT's space (arXiv 2205.11656, Section 3.1 and Table 1) is the recipe
`flexibert`; its hierarchy levels and FlexiBERT 2's mixed heads are other values of the same fields. AutoBERT-Zero's
space (arXiv 2107.07445) adds an attention graph of its own to every layer, spelled by parameters, see
`attention_space.py`.

All parameters are always present, also those of layers beyond the chosen depth, because Optuna's relative samplers
(GP, multivariate TPE, CMA-ES) model only what every trial has. `active` tells which of them count.
"""

import dataclasses
import math
import random
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna

from flexibert.attention_graph import GRAPHS, AttentionGraph, parse_graph, show
from flexibert.spec import (
    MAX_LAYERS,
    MAX_WIDTH,
    OPERATIONS,
    Architecture,
    LayerSpec,
    OperationSpec,
    SearchedAttention,
)

from ..errors import UserError
from ..parsing import limited, parse, several
from .attention_edits import Choose
from .attention_space import GraphSpace
from .parameters import HIDDEN_SIZE, NUM_LAYERS, Parameter, Unit, Value, Values, number, word


_FEED_FORWARD = LayerSpec.__dataclass_fields__["feed_forward"].metadata
"""Limits of a layer's own."""


@dataclass(frozen=True)
class SearchSpace:
    """Choices for every part of an encoder.

    Attributes:
        num_layers: Depths.
        hidden_size: Widths of a layer.
        num_heads: Head counts of a layer.
        operations: Operations of a group of heads, as plain data without `num_heads`. One of them may be a searched
            graph, `{"op": "attention_graph", "graph": {"mode": "tail", "max_nodes": 12}}`, see `GraphSpace`.
        feed_forward_size: Widths of a hidden feed-forward layer.
        feed_forward_depth: Numbers of hidden feed-forward layers.
        layers_per_stack: So many consecutive layers are equal (2 at the first level of FlexiBERT's hierarchy).
        shared_hidden_size: All layers have the same width, as in NAS-Bench-BERT.
        mixed_feed_forward: Hidden feed-forward layers of one layer may differ in width.
        mixed_heads: Heads of one layer may differ in operation (FlexiBERT 2).
        head_size: Features per head; by default hidden size / number of heads.
        restrictions: Parameter name -> the values it may still take, see `restrict`.
    """

    num_layers: tuple[int, ...] = several(least=1, most=MAX_LAYERS)
    hidden_size: tuple[int, ...] = several(least=1, most=MAX_WIDTH)
    num_heads: tuple[int, ...] = several(least=1, most=MAX_WIDTH)
    operations: tuple[Mapping[str, Any], ...] = several(
        parse=lambda data, path: _parse_operation(data, path), noun="operations"
    )
    feed_forward_size: tuple[int, ...] = several(least=1, most=_FEED_FORWARD["maximum"])
    feed_forward_depth: tuple[int, ...] = several(least=1, most=_FEED_FORWARD["max_length"], default=(1,))
    layers_per_stack: int = limited(least=1, most=MAX_LAYERS, default=1)
    shared_hidden_size: bool = False
    mixed_feed_forward: bool = False
    mixed_heads: bool = False
    head_size: int | None = limited(least=1, most=MAX_WIDTH, default=None)
    restrictions: Mapping[str, tuple[Value, ...]] = dataclasses.field(default_factory=dict, metadata={"data": False})

    def __hash__(self) -> int:
        return hash((self.num_layers, self.hidden_size, self.num_heads, self.feed_forward_size, len(self.operations)))

    @classmethod
    def from_dict(cls, data: Any, path: str = "space") -> "SearchSpace":
        """Parses plain data; UserError with the path of what is wrong."""
        space = parse(cls, data, path, separator=".")
        space._check(path)
        return space

    def to_dict(self) -> dict[str, Any]:
        """The plain data that `from_dict` reads."""
        data = dataclasses.asdict(self)
        del data["restrictions"]
        data = {name: value for name, value in data.items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}

    def _check(self, path: str) -> None:
        """Builds every combination that could be illegal, so that no trial ever is."""
        if (
            self.graph_space is not None
            and sum(choice["op"] == SearchedAttention.op for choice in self.operations) > 1
        ):
            raise UserError(f"{path}.operations: a searched graph beside another attention_graph")
        probe = parse_graph(GRAPHS["scaled-dot-product"])
        if any(depth % self.layers_per_stack for depth in self.num_layers):
            raise UserError(f"{path}.num_layers: every depth must be a multiple of layers_per_stack")
        for index, operation in enumerate(self.operations):
            for hidden_size in self.hidden_size:
                for heads in self.num_heads:
                    try:
                        self._layer(hidden_size, [_group(operation, heads, probe)], [self.feed_forward_size[0]])
                    except ValueError as error:
                        reason = str(error).split(": ", 1)[-1]
                        where = f"{path}.operations[{index}] with hidden_size {hidden_size} and num_heads {heads}"
                        raise UserError(f"{where}: {reason}") from None

    # --- the table ------------------------------------------------------------------------------------------------

    @cached_property
    def table(self) -> dict[str, Parameter]:
        """Every parameter by name, in a fixed order."""
        table = {NUM_LAYERS: Parameter(self.num_layers, "num_layers")}
        if self.shared_hidden_size:
            table[HIDDEN_SIZE] = Parameter(self.hidden_size, "hidden_size")
        for unit in self.units:
            parts: list[tuple[str, str, tuple[Value, ...]]] = []
            if not self.shared_hidden_size:
                parts.append((unit.hidden_size, "hidden_size", self.hidden_size))
            parts.append((unit.num_heads, "num_heads", self.num_heads))
            parts += [(name, "operation", tuple(self._by_label)) for name in unit.operations]
            if self.graph_space is not None:
                parts += [(unit.graph + name, "graph", values) for name, values in self.graph_space.choices.items()]
            parts.append((unit.feed_forward_depth, "feed_forward_depth", self.feed_forward_depth))
            parts += [(name, "feed_forward_size", self.feed_forward_size) for name in unit.feed_forward_sizes]
            table.update((name, unit.parameter(name, part, values)) for name, part, values in parts)
        for name, values in self.restrictions.items():
            table[name] = dataclasses.replace(table[name], values=values)
        return table

    @cached_property
    def choices(self) -> dict[str, tuple[Value, ...]]:
        """Every parameter and its values, in the order of the table."""
        return {name: parameter.values for name, parameter in self.table.items()}

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """What is chosen independently: layers, or stacks of equal layers."""
        kind = "layer" if self.layers_per_stack == 1 else "stack"
        mixed = (self.shared_hidden_size, self.mixed_heads, self.mixed_feed_forward)
        bounds = (max(self.num_heads), max(self.feed_forward_depth))
        count = max(self.num_layers) // self.layers_per_stack
        return tuple(Unit(f"{kind}{index}", *bounds, *mixed) for index in range(count))

    def _units(self, num_layers: int) -> tuple[Unit, ...]:
        """The units of an encoder of this depth."""
        return self.units[: num_layers // self.layers_per_stack]

    @cached_property
    def _by_label(self) -> dict[str, Mapping[str, Any]]:
        """Readable value of an operation parameter -> the operation."""
        return {operation_label(operation): operation for operation in self.operations}

    @cached_property
    def graph_space(self) -> GraphSpace | None:
        """The graphs that a layer's searched attention may have, or None where no operation is searched."""
        graphs = [operation["graph"] for operation in self.operations if "graph" in operation]
        return GraphSpace.from_dict(graphs[0]) if graphs else None

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """The table as Optuna's distributions."""
        return dict(self._distributions)

    @cached_property
    def _distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        return {name: optuna.distributions.CategoricalDistribution(values) for name, values in self.choices.items()}

    def kind(self, value: Value) -> str:
        """The operation that a label stands for, without its parameters; other values are kinds of their own."""
        operation = self._by_label.get(str(value))
        return str(value if operation is None else operation["op"])

    def active(self, values: Values) -> list[str]:
        """Names of the parameters that have a say in `build(values)`."""
        names = [NUM_LAYERS] + [HIDDEN_SIZE] * self.shared_hidden_size
        for unit in self._units(number(values, NUM_LAYERS)):
            names += [unit.hidden_size] * (not self.shared_hidden_size)
            names += [unit.num_heads, *unit.operations[: number(values, unit.num_heads)]]
            if self.graph_space is not None and self._has_graph(unit, values):
                names += self.graph_space.active(values, unit.graph)
            depth = number(values, unit.feed_forward_depth)
            names += [unit.feed_forward_depth, *unit.feed_forward_sizes[:depth]]
        return names

    def _has_graph(self, unit: Unit, values: Values) -> bool:
        heads = unit.operations[: number(values, unit.num_heads)]
        return any("graph" in self._by_label[word(values, name)] for name in heads)

    def graphs(self, values: Values) -> dict[str, AttentionGraph]:
        """The searched graphs that these parameter values spell, by unit (`layer3`)."""
        space = self.graph_space
        if space is None:
            return {}
        units = [unit for unit in self._units(number(values, NUM_LAYERS)) if self._has_graph(unit, values)]
        return {unit.name: space.decode(values, unit.graph) for unit in units}

    # --- values <-> architecture ----------------------------------------------------------------------------------

    def build(self, values: Values) -> Architecture:
        """The architecture that these values spell. Equal heads are grouped, in the order of `operations`."""
        layers: list[LayerSpec] = []
        graphs = self.graphs(values)
        for unit in self._units(number(values, NUM_LAYERS)):
            heads = number(values, unit.num_heads)
            labels = [word(values, name) for name in unit.operations[:heads]]
            if self.mixed_heads:
                counts = [(operation, labels.count(label)) for label, operation in self._by_label.items()]
            else:
                counts = [(self._by_label[labels[0]], heads)]
            depth = number(values, unit.feed_forward_depth)
            sizes = [number(values, name) for name in unit.feed_forward_sizes[:depth]]
            sizes = sizes if self.mixed_feed_forward else sizes * depth
            groups = [_group(operation, count, graphs.get(unit.name)) for operation, count in counts if count]
            layer = self._layer(number(values, unit.hidden_size), groups, sizes)
            layers += [layer] * self.layers_per_stack
        return tuple(layers)

    def _layer(self, hidden_size: int, groups: list[OperationSpec], feed_forward: list[int]) -> LayerSpec:
        return LayerSpec(hidden_size, tuple(groups), tuple(feed_forward), self.head_size)

    def parameters(self, layers: Sequence[LayerSpec]) -> dict[str, Value]:
        """The parameter values that spell an architecture; inverse of `build`. Parameters without a say are at their
        first value.

        Raises:
            ValueError: The architecture is not in the space.
        """
        values: dict[str, Value] = {name: options[0] for name, options in self.choices.items()}
        values[NUM_LAYERS] = len(layers)
        for unit, layer in zip(self.units, layers[:: self.layers_per_stack]):
            labels = []
            for group in layer.operations:
                label = operation_label(group.to_dict())
                if self.graph_space is not None and isinstance(group, SearchedAttention):
                    label = group.op
                    values.update(self.graph_space.encode(group.graph, unit.graph))
                labels += [label] * group.num_heads
            values[unit.hidden_size] = layer.hidden_size
            values[unit.num_heads] = layer.num_heads
            values.update(zip(unit.operations, labels))
            values[unit.feed_forward_depth] = len(layer.feed_forward)
            values.update(zip(unit.feed_forward_sizes, layer.feed_forward))
        legal = all(values[name] in options for name, options in self.choices.items())
        if not legal or self.build(values) != tuple(layers):
            raise ValueError("the architecture is not in the space")
        return values

    def __contains__(self, layers: Sequence[LayerSpec]) -> bool:
        try:
            self.parameters(layers)
        except ValueError:
            return False
        return True

    # --- moving about ---------------------------------------------------------------------------------------------

    def suggest(self, trial: optuna.trial.BaseTrial) -> Architecture:
        """Asks an Optuna trial for every parameter and builds the architecture; works with any sampler."""
        suggested = {name: trial.suggest_categorical(name, values) for name, values in self.choices.items()}
        return self.build(typing.cast(Values, suggested))  # one of the values, which are texts and whole numbers

    def sample(self, rng: random.Random) -> Architecture:
        """A random member; every parameter uniform over its values."""
        return self.build(self.sample_values(rng))

    def sample_values(self, rng: random.Random) -> dict[str, Value]:
        """Random values for all parameters."""
        return {name: rng.choice(values) for name, values in self.choices.items()}

    def mutate(self, layers: Sequence[LayerSpec], rng: random.Random) -> Architecture:
        """A member that differs in one parameter, or by one edit of one graph (a larger depth brings random layers).

        Raises:
            ValueError: The space has no other member, or `layers` is not in it.
        """
        return self.build(self.mutate_values(self.parameters(layers), rng))

    def mutate_values(self, values: Values, rng: random.Random) -> dict[str, Value]:
        """`mutate` on normal parameter values, without building layers."""
        movable = self.movable(values)
        if not movable:
            raise ValueError("the space has one member only, nothing can be mutated")
        while True:
            name = rng.choice(movable)
            unit = self.table[name].unit
            if unit is not None and self.table[name].spells_graph:
                return self.mutate_graph(values, unit, rng)
            value = rng.choice([value for value in self.choices[name] if value != values[name]])
            mutant = self.change(values, name, value, rng)
            if mutant != values:  # mixed heads: another order of the same heads is the same layer
                return mutant

    def movable(self, values: Values) -> list[str]:
        """Names of the active parameters that have other values."""
        return [name for name in self.active(values) if len(self.choices[name]) > 1]

    def change(self, values: Values, name: str, value: Value, rng: random.Random) -> dict[str, Value]:
        """Normal values with one changed; parameters that only now have a say are drawn at random."""
        unit = self.table[name].unit
        active = set(self.active(values))
        fresh = {
            other: rng.choice(parameter.values)
            for other, parameter in self.table.items()
            if other not in active and unit in (None, parameter.unit)
        }
        return self.normalize({**values, **fresh, name: value})

    def mutate_graph(
        self, values: Values, unit: str, rng: random.Random, choose: Choose | None = None
    ) -> dict[str, Value]:
        """Normal values with one edit of a unit's graph; `choose` as in `GraphSpace.mutate`, for full names."""
        space = self.graph_space
        if space is None:
            raise ValueError("the space has no searched graphs")
        prefix = next(one.graph for one in self.units if one.name == unit)
        graph = space.decode(values, prefix)
        named = None if choose is None else lambda position, options: choose(prefix + position, options)
        return {**values, **space.encode(space.mutate(graph, rng, named), prefix)}

    def normalize(self, values: Values) -> dict[str, Value]:
        """The values of `parameters(build(values))`, without building layers: equal where architectures are."""
        normal = {name: options[0] for name, options in self.choices.items()}
        normal.update((name, values[name]) for name in self.active(values) if not self.table[name].spells_graph)
        graphs = self.graphs(values)
        for unit in self.units:
            if self.graph_space is not None and unit.name in graphs:
                normal.update(self.graph_space.encode(graphs[unit.name], unit.graph))
        if self.mixed_heads:
            order = list(self._by_label)
            for unit in self._units(number(values, NUM_LAYERS)):
                names = unit.operations[: number(values, unit.num_heads)]
                labels = sorted((word(normal, name) for name in names), key=lambda label: order.index(label))
                normal.update(zip(names, labels))
        return normal

    def restrict(self, choices: Mapping[str, Sequence[Value]]) -> "SearchSpace":
        """The part of the space in which the named parameters take only these values."""
        for name, values in choices.items():
            if name in self.table and self.table[name].spells_graph:
                raise ValueError(f"{name}: the nodes of a graph cannot be restricted, only the operation")
            unknown = [value for value in values if value not in self.choices.get(name, ())]
            if unknown or not values:
                raise ValueError(f"{name}: {unknown or 'no value'} is not in the space")
        ordered = {name: tuple(v for v in self.choices[name] if v in values) for name, values in choices.items()}
        return dataclasses.replace(self, restrictions={**self.restrictions, **ordered})

    def size(self) -> int | None:
        """Exact number of different architectures (FlexiBERT's space: 3,317,817,600); None with a searched graph,
        whose different functions nobody has counted."""
        if self.graph_space is not None:
            return None
        sizes = []
        for depth in self.choices[NUM_LAYERS]:
            shared = len(self.choices[HIDDEN_SIZE]) if self.shared_hidden_size else 1
            sizes.append(shared * math.prod(self._unit_size(unit) for unit in self._units(int(depth))))
        return sum(sizes)

    def _unit_size(self, unit: Unit) -> int:
        options = self.choices
        widths = 1 if self.shared_hidden_size else len(options[unit.hidden_size])
        mixtures = sum(
            _multisets([options[name] for name in unit.operations[: int(heads)]]) for heads in options[unit.num_heads]
        )
        feed_forwards = sum(
            math.prod(len(options[name]) for name in unit.feed_forward_sizes[: int(depth)])
            for depth in options[unit.feed_forward_depth]
        )
        return widths * mixtures * feed_forwards


def _multisets(options: list[tuple[Value, ...]]) -> int:
    """How many different multisets a choice from each of these option lists can give."""
    if all(option == options[0] for option in options):
        return math.comb(len(options[0]) + len(options) - 1, len(options))
    reachable: set[tuple[Value, ...]] = {()}
    for option in options:
        reachable = {tuple(sorted((*chosen, value), key=str)) for chosen in reachable for value in option}
    return len(reachable)


def operation_label(operation: Mapping[str, Any]) -> str:
    """Readable name of an operation as the value of a parameter: `dynamic_convolution(kernel_size=5)`."""
    defaults = {f.name: f.default for f in dataclasses.fields(OPERATIONS[operation["op"]])}
    shown = sorted(key for key in operation if key not in ("op", "num_heads", "graph"))
    details = [f"{key}={operation[key]}" for key in shown if operation[key] != defaults[key]]
    return f"{operation['op']}({', '.join(details)})" if details else str(operation["op"])


def _group(choice: Mapping[str, Any], heads: int, graph: AttentionGraph | None) -> OperationSpec:
    """The operation that a choice stands for, as a group of heads; the searched one gets this graph."""
    if "graph" in choice and graph is not None:
        return SearchedAttention(heads, graph.lines)
    return OperationSpec.from_dict({**choice, "num_heads": heads})


def _parse_operation(data: Any, path: str) -> Mapping[str, Any]:
    if isinstance(data, dict) and data.get("op") == SearchedAttention.op and "graph" in data:
        for key in data:
            if key not in ("op", "graph"):
                raise UserError(f"{path}: unknown key {show(key)} beside graph")
        GraphSpace.from_dict(data["graph"], f"{path}.graph")
        return data
    try:
        operation = OperationSpec.from_dict({**data, "num_heads": 2} if isinstance(data, dict) else data, path)
    except ValueError as error:
        raise UserError(str(error)) from None
    return {key: value for key, value in operation.to_dict().items() if key != "num_heads"}


def random_values(space: SearchSpace, rng: random.Random) -> Values:
    """Normal values of a random architecture, every operation first by its kind and then by its parameters."""
    return space.normalize({name: draw_by_kind(space, options, rng) for name, options in space.choices.items()})


def draw_by_kind(space: SearchSpace, options: Sequence[Value], rng: random.Random) -> Value:
    """A random value, first by kind of operation: seven kernels of a convolution do not outvote one attention."""
    kinds: dict[str, list[Value]] = {}
    for option in options:
        kinds.setdefault(space.kind(option), []).append(option)
    return rng.choice(rng.choice(list(kinds.values())))
