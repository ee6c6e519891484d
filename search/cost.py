"""What an encoder costs: parameters, operations, latency."""

import statistics
import time
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, FlexiBertModel
from flexibert.modeling_flexibert import FlexiBertEmbeddings, FlexiBertLayer
from flexibert.spec import LayerSpec


def count_parameters(config: FlexiBertConfig) -> int:
    """Parameters of the encoder with its embeddings, without pooler and heads; builds no weights.

    Layers that were counted before are looked up, so that a sampler may ask about hundreds of architectures.
    """
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in FlexiBertEmbeddings(config).parameters())
    width, resize = config.embedding_size, config.project_embeddings
    for spec in config.layer_specs:
        count += _layer_parameters(spec, width, resize, config.position_embedding_type, config.max_position_embeddings)
        width, resize = spec.hidden_size, False
    return count


@lru_cache(maxsize=10_000)
def _layer_parameters(spec: LayerSpec, input_size: int, resize: bool, positions: str, max_positions: int) -> int:
    config = FlexiBertConfig(layers=[spec], position_embedding_type=positions, max_position_embeddings=max_positions)
    with torch.device("meta"):
        layer = FlexiBertLayer(config, spec, input_size, always_resize=resize)
    return sum(parameter.numel() for parameter in layer.parameters())


def forward_flops(config: FlexiBertConfig, sequence_length: int, predictions: int) -> int:
    """Floating point operations (two per multiply-add) of a masked language modelling forward pass on one sequence."""
    with torch.device("meta"):
        model = FlexiBertForMaskedLM(config).eval()
        ids = torch.zeros(1, sequence_length, dtype=torch.long)
        positions = torch.arange(predictions)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, prediction_positions=positions)
    return counter.get_total_flops()


def measure_latency_ms(
    config: FlexiBertConfig,
    sequence_length: int = 128,
    batch_size: int = 1,
    repetitions: int = 20,
    device: torch.device | str = "cpu",
) -> float:
    """Median milliseconds of an encoder forward pass on this machine, after warm-up, with random weights."""
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


def peak_flops_per_second(device: torch.device | str, dtype: torch.dtype) -> float:
    """Floating point operations per second of a large matrix product, measured: what utilisation is a share of.

    Data sheets promise more, so shares of this are larger than shares of theirs.
    """
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
