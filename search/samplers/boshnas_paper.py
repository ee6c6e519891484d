"""BOSHNAS with the settings of the paper and its code (FlexiBERT, arXiv 2205.11656, Section 3.3, Algorithm 1).

Constants and formulas are the original ones. Differences: see `neural_surrogate.py`; a library of random members of
the space stands for the enumerated one, which large spaces do not allow; aleatoric uncertainty always counts in the
bound, as in the paper's formula (the code adds it after convergence); a search has the number of trials it is given.
"""

import numpy as np
import torch

from ..acquisition import uncertainty, upper_confidence_bound
from ..candidates import Candidates
from ..gobi import climb
from ..neural_surrogate import BoshnasNetworks


INITIAL_TRIALS = 10
UNCERTAINTY_PROBABILITY = 0.1
DIVERSITY_PROBABILITY = 0.1
RESTARTS = 10
LIBRARY_SIZE = 1000


def propose(history, candidates: Candidates, rng: np.random.Generator):
    """A row to measure next, and what is believed of it; of several objectives the first alone counts."""
    library = candidates.library(LIBRARY_SIZE, rng)
    scores = history.scores[:, 0]
    policy = rng.random()
    if not len(library) or len(scores) < INITIAL_TRIALS or policy < DIVERSITY_PROBABILITY or np.ptp(scores) == 0:
        return candidates.maximize(lambda rows: rng.random(len(rows)), history.indices[:0], rng), None
    surrogate = BoshnasNetworks(seed=int(rng.integers(2**31)))
    low, spread = scores.min(), np.ptp(scores)
    points = candidates.encoding.features(library)
    center, scale = points.mean(0), np.maximum(points.std(0), 1e-3)
    points = (points - center) / scale
    measured = (candidates.encoding.features(history.indices) - center) / scale
    surrogate.fit(measured, (scores - low) / spread)
    if policy < DIVERSITY_PROBABILITY + UNCERTAINTY_PROBABILITY:
        chosen = int(uncertainty(surrogate.predict(points)).argmax())
    else:
        nearest = _nearest(points, _climb(surrogate, points, rng))
        chosen = nearest[upper_confidence_bound(surrogate.predict(points[nearest])).argmax()]
    belief = surrogate.predict(points[[chosen]])
    deviation = np.hypot(belief.aleatoric[0], belief.epistemic[0])
    return library[chosen], (float(low + spread * belief.mean[0]), float(spread * deviation))


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
