"""Storages: databases that are away, locked, full or wrong, on SQLite and on a real PostgreSQL."""

import contextlib
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import threading
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from accelerate import Accelerator
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from flexibert.spec import fingerprint
from search.errors import UserError
from search.progress import RunProgress
from search.samplers import create_sampler
from search.space.search_space import SearchSpace
from search.study import storage
from search.study.run_folder import RunFolder
from search.study.search import Search
from search.study.storage import open_storage, open_study, shown
from search.study.trials import finished


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
DIRECTIONS = {"score_percent": "maximize"}
PASSWORD = "hunter2"


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


def find_server() -> Path | None:
    """The folder of PostgreSQL's programs, where its package is installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


class Server:
    """A PostgreSQL of our own on the loopback, which can be stopped and started."""

    def __init__(self, programs: Path, folder: Path):
        self.programs, self.folder = programs, folder
        # It refuses to run as root; Debian's package comes with a user for it.
        self.user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
        if self.user:
            account = pwd.getpwnam("postgres")
            os.chown(folder, account.pw_uid, account.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "password").write_text(PASSWORD, encoding="utf-8")
        (folder / "password").chmod(0o644)
        self.run("initdb", "-U", "me", "-A", "scram-sha-256", "--pwfile", folder / "password", "-D", folder / "data")
        self.url = f"postgresql://me:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *arguments: object) -> None:
        command = [self.programs / program, *map(str, arguments)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, **self.user)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -c fsync=off"
        log = self.folder / "log"
        self.run("pg_ctl", "start", "-w", "-s", "-D", self.folder / "data", "-l", log, "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "stop", "-w", "-s", "-m", mode, "-D", self.folder / "data")


@pytest.fixture(scope="module")
def database():
    programs = find_server()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; Debian's package is called postgresql")
    pytest.importorskip("psycopg", reason="the extra postgresql is not installed")
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short, for the name of a socket
    folder.chmod(0o755)
    server = Server(programs, folder)
    server.start()
    yield server
    with contextlib.suppress(AssertionError):
        server.stop()
    shutil.rmtree(folder, ignore_errors=True)


class Lines(list):
    """What was said about waiting."""

    def __call__(self, line: str) -> None:
        self.append(line)


def search_in(url, tmp_path, name, trials, evaluate, say, timeout=60.0):
    study = open_study(url, name, {}, DIRECTIONS, timeout=timeout, say=say)
    sampler = create_sampler({"name": "random"}, SPACE, seed=0)
    progress = RunProgress(enabled=False)
    Search(study, sampler, evaluate, RunFolder(tmp_path), Accelerator(cpu=True), progress).run(trials)
    return study


def score(layers):
    return {"score_percent": int(fingerprint(layers)[:4], 16) / 655.36}


def test_the_url_of_the_documentation_works(database, tmp_path):
    study = search_in(database.url, tmp_path, "plain", 3, lambda layers, folder, source: score(layers), Lines())
    assert len(finished(study)) == 3
    assert study._storage._backend.engine.driver == "psycopg"
    told = repr([study.trials, study.user_attrs])
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert PASSWORD not in told and PASSWORD.encode() not in written
    again = open_study(database.url, "plain", {}, DIRECTIONS)
    assert [trial.values for trial in finished(again)] == [trial.values for trial in finished(study)]


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_a_server_that_restarts_is_waited_for_and_costs_no_result(database, tmp_path, monkeypatch, mode):
    monkeypatch.setattr(storage, "QUIET", 0.0)
    lines, trained = Lines(), []

    def evaluate(layers, folder, source):
        trained.append(fingerprint(layers))
        if len(trained) == 2:
            database.stop(mode)
            threading.Timer(1.0, database.start).start()  # the result is told while it is away
        return score(layers)

    study = search_in(database.url, tmp_path, mode, 4, evaluate, lines)
    assert [trial.user_attrs["fingerprint"] for trial in finished(study)] == trained and len(trained) == 4
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.FAIL))
    assert "is away" in lines[0] and "is back" in lines[-1]
    assert not [line for line in lines if PASSWORD in line or "\n" in line]


@pytest.mark.parametrize("moment", ["create_new_trial", "set_trial_param", "set_trial_user_attr", "get_all_trials"])
def test_a_server_may_go_at_any_moment(database, tmp_path, monkeypatch, moment):
    """Stopped within Optuna's operations; a thread brings it back."""
    calls, inner = [], getattr(optuna.storages._CachedStorage, moment)

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            database.stop()
            threading.Timer(0.5, database.start).start()
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(optuna.storages._CachedStorage, moment, stopping)
    study = search_in(database.url, tmp_path, moment, 7, lambda layers, folder, source: score(layers), Lines())
    assert len(calls) >= 7 and len(finished(study)) == 7
    assert not study.get_trials(states=(TrialState.RUNNING,))


