"""One live display of what runs, which becomes plain lines where the output is not a terminal."""

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class RunProgress:
    """Shows steps of the phase at work and, in a search, trials, best score and time left.

    Args:
        trials: How many trials the search is to have, 0 where there is no search.
        enabled: False on all processes but the main one, which print nothing.
        file: Where to, standard output by default.
    """

    def __init__(self, trials: int = 0, enabled: bool = True, file: TextIO | None = None):
        self.console = Console(file=file or sys.stdout, highlight=False, soft_wrap=True)
        self.live = enabled and self.console.is_terminal
        self.enabled = enabled
        self.trials = trials
        self.done = 0
        self.trial_seconds: list[float] = []
        self.best: float | None = None
        self.label = ""
        self.trial_started = self.last_said = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[detail]}"),
            console=self.console,
            transient=True,
        )
        self._overall = self._bars.add_task("trials", total=trials, visible=trials > 0, detail="")
        self._phase = self._bars.add_task("", total=1, visible=False, detail="")

    def __enter__(self):
        if self.live:
            self._bars.start()
        return self

    def __exit__(self, *exception):
        if self.live:
            self._bars.stop()

    def say(self, message: str) -> None:
        """Prints a line that stays."""
        self.last_said = time.monotonic()
        if self.enabled:
            self.console.print(message, markup=False)
            self.console.file.flush()

    def count_trials(self, done: int, best: float | None) -> None:
        """Tells how many trials are done, by all workers, and the best score among them, in percent."""
        self.done, self.best = done, best
        self._refresh()

    def start_trial(self, label: str) -> None:
        """A new trial; `label` names it."""
        self.label, self.trial_started = label, time.monotonic()
        self._refresh()

    def update(
        self,
        phase: str,
        done: int,
        total: int,
        loss: float | None = None,
        rate: float | None = None,
        seconds_left: float = 0.0,
    ) -> None:
        """Steps done within a phase; loss in nats, rate in tokens per second. Plain output has a line a minute."""
        detail = "  ".join(
            part
            for part in (
                f"loss {loss:.3f}" if loss is not None else "",
                f"{_short(rate)} tokens/s" if rate else "",
                f"{duration(seconds_left)} left" if seconds_left else "",
            )
            if part
        )
        if self.live:
            description = f"{self.label} {phase}".strip()
            self._bars.update(
                self._phase, description=description, completed=done, total=total, visible=True, detail=detail
            )
        elif done >= total:
            self.say(f"{self.label}  {phase} done  {detail}".strip())
        elif time.monotonic() - self.last_said > 60:
            self.say(f"{self.label}  {phase} {done}/{total}  {detail}".strip())

    def end_trial(self, score: float | None, note: str = "") -> None:
        """The trial ended, with its score in percent or, if it failed or was known already, with a note."""
        if score is not None:
            self.trial_seconds.append(time.monotonic() - self.trial_started)
        result = f"score {score:.2f}" if score is not None else "no score"
        left = self.time_left()
        tail = f"  best {self.best:.2f}" if self.best is not None else ""
        tail += f"  {note}" if note else ""
        self.say(
            f"{self.label}  {result}{tail}  {self.done}/{self.trials} trials" + (f", {left} left" if left else "")
        )
        self._refresh()

    def time_left(self) -> str:
        """Mean seconds per trial times the trials to come, as text; empty while unknown."""
        if not self.trial_seconds or self.done >= self.trials:
            return ""
        seconds = sum(self.trial_seconds) / len(self.trial_seconds) * (self.trials - self.done)
        return duration(seconds)

    def _refresh(self) -> None:
        left = self.time_left()
        detail = "  ".join(
            part
            for part in (f"best {self.best:.2f}" if self.best is not None else "", f"{left} left" if left else "")
            if part
        )
        self._bars.update(self._overall, completed=self.done, detail=detail)


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 10 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _short(value: float) -> str:
    """1234 -> 1.2k"""
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{suffix}"
    return f"{value:.0f}"
