"""Pretraining throughput and utilisation of this machine's device, for BERT's shapes and named architectures.

    python benchmarks/training_throughput.py [--architectures bert-mini bert-base] [--batch-sizes 256 1024] [--compile]

Runs `search.training.pretraining.pretrain` on random tokens (a vocabulary of 30,522, sequences of 128) under bf16 and
prints tokens per second and model FLOP utilisation: the model's own floating point operations per second, three times
those of a forward pass, as a share of what a large bf16 product of matrices reaches here. Each row is the median over
windows of ten steps, after the first two of them. With `--profile` the costliest kernels of five more steps follow.
"""

import argparse
import json
import platform
import statistics
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from flexibert import FlexiBertForMaskedLM, named_config
from search.cost import forward_flops, peak_flops_per_second
from search.training.pretraining import PretrainingBudget, pretrain


WARM_UP = 2
"""Windows of ten steps at the start whose time does not count."""


class RandomTokenizer:
    """What masking needs to know of a tokenizer, here BERT's."""

    mask_token_id = 103
    all_special_ids = (0, 100, 101, 102, 103)

    def __len__(self) -> int:
        return 30522

    def get_vocab(self) -> dict[str, int]:
        return {str(number): number for number in range(len(self))}


def measure(name: str, budget: PretrainingBudget, accelerator: Accelerator, peak: float) -> dict:
    """One row: tokens per second, utilisation as a share of 1 and peak memory in MiB of training an architecture."""
    torch.manual_seed(0)
    model = FlexiBertForMaskedLM(named_config(name))
    length = budget.sequence_length
    blocks = np.random.default_rng(0).integers(1000, 30000, (4 * budget.batch_size, length), dtype=np.uint16)
    rates: list[float] = []
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    pretrain(
        model, blocks, blocks[:1], RandomTokenizer(), budget, 0, accelerator,
        progress=lambda done, loss, rate: rates.append(rate),
    )  # fmt: skip
    speed = statistics.median(rates[WARM_UP:])
    flops = 3 * forward_flops(model.config, length, round(budget.mask_fraction * length)) / length
    cuda = accelerator.device.type == "cuda"
    return {
        "architecture": name,
        "batch_size": budget.batch_size,
        "compile": budget.compile,
        "tokens_per_second": round(speed),
        "utilisation": round(speed * flops / peak, 3),
        "peak_memory_mib": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
    }


def profile(name: str, budget: PretrainingBudget, accelerator: Accelerator) -> str:
    """A table of the costliest operations of ten steps."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if accelerator.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    blocks = np.random.default_rng(0).integers(1000, 30000, (budget.batch_size, budget.sequence_length))
    model = FlexiBertForMaskedLM(named_config(name))
    with torch.profiler.profile(activities=activities) as profiler:
        pretrain(model, blocks, blocks[:1], RandomTokenizer(), budget, 0, accelerator)
    order = "self_cuda_time_total" if len(activities) > 1 else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=["bert-mini", "bert-base"], help="names of the zoo")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[256, 1024], help="sequences of 128 tokens")
    parser.add_argument("--steps", type=int, default=100, help="of each run (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="each row also with torch.compile")
    parser.add_argument("--profile", action="store_true", help="print the costliest operations of each architecture")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    accelerator = Accelerator(mixed_precision="bf16")
    peak = peak_flops_per_second(accelerator.device, torch.bfloat16)
    device = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else platform.machine()
    print(f"{device}: {peak / 1e12:.2f} TFLOP/s in a large bf16 matrix product", flush=True)
    rows = []
    for name in options.architectures:
        for batch_size in options.batch_sizes:
            for compiled in (False, True) if options.compile else (False,):
                budget = PretrainingBudget(steps=options.steps, batch_size=batch_size, compile=compiled)
                rows.append(measure(name, budget, accelerator, peak))
                print(json.dumps(rows[-1]), flush=True)
                if options.output:
                    record = {
                        "device": device,
                        "peak_flops_per_second": peak,
                        "torch": torch.__version__,
                        "rows": rows,
                    }
                    options.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if options.profile:
            budget = PretrainingBudget(steps=10, batch_size=options.batch_sizes[-1])
            print(profile(name, budget, accelerator), flush=True)


if __name__ == "__main__":
    main()
