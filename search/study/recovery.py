"""Workers that died, and what becomes of their trials."""

import os
import socket
from collections.abc import Mapping
from typing import Any

import optuna
import psutil
from optuna.trial import TrialState

from ..samplers.trials import LEVEL, WORKER


def this_worker() -> dict[str, Any]:
    """Identity of this process among all that ever worked on a study."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def is_gone(worker: Mapping[str, Any]) -> bool:
    """Whether a worker of this machine no longer runs; of other machines only their heartbeat tells."""
    if worker.get("host") != socket.gethostname():
        return False
    try:
        # When a process seems to have started follows the clock, which is corrected now and then.
        return abs(psutil.Process(worker["pid"]).create_time() - worker["started"]) > 5
    except psutil.NoSuchProcess:
        return True


def retry_interrupted(study: optuna.Study) -> int:
    """Enqueues again what workers of this machine were killed in; returns how many trials."""
    count = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_gone(trial.user_attrs.get(WORKER, {})):
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                continue  # another worker that starts now was faster
            enqueue_again(study, trial.number)
            count += 1
    return count


def enqueue_again(study: optuna.Study, number: int) -> None:
    """Makes the architecture of a trial that was interrupted the next to be tried."""
    trial = study.get_trials(deepcopy=False)[number]  # a running trial itself does not know what the sampler noted
    level = {name: value for name, value in trial.user_attrs.items() if name == LEVEL}
    study.enqueue_trial(trial.params, user_attrs=level)
