"""Tables of trained encoders: which ones, how good, and the space that they span.

NAS-Bench-BERT (Serianni and Kalita, ACL 2023, CC BY 4.0) is `data/BERT_benchmark.json` of
github.com/aaronserianni/training-free-nas, at commit 9b59a62666f133230a0c65fabe40538e43ab3253.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flexibert.spec import Architecture, OperationSpec, parse_layers
from search.errors import UserError
from search.space.search_space import SearchSpace, operation_label


OPERATIONS = {
    ("SA", "SDP"): {"op": "self_attention"},
    ("SA", "WMA"): {"op": "self_attention", "similarity": "weighted_multiplicative"},
    ("LT", "DFT"): {"op": "linear_transform", "source": "layer"},
    ("LT", "DCT"): {"op": "linear_transform", "source": "layer", "transform": "cosine"},
}
"""NAS-Bench-BERT's operations and their parameters -> ours; ("DSC", size) are convolutions with that kernel."""


def read_table(path: Path, metric: str = "glue") -> tuple[SearchSpace, list[Architecture], np.ndarray]:
    """The space that a table spans, its different architectures, and their (N,) scores in percent.

    Layers are written as in NAS-Bench-BERT or as layer specs; what is not `completed` is left out. The space has every
    choice that some encoder of the table has; NAS-Bench-BERT's table spans its whole space. An encoder that was
    trained twice has the mean of its scores.

    Raises:
        UserError: With the number of the item that is no encoder with a score; or there is none.
    """
    scores: dict[Architecture, list[float]] = {}
    items = json.loads(path.read_text(encoding="utf-8"))
    for number, item in enumerate(items):
        try:
            if not item.get("completed", True):
                continue
            encoder = _encoder(item)
            layers = _ordered(parse_layers([_layer(layer, encoder) for layer in encoder["layers"]]))
            score = float(item["scores"][metric])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}[{number}]: {type(error).__name__} {error}") from None
        if not math.isfinite(score):
            raise UserError(f"{path}[{number}].scores.{metric}: {score} is not accepted, expected a finite number")
        scores.setdefault(layers, []).append(score)
    if not scores:
        raise UserError(f"{path} holds no encoders")
    return spanned(list(scores)), list(scores), np.array([np.mean(values) for values in scores.values()])


def spanned(architectures: Sequence[Architecture]) -> SearchSpace:
    """The space of all choices that encoders have, in an order that is always the same."""
    layers = [layer for architecture in architectures for layer in architecture]
    groups = sorted((group for layer in layers for group in layer.operations), key=_order)
    operations = {operation_label(choice): choice for choice in map(_choice, groups)}
    return SearchSpace.from_dict(
        {
            "num_layers": sorted({len(architecture) for architecture in architectures}),
            "hidden_size": sorted({layer.hidden_size for layer in layers}),
            "num_heads": sorted({layer.num_heads for layer in layers}),
            "operations": list(operations.values()),
            "feed_forward_size": sorted({size for layer in layers for size in layer.feed_forward}),
            "feed_forward_depth": sorted({len(layer.feed_forward) for layer in layers}),
            "shared_hidden_size": all(len({layer.hidden_size for layer in a}) == 1 for a in architectures),
            "mixed_feed_forward": any(len(set(layer.feed_forward)) > 1 for layer in layers),
            "mixed_heads": any(len(layer.operations) > 1 for layer in layers),
        }
    )


def _encoder(item: dict) -> dict:
    """The part of an item that describes its encoder; the published table has it among the settings of training."""
    if "layers" in item:
        return item
    settings = item["hparams"]["model_hparam_overrides"]
    return {"hidden_size": settings["hidden_size"], "layers": settings["nas_config"]["encoder_layers"]}


def _choice(group: OperationSpec) -> dict:
    return {key: value for key, value in group.to_dict().items() if key != "num_heads"}


def _order(group: OperationSpec) -> tuple:
    """Sorts operations: NAS-Bench-BERT's first, the others by name and kernel."""
    label, known = operation_label(_choice(group)), [operation_label(choice) for choice in OPERATIONS.values()]
    place = known.index(label) if label in known else len(known)
    return place, group.op, getattr(group, "kernel_size", 0), label


def _ordered(layers: Architecture) -> Architecture:
    """The same layers with their groups of heads in the order of the space: heads have no order."""
    return tuple(replace(layer, operations=tuple(sorted(layer.operations, key=_order))) for layer in layers)


def _layer(layer: dict, encoder: dict) -> dict:
    if "operations" in layer:
        return layer
    kind, parameter = layer["operation_type"], layer["operation_parameter"]
    convolution = {"op": "dynamic_convolution", "kernel_size": parameter}
    operation = convolution if kind == "DSC" else OPERATIONS[kind, parameter]
    return {
        "hidden_size": encoder["hidden_size"],
        "operations": [{**operation, "num_heads": layer["num_operation_heads"]}],
        "feed_forward": [layer["feed_forward_dimension"]] * layer["num_feed_forward"],
    }
