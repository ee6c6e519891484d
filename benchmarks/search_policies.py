"""Compares search policies on a table of trained encoders: who finds a good one with the fewest trainings?

    python benchmarks/search_policies.py --table ../shared/bench/nas_bench_bert/architectures.json --mode pool \
        --policies boshnas,random,forest-ei --seeds 30 --evaluations 100 --output pool.json

`--mode pool`: a policy may only choose encoders of the table. boshnas and forest-ei rank them; what others propose is
replaced by the nearest encoder that is still unmeasured (fewest differing parameters), and they are told so.
`--mode oracle`: a forest of 100 trees fitted on the table answers for all encoders of the space that the table spans
(10,621,440 for NAS-Bench-BERT, Serianni and Kalita 2023), noiselessly. An encoder that is proposed twice costs two
evaluations.

A seed is that of each policy's own generator. The output file is {"mode", "table", "policies": {name: {"scores":
[[score of each evaluation in order] for each seed], "seconds": [policy time for each seed]}}}; seconds are processor
time of proposing alone, not of measuring. It is written after every run, and policies that it holds from an earlier
start are kept. Results and what they mean: `benchmarks/results/README.md`.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from scipy.stats import norm
from sklearn.ensemble import RandomForestRegressor


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flexibert.spec import parse_layers  # noqa: E402
from search.bayesopt.encoding import Encoding  # noqa: E402
from search.errors import UserError  # noqa: E402
from search.samplers.boshnas import BoshnasSampler  # noqa: E402
from search.space.search_space import Architecture, SearchSpace  # noqa: E402


OPERATIONS = {
    ("SA", "SDP"): {"op": "self_attention"},
    ("SA", "WMA"): {"op": "self_attention", "similarity": "weighted_multiplicative"},
    ("LT", "DFT"): {"op": "linear_transform", "source": "layer"},
    ("LT", "DCT"): {"op": "linear_transform", "source": "layer", "transform": "cosine"},
}
"""NAS-Bench-BERT's operations and their parameters -> ours; ("DSC", size) are convolutions with that kernel."""

Policy = Generator[Architecture, tuple[Architecture, float], None]
"""Yields what it wants to be measured; is sent what was measured in its place, and the score."""


# --- tables and problems ------------------------------------------------------------------------------------------


