"""Encoders for runtimes without PyTorch: ONNX in float32, float16 and int8, and OpenVINO where that is installed.

A folder holds one file per precision, the tokenizer, and `export.json`, which says what goes in and comes out, where
it came from, and how far each file is from PyTorch. What the files are says `runtimes/files.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError
from ..files import check_place, replace_folder, reported
from ..runtimes.files import (
    PRECISIONS,
    Batch,
    Outputs,
    auto_class,
    first_line,
    open_file,
    output_names,
    random_inputs,
    write_onnx,
    write_openvino,
)
from ..runtimes.table import RUNTIMES, check_installed


MANIFEST = "export.json"

FORMATS = {"onnx": write_onnx, "openvino": write_openvino}
"""What is exported for, one of `RUNTIMES` too -> what writes it."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")

SAMPLE = ((1, 8), (2, 16), (4, None))
"""Batch sizes and lengths on which files are compared with PyTorch, None being the longest."""


@dataclass(frozen=True)
class Exported:
    """One file of an export.

    Attributes:
        file: Its name.
        precision: One of `PRECISIONS`.
        bytes: Its size.
        difference: Largest absolute difference of an output from PyTorch's in float32, on random tokens with padding.
        relative_error: Norm of that difference as a share of the norm of PyTorch's outputs.
    """

    file: str
    precision: str
    bytes: int
    difference: float
    relative_error: float


def export(
    checkpoint: Path,
    folder: Path,
    precisions: Sequence[str] = ("float32", "int8"),
    runtime: str = "onnx",
    encoder: bool = False,
    texts: Sequence[str] = (),
) -> list[Exported]:
    """Exports a checkpoint; the folder appears whole or not at all.

    Args:
        checkpoint: Folder or Hub id of a FlexiBERT with whatever head.
        precisions: Some of `PRECISIONS`; OpenVINO has "float32" and "float16".
        encoder: Leaves the head out, so that the output is `last_hidden_state`, (B, L, D).
        texts: To find the ranges of activations with; needed by "int8-static" alone.

    Returns:
        One entry a file, in the order of `precisions`.

    Raises:
        UserError: The runtime is not installed, it or a precision is not known, the checkpoint is none, the runtime
            cannot run one of its operations, or the folder cannot be written.
    """
    check_request(precisions, runtime, texts)
    check_place(Path(folder), MANIFEST, "export")
    model, tokenizer = load(checkpoint, encoder)
    with reported(Path(folder)), replace_folder(Path(folder)) as aside:
        files = FORMATS[runtime](model, aside, precisions, batches(model, tokenizer, texts))
        exported = [_compare(model, file, precision) for precision, file in files.items()]
        tokenizer.save_pretrained(aside)
        manifest = manifest_of(model, runtime, exported)
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return exported


def check_request(precisions: Sequence[str], runtime: str, texts: Sequence[str] = ()) -> None:
    """UserError for what cannot be exported here."""
    if runtime not in FORMATS:
        raise UserError(f"--runtime: {runtime!r} is not accepted, known: {', '.join(FORMATS)}")
    check_installed(f"--runtime {runtime}", RUNTIMES[runtime].packages)
    known = PRECISIONS if runtime == "onnx" else PRECISIONS[:2]
    for precision in precisions:
        if precision not in known:
            raise UserError(f"--precision: {precision!r} is not accepted for {runtime}, known: {', '.join(known)}")
    if not precisions or len(set(precisions)) != len(precisions):
        raise UserError(f"--precision: expected different ones of {', '.join(known)}")
    if "int8-static" in precisions and not texts:
        raise UserError("--precision int8-static: give the texts that fix the ranges of activations with --corpus")


def load(checkpoint: Path | str, encoder: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint in float32 with the head that it was saved with, or without any, and its tokenizer."""
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        architecture = (config.architectures or ["FlexiBertModel"])[0]
        auto = auto_class(architecture)
        if config.model_type != "flexibert" or auto is None:
            raise UserError(f"{checkpoint}: a {architecture} is not accepted, expected a FlexiBERT of texts")
        model = getattr(transformers, "AutoModel" if encoder else auto).from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="sdpa"
        )
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    return model.eval(), tokenizer


def batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int = 8
) -> list[Batch]:
    """Texts as inputs of a session, `size` at a time."""
    found: list[Batch] = []
    for start in range(0, len(texts), size):
        encoded = tokenizer(
            list(texts[start : start + size]),
            padding=True,
            truncation=True,
            max_length=model.config.max_position_embeddings,
            return_tensors="np",
            return_token_type_ids=True,
        )
        found.append({name: encoded[name].astype(np.int64) for name in INPUTS})
    return found


@torch.no_grad()
def _compare(model: PreTrainedModel, file: Path, precision: str) -> Exported:
    largest, squares, scale = 0.0, 0.0, 0.0
    opened = open_file(file)
    for size, length in SAMPLE:
        inputs = random_inputs(model, size, min(length or 2**31, model.config.max_position_embeddings))
        expected = Outputs(model, output_names(model))(**inputs)
        try:
            actual = opened({name: tensor.numpy() for name, tensor in inputs.items()})
        except Exception as error:  # of ONNX Runtime or OpenVINO, each with classes of its own
            raise UserError(f"{precision}: the runtime cannot run it: {first_line(error)}") from error
        for ours, theirs in zip(expected, actual):
            # What stands at padding is nobody's business.
            mask = inputs["attention_mask"].bool() if ours.shape[:2] == inputs["input_ids"].shape else slice(None)
            difference = (torch.from_numpy(theirs.astype(np.float32)) - ours)[mask].double()
            largest = max(largest, difference.abs().max().item())
            squares += difference.square().sum().item()
            scale += ours[mask].double().square().sum().item()
    size = sum(part.stat().st_size for part in file.parent.glob(f"{file.stem}.*"))
    return Exported(file.name, precision, size, largest, (squares / scale) ** 0.5 if scale else 0.0)


def manifest_of(model: PreTrainedModel, runtime: str, exported: Sequence[Exported]) -> dict[str, Any]:
    """The manifest: plain JSON."""
    config, names = model.config, output_names(model)
    return {
        "model": type(model).__name__,
        "fingerprint": config.fingerprint,
        "runtime": runtime,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", *RUNTIMES[runtime].packages)},
        "inputs": {name: ["batch", "length"] for name in INPUTS},
        "outputs": list(names),
        "max_length": config.max_position_embeddings,
        "labels": config.id2label if "logits" in names and "MaskedLM" not in type(model).__name__ else None,
        "files": [vars(file) for file in exported],
    }
