"""Being stopped: by Ctrl-C, by a scheduler, by a closed terminal, or because the launcher is gone.

A signal raises `Stopped` where the program is, but not within an operation of the storage: cut in two, that could
leave a connection, or the cache in front of it, in a state that nobody expects.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Stopped


SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP

PARENT_SECONDS = 1.0
"""From one look at the parent to the next."""

_shields = 0
_pending: int | None = None


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns signals that ask a process to end into `Stopped` while the block runs.

    Signals that are ignored, as by nohup, stay so. Under `accelerate launch`, which hands no signal on, a process is
    stopped when its parent is gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are none of its business
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    ended = threading.Event()
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # which `accelerate launch` (1.15) sets
        threading.Thread(target=_watch_parent, args=(os.getppid(), ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def shielded() -> Iterator[None]:
    """Puts signals off until the block ends."""
    global _shields
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _shields += 1
    try:
        yield
    finally:
        _shields -= 1
        if not _shields:
            _deliver()


def _stop(number: int, frame: object) -> None:
    global _pending
    _pending = number
    if not _shields:
        _deliver()


def _deliver() -> None:
    global _pending
    if _pending is not None:
        number, _pending = _pending, None
        raise Stopped(number)


def _watch_parent(parent: int, ended: threading.Event) -> None:
    while not ended.wait(PARENT_SECONDS):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            return
