"""Labelled tasks made from nothing but text, so that encoders can be compared on anybody's corpus.

Examples come in pairs, a true one and a false one with the same words or the same first sentence. So there is as
much of each class, and neither the words of a sentence nor a first sentence give a label away.
"""

import re
from collections.abc import Sequence
from random import Random

from datasets import Dataset

from ..errors import UserError
from .corpus import Corpus
from .documents import documents


SELF_MADE_TASKS = {
    "word_order": "self-made: are the words of a sentence in order, or were they shuffled?",
    "next_sentence": "self-made: does sentence two follow sentence one, or is it from another document?",
}
TEXT_COLUMNS = {"word_order": ("sentence",), "next_sentence": ("sentence1", "sentence2")}
LABEL_NAMES = {"word_order": ("shuffled", "in_order"), "next_sentence": ("other_document", "next")}

TRAIN_EXAMPLES = 4000
VALIDATION_EXAMPLES = 2000
MIN_WORDS, MAX_WORDS = 6, 40
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?![a-z])|\n\s*\n")

Texts = tuple[str, ...]


def make_splits(name: str, corpus: Corpus, max_train_examples: int | None, seed: int) -> tuple[Dataset, Dataset]:
    """Train and validation examples, each from its own split of the corpus and without common texts.

    Args:
        max_train_examples: None for 4,000. Validation has up to 2,000.

    Raises:
        UserError: The corpus has too few sentences.
    """
    make = {"word_order": _word_order, "next_sentence": _next_sentence}[name]
    limits = {"train": max_train_examples or TRAIN_EXAMPLES, "validation": VALIDATION_EXAMPLES}
    splits: list[Dataset] = []
    known: set[Texts] = set()
    for split, limit in limits.items():
        pairs = make(getattr(corpus, split), (limit + 1) // 2, Random(f"{name} {split} {seed}"))
        pairs = [pair for pair in pairs if pair[0] not in known]
        if not pairs:
            raise UserError(
                f"{name}: {corpus.name} has no suitable sentences in {split}; they need {MIN_WORDS} to {MAX_WORDS} "
                "words, a full stop, question or exclamation mark, and documents of two sentences or more for pairs"
            )
        known.update(true for true, _ in pairs)
        examples = [(*texts, label) for true, false in pairs for label, texts in ((1, true), (0, false))]
        splits.append(Dataset.from_dict(dict(zip((*TEXT_COLUMNS[name], "label"), zip(*examples)))))
    return tuple(splits)


def _word_order(dataset: Dataset, count: int, random: Random) -> list[tuple[Texts, Texts]]:
    """Sentences, whole and shuffled. In half of them the first and the last word stay, so that the end of a sentence
    does not tell, and the rest of it must be read."""
    sentences = [s for document in _sample(dataset, count, random) for s in document]
    pairs: list[tuple[Texts, Texts]] = []
    for sentence in _draw(list(dict.fromkeys(sentences)), count, random):
        words = sentence.split()
        kept = random.randrange(2)
        inner = words[kept : len(words) - kept]
        random.shuffle(inner)
        shuffled = " ".join([*words[:kept], *inner, *words[len(words) - kept :]])
        if shuffled != sentence:
            pairs.append(((sentence,), (shuffled,)))
    return pairs


def _next_sentence(dataset: Dataset, count: int, random: Random) -> list[tuple[Texts, Texts]]:
    """Two sentences in a row, and the first of them with one of another document: in half of the cases its opening,
    which is easier to tell, else any of its sentences."""
    sampled = _sample(dataset, count, random)
    successions = [(number, *two) for number, document in enumerate(sampled) for two in zip(document, document[1:])]
    pairs: list[tuple[Texts, Texts]] = []
    for number, first, second in _draw(successions, count, random):
        other_number = random.randrange(len(sampled))
        other = sampled[other_number][0] if random.randrange(2) else random.choice(sampled[other_number])
        if other_number != number and other not in (first, second):
            pairs.append(((first, second), (first, other)))
    return pairs


def _sample(dataset: Dataset, count: int, random: Random) -> list[list[str]]:
    """The sentences of at most `count` documents, which are chosen at random where there are more."""
    rows = sorted(_draw(range(len(dataset)), count, random))
    split = (_sentences(text) for text in documents(dataset.select(rows)))
    return [sentences for sentences in split if sentences]


def _sentences(document: str) -> list[str]:
    """Complete sentences of a moderate length, each on one line."""
    sentences = (" ".join(part.split()) for part in SENTENCE_END.split(document.strip()))
    return [s for s in sentences if s[-1:] in {".", "!", "?"} and MIN_WORDS <= s.count(" ") + 1 <= MAX_WORDS]


def _draw(population: Sequence, count: int, random: Random) -> list:
    return random.sample(population, min(count, len(population)))
