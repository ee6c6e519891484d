"""How far do searches agree on the encoders that they share, for instance with inherited and with trained weights?

    python -m search run --recipe R --name alone --start-from ENCODERS ...
    python -m search run --recipe R --name again --start-from ENCODERS --seed 1 ...
    python -m search run --recipe R --name inherited --start-from ENCODERS --evaluator supernet --supernet NET \
        --steps 0 ...
    python benchmarks/agreement.py --reference runs/alone runs/again --runs runs/inherited --output FILE.json

Kendall's tau over the encoders that all runs have, with 95% bootstrap intervals over encoders. That of the two
references with each other, which differ in their seed, is the most that a cheaper judgement can be expected to reach;
that of another run is the mean of its tau with each. With a single reference there is no such ceiling. Time is the
median of a trial from start to end.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from scipy.stats import kendalltau


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from search.files import replace_file  # noqa: E402
from search.study.run_folder import RunFolder  # noqa: E402
from search.study.trials import finished  # noqa: E402


def read(run: Path) -> dict[str, tuple[float, float]]:
    """Fingerprint of every encoder of a run -> its score in percent and the seconds that it took."""
    storage = RunFolder(run).storage
    [name] = optuna.get_all_study_names(storage)
    trials = finished(optuna.load_study(study_name=name, storage=storage))
    return {t.user_attrs["fingerprint"]: (t.values[0], t.duration.total_seconds()) for t in trials if t.duration}


def tau(first: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """The mean of Kendall's tau with each."""
    return float(np.mean([kendalltau(first, other).statistic for other in others]))


def interval(first: np.ndarray, others: Sequence[np.ndarray]) -> list[float]:
    rng = np.random.default_rng(0)
    picks = [rng.integers(len(first), size=len(first)) for _ in range(2000)]
    return np.nanpercentile([tau(first[pick], [o[pick] for o in others]) for pick in picks], [2.5, 97.5]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, nargs="+", required=True, metavar="RUN")
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    runs = {run.name: read(run) for run in (*options.reference, *options.runs)}
    shared = sorted(set.intersection(*(set(run) for run in runs.values())))
    if len(shared) < 3:
        raise SystemExit(f"the runs share {len(shared)} encoders, at least 3 are needed")
    scores = {name: np.array([run[key][0] for key in shared]) for name, run in runs.items()}
    seconds = {name: statistics.median(run[key][1] for key in shared) for name, run in runs.items()}
    references = [scores[run.name] for run in options.reference]
    first, others = references[0], references[1:]
    ceiling = tau(first, others) if others else None
    result = {
        "encoders": shared,
        "scores": {name: values.tolist() for name, values in scores.items()},
        "seconds_per_encoder": seconds,
        "references": {"tau": ceiling, "interval": interval(first, others)} if others else None,
        "runs": {
            run.name: {
                "tau": (found := tau(scores[run.name], references)),
                "interval": interval(scores[run.name], references),
                "of_the_references": None if ceiling is None else found / ceiling,
                "of_the_time": seconds[run.name] / seconds[options.reference[0].name],
            }
            for run in options.runs
        },
        "between_runs": {
            f"{a.name}, {b.name}": tau(scores[a.name], [scores[b.name]])
            for a, b in itertools.combinations(options.runs, 2)
        },
    }
    print(json.dumps({name: value for name, value in result.items() if name not in ("encoders", "scores")}, indent=1))
    if options.output:
        replace_file(options.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
