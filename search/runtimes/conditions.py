"""Under which conditions latency and energy are measured: figures of different ones are not to be compared."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from ..errors import UserError
from .table import RUNTIMES, check_installed


CPUINFO = Path("/proc/cpuinfo")
TOPOLOGY = Path("/sys/devices/system/cpu")


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Conditions:
    """What decides a latency besides the encoder and the machine.

    Attributes:
        runtime: One of `RUNTIMES`.
        batch: Sequences of a forward pass.
        length: Tokens of each.
        threads: Cores that it is pinned to; 0 for all that this process may use.
        repetitions: Of the measurement, whose median counts.
        device: That PyTorch runs on; other runtimes here know the CPU alone.

    Raises:
        UserError: From `check`, where nothing can be measured under them here.
    """

    runtime: str = "torch"
    batch: int = 1
    length: int = 128
    threads: int = 0
    repetitions: int = 20
    device: str = "cpu"

    @property
    def cores(self) -> int:
        """How many are used."""
        return self.threads or usable_cores()

    def check(self, positions: int | None = None) -> None:
        """Whether encoders can be measured so; `positions` is how long their texts may be, None for any length."""
        if self.runtime not in RUNTIMES:
            raise UserError(f"--latency-runtime: {self.runtime!r} is not accepted, known: {', '.join(RUNTIMES)}")
        for name in ("batch", "length", "repetitions"):
            if getattr(self, name) < 1:
                raise UserError(f"--latency-{name}: {getattr(self, name)} is not accepted, expected at least 1")
        if not 0 <= self.threads <= usable_cores():
            raise UserError(
                f"--latency-threads: {self.threads} is not accepted, this process has {usable_cores()} cores"
            )
        if positions is not None and self.length > positions:
            raise UserError(f"--latency-length: {self.length} is beyond the {positions} positions of the encoders")
        if self.length < 2 and not self.runtime.startswith("torch"):
            raise UserError(f"--latency-length: {self.runtime} takes at least 2 tokens")
        check_installed(f"--latency-runtime {self.runtime}", RUNTIMES[self.runtime].packages)

    def facts(self) -> dict[str, Any]:
        """All that decides a figure, machine and versions included, as plain data to be noted beside it."""
        fields = asdict(self) | {"threads": self.cores}
        versions = {name: metadata.version(name) for name in RUNTIMES[self.runtime].packages}
        return fields | {"processor": processor(), "versions": versions}


def processor() -> str:
    """The name of the processor that this process runs on, as its maker gives it."""
    return cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_facts() -> Mapping[str, str]:
    """What Linux says of the first processor, "model name" and "flags" included; empty elsewhere."""
    try:
        first = CPUINFO.read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def pinned_cores(count: int) -> list[int]:
    """So many cores that this process may use: of different physical ones as far as there are enough, and of those
    the ones that have least to do now."""
    busy = psutil.cpu_percent(interval=0.2, percpu=True)
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for core in sorted(os.sched_getaffinity(0), key=lambda core: busy[core] if core < len(busy) else 0.0):
        try:
            physical = (TOPOLOGY / f"cpu{core}" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
        except OSError:
            physical = str(core)
        (second if physical in seen else first).append(core)
        seen.add(physical)
    return [*first, *second][:count]
