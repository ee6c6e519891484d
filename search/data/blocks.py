"""Text as blocks of token ids, memory-mapped."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from ..errors import UserError
from .cache import cached, content_key, make_once
from .documents import documents
from .tokenizer import vocabulary_size


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
    check_length(sequence_length)
    dtype = np.uint16 if vocabulary_size(tokenizer) <= 2**16 else np.uint32
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    del backend["padding"], backend["truncation"]  # They change with every call of the tokenizer.
    key = content_key(dataset, backend, tokenizer.cls_token_id, tokenizer.sep_token_id, sequence_length)
    folder = Path(cache_dir) / f"blocks-{key}"
    make_once(folder, lambda aside: _write_blocks(dataset, tokenizer, sequence_length, dtype, aside / "tokens.bin"))
    with cached(folder):
        blocks: np.memmap = np.memmap(folder / "tokens.bin", dtype, mode="r").reshape(-1, sequence_length)  # type: ignore[assignment]
    return blocks


def check_length(sequence_length: int) -> None:
    """Raises UserError where nothing would fit between the special tokens."""
    if sequence_length < 3:
        raise UserError(f"sequence_length {sequence_length}: at least 3 tokens are needed, two of them special")


def _write_blocks(dataset: Dataset, tokenizer, sequence_length: int, dtype: type, path: Path) -> None:
    content = sequence_length - 2
    rest: np.ndarray = np.empty(0, dtype)
    blocks_written = 0
    with open(path, "wb") as file:
        for texts in batched(documents(dataset), 256):
            stream = np.concatenate([rest, token_ids(texts, tokenizer, dtype)])
            count = len(stream) // content
            file.write(framed(stream[: count * content].reshape(count, content), tokenizer).tobytes())
            rest = stream[count * content :]
            blocks_written += count
    if not blocks_written:
        raise UserError(
            f"the text has {len(rest)} tokens, too few for one sequence of {sequence_length} (two of them special): "
            "give more text or a smaller sequence_length"
        )


def token_ids(texts: list[str], tokenizer, dtype: Any) -> np.ndarray:
    """(T,) ids of texts one after the other, each with `[SEP]` behind it."""
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return np.array([token for ids in encoded["input_ids"] for token in (*ids, tokenizer.sep_token_id)], dtype)


def framed(content: np.ndarray, tokenizer) -> np.ndarray:
    """(N, L) blocks out of (N, L - 2) ids, between `[CLS]` and `[SEP]`."""
    blocks = np.empty((len(content), content.shape[1] + 2), content.dtype)
    blocks[:, 0], blocks[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    blocks[:, 1:-1] = content
    return blocks


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of up to `size` items; `itertools.batched` is new in Python 3.12."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
