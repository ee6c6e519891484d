"""Opening a study in its storage, and waiting for a storage that is away for a while."""

import sqlite3
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial, wraps
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from sqlalchemy.engine import URL, make_url

from ..cost import Direction
from ..errors import UserError, without_secrets
from ..progress import duration
from .run_folder import RunFolder
from .signals import shielded


TIMEOUT = 600.0
"""Seconds for which a storage that is away is waited for."""

HEARTBEAT, GRACE_PERIOD = 60, 180
"""Seconds from one sign of life to the next, and until a silent worker is taken for dead."""

QUIET = 5.0
"""Seconds of waiting before anybody is told; locks of SQLite last shorter."""

RETRY_STATES = ("08", "40", "53", "57")
"""Classes of SQLSTATE that pass: connection, rollback by the server, resources, shutdown (PostgreSQL, appendix A)."""


def open_study(
    url: str,
    name: str,
    identity: Mapping[str, Any],
    directions: Mapping[str, Direction],
    defaults: Mapping[str, Any] | None = None,
    **options,
) -> optuna.Study:
    """Creates a study or continues the one of this name.

    Args:
        url: Storage, any that Optuna's RDBStorage takes (`sqlite:///...`, `postgresql://...`).
        identity: What may not change while a study grows (space, objective, budgets); plain JSON.
        directions: Metric -> "maximize" or "minimize", one per objective.
        defaults: What stands for parts of the identity that a study does not hold, because it is from a version that
            did not know them.
        options: See `open_storage`.

    Raises:
        UserError: The storage does not answer, or holds a study of this name with another identity.
    """
    storage = open_storage(url, **options)
    try:
        study = optuna.create_study(study_name=name, storage=storage, directions=list(directions.values()))
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        stored = _stored_identity(study)
        complete = _completed(stored, defaults or {})
        changed = [key for key in identity if _moved(key, complete.get(key)) != _moved(key, identity[key])]
        if not changed:
            return study
        if stored or study.get_trials(deepcopy=False):
            raise UserError(
                f"run {name!r} exists with another {', '.join(changed)}; "
                "give the same options to continue it, or another --name"
            ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(directions))
    study.set_user_attr("identity", dict(identity))
    return study


def open_run(folder: RunFolder, url: str | None = None) -> optuna.Study:
    """The study of an earlier run, to read it.

    Args:
        url: Storage, where the run used another than the file in its folder.

    Raises:
        UserError: There is none.
    """
    if url is None and not folder.study.is_file():
        raise UserError(f"{folder.path} is no run folder: it has no study.db; for another storage give --storage")
    name = study_name(folder, url)
    url = url or folder.storage
    try:
        return optuna.load_study(study_name=name, storage=open_storage(url))
    except KeyError:
        raise UserError(f"{shown(url)} holds no study named {name!r}") from None


