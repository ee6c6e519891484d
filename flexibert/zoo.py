"""Architectures with a name: those of FlexiBERT and AutoBERT-Zero, and the baselines they are compared with.

Sources: BERT (arXiv 1810.04805), its small sizes (arXiv 1908.08962); FlexiBERT (arXiv 2205.11656) and its public code
(github.com/jha-lab/txf_design-space) for `flexibert-*`, `fnet-*` and `convbert-*`; AutoBERT-Zero (arXiv 2107.07445).

`fnet-*` and `convbert-*` are what FlexiBERT compares with: BERT's shapes, with the operation of a FlexiBERT layer in
place of attention. A transform there has attention by relative position beside it. In contrast to the public code,
padding takes no part in mixing.
"""

import difflib
import fnmatch
from collections.abc import Iterable
from typing import Any, Literal

from .attention_graph import GRAPHS, show
from .configuration_flexibert import FlexiBertConfig
from .spec import (
    Architecture,
    DynamicConvolution,
    LayerSpec,
    LightweightConvolution,
    LinearTransform,
    OperationSpec,
    SearchedAttention,
    SelfAttention,
)


def _layers(depth: int, hidden_size: int, operation: OperationSpec, *feed_forward: int) -> Architecture:
    return depth * (LayerSpec(hidden_size, (operation,), feed_forward),)


def _transform(num_heads: int, transform: Literal["fourier", "cosine"]) -> LinearTransform:
    """FlexiBERT's linear transform operation."""
    return LinearTransform(num_heads, transform, source="layer", norm="backward", relative_attention=True)


def _convolution(num_heads: int) -> DynamicConvolution:
    """FlexiBERT's convolution operation: half of the heads are attention."""
    return DynamicConvolution(num_heads, kernel_size=9, mixed_attention=True)


def _autobert_zero(blocks: Iterable[int], hidden_size: int, num_heads: int) -> Architecture:
    """Blocks of a convolution and the searched attention that follows it."""
    feed_forward = (4 * hidden_size,)
    layers: list[LayerSpec] = []
    for block in blocks:
        kernel_size, graph = _AUTOBERT_ZERO_BLOCKS[block]
        for operation in (LightweightConvolution(num_heads, kernel_size), SearchedAttention(num_heads, GRAPHS[graph])):
            layers.append(LayerSpec(hidden_size, (operation,), feed_forward))
    return tuple(layers)


_AUTOBERT_ZERO_BLOCKS = (
    (65, "autobert-zero-layer-2"),
    (9, "autobert-zero-layer-4"),
    (3, "autobert-zero-layer-6"),
    (7, "autobert-zero-layer-6"),  # layer 8 has the graph of layer 6
    (7, "autobert-zero-layer-10"),
    (3, "autobert-zero-layer-12"),
)

ARCHITECTURES: dict[str, Architecture] = {
    "bert-tiny": _layers(2, 128, SelfAttention(2), 512),
    "bert-mini": _layers(4, 256, SelfAttention(4), 1024),
    "bert-small": _layers(4, 512, SelfAttention(8), 2048),
    "bert-medium": _layers(8, 512, SelfAttention(8), 2048),
    "bert-base": _layers(12, 768, SelfAttention(12), 3072),
    "bert-large": _layers(24, 1024, SelfAttention(16), 4096),
    "fnet-tiny": _layers(2, 128, _transform(2, "fourier"), 512),
    "fnet-mini": _layers(4, 256, _transform(4, "fourier"), 1024),
    "convbert-tiny": _layers(2, 128, _convolution(2), 512),
    "convbert-mini": _layers(4, 256, _convolution(4), 1024),
    "flexibert-mini": (
        *_layers(2, 256, SelfAttention(2), 512, 512, 512),
        *_layers(2, 128, _transform(4, "cosine"), 1024),
    ),
    "flexibert-mini-without-second-order": _layers(2, 128, SelfAttention(4), 1024),
    "flexibert-mini-without-heteroscedastic": (
        *_layers(2, 256, _transform(4, "cosine"), 1024, 1024, 1024),
        *_layers(2, 128, SelfAttention(4), 512, 512, 512),
    ),
    "flexibert-large": (
        *_layers(12, 1024, SelfAttention(8), 2048, 2048, 2048),
        *_layers(12, 512, _transform(16, "cosine"), 4096),
    ),
    "autobert-zero-small": _autobert_zero(range(6), 256, 4),
    "autobert-zero-base": _autobert_zero(range(6), 768, 12),
    # The paper scales the base network by repeating each block in place.
    "autobert-zero-large": _autobert_zero((block for block in range(6) for _ in range(2)), 1024, 16),
}
"""Name -> layers. The ablations of FlexiBERT-Mini are what its search found without second-order gradients and without
heteroscedastic modelling."""

