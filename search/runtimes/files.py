"""Encoders as files for runtimes without PyTorch: ONNX and OpenVINO, and how such files are run.

Files take any batch size, any length up to the model's, and any padding. `int8` has its weights quantised beforehand
and its activations while it runs (ONNX Runtime's dynamic quantisation); `int8-static` has the ranges of activations
fixed on texts that are given (static quantisation, quantise-dequantise format), which runtimes with int8 convolutions
and products profit from.
"""

import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from flexibert.configuration_flexibert import AUTO_MAP

from ..errors import UserError, first_line


PRECISIONS = ("float32", "float16", "int8", "int8-static")

OUTPUTS = {
    "AutoModel": ["last_hidden_state"],
    "AutoModelForMaskedLM": ["logits"],
    "AutoModelForSequenceClassification": ["logits"],
    "AutoModelForTokenClassification": ["logits"],
    "AutoModelForQuestionAnswering": ["start_logits", "end_logits"],
}
"""Auto class -> what its models give, in this order. Models for multiple choice take no single texts."""

SENTENCE_EMBEDDING = "sentence_embedding"

Batch = Mapping[str, np.ndarray]
"""`input_ids`, `attention_mask` and `token_type_ids`, (B, L) of int64 each."""


class SentenceModel(torch.nn.Module):
    """An encoder whose mean over the tokens of a text, through a linear map if there is one, stands for the text.

    Args:
        encoder: Gives last hidden states (B, L, D).
        state_map: Of the mean: weight (E, D) and bias (E,).
    """

    def __init__(self, encoder: PreTrainedModel, state_map: Mapping[str, torch.Tensor] | None = None):
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        self.map: torch.nn.Linear | None = None
        if state_map is not None:
            self.map = torch.nn.Linear(state_map["weight"].shape[1], state_map["weight"].shape[0])
            self.map.load_state_dict({name: tensor.float() for name, tensor in state_map.items()})

    def forward(self, input_ids, attention_mask, token_type_ids) -> dict[str, torch.Tensor]:
        """`last_hidden_state` (B, L, D) and `sentence_embedding` (B, D or E)."""
        states = self.encoder(input_ids, attention_mask, token_type_ids).last_hidden_state
        mask = attention_mask[..., None].to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        return {"last_hidden_state": states, SENTENCE_EMBEDDING: mean if self.map is None else self.map(mean)}


Exportable = PreTrainedModel | SentenceModel


def output_names(model: Exportable) -> list[str]:
    """Names of the outputs, in the order in which the model gives them."""
    if isinstance(model, SentenceModel):
        return ["last_hidden_state", SENTENCE_EMBEDDING]
    return OUTPUTS[auto_class(type(model).__name__) or "AutoModel"]


def auto_class(architecture: str) -> str | None:
    """The Auto class of a FlexiBERT class that takes single texts; None for others."""
    return next((auto for auto in OUTPUTS if AUTO_MAP[auto].endswith(f".{architecture}")), None)


def random_inputs(model: Exportable, size: int, length: int) -> dict[str, torch.Tensor]:
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


