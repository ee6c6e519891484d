"""Encoders for runtimes without PyTorch: ONNX in float32, float16 and int8, and OpenVINO where that is installed.

A folder holds one file per precision, the tokenizer, and `export.json`, which says what goes in and comes out, where
it came from, and how far each file is from PyTorch. Files take any batch size, any length up to the model's, and any
padding. `int8` has its weights quantised beforehand and its activations while it runs (ONNX Runtime's dynamic
quantisation); `int8-static` has the ranges of its activations fixed on texts that are given (static quantisation,
quantise-dequantise format), which runtimes with int8 convolutions and products profit from.
"""

import importlib.util
import json
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from flexibert.configuration_flexibert import AUTO_MAP

from ..errors import UserError
from ..files import check_place, replace_folder, reported


MANIFEST = "export.json"
PRECISIONS = ("float32", "float16", "int8", "int8-static")
RUNTIMES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
"""What is exported for -> the packages that it needs."""

OUTPUTS = {
    "AutoModel": ["last_hidden_state"],
    "AutoModelForMaskedLM": ["logits"],
    "AutoModelForSequenceClassification": ["logits"],
    "AutoModelForTokenClassification": ["logits"],
    "AutoModelForQuestionAnswering": ["start_logits", "end_logits"],
}
"""Auto class -> what its models give, in this order. Models for multiple choice take no single texts."""
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
    names = output_names(model)
    write = _write_openvino if runtime == "openvino" else _write_onnx
    with reported(Path(folder)), replace_folder(Path(folder)) as aside:
        files = write(model, tokenizer, names, aside, precisions, texts)
        exported = [_compare(model, names, aside / file, precision) for precision, file in files.items()]
        tokenizer.save_pretrained(aside)
        manifest = manifest_of(model, names, runtime, exported)
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return exported


