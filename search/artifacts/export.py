"""Encoders for runtimes without PyTorch: ONNX in float32, float16 and int8, and OpenVINO where that is installed.

A folder holds one file per precision, the tokenizer, and `export.json`, which says what goes in and comes out, where
it came from, and how far each file is from PyTorch. What the files are says `runtimes/files.py`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from ..errors import UserError, first_line
from ..files import check_place, check_whole, replace_folder, reported
from ..runtimes.files import (
    PRECISIONS,
    Batch,
    Exportable,
    Outputs,
    SentenceModel,
    auto_class,
    open_file,
    output_names,
    random_inputs,
    write_onnx,
    write_openvino,
)
from ..runtimes.table import RUNTIMES, check_installed
from . import describe
from .sentence_files import MODULES, read_state_map


MANIFEST = "export.json"
README = resources.files(__package__) / "exported_readme.md"

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
        scores: Metric with its unit last -> value on the validation data of tasks; empty without any.
    """

    file: str
    precision: str
    bytes: int
    difference: float
    relative_error: float
    scores: Mapping[str, float] = field(default_factory=dict)


Score = Callable[[Exportable, PreTrainedTokenizerBase, Callable[[Batch], Sequence[np.ndarray]]], Mapping[str, float]]
"""Takes a model, its tokenizer and something that runs it, and returns scores with their units in their names."""


def export(
    checkpoint: Path,
    folder: Path,
    precisions: Sequence[str] = ("float32", "int8"),
    runtime: str = "onnx",
    encoder: bool = False,
    texts: Sequence[str] = (),
    score: Score | None = None,
) -> list[Exported]:
    """Exports a checkpoint; the folder appears whole or not at all.

    Args:
        checkpoint: Folder or Hub id of a FlexiBERT with whatever head.
        precisions: Some of `PRECISIONS`; OpenVINO has "float32" and "float16".
        encoder: Leaves the head out, so that the output is `last_hidden_state`, (B, L, D).
        texts: To find the ranges of activations with; needed by "int8-static" alone.
        score: Says how good each file is, and the model itself, which only the manifest tells.

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
        scores: Mapping[str, float] = {}
        if score is not None:
            scores = score(model, tokenizer, InPyTorch(model))
            exported = [
                replace(file, scores=score(model, tokenizer, open_file(aside / file.file))) for file in exported
            ]
        tokenizer.save_pretrained(aside)
        manifest = manifest_of(model, runtime, exported, scores)
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        (aside / "README.md").write_text(readme(manifest), encoding="utf-8")
    return exported


class InPyTorch:
    """A model as if it were an opened file."""

    def __init__(self, model: Exportable):
        self.outputs = Outputs(model, output_names(model)).eval()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[np.ndarray]:
        return [output.numpy() for output in self.outputs(**{name: torch.from_numpy(x) for name, x in batch.items()})]


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


def load(checkpoint: Path | str, encoder: bool) -> tuple[Exportable, PreTrainedTokenizerBase]:
    """A checkpoint in float32 with the head that it was saved with, or without any, and its tokenizer.

    One for the library sentence-transformers becomes a `SentenceModel`: its head was never what it is for.
    """
    sentences = (Path(checkpoint) / MODULES).is_file()
    check_whole(checkpoint)
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        architecture = (config.architectures or ["FlexiBertModel"])[0]
        auto = auto_class(architecture)
        if config.model_type != "flexibert" or auto is None:
            raise UserError(f"{checkpoint}: a {architecture} is not accepted, expected a FlexiBERT of texts")
        model = getattr(transformers, "AutoModel" if encoder or sentences else auto).from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="sdpa"
        )
        model = SentenceModel(model, read_state_map(Path(checkpoint))) if sentences else model
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{checkpoint} cannot be loaded: {first_line(error)}") from None
    return model.eval(), tokenizer


def batches(model: Exportable, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int = 8) -> list[Batch]:
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
def _compare(model: Exportable, file: Path, precision: str) -> Exported:
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


def manifest_of(
    model: Exportable, runtime: str, exported: Sequence[Exported], scores: Mapping[str, float]
) -> dict[str, Any]:
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
        "pad_token_id": config.pad_token_id or 0,
        "labels": config.id2label if "logits" in names and "MaskedLM" not in type(model).__name__ else None,
        "scores": dict(scores),
        "files": [vars(file) for file in exported],
    }


def readme(manifest: Mapping[str, Any]) -> str:
    """What stands beside the files for people: what they are, how good, and how to run one."""
    metrics = list(manifest["scores"])
    header = ("file", "precision", "MB", "largest difference", "relative error", *map(describe.label, metrics))
    rows = [
        (
            file["file"],
            file["precision"],
            file["bytes"] / 1e6,
            file["difference"],
            file["relative_error"],
            *(file["scores"][metric] for metric in metrics),
        )
        for file in manifest["files"]
    ]
    template = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(README.read_text(encoding="utf-8"))
    page = template.render(
        name=f"{manifest['model']} {manifest['fingerprint']}",
        title={"onnx": "ONNX Runtime", "openvino": "OpenVINO"}[manifest["runtime"]],
        table=describe.table(header, rows),
        scored=", ".join(f"{describe.label(name)} {value:.2f}" for name, value in manifest["scores"].items()),
        outputs=", ".join(f"`{name}`" for name in manifest["outputs"]),
        runtime=manifest["runtime"],
        file=manifest["files"][0]["file"],
        pad_id=manifest["pad_token_id"],
        max_length=manifest["max_length"],
    )
    return f"{page}\n"
