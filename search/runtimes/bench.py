"""Latency and energy of encoders, each measured once, in a process of its own."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .conditions import Conditions
from .energy import POWERCAP, counters
from .predictor import LatencyPredictor, Sample, features


if TYPE_CHECKING:
    from flexibert import FlexiBertConfig


DRIFT = 0.1
"""Beyond this share of its first latency, the reference model says that the machine has changed."""

ATTEMPTS = 3
"""Measurements of an encoder while the machine is other than it was."""


@dataclass(frozen=True)
class Measurement:
    """What was measured of an encoder.

    Attributes:
        ms: Median milliseconds of a forward pass.
        low, high: Quartiles.
        reference_ms: Median of the reference model, which ran in between.
        drift_percent: How much slower than in the first measurement that was, negative where it was faster.
        energy_mj: Millijoules of a sequence; None where they were not measured.
        conditions: See `Conditions.facts`; `counters` of the energy among them.
    """

    ms: float
    low: float
    high: float
    reference_ms: float
    drift_percent: float = 0.0
    energy_mj: float | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)


class Bench:
    """Measures encoders under the same conditions.

    Its process starts when it is first needed and ends with the bench. Beside every encoder a small reference model is
    timed, in turn with it: when that takes longer or shorter than it did at first, the machine has changed, and the
    encoder is measured again; where the machine stays other than it was, `say` is told once.

    Args:
        conditions: Checked already.
        journal: File that keeps what was measured under the same conditions on the same machine, a line an encoder, so
            that another start of the same search takes it from there.
        energy: Whether energy is measured too.
        say: Takes a line for people.
        powercap: Where the kernel tells what processors use.

    Raises:
        UserError: Energy is asked for and cannot be read.
    """

    def __init__(
        self,
        conditions: Conditions,
        journal: Path | None = None,
        energy: bool = False,
        say: Callable[[str], None] = lambda line: None,
        powercap: Path = POWERCAP,
    ):
        self.conditions = conditions
        self.journal = journal
        self.energy = energy
        self.say = say
        self.powercap = powercap
        if energy and not conditions.device.startswith("cuda"):
            counters(conditions.device, powercap)
        self.facts = conditions.facts()
        self.known: dict[str, Measurement] = {}
        self.samples: list[Sample] = []
        self._predictor: LatencyPredictor | None = None
        self._process: subprocess.Popen[str] | None = None
        self._drifted = self._trusted = False
        for line in journal.read_text(encoding="utf-8").splitlines() if journal and journal.is_file() else ():
            self._recall(line)

    def measure(self, config: "FlexiBertConfig") -> Measurement:
        """What an encoder takes; measured the first time that it is asked for.

        Raises:
            UserError: The runtime cannot run it, or the process has ended.
        """
        known = self.known.get(config.fingerprint)
        if known is not None and (known.energy_mj is not None or not self.energy):
            return known
        attempts = []
        for _ in range(ATTEMPTS):
            attempts.append(self._summary(self._ask(config)))
            if abs(attempts[-1].drift_percent) <= 100 * DRIFT:
                break
        best = min(attempts, key=lambda attempt: abs(attempt.drift_percent))
        self._say_drift(best)
        self._remember(config, best)
        if self.journal is not None:
            entry = {"fingerprint": config.fingerprint, "features": features(config), **asdict(best)}
            with self.journal.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(entry)}\n")
        return best

    def millijoules(self, config: "FlexiBertConfig") -> float:
        """Energy of a sequence, of a bench that measures it."""
        energy = self.measure(config).energy_mj
        assert energy is not None, "the bench was made without energy"
        return energy

    def judge(self, config: "FlexiBertConfig", limit: float) -> bool | None:
        """Whether the latency of an encoder is clearly within a limit in milliseconds, or clearly beyond it.

        None where only measuring tells.
        """
        if config.fingerprint in self.known:
            return self.known[config.fingerprint].ms <= limit
        predictor = self.predictor
        if predictor is None:
            return None
        if not self._trusted:
            self._trusted = True
            self.say(f"latency predictor: {predictor.text}; it judges what is not near the limit")
        return predictor.judge(config, limit)

    @property
    def predictor(self) -> LatencyPredictor | None:
        """Fitted on all that was measured so far; None where that is too little, or too little alike."""
        if self._predictor is None or len(self._predictor.samples) != len(self.samples):
            self._predictor = LatencyPredictor(self.samples)
        return self._predictor if self._predictor.is_good else None

    def notes(self, config: "FlexiBertConfig") -> dict[str, Any]:
        """What is noted of an encoder that was measured, as plain data: conditions, interval, drift, and how well
        latencies are predicted by now; empty for any other."""
        if config.fingerprint not in self.known:
            return {}
        notes = asdict(self.known[config.fingerprint])
        predictor = self.predictor
        if predictor is not None:
            notes["predictor"] = {"samples": len(predictor.samples), "error_percent": 100 * predictor.mean_error}
        return notes

    def close(self) -> None:
        """Ends the process, if there is one; another starts when it is needed."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    # --- what is known --------------------------------------------------------------------------------------------

    def _summary(self, answer: Mapping[str, Any]) -> Measurement:
        times, reference = answer["ms"], statistics.median(answer["reference_ms"])
        low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
        first = next((known.reference_ms for known in self.known.values()), reference)
        return Measurement(
            ms=statistics.median(times),
            low=low,
            high=high,
            reference_ms=reference,
            drift_percent=100 * (reference / first - 1),
            energy_mj=answer.get("energy_mj"),
            conditions=self.facts | ({"counters": answer["counters"]} if "counters" in answer else {}),
        )

    def _say_drift(self, measurement: Measurement) -> None:
        if abs(measurement.drift_percent) > 100 * DRIFT and not self._drifted:
            self._drifted = True
            direction = "slower" if measurement.drift_percent > 0 else "faster"
            change = f"{abs(measurement.drift_percent):.0f} % {direction}"
            self.say(
                f"warning: this machine is {change} than at the first latency of this search (reference model "
                f"{measurement.reference_ms:.2f} ms); figures from before and after differ by that much"
            )

    def _remember(self, config: "FlexiBertConfig", measurement: Measurement) -> None:
        self.known[config.fingerprint] = measurement
        self.samples.append(Sample(features(config), measurement.ms))

    def _recall(self, line: str) -> None:
        """Takes a line of the journal, if it is whole and from the same conditions."""
        try:
            entry = json.loads(line)
            name, sample = entry.pop("fingerprint"), Sample(entry.pop("features"), entry["ms"])
            measurement = Measurement(**entry)
            if {fact: measurement.conditions.get(fact) for fact in self.facts} == self.facts:
                self.known[name] = measurement
                self.samples.append(sample)
        except (ValueError, KeyError, TypeError, AttributeError):  # the disk was full, or a worker was killed
            return

    # --- the process ----------------------------------------------------------------------------------------------

    def _ask(self, config: "FlexiBertConfig") -> dict[str, Any]:
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(f"{json.dumps(json.loads(config.to_json_string(use_diff=False)))}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:  # stopped in the middle: the answer would be taken for that to the next question
            self.close()
            raise
        if not line:
            status = process.wait()
            self._process = None
            raise UserError(f"the process that measures latency has ended with status {status}{self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(f"--latency-runtime {self.conditions.runtime}: {answer['error']}")
        return answer

    def _start(self) -> "subprocess.Popen[str]":
        cores = str(self.conditions.cores)
        arguments = {"conditions": asdict(self.conditions), "energy": self.energy, "powercap": str(self.powercap)}
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": cores,
            "MKL_NUM_THREADS": cores,
        }
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "search.runtimes.worker", json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        weakref.finalize(self, _end, self._process)
        return self._process

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):  # a question that nobody reads any more
                stream.close()
