"""What a pretraining run resumes from."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedConfig

from ..errors import UserError, one_line
from ..files import check_whole, reported


CHECKPOINT = "checkpoint"


def save_checkpoint(
    accelerator: Accelerator, folder: Path, step: int, losses: list[float], bookmark: dict[str, Any], identity: dict
) -> None:
    """Writes a checkpoint beside the last one and then puts it in its place, so that one good one always exists."""
    aside, place, old = folder / f".{CHECKPOINT}-new", folder / CHECKPOINT, folder / f".{CHECKPOINT}-old"
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        with reported(place, RuntimeError):  # That is what torch.save raises.
            accelerator.save_state(str(aside))
            if accelerator.is_main_process:
                state = {"step": step, "losses": losses, "bookmark": bookmark, **identity}
                (aside / "pretraining.json").write_text(json.dumps(state), encoding="utf-8")
    except UserError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(old, ignore_errors=True)
        if place.exists():
            os.replace(place, old)
        os.replace(aside, place)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_checkpoint(
    accelerator: Accelerator, folder: Path | None, identity: dict
) -> tuple[int, list[float], dict[str, Any]]:
    """Restores the last checkpoint, if any; returns the steps done, their losses, and the bookmark in the text."""
    if folder is None:
        return 0, [], {}
    place, old = folder / CHECKPOINT, folder / f".{CHECKPOINT}-old"
    if accelerator.is_main_process and not place.exists() and old.exists():  # killed between the two renames
        os.replace(old, place)
    accelerator.wait_for_everyone()
    if not place.exists():
        return 0, [], {}
    check_whole(place)
    state = json.loads((place / "pretraining.json").read_text(encoding="utf-8"))
    if not isinstance(state, dict) or not {"step", "losses"} <= state.keys():
        raise UserError(f"{place / 'pretraining.json'} is damaged: it holds no steps")
    changed = [key for key in identity if state.get(key) != identity[key]]
    if changed:
        raise UserError(f"{place} is of a run with another {', '.join(changed)}; use the same or another folder")
    for file in sorted(place.glob("*.bin")):
        if not zipfile.is_zipfile(file):  # as which torch saves
            raise UserError(f"{file} is damaged: its end is missing")
    try:
        accelerator.load_state(str(place))
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
        raise UserError(f"{place} is damaged; without it the training begins anew: {one_line(error)}") from None
    return state["step"], state["losses"], state.get("bookmark", {})


def model_digest(model: torch.nn.Module) -> str:
    """Equal for models that compute the same: parameters of the same names and shapes, and the same configuration."""
    shapes = [(name, *parameter.shape) for name, parameter in model.named_parameters()]
    config = getattr(model, "config", None)  # a super-network has none, but one for every member
    fields = config.to_dict() if isinstance(config, PreTrainedConfig) else {}
    fields = {key: value for key, value in fields.items() if key not in ("transformers_version", "_name_or_path")}
    return hashlib.sha256(repr((shapes, json.dumps(fields, sort_keys=True, default=str))).encode()).hexdigest()[:12]


def text_digest(blocks: np.ndarray) -> str:
    """Equal for the same number of blocks with the same tokens; a thousand of them are looked at."""
    some = np.ascontiguousarray(blocks[:: max(1, len(blocks) // 1000)])
    return hashlib.sha256(repr(blocks.shape).encode() + some.astype(np.int64).tobytes()).hexdigest()[:12]
