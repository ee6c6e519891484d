"""Edit distance between the computational graphs of encoders, by the costs of FlexiBERT (arXiv 2205.11656, Appendix).

Every label has a weight, its place in a fixed order. To turn a vertex into another costs the difference of their
weights,
to insert or delete one its weight, and to insert or delete an edge 0.1. So the distance is

    least cost of a map between the vertices + 0.1 * (edges of a + edges of b - 2 * edges that the map keeps)

The first term is transport on a line, with insertion and deletion at weight 0: the area between two counts of vertices
above each weight, exact and a matter of nanoseconds. The second needs a search, `graph_matching.py`, over the maps of
least vertex cost. The result is a distance that some map attains, hence never below the true one; it is symmetric,
zero between equal graphs, and does not depend on what else is asked for. `benchmarks/edit_distance.py` measures how often it
is exact (about 95% of random pairs of 2 to 4 layers; FlexiBERT's own bound, the first of networkx: 2%).

Which vertices may be mapped to which depends on the order of labels only, not on their weights; so pairs of encoders
fall into few classes, and each class is searched once. All pairs of FlexiBERT's 9,312 smallest graphs, 43 million,
fall into 80 thousand.

Notation: n, m architectures, P pairs of them, T labels.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import DTypeLike
from scipy.spatial.distance import cdist

from flexibert.spec import LayerSpec

from .architecture_graph import (
    ABSENT,
    ADD_NORM,
    INPUT,
    OUTPUT,
    GraphBatch,
    Label,
    head_label,
    label_order,
    layer_labels,
)
from .graph_matching import most_common_edges


_EDGES_PER_UNIT = 10  # an edge costs 0.1
_PAIRS_AT_ONCE = 1 << 21
_PAIRS_IN_CACHE = 1 << 15
_ELEMENTS_AT_ONCE = 1 << 19  # of a (R, N, N) array in the search: the caches of a core hold a few of these
_FREE = 4  # the labels before (input, output, add_norm, a feed-forward layer) have ranks of their own

Architecture = Sequence[LayerSpec]


def label_weights(labels: Iterable[Label]) -> dict[Label, int]:
    """The paper's weights: places in the order of labels, with a gap of one before each new kind of operation."""
    weights, place, previous = {}, 0, ""
    for label in sorted({INPUT, OUTPUT, ADD_NORM, *labels}, key=label_order):
        place += bool(label.size) and label.kind != previous
        weights[label] = place
        place, previous = place + 1, label.kind
    return weights


