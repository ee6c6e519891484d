"""Energy that the machine itself counts: processors by RAPL, NVIDIA's accelerators by NVML.

RAPL counts a whole processor package and its memory, whatever runs there and also what idles; so a figure is that of a
machine that does nothing else. Linux shows it under /sys/class/powercap (Documentation/power/powercap/powercap.rst),
where counters begin again from 0 beyond `max_energy_range_uj`; since 2020 only the superuser may read it by default.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ..errors import UserError


POWERCAP = Path("/sys/class/powercap")


class Counter(Protocol):
    """Counts energy since some time in the past.

    Attributes:
        name: What is counted, for people.
        range: Joules after which it begins again from 0; None where it never does.
    """

    name: str
    range: float | None

    def joules(self) -> float:
        """What it shows now."""


class RaplZone:
    """A zone of the powercap tree, in folder `zone`: a processor package, or the memory that belongs to it."""

    def __init__(self, zone: Path):
        self.zone = zone
        self.name = f"RAPL {self._read('name')}"
        self.range: float | None = int(self._read("max_energy_range_uj")) / 1e6

    def joules(self) -> float:
        return int(self._read("energy_uj")) / 1e6

    def _read(self, file: str) -> str:
        try:
            return (self.zone / file).read_text(encoding="ascii").strip()
        except OSError as error:
            raise UserError(f"energy: {self.zone / file} cannot be read: {error.strerror}") from None


class NvmlDevice:
    """An accelerator of NVIDIA's, from Volta on."""

    range: float | None = None

    def __init__(self, device: str):
        import pynvml
        import torch

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.device(device)).uuid
        self.handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        self.name = f"NVML {pynvml.nvmlDeviceGetName(self.handle)}"
        self.joules()

    def joules(self) -> float:
        import pynvml

        return pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1e3


def rapl_zones(powercap: Path = POWERCAP) -> list[Counter]:
    """All processor packages and the memory beside them. A zone "psys" holds these again and is left out."""
    zones = sorted(powercap.glob("intel-rapl:*"))
    tops = [RaplZone(zone) for zone in zones if zone.name.count(":") == 1]
    packages = [zone for zone in tops if "package" in zone.name]
    inner = {zone.zone.name for zone in packages}
    memory = [RaplZone(zone) for zone in zones if zone.name.rpartition(":")[0] in inner]
    return [*packages, *(zone for zone in memory if zone.name.endswith("dram"))]


def counters(device: str = "cpu", powercap: Path = POWERCAP) -> list[Counter]:
    """What this machine counts while something runs on a device of PyTorch's.

    Raises:
        UserError: Nothing, or nothing that this process may read.
    """
    found: list[Counter] = []
    if device.startswith("cuda"):
        try:
            found.append(NvmlDevice(device))
        except ImportError:
            raise UserError("energy: the accelerator is read by NVML; pip install nvidia-ml-py has it") from None
        except Exception as error:  # of NVML, whose classes come with it
            raise UserError(f"energy: NVML does not tell it: {error}") from None
    else:
        found += rapl_zones(powercap)
    if not found:
        raise UserError(
            f"energy: this machine does not tell it: {powercap} has no intel-rapl zone of a processor package"
        )
    for counter in found:
        counter.joules()  # whether it may be read
    return found


def joules_of(run: Callable[[], None], found: list[Counter]) -> float:
    """Joules that all counters together counted while `run` ran, which must take less than a range of any of them."""
    before = [counter.joules() for counter in found]
    run()
    return sum(difference(counter, start) for counter, start in zip(found, before))


def difference(counter: Counter, start: float) -> float:
    """What a counter counted since it showed `start`, at most once around."""
    count = counter.joules() - start
    return count + counter.range if count < 0 and counter.range is not None else count
