"""A candidate starts from the trained encoder that is most like it (FlexiBERT's weight transfer, on parameters).

Similar means equal from the input side: what comes first in an encoder is the most general, and a layer's weights mean
nothing behind other layers than its own. So the overlap of two encoders is the share of parameters that stand before
the first difference (the "biased overlap", arXiv 2205.11656; its public code counts tensors instead, some twice).
Those are copied exactly. Layers behind the first difference get what fits, as long as their operations are of the
same kind.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Literal

import torch

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, FlexiBertModel
from flexibert.spec import LayerSpec


ENOUGH_OVERLAP = 0.8
"""From this overlap on a candidate is only fine-tuned, as in the paper."""

Mode = Literal["ordered", "random_projection"]


def common_layers(source: Sequence[LayerSpec], target: Sequence[LayerSpec]) -> int:
    """How many layers are equal, from the input side."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(source, target)))


def overlap(source: FlexiBertConfig, target: FlexiBertConfig) -> float:
    """Share of the target's encoder parameters, embeddings included, that the source can give it unchanged."""
    if source.embedding_size != target.embedding_size:
        return 0.0
    with torch.device("meta"):
        model = FlexiBertModel(target, add_pooling_layer=False)
    equal = model.layers[: common_layers(source.layer_specs, target.layer_specs)]
    given = sum(p.numel() for module in (model.embeddings, *equal) for p in module.parameters())
    return given / sum(p.numel() for p in model.parameters())


@torch.no_grad()
def transfer(
    model: FlexiBertForMaskedLM,
    source_state: Mapping[str, torch.Tensor],
    source: FlexiBertConfig,
    mode: Mode = "ordered",
    seed: int = 0,
) -> None:
    """Gives a model the weights of a trained one, as far as they fit; what does not fit keeps its first values.

    Args:
        model: A `FlexiBertForMaskedLM`.
        source_state: State of another one, with the configuration `source` and the same vocabulary.
        mode: Where sizes differ, "ordered" copies the leading rows and columns; "random_projection" mixes those of a
            larger source by a Gaussian matrix of variance 1 / size first. All axes of one length share the matrix, so
            that features which one tensor writes and the next one reads are mixed alike, and products of tensors are
            kept in expectation.
        seed: Of the projections.

    Kernels of another size are cut or laid in around their centre, whatever the mode.
    """
    projections = Projections(seed)
    first, second = source.layer_specs, model.config.layer_specs
    reach = common_layers(first, second)
    for given, wanted in zip(first[reach:], second[reach:]):
        if [operation.op for operation in given.operations] != [operation.op for operation in wanted.operations]:
            break
        reach += 1
    for name, parameter in model.state_dict().items():
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else -1
        if layer >= reach or name not in source_state or source_state[name].dim() != parameter.dim():
            continue
        source_part, taps = with_taps(name, source_state[name], first[layer])
        target_part, _ = with_taps(name, parameter, second[layer])
        # Biases and norms belong to single features, which a mixture of features has not.
        mixes = mode == "random_projection" and parameter.dim() > 1
        fit(target_part, source_part, taps, projections if mixes else None)


class Projections(dict):
    """(available, size) -> a Gaussian matrix of that shape, drawn when first asked for."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __missing__(self, shape: tuple[int, int]) -> torch.Tensor:
        self[shape] = torch.randn(shape, generator=self.generator) / shape[1] ** 0.5
        return self[shape]


def with_taps(name: str, tensor: torch.Tensor, layer: LayerSpec) -> tuple[torch.Tensor, int | None]:
    """A view in which the taps of a convolution's kernels have an axis of their own, and that axis, if it has taps."""
    found = re.search(r"\.mixer\.operations\.(\d+)\.(.+)", name)
    if found is None:
        return tensor, None
    shape, taps = layer.operations[int(found[1])].split_taps(found[2], tensor.shape)
    return tensor.view(shape), taps


def fit(target: torch.Tensor, source: torch.Tensor, taps: int | None, projections: Projections | None) -> None:
    """Writes the source into the leading part of the target, on the axis of the taps into the middle."""
    if taps is not None:
        size, available = target.shape[taps], source.shape[taps]
        common = min(size, available)
        target = target.narrow(taps, (size - common) // 2, common)
        source = source.narrow(taps, (available - common) // 2, common)
    for dim, (size, available) in enumerate(zip(target.shape, source.shape)):
        if available > size and projections is not None:
            projection = projections[available, size].to(source.dtype)
            source = torch.tensordot(source, projection, dims=([dim], [0])).movedim(-1, dim)
    leading = tuple(slice(min(sizes)) for sizes in zip(target.shape, source.shape))
    target[leading] = source[leading]
