"""The process in which latency and energy are measured: `python -m search.runtimes.worker CONDITIONS`.

It is pinned to its cores before any library has counted them, and nothing else runs in it. A line of JSON comes in for
each encoder, its configuration; a line goes out, what was measured or why it could not be. The end of the input ends
it.
"""

import json
import os
import signal
import statistics
import sys
from pathlib import Path
from typing import Any


ENERGY_SECONDS = 0.5
"""Of running for a figure of energy: counters move a thousand times a second, or less."""


def main(arguments: dict[str, Any]) -> None:
    """Answers until the input ends.

    Args:
        arguments: `conditions`, fields of `Conditions`; `energy`, whether that is measured too; `powercap`, where the
            counters of processors are.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C meets the whole group; whoever started this ends it
    from .conditions import Conditions, pinned_cores

    conditions = Conditions(**arguments["conditions"])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, pinned_cores(conditions.cores))
    for line in sys.stdin:
        try:
            answer = Meter.of(conditions, arguments).measure(json.loads(line))
        except Exception as error:
            from ..errors import UserError, first_line

            known = isinstance(error, (UserError, MemoryError))
            answer = {"error": str(error) if known else f"{type(error).__name__}: {first_line(error)}"}
        answers.write(f"{json.dumps(answer)}\n")
        answers.flush()


class Meter:
    """Measures encoders beside a reference model, which tells how fast the machine itself is at the time."""

    _only: "Meter | None" = None

    def __init__(self, conditions, arguments: dict[str, Any]):
        from .energy import counters

        self.conditions = conditions
        energy, powercap = arguments["energy"], Path(arguments["powercap"])
        self.counters = counters(conditions.device, powercap) if energy else []
        self.reference = self.prepare(reference_config(conditions.length))

    @classmethod
    def of(cls, conditions, arguments: dict[str, Any]) -> "Meter":
        """The one of this process, made when it is first asked for."""
        cls._only = cls._only or cls(conditions, arguments)
        return cls._only

    def prepare(self, config: dict[str, Any]):
        """A function that runs one forward pass of an encoder of this configuration, with random weights."""
        import torch
        from transformers import AutoConfig, AutoModel

        import flexibert  # noqa: F401  # registers the encoders with the Auto classes

        from .table import RUNTIMES

        torch.manual_seed(0)
        made = AutoConfig.for_model(**config)
        model = AutoModel.from_config(made, dtype=torch.float32, add_pooling_layer=False).eval()
        runtime = RUNTIMES[self.conditions.runtime](model, self.conditions.cores, self.conditions.device)
        shape = self.conditions.batch, self.conditions.length
        ids = torch.randint(min(5, made.vocab_size - 1), made.vocab_size, shape)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        arrays = {name: tensor.numpy() for name, tensor in batch.items()}
        return lambda: runtime(arrays)

    def measure(self, config: dict[str, Any]) -> dict[str, Any]:
        """Milliseconds of a forward pass, a figure a repetition, of the encoder and of the reference in turn; and
        millijoules of a sequence, where energy is measured."""
        from .timing import interleaved

        run = self.prepare(config)
        own, reference = interleaved([run, self.reference], self.conditions.repetitions)
        answer: dict[str, Any] = {
            "ms": [1000 * seconds for seconds in own],
            "reference_ms": [1000 * seconds for seconds in reference],
        }
        if self.counters:
            answer["energy_mj"] = self.millijoules(run, statistics.median(own))
            answer["counters"] = [counter.name for counter in self.counters]
        return answer

    def millijoules(self, run, seconds: float) -> float:
        """Of a sequence: the median of three runs of many passes."""
        from .energy import joules_of

        calls = max(1, round(ENERGY_SECONDS / seconds))

        def often() -> None:
            for _ in range(calls):
                run()

        runs = [joules_of(often, self.counters) for _ in range(3)]
        return 1000 * statistics.median(runs) / (calls * self.conditions.batch)


def reference_config(length: int) -> dict[str, Any]:
    """A small transformer that is the same in every search."""
    layer = {
        "hidden_size": 256,
        "operations": [{"op": "self_attention", "num_heads": 4}],
        "feed_forward": [1024],
    }
    return {"model_type": "flexibert", "layers": [layer] * 2, "vocab_size": 1024, "max_position_embeddings": length}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