def check_request(precisions: Sequence[str], runtime: str, texts: Sequence[str] = ()) -> None:
    """UserError for what cannot be exported here."""
    if runtime not in RUNTIMES:
        raise UserError(f"--runtime: {runtime!r} is not accepted, known: {', '.join(RUNTIMES)}")
    missing = [name for name in RUNTIMES[runtime] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--runtime {runtime}: not installed here is {', '.join(missing)}; pip install has it")
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


def output_names(model: PreTrainedModel) -> list[str]:
    """Names of the outputs, in the order in which the model gives them."""
    return OUTPUTS[auto_class(type(model).__name__) or "AutoModel"]


def auto_class(architecture: str) -> str | None:
    """The Auto class of a model class that takes single texts; None for others."""
    return next((auto for auto in OUTPUTS if AUTO_MAP[auto].endswith(f".{architecture}")), None)


def random_inputs(model: PreTrainedModel, size: int, length: int) -> dict[str, torch.Tensor]:
    """(B, L) random token ids, token types and mask; the last quarter of the first row is padding."""
    generator = torch.Generator().manual_seed(size * 1000 + length)
    ids = torch.randint(
        min(5, model.config.vocab_size - 1), model.config.vocab_size, (size, length), generator=generator
    )
    mask = torch.ones_like(ids)
    if length >= 4:
        mask[0, -(length // 4) :] = 0
    types = torch.zeros_like(ids)
    types[:, length // 2 :] = model.config.type_vocab_size > 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


class _Outputs(torch.nn.Module):
    """A model whose forward pass takes and gives plain tensors."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, input_ids, attention_mask, token_type_ids):
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return tuple(outputs[name] for name in self.names)


def _write_onnx(model, tokenizer, names, folder: Path, precisions, texts) -> dict[str, str]:
    import onnx

    whole = folder / "model.onnx"
    _trace(model, names).save(str(whole))
    files = {}
    for precision in precisions:
        file = "model.onnx" if precision == "float32" else f"model_{precision.replace('-', '_')}.onnx"
        if precision == "float16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of numbers that float16 rounds to 0
                onnx.save(convert_float_to_float16(onnx.load(whole), keep_io_types=True), folder / file)
        elif precision.startswith("int8"):
            _quantize(model, tokenizer, whole, folder / file, texts if precision == "int8-static" else ())
        files[precision] = file
    if "float32" not in precisions:
        whole.unlink()
    return files


def _trace(model: PreTrainedModel, names: Sequence[str]):
    length = model.config.max_position_embeddings
    axes = {0: torch.export.Dim("batch", max=65536), 1: torch.export.Dim("length", min=2, max=length)}
    inputs = random_inputs(model, 2, min(16, length))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                _Outputs(model, names),
                kwargs=inputs,
                dynamo=True,
                dynamic_shapes=dict.fromkeys(inputs, axes),
                input_names=list(inputs),
                output_names=list(names),
                verbose=False,
            )
    except Exception as error:  # of torch.export or onnxscript, which have many
        raise UserError(f"ONNX cannot express this encoder: {str(error).strip().splitlines()[0]}") from error


def _quantize(model, tokenizer, source: Path, target: Path, texts: Sequence[str]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch, "prepared.onnx")
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        if not texts:
            quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, per_channel=True)
            return

        class Reader(CalibrationDataReader):
            def __init__(self):
                self.batches = _batches(model, tokenizer, texts)

            def get_next(self):
                return next(self.batches, None)

        # Signed on both sides and per channel, as the products of vector instructions take them.
        quantize_static(
            prepared, target, Reader(), per_channel=True, op_types_to_quantize=["MatMul", "Gemm", "Gather"]
        )


def _batches(model, tokenizer, texts: Iterable[str], size: int = 8) -> Iterable[dict[str, np.ndarray]]:
    """Texts as inputs of a session, `size` at a time."""
    texts = list(texts)
    for start in range(0, len(texts), size):
        encoded = tokenizer(
            texts[start : start + size],
            padding=True,
            truncation=True,
            max_length=model.config.max_position_embeddings,
            return_tensors="np",
            return_token_type_ids=True,
        )
        yield {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}


def _write_openvino(model, tokenizer, names, folder: Path, precisions, texts) -> dict[str, str]:
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        _trace(model, names).save(str(Path(scratch, "model.onnx")))
        converted = openvino.convert_model(Path(scratch, "model.onnx"))
    files = {}
    for precision in precisions:
        file = "openvino_model.xml" if precision == "float32" else f"openvino_model_{precision}.xml"
        openvino.save_model(converted, folder / file, compress_to_fp16=precision == "float16")
        files[precision] = file
    return files


def run(file: Path, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of an exported file, in the order of `output_names`. For many calls open a session of your own."""
    if file.suffix == ".xml":
        import openvino

        compiled = openvino.Core().compile_model(file, "CPU")
        outputs = compiled(dict(inputs))
        return [np.asarray(outputs[port]) for port in compiled.outputs]
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, dict(inputs))


@torch.no_grad()
def _compare(model: PreTrainedModel, names: Sequence[str], file: Path, precision: str) -> Exported:
    largest, squares, scale = 0.0, 0.0, 0.0
    for size, length in SAMPLE:
        inputs = random_inputs(model, size, min(length or 2**31, model.config.max_position_embeddings))
        expected = _Outputs(model, names)(**inputs)
        try:
            actual = run(file, {name: tensor.numpy() for name, tensor in inputs.items()})
        except Exception as error:  # of ONNX Runtime or OpenVINO, each with classes of its own
            raise UserError(f"{precision}: the runtime cannot run it: {str(error).strip().splitlines()[0]}") from error
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
    model: PreTrainedModel, names: Sequence[str], runtime: str, exported: Sequence[Exported]
) -> dict[str, Any]:
    """The manifest: plain JSON."""
    config = model.config
    return {
        "model": type(model).__name__,
        "fingerprint": config.fingerprint,
        "runtime": runtime,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", *RUNTIMES[runtime])},
        "inputs": {name: ["batch", "length"] for name in ("input_ids", "attention_mask", "token_type_ids")},
        "outputs": list(names),
        "max_length": config.max_position_embeddings,
        "labels": config.id2label if "logits" in names and "MaskedLM" not in type(model).__name__ else None,
        "files": [vars(file) for file in exported],
    }
