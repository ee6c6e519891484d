"""Faults of a trial are data: which ones fail it, which end the search, and what workers do for one another."""

import argparse
import errno
import os
import random
import subprocess
import sys
import threading
from datetime import datetime, timedelta

import optuna
import pytest
import torch
from accelerate import Accelerator
from optuna.trial import TrialState, create_trial
from safetensors import SafetensorError

from flexibert.spec import fingerprint, layers_to_dicts
from search import cli
from search.errors import TrainingDiverged, UserError, without_secrets
from search.progress import RunProgress
from search.samplers import SAMPLERS, create_sampler
from search.samplers.trials import FAILURE, INTERRUPTED, LAYERS, OUT_OF_MEMORY, RETRY_OF, SPLIT, WORKER
from search.space.search_space import SearchSpace
from search.study import workers
from search.study.faults import is_out_of_memory, is_users, reason
from search.study.results import problems
from search.study.run_folder import RunFolder
from search.study.search import Search
from search.study.trials import finished
from search.study.workers import MAX_DEATHS, TakenOver, ask, is_gone, recover, release, tell, this_worker


optuna.logging.set_verbosity(optuna.logging.ERROR)

SPACE = SearchSpace.from_dict(
    {
        "num_layers": [1, 2],
        "hidden_size": [8, 16],
        "num_heads": [2],
        "operations": [{"op": "self_attention"}, {"op": "linear_transform"}],
        "feed_forward_size": [8, 16],
    }
)
QUICK = {"opnas": {"population": 3, "parents": 2, "children": 2}, "evolution": {"population": 3, "tournament": 2}}
FAILURES = {
    "diverged": (TrainingDiverged("the loss is nan at step 3"), "the loss is nan at step 3"),
    "out of memory": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more"), "CUDA out of"),
    "memory": (MemoryError(), "MemoryError"),
    "runtime": (RuntimeError("shape mismatch\nat line 3"), "RuntimeError: shape mismatch"),
    "data": (ValueError("too many rows"), "ValueError: too many rows"),
    "key": (KeyError("label"), "KeyError: 'label'"),
    "truncated": (SafetensorError("Error while deserializing header: incomplete metadata"), "SafetensorError: Error"),
    "file": (FileNotFoundError(errno.ENOENT, "No such file or directory", "model.safetensors"), "FileNotFoundError"),
    "assertion": (AssertionError(), "AssertionError"),
    "number": (None, "the result is [nan]"),
}
FATAL = {
    "no space": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "permission": PermissionError(errno.EACCES, "Permission denied", "trials"),
    "read only": OSError(errno.EROFS, "Read-only file system"),
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "wrong recipe": UserError("tasks: no such file"),
}


@pytest.fixture(autouse=True)
def quick_networks(monkeypatch):
    """Less training and climbing of the paper's networks: how good they are is not the question here."""
    monkeypatch.setattr("search.bayesopt.boshnas_networks.EPOCHS", 5)
    monkeypatch.setattr("search.bayesopt.gobi.MAX_STEPS", 3)


def new_study():
    study = optuna.create_study(direction="maximize")
    study.set_metric_names(["score_percent"])
    return study


def make_search(tmp_path, evaluate, sampler="random", study=None):
    sampler = create_sampler({"name": sampler, **QUICK.get(sampler, {})}, SPACE, seed=0)
    study = study or new_study()
    return Search(study, sampler, evaluate, RunFolder(tmp_path), Accelerator(cpu=True), RunProgress(enabled=False))


class FailsOnce:
    """Raises, or returns no number, for the third architecture; `times` None is as often as it comes."""

    def __init__(self, error, times=None):
        self.error = error
        self.times = times
        self.seen = []
        self.splits = []

    def __call__(self, layers, folder, source=None, split=1):
        self.seen.append(fingerprint(layers))
        self.splits.append(split)
        times = self.seen.count(self.seen[-1])
        if self.seen.index(self.seen[-1]) == 2 and (self.times is None or times <= self.times):
            if self.error is None:
                return {"score_percent": float("nan")}
            raise self.error
        return {"score_percent": int(fingerprint(layers)[:4], 16) / 655.36}


