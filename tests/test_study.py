"""The search loop: counting, repetitions, failures, kills and resumption, with an evaluator that costs nothing."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import optuna
import pytest
from accelerate import Accelerator
from optuna.trial import TrialState

from flexibert.spec import fingerprint, layers_to_dicts, parse_layers
from search.artifacts.report import write_report
from search.errors import TrainingDiverged, UserError
from search.progress import RunProgress
from search.samplers import SAMPLERS, create_sampler
from search.space.hierarchy import interpolate, levels
from search.space.search_space import SearchSpace
from search.study.run_folder import RunFolder
from search.study.search import Search
from search.study.storage import open_study
from search.study.trials import best_trial, finished
from search.study.workers import recover, this_worker


ROOT = Path(__file__).resolve().parent.parent
SPACE = {
    "num_layers": [1, 2],
    "hidden_size": [8, 16],
    "num_heads": [2],
    "operations": [{"op": "self_attention"}, {"op": "linear_transform"}],
    "feed_forward_size": [8, 16],
}
DIRECTIONS = {"score_percent": "maximize"}

optuna.logging.set_verbosity(optuna.logging.ERROR)


def score(layers) -> float:
    """Anything that depends on the whole architecture and is the same in every process."""
    return int(fingerprint(layers)[:6], 16) / 0xFFFFFF * 100


class Recorder:
    """Evaluates at once and remembers what it was asked."""

    def __init__(self, diverges=lambda layers: False):
        self.seen = []
        self.diverges = diverges

    def __call__(self, layers, folder, source):
        self.seen.append(fingerprint(layers))
        if self.diverges(layers):
            raise TrainingDiverged("the loss is nan at step 3")
        return {"score_percent": score(layers), "parameters": 1}


def make_search(
    tmp_path, evaluate, sampler="random", space=SPACE, name="run", feasible=None, hierarchy_trials=None, **kwargs
):
    study = open_study(f"sqlite:///{tmp_path}/study.db", name, {"space": space}, DIRECTIONS)
    space = SearchSpace.from_dict(space)
    accelerator, progress = Accelerator(cpu=True), RunProgress(enabled=False)
    sampler = create_sampler({"name": sampler}, space, 0, feasible, hierarchy_trials)
    return Search(study, sampler, evaluate, RunFolder(tmp_path), accelerator, progress, **kwargs)


def outcome(study):
    return [(trial.user_attrs["fingerprint"], trial.values) for trial in finished(study)]


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name in ("random", "tpe", "gp", "nsga2")])
def test_every_sampler_trains_different_architectures(tmp_path, sampler):
    evaluate = Recorder()
    search = make_search(tmp_path, evaluate, sampler)
    search.run(14)
    assert len(evaluate.seen) == len(set(evaluate.seen)) == 14
    assert len(finished(search.study)) == 14
    assert best_trial(search.study).values[0] == max(score for _, (score,) in outcome(search.study))


def test_repetitions_cost_nothing_and_are_marked(tmp_path):
    small = {**SPACE, "num_layers": [1]}
    evaluate = Recorder()
    search = make_search(tmp_path, evaluate, "tpe", small)
    search.run(8)
    repeats = [trial for trial in search.study.trials if "duplicate_of" in trial.user_attrs]
    assert len(evaluate.seen) == len(set(evaluate.seen)) == SearchSpace.from_dict(small).size() == 8
    assert repeats
    for trial in repeats:
        assert trial.values == search.study.trials[trial.user_attrs["duplicate_of"]].values


def test_more_trials_than_architectures_stops(tmp_path):
    search = make_search(tmp_path, Recorder(), space={**SPACE, "num_layers": [1], "hidden_size": [8]})
    search.run(50)
    assert len(finished(search.study)) == 4
    for trial in finished(search.study):  # dashboards plot attributes that are numbers
        assert trial.user_attrs["metrics"].items() <= trial.user_attrs.items()


def test_patience_ends_a_search_that_no_longer_improves(tmp_path):
    def evaluate(layers, folder, source=None):
        return {"score_percent": 50.0, "parameters": 1}

    search = make_search(tmp_path, evaluate)
    search.run(12, patience=3)
    assert len(finished(search.study)) == 4
    make_search(tmp_path, evaluate).run(12, patience=5)  # goes on
    assert len(finished(search.study)) == 6


def test_a_score_that_is_not_a_number_is_a_failure_and_is_not_tried_again(tmp_path):
    seen = []

    def evaluate(layers, folder, source=None):
        seen.append(fingerprint(layers))
        return {"score_percent": float("nan"), "parameters": 1}

    search = make_search(tmp_path, evaluate)
    with pytest.raises(UserError, match=r"5 trials in a row failed, the last one: the result is \[nan\]"):
        search.run(12)
    assert len(set(seen)) == 5


def test_the_same_command_continues(tmp_path):
    first, second, whole = Recorder(), Recorder(), Recorder()
    make_search(tmp_path, first, "tpe").run(6)
    search = make_search(tmp_path, second, "tpe")
    search.run(12)
    (tmp_path / "whole").mkdir()
    uninterrupted = make_search(tmp_path / "whole", whole, "tpe")
    uninterrupted.run(12)
    assert len(first.seen) == 6 and len(second.seen) == 6
    assert outcome(search.study) == outcome(uninterrupted.study)


def test_a_diverged_trial_is_failed_with_its_reason(tmp_path):
    evaluate = Recorder(diverges=lambda layers: layers[0].hidden_size == 8)
    search = make_search(tmp_path, evaluate)
    search.run(4)
    failed = [trial for trial in search.study.trials if trial.state == TrialState.FAIL]
    assert failed and all(trial.user_attrs["failure"] == "the loss is nan at step 3" for trial in failed)
    assert len(finished(search.study)) == 4


def test_a_search_in_which_everything_fails_ends(tmp_path):
    search = make_search(tmp_path, Recorder(diverges=lambda layers: True))
    with pytest.raises(UserError, match="5 trials in a row failed, the last one: the loss is nan"):
        search.run(4)


def test_another_space_is_refused_and_nothing_is_touched(tmp_path):
    search = make_search(tmp_path, Recorder())
    search.run(3)
    before = outcome(search.study)
    with pytest.raises(UserError, match="run 'run' exists with another space"):
        make_search(tmp_path, Recorder(), space={**SPACE, "hidden_size": [8]})
    assert outcome(make_search(tmp_path, Recorder()).study) == before


@pytest.mark.parametrize("url", ["sqlite:////no/such/folder/study.db", "postgresql://u@127.0.0.1:1/x", "nonsense"])
def test_storage_that_does_not_answer(url):
    with pytest.raises(UserError, match="does not answer") as error:
        open_study(url, "run", {}, DIRECTIONS)
    assert "\n" not in str(error.value)


def test_after_trial_follows_every_trained_trial(tmp_path):
    search = make_search(tmp_path, Recorder())
    counts = []
    search.after_trial = lambda: counts.append(len(finished(search.study)))
    search.run(3)
    assert counts == [1, 2, 3]


def open_and_report(url, queue):
    queue.put(open_study(url, "run", {"space": 1}, DIRECTIONS).user_attrs["identity"])


def test_workers_that_start_at_the_same_moment_share_a_study(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (f"sqlite:///{tmp_path / 'study.db'}", queue)
    workers = [context.Process(target=open_and_report, args=arguments) for _ in range(6)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=120) for _ in workers] == [{"space": 1}] * len(workers)
    for worker in workers:
        worker.join(60)


def test_a_study_whose_creator_was_killed_is_completed(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(study_name="run", storage=url, directions=list(DIRECTIONS.values()))
    assert open_study(url, "run", {"space": 1}, DIRECTIONS).user_attrs["identity"] == {"space": 1}
    with pytest.raises(UserError, match="exists with another space"):
        open_study(url, "run", {"space": 2}, DIRECTIONS)


def test_a_study_of_an_older_version_goes_on(tmp_path):
    """It does not know what came later, which then has its default."""
    url, directions = f"sqlite:///{tmp_path}/study.db", {"score_percent": "maximize"}
    old = {"space": {"depth": [2]}, "pretraining": {"steps": 7, "batch_size": 8}}
    open_study(url, "run", old, directions)
    defaults = {"pretraining": {"steps": 1000, "batch_size": 64, "objectives": {}}, "teacher": None}
    now = {"space": {"depth": [2]}, "pretraining": {**old["pretraining"], "objectives": {}}, "teacher": None}
    assert open_study(url, "run", now, directions, defaults).user_attrs["identity"] == old
    study = open_study(url, "run", now, directions, defaults)
    study.add_trial(optuna.trial.create_trial(values=[1.0]))
    for change, part in (
        ({"teacher": "x"}, "teacher"),
        ({"pretraining": {**now["pretraining"], "objectives": {"relations": 1.0}}}, "pretraining"),
        ({"pretraining": {**now["pretraining"], "steps": 1000}}, "pretraining"),
        ({"space": {"depth": [2], "width": [3]}}, "space"),
    ):
        with pytest.raises(UserError, match=f"exists with another {part};"):
            open_study(url, "run", {**now, **change}, directions, defaults)


def test_candidates_start_from_what_find_source_chooses(tmp_path):
    offered, sources = [], []

    def evaluate(layers, folder, source):
        folder.mkdir(parents=True)
        sources.append(source)
        return {"score_percent": score(layers)}

    def find_source(layers, trained):
        offered.append([fingerprint(ancestor) for ancestor, _ in trained])
        return trained[-1][1] if trained else None

    search = make_search(tmp_path, evaluate, find_source=find_source)
    search.run(3)
    names = [name for name, _ in outcome(search.study)]
    assert offered == [names[:0], names[:1], names[:2]]
    assert sources[0] is None and [source.name.split("-")[1] for source in sources[1:]] == names[:2]


def test_unknown_sampler_and_option_are_named():
    space = SearchSpace.from_dict(SPACE)
    with pytest.raises(UserError, match="unknown sampler 'tpee', known: boshnas, boshnas-paper, opnas"):
        create_sampler({"name": "tpee"}, space, 0)
    with pytest.raises(UserError, match="sampler tpe has no option 'startup', known: n_startup_trials"):
        create_sampler({"name": "tpe", "startup": 3}, space, 0)


# --- hierarchy ----------------------------------------------------------------------------------------------------

DEEP = {
    **SPACE,
    "num_layers": [2, 4],
    "num_heads": [2, 4],
    "feed_forward_depth": [1, 2],
    "mixed_feed_forward": True,
    "mixed_heads": True,
}


def levels_of(study):
    return [trial.user_attrs["level"] for trial in finished(study)]


def layers_of(trial):
    return parse_layers(trial.user_attrs["layers"])


@pytest.mark.parametrize("sampler", ["boshnas", "tpe"])
def test_levels_share_the_trials_and_lie_between_the_best_of_those_before(tmp_path, sampler):
    evaluate = Recorder()
    search = make_search(tmp_path, evaluate, sampler, DEEP, hierarchy_trials=24)
    search.run(24)
    assert levels_of(search.study) == [1 + number // 6 for number in range(24)]
    assert len(set(evaluate.seen)) == 24
    spaces = levels(search.space)
    for level, space in enumerate(spaces, start=1):
        trials = [trial for trial in finished(search.study) if trial.user_attrs["level"] == level]
        if level > 1:
            before = [trial for trial in finished(search.study) if trial.user_attrs["level"] < level]
            best = sorted(before, key=lambda trial: -trial.values[0])[:5]
            space = interpolate(space, [layers_of(trial) for trial in best])
        assert all(layers_of(trial) in space for trial in trials)
    if sampler == "boshnas":
        assert sum("prediction" in trial.user_attrs for trial in search.study.trials) > 12


def test_a_hierarchical_search_continues_after_a_kill(tmp_path):
    def stop(layers):
        if len(first.seen) == 7:
            raise KeyboardInterrupt

    first, second = Recorder(diverges=stop), Recorder()
    with pytest.raises(KeyboardInterrupt):
        make_search(tmp_path, first, "boshnas", DEEP, hierarchy_trials=12).run(12)
    search = make_search(tmp_path, second, "boshnas", DEEP, hierarchy_trials=12)
    layers = levels(search.space)[2].sample(random.Random(0))
    killed = {"worker": dead_worker(), "level": 3, "layers": layers_to_dicts(layers)}
    params, distributions = search.space.parameters(layers), search.space.distributions()
    running = optuna.trial.create_trial(
        state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs=killed
    )
    search.study.add_trial(running)
    search.run(12)
    assert second.seen[:2] == [first.seen[-1], fingerprint(layers)] and len(second.seen) == 6
    assert levels_of(search.study) == [1 + number // 3 for number in range(12)]


def test_an_enqueued_architecture_of_a_finer_level_is_no_obstacle(tmp_path):
    search = make_search(tmp_path, Recorder(), "random", DEEP, hierarchy_trials=12)
    mixed = next(
        m for m in map(search.space.sample, map(random.Random, range(99))) if m not in levels(search.space)[1]
    )
    search.study.enqueue_trial(search.space.parameters(mixed))
    search.run(12)
    assert len(finished(search.study)) == 12


def test_a_level_without_new_architectures_is_left_early(tmp_path):
    few = {**DEEP, "num_layers": [2], "hidden_size": [8], "operations": [{"op": "linear_transform"}]}
    search = make_search(tmp_path, Recorder(), "random", few, hierarchy_trials=40)
    search.run(40)
    space = levels(search.space)[0]
    reached = levels_of(search.study)
    assert reached == sorted(reached) and reached.count(1) == space.size() < 20
    assert len(reached) == 40


@pytest.mark.parametrize("sampler", ["boshnas", "random"])
def test_a_level_in_which_nothing_is_feasible_is_left_out(tmp_path, sampler):
    deep, shallow = {**DEEP, "num_layers": [1, 2, 4]}, lambda layers: len(layers) == 1
    search = make_search(tmp_path, Recorder(), sampler, deep, hierarchy_trials=4, feasible=shallow)
    search.run(4)
    assert [len(layers_of(trial)) for trial in finished(search.study)] == 4 * [1]
    assert levels_of(search.study)[0] == 2  # stacks of two layers are never one layer
    folder = tmp_path / "nothing"
    folder.mkdir()
    with pytest.raises(UserError, match="no architecture of the space is feasible"):
        make_search(folder, Recorder(), sampler, deep, hierarchy_trials=4, feasible=lambda layers: False).run(4)


def test_levels_are_in_the_report(tmp_path):
    search = make_search(tmp_path, Recorder(), "random", DEEP, hierarchy_trials=16)
    search.run(16)
    write_report(search.study, tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    assert "## Levels" in text
    rows = text.split("## Levels")[1].split("##")[0].strip().splitlines()[2:]
    assert [row.split("|")[1:3] for row in rows] == [[f" {level} ", " 4 "] for level in range(1, 5)]


def test_spaces_without_levels_are_refused(tmp_path):
    odd = {**SPACE, "num_layers": [1, 3]}
    with pytest.raises(UserError, match="hierarchy: no depth of .1, 3. is even"):
        make_search(tmp_path, Recorder(), "random", odd, hierarchy_trials=2).run(2)
    searched = {**SPACE, "operations": [{"op": "attention_graph", "graph": {"mode": "tail"}}]}
    with pytest.raises(UserError, match="hierarchy: the space has searched graphs"):
        levels(SearchSpace.from_dict(searched))


# --- kills and workers --------------------------------------------------------------------------------------------

WORKER = """
    import sys, time
    from pathlib import Path
    sys.path[:0] = [{tests!r}, {root!r}]
    import test_study

    def evaluate(layers, folder, source):
        with open(Path({folder!r}) / "log", "a", encoding="utf-8") as log:
            log.write(test_study.fingerprint(layers) + "\\n")
        time.sleep({seconds})
        return {{"score_percent": test_study.score(layers), "parameters": 1}}

    test_study.make_search(Path({folder!r}), evaluate, "tpe").run({trials})
