"""Export to ONNX and run it without PyTorch: export_onnx.py [CHECKPOINT [FOLDER]]

`python -m search export CHECKPOINT` does the first half from the shell.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from search.artifacts.export import export


checkpoint = sys.argv[1] if len(sys.argv) > 1 else "model_cards/flexibert-mini-wikipedia"
folder = Path(sys.argv[2] if len(sys.argv) > 2 else "my_onnx")
for file in export(Path(checkpoint), folder, precisions=("float32",)):
    print(f"{folder / file.file}: {file.bytes / 1e6:.1f} MB, largest difference from PyTorch {file.difference:.1e}")

manifest = json.loads((folder / "export.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.enable_padding()
tokenizer.enable_truncation(manifest["max_length"])
encoded = tokenizer.encode_batch(["A short text.", "A text that is a little longer than the other."])
fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
inputs = {name: np.array([getattr(row, field) for row in encoded]) for name, field in fields.items()}
session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
for name, values in zip(manifest["outputs"], session.run(manifest["outputs"], inputs)):
    print(name, values.shape)
