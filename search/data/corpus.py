"""Text to learn from: corpora out of files, folders and the Hub."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from datasets import Dataset

from ..errors import UserError
from .documents import documents, is_text, numbered_documents
from .python_text import python_documents
from .sources import load_source, source_name
from .streaming import HEAD_CHARACTERS, HELD_OUT, TextStream, open_streams, read_head


MAX_VALIDATION_ROWS = 2000


@dataclass(frozen=True)
class Corpus:
    """Text in documents.

    Attributes:
        name: For people, without the path to a local folder.
        train, validation: One column, "text"; a row is a document. Of a streamed corpus the head, see `streaming`.
        stream: All of a streamed corpus that is not for validation; None where `train` is all.
    """

    name: str
    train: Dataset
    validation: Dataset
    stream: TextStream | None = None


def load_corpus(
    source: str | None = None, config: str | None = None, text_column: str = "text", encoding: str | None = None
) -> Corpus:
    """Text from anywhere, split into train and validation.

    Args:
        source: What `load_source` reads; None is the English documentation that comes with every Python.
        config: Configuration of the data set, where it has several.
        text_column: Column that holds the documents.
        encoding: Of text files, by default UTF-8.

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
        splits = load_source(source, config, encoding).splits
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


def stream_corpus(
    source: str | None, config: str | None = None, text_column: str = "text", encoding: str | None = None
) -> Corpus:
    """The same from a source that is read while it is trained on, and may be larger than the disk.

    Returns:
        Without a split "validation", one document of `streaming.HELD_OUT` is set aside by its hash alone; those
        of the head validate.

    Raises:
        UserError: As of `load_corpus`, as far as the head tells.
    """
    if source is None:
        raise UserError("--streaming needs a --corpus")
    streams = open_streams(source, config, text_column, encoding)
    if "train" not in streams:
        name = next(iter(streams.values())).name
        raise UserError(f"{name}: there is no split 'train' to learn from, only {', '.join(streams)}")
    stream = replace(streams["train"], splits="validation" not in streams)
    train, validation = read_head(stream, HEAD_CHARACTERS)
    if "validation" in streams:
        validation, _ = read_head(streams["validation"], HEAD_CHARACTERS // HELD_OUT)
    if not train:
        raise UserError(f"{stream.name}: the corpus is empty, no row of train holds any text")
    if not validation:
        raise UserError(
            f"{stream.name}: none of the first {len(train):,} documents is set aside for validation, which is one "
            f"in {HELD_OUT}; leave out --streaming, or give a split 'validation'"
        )
    held_out = Dataset.from_dict({"text": validation[:MAX_VALIDATION_ROWS]})
    return Corpus(stream.name, Dataset.from_dict({"text": train}), held_out, stream)


def _text_only(dataset: Dataset, text_column: str, name: str) -> Dataset:
    if text_column not in dataset.column_names:
        raise UserError(f"{name}: no column {text_column!r}, there are {', '.join(dataset.column_names)}")
    if not is_text(dataset.features[text_column]):
        raise UserError(f"{name}: column {text_column!r} holds {dataset.features[text_column]}, not text")
    dataset = dataset.select_columns([text_column])
    return dataset if text_column == "text" else dataset.rename_column(text_column, "text")


def _set_aside(dataset: Dataset, name: str) -> tuple[Dataset, Dataset]:
    """Train and validation, where a source has no split for it."""
    texts = dict(numbered_documents(dataset))
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
