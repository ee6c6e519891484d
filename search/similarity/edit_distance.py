"""Edit distance between the computational graphs of encoders, by the costs of FlexiBERT (arXiv 2205.11656, Appendix).

Every label has a weight, its place in a fixed order. Turning a vertex into another costs the difference of their
weights, inserting or deleting one its weight, and inserting or deleting an edge 0.1. So the distance is

    least cost of a map between the vertices + 0.1 * (edges of a + edges of b - 2 * edges that the map keeps)

The first term is transport on a line, with insertion and deletion at weight 0: the area between two counts of vertices
above each weight, exact and a matter of nanoseconds. The second needs a search, see `graph_matching.py`, over the maps
of least vertex cost; to leave those costs at least 2 and never paid off in any pair that was solved exactly. Some map
attains the result, so it is never below the true distance. It is symmetric, zero between equal graphs, and does not
depend on what else is asked for. `tests/test_edit_distance.py` compares it with certified exact values.

Which vertices may become which depends on the order of the labels, not on their weights. So pairs of encoders fall
into classes, and each class is searched once: all 43 million pairs of FlexiBERT's 9,312 smallest graphs fall into 24
thousand.

Notation: n, m architectures, U different graphs, P pairs of them, T different weights of labels.
"""

import bisect
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import DTypeLike
from scipy.spatial.distance import cdist

from flexibert.spec import Architecture, LayerSpec

from .computational_graph import (
    ABSENT,
    ADD_NORM,
    INPUT,
    OUTPUT,
    GraphBatch,
    Label,
    Topology,
    head_label,
    label_order,
    layer_labels,
)
from .graph_matching import most_common_edges


_EDGES_PER_UNIT = 10  # an edge costs 0.1
_PAIRS_AT_ONCE = 1 << 21
_PAIRS_IN_CACHE = 1 << 15
_ELEMENTS_AT_ONCE = 1 << 19  # of a (R, N, N) array in the search: the caches of a core hold a few of these
_EXACT_SIZE = 64
_FREE = 4  # the weights before (input, output, add_norm, a feed-forward layer) have ranks of their own


def label_weights(labels: Iterable[Label]) -> dict[Label, float]:
    """The paper's weights: places in the order of labels, with a gap of one before each new kind of operation.

    Searched attention graphs of one size share a place, as there is no end of them; within it a digit of their hash
    tells them apart.
    """
    weights: dict[Label, float] = {}
    place, previous = -1.0, Label("")
    for label in sorted({INPUT, OUTPUT, ADD_NORM, *labels}, key=label_order):
        size, dash, digest = str(label.parameter).partition("-")
        group = label._replace(parameter=size) if dash else label
        if group != previous:
            place += 2 if label.size and label.kind != previous.kind else 1
        weights[label] = place + (int(digest[0], 16) / 16 if dash else 0.0)
        previous = group
    return weights


