"""Acquisition functions against numbers computed by hand, on predictions that no surrogate had to make."""

import numpy as np
import pytest

from search.bayesopt.acquisition import log_expected_improvement, uncertainty, upper_confidence_bound
from search.bayesopt.surrogate import Prediction


def prediction(mean, aleatoric=0.0, epistemic=1.0):
    mean = np.atleast_1d(np.asarray(mean, dtype=float))
    return Prediction(mean, np.full_like(mean, aleatoric), np.broadcast_to(np.asarray(epistemic, float), mean.shape))


def test_upper_confidence_bound_adds_half_of_both_deviations():
    assert upper_confidence_bound(prediction([1.0, -2.0], 0.4, 0.2)).tolist() == pytest.approx([1.3, -1.7])
    assert upper_confidence_bound(prediction(1.0, 0.4, 0.2), 0.0, 2.0).tolist() == pytest.approx([1.4])


def test_uncertainty_ignores_the_mean():
    assert uncertainty(prediction([5.0, -5.0], 0.4, 0.2)).tolist() == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize(
    "z, expected",
    [
        (0.0, 0.3989422804),  # phi(0)
        (1.0, 1.0833154706),  # phi(1) + Phi(1)
        (-2.0, 0.0084907020),  # phi(2) - 2 Phi(-2)
        (8.0, 8.0),
    ],
)
def test_expected_improvement_over_the_best(z, expected):
    value = log_expected_improvement(prediction(3.0 + 0.5 * z, epistemic=0.5), best=3.0)
    assert np.exp(value) == pytest.approx(0.5 * expected, rel=1e-7)


def test_noise_is_no_improvement():
    assert log_expected_improvement(prediction(0.0, 9.0, 1.0), 1.0) == log_expected_improvement(prediction(0.0), 1.0)


def test_far_below_the_best_the_logarithm_still_ranks():
    """Where the improvement itself is 0 in double precision; exact values by 60-digit arithmetic."""
    far = log_expected_improvement(prediction([-10.0, -40.0, -999.0, -1001.0, -1e5]), 0.0)
    assert far[:2] == pytest.approx([-55.5531220361, -808.298568357], abs=1e-8)
    assert (np.diff(far) < 0).all() and np.isfinite(far).all()


def test_no_jump_where_formulas_meet():
    for z in (-1.0, -1e3):
        low, high = log_expected_improvement(prediction([z - 1e-9, z + 1e-9]), 0.0)
        assert high == pytest.approx(low, abs=1e-5)


def test_certain_candidates_are_ranked_by_their_mean():
    values = log_expected_improvement(prediction([-1.0, 0.0, 1.0], epistemic=0.0), 0.0)
    assert (np.diff(values) > 0).all() and np.isfinite(values).all()
