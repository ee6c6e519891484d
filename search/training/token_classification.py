"""Classes of words, such as the names of persons and places (CoNLL 2003, arXiv cs/0306050)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, PreTrainedTokenizerBase

from ..data.tasks import Task, check_columns
from ..errors import UserError
from ..metrics import OUTSIDE, compute
from .sequence_classification import balanced, cross_entropy


IGNORED = -100
"""Label of what is not scored: special tokens, all tokens of a word but its first, and words without a label."""


@dataclass(frozen=True)
class TokenClassification:
    """The text column holds a list of words a row, the label column a list of as many class indices, or -100."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    auto_class = AutoModelForTokenClassification
    hub_task = "token-classification"
    collator = DataCollatorForTokenClassification
    targets = ("labels",)
    is_pair = False
    learns_softly = False
    has_classes = True

    def config(self) -> dict[str, Any]:
        """What the task says about the model's configuration."""
        return {
            "num_labels": self.task.num_labels,
            "id2label": dict(enumerate(self.task.label_names)),
            "label2id": {name: index for index, name in enumerate(self.task.label_names)},
        }

    def features(self, dataset: Dataset, split: str) -> Dataset:
        """Token ids and their labels, cut at the maximal length.

        Columns besides the model's inputs and labels: "row" in the data set, "length" in tokens, and for the words
        that are not cut off "words", their numbers, and "first_tokens", where each begins.

        Raises:
            UserError: A column is missing, labels are not accepted, or the tokenizer cannot tell characters.
        """
        place = f"{self.task.name}, {split}"
        if not self.tokenizer.is_fast:
            raise UserError(f"{self.task.name}: token classification needs a fast tokenizer, which knows characters")
        (words,) = self.task.text_columns
        check_columns(dataset, (words, self.task.label_column), place)
        check_tags(dataset[words], dataset[self.task.label_column], self.task.num_labels, place)
        return encode(dataset, self.tokenizer, words, self.task.label_column, self.max_length)

    def count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Over how many items of a batch its loss is a mean: words with a label."""
        return int((batch["labels"] != IGNORED).sum())

    def class_weights(self, features: Dataset) -> torch.Tensor:
        """(C,): the mean number of words a class over its own, 1 for a class that has none."""
        labels = np.concatenate([np.asarray(row) for row in features["labels"]])
        return balanced(labels[labels != IGNORED], self.task.num_labels)

    def loss(self, outputs, batch: Mapping[str, torch.Tensor], weights=None, smoothing: float = 0.0) -> torch.Tensor:
        """Sum over the words of the cross-entropy in nats, each times its class's weight."""
        return cross_entropy(outputs.logits, batch["labels"], weights, smoothing)

    def score(self, logits: np.ndarray, features: Dataset, dataset: Dataset) -> dict[str, float]:
        """The task's metrics of logits (N, L, C). Words that were cut off count as if "O" was said of them."""
        (column,), names = self.task.text_columns, self.task.label_names
        labels, words = dataset[self.task.label_column][:], dataset[column][:]
        predicted = [[OUTSIDE] * len(row) for row in words]
        for scores, row, numbers, places in zip(logits, *(features[c] for c in ("row", "words", "first_tokens"))):
            for number, label in zip(numbers, scores[places].argmax(-1) if places else ()):
                predicted[row][number] = names[label]
        scored = [[number for number, label in enumerate(row) if label != IGNORED] for row in labels]
        return compute(
            self.task.metric,
            [[row[number] for number in numbers] for row, numbers in zip(predicted, scored)],
            [[names[row[number]] for number in numbers] for row, numbers in zip(labels, scored)],
        )


def check_tags(words: Sequence, labels: Sequence, num_labels: int, place: str) -> None:
    """Raises UserError at the first row whose labels are not one class a word."""
    for row, (texts, tags) in enumerate(zip(words, labels)):
        if texts is None or tags is None or len(texts) != len(tags):
            counts = (0 if values is None else len(values) for values in (tags, texts))
            raise UserError(f"{place}, row {row}: {next(counts)} labels for {next(counts)} words")
        for tag in tags:
            if not isinstance(tag, int) or not (0 <= tag < num_labels or tag == IGNORED):
                accepted = f"whole numbers from 0 to {num_labels - 1}, and {IGNORED} for none"
                raise UserError(f"{place}, row {row}: label {tag!r}, accepted are {accepted}")


@lru_cache(maxsize=8)
def encode(dataset, tokenizer, words_column, label_column, max_length) -> Dataset:
    """Tokenised sentences, in memory. Words are joined by blanks, as they will be in the texts of a pipeline."""

    def tokenize(batch, rows):
        encoded = tokenizer(
            [" ".join(words) for words in batch[words_column]],
            truncation=True,
            max_length=max_length,
            return_attention_mask=False,
            return_offsets_mapping=True,
        )
        offsets = encoded.pop("offset_mapping")
        found = [first_tokens(words, spans) for words, spans in zip(batch[words_column], offsets)]
        labels = [[IGNORED] * len(ids) for ids in encoded["input_ids"]]
        for own, places, tags in zip(labels, found, batch[label_column]):
            for word, place in places.items():
                own[place] = tags[word]
        return {
            **encoded,
            "labels": labels,
            "row": rows,
            "length": [len(ids) for ids in encoded["input_ids"]],
            "words": [list(places) for places in found],
            "first_tokens": [list(places.values()) for places in found],
        }

    return dataset.map(
        tokenize, batched=True, with_indices=True, remove_columns=dataset.column_names, keep_in_memory=True
    )


def first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Word -> its first token, for those words that have one.

    Args:
        offsets: (L, 2), the characters [start, end) of each token in the words joined by blanks, equal where a token
            is none of the text. A token may begin with the blank before its word, so its last character decides.
    """
    ends = np.cumsum([len(word) + 1 for word in words])  # one behind the blank that follows a word
    places: dict[int, int] = {}
    for place, (start, end) in enumerate(offsets):
        if end > start:
            places.setdefault(int(np.searchsorted(ends, end - 1, side="right")), place)
    return places
