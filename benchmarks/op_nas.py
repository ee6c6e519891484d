"""OP-NAS against plain evolution on oracles: random functions of the encoders of spaces with searched attention.

    python benchmarks/op_nas.py --output benchmarks/results/op_nas_oracles.json
    python benchmarks/op_nas.py --output benchmarks/results/op_nas_oracles.json --table

Policies are those of `supernet.py`, which compares them on a super-network; plain evolution is OP-NAS with uniform
choices, so only the priorities differ. Counted are the evaluations until a policy has the best score that plain
evolution found with the same seed, one more than all where it never has. Oracles that are in the file are kept.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import optuna


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.search_problems import random_function  # noqa: E402
from benchmarks.supernet import POLICIES, reached, search  # noqa: E402
from flexibert.spec import Architecture  # noqa: E402
from search.files import replace_file  # noqa: E402


ORACLES = [
    (kind, space, effect)
    for space in ("autobert_zero_tiny", "graphs")
    for kind, effect in (("additive", "positive"), ("gaussian process", "absent"), ("forest", "saturating"))
]
"""Kind, space and effect of size, see `search_oracles.py`."""

RIVAL = "plain-evolution"


def measure(kind: str, space_name: str, effect: str, seeds: int, evaluations: int) -> dict:
    """All policies with all seeds on one oracle."""
    space, _, function = random_function(kind, space_name, effect, f"op-nas {kind} {space_name}")
    known: dict[Architecture, float] = {}

    def score(layers: Architecture) -> float:
        if layers not in known:
            known[layers] = float(function([layers])[0])
        return known[layers]

    runs = [
        {name: search(space, options, seed, evaluations, score) for name, options in POLICIES.items()}
        for seed in range(seeds)
    ]
    return {"seeds": seeds, "evaluations": evaluations, "reached": {name: reached(runs, name) for name in POLICIES}}


def table(results: dict) -> str:
    """Medians of evaluations, and what share of evolution's they are."""
    lines = [f"| oracle | {' | '.join(POLICIES)} |", "|---" * (len(POLICIES) + 1) + "|"]
    shares: dict[str, list[float]] = {name: [] for name in POLICIES}
    for oracle, result in results.items():
        medians = {name: result["reached"][name]["median"] for name in POLICIES}
        for name, median in medians.items():
            shares[name].append(median / medians[RIVAL])
        cells = (f"{median:g} ({median / medians[RIVAL]:.2f})" for median in medians.values())
        lines.append(f"| {oracle} | {' | '.join(cells)} |")
    lines.append(f"| share, median | {' | '.join(f'{statistics.median(shares[name]):.2f}' for name in POLICIES)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=200)
    options = parser.parse_args()
    results = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    if not options.table:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        for oracle in ORACLES:
            name, started = "/".join(oracle), time.process_time()
            if name not in results:
                results[name] = measure(*oracle, options.seeds, options.evaluations)
                replace_file(options.output, json.dumps(results, indent=1) + "\n")
                print(name, f"{time.process_time() - started:.0f} s", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
