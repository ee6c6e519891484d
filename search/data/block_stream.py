"""Blocks of token ids out of a text that is read while it is trained on, shuffled within a window.

The blocks follow each other in windows of a fixed number of tokens, each shuffled as a whole. So which blocks stand in
step s is a function of (seed, s), as with a text in memory. A bookmark says where the text of a window begins: reading
from there gives the same to the bit, and spares all that came before.
"""

from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from .blocks import framed, token_ids
from .streaming import DocumentReader, TextStream
from .tokenizer import vocabulary_size


WINDOW_TOKENS = 2**22
"""That are shuffled together; twice so many are in memory, and what is left of the documents read last."""

FIRST_WINDOW_TOKENS = 2**17
"""Of the first window, so that training begins at once; those behind it are twice as large each."""

CHUNK_DOCUMENTS, CHUNK_CHARACTERS = 256, 2**20
"""That are tokenized together."""


class BlockStream:
    """A text as blocks.

    Args:
        sequence_length: L, in tokens.
        name: Of its content, as far as that is known: equal for the same beginning of a text.
    """

    def __init__(
        self,
        text: TextStream,
        tokenizer: PreTrainedTokenizerFast,
        sequence_length: int,
        name: str,
        window_tokens: int = WINDOW_TOKENS,
        first_window_tokens: int = FIRST_WINDOW_TOKENS,
    ):
        self.text, self.tokenizer, self.sequence_length, self.name = text, tokenizer, sequence_length, name
        self.window = max(1, window_tokens // sequence_length)
        self.first_window = min(self.window, max(1, first_window_tokens // sequence_length))
        self._reader: BlockReader | None = None

    def size(self, window: int) -> int:
        """Blocks of a window."""
        return min(self.window, self.first_window << min(window, 40))

    def locate(self, block: int) -> tuple[int, int]:
        """The window of a block, and its place there."""
        window = 0
        while (size := self.size(window)) < self.window and block >= size:
            block -= size
            window += 1
        return window + block // size, block % size

    def reader(self, seed: int) -> "BlockReader":
        """The blocks in the order of a seed, from the first on. Who asks again with the same seed gets the same
        reader, which knows the first window already."""
        if self._reader is None or self._reader.seed != seed:
            self._reader = BlockReader(self, seed)
        return self._reader


class BlockReader:
    """Blocks in the order of training, of as many epochs as are asked for.

    Raises:
        UserError: The text cannot be read, or holds none.
    """

    def __init__(self, stream: BlockStream, seed: int):
        self.stream, self.seed = stream, seed
        dtype = np.uint16 if vocabulary_size(stream.tokenizer) <= 2**16 else np.uint32
        self._next: np.ndarray = np.empty((stream.window, stream.sequence_length), dtype)
        self._go_to({"window": 0})
        self._first: tuple[np.ndarray, dict[str, Any]] | None = None

    def take(self, first: int, count: int) -> np.ndarray:
        """Blocks `first` to `first + count`, (count, L). Twice as many are read ahead for the next window, which may
        be twice as large."""
        parts = []
        begin, end = first, first + count
        while begin < end:
            window, offset = self.stream.locate(begin)
            parts.append(self._shuffled(window)[offset : offset + end - begin])
            begin += len(parts[-1])
        self._read(2 * count)
        return np.concatenate(parts)

    @property
    def bookmark(self) -> dict[str, Any]:
        """Where the text of the window in use begins, as plain data."""
        return self._bookmark

    def return_to(self, bookmark: dict[str, Any]) -> None:
        """Reads from a bookmark of a stream with the same name and seed."""
        self._go_to(bookmark)

    def _go_to(self, bookmark: dict[str, Any]) -> None:
        """The window of the bookmark comes next."""
        self._current: np.ndarray | None = None
        self._window = bookmark["window"] - 1
        self._documents = DocumentReader(self.stream.text, self.seed, bookmark.get("documents"))
        self._rest = np.array(bookmark.get("rest", ()), self._next.dtype)
        self._before = self._documents.state  # before the documents whose tokens are in use
        self._tokens: np.ndarray | None = None  # are read when they are needed
        self._used = bookmark.get("used", 0)
        self._filled, self._begin = 0, self._place()
        self._bookmark = self._begin

    def _place(self) -> dict[str, Any]:
        """Where the next token stands."""
        return {"window": self._window + 1, "documents": self._before, "rest": self._rest.tolist(), "used": self._used}

    def _shuffled(self, window: int) -> np.ndarray:
        if window < self._window or (window == self._window and self._current is None):
            if self._first is not None:
                blocks, second = self._first
                self._go_to(second)
                self._window, self._current, self._bookmark = 0, blocks, {"window": 0}
            else:
                self._go_to({"window": 0})
        while self._window < window:
            self._advance()
        assert self._current is not None
        return self._current

    def _advance(self) -> None:
        size = self.stream.size(self._window + 1)
        self._read(size)
        self._window += 1
        order = np.random.default_rng([self.seed, 4, self._window]).permutation(size)
        self._current, self._bookmark = self._next[order], self._begin
        self._filled, self._begin = 0, self._place()
        if self._window == 0:
            self._first = self._current, self._begin

    def _read(self, count: int) -> None:
        """Reads so many blocks of the next window, or what it lacks."""
        content = self.stream.sequence_length - 2
        end = min(self._filled + count, self.stream.size(self._window + 1))
        while self._filled < end:
            if self._tokens is None:
                texts = self._documents.read(CHUNK_DOCUMENTS, CHUNK_CHARACTERS)
                tokens = token_ids(texts, self.stream.tokenizer, self._next.dtype)
                self._tokens = np.concatenate([self._rest, tokens])
            ready = min((len(self._tokens) - self._used) // content, end - self._filled)
            if ready == 0:
                self._rest = self._tokens[self._used :]
                self._before, self._tokens, self._used = self._documents.state, None, 0
                continue
            used = self._used + ready * content
            tokens = self._tokens[self._used : used].reshape(ready, content)
            self._next[self._filled : self._filled + ready] = framed(tokens, self.stream.tokenizer)
            self._used, self._filled = used, self._filled + ready
