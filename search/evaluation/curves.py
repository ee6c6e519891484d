"""What trackers are told of a search: one run of its own for every trial, so that curves lie beside each other."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator


Log = Callable[[Mapping[str, float], int | None], None]
"""Takes values by name, and the step of pretraining where they have one."""


@contextmanager
def curves(accelerator: Accelerator, name: str, config: Mapping[str, Any]) -> Iterator[Log]:
    """Opens the run of a trial with every tracker that `accelerator` has, and closes it when the block ends.

    Args:
        name: Of the run.
        config: What the trial is, names and plain values.
    """
    if not accelerator.log_with:
        yield lambda values, step: None
        return
    accelerator.init_trackers(name, config=dict(config))
    try:
        yield lambda values, step: accelerator.log(dict(values), step=step)
    finally:
        # Not `end_training`, which also ends what processes need for the next trial.
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []
