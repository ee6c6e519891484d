"""Workers: who holds which trial, how one notices that a worker died, and what becomes of its trial.

Every running trial bears a note of the worker that holds it, from the moment in which it is created. A worker is known
by an id of its own start. Whether it still runs is asked of the system where that can be known, and else of the
heartbeat: pids mean something only within one boot and one pid namespace, because two containers may share a host name
and a pid, and a pid returns when its process has been reaped.

A trial whose worker died, or was told to stop, ends as interrupted: it says nothing about its architecture. What it
trained is promised to be done again, and the promise follows from the trials alone, so that no kill can lose it.
"""

import os
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, TrialState, create_trial

from ..samplers.trials import (
    FAILURE,
    INTERRUPTED,
    LAYERS,
    LEVEL,
    OUT_OF_MEMORY,
    RETRY_OF,
    SPLIT,
    WORKER,
    counts,
    is_evidence,
    is_failure,
    is_stopped,
)


GRACE = timedelta(minutes=3)
"""So long a trial without a note or a sign of life is left alone."""

MAX_DEATHS = 5
"""An architecture in which so many workers died in a row has failed; it may well be what kills them."""

DIED = "its worker died"

KEPT_ID = "SEARCH_WORKER_ID"
"""Environment variable: id of the worker that started itself anew as this one."""

HALVES = 2
"""In so many parts micro-batches are cut when they were too large for the memory."""

_ENDED = (ValueError, optuna.exceptions.UpdateFinishedTrialError)
"""What Optuna raises for a trial that has ended already."""


class TakenOver(Exception):
    """The trial that this worker holds was given to another one, which took it for dead."""


def this_worker() -> dict[str, Any]:
    """This process among all that ever worked on a study, as plain data."""
    return dict(_identity(os.getpid()))


@lru_cache(maxsize=1)
def _identity(pid: int) -> dict[str, Any]:
    return {
        "id": os.environ.get(KEPT_ID) or uuid.uuid4().hex,
        "host": socket.gethostname(),
        "boot": _boot(),
        "namespace": _namespace(),
        "pid": pid,
        "started": _started(pid),
    }


def is_gone(worker: Mapping[str, Any]) -> bool:
    """Whether a worker certainly runs no longer; of those that cannot be seen from here only the heartbeat tells."""
    place = ("host", "boot", "namespace")
    if any(worker.get(name) != this_worker()[name] for name in place) or "pid" not in worker:
        return False
    started = _started(worker["pid"])
    if started is None:
        return True
    if _boot() is not None:
        return started != worker["started"]
    # When a process seems to have started follows the clock, which is corrected now and then.
    return abs(started - worker["started"]) > 5


