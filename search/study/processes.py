"""The processes that train one trial together, and what becomes of them when one fails.

An error in one process leaves the others waiting for it within an operation that nobody can call off. So the process
notes in the store through which all of them found each other what has happened, and starts itself anew: it becomes a
new program in the same process (exec). What the system closes then wakes the others, which find the note and do the
same. The trial has failed by then, and the search goes on from the study. Launchers see no process end.

This needs a store that outlives the processes, which launchers made of torchrun have, `accelerate launch` included.
"""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch.distributed
from accelerate import PartialState
from torch.distributed import PrefixStore, rendezvous
from torch.distributed.distributed_c10d import _get_default_store

from .faults import is_out_of_memory, is_users, reason
from .workers import KEPT_ID, this_worker


NOTE = "search/failure"

ATTEMPT, BACKEND = "SEARCH_ATTEMPT", "SEARCH_BACKEND"
"""Environment variables: how often the program has started itself anew, and how its processes talk to each other."""


@dataclass(frozen=True)
class Failure:
    """What has happened in a process.

    Attributes:
        reason: In one line.
        users: Whether only the user can mend it.
        memory: Whether the memory was not enough.
    """

    reason: str
    users: bool = False
    memory: bool = False

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        return cls(reason(error), is_users(error), is_out_of_memory(error))


def say_failure(failure: Failure) -> None:
    """Tells the processes that train with this one; whoever fails first is heard."""
    if torch.distributed.is_initialized() and not _noted():
        _get_default_store().set(NOTE, json.dumps(asdict(failure)))


def failure_of_another() -> Failure | None:
    """What another process has said; None where none failed, or one went without a word."""
    return Failure(**json.loads(_get_default_store().get(NOTE))) if _noted() else None


def _noted() -> bool:
    try:
        return torch.distributed.is_initialized() and _get_default_store().check([NOTE])
    except torch.distributed.DistError:  # the launcher is gone, and its store with it
        return False


def can_start_anew(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the launcher keeps the store, so that processes can find each other again."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and Path("/dev/fd").is_dir()


def start_anew(hours: float | None) -> NoReturn:
    """Becomes the same command again; does not return.

    Args:
        hours: What is left of the time of the search, which takes the place of what the command says; None for no end.
    """
    command = [sys.executable, *sys.orig_argv[1:]]
    if hours is not None:
        command += ["--hours", f"{max(hours, 1e-9):.9f}"]  # of options that are given twice the last one counts
    environment = {
        **os.environ,
        ATTEMPT: str(int(os.environ.get(ATTEMPT, "0")) + 1),
        BACKEND: str(PartialState().backend),
        KEPT_ID: this_worker()["id"],
    }
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor > 2:
            with suppress(OSError):  # that of the listing itself is closed by now
                os.set_inheritable(descriptor, False)
    os.execve(sys.executable, command, environment)


def rejoin() -> None:
    """Finds the other processes again after a new start, before Accelerate does, which takes them as it finds them.

    What they said to each other the last time still is in the store, so every start has a part of it to itself.
    """
    if ATTEMPT in os.environ and not torch.distributed.is_initialized():
        store, rank, size = next(iter(rendezvous("env://")))
        own = PrefixStore(f"attempt_{os.environ[ATTEMPT]}", store)
        torch.distributed.init_process_group(os.environ[BACKEND], store=own, rank=rank, world_size=size)
