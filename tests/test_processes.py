"""Processes that train one trial together: one fails, and all of them go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from optuna.trial import TrialState

from search import cli
from search.errors import StartAnew, TrainingDiverged, UserError
from search.progress import RunProgress
from search.samplers import create_sampler
from search.samplers.trials import FAILURE, OUT_OF_MEMORY, SPLIT
from search.space.search_space import SearchSpace
from search.study import processes
from search.study.processes import Failure
from search.study.run_folder import RunFolder
from search.study.search import Search
from search.study.storage import open_study
from search.study.trials import finished
from search.study.workers import KEPT_ID, failures_in_a_row, this_worker


SPACE = SearchSpace.from_dict(
    {
        "num_layers": [1, 2],
        "hidden_size": [8, 16],
        "num_heads": [2],
        "operations": [{"op": "self_attention"}, {"op": "linear_transform"}],
        "feed_forward_size": [8, 16],
    }
)
TRIALS = 4


class Pair(Accelerator):
    """One process that believes that there are two."""

    num_processes = 2


def make_search(folder, evaluate, accelerator):
    study = open_study(f"sqlite:///{folder}/study.db", "run", {}, {"score_percent": "maximize"})
    sampler = create_sampler({"name": "random"}, SPACE, seed=0)
    return Search(study, sampler, evaluate, RunFolder(folder), accelerator, RunProgress(enabled=False))


@pytest.fixture
def notes(monkeypatch):
    """What processes have said to one another, instead of the launcher's store."""
    said = []
    monkeypatch.setattr("search.study.search.say_failure", said.append)
    monkeypatch.setattr("search.study.search.failure_of_another", lambda: said[0] if said else None)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return said


def fails_second(error, calls):
    def evaluate(layers, folder, source=None, split=1, watch=None):
        calls.append(split)
        if len(calls) == 2:
            raise error
        return {"score_percent": float(len(calls))}

    return evaluate


def test_after_an_error_of_its_own_the_main_process_tells_and_starts_anew(tmp_path, notes):
    calls = []
    search = make_search(tmp_path, fails_second(RuntimeError("no kernel"), calls), Pair(cpu=True))
    with pytest.raises(StartAnew) as anew:
        search.run(TRIALS, hours=2.0)
    assert 1.9 < anew.value.hours <= 2.0 and notes == [Failure("RuntimeError: no kernel")]
    states = [trial.state for trial in search.study.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL] and failures_in_a_row(search.study) == 1
    make_search(tmp_path, fails_second(None, calls), Pair(cpu=True)).run(TRIALS)
    assert len(finished(search.study)) == TRIALS and len(calls) == TRIALS + 1


def test_the_error_of_another_process_is_the_reason(tmp_path, notes):
    notes.append(Failure("OutOfMemoryError: CUDA out of memory", memory=True))
    lost, calls = RuntimeError("[gloo] Connection closed by peer"), []
    search = make_search(tmp_path, fails_second(lost, calls), Pair(cpu=True))
    with pytest.raises(StartAnew):
        search.run(TRIALS)
    assert search.study.trials[1].user_attrs[OUT_OF_MEMORY] and len(notes) == 1
    notes.clear()
    make_search(tmp_path, fails_second(None, calls), Pair(cpu=True)).run(TRIALS)
    assert search.study.trials[2].user_attrs[SPLIT] == 2 and calls == [1, 1, 2, 1, 1]


def test_what_another_process_says_of_the_users_disk_ends_the_search(tmp_path, notes):
    notes.append(Failure("OSError: No space left on device", users=True))
    search = make_search(tmp_path, fails_second(RuntimeError("gloo"), []), Pair(cpu=True))
    with pytest.raises(UserError, match="^OSError: No space left on device$"):
        search.run(TRIALS)
    assert not [trial for trial in search.study.trials if FAILURE in trial.user_attrs]


def test_what_all_meet_alike_leaves_them_in_step(tmp_path, notes):
    search = make_search(tmp_path, fails_second(TrainingDiverged("the loss is nan"), []), Pair(cpu=True))
    search.run(TRIALS)
    assert len(finished(search.study)) == TRIALS and not notes


def test_where_the_launcher_keeps_no_store_the_search_ends_in_one_line(tmp_path, notes, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE")
    search = make_search(tmp_path, fails_second(KeyError("label"), []), Pair(cpu=True))
    with pytest.raises(UserError, match="the same command goes on from here"):
        search.run(TRIALS)
    assert search.study.trials[1].user_attrs[FAILURE] == "KeyError: 'label'"


def test_a_program_that_starts_anew_is_the_same_command_for_the_rest_of_the_time(monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(os, "set_inheritable", lambda *arguments: None)
    monkeypatch.setenv(processes.ATTEMPT, "3")
    processes.start_anew(None)
    processes.start_anew(0.5)
    (program, command, environment), (_, shorter, _) = started
    assert program == command[0] == sys.executable and command[1:] == sys.orig_argv[1:]
    assert shorter == [*command, "--hours", "0.500000000"]
    assert environment[processes.ATTEMPT] == "4" and environment[KEPT_ID] == this_worker()["id"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "failing, error", [(0, "RuntimeError: in the middle"), (1, "OutOfMemoryError: CUDA out of memory")]
)
def test_one_of_two_processes_fails_and_the_search_goes_on(tmp_path, failing, error):
    """While the other one waits for it in a gradient's reduction."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    command = [sys.executable, *launcher, str(tmp_path), str(failing), error]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    study = open_study(f"sqlite:///{tmp_path}/study.db", "run", {}, {"score_percent": "maximize"})
    [failed] = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    told = failed.user_attrs["interrupted" if "memory" in error else FAILURE]
    assert told.startswith(error) and len(finished(study)) == TRIALS
    assert not study.get_trials(states=(TrialState.RUNNING,))
    assert len({trial.user_attrs["worker"]["id"] for trial in study.trials}) == 1
    splits = [json.loads(line) for line in (tmp_path / "splits-1").read_text(encoding="utf-8").splitlines()]
    assert splits == ([1, 1, 2, 1, 1] if "memory" in error else [1] * (TRIALS + 1))


def work(folder: Path, failing: int, error: str) -> None:
    """One of two processes, which train together and of which one fails, once."""
    torch.set_num_threads(1)
    processes.rejoin()
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index

    def evaluate(layers, place, source, split=1):
        with (folder / f"splits-{rank}").open("a", encoding="utf-8") as log:
            log.write(f"{split}\n")
        model = torch.nn.Linear(4, 1)
        trained, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        count = len((folder / f"splits-{rank}").read_text(encoding="utf-8").splitlines())
        for step in range(3):
            if rank == failing and count == 2 and step == 1:
                kind, _, text = error.partition(": ")
                raise {"RuntimeError": RuntimeError, "OutOfMemoryError": torch.OutOfMemoryError}[kind](text)
            accelerator.backward(trained(torch.ones(2, 4)).sum())
            optimizer.step()
            optimizer.zero_grad()
        accelerator.free_memory()
        return {"score_percent": float(count)}

    def run(options):
        search = make_search(folder, evaluate, accelerator)
        search.run(TRIALS)

    def parser():
        one = cli.Parser()
        one.add_argument("rest", nargs="*")
        one.set_defaults(run=run)
        return one

    cli.build_parser = parser
    sys.exit(cli.main())


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
