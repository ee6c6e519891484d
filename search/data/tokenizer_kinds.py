"""Kinds of tokenizers that a run can train on its corpus, one function each, and the table of their names.

All have the same special tokens, put a text between `[CLS]` and `[SEP]`, give the second text of a pair token types
of 1, and have the same vocabulary for the same documents, always.
"""

import importlib.util
import io
import itertools
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertTokenizer, PreTrainedTokenizerFast

from ..errors import UserError
from .documents import documents


COVERAGE = 0.999
"""Share of a corpus's characters that a trained tokenizer knows, if it does not know all bytes."""

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_wordpiece(dataset: Dataset, vocab_size: int) -> BertTokenizer:
    """BERT's: lower case, pieces of words by WordPiece (arXiv 1609.08144, Section 4.1).

    Accents are left out, but not from text in which marks are more than accents: without its vowel signs Devanagari
    would not be the same words.
    """
    written: Counter[str] = Counter()
    for text in documents(dataset):
        written.update(text)
    accents = _marks_carry_words(written)
    normalizer = normalizers.BertNormalizer(strip_accents=not accents)
    counts: Counter[str] = Counter()
    for character, count in written.items():
        for part in normalizer.normalize_str(character):
            counts[part] += count
    frequent = _by_frequency(counts)
    usual = frequent[: _usual(vocab_size)]
    least = len(SPECIALS) + 2 * len(usual)
    if vocab_size < least:
        raise UserError(
            f"a vocabulary of {vocab_size} is too small for {len(SPECIALS)} special tokens and {len(usual)} "
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
        special_tokens=[*SPECIALS, *(f"##{character}" for character in within_words)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learned = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learned.normalizer, learned.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    learned.train_from_iterator(documents(dataset), trainer)
    return BertTokenizer(vocab=learned.get_vocab(), do_lower_case=True, strip_accents=False if accents else None)


ACCENTS = ((0x0300, 0x036F), (0x0591, 0x05C7), (0x0610, 0x061A), (0x064B, 0x065F), (0x0670, 0x0670), (0x06D6, 0x06ED))
"""Marks without which a word can be read: accents of Latin, Greek and Cyrillic, points of Hebrew and Arabic."""


def _marks_carry_words(counts: Counter[str]) -> bool:
    """Whether text has marks, once letters are taken apart, that are more than accents."""
    marks = 0
    for character, count in counts.items():
        parts = [part for part in unicodedata.normalize("NFD", character) if unicodedata.category(part) == "Mn"]
        marks += count * sum(not _within(part, ACCENTS) for part in parts)
    return marks > (1 - COVERAGE) * counts.total()


def _by_frequency(counts: Counter[str]) -> list[str]:
    return sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))


def _usual(vocab_size: int) -> int:
    """How many characters are known whatever their share; BERT's vocabulary of 30,522 has some 1,000."""
    return max(64, vocab_size // 32)


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
    return _within(character, IDEOGRAPHS)


def _within(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(low <= ord(character) <= high for low, high in ranges)


LONGEST_LINE = 4096
"""Characters; what is longer is cut, because sentencepiece would leave it out."""

MOST_CHARACTERS = 2**28
"""Of a corpus from which pieces are learnt; of a longer one every n-th document is taken."""


def train_unigram(dataset: Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """Pieces by a unigram language model (arXiv 1804.10959), with upper case, also for text without blanks.

    The trainer is sentencepiece's: that of `tokenizers` (0.23) goes through words in the random order of a hash table,
    and finds other pieces every time.
    """
    if importlib.util.find_spec("sentencepiece") is None:
        raise UserError("--tokenizer-kind unigram needs sentencepiece: pip install sentencepiece")
    import sentencepiece

    normalizer = normalizers.NFKC()
    counts: Counter[str] = Counter()
    for text in documents(dataset):
        counts.update(text)
    some = itertools.islice(documents(dataset), 0, None, 1 + counts.total() // MOST_CHARACTERS)
    frequent = [counts[character] for character in _by_frequency(counts)]
    coverage = max(COVERAGE, sum(frequent[: _usual(vocab_size)]) / max(1, sum(frequent)))
    places: dict[str, Any] = {}
    for index, name in enumerate(("pad", "unk", "bos", "eos")):
        places |= {f"{name}_id": index, f"{name}_piece": SPECIALS[index]}
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(some, normalizer),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # fewer where the text has not so many pieces
            character_coverage=coverage,
            normalization_rule_name="identity",
            max_sentence_length=8 * LONGEST_LINE,
            num_threads=1,  # sums in the same order on every machine
            minloglevel=3,
            control_symbols=[SPECIALS[-1]],
            **places,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2].partition(". Increase")[0]
        raise UserError(f"no unigram tokenizer with a vocabulary of {vocab_size}: {reason}") from None
    learned = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(learned.id_to_piece(index), learned.get_score(index)) for index in range(learned.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIALS.index("[UNK]")))
    tokenizer.normalizer, tokenizer.decoder = normalizer, decoders.Metaspace()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return _finished(tokenizer)


def _lines(texts: Iterator[str], normalizer: normalizers.Normalizer) -> Iterator[str]:
    """Lines as sentencepiece takes them, which ends a text at a zero byte."""
    for text in texts:
        for line in normalizer.normalize_str(text.replace("\0", " ")).splitlines():
            for start in range(0, len(line), LONGEST_LINE):
                yield line[start : start + LONGEST_LINE]


def train_byte_bpe(dataset: Dataset, vocab_size: int) -> PreTrainedTokenizerFast:
    """GPT-2's and RoBERTa's: pairs of bytes, so nothing is unknown; with upper case, a blank belongs to its word."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(SPECIALS) + len(alphabet)
    if vocab_size < least:
        raise UserError(
            f"a vocabulary of {vocab_size} is too small for {len(SPECIALS)} special tokens and {len(alphabet)} bytes: "
            f"{least} is the least"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    # The first word of a text and words given one by one are the same tokens as within a text.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents(dataset), trainer)
    return _finished(tokenizer, processors.ByteLevel(trim_offsets=True))


def _finished(tokenizer: Tokenizer, *before: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers with BERT's special tokens around one text or two."""
    template = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(name, SPECIALS.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.post_processor = processors.Sequence([*before, template])
    names = {f"{name[1:-1].lower()}_token": name for name in SPECIALS}
    # Its blank belongs to the word that it stands for.
    mask = AddedToken("[MASK]", lstrip=True, special=True, normalized=False)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    options: dict[str, Any] = {**names, "mask_token": mask, "model_input_names": inputs}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


TOKENIZER_KINDS: dict[str, Callable[[Dataset, int], PreTrainedTokenizerFast]] = {
    "wordpiece": train_wordpiece,
    "unigram": train_unigram,
    "byte_bpe": train_byte_bpe,
}
"""Name -> trains it on a column "text", with so many tokens, special ones included."""
