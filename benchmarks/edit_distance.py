"""How exact is the edit distance, how fast, and how well do vectors of architectures stand for it?

    python benchmarks/edit_distance.py --reference CERTIFIED.json \
        --output benchmarks/results/edit_distance.json

Exactness: random pairs of 2 to 4 layers of FlexiBERT's space are solved by an integer programme (HiGHS) until its
bound meets its value; those that are not solved in a minute are left out and counted. `--reference` adds certified
pairs. Beside our distance stands the first value of networkx, which FlexiBERT used, on the same pairs in the same run.
Library: all distances between the 9,312 encoders of the first level of FlexiBERT's hierarchy.
Embedding: error of vectors against distances, for a table that is trained on the library and for unseen encoders of
the full space, and the processor time to embed one.

Results and what they mean: `benchmarks/results/README.md`.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import networkx
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flexibert import config_from_model_dict  # noqa: E402
from search.recipe import load_recipe  # noqa: E402
from search.similarity.computational_graph import ArchitectureGraph, Label, Topology, architecture_graph  # noqa: E402
from search.similarity.edit_distance import Architecture, EditDistance  # noqa: E402
from search.similarity.transformer2vec import ArchitectureEmbedding, transformer2vec  # noqa: E402
from search.space.hierarchy import levels  # noqa: E402


EDGE_COST = 0.1
TIME_LIMIT = 60.0
SPACE = load_recipe("flexibert").space
SETTINGS = {
    "ours, 32 starts (default)": {},
    "ours, 8 starts": {"starts": 8},
    "ours, 1 start": {"starts": 1},
    "ours, no search": {"starts": 1, "exchanges": False},
}

Weight = Callable[[Label], float]
Pair = tuple[Architecture, Architecture, float]
"""Two architectures and their exact distance."""


# --- exact distances ----------------------------------------------------------------------------------------------


def exact_distance(
    a: Architecture, b: Architecture, weight: Weight, topology: Topology = "chain", time_limit: float = TIME_LIMIT
) -> float | None:
    """Edit distance by integer programming, or None where it is not proven in time.

    Binary x[u, v] maps vertex u of `a` to v of `b`, and y[e, f] <= 1 keeps edge e as f. An edge is kept at most as far
    as each of its ends is mapped to that end of the other, in sum over all edges that share the end.
    """
    first, second = architecture_graph(a, topology), architecture_graph(b, topology)
    weights_a, weights_b = (np.array([weight(label) for label in graph.labels]) for graph in (first, second))
    num_edges = len(first.edges), len(second.edges)
    num_maps = len(weights_a) * len(weights_b)
    x = np.arange(num_maps).reshape(len(weights_a), len(weights_b))
    y = num_maps + np.arange(num_edges[0] * num_edges[1]).reshape(num_edges)
    # What a mapped vertex or a kept edge costs less than its deletion and insertion.
    costs = np.full(num_maps + y.size, -2 * EDGE_COST)
    costs[x] = -2 * np.minimum(weights_a[:, None], weights_b)

    terms = [(ones, [], 1) for ones in (*x, *x.T)]  # sum of the first - sum of the second <= limit
    for maps, kept, graph, other in ((x, y, first, second), (x.T, y.T, second, first)):
        for (e, edge), side in itertools.product(enumerate(graph.edges), (0, 1)):
            at_end: dict[int, list[int]] = {}
            for f, image in enumerate(other.edges):
                at_end.setdefault(image[side], []).append(kept[e, f])
            terms += [(variables, [maps[edge[side], end]], 0) for end, variables in at_end.items()]
    entries = [
        (row, column, sign)
        for row, (plus, minus, _) in enumerate(terms)
        for columns, sign in ((plus, 1), (minus, -1))
        for column in columns
    ]
    rows, columns, signs = zip(*entries)
    matrix = coo_array((signs, (rows, columns)), shape=(len(terms), len(costs))).tocsr()
    solution = milp(
        costs,
        constraints=LinearConstraint(matrix, -np.inf, [limit for *_, limit in terms]),
        integrality=np.arange(len(costs)) < num_maps,
        bounds=Bounds(0, 1),
        options={"time_limit": time_limit, "mip_rel_gap": 0},
    )
    if solution.status != 0:
        return None
    return round(weights_a.sum() + weights_b.sum() + EDGE_COST * sum(num_edges) + solution.fun, 6)


def networkx_distance(a: ArchitectureGraph, b: ArchitectureGraph, weight: Weight) -> float:
    """What FlexiBERT's code took: the first value of networkx."""
    graphs = []
    for graph in (a, b):
        graphs.append(networkx.DiGraph(graph.edges))
        networkx.set_node_attributes(graphs[-1], dict(enumerate(map(weight, graph.labels))), "weight")
    values = networkx.optimize_graph_edit_distance(
        *graphs,
        node_subst_cost=lambda u, v: abs(u["weight"] - v["weight"]),
        node_del_cost=lambda u: u["weight"],
        node_ins_cost=lambda u: u["weight"],
        edge_subst_cost=lambda e, f: 0.0,
        edge_del_cost=lambda e: EDGE_COST,
        edge_ins_cost=lambda e: EDGE_COST,
    )
    return next(values)


def reference_pairs(path: Path) -> list[Pair]:
    """Pairs of a file with certified values."""
    data = json.loads(path.read_text(encoding="utf-8"))
    layers = {name: config_from_model_dict(model).layer_specs for name, model in data["model_dicts"].items()}
    return [(layers[pair["a"]], layers[pair["b"]], pair["certified_exact"]) for pair in data["pairs"]]


