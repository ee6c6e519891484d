"""Being stopped: statuses, what is released, and what is not cut in two."""

import multiprocessing
import os
import signal
import time

import optuna
import pytest
from accelerate import Accelerator
from optuna.trial import TrialState

from search import cli
from search.errors import Stopped
from search.progress import RunProgress
from search.samplers import create_sampler
from search.samplers.trials import INTERRUPTED
from search.space.search_space import SearchSpace
from search.study import signals
from search.study.run_folder import RunFolder
from search.study.search import Search
from search.study.signals import shielded, stoppable
from search.study.storage import open_study


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
STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}

context = multiprocessing.get_context("fork")


def work(tmp_path, training):
    """A worker that never comes to the end of its second trial."""

    def evaluate(layers, folder, source):
        if training.value:
            training.value = 2
            time.sleep(600)
        training.value = 1
        return {"score_percent": 1.0}

    def run(options):
        study = open_study(f"sqlite:///{tmp_path}/study.db", "run", {}, {"score_percent": "maximize"})
        sampler, progress = create_sampler({"name": "random"}, SPACE, seed=0), RunProgress(enabled=False)
        Search(study, sampler, evaluate, RunFolder(tmp_path), Accelerator(cpu=True), progress).run(4)

    def parser():
        one = cli.Parser()
        one.set_defaults(run=run)
        return one

    cli.build_parser = parser
    os._exit(cli.main([]))


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """Whoever runs the tests in the background may have made them deaf to some."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STATUSES}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", STATUSES, ids=lambda number: number.name)
def test_a_stopped_worker_releases_its_trial(tmp_path, number):
    training = context.Value("i", 0)
    worker = context.Process(target=work, args=(tmp_path, training))
    worker.start()
    wait_for(lambda: training.value == 2)
    os.kill(worker.pid, number)
    worker.join(120)
    assert worker.exitcode == STATUSES[number]
    study = open_study(f"sqlite:///{tmp_path}/study.db", "run", {}, {"score_percent": "maximize"})
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.FAIL]
    assert INTERRUPTED in study.trials[1].user_attrs


@pytest.mark.parametrize("number", STATUSES, ids=lambda number: number.name)
def test_the_command_says_so_in_one_line(monkeypatch, capsys, number):
    def stopped(options):
        os.kill(os.getpid(), number)
        time.sleep(60)

    def parser():
        one = cli.Parser()
        one.set_defaults(run=stopped)
        return one

    monkeypatch.setattr(cli, "build_parser", parser)
    before = signal.getsignal(number)
    assert cli.main([]) == STATUSES[number]
    assert capsys.readouterr().err == "search: stopped; the same command goes on from here\n"
    assert signal.getsignal(number) is before


def test_what_is_shielded_is_finished_first():
    done = []
    with stoppable():
        with pytest.raises(Stopped) as stopped, shielded():
            with shielded():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("operation")
            done.append("the rest")
        assert done == ["operation", "the rest"] and stopped.value.status == 143
        with shielded():
            done.append("and nothing more comes")


def test_ignored_signals_stay_ignored():
    """nohup"""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def orphan(status):
    """A launcher that starts a worker and dies."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    signals.PARENT_SECONDS = 0.05
    ready = context.Event()

    def run():
        try:
            with stoppable():
                ready.set()
                time.sleep(600)
        except Stopped as stopped:
            status.value = stopped.status
            os._exit(0)

    child = context.Process(target=run)
    child.start()
    ready.wait(60)
    os._exit(0)


def test_a_worker_notices_that_its_launcher_is_gone():
    status = context.Value("i", 0)
    launcher = context.Process(target=orphan, args=(status,))
    launcher.start()
    launcher.join(60)
    wait_for(lambda: status.value)
    assert status.value == 143
