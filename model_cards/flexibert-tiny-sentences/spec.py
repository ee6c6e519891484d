"""What an encoder is, as a value: a tuple of layer specs that reads from and prints to plain JSON.

A layer first mixes tokens and then transforms each token. Token mixing is a concatenation of heads; heads come in
groups of one operation. That covers FlexiBERT (arXiv 2205.11656, Section 3.1; FlexiBERT 2's mixed heads included) and
AutoBERT-Zero (arXiv 2107.07445, Section 3) alike:

            x (B, L, D_in)
            | resize (only if D_in != D)                 hidden_size = D
            +------------------------------.
            | q, k, v, p, g (those needed) |
      .-----+-----.-----------.            |
   2 heads     1 head      1 head          |             operations, concatenated to num_heads * head_size
   attention   fourier     conv k=9        |
      '-----+-----'-----------'            |
            | output projection            |
            + <----------------------------'  add & norm
            | feed_forward = [512, 512] ---.
            + <----------------------------'  add & norm
            x (B, L, D)

Everything here is torch-free. Specs are valid by construction: a bad value raises ValueError with its path and what is
accepted, whether a spec is made by hand or read from data.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeAlias

from .attention_graph import MAX_NODES, AttentionGraph, canonical, parse_graph, show, softmax_tail


MAX_LAYERS = 1024
MAX_WIDTH = 1 << 16
MAX_KERNEL_SIZE = 1023


ABBREVIATIONS = {
    "scaled_dot_product": "sdp",
    "weighted_multiplicative": "wma",
    "fourier": "dft",
    "cosine": "dct",
}
"""What FlexiBERT's public code calls the parameters of its operations."""


def size(maximum: int, odd: bool = False) -> dict[str, Any]:
    """Metadata of a dataclass field for a whole number from 1 to `maximum`."""
    return {"maximum": maximum, "odd": odd}


