"""Text as passages of varying length: sentences, paragraphs and pairs, as users embed and classify them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from ..errors import UserError
from .blocks import batched
from .cache import cached, content_key, make_once
from .documents import documents
from .tokenizer import vocabulary_size


SENTENCES = (1, 1, 1, 2, 4, 64)
"""How many sentences a passage has at most, drawn anew for each; the last fills what the length allows."""

PAIRS = 0.2
"""Share of passages that are joined to another: half of them to the one that follows, half to an unrelated one."""

SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")


@dataclass(frozen=True)
class Passages:
    """Sequences of token ids one after the other, each with its special tokens and without padding.

    Attributes:
        tokens: (T,), of all passages.
        starts: (N + 1,), where in `tokens` passage i starts; the last entry is T.
        seconds: (N,), where within a passage its second text starts; the passage's length where there is none.
        longest: Tokens that a passage has at most.
        name: Of their content: equal for the same text, tokenizer and length.
    """

    tokens: np.ndarray
    starts: np.ndarray
    seconds: np.ndarray
    longest: int
    name: str

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each."""
        return np.diff(self.starts)

    def head(self, tokens: int) -> "Passages":
        """The first passages, as many as hold so many tokens; all if there are fewer."""
        count = int(np.searchsorted(self.starts, tokens))
        if count >= len(self):
            return self
        return Passages(self.tokens, self.starts[: count + 1], self.seconds[:count], self.longest, self.name)

    def pad(self, rows: np.ndarray, length: int, pad_token_id: int) -> dict[str, np.ndarray]:
        """Passages as (B, length) arrays: input_ids, attention_mask (1 at tokens), token_type_ids (0 and 1)."""
        places = np.arange(length)
        mask = places < (self.starts[rows + 1] - self.starts[rows])[:, None]
        ids = np.full(mask.shape, pad_token_id, np.int64)
        ids[mask] = np.concatenate([self.tokens[self.starts[row] : self.starts[row + 1]] for row in rows])
        types = mask & (places >= self.seconds[rows][:, None])
        return {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": types.astype(np.int64)}


def passages(dataset: Dataset, tokenizer: PreTrainedTokenizerFast, longest: int, cache_dir: Path) -> Passages:
    """Passages of a corpus in random order, made once and mapped into memory.

    A document is cut where sentences end; 1, 2, 4 or as many sentences as fit follow each other in a passage, as
    `[CLS] a [SEP]`. A fifth are pairs, `[CLS] a [SEP] b [SEP]`: passages that are neighbours, or of different
    documents. What truncation and padding the tokenizer's file has switched on does not matter.

    Args:
        dataset: One column, "text".
        longest: Tokens of a passage at most, special ones included; longer sentences are cut.

    Raises:
        UserError: The text gives no passage.
    """
    if longest < 8:
        raise UserError(f"sequence_length {longest}: passages need at least 8 tokens")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    del backend["padding"], backend["truncation"]  # They change with every call of the tokenizer.
    settings = ("passages", SENTENCES, PAIRS, SENTENCE_END.pattern, longest)
    key = content_key(dataset, backend, tokenizer.cls_token_id, tokenizer.sep_token_id, *settings)
    folder = make_once(
        Path(cache_dir) / f"passages-{key}", lambda aside: _write_passages(dataset, tokenizer, longest, aside)
    )
    with cached(folder):
        tokens, starts, seconds = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FILES)
    return Passages(tokens, np.asarray(starts), np.asarray(seconds), longest, key)


_FILES = ("tokens", "starts", "seconds")


def _write_passages(dataset: Dataset, tokenizer, longest: int, folder: Path) -> None:
    dtype = np.uint16 if vocabulary_size(tokenizer) <= 2**16 else np.uint32
    middle = _between(tokenizer)
    made: list[np.ndarray] = []
    seconds: list[int] = []
    rng = np.random.default_rng(0)
    first, last = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    other: list[int] = []  # a passage of an earlier document

    def add(*parts: list[int]) -> None:
        joined = [*first, *parts[0], *(token for part in parts[1:] for token in (*middle, *part)), *last]
        made.append(np.array(joined, dtype))
        # BERT's second segment starts behind the separator of the first one.
        seconds.append(len(joined) if len(parts) == 1 else len(joined) - len(parts[1]) - len(last))

    for texts in batched(documents(dataset), 64):
        for sentences in _sentences(texts, tokenizer):
            groups = list(_groups(sentences, longest - 2, rng))
            pair_with_next = False
            for index, group in enumerate(groups):
                if pair_with_next:
                    pair_with_next = False
                    continue
                draw = rng.random()
                room = longest - 2 - len(middle)
                neighbour = groups[index + 1] if index + 1 < len(groups) else None
                if draw < PAIRS / 2 and neighbour is not None:
                    add(*_cut(group, neighbour, room))
                    pair_with_next = True
                elif draw < PAIRS and other:
                    pair = (group, other) if rng.random() < 0.5 else (other, group)
                    add(*_cut(*pair, room))
                else:
                    add(group)
            if groups:
                other = groups[rng.integers(len(groups))]
    if not made:
        raise UserError("the text holds no sentence of at least 2 tokens to learn from")
    order = rng.permutation(len(made))
    starts = np.concatenate([[0], np.cumsum([len(made[index]) for index in order])])
    np.save(folder / "tokens.npy", np.concatenate([made[index] for index in order]))
    np.save(folder / "starts.npy", starts)
    np.save(folder / "seconds.npy", np.array(seconds)[order])


def _between(tokenizer) -> list[int]:
    """What stands between two texts: [SEP], for RoBERTa's tokenizers two of them."""
    pair = tokenizer("a", "a", truncation=False, padding=False)["input_ids"]
    single = tokenizer("a", truncation=False, padding=False)["input_ids"]
    return [tokenizer.sep_token_id] * max(1, len(pair) - 2 * len(single) + 2)


def _sentences(texts: list[str], tokenizer) -> Iterator[list[list[int]]]:
    """The sentences of each text as token ids without special tokens."""
    parts = [[part for part in SENTENCE_END.split(text) if part.strip()] for text in texts]
    flat = [part for sentences in parts for part in sentences]
    if not flat:
        return
    options = {"add_special_tokens": False, "truncation": False, "padding": False, "verbose": False}
    encoded = iter(tokenizer(flat, return_attention_mask=False, return_token_type_ids=False, **options)["input_ids"])
    for sentences in parts:
        yield [next(encoded) for _ in sentences]


def _groups(sentences: list[list[int]], room: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Sentences joined to passages of at most `room` tokens; those of one token stand with others or not at all."""
    index = 0
    while index < len(sentences):
        most = SENTENCES[rng.integers(len(SENTENCES))]
        group = list(sentences[index][:room])
        index += 1
        for sentence in sentences[index : index + most - 1]:
            if len(group) + len(sentence) > room:
                break
            group += sentence
            index += 1
        if len(group) >= 2:
            yield group


def _cut(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """Both cut so that they fit together, the longer one first."""
    half = room // 2
    most = max(half, room - len(second))
    first = first[:most]
    return first, second[: room - len(first)]
