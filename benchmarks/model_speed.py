"""Speed and memory of encoders against transformers' model of the same shape, in one interleaved run.

    python benchmarks/model_speed.py [--shapes mini base] [--lengths 128 512] [--output FILE.json]
    python benchmarks/model_speed.py --memory [--output FILE.json]

Every row times our model and the peer alternately and gives the ratio of the medians (above 1: ours is faster). Peers
run on sdpa where they have it. With `--memory` rows hold the peak memory of a float32 training step instead (gradients
and activations): that of a process of its own for each model, above what it held once the model was built.
"""

import argparse
import json
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, FlexiBertModel, convert_transformers_model, named_config


SHAPES = {
    "mini": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
TOKENS = {"mini": 4096, "base": 512}
"""Tokens per batch."""

PEERS = {
    "bert": (transformers.BertConfig, transformers.BertModel, {"attn_implementation": "sdpa"}),
    "fnet": (transformers.FNetConfig, transformers.FNetModel, {}),
    "convbert": (transformers.ConvBertConfig, transformers.ConvBertModel, {}),
}
TARGETS = {
    "attention": ("bert", 1.0),
    "fourier": ("fnet", 1.2),
    "cosine": ("fnet", 1.2),
    "dynamic convolution": ("convbert", 2.0),
    "autobert-zero": ("bert", 1.05),
}
"""Our model -> (the peer, the ratio to reach)."""


def build_peer(name: str, shape: str, length: int) -> torch.nn.Module:
    config_class, model_class, options = PEERS[name]
    fields = dict(SHAPES[shape])
    if name == "fnet":
        fields.pop("num_attention_heads")
    if name == "convbert":
        fields["embedding_size"] = fields["hidden_size"]
    return model_class._from_config(config_class(**fields, max_position_embeddings=512), **options)


def build_ours(name: str, shape: str, length: int) -> torch.nn.Module:
    size = SHAPES[shape]
    hidden, heads, depth = size["hidden_size"], size["num_attention_heads"], size["num_hidden_layers"]
    if name == "autobert-zero":
        layers = [
            {**layer, "hidden_size": hidden, "feed_forward": [size["intermediate_size"]]}
            | {"operations": [{**layer["operations"][0], "num_heads": heads}]}
            for layer in named_config("autobert-zero-base").layers[:depth]
        ]
        return FlexiBertModel(FlexiBertConfig(layers=layers))
    operation = {
        "attention": {"op": "self_attention"},
        "fourier": {"op": "linear_transform", "transform": "fourier", "source": "layer"},
        "cosine": {"op": "linear_transform", "transform": "cosine", "source": "layer"},
        "dynamic convolution": {"op": "dynamic_convolution", "kernel_size": 9, "mixed_attention": True},
    }[name]
    layer = {
        "hidden_size": hidden,
        "operations": [{**operation, "num_heads": heads}],
        "feed_forward": [size["intermediate_size"]],
        "output_projection": name not in ("fourier", "cosine"),
    }
    return FlexiBertModel(FlexiBertConfig(layers=[layer] * depth))


def step(model: torch.nn.Module, train: bool, dtype: torch.dtype, batch: int, length: int) -> Callable[[], None]:
    """A function that runs one forward pass, or one forward and backward pass, on random full-length rows."""
    device = next(model.parameters()).device
    ids = torch.randint(1000, 30000, (batch, length), device=device)
    model.train(train)

    def run():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), torch.set_grad_enabled(train):
            output = model(ids).last_hidden_state
        if train:
            output.float().pow(2).mean().backward()
            model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def interleave(functions: list[Callable[[], None]], repetitions: int) -> list[float]:
    """Median seconds of each function, called in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
        function()
    for _ in range(repetitions):
        for function, record in zip(functions, times):
            started = time.perf_counter()
            function()
            record.append(time.perf_counter() - started)
    return [statistics.median(record) for record in times]


def peak_memory_mib(builder: str, arguments: tuple) -> float:
    """Peak memory of one step in a fresh process, above what it held once the model was built."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure_memory, (builder, *arguments))