class EditDistance:
    """Distances between architectures of a space.

    Attributes:
        weights: Label -> weight.
        starts: Maps of anchors to start the search from. More are better and slower: 1 is exact for 70% of random
            pairs of 2 to 4 layers, 16 for 95%, 64 for 98%.
        workers: Threads to search with.
    """

    def __init__(
        self,
        examples: Iterable[LayerSpec | Architecture],
        starts: int = 32,
        exchanges: bool = True,
        workers: int | None = None,
    ):
        """Learns the labels of a space from layers or architectures that hold each of them at least once."""
        layers = {layer for item in examples for layer in ([item] if isinstance(item, LayerSpec) else item)}
        self.weights = label_weights(label for layer in layers for label in layer_labels(layer))
        self.starts = starts
        self.exchanges = exchanges
        self.workers = workers or os.cpu_count() or 1

    def weight(self, label: Label) -> float:
        """Weight of any label. One that was not foreseen gets the mean of its neighbours in the order."""
        if label in self.weights:
            return self.weights[label]
        order = sorted({label, *self.weights}, key=label_order)
        place = order.index(label)
        below = self.weights[order[place - 1]]
        above = self.weights[order[place + 1]] if place + 1 < len(order) else below + 2
        return (below + above) / 2

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
        graphs = _Graphs([*a, *(b or ())], self.weight)
        rows, columns = graphs.index[: len(a)], graphs.index[len(a) if b is not None else 0 :]
        edges_kept = _EdgesKept(graphs, self.starts, self.exchanges, self.workers)
        result = np.empty((len(rows), len(columns)), dtype)
        height = max(1, _PAIRS_AT_ONCE // max(1, len(columns)))
        for top in range(0, len(rows), height):
            band, left = slice(top, top + height), 0 if b is not None else top
            result[band, left:] = graphs.distances(rows[band], columns[left:], edges_kept)
            if b is None:
                result[left:, band] = result[band, left:].T
        return result


class _Graphs:
    """The different graphs of some architectures, in an order of their own, so that a pair has one way to be asked.

    Attributes:
        index: For each architecture the index of its graph.
        batch: The U graphs; labels are ranks among the T labels that occur.
        num_vertices: (U,).
        num_edges: (U,).
        above: (U, T) how many vertices have at least that rank.
    """

    def __init__(self, architectures: Sequence[Architecture], weight: Callable[[Label], float]):
        layers = {layer for layers in architectures for layer in layers}
        labels = sorted(
            {INPUT, OUTPUT, ADD_NORM, *(x for layer in layers for x in layer_labels(layer))}, key=label_order
        )
        ranks = {label: rank for rank, label in enumerate(labels)}
        self._gaps = np.diff([weight(label) for label in labels])
        sorted_layers = {layer: _sort_heads(layer, ranks) for layer in layers}
        contents = {layer: tuple(ranks[x] for x in layer_labels(sorted_layers[layer])) for layer in layers}
        sizes = {layer: (layer.num_heads, len(layer.feed_forward)) for layer in layers}
        graphs = [tuple((sizes[layer], contents[layer]) for layer in layers) for layers in architectures]
        examples = dict(zip(graphs, architectures))
        order = sorted(examples)
        places = {graph: index for index, graph in enumerate(order)}
        self.index = np.array([places[graph] for graph in graphs], np.int64)
        self.batch = GraphBatch.build([[sorted_layers[layer] for layer in examples[g]] for g in order], ranks)
        present = self.batch.roles != ABSENT
        self.num_vertices = present.sum(1)
        self.num_edges = self.batch.edges.any(2).sum(1)
        counts = [((self.batch.labels >= rank) & present).sum(1) for rank in range(len(labels))]
        self.above = np.stack(counts, 1).astype(np.int16)

    def distances(self, i: np.ndarray, j: np.ndarray, edges_kept: "_EdgesKept") -> np.ndarray:
        """(n, m) distances between graphs `i` (n,) and `j` (m,)."""
        area = self.above[:, 1:] * self._gaps
        result = cdist(area[i], area[j], "cityblock")
        result *= _EDGES_PER_UNIT  # whole numbers up to the last line, so that a distance has no rounding errors
        result += self.num_edges[i][:, None] + self.num_edges[j]
        pairs = np.broadcast_arrays(i[:, None], j)
        result -= 2 * edges_kept(*(index.ravel() for index in pairs)).reshape(result.shape)
        result /= _EDGES_PER_UNIT
        return result


class _EdgesKept:
    """Edges that the best map found between two graphs keeps, searched once for each class of pairs.

    A pair belongs to a class by what stands where in its graphs and by which vertices may be mapped to which. For the
    latter, the labels of both are ranked, and ranks between which everything passes freely are made equal: that no
    vertex of one graph with the higher rank stands against the stream with one of the other with the lower rank.
    """

    def __init__(self, graphs: _Graphs, starts: int, exchanges: bool, workers: int):
        self._graphs, self._starts, self._exchanges, self._workers = graphs, starts, exchanges, workers
        batch, num_ranks = graphs.batch, graphs.above.shape[1]
        self._has = graphs.above > np.pad(graphs.above[:, 1:], ((0, 0), (0, 1)))
        code = np.random.default_rng(0).integers(1 << 63, size=(2, batch.labels.shape[1], ABSENT + 1), dtype=np.uint64)
        code[:, :, ABSENT] = 0
        # What is sensitive to a rank: a sum of codes, each for a vertex of that rank, one kind for each side.
        self._codes = np.zeros((2, len(batch.labels), num_ranks), np.uint64)
        codes = code[:, np.arange(batch.labels.shape[1]), batch.roles]
        for rank in range(num_ranks):
            self._codes[:, :, rank] = np.where(batch.labels == rank, codes, 0).sum(2)
        self._classes, self._values = np.zeros(0, np.uint64), np.zeros(0, np.int64)

    def __call__(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """(P,) edges for P pairs of graphs."""
        i, j = np.minimum(i, j), np.maximum(i, j)
        classes = np.zeros(len(i), np.uint64)
        for start in range(0, len(i), _PAIRS_IN_CACHE):
            part = slice(start, start + _PAIRS_IN_CACHE)
            for label, rank in enumerate(self._ranks(i[part], j[part])):
                code = self._codes[0, i[part], label] + self._codes[1, j[part], label]
                classes[part] += code * (rank + 1).astype(np.uint64)
        found, example, inverse = np.unique(classes, return_index=True, return_inverse=True)
        place = np.minimum(np.searchsorted(self._classes, found), max(0, len(self._classes) - 1))
        new = self._classes[place] != found if len(self._classes) else np.ones(len(found), bool)
        if new.any():
            self._values = np.append(self._values, self._search(i[example[new]], j[example[new]]))
            self._classes = np.append(self._classes, found[new])
            order = np.argsort(self._classes)
            self._classes, self._values = self._classes[order], self._values[order]
        return np.where(
            i == j, self._graphs.num_edges[i], self._values[np.searchsorted(self._classes, found)][inverse]
        )

    def _ranks(self, i: np.ndarray, j: np.ndarray) -> Iterator[np.ndarray]:
        """For each label, the rank that it has in P pairs: (P,) whole numbers."""
        above = self._graphs.above
        streams = [np.sign(above[j, label] - above[i, label]) for label in range(above.shape[1])]
        streams.append(np.zeros_like(streams[0]))
        rank = np.zeros(len(i), np.int16)
        yield rank
        in_a = in_b = np.ones(len(i), bool)  # whether a vertex of a or b has the present rank
        before = streams[0]  # the stream into the label that came last
        for label in range(1, above.shape[1]):
            of_a, of_b = self._has[i, label], self._has[j, label]
            occurs = of_a | of_b
            stream, after = streams[label], streams[label + 1]
            joins = ~occurs
            if label >= _FREE:
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
        shapes = np.stack([size, batch.num_layers[i], batch.num_layers[j]], 1)

        def search(part: np.ndarray) -> None:
            sides = []
            for graph in (i[part], j[part]):
                side = batch.take(graph).resize(size[part[0]])
                sides.append(dataclasses.replace(side, labels=np.take_along_axis(ranks[part], side.labels, 1)))
            result[part] = most_common_edges(*sides, self._starts, self._exchanges)

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
