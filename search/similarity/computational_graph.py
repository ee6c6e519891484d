"""The computational graph of an encoder, and its hash: equal hashes, equal graphs up to the order of vertices.

A vertex is a head, a feed-forward layer, an "add and norm", the input or the output; it carries a label, and width
stands in the labels of heads only (FlexiBERT, arXiv 2205.11656, Section 3.1):

    input --+--> sa_h256_p-sdp --+--> add_norm --+--> f1024 --> f512 --+--> add_norm --+--> ... --> output
            +--> sa_h256_p-sdp --+               |                     |               |
            +--------------------+               +---------------------+               |

The hash is the one of NAS-Bench-101 (Ying et al. 2019, arXiv 1902.09635) in the form that FlexiBERT published.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from flexibert.spec import ABBREVIATIONS, OPERATIONS, LayerSpec, OperationSpec


Topology = Literal["chain", "residual"]
"""Where a feed-forward network of several hidden layers is normalised: "chain" has one add_norm after all of them, as
the models of this package and FlexiBERT's since January 2022; "residual" one after each, as its earlier hashes."""


class Label(NamedTuple):
    """What a vertex does.

    Attributes:
        kind: One of `KINDS`.
        size: Hidden size of a head's layer, or width of a feed-forward layer.
        parameter: The head's similarity, transform, kernel size or attention graph.
    """

    kind: str
    size: int = 0
    parameter: str | int = ""

    def __str__(self) -> str:
        if self.kind == "f":
            return f"f{self.size}"
        return f"{self.kind}_h{self.size}_p-{self.parameter}" if self.size else self.kind


_PAPERS_KINDS = ("input", "output", "add_norm", "f", "l", "sa", "c")
KINDS = tuple(dict.fromkeys((*_PAPERS_KINDS, *(operation.symbol for operation in OPERATIONS.values()))))
"""Kinds of vertices in the papers' order: linear transforms, self-attention and dynamic convolutions, to which the
other operations are added, lightweight convolutions and searched attention graphs first."""

INPUT, OUTPUT, ADD_NORM = Label("input"), Label("output"), Label("add_norm")

_PARAMETER_ORDER = [*ABBREVIATIONS.values()]


HeadLabel = Callable[[OperationSpec, LayerSpec], "Label"]


def head_label(operation: OperationSpec, layer: LayerSpec) -> Label:
    """Label of each head of a group. Details such as `source` and `mix_padding` do not enter."""
    return Label(operation.symbol, layer.hidden_size, operation.parameter)


def layer_labels(layer: LayerSpec, topology: Topology = "chain") -> tuple[Label, ...]:
    """Labels of the vertices of a layer, in their order."""
    return tuple(label for block, _ in _blocks(layer, topology, head_label) for label in (*block, ADD_NORM))


def label_order(label: Label) -> tuple[int, int, int | str]:
    """Sort key that puts labels in the papers' order: by kind, then size, then parameter."""
    parameter = label.parameter
    if parameter in _PARAMETER_ORDER:
        parameter = _PARAMETER_ORDER.index(str(parameter))
    return KINDS.index(label.kind), label.size, parameter


@dataclass(frozen=True)
class ArchitectureGraph:
    """A directed acyclic graph; every edge leads from a vertex to a later one.

    Attributes:
        labels: One label per vertex, the input first and the output last.
        edges: Pairs of vertex indices, sorted.
    """

    labels: tuple[Label, ...]
    edges: tuple[tuple[int, int], ...]


def architecture_graph(
    layers: Sequence[LayerSpec],
    topology: Topology = "chain",
    head_label: HeadLabel = head_label,
) -> ArchitectureGraph:
    """Computational graph of an encoder, its vertices in the order of construction."""
    labels, edges, last = [INPUT], [], 0
    for layer in layers:
        for block, parallel in _blocks(layer, topology, head_label):
            inside = range(len(labels), len(labels) + len(block))
            norm = inside.stop
            paths = [[last, vertex, norm] for vertex in inside] if parallel else [[last, *inside, norm]]
            edges += [edge for path in [*paths, [last, norm]] for edge in zip(path, path[1:])]
            labels += [*block, ADD_NORM]
            last = norm
    edges.append((last, len(labels)))
    return ArchitectureGraph((*labels, OUTPUT), tuple(sorted(edges)))


