"""Vectors of architectures whose Euclidean distances match edit distances: Transformer2vec of FlexiBERT (arXiv
2205.11656, Section 3.2).

`transformer2vec` is the paper's: a free vector for each member of a library, learnt from the distances of all pairs.
`ArchitectureEmbedding` is inductive: a network that is trained in the same way on 200 examples and then
embeds any architecture, so that a space of 3 billion members needs no library.

The network sees what edit distance consists of but for edges: how many vertices weigh at least so much. (Where in an
encoder they stand was tried as well. It moves few edges, and some hundred examples do not suffice to learn it from.)
In FlexiBERT's full space it meets held-out distances to 7.3%; the table meets those that it is trained on to 7.2%.

Notation: n architectures, D dimensions, C cells of the axis of weights.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from flexibert.spec import Architecture

from .computational_graph import Topology, layer_labels
from .edit_distance import EditDistance


DIMENSIONS = 16
"""FlexiBERT's choice, where more of them no longer lower the error much."""

_MAX_CELLS = 128
_HIDDEN, _STEPS, _BATCH, _LEARNING_RATE = 64, 500, 64, 1e-2


def transformer2vec(
    distances: np.ndarray, dimensions: int = DIMENSIONS, steps: int = 4000, seed: int = 0
) -> np.ndarray:
    """Trains a table with a free vector for each member of a library.

    Args:
        distances: (n, n), symmetric.
        dimensions: D.
        steps: Of the optimiser, each with all pairs among 64 random members.
        seed: Of initial vectors and batches.

    Returns:
        (n, D).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        table = nn.Embedding(len(distances), dimensions)
        nn.init.normal_(table.weight, std=(2 * dimensions) ** -0.5)  # distances of about 1 from the start
        unit = _match(table, torch.arange(len(distances)), distances, steps)
    vectors: np.ndarray = unit * table.weight.detach().double().numpy()
    return vectors


class ArchitectureEmbedding:
    """Embeds architectures, also such as it was not trained on; made by `fit`.

    Attributes:
        distance: The edit distance that the vectors match.
        dimensions: D.
    """

    distance: EditDistance
    dimensions: int
    _cells: np.ndarray
    _center: np.ndarray
    _scale: np.ndarray
    _network: nn.Module
    _unit: float

    @classmethod
    def fit(
        cls,
        architectures: Sequence[Architecture],
        dimensions: int = DIMENSIONS,
        topology: Topology = "chain",
        seed: int = 0,
    ) -> "ArchitectureEmbedding":
        """Learns an embedding in some seconds; same architectures and seed, same embedding.

        Args:
            architectures: Examples, some 200 random members of a space, that hold all of its operations and widths.
            dimensions: D.
            topology: Of the graphs.
            seed: Of the initial network and of batches.
        """
        embedding = cls()
        # A bound that is 0.3% too large on average and found thirty times faster than the best one.
        embedding.distance = EditDistance(architectures, starts=1, exchanges=False, topology=topology)
        embedding.dimensions = dimensions
        highest = max(embedding.distance.weights.values())
        embedding._cells = np.linspace(0, highest, min(_MAX_CELLS, int(np.ceil(highest))) + 1)
        features = embedding._features(architectures)
        embedding._center, embedding._scale = features.mean(0), features.std(0) + 1e-6
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = nn.Linear(features.shape[1], _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, dimensions)
            embedding._network = nn.Sequential(*layers)
            inputs = embedding._standardised(features)
            embedding._unit = _match(embedding._network, inputs, embedding.distance.pairwise(architectures), _STEPS)
        return embedding

    def transform(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """(n, D) vectors."""
        if not architectures:
            return np.zeros((0, self.dimensions))
        with torch.no_grad():
            vectors = self._network(self._standardised(self._features(architectures)))
        scaled: np.ndarray = self._unit * vectors.double().numpy()
        return scaled

    def _features(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """(n, C) area in each cell under the number of vertices that weigh at least so much."""
        area = {}
        for layer in {layer for layers in architectures for layer in layers}:
            labels = layer_labels(layer, self.distance.topology)
            weights = np.array([[self.distance.weight(label)] for label in labels])
            area[layer] = np.clip(weights - self._cells[:-1], 0, self._cells[1]).sum(0)
        return np.stack([sum(area[layer] for layer in layers) for layers in architectures])

    def _standardised(self, features: np.ndarray) -> torch.Tensor:
        return torch.as_tensor((features - self._center) / self._scale, dtype=torch.float32)


def _match(model: nn.Module, inputs: torch.Tensor, distances: np.ndarray, steps: int) -> float:
    """Trains a model until Euclidean distances between its outputs for n inputs are `distances` (n, n) in a unit.

    Returns:
        The unit: the mean distance.
    """
    unit = float(distances.mean(dtype=np.float64)) or 1.0
    targets = torch.from_numpy(distances)
    optimizer = torch.optim.Adam(model.parameters(), _LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        members = torch.randperm(len(inputs))[:_BATCH]
        i, j = torch.triu_indices(len(members), len(members), 1)
        vectors = model(inputs[members])
        found, wanted = F.pairwise_distance(vectors[i], vectors[j]), targets[members[i], members[j]].float() / unit
        # The paper's squared error, but relative, since a search looks at near neighbours most.
        loss = ((found - wanted).square() / (wanted + 0.05)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return unit