class EditDistance:
    """Distances between architectures of a space.

    Attributes:
        weights: Label -> weight.
        starts: Where to start the search from, how often. More is better and slower: of random pairs of 2 to 4 layers,
            1 gets 72% exactly, 8 get 92%, 32 get 97%.
        exchanges: Whether to search at all; without, and with one start, a pair of 4 layers takes 0.1 ms, 30 times
            less, and the result is 0.3% too large on average. Good enough to learn from.
        workers: Threads to search with.
        topology: Of the graphs.
    """

    def __init__(
        self,
        examples: Iterable[LayerSpec | Architecture] = (),
        starts: int = 32,
        exchanges: bool = True,
        workers: int | None = None,
        weights: Mapping[Label, float] | None = None,
        topology: Topology = "chain",
    ):
        """Learns the labels of a space from layers, or architectures, that hold each of them; or takes `weights`."""
        layers = {layer for item in examples for layer in ([item] if isinstance(item, LayerSpec) else item)}
        weights = weights or label_weights(label for layer in layers for label in layer_labels(layer))
        self.weights = dict(sorted(weights.items(), key=lambda item: label_order(item[0])))
        self._order = [label_order(label) for label in self.weights]
        self.starts = starts
        self.exchanges = exchanges
        self.workers = workers or os.cpu_count() or 1
        self.topology = topology

    def weight(self, label: Label) -> float:
        """Weight of any label. One that was not foreseen gets the mean of its neighbours in the order."""
        if label in self.weights:
            return self.weights[label]
        place = bisect.bisect(self._order, label_order(label))
        weights = list(self.weights.values())
        below = weights[place - 1]
        return (below + (weights[place] if place < len(weights) else below + 2)) / 2

    def pairwise(
        self, a: Sequence[Architecture], b: Sequence[Architecture] | None = None, dtype: DTypeLike = np.float64
    ) -> np.ndarray:
        """Distances between all architectures of `a` and all of `b`, by default `a` itself.

        Args:
            a: n architectures.
            b: m architectures.
            dtype: Type of the result; float32 halves the memory of large matrices.

        Returns:
            (n, m) distances.
        """
        result = np.zeros((len(a), len(a if b is None else b)), dtype)
        if not result.size:
            return result
        graphs = _Graphs([*a, *(b or ())], self.weight, self.topology)
        rows, columns = graphs.index[: len(a)], graphs.index[0 if b is None else len(a) :]
        edges_kept = _EdgesKept(graphs, self.starts, self.exchanges, self.workers)
        height = max(1, _PAIRS_AT_ONCE // len(columns))
        for top in range(0, len(rows), height):
            band, left = slice(top, top + height), top if b is None else 0
            result[band, left:] = graphs.distances(rows[band], columns[left:], edges_kept)
            if b is None:
                result[left:, band] = result[band, left:].T
        return result


class _Graphs:
    """The different graphs of some architectures, in an order of their own, so that a pair is always asked one way.

    Attributes:
        index: For each architecture the index of its graph.
        batch: The U graphs; labels are ranks of the T weights that occur.
        num_vertices: (U,).
        num_edges: (U,).
        above: (U, T) how many vertices have at least that rank.
    """

    def __init__(self, architectures: Sequence[Architecture], weight: Callable[[Label], float], topology: Topology):
        layers = {layer for layers in architectures for layer in layers}
        labels = {INPUT, OUTPUT, *(label for layer in layers for label in layer_labels(layer))}
        weights = {label: weight(label) for label in labels}
        levels = sorted(set(weights.values()))
        ranks = {label: levels.index(weights[label]) for label in labels}
        ordered = {layer: _sort_heads(layer, ranks) for layer in layers}
        contents = {
            layer: (layer.num_heads, *(ranks[label] for label in layer_labels(layer))) for layer in ordered.values()
        }
        keys = [tuple(contents[ordered[layer]] for layer in architecture) for architecture in architectures]
        graphs = dict(sorted(zip(keys, architectures), key=lambda item: item[0]))
        places = {key: place for place, key in enumerate(graphs)}
        self.index = np.array([places[key] for key in keys])
        sorted_heads = [[ordered[layer] for layer in graph] for graph in graphs.values()]
        self.batch = GraphBatch.build(sorted_heads, ranks, topology)
        present = self.batch.roles != ABSENT
        self.num_vertices = present.sum(1)
        self.num_edges = self.batch.edges.any(2).sum(1)
        counts = [((self.batch.labels >= rank) & present).sum(1) for rank in range(len(levels))]
        self.above = np.stack(counts, 1).astype(np.int16)
        self._gaps = np.diff(levels)

    def distances(self, i: np.ndarray, j: np.ndarray, edges_kept: "_EdgesKept") -> np.ndarray:
        """(n, m) distances between graphs `i` (n,) and `j` (m,)."""
        area = self.above[:, 1:] * self._gaps
        result: np.ndarray = cdist(area[i], area[j], "cityblock")
        result *= _EDGES_PER_UNIT  # whole numbers up to the last line, so that nothing is rounded before
        result += self.num_edges[i][:, None] + self.num_edges[j]
        pairs = np.broadcast_arrays(i[:, None], j)
        result -= 2 * edges_kept(*(index.ravel() for index in pairs)).reshape(result.shape)
        result /= _EDGES_PER_UNIT
        return result


class _EdgesKept:
    """Edges that the best map found between two graphs keeps, searched once for each class of pairs.

    A pair belongs to a class by the structure of its graphs and by which vertices may become which. For the latter the
    weights of both graphs are ranked anew, and neighbouring ranks are made one where that changes nothing: the stream
    (see `graph_matching.py`) goes one way before, between and behind them, and there is no vertex that it would not
    carry to one of the other graph.
    """

    def __init__(self, graphs: _Graphs, starts: int, exchanges: bool, workers: int):
        self._graphs, self._starts, self._exchanges, self._workers = graphs, starts, exchanges, workers
        size, num_ranks = graphs.batch.labels.shape[1], graphs.above.shape[1]
        self._has = graphs.above > np.pad(graphs.above[:, 1:], ((0, 0), (0, 1)))
        # A class is known by the sum over its vertices of rank times a random number for the vertex, modulo 2^64.
        random = np.random.default_rng(0).integers(1 << 63, size=(2, size, ABSENT + 1), dtype=np.uint64)
        random[:, :, ABSENT] = 0
        numbers = random[:, np.arange(size), graphs.batch.roles]
        sums = [np.where(graphs.batch.labels == rank, numbers, 0).sum(2) for rank in range(num_ranks)]
        self._numbers = np.stack(sums, 2)  # (side, U, T)
        self._classes, self._values = np.zeros(0, np.uint64), np.zeros(0, np.int64)

    def __call__(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """(P,) edges for P pairs of graphs."""
        i, j = np.minimum(i, j), np.maximum(i, j)
        classes = np.zeros(len(i), np.uint64)
        for start in range(0, len(i), _PAIRS_IN_CACHE):
            part = slice(start, start + _PAIRS_IN_CACHE)
            for weight, rank in enumerate(self._ranks(i[part], j[part])):
                numbers = self._numbers[0, i[part], weight] + self._numbers[1, j[part], weight]
                classes[part] += numbers * (rank + 1).astype(np.uint64)
        found, example, inverse = np.unique(classes, return_index=True, return_inverse=True)
        new = ~np.isin(found, self._classes, assume_unique=True)
        if new.any():
            values = np.append(self._values, self._search(i[example[new]], j[example[new]]))
            known = np.append(self._classes, found[new])
            order = np.argsort(known)
            self._classes, self._values = known[order], values[order]
        kept = self._values[np.searchsorted(self._classes, found)][inverse]
        return np.where(i == j, self._graphs.num_edges[i], kept)

    def _ranks(self, i: np.ndarray, j: np.ndarray) -> Iterator[np.ndarray]:
        """For each weight, the rank that it has in P pairs: (P,) whole numbers."""
        above = self._graphs.above
        streams = [np.sign(above[j, weight] - above[i, weight]) for weight in range(above.shape[1])]
        streams.append(np.zeros_like(streams[0]))
        rank = np.zeros(len(i), np.int16)
        yield rank
        in_a = in_b = np.ones(len(i), bool)  # whether a vertex of a or b has the present rank
        before = streams[0]  # the stream up to the weight that occurred last
        for weight in range(1, above.shape[1]):
            of_a, of_b = self._has[i, weight], self._has[j, weight]
            occurs = of_a | of_b
            stream, after = streams[weight], streams[weight + 1]
            joins = ~occurs
            if weight >= _FREE:
                against = np.where(stream > 0, in_b & of_a, in_a & of_b)
                joins |= (stream != 0) & ~against & (before != -stream) & (after != -stream)
            in_a, in_b = of_a | (joins & in_a), of_b | (joins & in_b)
            before = np.where(occurs, stream, before)
            rank = rank + ~joins
            yield rank

    def _search(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """(K,) edges for pairs that stand for K new classes."""
        graphs, batch = self._graphs, self._graphs.batch
        ranks = np.stack(list(self._ranks(i, j)), 1)
        result = np.zeros(len(i), np.int64)
        size = np.maximum(graphs.num_vertices[i], graphs.num_vertices[j])
        size = np.where(size <= _EXACT_SIZE, size, -(-size // 16) * 16)  # large graphs are rarely of equal size
        shapes = np.stack([size, batch.num_layers[i], batch.num_layers[j]], 1)

        def search(part: np.ndarray) -> None:
            sides = []
            for graph in (i[part], j[part]):
                side = batch.take(graph).resize(size[part[0]])
                sides.append(dataclasses.replace(side, labels=np.take_along_axis(ranks[part], side.labels, 1)))
            result[part] = most_common_edges(sides[0], sides[1], self._starts, self._exchanges)

        with ThreadPoolExecutor(self._workers) as executor:
            parts = []
            for shape in np.unique(shapes, axis=0):
                members = np.flatnonzero((shapes == shape).all(1))
                at_once = max(1, _ELEMENTS_AT_ONCE // (self._starts * shape[0] ** 2))
                parts += [members[k : k + at_once] for k in range(0, len(members), at_once)]
            list(executor.map(search, parts))
        return result


def _sort_heads(layer: LayerSpec, ranks: Mapping[Label, int]) -> LayerSpec:
    """The layer with its groups of heads in order of labels."""
    order = sorted(layer.operations, key=lambda operation: ranks[head_label(operation, layer)])
    return dataclasses.replace(layer, operations=tuple(order))