@dataclass(frozen=True)
class OperationSpec:
    """A group of heads of one layer that share an operation. Subclasses add the operation's own parameters.

    What others have to know about an operation stands on its class, so that nobody else tells operations apart.

    Args:
        path: Where the spec stands, for messages; by default the operation's tag.

    Attributes:
        op: The tag in JSON, class attribute.
        symbol: What FlexiBERT's computational graphs call a head of the kind, class attribute.
        searched: The parameter that the papers search, class attribute.
        taps: Parameter of the module -> the dimension of its kernels' taps, -1 for the last one and 0 where the rows
            are the taps of one head after the other. Only operations with a `kernel_size` have any. Class attribute.
        num_heads: How many heads of the layer's concatenation the group fills.

    Raises:
        ValueError: With the path of the offending value and what is accepted.
    """

    op: ClassVar[str]
    symbol: ClassVar[str]
    searched: ClassVar[str]
    taps: ClassVar[Mapping[str, int]] = {}
    num_heads: int = field(metadata=size(1024))
    path: InitVar[str | None] = field(default=None, kw_only=True)

    def __post_init__(self, path: str | None) -> None:
        _normalize(self, path or self.op)

    @property
    def name(self) -> str:
        """The operation and its searched parameter in words: "lightweight convolution (kernel 9)"."""
        raise NotImplementedError

    @property
    def parameter(self) -> str | int:
        """The searched parameter in short, as in the labels of computational graphs: "sdp", "dct", 9."""
        value = getattr(self, self.searched)
        return value if isinstance(value, int) else ABBREVIATIONS[value]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Which projections of the layer input the group reads, of q, k, v, p and g (the gate of a convolution)."""
        return ("q", "k", "v")

    def reads(self, positions: str) -> tuple[str, ...]:
        """The `inputs` under a type of positions: "relative_key_query" scores positions of keys as well."""
        keys = positions == "relative_key_query" and self.scores_positions and self.graph is None
        return tuple(name for name in ("q", "k", "v", "p", "g") if name in self.inputs or (name == "k" and keys))

    @property
    def projected_heads(self) -> int:
        """How many heads each of those projections has."""
        return self.num_heads

    @property
    def scores_positions(self) -> bool:
        """Whether the operation scores pairs of positions, so that relative positions have something to act on."""
        return False

    @property
    def is_softmax_attention(self) -> bool:
        """Whether the operation is a softmax over keys and nothing else: it takes any mask of pairs of tokens, and
        runs on every attention backend."""
        return False

    @property
    def mixes_padding(self) -> bool:
        """Whether padding reaches real tokens."""
        return bool(getattr(self, "mix_padding", False))

    @property
    def graph(self) -> AttentionGraph | None:
        """The graph of primitives that the operation runs, None where it is none."""
        return None

    def num_parameters(self, layer: "LayerSpec") -> int:
        """How many parameters the operation's module has, without the projections that it reads."""
        return 0

    def split_taps(self, parameter: str, shape: Sequence[int]) -> tuple[tuple[int, ...], int | None]:
        """The shape of a parameter of the module with the taps in a dimension of their own, and that dimension."""
        if parameter not in self.taps:
            return tuple(shape), None
        if self.taps[parameter] == 0:
            kernel_size: int = getattr(self, "kernel_size")  # noqa: B009 - of those subclasses that have taps
            return (shape[0] // kernel_size, kernel_size, *shape[1:]), 1
        return tuple(shape), len(shape) + self.taps[parameter]

    def validate(self, layer: "LayerSpec", path: str) -> None:
        """Checks what only shows in a layer; raises ValueError with the path."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form; parameters at their default are left out, so a new parameter changes no fingerprint."""
        return {"op": self.op, **_to_dict(self)}

    @staticmethod
    def from_dict(data: Any, path: str = "operation") -> "OperationSpec":
        """Parses one group of heads; ValueError with the path where the data is not one."""
        if type(data) in OPERATIONS.values():
            return typing.cast(OperationSpec, data)
        op = data.get("op") if isinstance(data, dict) else None
        cls = OPERATIONS.get(op) if isinstance(op, str) else None
        if cls is None:
            got = f"unknown operation {show(op)}" if isinstance(data, dict) else f"not an operation {show(data)}"
            raise ValueError(f"{path}: {got}, known: {', '.join(OPERATIONS)}")
        return cls(**_fields_of(cls, data, path), path=path)


@dataclass(frozen=True)
class SelfAttention(OperationSpec):
    """Softmax attention. `weighted_multiplicative` puts a learned matrix between query and key (Luong et al. 2015)."""

    op: ClassVar[str] = "self_attention"
    symbol: ClassVar[str] = "sa"
    searched: ClassVar[str] = "similarity"
    similarity: Literal["scaled_dot_product", "weighted_multiplicative"] = "scaled_dot_product"

    @property
    def name(self) -> str:
        return f"self-attention ({self.similarity.replace('_', ' ')})"

    def num_parameters(self, layer: "LayerSpec") -> int:
        return layer.resolved_head_size**2 if self.similarity == "weighted_multiplicative" else 0

    @property
    def scores_positions(self) -> bool:
        return True

    @property
    def is_softmax_attention(self) -> bool:
        return True


@dataclass(frozen=True)
class LinearTransform(OperationSpec):
    """Parameter-free mixing by a two-dimensional transform over sequence and features, as FNet's (arXiv 2105.03824).

    Attributes:
        transform: "fourier" takes the real part of the DFT, "cosine" is the DCT-II.
        source: "head" transforms each head's values over its own features (FlexiBERT 2), "layer" transforms the layer
            input over all features (FNet, FlexiBERT).
        norm: "ortho" keeps the scale of its input, "backward" is unnormalised as in the papers (`torch.fft` terms).
        relative_attention: Adds attention by relative position alone, as FlexiBERT's public code has it.
        mix_padding: Transforms over the padded length, as the references do. Otherwise each row over its own length.
    """

    op: ClassVar[str] = "linear_transform"
    symbol: ClassVar[str] = "l"
    searched: ClassVar[str] = "transform"
    transform: Literal["fourier", "cosine"] = "fourier"
    source: Literal["head", "layer"] = "head"
    norm: Literal["ortho", "backward"] = "ortho"
    relative_attention: bool = False
    mix_padding: bool = False

    @property
    def name(self) -> str:
        return f"{self.transform.replace('fourier', 'Fourier')} transform"

    @property
    def inputs(self) -> tuple[str, ...]:
        if self.relative_attention:
            return ("q", "v")
        return ("v",) if self.source == "head" else ()

    @property
    def scores_positions(self) -> bool:
        return self.relative_attention

    def validate(self, layer: "LayerSpec", path: str) -> None:
        if self.source == "layer" and self.num_heads * layer.resolved_head_size != layer.hidden_size:
            raise ValueError(
                f"{path}.source: 'layer' transforms all {layer.hidden_size} features, but the group holds "
                f"{self.num_heads} heads of size {layer.resolved_head_size}; use 'head'"
            )


@dataclass(frozen=True)
class DynamicConvolution(OperationSpec):
    """Span-based dynamic convolution of ConvBERT (arXiv 2008.02496): each token makes its own kernel from its span.

    Attributes:
        kernel_size: Taps, odd. FlexiBERT searches 5, 9 and 13.
        source: "layer" convolves the layer input (ConvBERT), "head" the group's own keys and values (FlexiBERT 2).
        mixed_attention: Half of the heads are self-attention that shares its queries with the other half, ConvBERT's
            mixed attention; needs an even number of heads.
        relative_attention: Adds attention by relative position alone, as FlexiBERT 2's public code has it.
        mix_padding: Lets padded positions into the windows, as the references do.
    """

    op: ClassVar[str] = "dynamic_convolution"
    symbol: ClassVar[str] = "c"
    searched: ClassVar[str] = "kernel_size"
    taps: ClassVar[Mapping[str, int]] = {"depthwise.weight": -1, "kernel.weight": 0, "kernel.bias": 0}
    kernel_size: int = field(default=9, metadata=size(MAX_KERNEL_SIZE, odd=True))
    source: Literal["layer", "head"] = "layer"
    mixed_attention: bool = False
    relative_attention: bool = False
    mix_padding: bool = False

    def __post_init__(self, path: str | None) -> None:
        super().__post_init__(path)
        path = path or self.op
        if self.mixed_attention and self.num_heads % 2:
            raise ValueError(f"{path}.num_heads: {self.num_heads} is odd, mixed attention needs an even number")
        if self.mixed_attention and (self.source == "head" or self.relative_attention):
            raise ValueError(f"{path}.mixed_attention: goes with source 'layer' and without relative_attention")

    @property
    def name(self) -> str:
        return f"dynamic convolution (kernel {self.kernel_size})"

    def num_parameters(self, layer: "LayerSpec") -> int:
        width = self.projected_heads * layer.resolved_head_size
        channels = layer.hidden_size if self.source == "layer" else width
        kernels = self.projected_heads * self.kernel_size
        value = {(True, "layer"): layer.hidden_size, (False, "head"): width}.get((self.mixed_attention, self.source))
        count = channels * self.kernel_size + (channels + 1) * width + (width + 1) * kernels
        return count if value is None else count + (value + 1) * width

    @property
    def inputs(self) -> tuple[str, ...]:
        if self.source == "layer" and not self.mixed_attention:
            return ("q", "v")
        return ("q", "k", "v")

    @property
    def projected_heads(self) -> int:
        return self.num_heads // 2 if self.mixed_attention else self.num_heads

    @property
    def scores_positions(self) -> bool:
        return self.mixed_attention or self.relative_attention


@dataclass(frozen=True)
class LightweightConvolution(OperationSpec):
    """Depthwise convolution with one softmax-normalised kernel per head (Wu et al. 2019, arXiv 1901.10430).

    Attributes:
        kernel_size: Taps, odd. AutoBERT-Zero searches 3, 5, 7, 9, 15, 31 and 65.
        gated: The input passes a gated linear unit first.
    """

    op: ClassVar[str] = "lightweight_convolution"
    symbol: ClassVar[str] = "lc"
    searched: ClassVar[str] = "kernel_size"
    taps: ClassVar[Mapping[str, int]] = {"weight": -1}
    kernel_size: int = field(default=9, metadata=size(MAX_KERNEL_SIZE, odd=True))
    gated: bool = True

    @property
    def name(self) -> str:
        return f"lightweight convolution (kernel {self.kernel_size})"

    def num_parameters(self, layer: "LayerSpec") -> int:
        return self.num_heads * self.kernel_size

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("v", "g") if self.gated else ("v",)


@dataclass(frozen=True)
class SearchedAttention(OperationSpec):
    """Attention of AutoBERT-Zero: a graph of primitives, see `attention_graph.py`. Kept in canonical form."""

    op: ClassVar[str] = "attention_graph"
    symbol: ClassVar[str] = "ag"
    searched: ClassVar[str] = "nodes"
    nodes: tuple[str, ...] = field(metadata={"graph": True})

    @property
    def name(self) -> str:
        return "searched attention"

    @property
    def parameter(self) -> str:
        digest = hashlib.sha256("\n".join(self.nodes).encode()).hexdigest()
        return f"{len(self.nodes):02d}-{digest[:8]}"

    @property
    def graph(self) -> AttentionGraph:
        return parse_graph(self.nodes)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.graph.inputs

    @property
    def scores_positions(self) -> bool:
        return self.is_softmax_attention

    @property
    def is_softmax_attention(self) -> bool:
        return softmax_tail(self.graph) is not None


OPERATIONS: dict[str, type[OperationSpec]] = {
    cls.op: cls
    for cls in (SelfAttention, LinearTransform, DynamicConvolution, LightweightConvolution, SearchedAttention)
}
"""Tag in JSON -> spec class. `operations.OPERATION_CLASSES` has the modules under the same tags."""


@dataclass(frozen=True)
class LayerSpec:
    """One encoder layer.

    Args:
        path: Where the layer stands, for messages; "layer" by default.

    Attributes:
        hidden_size: Width D of the layer's output.
        operations: The groups of heads that are concatenated.
        feed_forward: Widths of the hidden layers of the one feed-forward network, from first to last.
        head_size: Features per head; by default hidden_size / number of heads.
        output_projection: Whether a linear layer follows the concatenation (FNet has none).

    Raises:
        ValueError: With the path of the offending value and what is accepted.
    """

    hidden_size: int = field(metadata=size(MAX_WIDTH))
    operations: tuple[OperationSpec, ...] = field(metadata={"operations": True})
    feed_forward: tuple[int, ...] = field(metadata={**size(1 << 20), "max_length": 16})
    head_size: int | None = field(default=None, metadata=size(MAX_WIDTH))
    output_projection: bool = True
    path: InitVar[str] = field(default="layer", kw_only=True)

    def __post_init__(self, path: str) -> None:
        _normalize(self, path)
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"{path}.hidden_size: {self.hidden_size} is not a multiple of the {self.num_heads} heads; "
                "change either or give head_size"
            )
        if self.mixing_size > MAX_WIDTH:
            raise ValueError(
                f"{path}.head_size: {self.num_heads} heads of {self.head_size} features are {self.mixing_size}, "
                f"at most {MAX_WIDTH} are accepted"
            )
        if not self.output_projection and self.mixing_size != self.hidden_size:
            raise ValueError(
                f"{path}.output_projection: false needs num_heads * head_size = hidden_size, "
                f"got {self.mixing_size} and {self.hidden_size}"
            )
        for index, operation in enumerate(self.operations):
            operation.validate(self, f"{path}.operations[{index}]")

    @property
    def num_heads(self) -> int:
        return sum(operation.num_heads for operation in self.operations)

    @property
    def resolved_head_size(self) -> int:
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def mixing_size(self) -> int:
        """Width of the concatenated heads."""
        return self.num_heads * self.resolved_head_size

    def num_parameters(self, positions: str = "absolute") -> int:
        """Parameters of the layer, without a change of width before it and a table of relative positions in it."""
        projected = sum(len(operation.reads(positions)) * operation.projected_heads for operation in self.operations)
        count = projected * self.resolved_head_size * (self.hidden_size + 1)
        count += sum(operation.num_parameters(self) for operation in self.operations)
        if self.output_projection:
            count += (self.mixing_size + 1) * self.hidden_size
        sizes = (self.hidden_size, *self.feed_forward, self.hidden_size)
        return count + sum((size + 1) * after for size, after in zip(sizes, sizes[1:])) + 4 * self.hidden_size

    def to_dict(self) -> dict[str, Any]:
        return _to_dict(self)

    @classmethod
    def from_dict(cls, data: Any, path: str = "layer") -> "LayerSpec":
        """Parses one layer; ValueError with the path where the data is not a layer."""
        return data if isinstance(data, cls) else cls(**_fields_of(cls, data, path), path=path)


