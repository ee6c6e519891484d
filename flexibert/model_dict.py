"""Model dictionaries, the papers' way to write an encoder down, read into layer specs.

FlexiBERT's public code (github.com/jha-lab/txf_design-space) has two formats, with one list entry per layer:

    standard  l layers, o operations, h hidden sizes, n heads, f feed-forward sizes, p parameters of the operations
              {"l": 2, "o": ["sa", "c"], "h": [256, 128], "n": [4, 2], "f": [[1024], [512, 512]], "p": ["sdp", 9]}
    hetero    o holds one "operation_parameter_headsize" per head, which leaves no n and p (FlexiBERT 2)
              {"l": 1, "o": [["sa_wma_64", "l_dct_64", "c_5_64"]], "h": [256], "f": [[1024]]}

    sa        self-attention: sdp scaled dot product, wma weighted multiplicative
    l         linear transform (dft, dct) plus attention by relative position. Standard layers transform the layer
              input, hetero heads their values
    c         standard: ConvBERT's mixed attention. Hetero: span-based convolution of the head's own keys and values
              plus attention by relative position. The parameter is the kernel size
"""

import itertools
import re
from typing import Any

from .attention_graph import show
from .configuration_flexibert import FlexiBertConfig
from .spec import (
    ABBREVIATIONS,
    Architecture,
    DynamicConvolution,
    LayerSpec,
    LinearTransform,
    OperationSpec,
    SelfAttention,
    parse_layers,
)
from .zoo import FLEXIBERT_FIELDS


_PARAMETERS = {"sa": ("sdp", "wma"), "l": ("dft", "dct")}
_LONG_NAMES: dict[str, Any] = {short: name for name, short in ABBREVIATIONS.items()}
_HEAD = re.compile(r"(sa|l|c)_([a-z]{1,9}|[0-9]{1,9})_([0-9]{1,9})")


def config_from_model_dict(model_dict: dict[str, Any], *, mix_padding: bool = False, **overrides) -> FlexiBertConfig:
    """The configuration that a model dictionary of FlexiBERT's public code describes, standard or hetero.

    Fields that the dictionary does not hold get the values of the published models: relative positions, RoBERTa's
    vocabulary, 512 positions, 2 token types, an untied decoder.

    Args:
        model_dict: The dictionary. It is of the standard format if it has the key "p".
        mix_padding: Lets padding take part in transforms and convolutions, as the public code does.
        overrides: Fields of `FlexiBertConfig` to set otherwise.

    Raises:
        ValueError: With the path of the offending value, as in "model_dict.h[2]", and what is accepted.
    """
    return FlexiBertConfig(layers=_parse_model_dict(model_dict, mix_padding), **{**FLEXIBERT_FIELDS, **overrides})


def _parse_model_dict(model_dict: Any, mix_padding: bool) -> Architecture:
    if not isinstance(model_dict, dict):
        raise ValueError(f"model_dict: expected an object, got {show(model_dict)}")
    keys = ("l", "o", "h", "n", "f", "p") if "p" in model_dict else ("l", "o", "h", "f")
    for key in (*keys, *model_dict):
        if key not in model_dict or key not in keys:
            problem = "unknown key" if key in model_dict else "missing key"
            raise ValueError(f"model_dict: {problem} {show(key)}, expected {', '.join(keys)}; n and p go together")
    depth = _size(model_dict["l"], "model_dict.l")
    for key in keys[1:]:
        _list(model_dict[key], f"model_dict.{key}", length=depth)
    parse_layer = _standard_layer if "p" in model_dict else _hetero_layer
    return parse_layers([parse_layer(model_dict, index, mix_padding) for index in range(depth)], "model_dict: layers")


