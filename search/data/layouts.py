"""Which files a data set consists of, and what each is for: one file, those of a pattern, a folder by name or card."""

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from datasets import Features
from datasets.info import DatasetInfosDict
from huggingface_hub import metadata_load

from ..errors import UserError
from .readers import KINDS, PACKINGS, kind_of, unpacked


SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split -> words in the name of a file or folder that mean it, as in `datasets`."""

NO_DATA = re.compile(r"(readme|license|licence|dataset_infos?|changelog|requirements|citation)\b", re.IGNORECASE)

Named = tuple[str, Path]
"""A file: its name for people, and where it is."""


@dataclass(frozen=True)
class Layout:
    """The local files of a data set.

    Attributes:
        splits: Split -> its files, in order.
        one_file: Whether it has no splits: it is one file, or no file's name says what it is for.
        features: Columns that a card describes, with the names of their classes.
    """

    splits: dict[str, list[Named]]
    one_file: bool = False
    features: Features = field(default_factory=Features)


def find_files(source: str, config: str | None = None, unpack: bool = True) -> Layout | None:
    """The files of a path or a pattern; None where this is neither, but may be a name on the Hub.

    Args:
        config: Configuration of a folder that has several, see `_by_card`.
        unpack: Whether packed files are unpacked now; archives always are.

    Raises:
        UserError: There is no such file, or none that can be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _grouped(_plain_files(path, path.name, unpack), one_file=True)
    if path.is_dir():
        return _in_folder(source, path, config, unpack)
    if any(mark in source for mark in "*?["):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        found = [one for one in found if one.is_file()]
        if not found:
            raise UserError(f"{source}: no file has such a name")
        base = os.path.commonpath([one.parent for one in found])
        files = [file for one in found for file in _plain_files(one, str(one.relative_to(base)), unpack)]
        return _grouped(files, one_file=True)
    if path.suffix.lower() in KINDS or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(f"{source}: no such file or folder")
    return None


def _in_folder(source: str, path: Path, config: str | None, unpack: bool) -> Layout:
    card = _card(source, path)
    if card.get("configs"):
        return _by_card(source, path, card, config, unpack)
    if config is not None:
        if not (path / config).is_dir():
            raise UserError(f"{source}: no configuration {config!r}, neither in its README.md nor as a folder")
        path = path / config
    plain = list(_files_below(path, unpack))
    if not plain:
        raise UserError(f"{source}: the folder doesn't contain any data files; accepted are {', '.join(KINDS)}")
    return _grouped(plain)


def _files_below(path: Path, unpack: bool) -> Iterator[Named]:
    for file in sorted(path.rglob("*")):
        if file.is_file() and not _hidden(file.relative_to(path)):
            yield from _plain_files(file, str(file.relative_to(path)), unpack, strict=False)


def _card(source: str, path: Path) -> dict[str, Any]:
    """The metadata of a data set card, https://huggingface.co/docs/hub/datasets-manual-configuration."""
    file = path / "README.md"
    if not file.is_file():
        return {}
    try:
        return metadata_load(file) or {}
    except (ValueError, yaml.YAMLError) as error:
        if "\nconfigs:" not in file.read_text(encoding="utf-8", errors="replace"):
            return {}
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: README.md: its metadata are no YAML: {reason}") from None


def _by_card(source: str, path: Path, card: dict[str, Any], config: str | None, unpack: bool) -> Layout:
    """The files of a configuration as a card names them; one without a name is called "default"."""
    if not isinstance(card["configs"], list) or not all(isinstance(entry, dict) for entry in card["configs"]):
        raise UserError(f"{source}: README.md: configs: expected a list of objects")
    entries = {str(entry.get("config_name", "default")): entry for entry in card["configs"]}
    if config is None:
        chosen = [name for name, entry in entries.items() if name == "default" or entry.get("default")]
        if not chosen and len(entries) > 1:
            raise UserError(f"{source}: has several configurations, name one of {', '.join(entries)}")
        config = (chosen or list(entries))[0]
    if config not in entries:
        raise UserError(f"{source}: no configuration {config!r}, there are {', '.join(entries)}")
    entry = entries[config]
    folder = path / str(entry.get("data_dir", "."))
    place = f"{source}: README.md: configuration {config!r}"
    if "data_files" not in entry:
        layout = _grouped(list(_files_below(folder, unpack)))
        if not layout.splits:
            raise UserError(f"{place}: no data files in {folder}")
    else:
        splits = {}
        for split, patterns in _patterns(entry["data_files"], place).items():
            names = [
                name for pattern in patterns for name in sorted(glob.glob(pattern, root_dir=folder, recursive=True))
            ]
            files = [folder / name for name in dict.fromkeys(names) if (folder / name).is_file()]
            if not files:
                raise UserError(f"{place}: split {split!r}: no file is called {', '.join(patterns)}")
            splits[split] = [
                plain for file in files for plain in _plain_files(file, str(file.relative_to(path)), unpack)
            ]
        layout = Layout(splits, one_file=list(splits) == ["train"])
    infos = DatasetInfosDict.from_directory(str(path))
    features = infos[config].features if config in infos else None
    return Layout(layout.splits, layout.one_file, features or Features())


def _patterns(value: Any, place: str) -> dict[str, list[str]]:
    """Split -> patterns, of any form that `data_files` may have."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = {part.get("split", "train"): part.get("path") for part in value}
    elif not isinstance(value, dict):
        value = {"train": value}
    found = {str(split): [paths] if isinstance(paths, str) else paths for split, paths in value.items()}
    for split, paths in found.items():
        if not isinstance(paths, list) or not paths or not all(isinstance(one, str) and one for one in paths):
            raise UserError(f"{place}: data_files of split {split!r}: expected a pattern or a list of them")
        for one in paths:
            if "://" in one or Path(one).is_absolute():
                raise UserError(f"{place}: data_files of split {split!r}: {one} does not lie in the folder")
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _plain_files(path: Path, name: str, unpack: bool, strict: bool = True) -> list[Named]:
    """A file, or the files of an archive. With `strict` an unknown ending is an error."""
    if path.suffix.lower() == ".zip":
        folder = unpacked(path)
        found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        files = [(f"{name}/{file.relative_to(folder)}", file) for file in found]
        files = [(title, file) for title, file in files if not _hidden(file.relative_to(folder)) and _is_data(file)]
        if strict and not files:
            raise UserError(f"{name}: holds no data files, accepted are {', '.join(KINDS)}")
        return files
    if kind_of(path) is None:
        if strict:
            raise UserError(f"{name}: unknown kind of file, accepted are {', '.join((*KINDS, *PACKINGS))}")
        return []
    if not strict and NO_DATA.match(path.name):
        return []
    return [(name, unpacked(path) if unpack else path)]


def _is_data(path: Path) -> bool:
    return kind_of(path) is not None and not NO_DATA.match(path.name)


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


def _grouped(files: list[Named], one_file: bool = False) -> Layout:
    """Files by the splits that their names say; those of one split follow each other in the order of their names."""
    grouped: dict[str, list[Named]] = {}
    alone = one_file and len(files) == 1
    for name, path in files:
        grouped.setdefault("" if alone else split_of(name) or "", []).append((name, path))
    rest = grouped.pop("", [])
    if rest and "train" not in grouped:  # else they are neither to train on nor to validate with
        grouped["train"] = rest
    return Layout(grouped, one_file=list(grouped) == ["train"] and (one_file or bool(rest)))
