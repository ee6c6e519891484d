"""Latency from the description of an encoder, so that thousands of candidates are judged and few are measured.

The latency of an encoder is taken for the sum of what its parts take: kinds of operations and their sizes times
coefficients that are not negative, fitted to encoders that were measured (non-negative least squares; Lawson and
Hanson 1974, chapter 23). At a fixed batch and length that is what theory says: so many kernels are started, so many
products of known size are computed. How far it is off is measured by cross-validation, as a share of the latency.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

from flexibert.attention_graph import softmax_tail
from flexibert.spec import LayerSpec, OperationSpec


if TYPE_CHECKING:
    from flexibert import FlexiBertConfig


FOLDS = 5
ENOUGH = 12
"""Fewer measured encoders tell nothing."""

GOOD_ERROR = 0.2
"""A larger mean error in cross-validation, as a share of the latency, is of no use."""

CLEARLY = 2.5
"""So many standard errors from a limit is clear."""


@dataclass(frozen=True)
class Sample:
    """An encoder that was measured: its `features`, and its latency in milliseconds."""

    features: Mapping[str, float]
    ms: float


class LatencyPredictor:
    """Fitted on measured encoders.

    Attributes:
        samples: Those.
        mean_error: Mean absolute error in cross-validation, as a share of the latency; infinite where there are too
            few of them.
        standard_error: Root of the mean square of the same.
    """

    def __init__(self, samples: Sequence[Sample]):
        self.samples = tuple(samples)
        self.mean_error = self.standard_error = float("inf")
        self.names = sorted({name for sample in samples for name in sample.features})
        self.matrix = np.array([[sample.features.get(name, 0) for name in self.names] for sample in samples])
        self.ms = np.array([sample.ms for sample in samples])
        if len(samples) < ENOUGH:
            return
        self.coefficients = _fit(self.matrix, self.ms)
        folds = np.arange(len(samples)) % FOLDS
        errors = np.empty(len(samples))
        for fold in range(FOLDS):
            held = folds == fold
            predicted = self.matrix[held] @ _fit(self.matrix[~held], self.ms[~held])
            errors[held] = predicted / self.ms[held] - 1
        self.mean_error = float(np.abs(errors).mean())
        self.standard_error = float(np.sqrt((errors**2).mean()))

    @property
    def is_good(self) -> bool:
        """Whether it may be asked."""
        return self.mean_error <= GOOD_ERROR

    @property
    def text(self) -> str:
        """How good it is, for people."""
        return f"fitted on {len(self.samples)} encoders, mean error {100 * self.mean_error:.1f} % in cross-validation"

    def predict(self, config: "FlexiBertConfig") -> float | None:
        """Milliseconds of a forward pass; None for an encoder with a kind of part that no measured one had."""
        own = features(config)
        if not own.keys() <= set(self.names):
            return None
        return float(np.array([own[name] for name in self.names]) @ self.coefficients)

    def judge(self, config: "FlexiBertConfig", limit: float) -> bool | None:
        """Whether an encoder is clearly within a limit in milliseconds, or clearly beyond it; None for neither."""
        predicted = self.predict(config)
        margin = CLEARLY * self.standard_error
        if predicted is None or margin >= 1:
            return None
        if predicted < limit * (1 - margin):
            return True
        return False if predicted > limit * (1 + margin) else None


def _fit(matrix: np.ndarray, ms: np.ndarray) -> np.ndarray:
    """Coefficients (P,) of features (N, P) for latencies (N,); of what is off, the share counts."""
    weighted = matrix / ms[:, None]
    scale = np.maximum(np.linalg.norm(weighted, axis=0), 1e-12)
    # A thousandth of each column keeps those that say the same from taking turns between two fits.
    system = np.concatenate([weighted / scale, 1e-3 * np.eye(len(scale))])
    target = np.concatenate([np.ones(len(ms)), np.zeros(len(scale))])
    return nnls(system, target)[0] / scale


def features(config: "FlexiBertConfig") -> Counter[str]:
    """What an encoder consists of: name of a kind of part -> its number or size; 0 for all other names."""
    found: Counter[str] = Counter({"encoder": 1})
    positions, before = config.position_embedding_type, config.embedding_size
    for layer in config.layer_specs:
        found["layers"] += 1
        found["layers' width"] += layer.hidden_size
        if before != layer.hidden_size:
            found["changes of width"] += 1
            found["products"] += before * layer.hidden_size
        read = sum(len(operation.reads(positions)) * operation.projected_heads for operation in layer.operations)
        found["products"] += read * layer.resolved_head_size * layer.hidden_size
        if layer.output_projection:
            found["products"] += layer.mixing_size * layer.hidden_size
        sizes = (layer.hidden_size, *layer.feed_forward, layer.hidden_size)
        found["feed-forward layers"] += len(layer.feed_forward)
        found["feed-forward width"] += sum(layer.feed_forward)
        found["products"] += sum(size * after for size, after in pairwise(sizes))
        found["further groups of heads"] += len(layer.operations) - 1
        for operation in layer.operations:
            found.update(_mixing(operation, layer, positions))
        before = layer.hidden_size
    return +found  # without zeros


def _mixing(operation: OperationSpec, layer: LayerSpec, positions: str) -> Counter[str]:
    """What a group of heads takes besides the projections that it reads."""
    heads, size, graph = operation.num_heads, layer.resolved_head_size, operation.graph
    options = {name: value for name, value in operation.to_dict().items() if name not in ("num_heads", "nodes")}
    kind = ", ".join(f"{value}" if name == "op" else f"{name} {value}" for name, value in options.items())
    tail = softmax_tail(graph) if graph is not None else None
    if tail is not None:
        kind += ", softmax attention"
    found = Counter({f"{kind}: groups": 1, f"{kind}: heads": heads, f"{kind}: width": heads * size})
    found[f"{operation.op}: own products"] = operation.num_parameters(layer)
    if operation.op == "linear_transform":  # products with matrices that are no parameters
        width = layer.hidden_size if getattr(operation, "source", "") == "layer" else size
        found[f"{operation.op}: own products"] = heads * size * width
    if operation.scores_positions and positions.startswith("relative"):
        found[f"{kind}: relative positions"] = heads * size
    if graph is not None:
        shapes = graph.shapes()
        for node in graph.nodes if tail is None else tail.prefix:
            summed = (shapes[node.operands[0]][1],) if node.primitive == "matmul" else ()
            place = (*shapes[node.name], *summed)
            found[f"{node.primitive} {' x '.join(place)}: number"] += 1
            found[f"{node.primitive} {' x '.join(place)}: size"] += heads * size ** place.count("D")
    return found
