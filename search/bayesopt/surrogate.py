"""Surrogates: from the encoders that have been trained to a belief about those that have not.

`GaussianProcess` is the default: a sum of parts that are linear in size, linear in what the layers are made of, and
smooth in both, whose shares the measurements decide. The paper's networks are in `boshnas_networks.py`.

Notation: N architectures, F features, n measured architectures, K kernels. Higher values are better throughout.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """Belief about N architectures: expected value and two standard deviations, each (N,).

    Attributes:
        mean: Expected value.
        aleatoric: Standard deviation of a measurement around the value (noise of training).
        epistemic: Standard deviation of the value itself (lack of data).
    """

    mean: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray


class Surrogate(Protocol):
    """Anything that learns values from features."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        """Learns from features x (n, F) and values y (n,)."""

    def predict(self, x: np.ndarray) -> Prediction:
        """The belief about x (N, F)."""


class GrowingSurrogate(Surrogate, Protocol):
    """One that is told more without learning everything again."""

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Takes more features (m, F) and values (m,) into account."""
