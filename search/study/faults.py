"""What an error in a trial means: for the architecture, for the search, and for whoever reads about it.

Anything that goes wrong while a candidate is trained is a result: the trial fails with its reason and the search goes
on. Three kinds of errors are not about the candidate. What only the user can mend (a full disk, a missing permission,
a wrong recipe) would meet every other candidate, too, and ends the search at once. So does a lost process of this
worker, because those that are left wait for it. And an interruption is a wish. The architecture is tried again then.
Where the memory was not enough it is tried again, too, once, with batches in smaller parts.
"""

import errno

import torch

from ..errors import TrainingDiverged, TrialTooLong, UserError, without_secrets


USERS_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
USERS_WORDS = ("No space left on device", "disk is full", "Disk quota exceeded", "Read-only file system")
"""How libraries put the same that do not pass on the number (safetensors, SQLite)."""

MEMORY_WORDS = ("out of memory", "can't allocate memory", "Cannot allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""How those say it that have no class for it."""

LOST_WORDS = ("gloo", "NCCL", "ncclRemoteError", "Connection closed by peer", "Connection reset by peer")

ALIKE = (TrainingDiverged, TrialTooLong)
"""What all processes that train together meet in the same step, because they decide it from what they share."""

LONGEST = 300


def is_users(error: BaseException) -> bool:
    """Whether only the user can mend what an error says, and every candidate would meet it."""
    return any(
        isinstance(cause, UserError)
        or (isinstance(cause, OSError) and cause.errno in USERS_ERRNO)
        or any(words in str(cause) for words in USERS_WORDS)
        for cause in _causes(error)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory for what was asked for, on the device or in the machine."""
    return any(
        isinstance(cause, (MemoryError, torch.OutOfMemoryError))
        or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        or (isinstance(cause, RuntimeError) and any(words in str(cause) for words in MEMORY_WORDS))
        for cause in _causes(error)
    )


def is_lost_process(error: BaseException) -> bool:
    """Whether an error says that a process that trains with this one is gone."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    lost = getattr(torch.distributed, "DistError", ())
    return distributed and any(
        isinstance(cause, lost)
        or (isinstance(cause, RuntimeError) and any(words in str(cause) for words in LOST_WORDS))
        for cause in _causes(error)
    )


def reason(error: BaseException) -> str:
    """An error in one line: its kind, if that is not this package's own, and the first line of what it says."""
    text = next((line.strip() for line in without_secrets(str(error)).splitlines() if line.strip()), "")
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    if type(error).__module__.startswith(f"{__package__.partition('.')[0]}."):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _causes(error: BaseException | None) -> list[BaseException]:
    """An error and what it came from."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain
