"""The configuration of a candidate: its architecture and the fields that all candidates share."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from flexibert import FlexiBertConfig
from flexibert.spec import Architecture

from ..errors import UserError


def build_config(
    layers: Architecture, tokenizer: PreTrainedTokenizerBase, max_length: int, fields: Mapping[str, Any]
) -> FlexiBertConfig:
    """The configuration of an encoder for a tokenizer and sequences of up to `max_length` tokens.

    Raises:
        UserError: `fields` ask for a smaller vocabulary, or for fewer positions.
    """
    return FlexiBertConfig(**{"layers": layers, **model_fields(tokenizer, max_length, fields)})


def model_fields(tokenizer: PreTrainedTokenizerBase, max_length: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same without layers: fields of `FlexiBertConfig`, those given and those that follow from the tokenizer."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": max_length}
    for name, least in sizes.items():
        if fields.get(name, least) < least:
            raise UserError(f"model: {name}: {fields[name]} is not accepted, tokenizer and texts need {least}")
    return {**sizes, **ids, **fields}
