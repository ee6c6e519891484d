"""What encoders run on, by name.

Heavy packages are imported when an encoder is made ready, so that the command can read the table without them.
"""

import importlib.util
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..errors import UserError, first_line


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from .files import Batch, Outputs


class Runtime(ABC):
    """An encoder made ready to run.

    Args:
        model: In float32, in evaluation mode.
        threads: Cores that it may use.
        device: That PyTorch runs on; the other runtimes here know the CPU alone.

    Attributes:
        text: What it is, for people, class attribute.
        packages: What must be installed for it, class attribute.

    Raises:
        UserError: The runtime cannot run the model.
    """

    text: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]

    @abstractmethod
    def __init__(self, model: "PreTrainedModel", threads: int, device: str = "cpu"):
        pass

    @abstractmethod
    def __call__(self, batch: "Batch") -> Sequence[np.ndarray]:
        """One forward pass, done when it returns; the outputs of the model."""


class Torch(Runtime):
    text = "PyTorch, operation by operation"
    packages = ("torch",)

    def __init__(self, model: "PreTrainedModel", threads: int, device: str = "cpu"):
        import torch

        from .files import Outputs, output_names

        torch.set_num_threads(threads)
        self.device = device
        self.run = self.prepare(Outputs(model, output_names(model)).eval().to(device))

    def prepare(self, model: "Outputs") -> "Callable[..., Sequence[torch.Tensor]]":
        return model

    def __call__(self, batch: "Batch") -> Sequence[np.ndarray]:
        import torch

        with torch.inference_mode():
            outputs = self.run(**{name: torch.from_numpy(ids).to(self.device) for name, ids in batch.items()})
            return [output.cpu().numpy() for output in outputs]  # which waits for an accelerator


class TorchCompile(Torch):
    text = "torch.compile, once for the shape of the batch"

    def prepare(self, model: "Outputs") -> "Callable[..., Sequence[torch.Tensor]]":
        import torch

        compiled = torch.compile(model, dynamic=False)

        def run(**inputs):
            try:
                return compiled(**inputs)
            except Exception as error:  # of dynamo, inductor or the C++ compiler, which have many
                raise UserError(f"torch.compile cannot run this encoder: {first_line(error)}") from error

        return run


class _File(Runtime):
    """An encoder written to a file and opened by another runtime."""

    precision: ClassVar[str] = "float32"

    def __init__(self, model: "PreTrainedModel", threads: int, device: str = "cpu"):
        from . import files

        write = files.write_openvino if "openvino" in self.packages else files.write_onnx
        with tempfile.TemporaryDirectory() as folder:
            file = write(model, Path(folder), [self.precision])[self.precision]
            self.opened = files.open_file(file, threads)

    def __call__(self, batch: "Batch") -> Sequence[np.ndarray]:
        return self.opened(batch)


class Onnx(_File):
    text = "ONNX Runtime in float32"
    packages = ("onnx", "onnxscript", "onnxruntime")


class OnnxInt8(Onnx):
    text = "ONNX Runtime with weights and activations of its matrix products in int8"
    precision = "int8"


class OpenVino(_File):
    text = "OpenVINO in float32"
    packages = ("onnx", "onnxscript", "openvino")


RUNTIMES: dict[str, type[Runtime]] = {
    "torch": Torch,
    "torch-compile": TorchCompile,
    "onnx": Onnx,
    "onnx-int8": OnnxInt8,
    "openvino": OpenVino,
}
"""Name -> class."""


def check_installed(option: str, packages: Sequence[str]) -> None:
    """UserError where a package is not there; `option` is what asked for it."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{option}: not installed here is {', '.join(missing)}; pip install has it")
