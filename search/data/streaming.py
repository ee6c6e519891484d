"""Text that is read while it is trained on, so that it may be larger than the disk.

A text is read shard by shard (a shard is a file), epoch after epoch, in each the shards in another order. Where it was
left is a state of a few numbers, from which reading goes on exactly there.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, IterableDataset

from ..errors import UserError
from .documents import is_text
from .layouts import find_files
from .readers import Row, rows
from .sources import is_saved, quiet, source_name, unreadable


HELD_OUT = 100
"""One document of so many is set aside for validation, by its hash."""

HEAD_CHARACTERS = 2**25
"""Of text from the beginnings of all shards: what a tokenizer is trained on, and tasks are made from."""

HEAD_SHARDS = 16
"""No shard gives more than such a part of the head, while others have text."""


@dataclass(frozen=True)
class TextStream:
    """Documents of one split.

    Attributes:
        name: For people.
        shards: Rows with the text in `column`.
        splits: Whether documents are set aside by hash, because there is no other split to validate with.
    """

    name: str
    shards: IterableDataset
    column: str
    splits: bool = False

    def documents(self, rows: Iterator[Row]) -> Iterator[str]:
        """Texts to train on, of those rows that hold any."""
        for row in rows:
            text = text_of(row, self.column, self.name)
            if text and not (self.splits and is_held_out(text)):
                yield text


def text_of(row: Row, column: str, place: str) -> str:
    """The text of a row, empty where it holds none but white space.

    Raises:
        UserError: The row has no such column, or it is no text.
    """
    if column not in row:
        raise UserError(f"{place}: no column {column!r}, there are {', '.join(map(str, row))}")
    text = row[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise UserError(f"{place}: column {column!r} holds {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: column {column!r} holds half of a character, no text") from None
    return "" if text.isspace() else text


def is_held_out(text: str) -> bool:
    """Whether a document is for validation; that depends on the document alone, so equal ones are on the same side."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % HELD_OUT == 0


class DocumentReader:
    """Reads documents to train on, one epoch after the other without an end.

    Args:
        seed: Of the order of the shards.
        state: Where to go on, as `state` was.

    Raises:
        UserError: A row is no text, or in a whole epoch there is none.
    """

    def __init__(self, text: TextStream, seed: int, state: dict[str, Any] | None = None):
        self.text, self.seed = text, seed
        self.epoch: int = state["epoch"] if state else 0
        self.shard: int = state["shard"] if state else 0
        self.found = state is not None
        self._open(state["position"] if state else None)

    @property
    def state(self) -> dict[str, Any]:
        """Plain data."""
        position = self._rows.state_dict() if self._begun else self._position
        return {"epoch": self.epoch, "shard": self.shard, "position": position}

    def read(self, documents: int, characters: int) -> list[str]:
        """The next documents: so many, or fewer as soon as they have so many characters."""
        texts: list[str] = []
        size = 0
        while len(texts) < documents and size < characters:
            self._begun = True
            text = next(self._texts, None)
            if text is None:
                self._next_shard()
                continue
            self.found = True
            texts.append(text)
            size += len(text)
        return texts

    def _open(self, position: dict[str, Any] | None = None) -> None:
        count = self.text.shards.num_shards
        order = np.random.default_rng([self.seed, 5, self.epoch]).permutation(count)
        self._rows = self.text.shards.shard(count, int(order[self.shard]))
        self._begun, self._position = False, position
        if position is not None:
            self._rows.load_state_dict(position)
        self._texts = self.text.documents(reported_rows(self._rows, self.text.name))

    def _next_shard(self) -> None:
        self.shard += 1
        if self.shard == self.text.shards.num_shards:
            if not self.found:
                raise UserError(f"{self.text.name}: the corpus is empty, no row of train holds any text")
            self.epoch, self.shard, self.found = self.epoch + 1, 0, False
        self._open()


def reported_rows(shard: IterableDataset, name: str) -> Iterator[Row]:
    """Rows; what goes wrong in reading them, such as a connection that is lost, is said in one line."""
    iterator = iter(shard)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except UserError:
            raise
        except Exception as error:
            raise unreadable(name, error) from None
        yield row


def open_streams(source: str, config: str | None, column: str, encoding: str | None) -> dict[str, TextStream]:
    """Split -> its text; nothing is read but what says which splits and columns there are.

    Args:
        source, config, encoding: As of `load_source`.
        column: Where the text is.

    Raises:
        UserError: It does not exist, cannot be reached, or has no such column.
    """
    path = Path(source).expanduser()
    name = "/".join(filter(None, [source_name(source), config]))
    try:
        with quiet():
            if is_saved(path):
                saved = datasets.load_from_disk(str(path))
                splits = {"train": saved} if isinstance(saved, Dataset) else dict(saved)
                opened = {split: data.to_iterable_dataset() for split, data in splits.items()}
            elif (layout := find_files(source, config, unpack=False)) is not None:
                opened = {split: _of_files(files, column, encoding) for split, files in layout.splits.items()}
                column = "text"
            else:
                opened = dict(datasets.load_dataset(source, config, streaming=True))
    except UserError:
        raise
    except Exception as error:  # as in `load_source`
        raise unreadable(source, error) from None
    return {split: TextStream(name, _only(shards, column, name), column) for split, shards in opened.items()}


def _of_files(files: list[tuple[str, Path]], column: str, encoding: str | None) -> IterableDataset:
    given = {"files": [(name, str(path)) for name, path in files], "column": column, "encoding": encoding}
    return IterableDataset.from_generator(_texts_of_files, gen_kwargs=given)


def _texts_of_files(files: list[tuple[str, str]], column: str, encoding: str | None) -> Iterator[Row]:
    for name, path in files:
        for number, row in enumerate(rows(Path(path), encoding)):
            yield {"text": text_of(row, column, f"{name}, row {number}")}


def _only(shards: IterableDataset, column: str, name: str) -> IterableDataset:
    """Without the columns that are not needed, where it is known which there are."""
    if shards.features is None:
        return shards
    if column not in shards.features:
        raise UserError(f"{name}: no column {column!r}, there are {', '.join(shards.features)}")
    if not is_text(shards.features[column]):
        raise UserError(f"{name}: column {column!r} holds {shards.features[column]}, not text")
    return shards.select_columns([column])


def read_head(text: TextStream, characters: int) -> tuple[list[str], list[str]]:
    """Documents to train on and documents set aside, from the beginnings of the shards.

    Args:
        characters: So many of all together, or what there is.
    """
    train: list[str] = []
    held_out: list[str] = []
    size, count = 0, text.shards.num_shards
    for shard in np.random.default_rng(0).permutation(count):
        share = 0
        for row in reported_rows(text.shards.shard(count, int(shard)), text.name):
            document = text_of(row, text.column, text.name)
            if not document:
                continue
            (held_out if text.splits and is_held_out(document) else train).append(document)
            share += len(document)
            if share >= characters / min(count, HEAD_SHARDS):
                break
        size += share
        if size >= characters:
            break
    return train, held_out