"""


def start_worker(folder, trials, seconds):
    code = textwrap.dedent(WORKER).format(
        tests=str(ROOT / "tests"), root=str(ROOT), folder=str(folder), trials=trials, seconds=seconds
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_lines(path, count):
    deadline = time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, "the worker does nothing"
        time.sleep(0.05)


def test_kills_lose_no_finished_trial_and_repeat_the_interrupted_one(tmp_path):
    log = tmp_path / "log"
    worker = start_worker(tmp_path, trials=8, seconds=0.4)
    wait_for_lines(log, 3)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    before = outcome(open_study(f"sqlite:///{tmp_path}/study.db", "run", {"space": SPACE}, DIRECTIONS))
    interrupted = log.read_text().splitlines()[len(before) :]

    evaluate = Recorder()
    search = make_search(tmp_path, evaluate, "tpe")
    search.run(8)
    assert outcome(search.study)[: len(before)] == before
    assert evaluate.seen[: len(interrupted)] == interrupted
    assert not set(evaluate.seen) & {name for name, _ in before}

    (tmp_path / "whole").mkdir()
    whole = make_search(tmp_path / "whole", Recorder(), "tpe")
    whole.run(8)
    assert outcome(search.study) == outcome(whole.study)


def test_two_workers_share_a_study(tmp_path):
    open_study(f"sqlite:///{tmp_path}/study.db", "run", {"space": SPACE}, DIRECTIONS)
    workers = [start_worker(tmp_path, trials=10, seconds=0.2) for _ in range(2)]
    errors = [worker.communicate(timeout=240)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    study = make_search(tmp_path, Recorder()).study
    names = [name for name, _ in outcome(study)]
    trained = (tmp_path / "log").read_text().splitlines()
    assert len(names) == len(set(names)) >= 10
    assert sorted(trained) == sorted(names)


def test_running_trials_of_living_workers_are_left_alone(tmp_path):
    search = make_search(tmp_path, Recorder())
    trial = search.study.ask()
    trial.set_user_attr("worker", {"host": "elsewhere", "pid": os.getpid(), "started": 0.0})
    assert recover(search.study) == 0 and trial.number in numbers(search.study, TrialState.RUNNING)
    trial.set_user_attr("worker", json.loads(json.dumps(dead_worker())))
    assert recover(search.study) == 0  # nothing was chosen yet
    assert numbers(search.study, TrialState.FAIL) == [trial.number]


def dead_worker():
    """Another start of a process with our pid."""
    return {**this_worker(), "id": "another", "started": 0.0}


def numbers(study, state):
    return [trial.number for trial in study.get_trials(states=(state,))]
