"""What a study says to a sampler that fits a model: architectures as rows, and their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from weakref import WeakKeyDictionary

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ..bayesopt.encoding import Encoding
from .trials import counts, is_evidence, is_repetition


LISTENED = 500
"""A model is fitted to so many finished trials at most; its cost grows with their cube."""

BEST, LATEST = 250, 100
"""Of those that are listened to, so many are the best and so many the latest; the others lie evenly among the rest."""

FAILED = 100
"""So many failed trials, the latest, are listened to."""


@dataclass(frozen=True)
class History:
    """What a study knows, in the order of trial numbers.

    Beyond `LISTENED` finished trials it is not all of them: the best say where good architectures are, the latest
    where the search is, and an even choice of the rest what the space is like elsewhere. Which ones follows from the
    trials alone. What has been tried is known of all.

    Attributes:
        indices: (n, P) architectures of finished trials.
        scores: (n, objectives) their values, signed so that larger is better.
        pending: (m, P) architectures of the trials that still run.
        failed: (f, P) architectures of trials that failed and have not been tried again.
        seen: Rows of all trials of whatever state, as bytes.
    """

    indices: np.ndarray
    scores: np.ndarray
    pending: np.ndarray
    failed: np.ndarray
    seen: frozenset[bytes]


def read_history(study: optuna.Study, trial: FrozenTrial, encoding: Encoding) -> History:
    """What all other trials of a study say about a space; trials of other spaces say nothing."""
    finished, scores, pending, failed, seen = [], [], [], [], set()
    for other, row in _rows(study, encoding):
        if other.number == trial.number:
            continue
        seen.add(row)
        if is_repetition(other):
            continue
        if other.state == TrialState.RUNNING:
            pending.append(row)
        elif counts(other):
            finished.append(row)
            scores.append(other.values)
        elif other.state in (TrialState.COMPLETE, TrialState.FAIL) and is_evidence(other):
            failed.append(row)
    known = {*finished, *pending}
    values = np.array(scores, dtype=float).reshape(-1, len(study.directions)) * signs(study)
    chosen = listened(values)
    return History(
        indices=_matrix([finished[index] for index in chosen], encoding),
        scores=values[chosen],
        pending=_matrix(pending, encoding),
        failed=_matrix([row for row in failed if row not in known][-FAILED:], encoding),
        seen=frozenset(seen),
    )


def listened(scores: np.ndarray) -> np.ndarray:
    """Which trials a model is fitted to, in their order: all, or `LISTENED` of them, see `History`.

    Args:
        scores: (n, objectives), larger is better.
    """
    count, objectives = scores.shape
    if count <= LISTENED:
        return np.arange(count)
    best = np.argsort(-scores, axis=0, kind="stable")[: BEST // objectives]
    chosen = np.union1d(best, np.arange(count - LATEST, count))
    rest = np.setdiff1d(np.arange(count), chosen)
    even = np.linspace(0, len(rest) - 1, LISTENED - len(chosen)).round().astype(int)
    return np.union1d(chosen, rest[even])


def signs(study: optuna.Study) -> np.ndarray:
    """(objectives,) 1 where more is better, -1 where less is."""
    return np.array([1 if direction == StudyDirection.MAXIMIZE else -1 for direction in study.directions])


_ROWS: WeakKeyDictionary[optuna.Study, tuple[Encoding, dict[int, tuple[FrozenTrial, bytes | None]]]]
_ROWS = WeakKeyDictionary()
"""What was read before, by trial number: to read a trial takes up to a millisecond, and studies only grow."""


def _rows(study: optuna.Study, encoding: Encoding) -> list[tuple[FrozenTrial, bytes]]:
    """The trials with an architecture of the space, in the order of their numbers, and their rows."""
    known_encoding, known = _ROWS.get(study, (None, {}))
    if known_encoding is not encoding:
        known = {}
        _ROWS[study] = encoding, known
    trials = sorted(study.get_trials(deepcopy=False), key=attrgetter("number"))
    new = [trial for trial in trials if trial.number not in known or known[trial.number][0] is not trial]
    for trial, row in zip(new, encoding.members([trial.params for trial in new])):
        known[trial.number] = trial, None if row is None else row.tobytes()
    rows = ((trial, known[trial.number][1]) for trial in trials)
    return [(trial, row) for trial, row in rows if row is not None]


def _matrix(rows: Sequence[bytes], encoding: Encoding) -> np.ndarray:
    return np.frombuffer(b"".join(rows), dtype=np.int64).reshape(-1, len(encoding.names))