def read_table(path: Path) -> tuple[SearchSpace, list[Architecture], np.ndarray]:
    """The space that a table spans, its different architectures, and their (N,) GLUE scores in percent.

    The space has every choice that some encoder of the table has; NAS-Bench-BERT's table spans its whole space. An
    encoder that was trained twice has the mean of its scores.

    Raises:
        UserError: With the number of the item that is no encoder with a score; or there is none.
    """
    scores: dict[Architecture, list[float]] = {}
    items = json.loads(path.read_text(encoding="utf-8"))
    for number, item in enumerate(items):
        try:
            layers = parse_layers([_layer(layer, item["hidden_size"]) for layer in item["layers"]])
            score = float(item["scores"]["glue"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}[{number}]: {type(error).__name__} {error}") from None
        if not math.isfinite(score):
            raise UserError(f"{path}[{number}].scores.glue: {score} is not accepted, expected a finite number")
        scores.setdefault(layers, []).append(score)
    if not scores:
        raise UserError(f"{path} holds no encoders")
    space = _spanned(items)
    return space, list(scores), np.array([np.mean(values) for values in scores.values()])


def _spanned(items: Sequence[dict]) -> SearchSpace:
    """All choices that items have, in an order that is always the same."""
    layers = [layer for item in items for layer in item["layers"]]

    def choices(key: str) -> list[int]:
        return sorted({layer[key] for layer in layers})

    labels = {(layer["operation_type"], layer["operation_parameter"]) for layer in layers}
    kernels = sorted(size for kind, size in labels if kind == "DSC")
    ordered = [label for label in OPERATIONS if label in labels] + [("DSC", size) for size in kernels]
    return SearchSpace.from_dict(
        {
            "num_layers": sorted({len(item["layers"]) for item in items}),
            "hidden_size": sorted({item["hidden_size"] for item in items}),
            "num_heads": choices("num_operation_heads"),
            "operations": [_operation(*label) for label in ordered],
            "feed_forward_size": choices("feed_forward_dimension"),
            "feed_forward_depth": choices("num_feed_forward"),
            "shared_hidden_size": True,
        }
    )


def _operation(kind: str, parameter: str | int) -> dict:
    if kind == "DSC":
        return {"op": "dynamic_convolution", "kernel_size": parameter}
    return OPERATIONS[kind, parameter]


def _layer(layer: dict, hidden_size: int) -> dict:
    operation = _operation(layer["operation_type"], layer["operation_parameter"])
    return {
        "hidden_size": hidden_size,
        "operations": [{**operation, "num_heads": layer["num_operation_heads"]}],
        "feed_forward": [layer["feed_forward_dimension"]] * layer["num_feed_forward"],
    }


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Attributes:
        encoding: Of the space.
        scores: (N,) scores of rows (N, P).
        best: The highest score there is.
        good: The score of a top-1% encoder.
        members: (N, P) rows that may be measured, once each; None for the whole space.
    """

    encoding: Encoding
    scores: Callable[[np.ndarray], np.ndarray]
    best: float
    good: float
    members: np.ndarray | None = None

    def row(self, layers: Architecture) -> np.ndarray:
        return self.encoding.indices([self.encoding.space.parameters(layers)])[0]

    def architecture(self, row: np.ndarray) -> Architecture:
        return self.encoding.space.build(self.encoding.values(row))

    def nearest(self, row: np.ndarray, taken: set[int]) -> int:
        """Which untaken member differs from a row in the fewest parameters."""
        distances = (self.members != row).sum(1)
        distances[list(taken)] = len(row) + 1
        return int(distances.argmin())


def pool_problem(space: SearchSpace, architectures: Sequence[Architecture], scores: np.ndarray) -> Problem:
    """Only the table's own encoders."""
    encoding = Encoding(space)
    members = encoding.indices([space.parameters(layers) for layers in architectures])
    table = {row.tobytes(): score for row, score in zip(members, scores)}
    good = np.sort(scores)[-int(np.ceil(0.01 * len(scores)))]
    return Problem(
        encoding, lambda rows: np.array([table[row.tobytes()] for row in rows]), scores.max(), good, members
    )


def oracle_problem(space: SearchSpace, architectures: Sequence[Architecture], scores: np.ndarray) -> Problem:
    """The whole space, scored by a forest that is fitted on the table."""
    encoding = Encoding(space)
    rows = encoding.indices([space.parameters(layers) for layers in architectures])
    forest = RandomForestRegressor(100, random_state=0).fit(one_hot(encoding, rows), scores)

    def answer(rows: np.ndarray) -> np.ndarray:
        return forest.predict(one_hot(encoding, rows))

    rng = np.random.default_rng(0)
    top = encoding.sample(20_000, rng)
    good = np.quantile(answers := answer(top), 0.99)
    top = top[np.argsort(-answers)[:200]]
    for _ in range(20):  # the best is not known but climbed to from 200 sides; longer climbs found nothing better
        climbers = np.unique(np.concatenate([top, encoding.mutate(np.repeat(top, 30, axis=0), rng)]), axis=0)
        top = climbers[np.argsort(-answer(climbers))[:200]]
    return Problem(encoding, answer, answer(top[:1])[0], good)


def one_hot(encoding: Encoding, rows: np.ndarray) -> np.ndarray:
    """(N, P) rows as indicators of every value of every parameter; parameters without a say are all zero."""
    values = np.arange(encoding.num_values.max())
    indicators = (rows[..., None] == values) & encoding.active(rows)[..., None]
    return indicators[:, values < encoding.num_values[:, None]].astype(np.float32)


# --- policies -----------------------------------------------------------------------------------------------------


def with_sampler(create: Callable[[Problem, int], optuna.samplers.BaseSampler], problem: Problem, seed: int) -> Policy:
    """An Optuna sampler, which is told of what was measured as if it had proposed it."""
    space = problem.encoding.space
    study = optuna.create_study(direction="maximize", sampler=create(problem, seed))
    while True:
        trial = study.ask()
        proposed = space.suggest(trial)
        measured, score = yield proposed
        if measured == proposed:
            study.tell(trial, score)
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            params, distributions = space.parameters(measured), space.distributions()
            study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=score))


def boshnas(problem: Problem, seed: int, preset: str) -> optuna.samplers.BaseSampler:
    candidates = None if problem.members is None else [problem.architecture(row) for row in problem.members]
    return BoshnasSampler(problem.encoding.space, preset=preset, seed=seed, candidates=candidates)


def random_search(problem: Problem, seed: int) -> Policy:
    rng = random.Random(seed)
    while True:
        yield problem.encoding.space.sample(rng)


def regularised_evolution(problem: Problem, seed: int, population: int = 20, tournament: int = 5) -> Policy:
    """Real et al. 2019, arXiv 1802.01548: a mutant of the best of a random few of the youngest."""
    rng, space = random.Random(seed), problem.encoding.space
    measured: list[tuple[Architecture, float]] = []
    while True:
        if len(measured) < population:
            proposal = space.sample(rng)
        else:
            parent, _ = max(rng.sample(measured[-population:], tournament), key=lambda pair: pair[1])
            proposal = space.mutate(parent, rng)
        measured.append((yield proposal))


def local_search(problem: Problem, seed: int, patience: int = 20) -> Policy:
    """White et al. 2020, arXiv 2005.02960: moves to the first better neighbour, restarts where there is none.

    Neighbours are drawn at random, `patience` of them in vain stand for all.
    """
    rng, space = random.Random(seed), problem.encoding.space
    while True:
        center, best = yield space.sample(rng)
        failures = 0
        while failures < patience:
            neighbour, score = yield space.mutate(center, rng)
            if score > best:
                center, best, failures = neighbour, score, 0
            else:
                failures += 1


