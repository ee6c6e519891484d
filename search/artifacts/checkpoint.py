"""Checkpoints that open where this package is not installed, and the golden tensors that prove it."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from flexibert import FlexiBertForMaskedLM

from ..errors import UserError
from ..files import check_place, replace_folder, reported
from .model_card import CardFacts, write_card
from .sentence_files import SENTENCE_FILES, write_sentence_files


SOURCES = ("attention_graph.py", "configuration_flexibert.py", "modeling_flexibert.py", "operations.py", "spec.py")
"""The modules that travel with every checkpoint."""

GOLDEN = "golden.safetensors"

GOLDEN_LENGTH = 16

GOLDEN_TOKEN = 4
"""The golden logits belong to this token of each golden row. One is enough: its logits see nearly all weights, with
tied embeddings the whole vocabulary, and those of all tokens would be megabytes."""


def save_checkpoint(
    model: FlexiBertForMaskedLM,
    tokenizer,
    folder: Path,
    card: CardFacts,
    state_map: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes a folder that `from_pretrained` opens, with or without this package: all of it, or nothing.

    Besides weights, configuration, tokenizer and the source files of the model it holds the model card and golden
    logits for `verify`; where there was a teacher, also what sentence-transformers wants. A checkpoint that stood in
    the folder is replaced as a whole.

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
        save_file(_golden(model), aside / GOLDEN, metadata={"format": "pt"})
        if card.teacher:
            write_sentence_files(aside, model.config, state_map)
        write_card(aside, card)


def _limit_length(file: Path, longest: int) -> None:
    """Has a tokenizer cut, where it shall cut, what is too long for the positions of the model."""
    data = json.loads(file.read_text(encoding="utf-8"))
    data["model_max_length"] = min(data.get("model_max_length", longest), longest)
    file.write_text(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def verify(folder: Path) -> float:
    """Computes the golden logits of a checkpoint again, in this process.

    Returns:
        The largest absolute difference: 0.0 where the logits are equal to the last bit, as they are with the torch and
        on the kind of processor that saved them; others may round differently, by `model_card.golden_tolerance`.

    Raises:
        UserError: The folder is no checkpoint, or has no golden logits.
    """
    folder = Path(folder)
    check_checkpoint(folder)
    if not (folder / GOLDEN).is_file():
        raise UserError(f"{folder / GOLDEN} is missing, so there is nothing to compare with")
    golden = load_file(folder / GOLDEN)
    model = FlexiBertForMaskedLM.from_pretrained(folder, attn_implementation="sdpa")
    logits = _golden_logits(model, golden["input_ids"], golden["attention_mask"])
    return (logits.double() - golden["logits"].double()).abs().max().item()


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


def _golden(model: FlexiBertForMaskedLM) -> dict[str, torch.Tensor]:
    """Two short rows, one of them padded: input_ids and attention_mask (2, L), logits (2, V) of one token each."""
    length = min(GOLDEN_LENGTH, model.config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(model.config.vocab_size, (2, length), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, length - length // 3 :] = 0
    reference: Any = copy.deepcopy(model)
    reference.to("cpu")
    reference.set_attn_implementation("sdpa")
    logits = _golden_logits(reference, input_ids, attention_mask)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "logits": logits}


@torch.no_grad()
def _golden_logits(model: FlexiBertForMaskedLM, input_ids, attention_mask) -> torch.Tensor:
    """(2, V), on one thread: with several, the order of sums may depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        logits = model.eval()(input_ids, attention_mask=attention_mask).logits
    finally:
        torch.set_num_threads(threads)
    return logits[:, min(GOLDEN_TOKEN, logits.shape[1] // 2)].contiguous()
