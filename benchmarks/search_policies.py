"""Compares search policies: who finds a good encoder with the fewest trainings?

    python benchmarks/search_policies.py --mode design --table BERT_benchmark.json --output design.json
    python benchmarks/search_policies.py --mode pool --table BERT_benchmark.json \
        --policies boshnas,random,forest-ei --seeds 30 --evaluations 100 --output pool.json

`--mode design`, `--mode held-back`: the two halves of a protocol of many problems, see `search_problems.py`. A run
ends with the first good encoder, or after 100 evaluations, which counts as 101. Says of every policy the mean rank
over problems (by the mean number of evaluations), the share of problems in which no policy needs fewer, and the mean
and median of evaluations over all runs, with 95% bootstrap intervals over problems. All see the same subsets.
`--mode pool`: a policy may only choose encoders of one table. boshnas and forest-ei rank them; what others propose is
replaced by the nearest encoder that is still unmeasured (fewest differing parameters), and they are told so.
`--mode oracle`: a forest of 100 trees fitted on the table answers for all encoders of the space that the table spans
(10,621,440 for NAS-Bench-BERT, Serianni and Kalita 2023), noiselessly. An encoder that is proposed twice costs two
evaluations.

A seed is that of each policy's own generator. The output of the last two modes is {"mode", "table", "policies": {name:
{"scores": [[score of each evaluation in order] for each seed], "seconds": [policy time for each seed]}}}, that of the
first two {"mode", "problems": {name: {policy: [evaluations of each run]}}, "seconds": {policy: in all}}; seconds are
processor time of proposing alone, not of measuring. It is written after every run or problem, and what it holds from
an earlier start is kept. Results and what they mean: `benchmarks/results/README.md`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
from scipy.stats import rankdata


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.policies import POLICIES, Policy  # noqa: E402
from benchmarks.search_problems import HALVES, Problem, oracle_problem, pool_problem, problems  # noqa: E402
from benchmarks.search_tables import read_table  # noqa: E402
from search.files import replace_file  # noqa: E402


PROTOCOL_POLICIES = ("boshnas", "forest-ei", "optuna-tpe", "optuna-gp", "regularised-evolution", "random")
EVALUATIONS = 100

Create = Callable[[Problem, int], Policy]


def measurements(create: Create, problem: Problem, seed: int) -> Iterator[tuple[float, float, float]]:
    """Runs a policy: the score that each evaluation shows, the score without noise, and the seconds that the policy
    took to propose it."""
    taken: set[int] = set()
    started = time.process_time()
    policy = create(problem, seed)
    proposal = next(policy)
    while problem.members is None or len(taken) < len(problem.members):
        seconds = time.process_time() - started
        row = problem.row(proposal)
        if problem.members is not None:
            taken.add(index := problem.nearest(row, taken))
            row = problem.members[index]
        measured, score = problem.measure(row)
        yield measured, score, seconds
        if problem.members is not None and len(taken) == len(problem.members):
            return
        started = time.process_time()
        proposal = policy.send((problem.architecture(row), measured))


def run(create: Create, problem: Problem, seed: int, evaluations: int) -> tuple[list[float], float]:
    """Scores of one run in order, and the seconds that its policy took to propose."""
    scores, seconds = [], 0.0
    for score, _, took in measurements(create, problem, seed):
        scores.append(score)
        seconds += took
        if len(scores) == evaluations:
            break
    return scores, seconds


def evaluations_to_good(create: Create, problem: Problem, seed: int) -> tuple[int, float]:
    """How many evaluations a policy needs to a good encoder, one more than allowed if it finds none; its seconds."""
    seconds = 0.0
    for count, (_, score, took) in enumerate(measurements(create, problem, seed), 1):
        seconds += took
        if score >= problem.good:
            return count, seconds
        if count == EVALUATIONS:
            break
    return EVALUATIONS + 1, seconds


def summary(runs: Sequence[tuple[list[float], float]], problem: Problem) -> str:
    """One line: evaluations to a good encoder, mean regret after some numbers of evaluations, policy time."""
    so_far = np.maximum.accumulate(np.array([scores for scores, _ in runs]), axis=1)
    good = so_far >= problem.good
    first = np.where(good.any(1), good.argmax(1) + 1, np.inf)
    counts = [count for count in (10, 25, 50, 100) if count <= so_far.shape[1]]
    regrets = [round(problem.best - so_far[:, count - 1].mean(), 3) + 0.0 for count in counts]  # no -0.000
    regret = ", ".join(f"{value:.3f} after {count}" for value, count in zip(regrets, counts))
    seconds = np.median([seconds for _, seconds in runs])
    return f"top 1% after {np.median(first):g} (median), mean regret {regret or 'unknown'}, {seconds:.1f} s"


def report(found: Mapping[str, Mapping[str, Sequence[int]]], names: Sequence[str]) -> list[str]:
    """Lines of a table: every policy over all problems that all of them have, and over each group of problems."""
    lines = ["group | policy | mean rank | share first or tied | evaluations, mean | median"]
    complete = {name: runs for name, runs in found.items() if all(policy in runs for policy in names)}
    groups = {"all": list(complete)}
    for name in complete:
        groups.setdefault(name.split("/")[0], []).append(name)
    for group, members in groups.items():
        means = np.array([[np.mean(complete[name][policy]) for policy in names] for name in members])
        ranks, first = rankdata(means, axis=1), means == means.min(1, keepdims=True)
        draws = np.random.default_rng(0).integers(len(members), size=(2000, len(members)))
        for column, policy in enumerate(names):
            parts = [policy]
            for values, form in ((ranks, "{:.2f}"), (first, "{:.0%}"), (means, "{:.1f}")):
                low, high = np.quantile(values[draws, column].mean(1), (0.025, 0.975))
                interval = f"({form} to {form})".format(low, high)
                parts.append(f"{form.format(values[:, column].mean())} {interval}")
            median = np.median([count for name in members for count in complete[name][policy]])
            lines.append(" | ".join([f"{group} ({len(members)})", *parts, f"{median:g}"]))
    return lines


def compare_in_protocol(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Runs what a half of the protocol still lacks, and reports."""
    results = {"mode": options.mode, "problems": {}, "seconds": {}}
    if options.output.exists():
        results = json.loads(options.output.read_text(encoding="utf-8"))
    for name, make in problems(HALVES[options.mode], options.table, options.seeds):
        done = results["problems"].setdefault(name, {})
        lacking = [policy for policy in names if policy not in done]
        instances = make() if lacking else ()
        for policy in lacking:
            runs = [evaluations_to_good(POLICIES[policy], problem, seed) for seed, problem in enumerate(instances)]
            done[policy] = [count for count, _ in runs]
            seconds = results["seconds"].get(policy, 0.0) + sum(seconds for _, seconds in runs)
            results["seconds"][policy] = round(seconds, 2)
            replace_file(options.output, json.dumps(results) + "\n")
        if lacking and options.mode == "design":
            print(f"{name}: " + ", ".join(f"{policy} {np.mean(done[policy]):.1f}" for policy in names), flush=True)
    print("\n".join(report(results["problems"], names)))


