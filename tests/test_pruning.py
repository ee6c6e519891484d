"""Stopping candidates that look hopeless: the decision, the study, the processes, and the clock."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from accelerate import Accelerator
from test_cli import TINY, command, corpus, environment, write_recipe  # noqa: F401

from search.cli import main
from search.errors import OutOfTime, UserError
from search.progress import RunProgress
from search.samplers import create_sampler
from search.space.restriction import fix
from search.space.search_space import SearchSpace
from search.study.pruning import PRUNERS, create_pruner, rungs
from search.study.results import savings
from search.study.run_folder import RunFolder
from search.study.search import Search
from search.study.storage import open_study
from search.study.trials import finished, stopped
from search.study.watch import Watch


SPACE = SearchSpace.from_dict(
    {
        "num_layers": [1, 2],
        "hidden_size": [16, 32, 64],
        "num_heads": [2],
        "operations": [{"op": "self_attention"}, {"op": "linear_transform"}, {"op": "dynamic_convolution"}],
        "feed_forward_size": [16, 32],
    }
)
STEPS = 90


def quality(layers):
    """Of a made-up encoder, 0 to 1."""
    return sum(layer.hidden_size + layer.feed_forward[0] for layer in layers) / 200


class Training:
    """Plays the training of candidates whose losses at any step tell how good they are."""

    def __init__(self, kill_at=None, worsens=False):
        self.steps = 0
        self.finetunings = 0
        self.candidates = 0
        self.kill_at = kill_at
        self.worsens = worsens

    def __call__(self, layers, folder, source, watch):
        self.candidates += 1
        loss = 6 - quality(layers) + self.worsens * self.candidates
        done = 0
        for rung in watch.rungs(STEPS):
            self.steps += rung - done
            done = rung
            if self.kill_at is not None and self.steps > self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            watch.report(rung, loss + 1 - rung / STEPS, STEPS)
            watch.tick()
        self.steps += STEPS - done
        for part in range(8 if watch.over_parts else 0):
            watch.report(part, loss + part / 10)
        self.finetunings += 1
        return {"score_percent": 50 + 40 * quality(layers), "parameters": 1000}


def search(folder, pruner, trials=16, sampler="random", hours=None, training=None, space=SPACE):
    run = RunFolder(Path(folder))
    run.path.mkdir(exist_ok=True)
    identity = {
        "pretraining": {"steps": STEPS, "batch_size": 2, "sequence_length": 10},
        "objective": {"tasks": ["cola", "rte"]},
    }
    study = open_study(run.storage, run.name, identity, {"score_percent": "maximize"})
    study.pruner = create_pruner(pruner, STEPS, 1)
    training = training or Training()
    sampler = create_sampler({"name": sampler}, space, 0)
    worker = Search(
        study, sampler, training, run, Accelerator(cpu=True), RunProgress(enabled=False), pruning=PRUNERS.get(pruner)
    )
    worker.run(trials, hours=hours)
    return study, training


def test_rungs():
    assert rungs(90) == (10, 30, 60) and rungs(9) == (1, 3, 6) and rungs(4) == (1, 2) and rungs(0) == ()


@pytest.mark.parametrize("name", PRUNERS)
def test_hopeless_candidates_stop_and_the_best_do_not(tmp_path, name):
    study, training = search(tmp_path / "pruned", name)
    whole, spent = search(
        tmp_path / "whole", None, training=lambda layers, folder, source: Training()(layers, folder, source, Watch())
    )
    ended = stopped(study)
    assert len(finished(study)) + len(ended) == 16 and len(finished(whole)) == 16 and not stopped(whole)
    assert ended and all(trial.intermediate_values for trial in ended)
    assert study.best_value == whole.best_value
    kept = [trial.values[0] for trial in finished(study)]
    dropped = [50 + 40 * (6 - trial.user_attrs["stopped"]["loss"]) for trial in ended]
    assert len(kept) == training.finetunings < 16 and min(kept) >= 50 and dropped
    saved = savings(study)
    assert saved["stopped"] == len(ended) and saved["finetunings_saved"] == 2 * len(ended)
    assert saved["tokens_saved"] == (16 * STEPS - training.steps) * 20
    assert saved["tokens_trained"] == training.steps * 20
    if PRUNERS[name].over_parts:
        assert saved["tokens_saved"] == 0 and all("step" not in trial.user_attrs["stopped"] for trial in ended)
    else:
        assert {trial.user_attrs["stopped"]["step"] for trial in ended} <= set(rungs(STEPS))
    # Known architectures stay known: nothing was trained twice.
    functions = [trial.user_attrs["function"] for trial in (*finished(study), *ended)]
    assert len(set(functions)) == 16


@pytest.mark.parametrize("sampler", ["random", "tpe", "evolution", "boshnas"])
def test_every_sampler_goes_on_after_stopped_candidates(tmp_path, sampler):
    study, training = search(tmp_path / "run", "median", trials=10, sampler=sampler, training=Training(worsens=True))
    assert len(finished(study)) == 4 and len(stopped(study)) == training.candidates - 4 == 6
    assert len({trial.user_attrs["fingerprint"] for trial in (*finished(study), *stopped(study))}) == 10


def test_a_small_space_ends_although_candidates_are_stopped(tmp_path):
    space = fix(SPACE, {"num_layers": 1, "*.hidden_size": [16, 32]}, "fix")
    study, _ = search(tmp_path / "run", "median", trials=10**6, training=Training(worsens=True), space=space)
    assert len(finished(study)) + len(stopped(study)) == space.size() == 12 and stopped(study)


def test_a_killed_search_finds_the_same(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests'); import test_pruning as t;"
        "t.search(sys.argv[1], sys.argv[2], training=t.Training(kill_at=int(sys.argv[3])))"
    )
    name = "median"
    for kill_at in (130, 480):
        place = str(tmp_path / "run")
        done = subprocess.run([sys.executable, "-c", code, place, name, str(kill_at)], env=environment(), timeout=200)
        assert done.returncode == -signal.SIGKILL
    study, _ = search(tmp_path / "run", name)
    undisturbed, _ = search(tmp_path / "undisturbed", name)

    def found(study):
        return [
            [(trial.user_attrs["fingerprint"], trial.values) for trial in trials]
            for trials in (finished(study), stopped(study))
        ]

    assert found(study) == found(undisturbed)
    assert not [trial for trial in study.trials if not trial.state.is_finished()]


def test_the_clock_ends_a_search_within_a_trial(tmp_path, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr("search.study.watch.time.monotonic", lambda: now + training.steps)

    training = Training()
    study, _ = search(tmp_path / "run", "median", hours=215 / 3600, training=training)
    whole, _ = search(tmp_path / "whole", "median", trials=len(finished(study)))
    assert 0 < len(finished(study)) < 16 and training.steps <= 215 + STEPS
    assert [trial.values for trial in finished(study)] == [trial.values for trial in finished(whole)]
    left = [trial for trial in study.trials if trial.user_attrs.get("interrupted") == "the time was over"]
    assert len(left) == 1 and all(trial.state.is_finished() for trial in study.trials)
    monkeypatch.undo()
    study, _ = search(tmp_path / "run", "median")
    assert len(finished(study)) + len(stopped(study)) == 16


def test_a_watch_that_lets_be():
    watch = Watch()
    watch.tick()
    assert watch.rungs(90) == () and not watch.over_parts
    with pytest.raises(OutOfTime):
        Watch(deadline=0.0).tick()


@pytest.mark.parametrize(
    "name, steps, objectives, message",
    [
        ("median", 90, 2, "--pruner median stops candidates for one objective only, this search has 2"),
        ("hyperband", 0, 1, "--pruner hyperband compares candidates during pretraining, which has 0 steps here"),
        ("medium", 90, 1, "unknown pruner 'medium', known: median, successive-halving, hyperband, wilcoxon, none"),
    ],
)
def test_where_nothing_can_be_stopped(name, steps, objectives, message):
    with pytest.raises(UserError, match=message):
        create_pruner(name, steps, objectives)
    create_pruner("wilcoxon", 0, 1)


# --- the command --------------------------------------------------------------------------------------------------


BUDGET = {"steps": 9, "batch_size": 8, "sequence_length": 32, "learning_rate": 0.003}
WIDE = {**TINY["space"], "hidden_size": [16, 64], "feed_forward_size": [16, 64]}


def trials_of(folder):
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")


@pytest.mark.slow
def test_two_processes_stop_together(tmp_path, corpus):  # noqa: F811
    recipe = write_recipe(tmp_path, corpus, trials=7, tasks=[], pretraining=BUDGET, space=WIDE, pruner="median")
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29653", "-m", "search")
    arguments = ("run", "--recipe", recipe, "--runs", str(tmp_path / "runs"))
    done = command(*arguments, launcher=launcher, env={"ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr
    study = trials_of(tmp_path / "runs" / "tiny")
    assert stopped(study) and len(finished(study)) + len(stopped(study)) == 7
    report = (tmp_path / "runs" / "tiny" / "report" / "report.md").read_text(encoding="utf-8")
    assert "## Stopped early" in report and "of the tokens" in report
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text(encoding="utf-8"))
    assert summary["savings"]["stopped"] == len(stopped(study))


def test_hours_and_known_encoders(tmp_path, corpus, capsys):  # noqa: F811
    layers = [{"hidden_size": 16, "operations": [{"op": "linear_transform", "num_heads": 2}], "feed_forward": [32]}]
    (tmp_path / "known.json").write_text(json.dumps(layers), encoding="utf-8")
    recipe = write_recipe(tmp_path, corpus, tasks=[])
    start = ["--start-from", f"{tmp_path / 'known.json'},bert-mini"]
    base = ["run", "--recipe", recipe, "--runs", str(tmp_path / "runs"), *start]
    assert main([*base, "--hours", "1e-9"]) == 2
    output = capsys.readouterr()
    assert "the hours that were given are over" in output.out and "no trial finished" in output.err
    assert "1 known encoders come first, 1 are not in the space" in output.out
    assert main(base) == 0
    study = trials_of(tmp_path / "runs" / "tiny")
    first = next(trial for trial in study.trials if trial.state.name == "COMPLETE")
    assert first.user_attrs["layers"] == layers
    assert main([*base, "--pruner", "median", "--objectives", "score_percent,parameters", "--name", "two"]) == 2
    assert "one objective only" in capsys.readouterr().err
