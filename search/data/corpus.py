"""Text to learn from: corpora, tokenizers, and blocks of token ids that are ready for masked language modelling.

What is made from a text is kept in a cache under a key of its content, so it is made once and is never out of date.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset
from filelock import FileLock
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from ..errors import UserError
from ..files import replace_folder, reported
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


def load_tokenizer(
    source: str | None, corpus: Corpus, cache_dir: Path, vocab_size: int = 8192
) -> PreTrainedTokenizerFast:
    """A tokenizer that can pad, mask, and put a sequence between a first and a last token.

    Args:
        source: Folder or Hub id; None trains a lower-case WordPiece tokenizer on the corpus, once.
        vocab_size: Tokens of a trained tokenizer, special ones included.

    Raises:
        UserError: There is no such tokenizer, or it lacks what masked language modelling needs.
    """
    if source is None:
        key = _key(corpus.train, vocab_size)
        source = str(
            _make_once(
                Path(cache_dir) / f"tokenizer-{key}",
                lambda folder: train_tokenizer(corpus.train, vocab_size).save_pretrained(folder),
            )
        )
    elif not Path(source).exists() and source.startswith((".", "/", "~")):
        raise UserError(f"tokenizer {source}: no such folder")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # The `tokenizers` library raises plain exceptions.
        raise UserError(f"tokenizer {source}: {one_line(error)}") from None
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {source}: it has no fast version; accepted is what the `tokenizers` library can run"
        )
    missing = [name for name in ("pad", "mask", "cls", "sep") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise UserError(f"tokenizer {source}: it has no {' and no '.join(missing)} token")
    return tokenizer


def train_tokenizer(dataset: Dataset, vocab_size: int) -> BertTokenizer:
    """A lower-case WordPiece tokenizer with the same vocabulary for the same documents, always."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer()
    counts = Counter()
    for text in documents(dataset):
        counts.update(normalizer.normalize_str(text))
    # BERT's vocabulary of 30,522 has some 1,000 characters.
    frequent = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    alphabet = sorted(frequent[: max(64, vocab_size // 32)])
    if vocab_size < len(specials) + 2 * len(alphabet):
        raise UserError(
            f"a vocabulary of {vocab_size} is too small for {len(specials)} special tokens and {len(alphabet)} "
            f"characters, which also stand within words: {len(specials) + 2 * len(alphabet)} is the least"
        )
    # The trainer (tokenizers 0.23) numbers the characters within words in the random order of a hash table, and
    # settles ties between merges by these numbers. Naming them beforehand makes the vocabulary the same every time;
    # only here they pass as special tokens.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=specials + [f"##{character}" for character in alphabet],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learned = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learned.normalizer, learned.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    learned.train_from_iterator(documents(dataset), trainer)
    return BertTokenizer(vocab=learned.get_vocab(), do_lower_case=True)


def tokenized_blocks(
    dataset: Dataset, tokenizer: PreTrainedTokenizerFast, sequence_length: int, cache_dir: Path
) -> np.memmap:
    """Token ids of a corpus in blocks without padding, made once and mapped into memory.

    As RoBERTa's FULL-SENTENCES (arXiv 1907.11692, section 4.2): a block is `[CLS]`, the next L - 2 tokens of the
    documents one after the other with `[SEP]` between them, and `[SEP]`. Tokens at the end that fill no block are
    left out.

    Args:
        dataset: One column, "text".
        sequence_length: L, in tokens.

    Returns:
        (blocks, L), uint16 or for vocabularies beyond 65,536 tokens uint32, read-only.

    Raises:
        UserError: The text does not fill one block.
    """
    if sequence_length < 3:
        raise UserError(f"sequence_length {sequence_length}: at least 3 tokens are needed, two of them special")
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    del backend["padding"], backend["truncation"]  # They change with every call of the tokenizer.
    key = _key(dataset, backend, tokenizer.cls_token_id, tokenizer.sep_token_id, sequence_length)
    folder = Path(cache_dir) / f"blocks-{key}"
    _make_once(folder, lambda aside: _write_blocks(dataset, tokenizer, sequence_length, dtype, aside / "tokens.bin"))
    return np.memmap(folder / "tokens.bin", dtype, mode="r").reshape(-1, sequence_length)


def _write_blocks(dataset: Dataset, tokenizer, sequence_length: int, dtype: type, path: Path) -> None:
    content = sequence_length - 2
    rest = np.empty(0, dtype)
    blocks_written = 0
    with open(path, "wb") as file:
        for texts in batched(documents(dataset), 256):
            encoded = tokenizer(
                texts,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            tokens = [token for ids in encoded["input_ids"] for token in (*ids, tokenizer.sep_token_id)]
            stream = np.concatenate([rest, np.array(tokens, dtype)])
            count = len(stream) // content
            blocks = np.empty((count, sequence_length), dtype)
            blocks[:, 0], blocks[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
            blocks[:, 1:-1] = stream[: count * content].reshape(count, content)
            file.write(blocks.tobytes())
            rest = stream[count * content :]
            blocks_written += count
    if not blocks_written:
        raise UserError(
            f"the text has {len(rest)} tokens, too few for one sequence of {sequence_length} (two of them special): "
            "give more text or a smaller sequence_length"
        )


def _key(dataset: Dataset, *settings) -> str:
    """Names what is made of a text: equal documents and settings have equal keys, on any machine."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=12)
    for text in documents(dataset):
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Lets `make` fill a folder unless it is there; of several processes one makes it, and the others wait."""
    with reported(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with replace_folder(folder) as aside:
                    make(aside)
    return folder


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of up to `size` items; `itertools.batched` is new in Python 3.12."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
