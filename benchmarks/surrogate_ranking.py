"""How well surrogates rank trained encoders that they have not seen.

    python benchmarks/surrogate_ranking.py --table BERT_benchmark.json --seeds 30

Every seed draws 20, 50 and 100 encoders of a table at random; the surrogate is fitted on them and ranks the others.
Prints the mean Kendall tau between its ranking and the scores. Results: `benchmarks/results/README.md`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau
from sklearn.ensemble import RandomForestRegressor


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.search_problems import one_hot
from benchmarks.search_tables import read_table  # noqa: E402
from search.bayesopt.boshnas_networks import BoshnasNetworks  # noqa: E402
from search.bayesopt.encoding import Encoding  # noqa: E402
from search.bayesopt.gaussian_process import GaussianProcess, RobustScale


COUNTS = (20, 50, 100)

Features = Callable[[np.ndarray], np.ndarray]
"""Rows (N, P) -> (N, F)."""

Ranker = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(known rows, their scores, unknown rows) -> predictions for the latter."""


def rankers(encoding: Encoding) -> dict[str, Ranker]:
    """Surrogates by name, with what they see of an encoder and of a score."""
    members = encoding.sample(1000, np.random.default_rng(0))

    def standardised(features: Features) -> Features:
        center, scale = features(members).mean(0), np.maximum(features(members).std(0), 1e-3)
        return lambda rows: (features(rows) - center) / scale

    transformer2vec = standardised(encoding.embed)
    position = encoding.blocks["position"].start

    def embedded(rows: np.ndarray) -> np.ndarray:
        """Transformer2vec instead of the description unit by unit, its variances summing to 1 as well."""
        vectors = transformer2vec(rows)
        return np.hstack([encoding.features(rows)[:, :position], vectors / vectors.shape[1] ** 0.5])

    def gaussian_process(features: Features, scale: Callable[[np.ndarray], np.ndarray]) -> Ranker:
        def predict(known: np.ndarray, scores: np.ndarray, unknown: np.ndarray) -> np.ndarray:
            surrogate = GaussianProcess({**encoding.blocks, "position": slice(position, None)})
            surrogate.fit(features(known), scale(scores))
            return surrogate.predict(features(unknown)).mean

        return predict

    def networks(features: Features) -> Ranker:
        def predict(known: np.ndarray, scores: np.ndarray, unknown: np.ndarray) -> np.ndarray:
            surrogate = BoshnasNetworks()
            surrogate.fit(features(known), (scores - scores.min()) / np.ptp(scores))
            return surrogate.predict(features(unknown)).mean

        return predict

    def forest(known: np.ndarray, scores: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        model = RandomForestRegressor(100, random_state=0)
        return model.fit(one_hot(encoding, known), scores).predict(one_hot(encoding, unknown))

    def robust(scores: np.ndarray) -> np.ndarray:
        return RobustScale(scores).transform(scores)

    def standard(scores: np.ndarray) -> np.ndarray:
        return (scores - scores.mean()) / scores.std()

    return {
        "Gaussian process, robust scale (default)": gaussian_process(encoding.features, robust),
        "Gaussian process, standardised scores": gaussian_process(encoding.features, standard),
        "Gaussian process, Transformer2vec for the position": gaussian_process(embedded, robust),
        "forest on one-hot features": forest,
        "networks on Transformer2vec (paper)": networks(transformer2vec),
        "networks on our features": networks(standardised(encoding.features)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", type=Path, required=True, help="JSON list of trained encoders")
    parser.add_argument("--seeds", type=int, default=30)
    options = parser.parse_args()
    space, architectures, scores = read_table(options.table)
    encoding = Encoding(space)
    rows = encoding.indices([space.parameters(layers) for layers in architectures])
    orders = [np.random.default_rng(seed).permutation(len(rows)) for seed in range(options.seeds)]
    for name, ranker in rankers(encoding).items():
        means = []
        for count in COUNTS:
            splits = [(order[:count], order[count:]) for order in orders]
            taus = [kendalltau(ranker(rows[k], scores[k], rows[u]), scores[u]).statistic for k, u in splits]
            means.append(f"{np.mean(taus):.3f} after {count}")
        print(f"{name}: {', '.join(means)}", flush=True)


if __name__ == "__main__":
    main()
