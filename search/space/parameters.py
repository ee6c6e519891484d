"""The parameters of a space as objects: what each of them decides, and where.

Studies know parameters by name (`layer2.num_heads`). Names are put together here and never taken apart: whoever wants
to know what a name stands for looks into the space's table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


Value = str | int

Values = Mapping[str, Value]
"""Parameter values of an architecture by name."""


def number(values: Values, name: str) -> int:
    """The value of a parameter that is a whole number."""
    return int(values[name])


def word(values: Values, name: str) -> str:
    """The value of a parameter that is text."""
    return str(values[name])


NUM_LAYERS = "num_layers"
HIDDEN_SIZE = "hidden_size"


@dataclass(frozen=True)
class Parameter:
    """One choice.

    Attributes:
        values: What may be chosen.
        part: What it decides: "num_layers", "hidden_size", "num_heads", "operation", "graph", "feed_forward_depth" or
            "feed_forward_size". Mixed heads are several parameters of one part.
        unit: Name of the layer or stack that it decides about, None for the whole encoder.
        role: The same for equal parameters of all units.
    """

    values: tuple[Value, ...]
    part: str
    unit: str | None = None
    role: str = ""

    @property
    def spells_graph(self) -> bool:
        """Whether it is one of many that spell a searched graph together, and means nothing alone."""
        return self.part == "graph"


@dataclass(frozen=True)
class Unit:
    """Names of the parameters of what is chosen independently: a layer, or a stack of equal layers.

    Attributes:
        name: `layer3` or `stack3`.
        num_heads_bound: Largest number of heads.
        feed_forward_bound: Largest number of hidden feed-forward layers.
        shared_hidden_size, mixed_heads, mixed_feed_forward: As in `SearchSpace`.
    """

    name: str
    num_heads_bound: int
    feed_forward_bound: int
    shared_hidden_size: bool
    mixed_heads: bool
    mixed_feed_forward: bool

    @cached_property
    def hidden_size(self) -> str:
        return HIDDEN_SIZE if self.shared_hidden_size else f"{self.name}.{HIDDEN_SIZE}"

    @cached_property
    def num_heads(self) -> str:
        return f"{self.name}.num_heads"

    @cached_property
    def operations(self) -> tuple[str, ...]:
        """One for every head, of which the first `num_heads` have a say, or one for all heads."""
        if not self.mixed_heads:
            return (f"{self.name}.operation",)
        return tuple(f"{self.name}.head{head}" for head in range(self.num_heads_bound))

    @cached_property
    def graph(self) -> str:
        """What the names of parameters begin with that spell the searched graph."""
        return f"{self.name}.graph."

    @cached_property
    def feed_forward_depth(self) -> str:
        return f"{self.name}.feed_forward_depth"

    @cached_property
    def feed_forward_sizes(self) -> tuple[str, ...]:
        """One for every hidden layer, of which the first `feed_forward_depth` have a say, or one for all."""
        if not self.mixed_feed_forward:
            return (f"{self.name}.feed_forward_size",)
        return tuple(f"{self.name}.feed_forward_size{index}" for index in range(self.feed_forward_bound))

    def parameter(self, name: str, part: str, values: tuple[Value, ...]) -> Parameter:
        """The parameter of this name, one of the unit's own."""
        return Parameter(values, part, self.name, name[len(self.name) + 1 :])