def study_name(folder: RunFolder, url: str | None) -> str:
    """The name of a run's study: that of the folder when the study began, though the folder was renamed since.

    Args:
        url: Storage, where it is another than the file in the folder.
    """
    if url is not None:
        return folder.noted_name()
    if not folder.study.is_file():
        return folder.name
    try:
        with closing(sqlite3.connect(f"{folder.study.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            names = [name for (name,) in connection.execute("SELECT study_name FROM studies")]
    except sqlite3.Error:  # empty so far, or damaged, which is told when it is opened
        return folder.name
    return names[0] if len(names) == 1 else folder.name


def _completed(stored: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What was stored, with defaults where it says nothing, also within its parts."""
    parts = {
        name: _completed(stored[name], default) if isinstance(default, Mapping) else stored[name]
        for name, default in defaults.items()
        if name in stored and isinstance(stored[name], Mapping)
    }
    return {**defaults, **stored, **parts}


def check_data(study: optuna.Study, name: str, data: Mapping[str, str]) -> None:
    """Notes which data a study is about, or compares with what it noted.

    Args:
        name: Of the run, for the message.
        data: What it is for people -> a digest of its content, see `data.cache`.

    Raises:
        UserError: Content has changed since, so that scores would be of different data.
    """
    noted = study.user_attrs.get("data")
    if noted is None:  # of an earlier version, or new
        study.set_user_attr("data", dict(data))
        return
    changed = [what for what in data if noted.get(what) != data[what]]
    if changed:
        raise UserError(
            f"run {name!r} was made with other data: {', '.join(changed)} changed since; "
            "bring the data back to continue it, or give another --name"
        )


def _moved(key: str, value: Any) -> Any:
    """A part of an identity without the folders of its data: what they hold counts, see `check_data`, not where."""
    if isinstance(value, str) and key in ("corpus", "objective"):
        return value.rpartition("/")[2]
    if isinstance(value, list):
        return [_moved(key, item) for item in value]
    if isinstance(value, dict):
        return {name: _moved(key, item) for name, item in value.items()}
    return value


def _stored_identity(study: optuna.Study) -> dict[str, Any]:
    """The identity of a study; empty where whoever created it was killed before it came to that."""
    for _ in range(20):
        stored = study.user_attrs.get("identity")
        if stored is not None or study.get_trials(deepcopy=False):
            return stored or {}
        time.sleep(0.1)  # another worker may have created it just now
    return {}


def print_line(message: str) -> None:
    print(f"search: {message}", file=sys.stderr, flush=True)


def open_storage(
    url: str, timeout: float = TIMEOUT, say: Callable[[str], None] = print_line, retries: int = 3
) -> RDBStorage:
    """Connects to a storage.

    Args:
        url: Of the storage. `postgresql://` means psycopg 3, whatever SQLAlchemy would take.
        timeout: Seconds for which it is waited for when it goes away later.
        say: Takes a line about that.

    Raises:
        UserError: It does not answer now.
    """
    try:
        place = _place(url)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = PatientStorage(place, timeout, say)
    except Exception as error:  # sqlalchemy, its driver, or Optuna, each with classes of its own
        if retries and ("already exists" in str(error) or isinstance(error, sqlalchemy.exc.IntegrityError)):
            return open_storage(url, timeout, say, retries - 1)  # another worker has made the tables just now
        text = without_secrets(str(error).strip()).partition("\n")[0]
        raise UserError(f"storage {shown(url)} does not answer: {text or type(error).__name__}") from None
    if storage.engine.dialect.name == "sqlite":
        # By default SQLite waits for the disk after each of the dozens of values of a trial, a second in all. With a
        # write-ahead log a killed process loses nothing either; only a power cut may cost the last trial.
        sqlalchemy.event.listen(storage.engine, "connect", _do_not_wait_for_the_disk)
        storage.engine.dispose()
    storage.patient = True
    return storage


def _place(url: str) -> URL:
    place = make_url(url)
    return place.set(drivername="postgresql+psycopg") if place.drivername in ("postgresql", "postgres") else place


def shown(url: str) -> str:
    """A storage URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:  # no URL; it may hold a password all the same
        return without_secrets(url)


def _do_not_wait_for_the_disk(connection, _) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


# --- waiting ------------------------------------------------------------------------------------------------------


class PatientStorage(RDBStorage):
    """Optuna's storage in a database, which waits where the database is away for a while.

    Every connection is tested before it is used. What was read or written when the connection broke is done again;
    where a write had come through, though nobody said so, that is noticed.

    Args:
        place: URL with its driver.
        timeout: Seconds of waiting after which it gives up.
        say: Takes a line about the waiting.

    Attributes:
        patient: Whether it waits; not while it is opened.
    """

    patient = False

    def __init__(self, place: URL, timeout: float, say: Callable[[str], None]):
        self.place = place.render_as_string(hide_password=True)
        self.timeout = timeout
        self.say = say
        self._lock = threading.Lock()
        self._told = False
        super().__init__(
            place.render_as_string(hide_password=False),
            engine_kwargs={"pool_pre_ping": True, "connect_args": _connect_arguments(place)},
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE_PERIOD,
        )

    def wait_for(self, operation: Callable[[], Any]) -> Any:
        """The result of an operation, tried until the database answers.

        Raises:
            UserError: It was away for too long, or only the user can mend what it says.
        """
        started, pause = time.monotonic(), 0.1
        while True:
            try:
                with shielded():
                    result = operation()
            except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.DBAPIError) as error:
                if isinstance(error, sqlalchemy.exc.IntegrityError):
                    raise  # which Optuna expects
                cause = _database_error(error)
                reason = without_secrets(str(cause.orig if cause else error).strip()).partition("\n")[0]
                if not self.patient or cause is None:
                    raise
                if not _passes(cause):
                    raise UserError(f"storage {self.place}: {reason}") from None
                waited = time.monotonic() - started
                if waited > self.timeout:
                    raise UserError(f"storage {self.place} was away for {duration(waited)}: {reason}") from None
                self._tell(waited, reason)
                time.sleep(min(pause, max(self.timeout - waited, 0.01)))
                pause = min(2 * pause, 5.0)
            else:
                if self._told:
                    self._tell_back()
                return result

    def _tell(self, waited: float, reason: str) -> None:
        with self._lock:
            if waited >= min(QUIET, self.timeout / 2) and not self._told:
                self._told = True
                limit = duration(self.timeout)
                self.say(f"storage {self.place} is away ({reason}); waiting for it, up to {limit}")

    def _tell_back(self) -> None:
        with self._lock:
            if self._told:
                self._told = False
                self.say(f"storage {self.place} is back")

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        tries = 0

        def write() -> bool:
            nonlocal tries
            tries += 1
            try:
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except optuna.exceptions.UpdateFinishedTrialError:
                trial = RDBStorage.get_trial(self, trial_id)
                if tries > 1 and trial.state == state and (values is None or trial.values == list(values)):
                    return True  # an earlier try had come through
                raise

        return self.wait_for(write)


def _patient(name: str) -> Callable[..., Any]:
    inner = getattr(RDBStorage, name)

    @wraps(inner)
    def method(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self.wait_for(partial(inner, self, *args, **kwargs))

    return method


OPERATIONS = (
    *(name for name in vars(BaseStorage) if name.startswith(("get_", "set_", "create_", "delete_"))),
    *("record_heartbeat", "_get_stale_trial_ids", "_create_new_trial", "_set_trial_param", "_get_trials"),
    "_get_best_trial_id",
)
"""What Optuna asks of a storage, its cache included."""

for _name in OPERATIONS:
    if _name not in vars(PatientStorage) and hasattr(RDBStorage, _name):
        setattr(PatientStorage, _name, _patient(_name))


def _connect_arguments(place: URL) -> dict[str, Any]:
    """So that a driver notices a server that is gone without a word."""
    if place.get_backend_name() == "sqlite":
        return {"timeout": 30}
    if place.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
        alive = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
        return {"connect_timeout": 10, **alive}
    return {}


def _database_error(error: BaseException | None) -> sqlalchemy.exc.DBAPIError | None:
    """What the database said, in the chain of an error."""
    while error is not None and not isinstance(error, sqlalchemy.exc.DBAPIError):
        error = error.__cause__ or error.__context__
    return error


def _passes(error: sqlalchemy.exc.DBAPIError | None) -> bool:
    """Whether what a database says may be over in a while."""
    if error is None:
        return False
    if isinstance(error.orig, sqlite3.Error):
        return any(word in str(error.orig) for word in ("locked", "busy"))
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    if state is not None:
        return state[:2] in RETRY_STATES
    broken = isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)
    return error.connection_invalidated or (broken and "authentication" not in str(error.orig))
