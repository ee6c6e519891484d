"""The folder of a run: its paths, what kills leave in it, and folders that were renamed, emptied or damaged."""

import hashlib
import json
import os
import sqlite3

import optuna
import pytest
from conftest import SPECS
from optuna.trial import TrialState, create_trial

from search.artifacts.report import write_summary
from search.errors import UserError
from search.files import HOST
from search.samplers.trials import FAILURE, FINGERPRINT, LAYERS, METRICS
from search.study.run_folder import RunFolder
from search.study.storage import open_run, open_study, study_name


optuna.logging.set_verbosity(optuna.logging.ERROR)

DIRECTIONS = {"score_percent": "maximize"}
GONE = 2**22 + 1  # beyond the largest pid of Linux


def add(study, folder, score=None, state=TrialState.COMPLETE, **attributes):
    """A trial and its checkpoint."""
    number = len(study.trials)
    attributes |= {FINGERPRINT: f"abc{number}", METRICS: {}, LAYERS: SPECS["homogeneous"]}
    study.add_trial(create_trial(state=state, value=score, user_attrs=attributes))
    place = folder.trial(number, f"abc{number}")
    (place / "tasks").mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({"number": number}), encoding="utf-8")
    (place / "model.safetensors").write_bytes(bytes([number]) * 1000)
    (place / "tasks/scores.json").write_text("{}", encoding="utf-8")
    return place


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def study():
    return optuna.create_study(direction="maximize")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


DAMAGE = {
    "gone": lambda best: os.rename(best, best.with_name("elsewhere")),
    "a file is missing": lambda best: (best / "model.safetensors").unlink(),
    "a file below is missing": lambda best: (best / "tasks/scores.json").unlink(),
    "truncated": lambda best: (best / "model.safetensors").write_bytes(bytes([1]) * 10),
    "another byte": lambda best: (best / "model.safetensors").write_bytes(bytes([1]) * 999 + b"x"),
    "too much": lambda best: (best / "pytorch_model.bin").write_bytes(b"x"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_best_is_repaired(folder, study, damage):
    add(study, folder, 1.0)
    best = add(study, folder, 2.0)
    folder.keep_best(study)
    assert content(folder.best) == content(best)
    DAMAGE[damage](folder.best)
    folder.keep_best(study)
    assert content(folder.best) == content(best)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_trial_is_repaired_where_the_summary_says_that_the_best_is_whole(folder, study, damage):
    best = add(study, folder, 2.0)
    folder.keep_best(study)
    summary = json.loads(write_summary(study, folder))
    whole = content(folder.best)
    assert summary["sha256"] == {str(name): hashlib.sha256(data).hexdigest() for name, data in whole.items()}
    DAMAGE[damage](best)
    folder.keep_best(study)
    assert content(folder.best) == whole and (damage == "gone" or content(best) == whole)
    DAMAGE[damage](folder.best)  # both, of which the summary knows neither
    if damage == "another byte":
        DAMAGE["too much"](best)
        folder.keep_best(study)
        assert content(folder.best) == content(best)


def test_a_whole_best_is_not_written_again(folder, study):
    add(study, folder, 1.0)
    folder.keep_best(study)
    before = os.stat(folder.best).st_ino
    folder.keep_best(study)
    assert os.stat(folder.best).st_ino == before


def test_what_kills_leave_is_removed_and_nothing_else(folder, study):
    kept = [add(study, folder, 1.0), add(study, folder, state=TrialState.RUNNING)]
    lost = [
        add(study, folder, state=TrialState.FAIL),
        add(study, folder, state=TrialState.FAIL, **{FAILURE: "nan"}),
        add(study, folder, state=TrialState.PRUNED),
    ]
    unknown = folder.trial(99, "of another study")
    unknown.mkdir()
    half_written = [folder.trials / f".0007-abc.{GONE}@{HOST}.partial", folder.path / f".best.{GONE}@{HOST}.partial"]
    for path in half_written:
        path.mkdir()
    half_written.append(folder.path / f".summary.json.{GONE}@{HOST}.partial")
    half_written[-1].touch()
    others = [
        folder.trials / f".0008-abc.{os.getpid()}@{HOST}.partial",
        folder.trials / f".0008-abc.{GONE}@elsewhere.partial",
    ]
    for path in others:
        path.mkdir()
    folder.clean(study)
    assert all(path.exists() for path in [*kept, unknown, *others])
    assert not any(path.exists() for path in [*lost, *half_written])


def test_an_empty_study_beside_checkpoints_is_not_taken_for_a_new_run(folder, study):
    place = add(study, folder, 1.0)
    folder.study.touch()
    emptied = open_study(folder.storage, study_name(folder, None), {}, DIRECTIONS)
    with pytest.raises(UserError, match="holds 1 checkpoints, but its study is empty") as error:
        folder.clean(emptied)
    assert "\n" not in str(error.value) and place.exists()


def test_a_renamed_folder_goes_on(folder):
    folder.path.mkdir()
    study = open_study(folder.storage, study_name(folder, None), {"seed": 0}, DIRECTIONS)
    study.add_trial(create_trial(value=1.0, user_attrs={FINGERPRINT: "abc"}))
    assert study.study_name == "run"
    renamed = RunFolder(folder.path.rename(folder.path.with_name("better-name")))
    again = open_study(renamed.storage, study_name(renamed, None), {"seed": 0}, DIRECTIONS)
    assert again.study_name == "run" and len(again.trials) == 1
    assert len(open_run(renamed).trials) == 1
    with pytest.raises(UserError, match="exists with another seed"):
        open_study(renamed.storage, study_name(renamed, None), {"seed": 1}, DIRECTIONS)


def test_a_renamed_folder_goes_on_in_another_storage(folder, tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    folder.path.mkdir()
    open_study(url, study_name(folder, url), {}, DIRECTIONS).add_trial(create_trial(value=1.0))
    renamed = RunFolder(folder.path.rename(folder.path.with_name("better-name")))
    assert len(open_study(url, study_name(renamed, url), {}, DIRECTIONS).trials) == 1
    assert len(open_run(renamed, url).trials) == 1


@pytest.mark.parametrize("damage", ["empty", "no database", "several"])
def test_names_of_odd_files(folder, damage):
    folder.path.mkdir()
    if damage == "several":
        for name in ("one", "two"):
            open_study(folder.storage, name, {}, DIRECTIONS)
    else:
        folder.study.write_bytes(b"" if damage == "empty" else b"no database")
    assert study_name(folder, None) == "run"
    if damage == "empty":
        with sqlite3.connect(folder.study) as connection:
            assert not connection.execute("SELECT name FROM sqlite_master").fetchall()