def random_pairs(count: int, weight: Weight) -> list[Pair]:
    """Those of `count` random pairs that are solved in time."""
    space, rng = dataclasses.replace(SPACE, num_layers=(2, 3, 4)), random.Random(0)
    pairs = [(space.sample(rng), space.sample(rng)) for _ in range(count)]
    solved = [(a, b, exact_distance(a, b, weight)) for a, b in pairs]
    return [pair for pair in solved if pair[2] is not None]


# --- figures ------------------------------------------------------------------------------------------------------


def accuracy(found: np.ndarray, reverse: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """How distances from a to b (P,), and from b to a, compare with the exact ones."""
    excess = (found - exact) / np.where(exact > 0, exact, 1)
    return {
        "below_exact": int((found < exact - 1e-6).sum()),
        "asymmetric": int((abs(found - reverse) > 1e-6).sum()),
        "exact_percent": 100 * float((excess < 1e-6).mean()),
        "mean_excess_percent": 100 * float(excess.mean()),
        "spearman": float(spearmanr(found, exact).statistic),
    }


def compare(pairs: Sequence[Pair], examples: Sequence[Architecture], block: int = 24) -> dict[str, dict[str, float]]:
    """Accuracy and speed of all methods; ours answers in blocks of which the diagonal is asked for.

    Speed is in pairs per second of one core's processor time, since ours may use several.
    """
    left, right, exact = zip(*pairs)
    exact = np.array(exact)
    weight = EditDistance(examples).weight
    graphs = [(architecture_graph(a), architecture_graph(b)) for a, b in zip(left, right)]
    started = time.process_time()
    found = np.array([networkx_distance(a, b, weight) for a, b in graphs])
    speed = len(pairs) / (time.process_time() - started)
    reverse = np.array([networkx_distance(b, a, weight) for a, b in graphs])
    methods = {"networkx, first value": {"pairs_per_second": speed, **accuracy(found, reverse, exact)}}
    for name, setting in SETTINGS.items():
        distance = EditDistance(examples, **setting)
        parts = [slice(start, start + block) for start in range(0, len(pairs), block)]
        started = time.process_time()
        tables = [distance.pairwise(left[part], right[part]) for part in parts]
        speed = sum(table.size for table in tables) / (time.process_time() - started)
        found = np.concatenate([table.diagonal() for table in tables])
        reverse = np.concatenate([distance.pairwise(right[part], left[part]).diagonal() for part in parts])
        methods[name] = {"pairs_per_second": speed, **accuracy(found, reverse, exact)}
    return methods


def library() -> list[Architecture]:
    """The first level of FlexiBERT's hierarchy."""
    space = levels(SPACE)[0]
    values = itertools.product(*space.choices.values())
    return list(dict.fromkeys(space.build(dict(zip(space.choices, choice))) for choice in values))


def library_distances(encoders: Sequence[Architecture], examples: Sequence[Architecture]):
    """Distances between all members, and how long they took."""
    started, processor = time.perf_counter(), time.process_time()
    distances = EditDistance(examples).pairwise(encoders, dtype=np.float32)
    figures = {
        "graphs": len(encoders),
        "distances": len(encoders) * (len(encoders) - 1) // 2,
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - processor,
        "load_average": os.getloadavg()[0],
    }
    return distances, figures


def embedding(distances: np.ndarray | None, examples: Sequence[Architecture]) -> dict[str, dict[str, float]]:
    """Errors of vectors, and milliseconds for an unseen architecture."""
    figures = {}
    if distances is not None:
        table = transformer2vec(distances, steps=20_000)
        some = np.random.default_rng(0).permutation(len(distances))[:1000]
        figures["table, library"] = errors(cdist(table[some], table[some]), distances[np.ix_(some, some)])
    rng = random.Random(1)
    unseen = [[SPACE.sample(rng) for _ in range(100)] for _ in range(2)]
    fitted = ArchitectureEmbedding.fit(examples)
    wanted = EditDistance(weights=fitted.distance.weights).pairwise(*unseen)
    figures["unseen, full space"] = errors(cdist(*map(fitted.transform, unseen)), wanted)
    seconds = []
    for layers in itertools.chain(*unseen):
        started = time.process_time()
        fitted.transform([layers])
        seconds.append(time.process_time() - started)
    figures["unseen, full space"]["milliseconds"] = 1000 * float(np.median(seconds))
    return figures


def errors(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    different = wanted > 0
    relative = np.abs(found - wanted)[different] / wanted[different]
    return {
        "mean_error_percent": 100 * float(relative.mean()),
        "spearman": float(spearmanr(found[different], wanted[different]).statistic),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference", type=Path, help="JSON file with certified distances")
    parser.add_argument("--pairs", type=int, default=200, help="random pairs to solve (default: %(default)s)")
    parser.add_argument("--skip-library", action="store_true", help="leave out the 43 million distances")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    rng = random.Random(0)
    examples = [SPACE.sample(rng) for _ in range(200)]  # they hold all labels of the space
    pairs = random_pairs(options.pairs, EditDistance(examples).weight)
    certified = reference_pairs(options.reference) if options.reference else []
    result = {
        "cores": os.cpu_count(),
        "pairs": {"certified": len(certified), "random": options.pairs, "random_unsolved": options.pairs - len(pairs)},
        "methods": compare([*certified, *pairs], examples),
    }
    distances = None
    if not options.skip_library:
        distances, result["library"] = library_distances(library(), examples)
    result["embedding"] = embedding(distances, examples)
    text = json.dumps(result, indent=2)
    options.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
