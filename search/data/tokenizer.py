"""The tokenizer of a run: loaded, or trained on the corpus."""

from collections import Counter
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from ..errors import UserError
from .cache import content_key, make_once
from .corpus import Corpus
from .documents import documents
from .sources import one_line, quiet


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
        key = content_key(corpus.train, vocab_size)
        source = str(
            make_once(
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