CASES = [(sampler, "runtime") for sampler in SAMPLERS if sampler not in ("random", "tpe", "boshnas", "opnas")]
CASES += [
    (sampler, kind) for sampler in ("random", "tpe", "boshnas", "opnas") for kind in FAILURES if kind != "runtime"
]


@pytest.mark.parametrize("sampler, kind", CASES)
def test_any_error_of_a_trial_fails_it_and_the_search_goes_on(tmp_path, sampler, kind):
    error, expected = FAILURES[kind]
    evaluate = FailsOnce(error)
    search = make_search(tmp_path, evaluate, sampler)
    search.run(8)
    [failed] = [trial for trial in search.study.trials if FAILURE in trial.user_attrs]
    assert failed.state == TrialState.FAIL and expected in failed.user_attrs[FAILURE]
    assert "\n" not in failed.user_attrs[FAILURE]
    assert len(finished(search.study)) == 8
    again = [2] if is_out_of_memory(error) else []  # and else what failed is known and not tried again
    assert len(set(evaluate.seen)) == 9 and evaluate.splits == [1, 1, 1, *again, *[1] * 6]
    assert not search.study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))


MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "runtime": RuntimeError("CUDA error: out of memory"),
    "allocator": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes."),
    "machine": MemoryError("Unable to allocate 2 GiB for an array"),
    "system": OSError(errno.ENOMEM, "Cannot allocate memory"),
}


@pytest.mark.parametrize("kind", MEMORY)
def test_what_found_no_memory_is_tried_once_more_with_smaller_micro_batches(tmp_path, kind):
    evaluate = FailsOnce(MEMORY[kind], times=1)
    search = make_search(tmp_path, evaluate)
    search.run(5, max_failures=1)  # it is no failure
    assert evaluate.seen[2] == evaluate.seen[3] and evaluate.splits == [1, 1, 1, 2, 1, 1]
    first, again = search.study.trials[2:4]
    assert first.state == TrialState.FAIL and first.user_attrs[OUT_OF_MEMORY] and FAILURE not in first.user_attrs
    assert again.user_attrs[RETRY_OF] == 2 and again.user_attrs[SPLIT] == 2 and again.values is not None
    [(number, problem)] = problems(search.study)
    assert (
        number == 2
        and problem
        == f"{reason(MEMORY[kind])}; to be tried again with smaller micro-batches (done " + ("again as trial 3)")
    )
    assert len(finished(search.study)) == 5


def test_a_second_try_that_is_interrupted_keeps_its_smaller_micro_batches():
    study = new_study()
    study.enqueue_trial(SPACE.parameters(SPACE.sample(random.Random(0))))
    first = ask(study)
    first.set_user_attr(LAYERS, layers_to_dicts(SPACE.suggest(first)))
    first.set_user_attr(OUT_OF_MEMORY, True)
    release(study, first, "no memory")
    for expected in (1, 2):
        assert recover(study) == 1
        trial = ask(study)
        assert trial.user_attrs[SPLIT] == 2 and len(study.trials) == expected + 1
        trial.set_user_attr(LAYERS, layers_to_dicts(SPACE.suggest(trial)))
        release(study, trial, workers.DIED)


def test_what_is_out_of_memory():
    assert not is_out_of_memory(RuntimeError("shape mismatch")) and not is_out_of_memory(ValueError("out of memory"))
    try:
        raise ValueError("in a layer") from MEMORY["cuda"]
    except ValueError as error:
        assert is_out_of_memory(error)


@pytest.mark.parametrize("kind", FATAL)
def test_what_only_the_user_can_mend_ends_the_search_and_loses_nothing(tmp_path, kind):
    first = FailsOnce(FATAL[kind], times=1)
    search = make_search(tmp_path, first)
    with pytest.raises(UserError) as ended:
        search.run(8)
    assert "\n" not in str(ended.value)
    assert len(finished(search.study)) == 2 and not search.study.get_trials(states=(TrialState.RUNNING,))
    again = FailsOnce(None)
    again.seen = ["not", "the", "third"]
    make_search(tmp_path, again, study=search.study).run(8)
    assert again.seen[3] == first.seen[2]  # the same architecture comes first
    assert len(finished(search.study)) == 8
    assert not [trial for trial in search.study.trials if FAILURE in trial.user_attrs]


