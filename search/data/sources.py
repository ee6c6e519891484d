"""Where data come from: a file, files by a pattern, a folder of any layout, a saved data set, or the Hub."""

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

from ..errors import UserError, one_line
from .documents import is_text
from .layouts import Layout, find_files
from .readers import PACKINGS, kind_of, read, separated


@dataclass(frozen=True)
class Source:
    """Data as they were read.

    Attributes:
        splits: Name -> rows.
        files: Split -> (file, its number of rows), in order, where rows come from local files.
        one_file: Whether it has no splits: it is one file, or no file's name says what it is for.
        hub: Whether it came from the Hub.
    """

    splits: dict[str, Dataset]
    files: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    one_file: bool = False
    hub: bool = False

    def place(self, split: str, row: int | None = None) -> str:
        """Words for a split or a row of it, as its user knows them: rows are counted in their file, from 0."""
        files = self.files.get(split, [])
        if row is not None and len(files) > 1:
            for name, count in files:
                if row < count:
                    return f"{split}, {name}, row {row}"
                row -= count
        place = "" if self.one_file else split
        return ", ".join(filter(None, [place, "" if row is None else f"row {row}"]))

    def with_validation(self, other: "Source") -> "Source":
        """All of this to train on, and another source, or its only split, to validate with."""
        split = "validation" if "validation" in other.splits else next(iter(other.splits))
        splits = {"train": self.splits["train"], "validation": other.splits[split]}
        files = {"train": self.files.get("train", []), "validation": other.files.get(split, [])}
        joined = {name: _aligned([table, *splits.values()])[0] for name, table in splits.items()}
        return Source(joined, files, hub=self.hub)


def source_name(source: str) -> str:
    """A short name of a source: a Hub id as it is, the last part of a path without endings."""
    path = Path(source).expanduser()
    if not path.exists():
        return re.sub(r"[*?\[\]]+", "_", Path(source).name) if any(mark in source for mark in "*?[") else source
    path = path.resolve()
    if path.is_dir():
        return path.name
    return Path(path.stem).stem if path.suffix.lower() in PACKINGS else path.stem


def load_source(source: str, config: str | None = None, encoding: str | None = None) -> Source:
    """All splits of a Hub data set, a folder, a saved data set, a file, or the files of a pattern.

    Args:
        config: Configuration of a data set, where it has several.
        encoding: Of text files; by default UTF-8, with or without a byte order mark.

    Raises:
        UserError: It does not exist, cannot be reached, or is not what its name says.
    """
    path = Path(source).expanduser()
    try:
        with quiet():
            if is_saved(path):
                saved = datasets.load_from_disk(str(path))
                return Source({"train": saved}, one_file=True) if isinstance(saved, Dataset) else Source(dict(saved))
            layout = find_files(source, config)
            if layout is None:
                return Source(dict(datasets.load_dataset(source, config)), hub=True)
            return _read_files(source, layout, encoding)
    except UserError:
        raise
    except Exception as error:  # Readers let through whatever their parsers raise, StopIteration included.
        raise unreadable(source, error) from None


def is_saved(path: Path) -> bool:
    """Whether a folder was made by `save_to_disk`, of one split or of several."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def unreadable(source: str, error: Exception) -> UserError:
    """What to say where a library could not read a source."""
    exists = Path(source).expanduser().exists()
    place = source if exists else f"{source}: no such file or folder here, and not had from the Hub"
    return UserError(f"{place}: {one_line(error)}")


def _read_files(source: str, layout: Layout, encoding: str | None) -> Source:
    parts = {split: [(name, read(path, encoding)) for name, path in files] for split, files in layout.splits.items()}
    counts = {split: [(name, len(table)) for name, table in pairs] for split, pairs in parts.items()}
    splits = {split: _joined(pairs, source) for split, pairs in parts.items()}
    if all(kind_of(path) is separated for files in layout.splits.values() for _, path in files):
        splits = _with_numbers(splits)
    for column, feature in layout.features.items():
        if isinstance(feature, ClassLabel):
            splits = {
                split: table.cast_column(column, feature) if column in table.column_names else table
                for split, table in splits.items()
            }
    return Source(splits, counts, one_file=layout.one_file)


def _joined(parts: list[tuple[str, Dataset]], source: str) -> Dataset:
    """The rows of several files with the same columns."""
    first_name, first = parts[0]
    tables = []
    for name, part in parts:
        if set(part.column_names) != set(first.column_names):
            raise UserError(
                f"{source}: files with different columns, {first_name} has {', '.join(first.column_names)}, "
                f"{name} has {', '.join(part.column_names)}"
            )
        tables.append(part.select_columns(first.column_names))
    return concatenate_datasets(_aligned(tables)) if len(tables) > 1 else first


def _aligned(tables: list[Dataset]) -> list[Dataset]:
    """Tables with the same kinds of columns: a column that holds text anywhere is text everywhere."""
    features = dict(tables[0].features)
    for table in tables[1:]:
        for name, feature in table.features.items():
            kinds = {getattr(features[name], "dtype", None), getattr(feature, "dtype", None)}
            if features[name] == feature or isinstance(features[name], ClassLabel):
                continue
            if "string" in kinds or "large_string" in kinds:
                features[name] = Value("string")
            elif any(kind and kind.startswith("float") for kind in kinds):
                features[name] = Value("float64")
    return [table if table.features == features else table.cast(Features(features)) for table in tables]


WHOLE = re.compile(r"-?(?:0|[1-9]\d{0,17})")
FRACTION = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")


def _with_numbers(splits: dict[str, Dataset]) -> dict[str, Dataset]:
    """Columns of text become numbers where all cells of all splits are written as such; "007" is a text."""
    for column in next(iter(splits.values())).column_names:
        if not all(column in table.column_names and is_text(table.features[column]) for table in splits.values()):
            continue
        for pattern, kind in ((WHOLE, int), (FRACTION, float)):
            if _all_match(splits, column, pattern):
                splits = {name: _converted(table, column, kind) for name, table in splits.items()}
                break
    return splits


def _all_match(splits: dict[str, Dataset], column: str, pattern: re.Pattern) -> bool:
    """Whether all cells that are not empty match, and there is one."""
    some = False
    for table in splits.values():
        for batch in table.select_columns([column]).iter(batch_size=1000):
            for cell in batch[column]:
                if cell and not pattern.fullmatch(cell):
                    return False
                some = some or bool(cell)
    return some


def _converted(table: Dataset, column: str, kind: type) -> Dataset:
    names = table.column_names
    values = [kind(cell) if cell else None for cell in table[column]]
    feature = Value("int64" if kind is int else "float64")
    if names == [column]:  # A table without its only column would have no rows either.
        return Dataset.from_dict({column: values}, features=Features({column: feature}))
    return table.remove_columns(column).add_column(column, values, feature=feature).select_columns(names)


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