Architecture: TypeAlias = tuple[LayerSpec, ...]
"""An encoder: its layers, from first to last."""


def parse_layers(data: Any, path: str = "layers") -> Architecture:
    """Parses an encoder, a list of layers as plain data or as `LayerSpec`. What was parsed before is not parsed again.

    Raises:
        ValueError: With the path of the first offending value and what is accepted.
    """
    try:
        return _known_layers(json.dumps(data, sort_keys=True))
    except (TypeError, ValueError, RecursionError):  # specs are no JSON; and of mistakes the data itself tells where
        return _parse_layers(data, path)


@lru_cache(maxsize=4096)
def _known_layers(text: str) -> Architecture:
    return _parse_layers(json.loads(text), "layers")


def _parse_layers(data: Any, path: str) -> Architecture:
    if not isinstance(data, (list, tuple)) or not 1 <= len(data) <= MAX_LAYERS:
        raise ValueError(f"{path}: expected a list of 1 to {MAX_LAYERS} layers, got {show(data)}")
    return tuple(LayerSpec.from_dict(layer, f"{path}[{index}]") for index, layer in enumerate(data))


def layers_to_dicts(layers: Iterable[LayerSpec]) -> list[dict[str, Any]]:
    """The JSON form of an encoder, as it stands under "layers" in config.json."""
    return [layer.to_dict() for layer in layers]


