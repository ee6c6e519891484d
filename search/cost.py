"""What an encoder costs: parameters, operations, latency, energy; and the table of what a search may weigh or limit.

torch is imported when something is measured, so that the command can read the table without waiting for it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .errors import UserError


if TYPE_CHECKING:
    import torch

    from flexibert import FlexiBertConfig

    from .runtimes.bench import Bench


# --- the table ----------------------------------------------------------------------------------------------------

SCORE = "score_percent"
"""How good an encoder is, the first objective of every search; costs are what it is weighed against."""


Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Cost:
    """Something that an encoder costs.

    Attributes:
        text: What it is, for people.
        measure: Takes a configuration, and the bench that measures what takes time.
        unit: For people; the last word of its name, where that has one.
        whole: Whether it is a whole number.
        always: Whether every trial has it; others are measured where they are an objective or limited.
        direction: Of the objective.
        judge: Takes a limit too, and says whether the cost is clearly within it, clearly beyond it, or neither (None),
            without measuring; None where measuring takes no time.
        by_bench: Whether the bench measures it, under conditions that are to be told.
    """

    text: str
    measure: "Callable[[FlexiBertConfig, Bench], float]"
    unit: str = ""
    whole: bool = False
    always: bool = False
    direction: Direction = "minimize"
    judge: "Callable[[FlexiBertConfig, Bench, float], bool | None] | None" = None
    by_bench: bool = False

    def exceeds(self, value: float, limit: float) -> bool:
        """Whether a value is beyond a limit, which it may reach."""
        return value > limit if self.direction == "minimize" else value < limit


COSTS: dict[str, Cost] = {
    "parameters": Cost(
        "parameters of an encoder with its embeddings",
        lambda config, bench: count_parameters(config),
        whole=True,
        always=True,
    ),
    "latency_ms": Cost(
        "median milliseconds of a forward pass on this machine, see --latency-runtime",
        lambda config, bench: bench.measure(config).ms,
        unit="ms",
        judge=lambda config, bench, limit: bench.judge(config, limit),
        by_bench=True,
    ),
    "energy_mj": Cost(
        "millijoules of a sequence on this machine, under the same conditions, as its own counters have it",
        lambda config, bench: bench.millijoules(config),
        unit="mJ",
        by_bench=True,
    ),
}
"""Name, also of the metric of a trial -> the cost. The command makes an objective and a limit of each."""


def limit_option(name: str) -> str:
    """The limit on a cost among the options of a search: max_parameters."""
    return f"{'max' if COSTS[name].direction == 'minimize' else 'min'}_{name}"


def choose_objectives(names: Sequence[str]) -> dict[str, Direction]:
    """Metric -> direction; UserError for what cannot be an objective."""
    known: dict[str, Direction] = {SCORE: "maximize", **{name: cost.direction for name, cost in COSTS.items()}}
    for name in names:
        if name not in known:
            raise UserError(f"unknown objective {name!r}, known: {', '.join(known)}")
    if tuple(names[:1]) != (SCORE,) or len(set(names)) != len(names):
        raise UserError(f"--objectives: expected {SCORE}, and after a comma any of {', '.join(COSTS)}")
    return {name: known[name] for name in names}


class CostMeter:
    """Measures each cost of an encoder once, so that what a limit admitted is not beyond it in the results.

    Args:
        bench: Measures what takes time.
        wanted: Costs that every trial shall have besides those that it always has.
    """

    def __init__(self, bench: "Bench", wanted: Sequence[str] = ()):
        self.bench = bench
        self.names = [name for name, cost in COSTS.items() if cost.always or name in wanted]

    def measure(self, name: str, config: "FlexiBertConfig") -> float:
        """One cost of an encoder."""
        return COSTS[name].measure(config, self.bench)

    def metrics(self, config: "FlexiBertConfig") -> dict[str, float]:
        """All costs that a trial has."""
        return {name: self.measure(name, config) for name in self.names}

    def notes(self, config: "FlexiBertConfig") -> dict[str, Any]:
        """How they were measured; empty where none took time."""
        return self.bench.notes(config) if any(COSTS[name].by_bench for name in self.names) else {}


class Limits:
    """Which encoders keep within the limits of a search.

    Args:
        limits: Cost -> what it may be.
        meter: Of the costs.
    """

    def __init__(self, limits: Mapping[str, float], meter: CostMeter):
        self.limits = limits
        self.meter = meter

    def may_hold(self, config: "FlexiBertConfig") -> bool:
        """For proposals: what is clear without measuring is not measured."""
        for name, limit in self.limits.items():
            judge = COSTS[name].judge
            verdict = None if judge is None else judge(config, self.meter.bench, limit)
            if not (self._holds(name, config) if verdict is None else verdict):
                return False
        return True

    def hold(self, config: "FlexiBertConfig") -> bool:
        """For training: all of them measured."""
        return all(self._holds(name, config) for name in self.limits)

    def _holds(self, name: str, config: "FlexiBertConfig") -> bool:
        return not COSTS[name].exceeds(self.meter.measure(name, config), self.limits[name])


# --- measuring ----------------------------------------------------------------------------------------------------


def count_parameters(config: "FlexiBertConfig") -> int:
    """Parameters of the encoder with its embeddings, without pooler and heads; builds no model."""
    return config.num_parameters


def forward_flops(config: "FlexiBertConfig", sequence_length: int, predictions: int) -> int:
    """Floating point operations (two per multiply-add) of a masked language modelling forward pass on one sequence."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from flexibert import FlexiBertForMaskedLM

    with torch.device("meta"):
        model = FlexiBertForMaskedLM(config).eval()
        ids = torch.zeros(1, sequence_length, dtype=torch.long)
        positions = torch.arange(predictions)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, prediction_positions=positions)
    return counter.get_total_flops()


def peak_flops_per_second(device: "torch.device | str", dtype: "torch.dtype") -> float:
    """Floating point operations per second of a large matrix product, measured: what utilisation is a share of.

    Data sheets promise more, so shares of this are larger than shares of theirs.
    """
    import torch

    size = 8192 if torch.device(device).type == "cuda" else 2048  # long enough to hide the start of a kernel
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(6):
        started = time.perf_counter()
        a @ b
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)