def _boot() -> str | None:
    """The same from one start of the machine to the next; None where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _namespace() -> str | None:
    """In which pids mean the same; None where there is but one."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _started(pid: int) -> float | None:
    """When a process started, on Linux in ticks since the boot; None where there is none, or only its remains."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if _boot() is None:
            return process.create_time()
        # After the name in parentheses, which may contain anything (proc(5)).
        return float(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except (psutil.NoSuchProcess, OSError):
        return None


# --- holding a trial ----------------------------------------------------------------------------------------------


def ask(study: optuna.Study) -> optuna.Trial:
    """Like `Study.ask`, but no trial ever runs without a note of who holds it."""
    study._thread_local.cached_all_trials = None  # as in `Study.ask`
    storage, worker = study._storage, this_worker()
    for waiting in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        try:
            storage.set_trial_user_attr(waiting._trial_id, WORKER, worker)
            if storage.set_trial_state_values(waiting._trial_id, state=TrialState.RUNNING):
                storage.set_trial_user_attr(waiting._trial_id, WORKER, worker)  # another may have tried as well
                return optuna.Trial(study, waiting._trial_id)
        except _ENDED:
            continue
    template = create_trial(state=TrialState.RUNNING, user_attrs={WORKER: worker})
    return optuna.Trial(study, storage.create_new_trial(study._study_id, template_trial=template))


def tell(study: optuna.Study, trial: optuna.Trial, values: Sequence[float] | None, state: TrialState) -> None:
    """Like `Study.tell`; TakenOver where the trial has ended without this worker."""
    try:
        study.tell(trial, values, state)
    except _ENDED as error:
        raise TakenOver(f"trial {trial.number} was taken over by another worker") from error


def note(trial: optuna.Trial, name: str, value: Any) -> None:
    """Sets a user attribute; TakenOver where the trial has ended without this worker."""
    try:
        trial.set_user_attr(name, value)
    except _ENDED as error:
        raise TakenOver(f"trial {trial.number} was taken over by another worker") from error


@contextmanager
def heartbeat(study: optuna.Study, trial: optuna.Trial) -> Iterator[None]:
    """Tells the other workers, while the block runs, that this one is alive."""
    storage = study._storage
    if not isinstance(storage, BaseHeartbeat) or not storage.get_heartbeat_interval():
        yield
        return
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            with suppress(Exception):  # nothing that this thread meets is new to the one that trains
                storage.record_heartbeat(trial._trial_id)
            stop.wait(storage.get_heartbeat_interval())

    thread = threading.Thread(target=beat, daemon=True)  # a store that is away shall not keep a stopped worker
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=1)


# --- what was interrupted -----------------------------------------------------------------------------------------


def recover(study: optuna.Study) -> int:
    """Ends the trials of workers that died, and enqueues again what they and others left undone.

    To be called between trials of this worker: whatever it still seems to hold is of no use to anybody.

    Returns:
        How many trials will be done again.
    """
    storage, me = study._storage, this_worker()
    silent = storage._get_stale_trial_ids(study._study_id) if isinstance(storage, BaseHeartbeat) else []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER)
        if worker is None:
            dead = trial.datetime_start is None or datetime.now() - trial.datetime_start > GRACE
        else:
            dead = worker.get("id") == me["id"] or is_gone(worker)
        if dead or trial._trial_id in silent:
            release(study, trial, DIED)
    promised = owed(study.get_trials(deepcopy=False))
    for trial in promised:
        kept = {name: trial.user_attrs[name] for name in (LEVEL, SPLIT) if name in trial.user_attrs}
        split = {SPLIT: HALVES} if trial.user_attrs.get(OUT_OF_MEMORY) else {}
        study.enqueue_trial(_chosen(trial), user_attrs={RETRY_OF: trial.number, **kept, **split})
    return len(promised)


def failures_in_a_row(study: optuna.Study) -> int:
    """How many of the last trials that this worker trained failed, whatever it passed over or left in between."""
    count = 0
    for trial in reversed(study.get_trials(deepcopy=False)):
        if trial.user_attrs.get(WORKER, {}).get("id") != this_worker()["id"]:
            continue
        if counts(trial) or is_stopped(trial):
            break
        count += is_failure(trial)
    return count


def release(study: optuna.Study, trial: FrozenTrial | optuna.Trial, reason: str) -> None:
    """Ends a running trial as interrupted, so that its architecture is tried again."""
    storage = study._storage
    deaths = _deaths(study.get_trials(deepcopy=False), trial.number) if reason == DIED else 0
    try:
        if deaths + 1 >= MAX_DEATHS:
            storage.set_trial_user_attr(trial._trial_id, FAILURE, f"{deaths + 1} workers died while they trained it")
        else:
            storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, reason)
        storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    except _ENDED:
        pass  # it has ended meanwhile


def release_own(study: optuna.Study, reason: str) -> None:
    """Ends whatever this worker holds as interrupted."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get(WORKER, {}).get("id") == this_worker()["id"]:
            release(study, trial, reason)


def _deaths(trials: Sequence[FrozenTrial], number: int) -> int:
    """In how many earlier attempts at what a trial does again a worker died."""
    by_number = {trial.number: trial for trial in trials}
    count, earlier = 0, by_number[number].user_attrs.get(RETRY_OF)
    while earlier in by_number:
        count += by_number[earlier].user_attrs.get(INTERRUPTED) == DIED
        earlier = by_number[earlier].user_attrs.get(RETRY_OF)
    return count


def owed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Interrupted trials that nobody has taken up again."""
    taken_up = {trial.user_attrs.get(RETRY_OF) for trial in trials}
    return [trial for trial in trials if not is_evidence(trial) and _chosen(trial) and trial.number not in taken_up]


def _chosen(trial: FrozenTrial) -> dict[str, Any]:
    """The parameter values of a trial, empty where its worker had not come to all of them."""
    return trial.params if LAYERS in trial.user_attrs else trial.system_attrs.get("fixed_params", {})