def forest_expected_improvement(problem: Problem, seed: int, initial: int = 10, trees: int = 50) -> Policy:
    """A forest on one-hot features, whose trees' scatter is the uncertainty; candidates are the pool, or 500 random
    encoders and 500 mutants of the ten best."""
    rng, encoding = np.random.default_rng(seed), problem.encoding
    rows, scores = np.empty((0, len(encoding.names)), dtype=np.int64), np.empty(0)
    while True:
        best = rows[np.argsort(-scores)[:10]]
        candidates = problem.members
        if candidates is None:
            mutants = encoding.mutate(np.repeat(best, 50, axis=0), rng)
            candidates = np.concatenate([encoding.sample(500, rng), mutants])
        known = {row.tobytes() for row in rows}
        candidates = candidates[[row.tobytes() not in known for row in candidates]]
        choice = rng.integers(len(candidates))
        if len(rows) >= initial:
            forest = RandomForestRegressor(trees, random_state=int(rng.integers(2**31)))
            forest.fit(one_hot(encoding, rows), scores)
            features = one_hot(encoding, candidates)
            answers = np.stack([tree.predict(features) for tree in forest.estimators_])
            mean, deviation = answers.mean(0), answers.std(0) + 1e-9
            z = (mean - scores.max()) / deviation
            choice = np.argmax(deviation * (z * norm.cdf(z) + norm.pdf(z)))
        measured, score = yield problem.architecture(candidates[choice])
        rows, scores = np.concatenate([rows, problem.row(measured)[None]]), np.append(scores, score)


POLICIES: dict[str, Callable[[Problem, int], Policy]] = {
    "boshnas": partial(with_sampler, partial(boshnas, preset="default")),
    "boshnas-paper": partial(with_sampler, partial(boshnas, preset="paper")),
    "random": random_search,
    "optuna-tpe": partial(with_sampler, lambda problem, seed: optuna.samplers.TPESampler(seed=seed)),
    "optuna-gp": partial(with_sampler, lambda problem, seed: optuna.samplers.GPSampler(seed=seed)),
    "regularised-evolution": regularised_evolution,
    "local-search": local_search,
    "forest-ei": forest_expected_improvement,
}


# --- comparison ---------------------------------------------------------------------------------------------------


def run(create: Callable[[Problem, int], Policy], problem: Problem, seed: int, evaluations: int):
    """Scores of one run in order, and the seconds that its policy took to propose."""
    if problem.members is not None:
        evaluations = min(evaluations, len(problem.members))
    started = time.process_time()
    policy = create(problem, seed)
    proposal = next(policy)
    seconds, scores, taken = time.process_time() - started, [], set()
    while True:
        row = problem.row(proposal)
        if problem.members is not None:
            taken.add(index := problem.nearest(row, taken))
            row = problem.members[index]
        scores.append(float(problem.scores(row[None])[0]))
        if len(scores) == evaluations:
            return scores, seconds
        started = time.process_time()
        proposal = policy.send((problem.architecture(row), scores[-1]))
        seconds += time.process_time() - started


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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", type=Path, required=True, help="JSON list of trained encoders")
    parser.add_argument("--mode", choices=["pool", "oracle"], required=True)
    parser.add_argument("--policies", default=",".join(POLICIES), help="comma-separated: " + ", ".join(POLICIES))
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    names = options.policies.split(",")
    unknown = [name for name in names if name not in POLICIES]
    if unknown:
        parser.error(f"--policies: unknown {', '.join(unknown)}; known: {', '.join(POLICIES)}")
    if min(options.seeds, options.evaluations) < 1:
        parser.error("--seeds and --evaluations: expected whole numbers of at least 1")
    try:
        problem = {"pool": pool_problem, "oracle": oracle_problem}[options.mode](*read_table(options.table))
    except (OSError, ValueError) as error:
        parser.error(f"--table: {error}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    results = {"mode": options.mode, "table": options.table.name, "policies": {}}
    if options.output.exists():
        earlier = json.loads(options.output.read_text(encoding="utf-8"))
        if any(earlier.get(key) != results[key] for key in ("mode", "table")):
            parser.error(f"--output: {options.output} holds results of another mode or table")
        results = earlier
    known = {score for policy in results["policies"].values() for run in policy["scores"] for score in run}
    if problem.members is not None and not known <= set(problem.scores(problem.members).tolist()):
        parser.error(f"--output: {options.output} holds results of another table of that name")
    for name in names:
        runs = []
        for seed in range(options.seeds):
            runs.append(run(POLICIES[name], problem, seed, options.evaluations))
            results["policies"][name] = {"scores": [scores for scores, _ in runs], "seconds": [s for _, s in runs]}
            options.output.write_text(json.dumps(results), encoding="utf-8")
        print(f"{name}: {summary(runs, problem)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
