"""The default surrogate: a Gaussian process whose prior is what trained encoders show."""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize

from .surrogate import Prediction


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

    f(x) ~ GP(slope * weights(x), sum_k v_k K_k) and y = f(x) + noise, where the kernels are linear in size, linear in
    composition and order, smooth in position, and smooth in position and size together. Fixed kernels make fitting
    a smooth problem in K + 1 = 5 numbers that a hundred measurements settle in some 20 ms.

    Args:
        blocks: Feature block -> columns, as in `Encoding.blocks`.
        slope: Prior mean per standard deviation of the logarithm of the number of weights: larger encoders are
            better until the data say otherwise.
    """

    def __init__(self, blocks: Mapping[str, slice], slope: float = 0.5):
        self.blocks = blocks
        self.slope = slope

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        kernels = np.concatenate([self._kernels(x, x), np.eye(len(x))[None]])
        residual = y - self._prior_mean(x)
        start = np.log(np.append(np.full(len(kernels) - 1, 1 / (len(kernels) - 1)), 0.1))

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
        self._condition(x, y)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Takes more values into account, without fitting weights and noise again."""
        self._condition(np.concatenate([self._x, x]), np.concatenate([self._y, y]))

    def _condition(self, x: np.ndarray, y: np.ndarray) -> None:
        covariance = np.tensordot(self._weights, self._kernels(x, x), 1) + self._noise * np.eye(len(x))
        self._x, self._y, self._precision = x, y, np.linalg.inv(covariance)

    def predict(self, x: np.ndarray) -> Prediction:
        covariance = np.tensordot(self._weights, self._kernels(x, self._x), 1)  # (N, n) covariances
        explained = ((covariance @ self._precision) * covariance).sum(1)
        prior = self._weights @ self._diagonals(x)
        return Prediction(
            mean=self._prior_mean(x) + covariance @ (self._precision @ (self._y - self._prior_mean(self._x))),
            aleatoric=np.full(len(x), np.sqrt(self._noise)),
            epistemic=np.sqrt(np.maximum(prior - explained, 1e-12)),
        )

    def _prior_mean(self, x: np.ndarray) -> np.ndarray:
        size = x[:, self.blocks["size"]]
        return self.slope * np.sqrt(size.shape[1]) * size[:, -1]

    def _kernels(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """(K, N, M) kernels between (N, F) and (M, F)."""
        size, composition, order, position = ((a[:, block], b[:, block]) for block in self.blocks.values())
        near = np.exp(-0.5 * _squared_distances(*position))
        linear = composition[0] @ composition[1].T + order[0] @ order[1].T
        return np.stack([size[0] @ size[1].T, linear, near, near * np.exp(-_squared_distances(*size))])

    def _diagonals(self, x: np.ndarray) -> np.ndarray:
        """(K, N) kernels of every row with itself."""
        size, composition, order = ((x[:, self.blocks[name]] ** 2).sum(1) for name in ("size", "composition", "order"))
        return np.stack([size, composition + order, np.ones(len(x)), np.ones(len(x))])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) squared Euclidean distances between rows of (N, F) and (M, F)."""
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0.0)
