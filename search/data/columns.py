"""Which columns of somebody's table are the text and which is the label: the rules, all of them.

A column is taken by its name, not because it holds text: a name of a class, an id or a date would else be learnt as a
second sentence.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from ..errors import UserError
from .documents import is_text


PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("query", "document"),
    ("text", "text_pair"),
    ("text", "text2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("sentence_A", "sentence_B"),
    ("sentence", "sentence2"),
    ("first", "second"),
)
"""Names under which two columns are a pair of texts."""

TEXTS = ("text", "sentence", "content", "document", "review", "comment", "comment_text", "tweet", "body", "utterance")
"""Names of a column that is the text, first come first served."""

LABELS = ("label", "labels")
WORDS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "labels", "label", "ner", "pos_tags", "chunk_tags")
ANSWERS = ("answers", "answer")

NO_TEXT = re.compile(
    r"label|class|split|(^|_)(id|ids|idx|uid|guid|index|date|time|timestamp|url|lang)$", re.IGNORECASE
)
"""Columns of words that are not taken for a text of any other name."""


@dataclass(frozen=True)
class Columns:
    """What of a table is used.

    Attributes:
        texts: One column or two; for question answering question and context, for classes of words the words.
        labels: The column of the label; several where each is one of the classes and holds 0 or 1.
        kind: "" where the label decides, "question_answering" or "token_classification".
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    kind: str = ""

    def describe(self, all_columns: Iterable[str]) -> str:
        """In words for people, with those that are not used."""
        unused = [name for name in all_columns if name not in (*self.texts, *self.labels)]
        tail = f"; not used: {', '.join(unused)}" if unused else ""
        return f"text from {' + '.join(self.texts)}, label from {' + '.join(self.labels)}{tail}"


def named(texts: tuple[str, ...], labels: tuple[str, ...], features: Mapping[str, Any]) -> Columns:
    """Columns that the user named; what they hold says which kind of task they make."""
    feature, text = features.get(labels[0]), features.get(texts[0])
    if len(texts) == 2 and (isinstance(feature, dict) or (texts[1] == "context" and labels[0] in ANSWERS)):
        return Columns(texts, labels, "question_answering")
    if len(texts) == len(labels) == 1 and is_list(text):
        return Columns(texts, labels, "token_classification")
    return Columns(texts, labels)


def guess(dataset: Dataset, name: str) -> Columns:
    """Columns by their names.

    Raises:
        UserError: No rule says which column is the text.
    """
    features = dataset.features
    answers = [column for column in ANSWERS if column in features]
    if answers and {"question", "context"} <= set(features):
        return Columns(("question", "context"), tuple(answers[:1]), "question_answering")
    for words in WORDS:
        tags = [column for column in TAGS if is_list(features.get(column))]
        if is_list(features.get(words)) and tags:
            return Columns((words,), tuple(tags[:1]), "token_classification")
    label = next((column for column in LABELS if column in features), None)
    texts = _texts(dataset, (label,))
    if label is None and texts:
        zero_or_one = tuple(column for column in features if column not in texts and _is_binary(dataset, column))
        if len(zero_or_one) > 1:
            return Columns(texts, zero_or_one)
    if not texts:
        candidates = [column for column, feature in features.items() if is_text(feature) and column != label]
        raise UserError(
            f"task {name!r}: {len(candidates)} columns hold text, and no rule says which to take; name them as "
            f"{name}:text[+text2]:label, there are {', '.join(dataset.column_names)}"
        )
    return Columns(texts, (label or "label",))


def _texts(dataset: Dataset, labels: tuple[str | None, ...]) -> tuple[str, ...]:
    """A known pair, a known name, or the only column of text that is left; empty if it is none of these."""
    candidates = [c for c, feature in dataset.features.items() if is_text(feature) and c not in labels]
    for pair in PAIRS:
        if set(pair) <= set(candidates):
            return pair
    for column in TEXTS:
        if column in candidates:
            return (column,)
    left = [column for column in candidates if not NO_TEXT.search(column)]
    return tuple(left) if len(left) == 1 else ()


def is_list(feature: Any) -> bool:
    """Whether a column holds lists."""
    return hasattr(feature, "feature") or (isinstance(feature, list) and len(feature) == 1)


def _is_binary(dataset: Dataset, column: str) -> bool:
    if getattr(dataset.features[column], "dtype", "") not in ("int64", "int32", "int8", "bool", "uint8", "int16"):
        return False
    return set(dataset.unique(column)) == {0, 1}
