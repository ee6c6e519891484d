"""Encoders that are there: loaded with a task's head, and whether a tokenizer and a length fit them."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

import flexibert  # noqa: F401  # registers the encoders with the Auto classes

from ..data.tokenizer import vocabulary_size
from ..errors import UserError, first_line
from ..files import check_whole
from .task_types import TaskType


def load_model(model_dir: Path | str, head: TaskType, new_head: bool = True, **fields: Any) -> PreTrainedModel:
    """The encoder in float32 with the task's head; a head of another task is replaced.

    Args:
        new_head: Whether the head may be a new one, and the task decides what it is. Else it has to be there.
        fields: Of the configuration, to overrule those of the checkpoint.

    Raises:
        UserError: There is no encoder, its weights are not all there, or its configuration has no such field.
    """
    if Path(model_dir).exists() and not Path(model_dir, "config.json").is_file():
        raise UserError(f"{model_dir} is no folder of a model: it has no config.json")
    check_whole(model_dir)
    try:
        model, loading = head.auto_class.from_pretrained(
            model_dir,
            **(head.config() if new_head else {}),
            **fields,
            dtype=torch.float32,
            ignore_mismatched_sizes=new_head,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{model_dir} cannot be loaded: {first_line(error)}") from error
    new = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    lost = sorted(name for name in new if name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name)
    if lost:
        raise UserError(f"{model_dir} lacks weights of the encoder: {lost[0]} and {len(lost) - 1} more")
    if new and not new_head:
        raise UserError(f"{model_dir} is not fine-tuned: it has no weights for {sorted(new)[0]}")
    model.accepts_loss_kwargs = False  # the loss is that of `FinetuningTrainer`
    return model


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raises UserError where the tokenizer is of another vocabulary, or examples are longer than the positions."""
    # Embeddings may be padded to a multiple of up to 128 rows for speed.
    size = vocabulary_size(tokenizer)
    if not size <= model.config.vocab_size < size + 128:
        raise UserError(f"the tokenizer has {size} tokens, but the model was made for {model.config.vocab_size}")
    positions = getattr(model.config, "max_position_embeddings", max_length)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions -= module.padding_idx + 1  # RoBERTa counts positions from behind its padding index.
    if max_length > positions:
        raise UserError(f"max_length {max_length} is beyond the {positions} positions of the model")


def check_vocabulary(model_dir: Path | str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError where the model came with a tokenizer of other tokens; equal sizes hide that."""
    own = Path(model_dir, "tokenizer.json")
    if own.is_file() and Tokenizer.from_file(str(own)).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"the tokenizer is another one than that of {model_dir}: the same numbers mean other tokens")


def model_type(model_dir: Path | str) -> str:
    """What `config.json` says, "" where that cannot be read, which loading the model will explain."""
    try:
        return PreTrainedConfig.get_config_dict(model_dir)[0].get("model_type", "")
    except (OSError, ValueError):
        return ""
