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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna

from flexibert.attention_graph import GRAPHS, AttentionGraph, parse_graph
from flexibert.spec import OPERATIONS, Architecture, LayerSpec, OperationSpec, SearchedAttention

from ..errors import UserError
from ..parsing import limited, parse, several
from .attention_edits import Choose
from .attention_space import GraphSpace


Value = str | int

Values = Mapping[str, Value]
"""Normal parameter values of an architecture, see `SearchSpace.normalize`."""


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

    num_layers: tuple[int, ...] = several(least=1)
    hidden_size: tuple[int, ...] = several(least=1)
    num_heads: tuple[int, ...] = several(least=1)
    operations: tuple[Mapping[str, Any], ...] = several(
        parse=lambda data, path: _parse_operation(data, path), noun="operations"
    )
    feed_forward_size: tuple[int, ...] = several(least=1)
    feed_forward_depth: tuple[int, ...] = several(least=1, default=(1,))
    layers_per_stack: int = limited(least=1, default=1)
    shared_hidden_size: bool = False
    mixed_feed_forward: bool = False
    mixed_heads: bool = False
    head_size: int | None = limited(least=1, default=None)
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
    def choices(self) -> dict[str, tuple[Value, ...]]:
        """Every parameter and its values, in a fixed order."""
        table: dict[str, tuple[Value, ...]] = {"num_layers": self.num_layers}
        if self.shared_hidden_size:
            table["hidden_size"] = self.hidden_size
        for unit in self._units(max(self.num_layers)):
            if not self.shared_hidden_size:
                table[f"{unit}.hidden_size"] = self.hidden_size
            table[f"{unit}.num_heads"] = self.num_heads
            for name in self._operation_names(unit, max(self.num_heads)):
                table[name] = tuple(self._by_label)
            if self.graph_space is not None:
                table.update((f"{unit}.graph.{name}", values) for name, values in self.graph_space.choices.items())
            table[f"{unit}.feed_forward_depth"] = self.feed_forward_depth
            for name in self._feed_forward_names(unit, max(self.feed_forward_depth)):
                table[name] = self.feed_forward_size
        return {name: self.restrictions.get(name, values) for name, values in table.items()}

    def _units(self, num_layers: int) -> list[str]:
        """Names of what is chosen independently: layers, or stacks of equal layers."""
        kind = "layer" if self.layers_per_stack == 1 else "stack"
        return [f"{kind}{index}" for index in range(num_layers // self.layers_per_stack)]

    def _operation_names(self, unit: str, heads: int) -> list[str]:
        return [f"{unit}.head{head}" for head in range(heads)] if self.mixed_heads else [f"{unit}.operation"]

    def _feed_forward_names(self, unit: str, depth: int) -> list[str]:
        if self.mixed_feed_forward:
            return [f"{unit}.feed_forward_size{index}" for index in range(depth)]
        return [f"{unit}.feed_forward_size"]

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

    def active(self, values: Mapping[str, Value]) -> list[str]:
        """Names of the parameters that have a say in `build(values)`."""
        names = ["num_layers"] + ["hidden_size"] * self.shared_hidden_size
        for unit in self._units(values["num_layers"]):
            names += [f"{unit}.hidden_size"] * (not self.shared_hidden_size)
            names += [f"{unit}.num_heads", *self._operation_names(unit, values[f"{unit}.num_heads"])]
            if self._has_graph(unit, values):
                names += self.graph_space.active(values, f"{unit}.graph.")
            names += [f"{unit}.feed_forward_depth"]
            names += self._feed_forward_names(unit, values[f"{unit}.feed_forward_depth"])
        return names

    def _has_graph(self, unit: str, values: Mapping[str, Value]) -> bool:
        heads = self._operation_names(unit, values[f"{unit}.num_heads"])
        return self.graph_space is not None and any("graph" in self._by_label[values[name]] for name in heads)

    def graphs(self, values: Mapping[str, Value]) -> dict[str, AttentionGraph]:
        """The searched graphs that these parameter values spell, by unit (`layer3`)."""
        units = [unit for unit in self._units(values["num_layers"]) if self._has_graph(unit, values)]
        return {unit: self.graph_space.decode(values, f"{unit}.graph.") for unit in units}

    # --- values <-> architecture ----------------------------------------------------------------------------------

    def build(self, values: Mapping[str, Value]) -> Architecture:
        """The architecture that these values spell. Equal heads are grouped, in the order of `operations`."""
        layers, graphs = [], self.graphs(values)
        for unit in self._units(values["num_layers"]):
            heads = values[f"{unit}.num_heads"]
            labels = [values[name] for name in self._operation_names(unit, heads)]
            if self.mixed_heads:
                groups = [(operation, labels.count(label)) for label, operation in self._by_label.items()]
            else:
                groups = [(self._by_label[labels[0]], heads)]
            depth = values[f"{unit}.feed_forward_depth"]
            sizes = [values[name] for name in self._feed_forward_names(unit, depth)]
            sizes = sizes if self.mixed_feed_forward else sizes * depth
            hidden_size = values["hidden_size" if self.shared_hidden_size else f"{unit}.hidden_size"]
            groups = [_group(operation, count, graphs.get(unit)) for operation, count in groups if count]
            layer = self._layer(hidden_size, groups, sizes)
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
        values["num_layers"] = len(layers)
        if self.shared_hidden_size and layers:
            values["hidden_size"] = layers[0].hidden_size
        for unit, layer in zip(self._units(len(layers)), layers[:: self.layers_per_stack]):
            labels = []
            for group in layer.operations:
                label = operation_label(group.to_dict())
                if self.graph_space is not None and group.op == SearchedAttention.op:
                    label = group.op
                    values.update(self.graph_space.encode(group.graph, f"{unit}.graph."))
                labels += [label] * group.num_heads
            values[f"{unit}.hidden_size"] = layer.hidden_size
            values[f"{unit}.num_heads"] = layer.num_heads
            values.update(zip(self._operation_names(unit, layer.num_heads), labels))
            values[f"{unit}.feed_forward_depth"] = len(layer.feed_forward)
            names = self._feed_forward_names(unit, len(layer.feed_forward))
            values.update(zip(names, layer.feed_forward))
        values = {name: value for name, value in values.items() if name != "hidden_size" or self.shared_hidden_size}
        if self.shared_hidden_size:
            values = {name: value for name, value in values.items() if not name.endswith(".hidden_size")}
        legal = values.keys() == self.choices.keys() and all(values[name] in self.choices[name] for name in values)
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
        return self.build({name: trial.suggest_categorical(name, values) for name, values in self.choices.items()})

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

    def mutate_values(self, values: Mapping[str, Value], rng: random.Random) -> dict[str, Value]:
        """`mutate` on normal parameter values, without building layers."""
        movable = self.movable(values)
        if not movable:
            raise ValueError("the space has one member only, nothing can be mutated")
        while True:
            name = rng.choice(movable)
            if ".graph." in name:
                return self.mutate_graph(values, name.partition(".")[0], rng)
            value = rng.choice([value for value in self.choices[name] if value != values[name]])
            mutant = self.change(values, name, value, rng)
            if mutant != values:  # mixed heads: another order of the same heads is the same layer
                return mutant

    def movable(self, values: Mapping[str, Value]) -> list[str]:
        """Names of the active parameters that have other values."""
        return [name for name in self.active(values) if len(self.choices[name]) > 1]

    def change(self, values: Mapping[str, Value], name: str, value: Value, rng: random.Random) -> dict[str, Value]:
        """Normal values with one changed; parameters that only now have a say are drawn at random."""
        unit, dot, _ = name.partition(".")
        active = set(self.active(values))
        fresh = {
            other: rng.choice(options)
            for other, options in self.choices.items()
            if other not in active and (not dot or other.startswith(unit + dot))
        }
        return self.normalize({**values, **fresh, name: value})

    def mutate_graph(
        self, values: Mapping[str, Value], unit: str, rng: random.Random, choose: Choose | None = None
    ) -> dict[str, Value]:
        """Normal values with one edit of a unit's graph; `choose` as in `GraphSpace.mutate`, for full names."""
        prefix = f"{unit}.graph."
        graph = self.graph_space.decode(values, prefix)
        named = None if choose is None else lambda position, options: choose(prefix + position, options)
        return {**values, **self.graph_space.encode(self.graph_space.mutate(graph, rng, named), prefix)}

    def normalize(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """The values of `parameters(build(values))`, without building layers: equal where architectures are."""
        normal = {name: options[0] for name, options in self.choices.items()}
        normal.update((name, values[name]) for name in self.active(values) if ".graph." not in name)
        for unit, graph in self.graphs(values).items():
            normal.update(self.graph_space.encode(graph, f"{unit}.graph."))
        if self.mixed_heads:
            order = list(self._by_label)
            for unit in self._units(values["num_layers"]):
                names = self._operation_names(unit, values[f"{unit}.num_heads"])
                normal.update(zip(names, sorted((normal[name] for name in names), key=order.index)))
        return normal

    def restrict(self, choices: Mapping[str, Sequence[Value]]) -> "SearchSpace":
        """The part of the space in which the named parameters take only these values."""
        for name, values in choices.items():
            if ".graph." in name:
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
        for depth in self.choices["num_layers"]:
            shared = self.choices["hidden_size"] if self.shared_hidden_size else (None,)
            sizes.append(len(shared) * math.prod(self._unit_size(unit) for unit in self._units(depth)))
        return sum(sizes)

    def _unit_size(self, unit: str) -> int:
        options = self.choices
        widths = 1 if self.shared_hidden_size else len(options[f"{unit}.hidden_size"])
        mixtures = sum(
            _multisets([options[name] for name in self._operation_names(unit, heads)])
            for heads in options[f"{unit}.num_heads"]
        )
        feed_forwards = sum(
            math.prod(len(options[name]) for name in self._feed_forward_names(unit, depth))
            for depth in options[f"{unit}.feed_forward_depth"]
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
    return operation["op"] + (f"({', '.join(details)})" if details else "")


def _group(choice: Mapping[str, Any], heads: int, graph: AttentionGraph | None) -> OperationSpec:
    """The operation that a choice stands for, as a group of heads; the searched one gets this graph."""
    if "graph" in choice:
        return SearchedAttention(heads, graph.lines)
    return OperationSpec.from_dict({**choice, "num_heads": heads})


def _parse_operation(data: Any, path: str) -> Mapping[str, Any]:
    if isinstance(data, dict) and data.get("op") == SearchedAttention.op and "graph" in data:
        for key in data:
            if key not in ("op", "graph"):
                raise UserError(f"{path}: unknown key {key!r} beside graph")
        GraphSpace.from_dict(data["graph"], f"{path}.graph")
        return data
    try:
        operation = OperationSpec.from_dict({**data, "num_heads": 2} if isinstance(data, dict) else data, path)
    except ValueError as error:
        raise UserError(str(error)) from None
    return {key: value for key, value in operation.to_dict().items() if key != "num_heads"}


def random_values(space: SearchSpace, rng: random.Random) -> Values:
    """Normal values of a random architecture, every operation first by its kind and then by its parameters."""
    return space.normalize({name: draw_by_kind(options, rng) for name, options in space.choices.items()})


def draw_by_kind(options: Sequence[Value], rng: random.Random) -> Value:
    """A random value, first by kind of operation: seven kernels of a convolution do not outvote one attention."""
    kinds: dict[str, list[Value]] = {}
    for option in options:
        kinds.setdefault(str(option).partition("(")[0], []).append(option)
    return rng.choice(rng.choice(list(kinds.values())))
