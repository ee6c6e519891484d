"""What a candidate is worth trying: functions of a surrogate's prediction, all to be maximised.

Papers: upper confidence bound with two uncertainties (FlexiBERT, arXiv 2205.11656, Section 3.3.3); logarithm of the
expected improvement (Ament et al. 2023, arXiv 2310.20708), which keeps ranking candidates where the improvement itself
underflows.

Notation: N candidates; best: the highest value measured so far; z = (mean - best) / standard deviation.
"""

import numpy as np
from scipy.special import erfcx, ndtr

from .surrogate import Prediction


def upper_confidence_bound(
    prediction: Prediction, aleatoric_weight: float = 0.5, epistemic_weight: float = 0.5
) -> np.ndarray:
    """mean + k1 * aleatoric + k2 * epistemic, (N,). FlexiBERT has k1 = k2 = 0.5."""
    return prediction.mean + aleatoric_weight * prediction.aleatoric + epistemic_weight * prediction.epistemic


def uncertainty(prediction: Prediction, aleatoric_weight: float = 0.5, epistemic_weight: float = 0.5) -> np.ndarray:
    """k1 * aleatoric + k2 * epistemic, (N,): FlexiBERT's uncertainty sampling takes the largest."""
    return aleatoric_weight * prediction.aleatoric + epistemic_weight * prediction.epistemic


def log_expected_improvement(prediction: Prediction, best: float) -> np.ndarray:
    """log E[max(f - best, 0)] for the noiseless value f ~ N(mean, epistemic²), (N,).

    Training noise is no improvement, hence the epistemic part alone.
    """
    deviation = np.maximum(prediction.epistemic, 1e-12)
    logarithm: np.ndarray = np.log(deviation) + _log_h((prediction.mean - best) / deviation)
    return logarithm


def _log_h(z: np.ndarray) -> np.ndarray:
    """log(phi(z) + z Phi(z)) of the standard normal density phi and distribution Phi, free of cancellation (Eq. 9)."""
    log_density = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    near, middle, far = np.maximum(z, -1.0), np.clip(z, -1e3, -1.0), np.minimum(z, -1e3)
    return np.select(
        [z > -1, z > -1e3],
        [
            np.log(np.exp(-0.5 * near**2) / np.sqrt(2 * np.pi) + near * ndtr(near)),
            log_density + np.log1p(middle * np.sqrt(np.pi / 2) * erfcx(-middle / np.sqrt(2))),
        ],
        log_density - 2 * np.log(-far),
    )
