"""Classification and regression of texts and pairs of texts: what fine-tuning needs to know about such tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, PreTrainedTokenizerBase

from ..data.tasks import Task, check_columns, check_labels
from ..errors import UserError
from ..metrics import compute


@dataclass(frozen=True)
class SequenceClassification:
    """What tasks with labels of a whole text, or of a pair of texts, have in common."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    auto_class = AutoModelForSequenceClassification
    hub_task = "text-classification"
    collator = DataCollatorWithPadding
    targets = ("labels",)
    has_classes = True
    learns_softly = True
    problem_type: ClassVar[str]

    @property
    def is_pair(self) -> bool:
        return len(self.task.text_columns) == 2

    def config(self) -> dict[str, Any]:
        """What the task says about the model's configuration."""
        names = self.task.label_names or tuple(f"LABEL_{index}" for index in range(self.task.num_labels))
        return {
            "num_labels": self.task.num_labels,
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": self.problem_type,
        }

    def features(self, dataset: Dataset, split: str) -> Dataset:
        """Token ids, labels and lengths of a split.

        Raises:
            UserError: A column is missing or a label is not accepted.
        """
        place = f"{self.task.name}, {split}"
        check_columns(dataset, (*self.task.text_columns, self.task.label_column), place)
        self.check(dataset[self.task.label_column][:], place)
        encoded = encode(dataset, self.tokenizer, self.task.text_columns, self.max_length)
        return encoded.add_column("labels", self.labels(dataset[self.task.label_column][:]))

    def check(self, labels: list, place: str) -> None:
        """Raises UserError at the first label that is not accepted; `place` is where they come from."""
        check_labels(labels, self.task.num_labels, place)

    def labels(self, labels: list) -> list:
        """As the model takes them."""
        return labels

    def count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Over how many items of a batch its loss is a mean: texts."""
        return len(batch["labels"])


class Classification(SequenceClassification):
    """One class a text; with probabilities by softmax."""

    problem_type = "single_label_classification"

    def class_weights(self, features: Dataset) -> torch.Tensor:
        """(C,): the mean number of training examples a class over its own, 1 for a class that has none."""
        return balanced(np.asarray(features["labels"][:]), self.task.num_labels)

    def loss(self, outputs, batch: Mapping[str, torch.Tensor], weights=None, smoothing: float = 0.0) -> torch.Tensor:
        """Sum over the texts of the cross-entropy in nats, each times its class's weight."""
        return cross_entropy(outputs.logits, batch["labels"], weights, smoothing)

    def soft_loss(self, outputs, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Sum over the texts of T^2 KL(softmax(teacher / T) || softmax(student / T)) (arXiv 1503.02531, Section 2)."""
        student, teacher = (
            functional.log_softmax(part.float() / temperature, -1) for part in (outputs.logits, logits)
        )
        return temperature**2 * functional.kl_div(student, teacher, reduction="sum", log_target=True)

    def score(self, logits: np.ndarray, features: Dataset, dataset: Dataset) -> dict[str, float]:
        """The task's metrics of logits (N, C), in the order of the features."""
        return compute(self.task.metric, logits.argmax(-1), np.asarray(features["labels"][:]))


class Regression(SequenceClassification):
    """A number a text."""

    problem_type = "regression"
    has_classes = False

    def labels(self, labels: list) -> list[float]:
        return [float(label) for label in labels]

    def loss(self, outputs, batch: Mapping[str, torch.Tensor], weights=None, smoothing: float = 0.0) -> torch.Tensor:
        """Sum over the texts of the squared error."""
        return functional.mse_loss(outputs.logits[:, 0].float(), batch["labels"].float(), reduction="sum")

    def soft_loss(self, outputs, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Sum over the texts of the squared difference to the teacher's number."""
        return functional.mse_loss(outputs.logits.float(), logits.float(), reduction="sum")

    def score(self, logits: np.ndarray, features: Dataset, dataset: Dataset) -> dict[str, float]:
        """The task's metrics of numbers (N, 1), in the order of the features."""
        return compute(self.task.metric, logits[:, 0], np.asarray(features["labels"][:]))


class MultiLabel(SequenceClassification):
    """Any number of classes a text, each decided by itself; labels are C zeros and ones a text."""

    problem_type = "multi_label_classification"

    def check(self, labels: list, place: str) -> None:
        expected = f"{self.task.num_labels} zeros and ones, one a class"
        for row, label in enumerate(labels):
            good = isinstance(label, (list, tuple)) and len(label) == self.task.num_labels
            if not good or any(value not in (0, 1) for value in label):
                raise UserError(f"{place}, row {row}: label {label!r}, accepted are {expected}")

    def labels(self, labels: list) -> list[list[float]]:
        return [[float(value) for value in label] for label in labels]

    def class_weights(self, features: Dataset) -> torch.Tensor:
        """(C,): texts without a class over texts with it, by which those with it are multiplied; 1 where none has."""
        labels = np.asarray(features["labels"][:])
        present = labels.sum(0)
        return torch.tensor(np.where(present > 0, (len(labels) - present) / np.maximum(present, 1), 1.0)).float()

    def loss(self, outputs, batch: Mapping[str, torch.Tensor], weights=None, smoothing: float = 0.0) -> torch.Tensor:
        """Sum over the texts of the mean over the classes of the binary cross-entropy in nats."""
        labels = batch["labels"].float() * (1 - smoothing) + smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(
            outputs.logits.float(), labels, pos_weight=weights, reduction="none"
        )
        return losses.mean(-1).sum()

    def soft_loss(self, outputs, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Sum over the texts of T^2 times the mean over the classes of KL(teacher || student) at temperature T."""
        student, teacher = outputs.logits.float() / temperature, logits.float() / temperature
        share = teacher.sigmoid()
        cross, own = (
            functional.binary_cross_entropy_with_logits(part, share, reduction="none") for part in (student, teacher)
        )
        return temperature**2 * (cross - own).mean(-1).sum()

    def score(self, logits: np.ndarray, features: Dataset, dataset: Dataset) -> dict[str, float]:
        """The task's metrics of logits (N, C), in the order of the features; a class counts from probability 1/2."""
        return compute(self.task.metric, (logits > 0).astype(int), np.asarray(features["labels"][:]).astype(int))


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights=None, smoothing: float = 0.0) -> torch.Tensor:
    """Sum over the items that have a label (not -100) of the cross-entropy in nats.

    Args:
        logits: (..., C), labels (...).
        weights: (C,), by which an item's loss is multiplied. The sum is not divided by them, unlike the mean of
            `torch.nn.CrossEntropyLoss`, which would make the weight of an example depend on its batch.
        smoothing: Share of the label that is spread over all classes.
    """
    return functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), weights, reduction="sum", label_smoothing=smoothing
    )


def balanced(labels: np.ndarray, num_labels: int) -> torch.Tensor:
    """(C,): N / (classes present * examples of the class), as scikit-learn's "balanced"; 1 for an absent class."""
    weights, present = torch.ones(num_labels), np.unique(labels)
    weights[present] = torch.tensor(compute_class_weight("balanced", classes=present, y=labels)).float()
    return weights


@lru_cache(maxsize=32)
def encode(dataset, tokenizer, text_columns, max_length) -> Dataset:
    """Tokenised examples, in memory. Kept, because a search fine-tunes many encoders on a few tasks."""

    def tokenize(batch):
        texts = (batch[column] for column in text_columns)
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
        return encoded

    return dataset.map(tokenize, batched=True, remove_columns=dataset.column_names, keep_in_memory=True)