def test_a_search_in_which_everything_fails_says_why(tmp_path):
    def evaluate(layers, folder, source=None):
        raise RuntimeError("no kernel image")

    search = make_search(tmp_path, evaluate)
    with pytest.raises(UserError, match=r"^3 trials in a row failed, the last one: RuntimeError: no kernel image$"):
        search.run(8, max_failures=3)
    assert len(search.study.trials) == 3


def test_a_stopped_search_leaves_nothing_running(tmp_path):
    evaluate = FailsOnce(KeyboardInterrupt())
    search = make_search(tmp_path, evaluate)
    with pytest.raises(KeyboardInterrupt):
        search.run(8)
    [released] = [trial for trial in search.study.trials if INTERRUPTED in trial.user_attrs]
    assert released.state == TrialState.FAIL and not search.study.get_trials(states=(TrialState.RUNNING,))


def test_causes_are_followed_and_reasons_are_one_short_line():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("cannot save") from error
    except RuntimeError as error:
        assert is_users(error)
    assert not is_users(RuntimeError("cannot save"))
    assert len(reason(RuntimeError("x" * 5000))) < 400
    assert reason(RuntimeError()) == "RuntimeError"
    assert "hunter2" not in reason(RuntimeError("postgresql://me:hunter2@host/db does not answer"))


# --- workers ------------------------------------------------------------------------------------------------------


def test_workers_are_told_apart(monkeypatch):
    me = this_worker()
    assert me == this_worker() and not is_gone(me)
    assert is_gone({**me, "started": me["started"] - 1})  # another process that had our pid
    for place in ("host", "boot", "namespace"):
        assert not is_gone({**me, place: "another", "started": 0.0})  # cannot be seen from here
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    there = {**me, "pid": child.pid, "started": workers._started(child.pid)}
    assert not is_gone(there)
    child.kill()
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT) is None:
        pass
    assert is_gone(there)  # a zombie
    child.wait()
    assert is_gone(there)  # reaped
    monkeypatch.setattr(workers, "_identity", workers._identity.__wrapped__)
    assert this_worker()["id"] != me["id"]  # of another start


def test_no_trial_runs_without_a_note(monkeypatch):
    study = new_study()
    seen = []

    class Nosy(optuna.samplers.RandomSampler):
        def before_trial(self, study, trial):
            seen.append([other.user_attrs.get(WORKER) for other in study.get_trials(states=(TrialState.RUNNING,))])

    study.sampler = Nosy()
    ask(study)
    study.enqueue_trial({"x": 1})
    ask(study)
    assert seen == [[this_worker()], [this_worker()] * 2]


def test_a_worker_that_was_killed_in_ask_is_recovered():
    study = new_study()

    class Killed(optuna.samplers.RandomSampler):
        def before_trial(self, study, trial):
            raise SystemExit

    study.sampler = Killed()
    study.enqueue_trial(SPACE.parameters(SPACE.sample(random.Random(0))))
    for _ in range(2):
        with pytest.raises(SystemExit):
            ask(study)
    study.sampler = optuna.samplers.RandomSampler()
    assert recover(study) == 1  # of the two the one that was promised
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.WAITING]
    assert study.trials[2].user_attrs[RETRY_OF] == 0
    assert recover(study) == 0


def test_trials_of_the_silent_are_recovered():
    study = new_study()
    old, fresh = (datetime.now() - timedelta(minutes=minutes) for minutes in (10, 1))
    for started in (old, fresh):
        trial = create_trial(state=TrialState.RUNNING)
        trial.datetime_start = started
        study.add_trial(trial)
    recover(study)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.RUNNING]


