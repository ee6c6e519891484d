"""Architectures of a space as rows of numbers: indices of choices to move about in, features for a surrogate.

A surrogate judges thousands of candidates per proposal, far more than layers can be built, so everything here works on
matrices of indices into `SearchSpace.choices` and only the winner becomes an architecture.

Notation: N architectures, P parameters of the space, U units (layers, or stacks of equal layers), T traits of a unit,
F features.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from flexibert.spec import Architecture

from ..similarity.transformer2vec import ArchitectureEmbedding
from ..space.parameters import NUM_LAYERS, Value
from ..space.search_space import SearchSpace


_REFERENCE_MEMBERS = 512
_EMBEDDING_EXAMPLES = 200
_LIBRARY_SIZE = 10_000


class Encoding:
    """Index matrices of a space and their features.

    Attributes:
        space: The space.
        names: The P parameters, in the order of the columns.
        num_values: (P,) how many values each may take.
        blocks: Name of a feature block -> its columns. "size": depth, width and weights; "composition": the traits
            of the units, averaged; "order": how they change from input to output; "position": unit by unit.
    """

    def __init__(self, space: SearchSpace):
        self.space = space
        self.names = list(space.choices)
        self.num_values = np.array([len(values) for values in space.choices.values()])
        self._lookup = [{value: i for i, value in enumerate(values)} for values in space.choices.values()]
        self._vectors: dict[bytes, np.ndarray] = {}
        self._lay_out_columns()
        reference = self._raw_features(self.sample(_REFERENCE_MEMBERS, np.random.default_rng(0)))
        self.blocks, self._shift, self._scale, start = {}, {}, {}, 0
        for name, block in reference.items():
            self.blocks[name] = slice(start, start := start + block.shape[1])
            variance = block.var(0) * block.shape[1] if name == "size" else block.var(0).sum()
            self._shift[name] = block.mean(0)
            self._scale[name] = np.sqrt(np.where(variance > 1e-12, variance, 1.0))

    def _lay_out_columns(self) -> None:
        """Where the parts of a unit stand in an index matrix, and what the indices mean there."""
        choices, column = self.space.choices, {name: index for index, name in enumerate(self.names)}
        units = self.space.units
        self._depth = column[NUM_LAYERS]
        self._width, self._heads, self._inner_depth = (
            np.array([column[getattr(unit, part)] for unit in units])
            for part in ("hidden_size", "num_heads", "feed_forward_depth")
        )
        self._inner_sizes, self._operations = (  # (U, 1 or more)
            np.array([[column[name] for name in getattr(unit, part)] for unit in units])
            for part in ("feed_forward_sizes", "operations")
        )
        self._unit_of = np.full(len(self.names), -1)  # -1: says something about all units
        for parts in (self._heads, self._inner_depth, self._inner_sizes.T, self._operations.T):
            self._unit_of[parts] = np.arange(len(units))
        if not self.space.shared_hidden_size:
            self._unit_of[self._width] = np.arange(len(units))

        labels = sorted({label for c in self._operations.flat for label in choices[self.names[c]]})
        kinds = sorted({self.space.kind(label) for label in labels})
        self._label_traits = np.array([[label == x for x in labels] + [self.space.kind(label) == x for x in kinds]
                                       for label in labels], dtype=float)  # fmt: skip
        self._numbers = np.zeros((len(self.names), self.num_values.max()), dtype=np.int64)
        for name, c in column.items():
            if self.space.table[name].spells_graph:
                continue
            values = [labels.index(v) if isinstance(v, str) else v for v in choices[name]]
            self._numbers[c, : len(values)] = values
        parts = (self._width, self._heads, self._inner_sizes[:, 0], self._inner_depth)
        self._typical = [np.mean(np.log2(choices[self.names[part[0]]])) for part in parts]

    # --- indices --------------------------------------------------------------------------------------------------

    def indices(self, values: Iterable[Mapping[str, Value]]) -> np.ndarray:
        """Parameter values of N architectures as canonical (N, P) indices; KeyError for a value not in the space."""
        rows = [[lookup[v[name]] for name, lookup in zip(self.names, self._lookup)] for v in values]
        return self.canonical(np.array(rows, dtype=np.int64).reshape(-1, len(self.names)))

    def members(self, values: Sequence[Mapping[str, Value]]) -> list[np.ndarray | None]:
        """The rows of parameter values, None for those that are not in the space."""
        lookups = list(zip(self.names, self._lookup))
        legal = [all(v.get(name) in lookup for name, lookup in lookups) for v in values]
        rows = iter(self.indices(v for v, is_legal in zip(values, legal) if is_legal))
        return [next(rows) if is_legal else None for is_legal in legal]

    def values(self, row: np.ndarray) -> dict[str, Value]:
        """One row of indices as parameter values."""
        return {name: self.space.choices[name][index] for name, index in zip(self.names, row.tolist())}

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, P) indices, every parameter uniform over its values."""
        return self.canonical(rng.integers(self.num_values, size=(count, len(self.names))))

    def mutate(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Every row with one of its active parameters changed; layers that a larger depth brings are random."""
        active = self.active(indices)
        mutants = np.where(active, indices, rng.integers(self.num_values, size=indices.shape))
        movable = active & (self.num_values > 1)
        rows = np.flatnonzero(movable.any(1))
        columns = np.where(movable, rng.random(indices.shape), -1.0).argmax(1)[rows]
        change = rng.integers(1, np.maximum(self.num_values[columns], 2))
        mutants[rows, columns] = (indices[rows, columns] + change) % self.num_values[columns]
        return self.canonical(mutants)

    def active(self, indices: np.ndarray) -> np.ndarray:
        """(N, P) bool: the parameters that have a say, as in `SearchSpace.active`."""
        numbers = self._numbers[np.arange(len(self.names)), indices]
        active: np.ndarray = self._unit_of < (numbers[:, [self._depth]] // self.space.layers_per_stack)
        for parts, count in ((self._operations, self._heads), (self._inner_sizes, self._inner_depth)):
            if parts.shape[1] > 1:
                active[:, parts] &= np.arange(parts.shape[1]) < numbers[:, count, None]
        return active

    def canonical(self, indices: np.ndarray) -> np.ndarray:
        """The same architectures with silent parameters at their first value and mixed heads sorted: rows are equal
        where architectures are."""
        active = self.active(indices)
        indices = np.where(active, indices, 0)
        for heads in self._operations if self.space.mixed_heads else ():
            if len({self.space.choices[self.names[head]] for head in heads}) == 1:
                ordered = np.sort(np.where(active[:, heads], indices[:, heads], self.num_values.max()), axis=1)
                indices[:, heads] = np.where(active[:, heads], ordered, 0)
        return indices

    # --- features -------------------------------------------------------------------------------------------------

    def features(self, indices: np.ndarray) -> np.ndarray:
        """(N, F) features; over the space, every block has mean 0 and variances that sum to 1."""
        raw = self._raw_features(indices)
        return np.concatenate([(block - self._shift[name]) / self._scale[name] for name, block in raw.items()], axis=1)

    def _raw_features(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        depth = self._numbers[self._depth, indices[:, self._depth]] // self.space.layers_per_stack
        present = np.arange(len(self._width)) < depth[:, None]  # (N, U)
        traits, weights = self._units(indices)
        traits = traits * present[..., None]  # (N, U, T)
        place = np.arange(len(self._width)) / np.maximum(depth[:, None] - 1, 1) - 0.5
        width = traits[..., 0].sum(1) / depth
        return {
            "size": np.stack([depth, width, np.log((weights * present).sum(1))], axis=1),
            "composition": traits.sum(1) / depth[:, None],
            "order": (traits * (place * present)[..., None]).sum(1) / depth[:, None],
            "position": np.concatenate(
                [present.astype(float), traits.reshape(len(indices), np.prod(traits.shape[1:]))], axis=1
            ),
        }

    def _units(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, U, T) what units are made of and (N, U) their numbers of weights, to leading order."""
        numbers = self._numbers[np.arange(len(self.names)), indices]
        active = self.active(indices)
        width, heads, depth = (numbers[:, columns] for columns in (self._width, self._heads, self._inner_depth))
        count = np.maximum(active[:, self._inner_sizes].sum(-1), 1)
        inner = (np.log2(np.maximum(numbers[:, self._inner_sizes], 1)) * active[:, self._inner_sizes]).sum(-1) / count
        labels = numbers[:, self._operations] * active[:, self._operations]
        shares = active[:, self._operations] / np.maximum(active[:, self._operations].sum(-1, keepdims=True), 1)
        operations = (self._label_traits[labels] * shares[..., None]).sum(2)
        weights = 4.0 * width**2 + 2 * width * 2**inner + (depth - 1) * 4**inner
        sizes = np.stack([np.log2(width), np.log2(heads), inner, np.log2(depth)], axis=-1) - self._typical
        return np.concatenate([sizes, operations], axis=-1), weights

    # --- library and embedding ------------------------------------------------------------------------------------

    @cached_property
    def library(self) -> np.ndarray:
        """(10,000, P) random members of the space, always the same, some perhaps twice."""
        return self.sample(_LIBRARY_SIZE, np.random.default_rng(0))

    def embed(self, indices: np.ndarray) -> np.ndarray:
        """(N, D) vectors whose distances match edit distances, learnt from random members when first asked for."""
        new = [row for row in np.unique(indices, axis=0) if row.tobytes() not in self._vectors]
        vectors = self._embedding.transform(self._architectures(new))
        self._vectors.update((row.tobytes(), vector) for row, vector in zip(new, vectors))
        shape = (len(indices), self._embedding.dimensions)
        return np.array([self._vectors[row.tobytes()] for row in indices]).reshape(shape)

    @cached_property
    def _embedding(self) -> ArchitectureEmbedding:
        return ArchitectureEmbedding.fit(self._architectures(self.library[:_EMBEDDING_EXAMPLES]))

    def _architectures(self, indices: Iterable[np.ndarray]) -> list[Architecture]:
        return [self.space.build(self.values(row)) for row in indices]
