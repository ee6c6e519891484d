"""Kinds of values that options take: a text of the command line, read or refused."""

import argparse
from pathlib import Path


UNITS = {"s": 1, "m": 60, "h": 3600}
"""Of durations, in seconds."""


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted, expected a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted, expected a whole number")
    return int(text)


def seed(text: str) -> int:
    if whole(text) >= 2**31:  # numpy takes twice as much, but samplers add to it
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted, expected a whole number below 2^31")
    return int(text)


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted, expected a number above 0")
    return value


def seconds(text: str) -> float:
    """A duration: 90, 90s, 10m, 2h."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    try:
        value = float(number) * UNITS[unit]
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted, expected a duration above 0, as 90s, 10m or 2h")
    return value


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted, expected a number from 0 to 1")
    return value


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def tasks(text: str) -> tuple[str, ...]:
    """Names between commas; what stands between two of them and is a path stays whole."""
    parts, found = text.split(","), []
    while parts:
        size = next((n for n in range(1, len(parts) + 1) if _is_path(",".join(parts[:n]).strip())), 1)
        found.append(",".join(parts[:size]).strip())
        del parts[:size]
    return tuple(filter(None, found))


def _is_path(name: str) -> bool:
    """Whether this is a file or folder, with or without columns behind colons."""
    return any(Path(path).expanduser().exists() for path in (name, name.rsplit(":", 2)[0]) if path)


def seeds(text: str) -> tuple[int, ...]:
    return tuple(seed(part.strip()) for part in text.split(","))
