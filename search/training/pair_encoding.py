"""Two texts in one sequence, or each alone: what that takes besides the head, see `FlexiBertConfig.pair_encoding`."""

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flexibert import FlexiBertConfig

from ..errors import UserError
from .encoders import model_type
from .task_types import TaskType


def head_fields(
    model_dir: Path | str, head: TaskType, pair_encoding: str | None, pooling: str | None
) -> dict[str, Any]:
    """Fields of the configuration that say what a head sees, of those that were asked for (None is as it is).

    Raises:
        UserError: Two texts are to be encoded alone, but the task has one, or the encoder is not ours.
    """
    fields = {"classifier_pooling": pooling, "pair_encoding": pair_encoding}
    if pair_encoding == "separate":
        if not head.is_pair:
            raise UserError(f"pair encoding: {head.task.name} is no classification or regression of two texts")
        fields["classifier_pooling"] = pooling or "mean"
    if not head.is_pair:
        fields["pair_encoding"] = "joint"  # the checkpoint may come from a task of two texts
    if model_type(model_dir) != FlexiBertConfig.model_type:
        if pair_encoding == "separate":
            raise UserError(f"pair encoding: 'separate' needs a FlexiBERT, {model_dir} is none")
        del fields["pair_encoding"]
    return {name: value for name, value in fields.items() if value is not None}


def encodes_alone(model: PreTrainedModel) -> bool:
    """Whether the head sees each text of a pair as a state of its own."""
    return getattr(model.config, "pair_encoding", "joint") == "separate"


@lru_cache(maxsize=8)
def with_token_types(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy, that tells of each token in which of two texts it stands, also once it is saved.

    Raises:
        UserError: It cannot.
    """
    if "token_type_ids" not in tokenizer.model_input_names:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names
    if 1 not in tokenizer("a", "b")["token_type_ids"]:
        raise UserError("pair encoding: the tokenizer has no token types, by which 'separate' tells two texts apart")
    return tokenizer


def start_head(model: PreTrainedModel, head: TaskType, features: Dataset) -> None:
    """Lets a cosine of 0 to 1 stand for the range of the labels: small steps of the optimiser would not get there."""
    if encodes_alone(model) and model.config.num_labels == 1:
        labels = np.asarray(features["labels"][:])
        classifier: Any = model.classifier
        torch.nn.init.constant_(classifier.weight, float(np.ptp(labels)) or 1.0)
        torch.nn.init.constant_(classifier.bias, float(labels.min()))
