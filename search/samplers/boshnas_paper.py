"""BOSHNAS with the settings of the paper and its code (FlexiBERT, arXiv 2205.11656, Section 3.3, Algorithm 1).

Constants and formulas are the original ones, and architectures are points of Transformer2vec, its inductive form.
Differences: see `boshnas_networks.py`; a library of random members of the space stands for the enumerated one, which
large spaces do not allow; points are standardised; scores are scaled to between 0 and 1 by the worst and best so far
instead of the initial ones; aleatoric uncertainty always counts in the bound, as in the paper's formula (the code adds
it after convergence, for queries of known architectures); convergence ends a search by its option `patience`.
"""

from collections.abc import Callable

import numpy as np
import torch

from ..bayesopt.acquisition import uncertainty, upper_confidence_bound
from ..bayesopt.boshnas_networks import BoshnasNetworks
from ..bayesopt.candidates import Candidates
from ..bayesopt.gobi import climb


INITIAL_TRIALS = 10
UNCERTAINTY_PROBABILITY = 0.1
DIVERSITY_PROBABILITY = 0.1
RESTARTS = 10


def propose(history, candidates: Candidates, rng: np.random.Generator):
    """A row to measure next, and what is believed of it; of several objectives the first alone counts."""
    scores, policy = history.scores[:, 0], rng.random()
    if len(scores) >= INITIAL_TRIALS and np.ptp(scores) > 0 and policy >= DIVERSITY_PROBABILITY:
        explores = policy < DIVERSITY_PROBABILITY + UNCERTAINTY_PROBABILITY
        measured = np.concatenate([history.indices, history.failed])
        scores = np.append(scores, np.full(len(history.failed), scores.min()))  # what failed is as bad as the worst
        proposal = _promising(measured, scores, candidates, explores, rng)
        if proposal is not None:
            return proposal
    return candidates.maximize(lambda rows: rng.random(len(rows)), history.indices[:0], rng), None


def _promising(
    measured: np.ndarray, scores: np.ndarray, candidates: Candidates, explores: bool, rng: np.random.Generator
):
    """The library's most uncertain row, or the one with the highest bound near what was climbed to, with its belief;
    None where nothing in the library is left that is feasible."""
    library = candidates.library()
    if not len(library):
        return None
    locate = _standardised(candidates.encoding.embed, library)
    low, spread = scores.min(), np.ptp(scores)
    surrogate = BoshnasNetworks(seed=int(rng.integers(2**31)))
    surrogate.fit(locate(measured), (scores - low) / spread)
    if explores:
        found = candidates.admitted(library, lambda rows: uncertainty(surrogate.predict(locate(rows))))
    else:
        points = locate(library)
        near = library[_nearest(points, _climb(surrogate, points, rng))]
        found = candidates.admitted(near, lambda rows: upper_confidence_bound(surrogate.predict(locate(rows))))
    if not len(found):
        return None
    belief = surrogate.predict(locate(found[:1]))
    deviation = np.hypot(belief.aleatoric[0], belief.epistemic[0])
    return found[0], (float(low + spread * belief.mean[0]), float(spread * deviation))


def _standardised(embed: Callable[[np.ndarray], np.ndarray], library: np.ndarray):
    """Rows -> points, which have mean 0 and variance 1 in each dimension over the library."""
    points = embed(library)
    center, scale = points.mean(0), np.maximum(points.std(0), 1e-3)
    return lambda rows: (embed(rows) - center) / scale


def _climb(surrogate: BoshnasNetworks, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(R, F) inputs that maximise the upper confidence bound, from random library members within their box."""

    def acquisition(x: torch.Tensor) -> torch.Tensor:
        mean, aleatoric, epistemic = surrogate.moments(x)
        return mean + 0.5 * (aleatoric + epistemic)

    library = torch.from_numpy(points).float()
    starts = library[torch.from_numpy(rng.integers(len(points), size=RESTARTS))]
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return climb(acquisition, starts, library.amin(0), library.amax(0), generator).numpy()


def _nearest(points: np.ndarray, found: np.ndarray) -> np.ndarray:
    """(R,) which of the points (N, F) has the smallest mean absolute difference to each found input (R, F)."""
    return np.abs(points - found[:, None]).mean(-1).argmin(1)
