"""Opening a study in its storage."""

import time
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

from ..errors import UserError


def open_study(url: str, name: str, identity: Mapping[str, Any], directions: Mapping[str, str]) -> optuna.Study:
    """Creates a study or continues the one of this name.

    Args:
        url: Storage, any that Optuna's RDBStorage takes (`sqlite:///...`, `postgresql://...`).
        identity: What may not change while a study grows (space, objective, budgets); plain JSON.
        directions: Metric -> "maximize" or "minimize", one per objective.

    Raises:
        UserError: The storage does not answer, or holds a study of this name with another identity.
    """
    storage = open_storage(url)
    try:
        study = optuna.create_study(study_name=name, storage=storage, directions=list(directions.values()))
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
        stored = _stored_identity(study)
        changed = [key for key in identity if stored.get(key) != identity[key]]
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


def _stored_identity(study: optuna.Study) -> dict[str, Any]:
    """The identity of a study; empty where whoever created it was killed before it came to that."""
    for _ in range(20):
        stored = study.user_attrs.get("identity")
        if stored is not None or study.get_trials(deepcopy=False):
            return stored or {}
        time.sleep(0.1)  # another worker may have created it just now
    return {}


def open_storage(url: str, retries: int = 3) -> RDBStorage:
    """Connects to a storage whose workers are noticed when they die; UserError where it does not answer."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = RDBStorage(
                url,
                engine_kwargs={"connect_args": {"connect_timeout": 10}} if url.startswith("postgresql") else None,
                heartbeat_interval=60,
                grace_period=180,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=3),
            )
    except Exception as error:  # sqlalchemy, its driver, or Optuna, each with classes of its own
        if retries and ("already exists" in str(error) or isinstance(error, sqlalchemy.exc.IntegrityError)):
            return open_storage(url, retries - 1)  # another worker has made the tables just now
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"storage {url} does not answer: {reason}") from None
    if storage.engine.dialect.name == "sqlite":
        # By default SQLite waits for the disk after each of the dozens of values of a trial, a second in all. With a
        # write-ahead log a killed process loses nothing either; only a power cut may cost the last trial.
        sqlalchemy.event.listen(storage.engine, "connect", _do_not_wait_for_the_disk)
        storage.engine.dispose()
    return storage


def _do_not_wait_for_the_disk(connection, _) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