def test_a_server_that_stays_away_ends_the_search_in_one_line(database, tmp_path):
    def evaluate(layers, folder, source):
        database.stop()
        return score(layers)

    try:
        with pytest.raises(UserError, match=r"was away for \d+ s: ") as ended:
            search_in(database.url, tmp_path, "away", 3, evaluate, Lines(), timeout=0.3)
        assert "\n" not in str(ended.value) and PASSWORD not in str(ended.value)
    finally:
        database.start()
    study = search_in(database.url, tmp_path, "away", 3, lambda layers, folder, source: score(layers), Lines())
    assert len(finished(study)) == 3


def test_a_wrong_password_is_not_waited_for_and_not_shown(database):
    url = database.url.replace(PASSWORD, "ter2hun")
    with pytest.raises(UserError, match="does not answer: .*password authentication failed") as error:
        open_storage(url)
    assert "ter2hun" not in str(error.value) and "\n" not in str(error.value)


# --- SQLite -------------------------------------------------------------------------------------------------------


def test_a_locked_file_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "QUIET", 0.0)
    monkeypatch.setattr(storage, "_connect_arguments", lambda place: {"timeout": 0.01})
    lines = Lines()
    study = open_study(f"sqlite:///{tmp_path}/study.db", "run", {}, DIRECTIONS, say=lines)
    trial = study.ask()
    other = sqlite3.connect(tmp_path / "study.db", check_same_thread=False, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.5, other.rollback).start()
    trial.set_user_attr("a", 1)
    assert study.trials[0].user_attrs == {"a": 1}
    assert "locked" in lines[0] and "is back" in lines[-1]


def test_a_full_disk_is_one_line(tmp_path):
    study = open_study(f"sqlite:///{tmp_path}/study.db", "run", {}, DIRECTIONS)

    def full(connection, _):
        connection.execute("PRAGMA max_page_count=1")

    engine = study._storage._backend.engine
    sqlalchemy.event.listen(engine, "connect", full)
    engine.dispose()
    with pytest.raises(UserError, match="database or disk is full") as error:
        for _ in range(200):
            study.ask()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("told", [True, False])
def test_a_result_that_came_through_unheard_is_told_once(tmp_path, monkeypatch, told):
    study = open_study(f"sqlite:///{tmp_path}/study.db", "run", {}, DIRECTIONS)
    trial, inner, calls = study.ask(), RDBStorage.set_trial_state_values, []

    def breaks(self, *args, **kwargs):
        calls.append(args)
        if len(calls) > 1:
            return inner(self, *args, **kwargs)
        if told:
            inner(self, *args, **kwargs)
        locked = sqlalchemy.exc.OperationalError("UPDATE", {}, sqlite3.OperationalError("database is locked"))
        raise optuna.exceptions.StorageInternalError("in the commit") from locked

    monkeypatch.setattr(RDBStorage, "set_trial_state_values", breaks)
    study.tell(trial, 7.0)
    assert len(calls) == 2 and study.trials[0].values == [7.0]
    with pytest.raises(ValueError, match="Cannot tell a COMPLETE trial"):
        study.tell(trial.number, 8.0)


def test_what_does_not_pass_is_not_waited_for(tmp_path):
    study = open_study(f"sqlite:///{tmp_path}/study.db", "run", {}, DIRECTIONS)
    with study._storage._backend.engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP TABLE trial_user_attributes"))
    with pytest.raises(UserError, match="no such table") as error:
        study.ask()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"no database" * 400, b"SQLite format 3\0" + bytes(4000)])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(UserError, match="does not answer: ") as error:
        open_study(f"sqlite:///{tmp_path}/study.db", "run", {}, DIRECTIONS)
    assert "\n" not in str(error.value)


def test_urls_are_shown_without_their_passwords():
    assert shown("postgresql://me:hunter2@host/db") == "postgresql://me:***@host/db"
    assert "hunter2" not in shown("postgresql:/me:hunter2@host/db")
    assert shown("sqlite:////tmp/study.db") == "sqlite:////tmp/study.db"