def _blocks(layer: LayerSpec, topology: Topology, head_label: HeadLabel) -> list[tuple[list[Label], bool]]:
    """What stands between two add_norms (or the input and the first): labels, and whether they are parallel."""
    heads = [head_label(operation, layer) for operation in layer.operations for _ in range(operation.num_heads)]
    widths = [Label("f", width) for width in layer.feed_forward]
    chains = [widths] if topology == "chain" else [[width] for width in widths]
    return [(heads, True), *((chain, False) for chain in chains)]


def graph_hash(graph: ArchitectureGraph, algorithm: str = "sha256") -> str:
    """Hash that does not depend on the order of vertices: five rounds of hashing each vertex with its neighbours.

    Args:
        graph: Any graph.
        algorithm: A name that `hashlib.new` knows.
    """

    def digest(text: str) -> str:
        return hashlib.new(algorithm, text.encode(), usedforsecurity=False).hexdigest()

    sources: list[list[int]] = [[] for _ in graph.labels]
    targets: list[list[int]] = [[] for _ in graph.labels]
    for source, target in graph.edges:
        sources[target].append(source)
        targets[source].append(target)
    vertices = range(len(graph.labels))
    hashes = [digest(str((len(targets[v]), len(sources[v]), str(graph.labels[v])))) for v in vertices]
    for _ in range(5):
        around = [["".join(sorted(hashes[u] for u in side[v])) for side in (sources, targets)] for v in vertices]
        hashes = [digest("|".join([*around[v], hashes[v]])) for v in vertices]
    return digest(str(sorted(hashes)))


def flexibert2_hash(layers: Sequence[LayerSpec]) -> str:
    """Identity of an architecture in FlexiBERT 2 and EdgeTran: MD5 of its graph and its widths.

    The label of a head tells its size instead of the layer's width there.
    """

    def sized_label(operation: OperationSpec, layer: LayerSpec) -> Label:
        label = head_label(operation, layer)
        return Label(f"{label.kind}_{label.parameter}_{layer.resolved_head_size}")

    widths = [layer.hidden_size for layer in layers]
    feed_forward = [list(layer.feed_forward) for layer in layers]
    graph = graph_hash(architecture_graph(layers, head_label=sized_label), "md5")
    return hashlib.md5(f"{graph}{widths}{feed_forward}".encode(), usedforsecurity=False).hexdigest()


# --- graphs as arrays ---------------------------------------------------------------------------------------------

HEAD, FEED_FORWARD, MIXED, OUT, END, ABSENT = range(6)
"""What a vertex is: a head, a feed-forward layer, m, o (the input is o_0), the output, or nothing at all."""


