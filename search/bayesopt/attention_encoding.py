"""Encoding of spaces with searched attention graphs, such as AutoBERT-Zero's.

Parameters that spell a graph mean nothing one by one: most of them are silent, and node 3 of one graph has nothing to
do with node 3 of another. So graphs move by `GraphSpace`'s edits, and a surrogate sees what they are made of.

Notation: as in `encoding.py`; G traits of a graph.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np

from flexibert.attention_graph import INPUTS, PRIMITIVES, AttentionGraph

from ..space.parameters import Value
from .encoding import Encoding


class GraphEncoding(Encoding):
    """Index matrices of a space with searched graphs and their features.

    The traits of a unit are those of `Encoding` and, if its operation is searched, how often its graph has each
    primitive and reads each input, and how many values are read in all.
    """

    def indices(self, values: Iterable[Mapping[str, Value]]) -> np.ndarray:
        normal = map(self.space.normalize, values)
        rows = [[lookup[v[name]] for name, lookup in zip(self.names, self._lookup)] for v in normal]
        return np.array(rows, dtype=np.int64).reshape(-1, len(self.names))

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        source = _source(rng)
        return self.indices(self.space.sample_values(source) for _ in range(count))

    def mutate(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Every row with one of its active parameters changed, or by one edit of one graph."""
        source = _source(rng)
        return self.indices(self.space.mutate_values(self.values(row), source) for row in indices)

    def _units(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        traits, weights = super()._units(indices)
        places = {unit.name: place for place, unit in enumerate(self.space.units)}
        graphs = np.zeros((*traits.shape[:2], len(PRIMITIVES) + len(INPUTS) + 1))
        for row, values in enumerate(map(self.values, indices)):
            for unit, graph in self.space.graphs(values).items():
                graphs[row, places[unit]] = _traits(graph)
        return np.concatenate([traits, graphs], axis=-1), weights


def _source(rng: np.random.Generator) -> random.Random:
    return random.Random(int(rng.integers(2**63)))


@lru_cache(maxsize=1 << 14)
def _traits(graph: AttentionGraph) -> tuple[int, ...]:
    """(G,) numbers that describe a graph."""
    reads = [operand for node in graph.nodes for operand in node.operands]
    counts = Counter([*(node.primitive for node in graph.nodes), *reads])
    return (*(counts[name] for name in (*PRIMITIVES, *INPUTS)), len(reads))
