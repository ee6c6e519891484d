"""Files and folders that appear whole or not at all: written aside, then renamed."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
from safetensors import SafetensorError, safe_open

from .errors import UserError


try:
    _NAMESPACE = Path(os.readlink("/proc/self/ns/pid")).name.strip("pid:[]")
except OSError:  # a system in which pids mean the same everywhere
    _NAMESPACE = "0"

HOST = f"{socket.gethostname().partition('.')[0]}-{_NAMESPACE}"
"""Where a pid of this process means something: two containers may share a host name and a folder."""


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file; whoever reads meanwhile sees the old content or the new one, never a part."""
    aside = _aside(path)
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place when the block ends without an error.

    Until then `folder` keeps its content, so a full disk or a killed process costs nothing but the new content. What
    killed processes of this machine left aside is cleared on the way. Files get the permissions that the umask gives
    new ones: safetensors writes them for their owner alone, and checkpoints on a shared disk are for others, too.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_partial(folder.parent)
    aside, replaced = _aside(folder), _aside(folder).with_suffix(".replaced")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for path in aside.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(aside.stat().st_mode & 0o666)
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(aside, folder)
    finally:
        if replaced.exists() and not folder.exists():
            os.replace(replaced, folder)
        shutil.rmtree(replaced, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def remove_partial(*folders: Path) -> None:
    """Removes the half-written files and folders that killed processes of this machine left directly in folders."""
    for remains in itertools.chain.from_iterable(folder.glob(".*.partial") for folder in folders):
        pid, _, host = remains.suffixes[-2][1:].partition("@") if len(remains.suffixes) > 1 else ("", "", "")
        if host != HOST or not pid.isdigit() or psutil.pid_exists(int(pid)):
            continue
        if remains.is_dir():
            shutil.rmtree(remains, ignore_errors=True)
        else:
            remains.unlink(missing_ok=True)


def check_place(folder: Path, mark: str, kind: str) -> None:
    """Raises UserError where a folder of this kind may not stand: something without the file `mark` is there."""
    if not folder.name:
        raise UserError(f"{folder} is no name for a {kind}; name a new folder or an empty one")
    if folder.exists() and not (folder / mark).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no {kind}; name a new folder or an empty one")


def check_whole(folder: Path | str) -> None:
    """Looks at what is read from a folder, JSON and safetensors, without loading any weights.

    Names that are no folder here, as those of the Hub, are left to whoever reads them.

    Raises:
        UserError: A file is truncated or damaged, which.
    """
    folder = Path(folder).expanduser()
    for file in sorted(folder.glob("*")) if folder.is_dir() else ():
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8-sig"))
            elif file.suffix == ".safetensors":
                with safe_open(file, "pt"):
                    pass
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise UserError(f"{file} is damaged: {error}") from None


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in and beneath a folder, by its path in there; empty where there is no such folder."""
    sums = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        sums[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return sums


@contextlib.contextmanager
def reported(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Turns a full disk or a missing permission into a UserError; for writing that keeps what stands at `path`.

    Args:
        others: What else the writing may raise then.
    """
    try:
        yield
    except (OSError, SafetensorError, *others) as error:  # type: ignore[misc]  # a tuple of classes with a star
        raise UserError(f"{path} cannot be written and is left as it was: {error}") from error


def _aside(path: Path) -> Path:
    """Beside `path`, so that renaming stays within a file system; other processes and machines have others."""
    return path.with_name(f".{path.name}.{os.getpid()}@{HOST}.partial")