def _measure_memory(builder, name, shape, length, train, dtype, device) -> float:
    torch.set_num_threads(2)
    model = globals()[builder](name, shape, length).to(device)
    run = step(model, train, dtype, max(1, TOKENS[shape] // length), length)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
    before = _peak_kib()
    run()
    return (_peak_kib() - before) / 1024


def _peak_kib() -> int:
    """Peak memory of this process; Linux only."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def compare_models(options) -> list[dict]:
    """A row for each of our models, shapes, lengths, precisions and kinds of step."""
    rows = []
    for name, (peer, target) in TARGETS.items():
        for shape in options.shapes:
            for length in options.lengths:
                if not options.memory:
                    ours = build_ours(name, shape, length).to(options.device)
                    theirs = build_peer(peer, shape, length).to(options.device)
                for dtype in (torch.float32,) if options.memory else (torch.float32, torch.bfloat16):
                    for train in (True,) if options.memory else (False, True):
                        row = {
                            "model": name,
                            "peer": peer,
                            "shape": shape,
                            "length": length,
                            "precision": str(dtype).removeprefix("torch."),
                            "step": "training" if train else "forward",
                        }
                        if options.memory:
                            settings = (shape, length, train, dtype, options.device)
                            row["memory_mib"] = peak_memory_mib("build_ours", (name, *settings))
                            row["peer_memory_mib"] = peak_memory_mib("build_peer", (peer, *settings))
                        else:
                            batch = max(1, TOKENS[shape] // length)
                            steps = [step(model, train, dtype, batch, length) for model in (ours, theirs)]
                            seconds = interleave(steps, options.repetitions)
                            row["tokens_per_second"] = batch * length / seconds[0]
                            row["ratio"] = seconds[1] / seconds[0]
                            row["target"] = target
                        print_row(row)
                        rows.append(row)
    return rows


def compare_masked_lm(options) -> dict:
    """A training step of masked language modelling with logits at masked positions only, against all positions."""
    batch, length = 16, 128
    peer = transformers.BertForMaskedLM._from_config(
        transformers.BertConfig(**SHAPES["mini"]), attn_implementation="sdpa"
    ).to(options.device)
    ours: FlexiBertForMaskedLM = convert_transformers_model(peer).to(options.device)
    ours.config.sparse_prediction = True
    ids = torch.randint(1000, 30000, (batch, length), device=options.device)
    labels = torch.where(torch.rand(batch, length, device=options.device) < 0.15, ids, -100)
    losses = [model.eval()(ids, labels=labels).loss.item() for model in (ours, peer)]

    def train(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
        model.train()

        def run():
            model(ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if options.device == "cuda":
                torch.cuda.synchronize()

        return run

    seconds = interleave([train(ours), train(peer)], options.repetitions)
    row = {
        "model": "masked positions only",
        "peer": "BertForMaskedLM",
        "shape": "mini",
        "length": length,
        "precision": "float32",
        "step": "masked-LM training",
        "tokens_per_second": batch * length / seconds[0],
        "ratio": seconds[1] / seconds[0],
        "target": 3.0,
        "loss": losses[0],
        "peer_loss": losses[1],
    }
    print_row(row)
    return row


def compare_padding(options) -> list[dict]:
    """Forward passes on rows of 1 to `length` real tokens, half of it on average: unpadded, against the same model on
    the padded batch."""
    rows = []
    for name in ("attention", "fourier", "dynamic convolution", "autobert-zero"):
        for length in options.lengths:
            ours = build_ours(name, "mini", length).to(options.device).eval()
            lengths = torch.linspace(1, length, 32).round().long()[torch.randperm(32)]
            mask = (torch.arange(length) < lengths[:, None]).long().to(options.device)
            ids = torch.randint(1000, 30000, (32, length), device=options.device)

            def run(unpad, model=ours, ids=ids, mask=mask):
                model.config.unpad_inputs = unpad
                with torch.no_grad():
                    model(ids, attention_mask=mask)
                if options.device == "cuda":
                    torch.cuda.synchronize()

            seconds = interleave([partial(run, True), partial(run, False)], options.repetitions)
            row = {
                "model": name,
                "peer": "itself, padded",
                "shape": "mini",
                "length": length,
                "precision": "float32",
                "step": "half-full batch",
                "tokens_per_second": mask.sum().item() / seconds[0],
                "ratio": seconds[1] / seconds[0],
                "target": 1.7,
            }
            print_row(row)
            rows.append(row)
    return rows


def print_row(row: dict) -> None:
    name = (
        f"{row['model']:22} {row['peer']:16} {row['shape']:5} {row['length']:4} {row['precision']:9} {row['step']:18}"
    )
    if "memory_mib" in row:
        figures = f"{row['memory_mib']:6.0f} MiB, peer {row['peer_memory_mib']:6.0f} MiB"
    else:
        figures = (
            f"{row['tokens_per_second']:9,.0f} tokens/s  ratio {row['ratio']:5.2f} (to reach {row['target']:.2f})"
        )
    print(name, figures, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of speed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = compare_models(options)
    if not options.memory:
        rows += [compare_masked_lm(options), *compare_padding(options)]
    if options.output:
        settings = {
            "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        options.output.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
