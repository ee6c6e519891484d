"""Run an exported folder without PyTorch: run_exported.py FOLDER TEXT...

FOLDER is what `python -m search export` wrote. Needs onnxruntime, tokenizers and numpy alone.
"""

import json
import sys
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer


folder, *texts = sys.argv[1:]
manifest = json.loads(Path(folder, "export.json").read_text(encoding="utf-8"))

tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.enable_padding(pad_id=manifest["pad_token_id"])
encoded = tokenizer.encode_batch(texts)
inputs = {
    "input_ids": [text.ids for text in encoded],
    "attention_mask": [text.attention_mask for text in encoded],
    "token_type_ids": [text.type_ids for text in encoded],
}
session = InferenceSession(f"{folder}/{manifest['files'][-1]['file']}")
outputs = session.run(None, {name: np.array(rows) for name, rows in inputs.items()})

for name, values in zip(manifest["outputs"], outputs):
    print(name, values.shape)
    if manifest["labels"] and values.ndim == 2:
        for text, row in zip(texts, values):
            print(f"  {text}: {dict(zip(manifest['labels'].values(), row.round(3).tolist()))}")
