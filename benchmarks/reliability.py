"""Workers of a search are killed at random; counts what that costs. Every count should be 0, and `same` true.

    python benchmarks/reliability.py --kills 200 --workers 1 --sampler boshnas
    python benchmarks/reliability.py --kills 200 --workers 2 --storage postgresql://me:password@127.0.0.1/postgres

Workers run the real search loop on a real storage and write a checkpoint's folder the way real ones are written, but
an evaluation is a pause. A worker is killed (SIGKILL) after a random time and started again, until there were so many
kills; then the rest is left in peace. Prints one line of JSON:

- lost: results that a worker was told were stored, and that the study does not hold.
- twice: architectures that two trials trained to the end.
- running: trials that still run when all workers have ended well.
- owed: interrupted trials that nobody took up again.
- leftovers: half-written files, and folders of trials without a result, after the next start.
- damaged: checkpoints of finished trials that are missing or not whole.
- same (one worker only): whether the finished trials are those of a search that nobody disturbed.
"""

import argparse
import faulthandler
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import optuna
from accelerate import Accelerator
from optuna.trial import TrialState

from flexibert.spec import fingerprint
from search.files import replace_folder
from search.progress import RunProgress
from search.recipe import load_recipe
from search.samplers import create_sampler
from search.samplers.trials import RETRY_OF
from search.study.run_folder import RunFolder
from search.study.search import Search
from search.study.storage import open_study, study_name
from search.study.trials import finished
from search.study.workers import owed


DIRECTIONS = {"score_percent": "maximize"}
# An import of torch takes longer than a worker lives, so workers are forks of a process that did it and nothing else.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["search.study.search", "search.study.storage", "search.recipe"])


def open_run(folder: RunFolder, storage: str | None) -> optuna.Study:
    return open_study(storage or folder.storage, study_name(folder, storage), {}, DIRECTIONS)


def work(folder: RunFolder, storage: str | None, sampler: str, trials: int, seconds: float) -> None:
    """A worker; its exit status says whether it came to the end, and SIGUSR1 where it is."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    faulthandler.register(signal.SIGUSR1)
    study = open_run(folder, storage)
    folder.clean(study)

    def evaluate(layers, place, source):
        with replace_folder(place) as aside:
            (aside / "config.json").write_text(fingerprint(layers), encoding="utf-8")
            time.sleep(seconds * random.random())
            (aside / "model.safetensors").write_bytes(fingerprint(layers).encode() * 1000)
        time.sleep(seconds * random.random())
        return {"score_percent": int(fingerprint(layers)[:8], 16) / 0xFFFFFFFF * 100}

    def after_trial():
        told = [trial.number for trial in finished(study)]
        with (folder.path / f"told-{os.getpid()}").open("a", encoding="utf-8") as log:
            log.write(" ".join(map(str, told)) + "\n")
        folder.keep_best(study)

    space = load_recipe("flexibert").space
    options = {"name": sampler, **({"population": 10} if sampler == "opnas" else {})}
    search = Search(
        study,
        create_sampler(options, space, seed=0),
        evaluate,
        folder,
        Accelerator(cpu=True),
        RunProgress(enabled=False),
        after_trial=after_trial,
    )
    search.run(trials)


def start(*arguments) -> multiprocessing.Process:
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def disturb(options, folder: RunFolder) -> int:
    """Kills workers at random while they search; returns how often."""
    rng, kills = random.Random(options.seed), 0
    arguments = (folder, options.storage, options.sampler, options.trials, options.seconds)
    workers = [start(*arguments) for _ in range(options.workers)]
    while kills < options.kills and any(worker.exitcode != 0 for worker in workers):
        time.sleep(rng.uniform(*options.pause))
        index = rng.randrange(len(workers))
        if workers[index].is_alive():
            os.kill(workers[index].pid, signal.SIGKILL)
            workers[index].join()
            kills += 1
        if workers[index].exitcode != 0:
            workers[index] = start(*arguments)
    for index, worker in enumerate(workers):
        worker.join()
        if worker.exitcode != 0:
            raise SystemExit(f"worker {index} ended with status {worker.exitcode}")
    return kills


def examine(study: optuna.Study, folder: RunFolder) -> dict[str, int]:
    trials = study.get_trials(deepcopy=False)
    done = finished(study)
    told = {int(n) for log in folder.path.glob("told-*") for n in log.read_text(encoding="utf-8").split()}
    whole = [
        (place := folder.checkpoint(trial)) is not None
        and (place / "model.safetensors").read_bytes() == trial.user_attrs["fingerprint"].encode() * 1000
        for trial in done
    ]
    trained = Counter(trial.user_attrs["fingerprint"] for trial in done)
    kept = {trial.number for trial in done}
    return {
        "finished": len(done),
        "lost": len(told - kept),
        "twice": sum(count > 1 for count in trained.values()),
        "running": sum(trial.state == TrialState.RUNNING for trial in trials),
        "owed": len(owed(trials)),
        "retries": sum(RETRY_OF in trial.user_attrs for trial in trials),
        "retries_waiting": sum(RETRY_OF in t.user_attrs and t.state == TrialState.WAITING for t in trials),
        "leftovers": len(list(folder.path.rglob("*.partial")))
        + sum(int(path.name[:4]) not in kept for path in folder.trials.iterdir()),
        "damaged": whole.count(False),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trials", type=int, help="that finish; by default one for each kill, and 10")
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--seconds", type=float, default=0.5, help="most that half of an evaluation takes")
    parser.add_argument("--pause", type=float, nargs=2, default=(1.0, 4.0), help="least and most seconds to a kill")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--storage", help="by default SQLite in a run folder")
    options = parser.parse_args()
    options.trials = options.trials or options.kills + 10
    with tempfile.TemporaryDirectory() as runs:
        folder = RunFolder(Path(runs) / f"disturbed-{os.getpid()}")
        folder.path.mkdir()
        row = {"storage": (options.storage or "sqlite").partition(":")[0], "workers": options.workers}
        row |= {"sampler": options.sampler, "kills": disturb(options, folder)}
        study = open_run(folder, options.storage)
        folder.clean(study)
        row |= examine(study, folder)
        if options.workers == 1:
            peace = RunFolder(Path(runs) / f"undisturbed-{os.getpid()}")
            peace.path.mkdir()
            start(peace, options.storage, options.sampler, options.trials, 0.0).join()
            trained = [
                [trial.user_attrs["fingerprint"] for trial in finished(one)]
                for one in (study, open_run(peace, options.storage))
            ]
            row["same"] = trained[0] == trained[1]
    print(json.dumps(row))


if __name__ == "__main__":
    main()
