"""What makes a checkpoint a sentence encoder for the library sentence-transformers."""

import json
from pathlib import Path

from flexibert import FlexiBertConfig


POOLING = "1_Pooling"


def write_sentence_files(folder: Path, config: FlexiBertConfig) -> None:
    """Lets `SentenceTransformer(folder, trust_remote_code=True)` give the mean of the last states of a text."""
    modules = {"": "sentence_transformers.models.Transformer", POOLING: "sentence_transformers.models.Pooling"}
    files = {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": kind}
            for index, (path, kind) in enumerate(modules.items())
        ],
        "sentence_bert_config.json": {"max_seq_length": config.max_position_embeddings, "do_lower_case": False},
        f"{POOLING}/config.json": {
            "word_embedding_dimension": config.hidden_size,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
