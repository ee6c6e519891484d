"""How long functions take, measured so that a change of the machine meets all of them alike."""

import math
import time
from collections.abc import Callable, Sequence


WARM_UP = 5
"""Calls before the first that counts."""

SHORTEST = 0.005
"""Seconds that a repetition takes at least: functions that are faster are called several times in it."""


def interleaved(functions: Sequence[Callable[[], object]], repetitions: int) -> list[list[float]]:
    """Seconds of a call: for each function one figure a repetition. Functions take turns, after warm-up."""
    calls = []
    for function in functions:
        fastest = min(timed(function, 1) for _ in range(WARM_UP))
        calls.append(max(1, math.ceil(SHORTEST / max(fastest, 1e-9))))
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repetitions):
        for record, function, count in zip(times, functions, calls):
            record.append(timed(function, count))
    return times


def timed(function: Callable[[], object], calls: int) -> float:
    """Mean seconds of so many calls."""
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - started) / calls
