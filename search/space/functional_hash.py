"""When two attention graphs are the same function: by their values on a small fixed input, without a model.

AutoML-Zero (arXiv 2003.03384, Section 3.2) skips candidates in this way; canonical forms find fewer.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from flexibert.attention_graph import INPUTS, AttentionGraph
from flexibert.spec import LayerSpec, layers_to_dicts


_LENGTH, _SIZE = 5, 3


def _probe() -> dict[str, np.ndarray]:
    """Scattered fixed numbers, small and large, with the inputs in all 24 orders: (24, 2, 5, 3) for each input."""
    numbers = np.cos(np.arange(1.0, 1 + len(INPUTS) * _LENGTH * _SIZE) ** 2).reshape(len(INPUTS), 1, _LENGTH, _SIZE)
    numbers = numbers * np.array([0.3, 2.0]).reshape(2, 1, 1)
    orders = np.array(list(itertools.permutations(range(len(INPUTS)))))
    return {name: numbers[orders[:, i]] for i, name in enumerate(INPUTS)}


_PROBE = _probe()


def _softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: np.ndarray = weights / weights.sum(axis=-1, keepdims=True)
    return shares


def _cosine_similarity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = (rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6) for rows in (x, y))
    cosines: np.ndarray = x @ y.swapaxes(-1, -2)
    return cosines


def _euclidean_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    distances: np.ndarray = np.sqrt(((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1) + 1e-6)
    return distances


_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "neg": np.negative,
    "transpose": lambda x: x.swapaxes(-1, -2),
    "scale": lambda x: x / math.sqrt(_SIZE),
    "softmax": _softmax,
    "logsigmoid": lambda x: -np.logaddexp(0, -x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "add": np.add,
    "matmul": np.matmul,
    "cosine_similarity": _cosine_similarity,
    "euclidean_distance": _euclidean_distance,
}


def evaluate(graph: AttentionGraph, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The result of a graph on inputs (..., length, 3), which stand for one head of size 3."""
    values = dict(inputs)
    for node in graph.nodes:
        values[node.name] = _FUNCTIONS[node.primitive](*(values[operand] for operand in node.operands))
    return values[graph.nodes[-1].name]


@lru_cache(maxsize=1 << 14)
def function_hash(graph: AttentionGraph) -> str:
    """Equal for graphs that compute the same function, whatever their form and the names of their projections.

    `q`, `k`, `v` and `p` are linear maps of the same input, so graphs that only exchange them are one model. Values
    are compared to seven digits.
    """
    with np.errstate(all="ignore"):
        output = evaluate(graph, _PROBE).reshape(len(_PROBE["q"]), 2, -1)  # (24, 2, 15)
        scale = np.maximum(np.abs(output).max(axis=-1, keepdims=True), 1e-6)
        digits = np.rint(np.concatenate([output / scale, np.log10(scale)], axis=-1) * 1e7).astype(np.int64)
    return min(hashlib.sha256(order.tobytes()).hexdigest() for order in digits)[:12]


def function_fingerprint(layers: Sequence[LayerSpec]) -> str:
    """Identity of what an architecture computes: `flexibert.spec.fingerprint` with `function_hash` for its graphs."""
    data = layers_to_dicts(layers)
    for layer, plain in zip(layers, data):
        for operation, fields in zip(layer.operations, plain["operations"]):
            if operation.graph is not None:
                fields[operation.searched] = function_hash(operation.graph)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
