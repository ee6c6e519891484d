"""Checkpoints that open where this package is not installed."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from flexibert import FlexiBertForMaskedLM

from ..errors import UserError
from ..files import check_place, check_whole, replace_folder, reported
from .golden import write_golden
from .model_card import CardFacts, write_card
from .sentence_files import SENTENCE_FILES, write_sentence_files


SOURCES = ("attention_graph.py", "configuration_flexibert.py", "modeling_flexibert.py", "operations.py", "spec.py")
"""The modules that travel with every checkpoint."""


def save_checkpoint(
    model: FlexiBertForMaskedLM,
    tokenizer,
    folder: Path,
    card: CardFacts,
    state_map: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes a folder that `from_pretrained` opens, with or without this package: all of it, or nothing.

    Besides weights, configuration, tokenizer and the source files of the model it holds the model card and golden
    outputs to check a copy with; where there was a teacher, also what sentence-transformers wants. A checkpoint that
    stood in the folder is replaced as a whole.

    Args:
        state_map: `weight` and `bias` of the linear map from pooled states to the teacher's, if one was learnt.

    Raises:
        UserError: The folder holds something else than a checkpoint, or cannot be written.
    """
    folder = Path(folder)
    check_place(folder, "config.json", "checkpoint")
    with reported(folder), replace_folder(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        _limit_length(aside / "tokenizer_config.json", model.config.max_position_embeddings)
        write_golden(model, aside)
        if card.teacher:
            write_sentence_files(aside, model.config, state_map)
        write_card(aside, card)


def _limit_length(file: Path, longest: int) -> None:
    """Has a tokenizer cut, where it shall cut, what is too long for the positions of the model."""
    data = json.loads(file.read_text(encoding="utf-8"))
    data["model_max_length"] = min(data.get("model_max_length", longest), longest)
    file.write_text(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def check_checkpoint(folder: Path) -> list[str]:
    """Paths of what belongs to the checkpoint, relative to its folder; UserError where it is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    wanted = ("config.json", "README.md", "tokenizer_config.json", *SOURCES)
    missing = [name for name in wanted if not (folder / name).is_file()]
    if not any(folder.glob("model*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        raise UserError(f"{folder} is no checkpoint of this package: {', '.join(missing)} missing")
    check_whole(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = config["model_type"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / 'config.json'} is not the configuration of a model") from None
    if model_type != "flexibert":
        raise UserError(f"{folder / 'config.json'}: model_type {model_type!r} is not accepted, expected 'flexibert'")
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    files += [path for pattern in (".eval_results/*.yaml", *SENTENCE_FILES) for path in folder.glob(pattern)]
    return sorted(path.relative_to(folder).as_posix() for path in files)