@dataclass(frozen=True)
class GraphBatch:
    """Graphs as arrays; those with fewer than N vertices end in ABSENT ones of rank 0.

    Attributes:
        labels: (K, N) ranks of the labels; the input has rank 0, the output 1, an add_norm 2.
        roles: (K, N).
        layers: (K, N) index of the layer, from 0; for o_i the index i.
        places: (K, N) position among the heads of the layer or along its feed-forward chain.
        edges: (K, E, 2) vertices from which and to which the edges lead; missing edges are (0, 0).
        first: (K, roles, l + 1) the vertex with place 0.
        counts: (K, roles, l + 1) how many vertices there are with that role and layer.
        num_layers: (K,).
    """

    labels: np.ndarray
    roles: np.ndarray
    layers: np.ndarray
    places: np.ndarray
    edges: np.ndarray
    first: np.ndarray
    counts: np.ndarray
    num_layers: np.ndarray

    @classmethod
    def build(
        cls, architectures: Sequence[Sequence[LayerSpec]], ranks: Mapping[Label, int], topology: Topology = "chain"
    ) -> "GraphBatch":
        """Graphs of architectures whose heads are sorted by rank, padded to the largest."""
        blocks = {layer: _LayerBlock(layer, ranks, topology) for layers in architectures for layer in layers}
        sizes = [2 + sum(len(blocks[layer].labels) for layer in layers) for layers in architectures]
        num_edges = [1 + sum(len(blocks[layer].edges) for layer in layers) for layers in architectures]
        depth, count = max(map(len, architectures)), len(architectures)
        vertices = np.zeros((4, count, max(sizes)), np.int32)
        labels, roles, layer_of, places = vertices
        roles[:] = ABSENT
        edges = np.zeros((count, max(num_edges), 2), np.int32)
        first, counts = np.zeros((2, count, ABSENT + 1, depth + 1), np.int32)
        for k, layers in enumerate(architectures):
            roles[k, 0], counts[k, OUT, 0] = OUT, 1
            vertex, edge = 1, 0
            for i, layer in enumerate(layers):
                block = blocks[layer]
                inside = slice(vertex, vertex + len(block.labels))
                labels[k, inside], roles[k, inside], places[k, inside] = block.labels, block.roles, block.places
                layer_of[k, inside] = i
                layer_of[k, inside.stop - 1] = i + 1
                edges[k, edge : edge + len(block.edges)] = block.edges + (vertex - 1)
                for role, relative, number in block.groups:
                    first[k, role, i + (role == OUT)] = vertex + relative
                    counts[k, role, i + (role == OUT)] = number
                vertex, edge = inside.stop, edge + len(block.edges)
            labels[k, vertex], roles[k, vertex] = ranks[OUTPUT], END
            first[k, END, 0], counts[k, END, 0] = vertex, 1
            edges[k, edge] = vertex - 1, vertex
        return cls(
            labels, roles, layer_of, places, edges, first, counts, np.array([len(layers) for layers in architectures])
        )

    def take(self, index: np.ndarray) -> "GraphBatch":
        """The graphs at `index`."""
        return GraphBatch(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})

    def resize(self, size: int) -> "GraphBatch":
        """The same graphs with N = `size`, which is no less than the largest needs."""
        arrays = {name: getattr(self, name)[:, :size] for name in ("labels", "roles", "layers", "places")}
        missing = ((0, 0), (0, max(0, size - self.labels.shape[1])))
        fill = {"roles": ABSENT}
        padded = {name: np.pad(a, missing, constant_values=fill.get(name, 0)) for name, a in arrays.items()}
        return dataclasses.replace(self, **padded)

    @property
    def adjacency(self) -> np.ndarray:
        """(K, N, N), 1 where an edge leads from the first vertex to the second."""
        count, size = self.labels.shape
        matrix = np.zeros((count, size, size), np.int16)
        matrix[np.arange(count)[:, None], self.edges[..., 0], self.edges[..., 1]] = 1
        matrix[:, 0, 0] = 0
        return matrix


class _LayerBlock:
    """The part of a graph that a layer makes: ranks, roles and places of its vertices, and its edges.

    Vertex 0 of the edges is the o before the layer, 1 the first vertex of the layer. The add_norms that the residual
    topology has between feed-forward layers belong to their chain.
    """

    def __init__(self, layer: LayerSpec, ranks: Mapping[Label, int], topology: Topology):
        graph = architecture_graph([layer], topology)
        vertices = graph.labels[1:-1]
        self.labels = [ranks[label] for label in vertices]
        self.edges = np.array(graph.edges[:-1])
        heads, chain = layer.num_heads, len(vertices) - layer.num_heads - 2
        self.roles = [HEAD] * heads + [MIXED] + [FEED_FORWARD] * chain + [OUT]
        self.places = [*range(heads), 0, *range(chain), 0]
        self.groups = [
            (HEAD, 0, heads),
            (MIXED, heads, 1),
            (FEED_FORWARD, heads + 1, chain),
            (OUT, len(vertices) - 1, 1),
        ]
