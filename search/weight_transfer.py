"""A candidate starts from the trained encoder that is most like it (FlexiBERT's weight transfer, on parameters).

Similar means equal from the input side: what comes first in an encoder is the most general, and a layer's weights mean
nothing behind other layers than its own. So the overlap of two encoders is the share of parameters that stand before
the first difference (the "biased overlap", arXiv 2205.11656; its public code counts tensors instead, some twice).
Those are copied exactly. Layers behind the first difference get what fits, as long as their operations are of the
same kind.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Literal

import torch

from flexibert import FlexiBertConfig, FlexiBertModel
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
    model: torch.nn.Module,
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
            larger source by a Gaussian matrix of variance 1 / size first, which keeps distances in expectation.
        seed: Of the projections.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = source.layer_specs, model.config.layer_specs
    reach = common_layers(first, second)
    for given, wanted in zip(first[reach:], second[reach:]):
        if [operation.op for operation in given.operations] != [operation.op for operation in wanted.operations]:
            break
        reach += 1
    for name, parameter in model.state_dict().items():
        layer = int(name.split(".")[2]) if name.startswith("model.layers.") else -1
        if layer < reach and name in source_state and source_state[name].dim() == parameter.dim():
            fit(parameter, source_state[name], mode, generator)


def fit(target: torch.Tensor, source: torch.Tensor, mode: Mode, generator: torch.Generator) -> None:
    """Writes the source into the leading part of the target."""
    for dim, (size, available) in enumerate(zip(target.shape, source.shape)):
        # Biases and norms belong to single features, which a mixture of features has not.
        if available > size and mode == "random_projection" and target.dim() > 1:
            projection = torch.randn(available, size, generator=generator) / size**0.5
            source = torch.tensordot(source, projection.to(source.dtype), dims=([dim], [0])).movedim(-1, dim)
    common = tuple(slice(min(sizes)) for sizes in zip(target.shape, source.shape))
    target[common] = source[common]
