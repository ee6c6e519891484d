"""The documents of a data set: rows of text that hold any."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset


def documents(dataset: Dataset) -> Iterator[str]:
    """The texts of a corpus in order, without rows that hold none."""
    return (text for _, text in numbered_documents(dataset))


def numbered_documents(dataset: Dataset) -> Iterator[tuple[int, str]]:
    """The same with the number of the row."""
    texts = (text for batch in dataset.iter(batch_size=256) for text in batch["text"])
    return ((row, text) for row, text in enumerate(texts) if text and not text.isspace())


def is_text(feature: Any) -> bool:
    """Whether a column of this feature holds strings."""
    return getattr(feature, "dtype", None) in ("string", "large_string")