def compare_in_table(options: argparse.Namespace, names: Sequence[str], problem: Problem, earlier: dict) -> None:
    """Runs policies on one table, and says how each did."""
    results = earlier or {"mode": options.mode, "table": options.table.name, "policies": {}}
    for name in names:
        runs = []
        for seed in range(options.seeds):
            runs.append(run(POLICIES[name], problem, seed, options.evaluations))
            results["policies"][name] = {"scores": [scores for scores, _ in runs], "seconds": [s for _, s in runs]}
            options.output.write_text(json.dumps(results), encoding="utf-8")
        print(f"{name}: {summary(runs, problem)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mode", choices=[*HALVES, "pool", "oracle"], required=True)
    parser.add_argument("--table", type=Path, required=True, help="JSON list of trained encoders")
    parser.add_argument("--metric", default="glue", help="which of the table's scores")
    parser.add_argument("--policies", help="comma-separated: " + ", ".join(POLICIES))
    parser.add_argument("--seeds", type=int, help="runs of a policy; in the protocol 3 of a problem, else 30")
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, help="of a run, for pool and oracle")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    protocol = options.mode in HALVES
    names = (options.policies or ",".join(PROTOCOL_POLICIES if protocol else POLICIES)).split(",")
    options.seeds = (3 if protocol else 30) if options.seeds is None else options.seeds
    unknown = [name for name in names if name not in POLICIES]
    if unknown:
        parser.error(f"--policies: unknown {', '.join(unknown)}; known: {', '.join(POLICIES)}")
    if min(options.seeds, options.evaluations) < 1:
        parser.error("--seeds and --evaluations: expected whole numbers of at least 1")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    earlier = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    if protocol:
        if earlier.get("mode", options.mode) != options.mode or "problems" not in earlier and earlier:
            parser.error(f"--output: {options.output} holds results of another mode")
        compare_in_protocol(options, names)
        return 0
    try:
        make = {"pool": pool_problem, "oracle": oracle_problem}[options.mode]
        problem = make(*read_table(options.table, options.metric))
    except (OSError, ValueError) as error:
        parser.error(f"--table: {error}")
    if earlier and (earlier.get("mode"), earlier.get("table")) != (options.mode, options.table.name):
        parser.error(f"--output: {options.output} holds results of another mode or table")
    known = {score for policy in earlier.get("policies", {}).values() for run in policy["scores"] for score in run}
    if problem.members is not None and not known <= set(problem.scores(problem.members).tolist()):
        parser.error(f"--output: {options.output} holds results of another table of that name")
    compare_in_table(options, names, problem, earlier)
    return 0


if __name__ == "__main__":
    sys.exit(main())