def fingerprint(layers: Sequence[LayerSpec]) -> str:
    """Identity of an architecture: the first 12 hexadecimal digits of the SHA-256 of its canonical JSON."""
    text = json.dumps(layers_to_dicts(layers), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# --- fields -------------------------------------------------------------------------------------------------------


def _to_dict(spec: OperationSpec | LayerSpec) -> dict[str, Any]:
    values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if getattr(spec, f.name) != f.default}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [item.to_dict() if isinstance(item, OperationSpec) else item for item in value]
    return value


def _fields_of(cls: type, data: Any, path: str) -> dict[str, Any]:
    """Keyword arguments of a spec class out of a dictionary: known keys only, and all that have no default."""
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected an object, got {show(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields and not (key == "op" and issubclass(cls, OperationSpec)):
            raise ValueError(f"{path}: unknown key {show(key)}, known: {', '.join(fields)}")
    for name, f in fields.items():
        if f.default is dataclasses.MISSING and name not in data:
            raise ValueError(f"{path}: {name} is missing")
    return {name: data[name] for name in fields if name in data}


def _normalize(spec: OperationSpec | LayerSpec, path: str) -> None:
    """Checks every field of a new spec by its metadata and type, and keeps it in its one form."""
    for f in dataclasses.fields(spec):
        object.__setattr__(spec, f.name, _checked(f, getattr(spec, f.name), f"{path}.{f.name}"))


def _checked(f: "dataclasses.Field[Any]", value: Any, path: str) -> Any:
    if "operations" in f.metadata:
        items = enumerate(_list(value, 1024, path))
        return tuple(OperationSpec.from_dict(item, f"{path}[{index}]") for index, item in items)
    if "graph" in f.metadata:
        lines = canonical(parse_graph(value, path)).lines
        if len(lines) > MAX_NODES:  # moving transposes may add nodes
            raise ValueError(f"{path}: {len(lines)} nodes in canonical form, at most {MAX_NODES} are accepted")
        return lines
    if "max_length" in f.metadata:
        return tuple(
            _checked_size(f, item, f"{path}[{index}]")
            for index, item in enumerate(_list(value, f.metadata["max_length"], path))
        )
    if "maximum" in f.metadata:
        optional = isinstance(f.type, types.UnionType) and value is None
        return None if optional else _checked_size(f, value, path)
    choices = (False, True) if f.type is bool else typing.get_args(f.type)
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{path}: {show(value)} is not accepted, known: {', '.join(map(json.dumps, choices))}")
    return value


def _checked_size(f: "dataclasses.Field[Any]", value: Any, path: str) -> int:
    maximum, odd = f.metadata["maximum"], f.metadata["odd"]
    if type(value) is not int or not 1 <= value <= maximum or (odd and value % 2 == 0):
        kind = "an odd whole number" if odd else "a whole number"
        raise ValueError(f"{path}: {show(value)} is not accepted, expected {kind} from 1 to {maximum}")
    return value


def _list(value: Any, max_length: int, path: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= max_length:
        raise ValueError(f"{path}: expected a list of 1 to {max_length} items, got {show(value)}")
    return value
