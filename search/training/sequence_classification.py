"""Classification and regression of texts and pairs of texts: what fine-tuning needs to know about such tasks."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from ..data.tasks import Task, check_columns, check_labels
from ..metrics import compute


@dataclass(frozen=True)
class SequenceClassification:
    """One of GLUE's tasks, or one's own; a task with a single label is regression."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    auto_class = AutoModelForSequenceClassification

    def config(self) -> dict[str, Any]:
        """What the task says about the model's configuration."""
        names = self.task.label_names or tuple(f"LABEL_{index}" for index in range(self.task.num_labels))
        return {
            "num_labels": self.task.num_labels,
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": "regression" if self.task.num_labels == 1 else "single_label_classification",
        }

    def features(self, dataset: Dataset, split: str) -> Dataset:
        """Token ids, labels and lengths of a split.

        Raises:
            UserError: A column is missing or a label is out of range.
        """
        task, place = self.task, f"{self.task.name}, {split}"
        return encode(
            dataset, self.tokenizer, task.text_columns, task.label_column, task.num_labels, self.max_length, place
        )

    def score(self, logits: np.ndarray, features: Dataset, dataset: Dataset) -> dict[str, float]:
        """The task's metrics of logits (N, labels), in the order of the features."""
        predictions = logits[:, 0] if self.task.num_labels == 1 else logits.argmax(-1)
        return compute(self.task.metric, predictions, np.asarray(features["labels"][:]))


@lru_cache(maxsize=32)
def encode(dataset, tokenizer, text_columns, label_column, num_labels, max_length, place) -> Dataset:
    """Checked and tokenised examples, in memory. Kept, because a search fine-tunes many encoders on a few tasks.

    Args:
        place: Where the data set comes from, for messages.
    """
    check_columns(dataset, (*text_columns, label_column), place)
    check_labels(dataset[label_column][:], num_labels, place)
    label_type = float if num_labels == 1 else int

    def tokenize(batch):
        texts = (batch[column] for column in text_columns)
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        encoded["labels"] = [label_type(label) for label in batch[label_column]]
        return encoded

    return dataset.map(tokenize, batched=True, remove_columns=dataset.column_names, keep_in_memory=True)
