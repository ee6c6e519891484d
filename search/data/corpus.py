"""Text to learn from: corpora out of files, folders and the Hub."""

import contextlib
import hashlib
import logging
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from ..errors import UserError
from .python_text import python_documents


READERS = {
    ".parquet": ("parquet", {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".csv": ("csv", {"keep_default_na": False, "na_values": [""]}),  # "None" and "NA" are words
    ".txt": ("text", {"sample_by": "paragraph"}),
}
"""Ending of a file -> how `datasets` reads it. Documents in plain text are separated by blank lines."""

MAX_VALIDATION_ROWS = 2000


@dataclass(frozen=True)
class Corpus:
    """Text in documents.

    Attributes:
        name: For people, without the path to a local folder.
        train, validation: One column, "text"; a row is a document.
    """

    name: str
    train: Dataset
    validation: Dataset


def load_corpus(source: str | None = None, config: str | None = None, text_column: str = "text") -> Corpus:
    """Text from anywhere, split into train and validation.

    Args:
        source: Data set on the Hub, folder in `datasets` layout, parquet, JSON, CSV or plain text file, folder of
            files; None is the English documentation that comes with every Python.
        config: Configuration of the data set, where it has several.
        text_column: Column that holds the documents.

    Returns:
        The splits "train" and "validation" of the source. Without "validation", a tenth of the documents (at most
        2,000) is set aside by hash, whatever their order, so equal documents are never in both.

    Raises:
        UserError: Nothing can be read, a split or column is missing, or there is no text.
    """
    if source is None:
        name, splits = "python-documentation", {"train": Dataset.from_dict({text_column: python_documents()})}
    else:
        name = "/".join(filter(None, [source_name(source), config]))
        splits = load_splits(source, config)
    if "train" not in splits:
        raise UserError(f"{name}: there is no split 'train' to learn from, only {', '.join(splits)}")
    train = _text_only(splits["train"], text_column, name)
    if "validation" in splits:
        validation = _text_only(splits["validation"], text_column, name)
    else:
        train, validation = _set_aside(train, name)
    for split, dataset in (("train", train), ("validation", validation)):
        if next(documents(dataset), None) is None:
            raise UserError(f"{name}: the corpus is empty, no row of {split} holds any text")
    return Corpus(name, train, validation)


def source_name(source: str) -> str:
    """A short name of a source: a Hub id as it is, the last part of a path."""
    return Path(source).resolve().stem if Path(source).expanduser().exists() else source


def load_splits(source: str, config: str | None = None) -> datasets.DatasetDict:
    """All splits of a Hub data set, a folder in `datasets` layout, or a file.

    Raises:
        UserError: It does not exist, cannot be reached, or is not what its name says.
    """
    path = Path(source).expanduser()
    reader, options = READERS.get(path.suffix, (None, {}))
    try:
        with quiet():
            if path.is_file():
                if reader is None:
                    raise UserError(f"{source}: unknown kind of file, accepted are {', '.join(READERS)}")
                if path.stat().st_size == 0:
                    raise UserError(f"{source}: the file is empty")
                return datasets.load_dataset(reader, data_files={"train": str(path)}, **options)
            if path.is_dir():
                kinds = {file.suffix for file in path.iterdir()} & READERS.keys() if config is None else set()
                options = READERS[kinds.pop()][1] if len(kinds) == 1 else {}
                return datasets.load_dataset(str(path), config, **options)
            if reader or source.startswith((".", "/", "~")) or source.count("/") > 1:
                raise UserError(f"{source}: no such file or folder")
            return datasets.load_dataset(source, config)
    except UserError:
        raise
    except Exception as error:  # Readers let through whatever their parsers raise, StopIteration included.
        place = source if path.exists() else f"{source}: no such file or folder here, and not had from the Hub"
        raise UserError(f"{place}: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """What a library's exception says, without line breaks and at a readable length."""
    return textwrap.shorten(str(error.__cause__ or error), 400) or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars, and without the warnings of each attempt to reach the Hub."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub", "transformers")]
    levels = [logger.level for logger in loggers]
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def documents(dataset: Dataset) -> Iterator[str]:
    """The texts of a corpus in order, without rows that hold none."""
    return (text for _, text in _numbered_documents(dataset))


def _numbered_documents(dataset: Dataset) -> Iterator[tuple[int, str]]:
    texts = (text for batch in dataset.iter(batch_size=256) for text in batch["text"])
    return ((row, text) for row, text in enumerate(texts) if text and not text.isspace())


def is_text(feature: Any) -> bool:
    """Whether a column of this feature holds strings."""
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _text_only(dataset: Dataset, text_column: str, name: str) -> Dataset:
    if text_column not in dataset.column_names:
        raise UserError(f"{name}: no column {text_column!r}, there are {', '.join(dataset.column_names)}")
    if not is_text(dataset.features[text_column]):
        raise UserError(f"{name}: column {text_column!r} holds {dataset.features[text_column]}, not text")
    dataset = dataset.select_columns([text_column])
    return dataset if text_column == "text" else dataset.rename_column(text_column, "text")


def _set_aside(dataset: Dataset, name: str) -> tuple[Dataset, Dataset]:
    """Train and validation, where a source has no split for it."""
    texts = dict(_numbered_documents(dataset))
    if len(texts) == 1:
        raise UserError(
            f"{name}: holds one document, but some are set aside for validation; give more documents (blank lines "
            "separate them in plain text), or a split 'validation'"
        )
    return tuple(map(dataset.select, set_aside(texts)))


def set_aside(texts: Mapping[int, str]) -> tuple[list[int], list[int]]:
    """Rows to train on, and a tenth (at most 2,000) to validate with: those whose texts have the smallest hashes.

    Equal texts are never in both, and where a text stands among the others does not matter.
    """
    hashes = {row: hashlib.blake2b(text.encode(), digest_size=8).digest() for row, text in texts.items()}
    count = min(-(-len(hashes) // 10), MAX_VALIDATION_ROWS)
    largest = max(sorted(hashes.values())[:count], default=b"")
    train = [row for row, value in hashes.items() if value > largest]
    return train, [row for row, value in hashes.items() if value <= largest]
