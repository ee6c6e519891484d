"""Random functions of encoders, in place of training: what might be true of a space that nobody has measured.

Each is a sum of what the layers do and what the number of weights does, over random members of mean 70 and standard
deviation 3 points, half of them with a long lower tail, as failed trainings leave. They see architectures through
`describe`, which shares nothing with the features of `search.bayesopt`.

Notation: N architectures, L layers of the deepest, D numbers that describe a layer.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor

from flexibert.attention_graph import PRIMITIVES
from flexibert.spec import Architecture, SearchedAttention
from search.space.search_space import SearchSpace, operation_label


Oracle = Callable[[Sequence[Architecture]], np.ndarray]
"""Architectures -> (N,) values."""

MEAN, DEVIATION = 70.0, 3.0
SIZE_EFFECTS = {
    "absent": lambda z: 0 * z,
    "positive": lambda z: z,
    "negative": lambda z: -z,
    "saturating": lambda z: -np.exp(-1.5 * z),
    "peaked": lambda z: -((z - 0.3) ** 2),
}
"""Of the standardised logarithm of the number of weights."""


def log_weights(architectures: Sequence[Architecture]) -> np.ndarray:
    """(N,) logarithm of the number of weights in mixing and feed-forward layers, to leading order."""
    totals = []
    for architecture in architectures:
        total = 0
        for layer in architecture:
            sizes = (layer.hidden_size, *layer.feed_forward, layer.hidden_size)
            total += 4 * layer.hidden_size**2 + sum(a * b for a, b in zip(sizes, sizes[1:]))
        totals.append(total)
    return np.log(totals)


class Description:
    """What an oracle sees of the layers of a space's members.

    A layer has the shares of its heads by operation, the counts of primitives if its attention is searched, and its
    width, heads, feed-forward sizes and depth on a scale from -1 to 1.
    """

    def __init__(self, space: SearchSpace):
        self.labels = [operation_label({k: v for k, v in o.items() if k != "graph"}) for o in space.operations]
        self.depth = max(space.num_layers)
        self.ranges = [
            np.log([min(values), max(values)])
            for values in (space.hidden_size, space.num_heads, space.feed_forward_size, space.feed_forward_depth)
        ]
        self.searched = space.graph_space is not None

    def __call__(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        """(N, L, D) layers from input to output, zeros beyond the last; (N, L) whether there is one."""
        described = [[self._layer(layer) for layer in architecture] for architecture in architectures]
        width = len(described[0][0])
        result = np.zeros((len(described), self.depth, width))
        present = np.zeros((len(described), self.depth), dtype=bool)
        for number, layers in enumerate(described):
            result[number, : len(layers)] = layers
            present[number, : len(layers)] = True
        return result, present

    def _layer(self, layer) -> list[float]:
        shares = dict.fromkeys(self.labels, 0.0)
        counts: Counter[str] = Counter()
        for group in layer.operations:
            label = operation_label({k: v for k, v in group.to_dict().items() if k not in ("num_heads", "nodes")})
            shares[label] += group.num_heads / layer.num_heads
            if isinstance(group, SearchedAttention):
                counts.update(node.primitive for node in group.graph.nodes)
        inner = np.exp(np.mean(np.log(layer.feed_forward)))
        sizes = (layer.hidden_size, layer.num_heads, inner, len(layer.feed_forward))
        scaled = [(2 * np.log(v) - low - high) / max(high - low, 1e-9) for v, (low, high) in zip(sizes, self.ranges)]
        primitives = [counts[name] / 2 for name in PRIMITIVES] if self.searched else []
        return [*shares.values(), *scaled, *primitives]


def _additive(space: SearchSpace, members: Sequence[Architecture], rng: np.random.Generator) -> Oracle:
    """Every trait of a layer has an effect that drifts from input to output; a few pairs of traits interact."""
    describe = Description(space)
    traits = describe(members[:1])[0].shape[-1]
    effects, drifts = rng.normal(size=(2, traits))
    pairs, strengths = rng.integers(traits, size=(4, 2)), rng.normal(size=4)

    def oracle(architectures: Sequence[Architecture]) -> np.ndarray:
        layers, present = describe(architectures)
        depth = present.sum(1)
        place = np.where(present, np.arange(layers.shape[1]) / np.maximum(depth[:, None] - 1, 1) - 0.5, 0)
        value = ((layers @ effects).sum(1) + ((layers @ drifts) * place).sum(1)) / depth
        for (a, b), strength in zip(pairs, strengths):
            value += strength * (layers[..., a] * layers[..., b]).sum(1) / depth
        return value

    return oracle


def _interacting(space: SearchSpace, members: Sequence[Architecture], rng: np.random.Generator) -> Oracle:
    """Layers count by their best, worst and first one, and by what follows what: neighbours interact."""
    describe = Description(space)
    traits = describe(members[:1])[0].shape[-1]
    effects, first = rng.normal(size=(2, traits))
    follows = rng.normal(size=(traits, traits)) / 2

    def oracle(architectures: Sequence[Architecture]) -> np.ndarray:
        layers, present = describe(architectures)
        each = layers @ effects
        worst, best = np.where(present, each, np.inf).min(1), np.where(present, each, -np.inf).max(1)
        pairs = np.einsum("nld,de,nle->nl", layers[:, :-1], follows, layers[:, 1:])
        return worst + 0.5 * best + 0.5 * layers[:, 0] @ first + pairs.sum(1) / np.maximum(present.sum(1) - 1, 1)

    return oracle


def _flat(space: SearchSpace) -> Oracle:
    describe = Description(space)
    return lambda architectures: describe(architectures)[0].reshape(len(architectures), -1)


def _gaussian_process(space: SearchSpace, members: Sequence[Architecture], rng: np.random.Generator) -> Oracle:
    """A draw, through 300 random Fourier features of the layers and of their mean; relevances vary."""
    describe, count = Description(space), 300

    def view(architectures: Sequence[Architecture]) -> np.ndarray:
        layers, present = describe(architectures)
        return np.hstack([0.5 * layers.reshape(len(layers), -1), layers.sum(1) / present.sum(1)[:, None]])

    relevances = rng.gamma(0.5, 2.0, view(members[:1]).shape[1]) ** 0.5
    frequencies = rng.normal(size=(len(relevances), count)) * relevances[:, None] * rng.uniform(0.3, 0.9)
    phases, weights = rng.uniform(0, 2 * np.pi, count), rng.normal(size=count)
    return lambda architectures: np.cos(view(architectures) @ frequencies + phases) @ weights


def _network(space: SearchSpace, members: Sequence[Architecture], rng: np.random.Generator) -> Oracle:
    """A random network: a hidden layer for each encoder layer, shared, then one for all of them."""
    describe = Description(space)
    layers, _ = describe(members[:1])
    first, second = rng.normal(size=(layers.shape[-1], 12)), rng.normal(size=(layers.shape[1] * 12, 16)) / 4
    last = rng.normal(size=16)

    def oracle(architectures: Sequence[Architecture]) -> np.ndarray:
        layers, present = describe(architectures)
        hidden = np.tanh(layers @ first) * present[..., None]
        return np.tanh(hidden.reshape(len(hidden), -1) @ second) @ last

    return oracle


def _trees(create: Callable[[int], object], target: Callable) -> Callable:
    """Trees that were fitted on 400 noisy values of another oracle."""

    def make(space: SearchSpace, members: Sequence[Architecture], rng: np.random.Generator) -> Oracle:
        flat, known = _flat(space), members[:400]
        values = target(space, members, rng)(known)
        values = values + 0.3 * values.std() * rng.normal(size=len(values))
        trees = create(int(rng.integers(2**31))).fit(flat(known), values)
        return lambda architectures: trees.predict(flat(architectures))

    return make


KINDS: dict[str, Callable[[SearchSpace, Sequence[Architecture], np.random.Generator], Oracle]] = {
    "additive": _additive,
    "gaussian process": _gaussian_process,
    "forest": _trees(lambda seed: RandomForestRegressor(50, random_state=seed), _additive),
    "interacting": _interacting,
    "network": _network,
    "boosted trees": _trees(lambda seed: GradientBoostingRegressor(random_state=seed), _network),
}


def oracle(
    space: SearchSpace, kind: str, size_effect: str, members: Sequence[Architecture], rng: np.random.Generator
) -> Oracle:
    """A random function in points; `members` are random ones of the space, at least 500, which set its scale."""
    structure = KINDS[kind](space, members, rng)
    weights = log_weights(members)
    share = rng.uniform(0.4, 0.9)
    tail = rng.random() < 0.5

    def raw(architectures: Sequence[Architecture], scales: tuple = (0.0, 1.0, 0.0, 1.0)) -> np.ndarray:
        z = np.clip((log_weights(architectures) - weights.mean()) / max(weights.std(), 1e-9), -3, 3)
        size = SIZE_EFFECTS[size_effect](z)
        return (structure(architectures) - scales[0]) / scales[1], (size - scales[2]) / scales[3]

    parts = raw(members)
    scales = tuple(v for part in parts for v in (part.mean(), max(part.std(), 1e-9)))

    def mixed(architectures: Sequence[Architecture]) -> np.ndarray:
        layers, size = raw(architectures, scales)
        value = layers * (1 - share**2) ** 0.5 + size * share if size_effect != "absent" else layers
        return np.where(value < 0, -np.expm1(-0.8 * value), value) if tail else value

    reference = mixed(members)
    return lambda architectures: MEAN + DEVIATION * (mixed(architectures) - reference.mean()) / reference.std()
