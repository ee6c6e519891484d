"""Does the runtime turn the order of encoders, and how well is latency predicted?

    python benchmarks/latency_order.py --output DIR [--encoders 24] [--threads 2] [--quick]

Measures the same random encoders of a recipe's space in PyTorch and in ONNX Runtime int8, as a search does it, and
gives Kendall's tau between both, and the predictor's error on encoders that it was not fitted to. Measurements are
kept in the output folder, so a killed run goes on where it was. Nothing else should run on the machine.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from flexibert import FlexiBertConfig
from search.files import replace_file
from search.recipe import load_recipe
from search.runtimes.bench import Bench
from search.runtimes.conditions import Conditions, cpu_facts
from search.runtimes.predictor import LatencyPredictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="flexibert")
    parser.add_argument("--encoders", type=int, default=24)
    parser.add_argument("--runtimes", nargs=2, default=["torch", "onnx-int8"])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=0, help="0 for all cores")
    parser.add_argument("--quick", action="store_true", help="three encoders and two repetitions, to see that it runs")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    space, rng = load_recipe(options.recipe).space, random.Random(0)
    fields = {"vocab_size": 30522, "max_position_embeddings": max(128, options.length)}
    count, repetitions = (3, 2) if options.quick else (options.encoders, 20)
    configs = [FlexiBertConfig(layers=space.sample(rng), **fields) for _ in range(count)]
    latencies, runtimes = [], {}
    for runtime in options.runtimes:
        conditions = Conditions(runtime, 1, options.length, options.threads, repetitions)
        conditions.check(fields["max_position_embeddings"])
        bench = Bench(conditions, options.output / f"{runtime}.jsonl", say=print)
        measured = [bench.measure(config) for config in configs]
        bench.close()
        predictor = LatencyPredictor(bench.samples)
        latencies.append([measurement.ms for measurement in measured])
        runtimes[runtime] = {
            "conditions": bench.facts,
            "ms": latencies[-1],
            "largest_drift_percent": float(np.abs([measurement.drift_percent for measurement in measured]).max()),
            "prediction_error_percent": 100 * predictor.mean_error if np.isfinite(predictor.mean_error) else None,
        }
    result = {
        "recipe": options.recipe,
        "kendall_tau": float(kendalltau(*latencies).statistic),
        "runtimes": runtimes,
        "flags": cpu_facts().get("flags", ""),
    }
    replace_file(options.output / "summary.json", json.dumps(result, indent=2))
    errors = {name: entry["prediction_error_percent"] for name, entry in runtimes.items()}
    print(f"Kendall's tau {result['kendall_tau']:.2f} over {count} encoders; prediction errors in percent: {errors}")


if __name__ == "__main__":
    main()
