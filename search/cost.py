"""What an encoder costs: parameters, operations, latency; and the table of what a search may weigh or limit.

torch is imported when something is measured, so that the command can read the table without waiting for it.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .errors import UserError


if TYPE_CHECKING:
    import torch

    from flexibert import FlexiBertConfig


# --- the table ----------------------------------------------------------------------------------------------------

SCORE = "score_percent"
"""How good an encoder is, the first objective of every search; costs are what it is weighed against."""


Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Cost:
    """Something that an encoder costs.

    Attributes:
        text: What it is, for people.
        measure: Takes a configuration, a sequence length in tokens and a device; the same number for all processes of
            one machine is not asked for.
        unit: For people; the last word of its name, where that has one.
        whole: Whether it is a whole number.
        always: Whether every trial has it; others are measured where they are an objective or limited.
        direction: Of the objective.
    """

    text: str
    measure: "Callable[[FlexiBertConfig, int, torch.device | str], float]"
    unit: str = ""
    whole: bool = False
    always: bool = False
    direction: Direction = "minimize"

    def exceeds(self, value: float, limit: float) -> bool:
        """Whether a value is beyond a limit, which it may reach."""
        return value > limit if self.direction == "minimize" else value < limit


COSTS: dict[str, Cost] = {
    "parameters": Cost(
        "parameters of an encoder with its embeddings",
        lambda config, length, device: count_parameters(config),
        whole=True,
        always=True,
    ),
    "latency_ms": Cost(
        "median milliseconds of a forward pass on one sequence on this machine, measured after warm-up",
        lambda config, length, device: measure_latency_ms(config, length, device=device),
        unit="ms",
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
        sequence_length: In tokens.
        device: That encoders run on.
        wanted: Costs that every trial shall have besides those that it always has.
    """

    def __init__(self, sequence_length: int, device: "torch.device | str" = "cpu", wanted: Sequence[str] = ()):
        self.sequence_length = sequence_length
        self.device = device
        self.names = [name for name, cost in COSTS.items() if cost.always or name in wanted]
        self._known: dict[tuple[str, str], float] = {}

    def measure(self, name: str, config: "FlexiBertConfig") -> float:
        """One cost of an encoder."""
        key = name, config.fingerprint
        if key not in self._known:
            self._known[key] = COSTS[name].measure(config, self.sequence_length, self.device)
        return self._known[key]

    def metrics(self, config: "FlexiBertConfig") -> dict[str, float]:
        """All costs that a trial has."""
        return {name: self.measure(name, config) for name in self.names}


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


def measure_latency_ms(
    config: "FlexiBertConfig",
    sequence_length: int = 128,
    batch_size: int = 1,
    repetitions: int = 20,
    device: "torch.device | str" = "cpu",
) -> float:
    """Median milliseconds of an encoder forward pass on this machine, after warm-up, with random weights."""
    import torch

    from flexibert import FlexiBertModel

    model = FlexiBertModel(config, add_pooling_layer=False).eval().to(device)
    ids = torch.randint(config.vocab_size, (batch_size, sequence_length), device=device)
    times = []
    with torch.inference_mode():
        for repetition in range(repetitions + 5):
            started = time.perf_counter()
            model(ids)
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize(device)
            if repetition >= 5:
                times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


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
