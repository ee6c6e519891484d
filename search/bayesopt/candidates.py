"""Where an acquisition function is maximised: a finite list of architectures, or a space that mutation explores.

Mutating the best candidates again and again finds higher acquisition values than more random ones, the finding of
"Mutation is all you need" (Schneider et al. 2021, arXiv 2107.07343).

Notation: P parameters of the space; a row is an architecture as P indices, see `Encoding`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .encoding import Encoding


RANDOM_ROWS = 200
MUTANTS_OF_MEASURED = 100
SURVIVORS = 20
CHILDREN = 10
ROUNDS = 4
MAX_DRAWS = 10_000
MAX_SECONDS = 120
"""Of looking for anything feasible; a latency takes a while to measure."""


@dataclass(frozen=True)
class Candidates:
    """What may be proposed next.

    Attributes:
        encoding: Of the space.
        seen: Rows that a trial already has, as bytes.
        feasible: Tells of a row whether it may be proposed.
        finite: The only rows that may be proposed; None for the whole space.
    """

    encoding: Encoding
    seen: frozenset[bytes]
    feasible: Callable[[np.ndarray], bool]
    finite: np.ndarray | None = None

    def maximize(
        self, acquisition: Callable[[np.ndarray], np.ndarray], parents: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """The admitted row with the highest acquisition value that was found.

        Args:
            acquisition: Values (N,) of rows (N, P).
            parents: Good measured rows (n, P), best first, whose mutants are candidates.

        Raises:
            UserError: Nothing feasible was found.
        """
        best = self.admitted(self._first_rows(parents, rng), acquisition)
        for _ in range(ROUNDS - 1 if self.finite is None else 0):
            mutants = self.encoding.mutate(np.repeat(best, CHILDREN, axis=0), rng)
            best = self.admitted(np.concatenate([best, mutants]), acquisition)
        return best[0] if len(best) else self._anything(parents, rng)

    def admitted(self, rows: np.ndarray, acquisition: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The best of these rows that are new and feasible, best first, at most `SURVIVORS`."""
        rows = np.unique(rows, axis=0)
        rows = rows[[row.tobytes() not in self.seen for row in rows]]
        chosen: list[np.ndarray] = []
        for row in rows[np.argsort(-acquisition(rows), kind="stable")] if len(rows) else ():
            if len(chosen) == SURVIVORS:
                break
            if self.feasible(row):
                chosen.append(row)
        return np.array(chosen, dtype=np.int64).reshape(-1, rows.shape[1])

    def library(self) -> np.ndarray:
        """New rows of the finite list, or of a large random part of the space that is always the same."""
        rows = np.unique(self.encoding.library if self.finite is None else self.finite, axis=0)
        new: np.ndarray = rows[[row.tobytes() not in self.seen for row in rows]]
        return new

    def _first_rows(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.finite is not None:
            return self.finite
        repeated = parents[np.arange(MUTANTS_OF_MEASURED) % len(parents)] if len(parents) else parents
        return np.concatenate([self.encoding.sample(RANDOM_ROWS, rng), self.encoding.mutate(repeated, rng)])

    def _anything(self, parents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A new feasible row out of many, or else a feasible one that is measured once more."""
        again: np.ndarray | None = None
        started = time.monotonic()
        rows: np.ndarray = (
            self.encoding.sample(MAX_DRAWS, rng) if self.finite is None else rng.permutation(self.finite)
        )
        row: np.ndarray
        for row in rows:
            if time.monotonic() - started > MAX_SECONDS:
                break
            new = row.tobytes() not in self.seen
            if (new or again is None) and self.feasible(row):
                if new:
                    return row
                again = row
        if again is None:
            again = next((row for row in parents if self.feasible(row)), None)
        if again is None:
            raise UserError("no architecture of the space is feasible: relax the constraint or enlarge the space")
        return again
