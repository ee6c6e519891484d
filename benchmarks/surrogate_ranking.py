"""How well surrogates rank trained encoders that they have not seen.

    python benchmarks/surrogate_ranking.py --table ../shared/bench/nas_bench_bert/architectures.json --seeds 30

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

from benchmarks.search_policies import SPACE, one_hot, read_table  # noqa: E402
from search.encoding import Encoding  # noqa: E402
from search.neural_surrogate import BoshnasNetworks  # noqa: E402
from search.surrogate import GaussianProcess, RobustScale  # noqa: E402


COUNTS = (20, 50, 100)

Ranker = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(known rows, their scores, unknown rows) -> predictions for the latter."""


def rankers(encoding: Encoding) -> dict[str, Ranker]:
    """Surrogates by name, with what they see of an encoder and of a score."""
    members = encoding.features(encoding.sample(1000, np.random.default_rng(0)))

    def standardised(rows: np.ndarray) -> np.ndarray:
        return (encoding.features(rows) - members.mean(0)) / np.maximum(members.std(0), 1e-3)

    def gaussian_process(known: np.ndarray, values: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        surrogate = GaussianProcess(encoding.blocks)
        surrogate.fit(encoding.features(known), values)
        return surrogate.predict(encoding.features(unknown)).mean

    def networks(known: np.ndarray, scores: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        surrogate = BoshnasNetworks()
        surrogate.fit(standardised(known), (scores - scores.min()) / np.ptp(scores))
        return surrogate.predict(standardised(unknown)).mean

    def forest(known: np.ndarray, scores: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        model = RandomForestRegressor(100, random_state=0)
        return model.fit(one_hot(encoding, known), scores).predict(one_hot(encoding, unknown))

    def robust(known: np.ndarray, scores: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        return gaussian_process(known, RobustScale(scores).transform(scores), unknown)

    def standard(known: np.ndarray, scores: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        return gaussian_process(known, (scores - scores.mean()) / scores.std(), unknown)

    return {
        "Gaussian process, robust scale (default)": robust,
        "Gaussian process, standardised scores": standard,
        "forest on one-hot features": forest,
        "networks (paper)": networks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", type=Path, required=True, help="JSON list of trained encoders")
    parser.add_argument("--seeds", type=int, default=30)
    options = parser.parse_args()
    architectures, scores = read_table(options.table)
    encoding = Encoding(SPACE)
    rows = encoding.indices([SPACE.parameters(layers) for layers in architectures])
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
