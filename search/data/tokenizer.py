"""The tokenizer of a run: loaded, or trained on the corpus."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import UserError
from .cache import content_key, make_once
from .corpus import Corpus
from .documents import documents
from .sources import one_line, quiet


COVERAGE = 0.999
"""Share of a corpus's characters that a trained tokenizer knows."""

TOO_MANY_UNKNOWN = 0.01
"""Share of unknown tokens above which a user is warned."""


def load_tokenizer(
    source: str | None, corpus: Corpus | None = None, cache_dir: Path | None = None, vocab_size: int = 8192
) -> PreTrainedTokenizerFast:
    """A tokenizer that can pad, mask, and put a sequence between a first and a last token.

    Args:
        source: Folder or Hub id; None trains a lower-case WordPiece tokenizer on the corpus, once, and keeps it in
            `cache_dir`.
        vocab_size: Tokens of a trained tokenizer, special ones included.

    Raises:
        UserError: There is no such tokenizer, or it lacks what masked language modelling needs.
    """
    if source is None:
        if corpus is None or cache_dir is None:
            raise ValueError("without a source there has to be a corpus to train on, and a folder for the tokenizer")

        text = corpus.train

        def train(folder: Path) -> None:
            train_tokenizer(text, vocab_size).save_pretrained(folder)

        key = content_key(text, vocab_size, COVERAGE)
        source = str(make_once(Path(cache_dir) / f"tokenizer-{key}", train))
    elif not Path(source).exists() and source.startswith((".", "/", "~")):
        raise UserError(f"tokenizer {source}: no such folder")
    try:
        with quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # The `tokenizers` library raises plain exceptions.
        raise UserError(f"tokenizer {source}: {one_line(error)}") from None
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {source}: it has no fast version; accepted is what the `tokenizers` library can run"
        )
    missing = [name for name in ("pad", "mask", "cls", "sep") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise UserError(f"tokenizer {source}: it has no {' and no '.join(missing)} token")
    shared = [name for name in ("pad", "cls", "sep") if getattr(tokenizer, f"{name}_token") == tokenizer.mask_token]
    if shared:
        raise UserError(
            f"tokenizer {source}: its mask token {tokenizer.mask_token!r} is also its {' and '.join(shared)} token, "
            "so what is masked could not be told from it"
        )
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows embeddings need: one more than the largest id, which may lie beyond the number of tokens."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def unknown_share(tokens: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> float:
    """Share of token ids, special ones left out, that stand for what the tokenizer does not know."""
    if tokenizer.unk_token_id is None:
        return 0.0
    special = np.isin(tokens, [id for id in tokenizer.all_special_ids if id != tokenizer.unk_token_id])
    return float(np.count_nonzero(tokens == tokenizer.unk_token_id) / max(1, tokens.size - np.count_nonzero(special)))


def train_tokenizer(dataset: Dataset, vocab_size: int) -> BertTokenizer:
    """A lower-case WordPiece tokenizer with the same vocabulary for the same documents, always."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer()
    counts: Counter[str] = Counter()
    for text in documents(dataset):
        counts.update(normalizer.normalize_str(text))
    # BERT's vocabulary of 30,522 has some 1,000 characters.
    frequent = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    usual = frequent[: max(64, vocab_size // 32)]
    least = len(specials) + 2 * len(usual)
    if vocab_size < least:
        raise UserError(
            f"a vocabulary of {vocab_size} is too small for {len(specials)} special tokens and {len(usual)} "
            f"characters, which also stand within words: {least} is the least"
        )
    more = _until_covered(counts, frequent, len(usual), vocab_size - least)
    alphabet = sorted((*usual, *more))
    within_words = sorted((*usual, *(character for character in more if not _stands_alone(character))))
    # The trainer (tokenizers 0.23) numbers the characters within words in the random order of a hash table, and
    # settles ties between merges by these numbers. Naming them beforehand makes the vocabulary the same every time;
    # only here they pass as special tokens.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=specials + [f"##{character}" for character in within_words],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learned = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learned.normalizer, learned.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    learned.train_from_iterator(documents(dataset), trainer)
    return BertTokenizer(vocab=learned.get_vocab(), do_lower_case=True)


def _until_covered(counts: Counter, frequent: list[str], first: int, room: int) -> list[str]:
    """Characters behind the `first` most frequent ones, until `COVERAGE` is reached or `room` tokens are taken."""
    total = sum(counts[character] for character in frequent)
    known = sum(counts[character] for character in frequent[:first])
    more = []
    for character in itertools.islice(frequent, first, None):
        room -= 1 if _stands_alone(character) else 2
        if known >= COVERAGE * total or room < 0:
            break
        known += counts[character]
        more.append(character)
    return more


IDEOGRAPHS = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip
"""What BERT's normaliser puts blanks around, so that it never stands within a word."""


def _stands_alone(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in IDEOGRAPHS)
