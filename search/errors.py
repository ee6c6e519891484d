"""What users can do something about, as opposed to what the program did wrong, and how it is told."""

import re
import textwrap


SECRETS = (
    (re.compile(r"(?P<keep>\w:/+[^/\s:@]*:)\S*(?P<end>@)"), "URLs with a password, which may hold an @ itself"),
    (re.compile(r"(?P<keep>\b(?:password|passwd|token|secret)=)[^\s&;,'\"]+(?P<end>)", re.IGNORECASE), "options"),
    (re.compile(r"(?P<keep>\bhf_)[A-Za-z0-9]{8,}(?P<end>)"), "tokens of the Hub"),
)
"""What may not be shown, and what it is."""


class UserError(ValueError):
    """A mistake in the input. The command prints the message, which is one line whatever names in it hold, and exits
    with status 2."""

    def __init__(self, message: str):
        super().__init__(message.replace("\r", "\\r").replace("\n", "\\n"))


class Stopped(KeyboardInterrupt):
    """Somebody asked the program to end.

    Attributes:
        status: Exit status of a program that ends for this signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, number: int):
        super().__init__()
        self.status = 128 + number


class TrainingDiverged(RuntimeError):
    """A loss became infinite or not a number. A search goes on without the trial; a single training ends so."""


class TrialTooLong(RuntimeError):
    """A trial took longer than it may. It has failed, and the search goes on."""


class StartAnew(Exception):
    """An error in one of the processes that train together has brought them out of step. They have to start anew,
    which the command does, see `study/processes.py`.

    Attributes:
        hours: What is left of the time of the search; None where it has no end.
    """

    def __init__(self, hours: float | None = None):
        super().__init__("one of the processes that train together failed; the same command goes on from here")
        self.hours = hours


class OutOfTime(Exception):
    """The time that was given for a search is over; what is being trained is left for another start."""


def one_line(error: BaseException) -> str:
    """All that a library's exception says, or the one behind it, without line breaks and at a readable length."""
    return textwrap.shorten(str(error.__cause__ or error), 400) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The same of exceptions whose first line is the reason and the others its details."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def without_secrets(text: str) -> str:
    """A text with *** in place of passwords and tokens."""
    for pattern, _ in SECRETS:
        text = pattern.sub(r"\g<keep>***\g<end>", text)
    return text
