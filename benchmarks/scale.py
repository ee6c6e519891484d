"""How a search grows with its trials: seconds and memory of one proposal, and what many writers get out of a storage.

    python benchmarks/scale.py proposals --trials 100 1000 10000
    python benchmarks/scale.py writers --writers 16 --trials 10000 --storage sqlite:////tmp/scale.db

Evaluations are look-ups: the score of an architecture is a number made of its fingerprint. `proposals` prints, for
every sampler of this package and two spaces, the first proposal of a process (which has to read all trials), the next
one, the peak of memory that Python and NumPy asked for in the first, and which recipe the space is of. `writers`
starts processes that add trials to one study until it has enough, and says whether one was lost or trained twice.
"""

import argparse
import json
import multiprocessing
import random
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections import Counter
from datetime import datetime
from pathlib import Path

import optuna
from accelerate import Accelerator
from optuna.trial import FrozenTrial, TrialState

from flexibert.spec import fingerprint
from search.progress import RunProgress
from search.recipe import load_recipe
from search.samplers import create_sampler
from search.space.search_space import SearchSpace
from search.study.run_folder import RunFolder
from search.study.search import Search
from search.study.storage import open_study
from search.study.trials import finished


OURS = ("boshnas", "opnas", "evolution")
RECIPES = ("flexibert", "autobert_zero_base")


def look_up(layers) -> float:
    return int(fingerprint(layers)[:8], 16) / 0xFFFFFFFF * 100


class Table:
    """A study whose trials are in memory, without the cost of storing them one by one."""

    def __init__(self, space: SearchSpace, count: int):
        rng, distributions = random.Random(0), space.distributions()
        self.study = optuna.create_study(direction="maximize")
        self.trials = []
        for number in range(count):
            values = space.normalize(space.sample_values(rng))
            now = datetime(2026, 1, 1)
            self.trials.append(
                FrozenTrial(
                    number, TrialState.COMPLETE, rng.random(), now, now, values, distributions, {}, {}, {}, number
                )
            )
        self.study.get_trials = self.get_trials

    def get_trials(self, deepcopy: bool = True, states: tuple[TrialState, ...] | None = None) -> list[FrozenTrial]:
        return [trial for trial in self.trials if states is None or trial.state in states]

    def propose(self, sampler) -> float:
        """Seconds of one proposal."""
        number = len(self.trials)
        trial = FrozenTrial(number, TrialState.RUNNING, None, None, None, {}, {}, {}, {}, {}, number)
        self.study._storage.set_trial_user_attr = lambda *note: None
        started = time.perf_counter()
        params = sampler.sample_relative(self.study, trial, sampler.infer_relative_search_space(self.study, trial))
        assert params
        return time.perf_counter() - started


def propose(recipe: str, name: str, count: int) -> dict:
    """One row; in a process of its own, because samplers remember what they have read."""
    space = load_recipe(recipe).space
    table = Table(space, count)
    sampler = create_sampler({"name": name}, space, seed=0)
    first = table.propose(sampler)
    sampler._current = None
    second = table.propose(sampler)
    again = Table(space, count)
    tracemalloc.start()
    again.propose(create_sampler({"name": name}, space, seed=0))
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    return {
        "recipe": recipe,
        "sampler": name,
        "trials": count,
        "first_seconds": round(first, 3),
        "next_seconds": round(second, 3),
        "peak_mib": round(peak),
    }


def proposals(options) -> None:
    for recipe in options.recipes:
        for name in options.samplers:
            for count in options.trials:
                command = [sys.executable, __file__, "row", recipe, name, str(count)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                print(done.stdout.strip() or done.stderr.strip().splitlines()[-1], flush=True)


def write(storage: str, trials: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = load_recipe("flexibert").space
    study = open_study(storage, "scale", {}, {"score_percent": "maximize"})
    sampler = create_sampler({"name": "random"}, space, seed=0)

    def evaluate(layers, folder, source):
        return {"score_percent": look_up(layers)}

    search = Search(
        study, sampler, evaluate, RunFolder(Path(folder)), Accelerator(cpu=True), RunProgress(enabled=False)
    )
    search.run(trials)


def writers(options) -> None:
    open_study(options.storage, "scale", {}, {"score_percent": "maximize"})
    context = multiprocessing.get_context("spawn")
    started = time.perf_counter()
    arguments = (options.storage, options.trials, str(options.folder))
    workers = [context.Process(target=write, args=arguments) for _ in range(options.writers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    study = open_study(options.storage, "scale", {}, {"score_percent": "maximize"})
    trained = Counter(trial.user_attrs["fingerprint"] for trial in finished(study))
    states = Counter(trial.state.name.lower() for trial in study.get_trials(deepcopy=False))
    row = {
        "storage": options.storage.partition(":")[0],
        "writers": options.writers,
        "exit_statuses": sorted(Counter(worker.exitcode for worker in workers).items()),
        "finished": len(trained),
        "twice": sum(count > 1 for count in trained.values()),
        "asks_per_second": round(len(study.trials) / seconds, 2),
        **states,
    }
    print(json.dumps(row))


def main() -> None:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("proposals")
    one.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10_000])
    one.add_argument("--samplers", nargs="+", default=list(OURS))
    one.add_argument("--recipes", nargs="+", default=list(RECIPES))
    row = commands.add_parser("row")
    row.add_argument("recipe")
    row.add_argument("name")
    row.add_argument("count", type=int)
    many = commands.add_parser("writers")
    many.add_argument("--writers", type=int, default=16)
    many.add_argument("--trials", type=int, default=10_000)
    many.add_argument("--storage", required=True)
    many.add_argument("--folder", type=Path, default=Path("runs/scale"))
    options = parser.parse_args()
    if options.command == "row":
        print(json.dumps(propose(options.recipe, options.name, options.count)))
    else:
        {"proposals": proposals, "writers": writers}[options.command](options)


if __name__ == "__main__":
    main()
