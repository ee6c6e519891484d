"""The configuration of a candidate: its architecture and the fields that all candidates share."""

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from flexibert import FlexiBertConfig
from flexibert.attention_graph import show
from flexibert.spec import Architecture

from ..data.tokenizer import vocabulary_size
from ..errors import UserError


SHARED_FIELDS = {
    name: kind for name, kind in FlexiBertConfig.__annotations__.items() if name not in ("layers", "auto_map")
}
"""Fields of `FlexiBertConfig` that a recipe may set for all candidates, and their types."""


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
    sizes = {"vocab_size": vocabulary_size(tokenizer), "max_position_embeddings": max_length}
    for name, least in sizes.items():
        if fields.get(name, least) < least:
            raise UserError(f"model: {name}: {fields[name]} is not accepted, tokenizer and texts need {least}")
    return {**sizes, **ids, **fields}


def check_fields(fields: Mapping[str, Any], path: str) -> None:
    """Raises UserError where candidates cannot have these fields: unknown ones, wrong types, values out of range."""
    for name in fields:
        if name not in SHARED_FIELDS:
            raise UserError(f"{path}: unknown key {show(name)}, known: {', '.join(SHARED_FIELDS)}")
    try:
        config = FlexiBertConfig(**fields)
    except (StrictDataclassError, ValueError) as error:
        strict = re.search(r"field '(\w+)'", str(error))
        if strict is None:
            raise UserError(f"{path}: {error}") from None
        name = strict[1]  # a wrong type, about which transformers talks Python
        kind = SHARED_FIELDS[name]
        if get_origin(kind) is Literal:
            expected = f"known: {', '.join(map(repr, get_args(kind)))}"
        else:
            expected = f"expected {getattr(kind, '__name__', kind)}"
        raise UserError(f"{path}: {name}: {show(fields[name])} is not accepted, {expected}") from None
    if config.hidden_act not in ACT2FN:
        raise UserError(f"{path}: hidden_act: {show(config.hidden_act)} is not accepted, known: {', '.join(ACT2FN)}")
