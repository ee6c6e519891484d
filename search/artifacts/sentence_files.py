"""What makes a checkpoint a sentence encoder for the library sentence-transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from flexibert import FlexiBertConfig

from ..files import check_whole


MODULES, POOLING, MAP = "modules.json", "1_Pooling", "2_Dense"

SENTENCE_FILES = (MODULES, "sentence_bert_config.json", f"{POOLING}/*", f"{MAP}/*")


def read_state_map(folder: Path) -> dict[str, torch.Tensor] | None:
    """`weight` (teacher's width, D) and `bias` of the linear map beside a checkpoint, None where there is none."""
    path = folder / MAP / "model.safetensors"
    if not path.is_file():
        return None
    check_whole(path.parent)
    return {name.removeprefix("linear."): tensor for name, tensor in load_file(path).items()}


def write_sentence_files(
    folder: Path, config: FlexiBertConfig, state_map: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Lets `SentenceTransformer(folder, trust_remote_code=True)` give what was taught.

    That is the mean of a text's last states, and behind it the linear map onto the teacher's states, if one was
    learnt: `weight` (teacher's width, D) and `bias` of `state_map`.
    """
    kinds = {"": "Transformer", POOLING: "Pooling"}
    files: dict[str, Any] = {
        "sentence_bert_config.json": {"max_seq_length": config.max_position_embeddings, "do_lower_case": False},
        f"{POOLING}/config.json": {
            "word_embedding_dimension": config.hidden_size,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }
    if state_map is not None:
        kinds[MAP] = "Dense"
        files[f"{MAP}/config.json"] = {
            "in_features": config.hidden_size,
            "out_features": len(state_map["bias"]),
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
    files[MODULES] = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if state_map is not None:
        tensors = {f"linear.{name}": tensor.contiguous() for name, tensor in state_map.items()}
        save_file(tensors, folder / MAP / "model.safetensors", metadata={"format": "pt"})