def _standard_layer(model_dict: dict[str, Any], index: int, mix_padding: bool) -> LayerSpec:
    hidden_size, feed_forward = _widths(model_dict, index)
    kind, parameter = model_dict["o"][index], model_dict["p"][index]
    if kind not in ("sa", "l", "c"):
        raise ValueError(f"model_dict.o[{index}]: {show(kind)} is not accepted, known: sa, l, c")
    path = f"model_dict.n[{index}]"
    num_heads = _size(model_dict["n"][index], path)
    if hidden_size % num_heads:
        raise ValueError(f"{path}: {show(num_heads)} heads do not divide the hidden size {show(hidden_size)}")
    if kind == "c" and num_heads % 2:
        raise ValueError(f"{path}: {show(num_heads)} is odd, but half of the heads of a c layer are attention")
    operation = _operation(kind, parameter, num_heads, False, mix_padding, f"model_dict.p[{index}]")
    return LayerSpec(hidden_size, (operation,), feed_forward, path=f"model_dict: layers[{index}]")


def _hetero_layer(model_dict: dict[str, Any], index: int, mix_padding: bool) -> LayerSpec:
    hidden_size, feed_forward = _widths(model_dict, index)
    path = f"model_dict.o[{index}]"
    heads = _list(model_dict["o"][index], path)
    matches: list[re.Match[str]] = []
    for position, head in enumerate(heads):
        match = _HEAD.fullmatch(head) if isinstance(head, str) else None
        if match is None or int(match[3]) == 0:
            raise ValueError(f"{path}[{position}]: {show(head)}, expected e.g. sa_sdp_64, l_dct_64 or c_9_64")
        matches.append(match)
        if int(match[3]) != int(matches[0][3]):
            raise ValueError(f"{path}[{position}]: {show(head)} differs in head size from {show(heads[0])}")
    operations: list[OperationSpec] = []
    position = 0
    for (kind, parameter), group in itertools.groupby(match.group(1, 2) for match in matches):
        count = len(list(group))
        # Heads with tensors of their own stay groups of one; neighbours of another kind make one group.
        sizes = count * [1] if kind == "c" or parameter == "wma" else [count]
        value = int(parameter) if parameter.isdecimal() else parameter
        operations += [_operation(kind, value, size, True, mix_padding, f"{path}[{position}]") for size in sizes]
        position += count
    head_size = int(matches[0][3])
    default = head_size * len(heads) == hidden_size
    path = f"model_dict: layers[{index}]"
    return LayerSpec(hidden_size, tuple(operations), feed_forward, None if default else head_size, path=path)


def _operation(kind: str, parameter: Any, num_heads: int, hetero: bool, mix_padding: bool, path: str) -> OperationSpec:
    shared: dict[str, Any] = {"source": "head" if hetero else "layer", "mix_padding": mix_padding, "path": path}
    if kind == "c":
        kernel_size = _size(parameter, path, odd=True)
        return DynamicConvolution(
            num_heads, kernel_size, mixed_attention=not hetero, relative_attention=hetero, **shared
        )
    known = _PARAMETERS[kind]
    if not isinstance(parameter, str) or parameter not in known:
        raise ValueError(f"{path}: {show(parameter)} is not accepted with {kind}, known: {', '.join(known)}")
    if kind == "sa":
        return SelfAttention(num_heads, _LONG_NAMES[parameter], path=path)
    return LinearTransform(num_heads, _LONG_NAMES[parameter], norm="backward", relative_attention=True, **shared)


def _widths(model_dict: dict[str, Any], index: int) -> tuple[int, tuple[int, ...]]:
    path = f"model_dict.f[{index}]"
    feed_forward = _list(model_dict["f"][index], path)
    hidden_size = _size(model_dict["h"][index], f"model_dict.h[{index}]")
    return hidden_size, tuple(_size(value, f"{path}[{i}]") for i, value in enumerate(feed_forward))


def _size(value: Any, path: str, odd: bool = False) -> int:
    if type(value) is not int or value < 1 or (odd and value % 2 == 0):
        raise ValueError(
            f"{path}: {show(value)} is not accepted, expected {'an odd' if odd else 'a'} whole number >= 1"
        )
    return value


def _list(value: Any, path: str, length: int | None = None) -> list | tuple:
    if not isinstance(value, (list, tuple)) or not value or (length is not None and len(value) != length):
        entries = "at least one entry" if length is None else f"{show(length)} entries, as many as l says"
        raise ValueError(f"{path}: expected a list of {entries}, got {show(value)}")
    return value
