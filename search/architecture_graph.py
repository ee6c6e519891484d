"""The computational graph of an encoder, and its hash: equal hashes, equal graphs up to the order of vertices.

A vertex is a head, a feed-forward layer, an "add and norm", the input or the output; it carries a label, and width
stands in the labels of heads only (FlexiBERT, arXiv 2205.11656, Section 3.1):

    input --+--> sa_h256_p-sdp --+--> add_norm --+--> f1024 --> f512 --+--> add_norm --+--> ... --> output
            +--> sa_h256_p-sdp --+               |                     |               |
            +--------------------+               +---------------------+               |

The hash is the one of NAS-Bench-101 (Ying et al. 2019, arXiv 1902.09635) in the form that FlexiBERT published.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from flexibert.spec import (
    DynamicConvolution,
    LayerSpec,
    LightweightConvolution,
    LinearTransform,
    OperationSpec,
    SearchedAttention,
    SelfAttention,
)


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


KINDS = ("input", "output", "add_norm", "f", "l", "sa", "c", "lc", "ag")
"""Kinds of vertices in the papers' order: linear transforms, self-attention and dynamic convolutions, to which
lightweight convolutions and searched attention graphs are added."""

INPUT, OUTPUT, ADD_NORM = Label("input"), Label("output"), Label("add_norm")


def _graph_name(nodes):
    digest = hashlib.sha256("\n".join(nodes).encode()).hexdigest()[:8]
    return f"{len(nodes):02d}-{digest}"


_PARAMETERS = {"fourier": "dft", "cosine": "dct", "scaled_dot_product": "sdp", "weighted_multiplicative": "wma"}
_PARAMETER_OF: dict[type[OperationSpec], tuple[str, Callable[[OperationSpec], str | int]]] = {
    LinearTransform: ("l", lambda operation: _PARAMETERS[operation.transform]),
    SelfAttention: ("sa", lambda operation: _PARAMETERS[operation.similarity]),
    DynamicConvolution: ("c", lambda operation: operation.kernel_size),
    LightweightConvolution: ("lc", lambda operation: operation.kernel_size),
    SearchedAttention: ("ag", lambda operation: _graph_name(operation.nodes)),
}


@dataclass(frozen=True)
class ArchitectureGraph:
    """A directed acyclic graph; every edge leads from a vertex to a later one.

    Attributes:
        labels: One label per vertex, the input first and the output last.
        edges: Pairs of vertex indices, sorted.
    """

    labels: tuple[Label, ...]
    edges: tuple[tuple[int, int], ...]


def head_label(operation: OperationSpec, layer: LayerSpec) -> Label:
    """Label of each head of a group. Details such as `source` and `mix_padding` do not enter."""
    kind, parameter = _PARAMETER_OF[type(operation)]
    return Label(kind, layer.hidden_size, parameter(operation))


def layer_blocks(layer: LayerSpec, topology: Topology = "chain") -> list[tuple[tuple[Label, ...], bool]]:
    """A layer as a sequence of blocks, each of which stands between an add_norm (or the input) and the next.

    Returns:
        For each block the labels inside it and whether they are parallel, as heads are, or one after the other. Every
        block ends in an add_norm, to which a residual edge leads from the previous one.
    """
    heads = tuple(head_label(operation, layer) for operation in layer.operations for _ in range(operation.num_heads))
    widths = tuple(Label("f", width) for width in layer.feed_forward)
    chains = [widths] if topology == "chain" else [(width,) for width in widths]
    return [(heads, True), *((chain, False) for chain in chains)]


def architecture_graph(layers: Sequence[LayerSpec], topology: Topology = "chain") -> ArchitectureGraph:
    """Computational graph of an encoder, its vertices in the order of construction."""
    labels, edges = [INPUT], []
    last = 0
    for layer in layers:
        for block, parallel in layer_blocks(layer, topology):
            inside = range(len(labels), len(labels) + len(block))
            labels += [*block, ADD_NORM]
            norm = inside.stop
            paths = [[last, vertex, norm] for vertex in inside] if parallel else [[last, *inside, norm]]
            edges += [edge for path in [*paths, [last, norm]] for edge in zip(path, path[1:])]
            last = norm
    edges.append((last, len(labels)))
    return ArchitectureGraph((*labels, OUTPUT), tuple(sorted(edges)))


def graph_hash(graph: ArchitectureGraph, algorithm: str = "sha256", label: Callable[[Label], str] = str) -> str:
    """Hash that does not depend on the order of vertices: five rounds of hashing each vertex with its neighbours.

    Args:
        graph: Any graph.
        algorithm: A name that `hashlib.new` knows.
        label: Text of a label.
    """

    def digest(text: str) -> str:
        return hashlib.new(algorithm, text.encode()).hexdigest()

    sources: list[list[int]] = [[] for _ in graph.labels]
    targets: list[list[int]] = [[] for _ in graph.labels]
    for source, target in graph.edges:
        sources[target].append(source)
        targets[source].append(target)
    vertices = range(len(graph.labels))
    hashes = [digest(str((len(targets[v]), len(sources[v]), label(graph.labels[v])))) for v in vertices]
    for _ in range(5):
        hashes = [
            digest(
                "|".join(
                    (
                        "".join(sorted(hashes[u] for u in sources[v])),
                        "".join(sorted(hashes[u] for u in targets[v])),
                        hashes[v],
                    )
                )
            )
            for v in vertices
        ]
    return digest(str(sorted(hashes)))