FLEXIBERT_FIELDS: dict[str, Any] = {
    "vocab_size": 50265,
    "position_embedding_type": "relative_key",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
"""Fields beside the layers as FlexiBERT's public code has them: RoBERTa's vocabulary, an untied decoder. (RoBERTa pads
with 1, the public code with 0; `pad_token_id=1` is right for RoBERTa's tokenizer.)"""

_CONFIG_FIELDS: dict[str, dict[str, Any]] = {
    "flexibert-*": FLEXIBERT_FIELDS,
    "fnet-*": FLEXIBERT_FIELDS,
    "convbert-*": FLEXIBERT_FIELDS,
    # As ELECTRA-Small; embeddings of 256 would make 17 million of the paper's 13.
    "autobert-zero-small": {"embedding_size": 128},
}


def list_architectures(pattern: str = "*") -> list[str]:
    """Names that match a shell-style pattern, as in `list_architectures("bert-*")`."""
    return [name for name in ARCHITECTURES if fnmatch.fnmatchcase(name, pattern)]


def architecture(name: str) -> Architecture:
    """The layers of a named architecture; `FlexiBertConfig(layers=architecture(name))` makes a model of it.

    Raises:
        ValueError: If there is no such name, with the names close to it.
    """
    if not isinstance(name, str) or name not in ARCHITECTURES:
        close = difflib.get_close_matches(str(name), ARCHITECTURES, n=3)
        raise ValueError(f"unknown architecture {show(name)}, known: {', '.join(close or ARCHITECTURES)}")
    return ARCHITECTURES[name]


def named_config(name: str, **overrides) -> FlexiBertConfig:
    """The model of that name as published: its layers with the vocabulary, positions and embeddings it came with.

    Args:
        name: One of `list_architectures()`.
        overrides: Fields of `FlexiBertConfig` to set otherwise.

    Raises:
        ValueError: If there is no such name, with the names close to it.
    """
    fields = {"layers": architecture(name)}
    for pattern, values in _CONFIG_FIELDS.items():
        if fnmatch.fnmatchcase(name, pattern):
            fields |= values
    return FlexiBertConfig(**{**fields, **overrides})


def unused_reference_parameters(config: FlexiBertConfig) -> int:
    """Counts what FlexiBERT's public code allocates for a standard model dictionary and then never reads.

    FlexiBERT's tables include it: a matrix W beside every scaled dot product, the keys of every transform layer, and
    absolute positions beside relative ones. The published count of a model is this plus `num_parameters()`.
    """
    count = 0
    if config.position_embedding_type != "absolute":
        count += config.max_position_embeddings * config.embedding_size
    for layer in config.layer_specs:
        for operation in layer.operations:
            if isinstance(operation, SelfAttention) and operation.similarity == "scaled_dot_product":
                count += layer.resolved_head_size**2
            elif isinstance(operation, LinearTransform):
                count += operation.num_heads * layer.resolved_head_size * (layer.hidden_size + 1)
    return count
