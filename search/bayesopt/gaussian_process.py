"""The default surrogate: a Gaussian process that learns what counts in a space."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import minimize

from .surrogate import Prediction


SLOPE = 0.25
NOISE = 0.3
"""Prior variance of a measurement's noise, on the scale of `RobustScale`: rather too much than too little, since a
model that believes a few early scores to the digit chases them."""

FITTED = 250
"""To so many measurements weights and noise are fitted at most; more would change little and take seconds."""

Products = Mapping[str, np.ndarray]
"""Feature block -> its dot products or squared distances, all of one shape."""


def _near(squared_distances: np.ndarray, length: float) -> np.ndarray:
    return np.exp(-0.5 * squared_distances / length**2)


KERNELS: dict[str, Callable[[Products, Products], np.ndarray]] = {
    "size": lambda dots, distances: dots["size"],
    "traits": lambda dots, distances: dots["composition"] + dots["order"],
    "position": lambda dots, distances: _near(distances["position"], 0.7),
    "composition": lambda dots, distances: _near(distances["composition"], 0.5),
    "composition and size": lambda dots, distances: (
        _near(distances["composition"], 1.0) * _near(distances["size"], 1.0)
    ),
    "composition and size, near": lambda dots, distances: (
        _near(distances["composition"], 1.0) * _near(distances["size"], 0.5)
    ),
}
"""Of dot products and squared distances of encoders in each feature block, whose variances sum to 1: linear in size
and in the shares and order of traits; smooth in the unit by unit description; smooth in what an encoder is made of,
whatever its order, alone and together with its size."""


class RobustScale:
    """Monotone map from scores to about unit scale: centred on the median, and logarithmic below it.

    Encoders fail in many ways and excel in few, so low scores scatter widely. Without the logarithm a handful of
    failures sets the scale of everything (Kendall tau on unseen encoders after 50 of NAS-Bench-BERT: .73 instead
    of .75).
    """

    def __init__(self, y: np.ndarray):
        self.center = float(np.median(y)) if len(y) else 0.0
        deviations = np.abs(y - self.center)
        spread = 1.4826 * np.median(deviations) if len(y) else 0.0
        if spread:
            spread = max(spread, 1e-9 * np.ptp(y))  # else the farthest scores would be beyond all numbers
        self.scale = float(spread or deviations.mean() if len(y) else 0.0) or 1.0

    def transform(self, y: np.ndarray) -> np.ndarray:
        """Scores to values."""
        z = (np.asarray(y, dtype=float) - self.center) / self.scale
        return np.where(z < 0, -np.log1p(np.abs(z)), z)

    def inverse(self, values: np.ndarray) -> np.ndarray:
        """Values to scores."""
        z = np.where(values < 0, -np.expm1(np.minimum(np.abs(values), 50.0)), values)
        return self.center + self.scale * z


class GaussianProcess:
    """Gaussian process whose kernel is a weighted sum of fixed kernels; weights and noise by maximum a posteriori.

    f(x) ~ GP(slope * weights(x), sum_k v_k K_k) and y = f(x) + noise. Which of the kernels of `KERNELS` matter, and
    with them over which distance encoders resemble each other, is decided by the evidence of the measurements; where
    there are few, by the prior that all matter alike. Fixed kernels make fitting a smooth problem in K + 1 numbers,
    which a hundred measurements settle in some 20 ms. From `FITTED` measurements on, an even choice of so many
    settles them; all are conditioned on.

    Args:
        blocks: Feature block -> columns, as in `Encoding.blocks`.
        slope: Prior mean per standard deviation of the logarithm of the number of weights: larger encoders are
            better until the data say otherwise.
        kernels: Names in `KERNELS`.
    """

    def __init__(self, blocks: Mapping[str, slice], slope: float = SLOPE, kernels: Sequence[str] = tuple(KERNELS)):
        self.blocks = blocks
        self.slope = slope
        self.kernels = tuple(KERNELS[name] for name in kernels)

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        even = np.linspace(0, len(x) - 1, min(len(x), FITTED)).round().astype(int)
        self._fit_weights(x[even], y[even])
        self._condition(x, y)

    def _fit_weights(self, x: np.ndarray, y: np.ndarray) -> None:
        kernels = np.concatenate([self._kernels(x, x), np.eye(len(x))[None]])
        residual = y - self._prior_mean(x)
        start = np.log(np.append(np.full(len(kernels) - 1, 1 / (len(kernels) - 1)), NOISE))

        def negative_log_posterior(log_weights: np.ndarray) -> tuple[float, np.ndarray]:
            """Up to a constant, under log_weights ~ N(start, 2²), and its gradient."""
            weights = np.exp(log_weights)
            covariance = np.tensordot(weights, kernels, 1)
            precision = np.linalg.inv(covariance)
            alpha = precision @ residual
            gradient = 0.5 * weights * np.tensordot(kernels, precision - np.outer(alpha, alpha), 2)
            value = 0.5 * (residual @ alpha + np.linalg.slogdet(covariance).logabsdet)
            deviation = log_weights - start
            return value + (deviation**2).sum() / 8, gradient + deviation / 4

        bounds = [(value - 5, value + 5) for value in start]  # 2.5 deviations: never so little noise as to be singular
        options = {"maxiter": 30}
        fitted = minimize(negative_log_posterior, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        self._weights, self._noise = np.exp(fitted.x[:-1]), float(np.exp(fitted.x[-1]))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Takes more values into account, without fitting weights and noise again."""
        self._condition(np.concatenate([self._x, x]), np.concatenate([self._y, y]))

    def _condition(self, x: np.ndarray, y: np.ndarray) -> None:
        covariance = np.tensordot(self._weights, self._kernels(x, x), 1) + self._noise * np.eye(len(x))
        self._x, self._y, self._precision = x, y, np.linalg.inv(covariance)

    def predict(self, x: np.ndarray) -> Prediction:
        covariance = np.tensordot(self._weights, self._kernels(x, self._x), 1)  # (N, n) covariances
        explained = ((covariance @ self._precision) * covariance).sum(1)
        return Prediction(
            mean=self._prior_mean(x) + covariance @ (self._precision @ (self._y - self._prior_mean(self._x))),
            aleatoric=np.full(len(x), np.sqrt(self._noise)),
            epistemic=np.sqrt(np.maximum(self._weights @ self._diagonals(x) - explained, 1e-12)),
        )

    def _prior_mean(self, x: np.ndarray) -> np.ndarray:
        size = x[:, self.blocks["size"]]
        mean: np.ndarray = self.slope * np.sqrt(size.shape[1]) * size[:, -1]
        return mean

    def _kernels(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(K, N, M) kernels between (N, F) and (M, F)."""
        pairs = {name: (a[:, block], b[:, block]) for name, block in self.blocks.items()}
        dots = {name: left @ right.T for name, (left, right) in pairs.items()}
        distances = {name: _squared_distances(*pair) for name, pair in pairs.items()}
        return np.stack([kernel(dots, distances) for kernel in self.kernels])

    def _diagonals(self, x: np.ndarray) -> np.ndarray:
        """(K, N) kernels of every row with itself."""
        dots = {name: (x[:, block] ** 2).sum(1) for name, block in self.blocks.items()}
        distances = dict.fromkeys(self.blocks, np.zeros(len(x)))
        return np.stack([kernel(dots, distances) for kernel in self.kernels])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) squared Euclidean distances between rows of (N, F) and (M, F)."""
    distances: np.ndarray = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0.0)
    return distances
