"""Golden outputs: what a checkpoint computed when it was saved, so that a copy can be told from a damaged one."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import flexibert
from flexibert import FlexiBertConfig

from ..errors import UserError, first_line


GOLDEN = "golden.safetensors"

GOLDEN_LENGTH = 16

GOLDEN_TOKEN = 4
"""Of masked language models the golden logits belong to this token of each golden row. One is enough: its logits see
nearly all weights, with tied embeddings the whole vocabulary, and those of all tokens would be megabytes."""

TOLERANCES = {"float32": 1e-4, "float64": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""What golden outputs may differ by on another machine, by the dtype of the weights."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUTS = ("logits", "start_logits", "end_logits")


def golden_tolerance(config: FlexiBertConfig) -> float:
    """What the golden outputs of a checkpoint may differ by on another machine."""
    return TOLERANCES.get(str(config.dtype or "float32").removeprefix("torch."), TOLERANCES["float32"])


def write_golden(model: PreTrainedModel, folder: Path) -> None:
    """Writes the golden outputs of a model, whatever its head, with the tolerance that goes with them.

    The file holds two short rows of token ids, one of them padded, as `input_ids` and `attention_mask` (2, L), with
    `token_type_ids` where texts are told apart by them, and what the model makes of them: `logits`, or `start_logits`
    and `end_logits`. Logits of masked language models, (2, V), are those of one token a row.
    """
    reference: Any = copy.deepcopy(model)
    reference.to("cpu")
    reference.set_attn_implementation("sdpa")
    inputs = golden_inputs(reference.config)
    metadata = {"format": "pt", "tolerance": f"{golden_tolerance(reference.config):g}"}
    save_file({**inputs, **golden_outputs(reference, inputs)}, folder / GOLDEN, metadata=metadata)


def golden_inputs(config: FlexiBertConfig) -> dict[str, torch.Tensor]:
    length = min(GOLDEN_LENGTH, config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (2, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, length - length // 3 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if config.pair_encoding == "separate":
        inputs["token_type_ids"] = (torch.arange(length) >= length // 2).long().expand(2, -1).contiguous()
    return inputs


@torch.no_grad()
def golden_outputs(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On one thread: with several, the order of sums may depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outputs = model.eval()(**inputs)
    finally:
        torch.set_num_threads(threads)
    found = {name: outputs[name].contiguous() for name in OUTPUTS if name in outputs}
    if type(model).__name__.endswith("ForMaskedLM"):
        logits = found["logits"]
        found["logits"] = logits[:, min(GOLDEN_TOKEN, logits.shape[1] // 2)].contiguous()
    return found


def load_whole(folder: Path) -> PreTrainedModel:
    """The model of a checkpoint with the head that it was saved with, in this process and with this package's code.

    Raises:
        UserError: Its class is not known here, weights are missing, are too many or have other shapes, or are not
            finite.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = (config.get("architectures") or ["FlexiBertForMaskedLM"])[0]
    model_class = getattr(flexibert, name, None) if name.startswith("FlexiBert") else None
    if model_class is None:
        raise UserError(f"{folder / 'config.json'}: architectures: {name!r} is not accepted, expected a FlexiBERT")
    try:
        model, loading = model_class.from_pretrained(folder, attn_implementation="sdpa", output_loading_info=True)
    except Exception as error:  # of transformers, safetensors or the system, each with classes of its own
        raise UserError(f"{folder} cannot be loaded: {first_line(error)}") from error
    wrong = {
        "missing": sorted(loading["missing_keys"]),
        "not known": sorted(loading["unexpected_keys"]),
        "of another shape": sorted(key for key, *_ in loading["mismatched_keys"]),
        "not finite": sorted(name for name, tensor in model.named_parameters() if not tensor.isfinite().all()),
    }
    for kind, names in wrong.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{folder}: weights {kind}: {names[0]}{more}")
    return model


def verify(folder: Path, model: PreTrainedModel | None = None) -> float:
    """Computes the golden outputs of a checkpoint again, in this process.

    Args:
        model: What `load_whole` gives, where that is there already.

    Returns:
        The largest absolute difference: 0.0 where outputs are equal to the last bit, as they are with the torch and on
        the kind of processor that saved them; others may round differently, by `stated_tolerance`.

    Raises:
        UserError: The folder has no golden outputs, or others than its model; or as `load_whole`.
    """
    folder = Path(folder)
    if not (folder / GOLDEN).is_file():
        raise UserError(f"{folder / GOLDEN} is missing, so there is nothing to compare with")
    golden = load_file(folder / GOLDEN)
    model = load_whole(folder) if model is None else model
    found = golden_outputs(model, {name: golden[name] for name in INPUTS if name in golden})
    kept = {name: tensor.shape for name, tensor in golden.items() if name not in INPUTS}
    if kept != {name: tensor.shape for name, tensor in found.items()}:
        raise UserError(f"{folder / GOLDEN} holds {', '.join(sorted(kept))} of another shape or name than the model's")
    return max((found[name].double() - golden[name].double()).abs().max().item() for name in found)


def stated_tolerance(folder: Path) -> float:
    """What the golden outputs in a folder may differ by, as their file says; older files leave it to the dtype."""
    with safe_open(folder / GOLDEN, "pt") as file:
        stated = (file.metadata() or {}).get("tolerance")
    return float(stated) if stated else golden_tolerance(FlexiBertConfig.from_pretrained(folder))
