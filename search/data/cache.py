"""What is made from a text is kept under a key of its content, so it is made once and is never out of date."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset
from filelock import FileLock

from ..errors import UserError
from ..files import replace_folder, reported
from .documents import documents


def content_key(dataset: Dataset, *settings) -> str:
    """Names what is made of a text: equal documents and settings have equal keys, on any machine."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=12)
    for text in documents(dataset):
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def rows_key(*datasets: Dataset) -> str:
    """Names the rows of labelled data: equal rows in equal order have equal keys, wherever they lie."""
    digest = hashlib.blake2b(digest_size=12)
    for dataset in datasets:
        for batch in dataset.iter(batch_size=1000):
            digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()


@contextmanager
def cached(folder: Path) -> Iterator[None]:
    """For reading what `make_once` made: damage is a UserError that says what to do about it."""
    try:
        yield
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder} is damaged, remove it and it is made again: {error}") from None


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Lets `make` fill a folder unless it is there; of several processes one makes it, and the others wait."""
    with reported(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with replace_folder(folder) as aside:
                    make(aside)
    return folder