def test_a_worker_whose_trial_was_taken_over_leaves_it_alone(tmp_path):
    study = new_study()
    lines = []

    def evaluate(layers, folder, source=None):
        if not lines:
            [running] = study.get_trials(states=(TrialState.RUNNING,))
            release(study, running, workers.DIED)  # as another worker does that took this one for dead
            lines.append(running.number)
        return {"score_percent": 1.0}

    search = make_search(tmp_path, evaluate, study=study)
    said = []
    search.progress.say = said.append
    search.run(3)
    assert "trial 0 was taken over by another worker; its result is left alone" in said
    assert study.trials[0].state == TrialState.FAIL and study.trials[0].values is None
    assert study.trials[1].user_attrs[RETRY_OF] == 0 and study.trials[1].state == TrialState.COMPLETE
    assert len(finished(study)) == 3
    taken = ask(study)
    release(study, taken, workers.DIED)
    with pytest.raises(TakenOver):
        tell(study, taken, [1.0], TrialState.COMPLETE)


def test_an_architecture_in_which_worker_after_worker_dies_has_failed():
    study, layers = new_study(), SPACE.sample(random.Random(0))
    study.enqueue_trial(SPACE.parameters(layers))
    for death in range(MAX_DEATHS):
        assert recover(study) == (1 if death else 0)
        trial = ask(study)
        trial.set_user_attr(LAYERS, layers_to_dicts(SPACE.suggest(trial)))
        trial.set_user_attr(WORKER, {**this_worker(), "id": "another", "started": 0.0})
    assert recover(study) == 0
    assert [FAILURE in trial.user_attrs for trial in study.trials] == [False] * (MAX_DEATHS - 1) + [True]
    assert str(MAX_DEATHS) in study.trials[-1].user_attrs[FAILURE]


def test_a_heartbeat_outlives_what_it_meets():
    beats, enough = [], threading.Event()

    class Storage(optuna.storages._heartbeat.BaseHeartbeat):
        def record_heartbeat(self, trial_id):
            beats.append(trial_id)
            if len(beats) == 3:
                enough.set()
            raise ConnectionError

        def get_heartbeat_interval(self):
            return 0.01

        def _get_stale_trial_ids(self, study_id):
            return []

        def get_heartbeat_stale_trial_callback(self):
            return None

    class Study:
        _storage = Storage()

    class Trial:
        _trial_id = 7

    with workers.heartbeat(Study(), Trial()):
        assert enough.wait(timeout=60)
    assert set(beats) == {7}


@pytest.mark.parametrize(
    "text",
    [
        "storage postgresql://me:hunter2@host:5432/db does not answer",
        "postgresql+psycopg://me:hun@ter2@host/db",
        "postgresql:/me:hunter2@host",
        "redis://:hunter2@host",
        "could not connect: host=h user=me password=hunter2 dbname=x",
        "https://host/db?token=hunter2&x=1",
        "401 for hf_hunter2hunter2",
    ],
)
def test_no_secret_survives(text):
    shown = without_secrets(text)
    assert "hunter2" not in shown and "ter2" not in shown and "***" in shown
    assert without_secrets(shown) == shown


# --- clocks -------------------------------------------------------------------------------------------------------


def test_a_trial_that_takes_too_long_has_failed(tmp_path):
    calls = []

    def evaluate(layers, folder, source=None, watch=None):
        calls.append(fingerprint(layers))
        if len(calls) == 2:
            watch.deadlines = (watch.deadlines[0], 0.0)  # as if hours had gone by
        watch.tick()
        return {"score_percent": 1.0}

    search = make_search(tmp_path, evaluate)
    search.run(4, trial_timeout=3600.0)
    [failed] = [trial for trial in search.study.trials if FAILURE in trial.user_attrs]
    assert failed.user_attrs[FAILURE] == "the trial took longer than it may"
    assert len(finished(search.study)) == 4 and len(set(calls)) == 5


def test_what_is_written_after_a_trial_may_meet_a_full_disk(tmp_path):
    def after_trial():
        raise OSError(errno.ENOSPC, "No space left on device")

    search = make_search(tmp_path, lambda layers, folder, source: {"score_percent": 1.0})
    search.after_trial = after_trial
    with pytest.raises(UserError, match="No space left on device"):
        search.run(4)
    assert len(finished(search.study)) == 1 and len(search.study.trials) == 1


@pytest.mark.parametrize("text, expected", [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200)])
def test_durations(text, expected):
    assert cli.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "s", "0", "-1m", "inf", "nan", "10x", "1 0"])
def test_what_is_no_duration(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not accepted"):
        cli.seconds(text)