class Outputs(torch.nn.Module):
    """A model whose forward pass takes and gives plain tensors."""

    def __init__(self, model: Exportable, names: Sequence[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, input_ids, attention_mask, token_type_ids):
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return tuple(outputs[name] for name in self.names)


# --- writing ------------------------------------------------------------------------------------------------------


def write_onnx(
    model: Exportable, folder: Path, precisions: Sequence[str], calibration: Sequence[Batch] = ()
) -> dict[str, Path]:
    """Writes a model as ONNX: precision -> file, in the order of `precisions`.

    Args:
        calibration: Batches that fix the ranges of activations; needed by "int8-static" alone.

    Raises:
        UserError: ONNX cannot express the model.
    """
    import onnx

    whole = folder / "model.onnx"
    _trace(model).save(str(whole))
    files = {}
    for precision in precisions:
        file = whole if precision == "float32" else folder / f"model_{precision.replace('-', '_')}.onnx"
        if precision == "float16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of numbers that float16 rounds to 0
                onnx.save(convert_float_to_float16(onnx.load(whole), keep_io_types=True), file)
        elif precision.startswith("int8"):
            _quantize(whole, file, calibration if precision == "int8-static" else ())
        files[precision] = file
    if "float32" not in precisions:
        for part in folder.glob("model.onnx*"):
            part.unlink()
    return files


def write_openvino(
    model: Exportable, folder: Path, precisions: Sequence[str], calibration: Sequence[Batch] = ()
) -> dict[str, Path]:
    """The same for OpenVINO, which has "float32" and "float16"."""
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        _trace(model).save(str(Path(scratch, "model.onnx")))
        try:
            converted = openvino.convert_model(Path(scratch, "model.onnx"))
        except Exception as error:  # of OpenVINO's frontends
            raise UserError(f"OpenVINO cannot read this encoder: {first_line(error)}") from error
    files = {}
    for precision in precisions:
        file = folder / ("openvino_model.xml" if precision == "float32" else f"openvino_model_{precision}.xml")
        openvino.save_model(converted, file, compress_to_fp16=precision == "float16")
        files[precision] = file
    return files


def _trace(model: Exportable):
    names, length = output_names(model), model.config.max_position_embeddings
    axes = {0: torch.export.Dim("batch", max=65536), 1: torch.export.Dim("length", min=2, max=length)}
    inputs = random_inputs(model, 2, min(16, length))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                Outputs(model, names),
                kwargs=inputs,
                dynamo=True,
                dynamic_shapes=dict.fromkeys(inputs, axes),
                input_names=list(inputs),
                output_names=list(names),
                verbose=False,
            )
    except Exception as error:  # of torch.export or onnxscript, which have many
        raise UserError(f"ONNX cannot express this encoder: {first_line(error)}") from error


def _quantize(source: Path, target: Path, calibration: Iterable[Batch]) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch, "prepared.onnx")
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared)
        # ONNX Runtime (1.31) transposes weights of linear layers without telling of their new shape.
        weights = {weight.name for weight in graph.graph.initializer}
        shapes = [shape for shape in graph.graph.value_info if shape.name not in weights]
        del graph.graph.value_info[:]
        graph.graph.value_info.extend(shapes)
        onnx.save(graph, prepared)
        if not calibration:
            quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, per_channel=True)
            return

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.batches: Iterator[Batch] = iter(calibration)

            def get_next(self) -> Batch | None:
                return next(self.batches, None)

        # Signed on both sides and per channel, as the products of vector instructions take them.
        quantize_static(
            prepared, target, Reader(), per_channel=True, op_types_to_quantize=["MatMul", "Gemm", "Gather"]
        )


# --- running ------------------------------------------------------------------------------------------------------


class OnnxFile:
    """A file in ONNX Runtime, on so many cores (all where that is None).

    Raises:
        UserError: The runtime cannot run it.
    """

    def __init__(self, file: Path, threads: int | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong with a file comes as an exception too
        options.inter_op_num_threads, options.intra_op_num_threads = 1, threads or 0
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of ONNX Runtime, which has a dozen classes
            raise UserError(f"ONNX Runtime cannot run this encoder: {first_line(error)}") from error

    def __call__(self, batch: Batch) -> list[np.ndarray]:
        """Outputs in the order of `output_names`."""
        outputs: list[np.ndarray] = self.session.run(None, dict(batch))
        return outputs


class OpenVinoFile:
    """The same in OpenVINO."""

    def __init__(self, file: Path, threads: int | None = None):
        import openvino

        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self.compiled = openvino.Core().compile_model(file, "CPU", settings)
        except Exception as error:  # of OpenVINO
            raise UserError(f"OpenVINO cannot run this encoder: {first_line(error)}") from error

    def __call__(self, batch: Batch) -> list[np.ndarray]:
        outputs = self.compiled(dict(batch))
        return [np.asarray(outputs[port]) for port in self.compiled.outputs]


def open_file(file: Path, threads: int | None = None) -> OnnxFile | OpenVinoFile:
    """An exported file, ready to run."""
    return (OpenVinoFile if file.suffix == ".xml" else OnnxFile)(file, threads)
