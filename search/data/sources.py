"""Where data come from: a file, files by a pattern, a folder of any layout, a saved data set, or the Hub."""

import contextlib
import glob
import logging
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

from ..errors import UserError
from .documents import is_text
from .readers import KINDS, PACKINGS, read, separated, unpacked


SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> words in the name of a file or folder that mean it, as in `datasets`."""

NO_DATA = re.compile(r"(readme|license|licence|dataset_infos?|changelog|requirements|citation)\b", re.IGNORECASE)


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
            if path.is_file():
                return _from_files(source, _plain_files(path, path.name), encoding, one_file=True)
            if path.is_dir():
                return _from_folder(source, path, config, encoding)
            if any(mark in source for mark in "*?["):
                found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
                found = [one for one in found if one.is_file()]
                if not found:
                    raise UserError(f"{source}: no file has such a name")
                base = os.path.commonpath([one.parent for one in found])
                files = [file for one in found for file in _plain_files(one, str(one.relative_to(base)))]
                return _from_files(source, files, encoding, one_file=True)
            if path.suffix.lower() in KINDS or source.startswith((".", "/", "~")) or source.count("/") > 1:
                raise UserError(f"{source}: no such file or folder")
            loaded = datasets.load_dataset(source, config)
            return Source(dict(loaded), hub=True)
    except UserError:
        raise
    except Exception as error:  # Readers let through whatever their parsers raise, StopIteration included.
        place = source if path.exists() else f"{source}: no such file or folder here, and not had from the Hub"
        raise UserError(f"{place}: {one_line(error)}") from None


def _from_folder(source: str, path: Path, config: str | None, encoding: str | None) -> Source:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(str(path))
        return Source({"train": saved}, one_file=True) if isinstance(saved, Dataset) else Source(dict(saved))
    card = path / "README.md"
    if config is not None or (card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace")):
        return Source(dict(datasets.load_dataset(str(path), config)))
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file.relative_to(path))]
    plain = [pair for file in files for pair in _plain_files(file, str(file.relative_to(path)), strict=False)]
    if not plain:
        raise UserError(f"{source}: the folder doesn't contain any data files; accepted are {', '.join(KINDS)}")
    return _from_files(source, plain, encoding)


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _plain_files(path: Path, name: str, strict: bool = True) -> list[tuple[str, Path]]:
    """A file as (name for people, path); the files of an archive. With `strict` an unknown ending is an error."""
    inner = Path(path.stem) if path.suffix.lower() in PACKINGS else path
    if path.suffix.lower() == ".zip":
        folder = unpacked(path)
        found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        files = [(f"{name}/{file.relative_to(folder)}", file) for file in found]
        files = [(title, file) for title, file in files if not _hidden(file.relative_to(folder)) and _is_data(file)]
        if strict and not files:
            raise UserError(f"{name}: holds no data files, accepted are {', '.join(KINDS)}")
        return files
    if inner.suffix.lower() not in KINDS:
        if strict:
            raise UserError(f"{name}: unknown kind of file, accepted are {', '.join((*KINDS, *PACKINGS))}")
        return []
    return [(name, unpacked(path))] if strict or _is_data(inner) else []


def _is_data(path: Path) -> bool:
    return path.suffix.lower() in KINDS and not NO_DATA.match(path.name)


def split_of(name: str) -> str | None:
    """The split that a file belongs to by its name or that of a folder around it; None where nothing says so."""
    for part in reversed(Path(name).parts):
        stem = part.partition(".")[0]
        if sharded := re.fullmatch(r"(.+)-\d{5}-of-\d{5}", stem):
            return sharded[1]
        words = re.split(r"[^a-z]+", stem.lower())
        for split, names in SPLITS.items():
            if set(words) & set(names):
                return f"{split}_{words[-1]}" if words[-1] in ("matched", "mismatched") else split
    return None


def _from_files(source: str, files: list[tuple[str, Path]], encoding: str | None, one_file: bool = False) -> Source:
    """Files as splits; those of one split follow each other in the order of their names."""
    grouped: dict[str, list[tuple[str, Path]]] = {}
    alone = one_file and len(files) == 1
    for name, path in files:
        grouped.setdefault("" if alone else split_of(name) or "", []).append((name, path))
    rest = grouped.pop("", [])
    if rest and "train" not in grouped:  # else they are neither to train on nor to validate with
        grouped["train"] = rest
    parts = {split: [(name, read(path, encoding)) for name, path in pairs] for split, pairs in grouped.items()}
    counts = {split: [(name, len(table)) for name, table in pairs] for split, pairs in parts.items()}
    splits = {split: _joined(pairs, source) for split, pairs in parts.items()}
    if all(KINDS[path.suffix.lower()] is separated for _, path in files):
        splits = _with_numbers(splits)
    return Source(splits, counts, one_file=list(splits) == ["train"] and (one_file or bool(rest)))


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
    return table.remove_columns(column).add_column(column, values, feature=feature).select_columns(names)


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
