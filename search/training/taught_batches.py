"""Batches of passages under a teacher as a function of (seed, step)."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .masked_lm import IGNORED, MaskedLanguageModelling, epoch_order
from .teacher import TaughtText


WIDTHS = 16
"""Passages are padded to a multiple of so many parts of the longest, so there are so many shapes of a batch."""


class TaughtBatches:
    """Passages of similar length stand together, padded to the same length; all batches have about as many tokens.

    Every epoch all passages come in another order; where those of a length do not fill their last batch, some of that
    length come twice.
    """

    def __init__(self, text: TaughtText, tokenizer, mask_fraction: float, seed: int, masked: bool, asks: bool):
        """masked: Whether tokens are masked and predicted; `asks`: whether the teacher predicts them, too."""
        self.asks = asks
        self.text = text
        self.seed = seed
        self.pad_token_id = tokenizer.pad_token_id
        self.longest = text.passages.longest
        unit = max(1, self.longest // WIDTHS)
        self.widths = np.minimum(-(-text.passages.lengths // unit) * unit, self.longest)
        self.masking = (
            MaskedLanguageModelling(text.passages.tokens, tokenizer, mask_fraction, seed) if masked else None
        )
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def arrays(self, step: int, batch_size: int) -> dict[str, np.ndarray]:
        """The global batch of a step, of as many tokens as `batch_size` of the longest passages have."""
        per_epoch = len(self._epoch(0, batch_size))
        epoch, index = divmod(step, per_epoch)
        rows = self._epoch(epoch, batch_size)[index]
        return self.gather(rows, np.random.default_rng([self.seed, 1, step]))

    @property
    def bookmark(self) -> dict[str, Any]:
        """As of `MaskedLanguageModelling`."""
        return {}

    def return_to(self, bookmark: dict[str, Any]) -> None:
        """As of `MaskedLanguageModelling`."""

    def asked(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The teacher's logits (N, V) where tokens are masked, of the masked text; nothing where it is not asked."""
        return {"taught_logits": self.text.teacher.logits(inputs)} if self.asks else {}

    def gather(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Passages as the student takes them: (B, L) arrays, (B, L, d) `states`, (B, M) `positions` and `labels`."""
        length = int(self.widths[rows].max())
        arrays = self.text.passages.pad(rows, length, self.pad_token_id)
        arrays["states"] = self.text.states.rows(rows, length)
        if self.masking is not None:
            ids, positions, labels = self.masking.mask(arrays["input_ids"], rng)
            arrays |= {"input_ids": ids, "positions": positions, "labels": labels}
        return arrays

    def validation(self) -> Iterator[dict[str, np.ndarray]]:
        """At most 512 passages in batches of 32 of similar length, under masks that depend on the text alone."""
        order = np.argsort(self.widths[:512], kind="stable")
        for start in range(0, len(order), 32):
            yield self.gather(order[start : start + 32], np.random.default_rng([0, start]))

    def _make_epoch(self, epoch: int, batch_size: int) -> list[np.ndarray]:
        order = epoch_order(len(self.widths), self.seed, epoch)
        batches = []
        for width in np.unique(self.widths):
            rows = order[self.widths[order] == width]
            count = batch_size * self.longest // width
            batches += np.split(np.resize(rows, -(-len(rows) // count) * count), -(-len(rows) // count))
        mixed = np.random.default_rng([self.seed, 3, epoch]).permutation(len(batches))
        return [batches[index] for index in mixed]


def counts(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """What the losses of a whole batch are divided by."""
    counted = {}
    if "states" in arrays:
        counted = {"tokens": int(arrays["attention_mask"].sum()), "rows": len(arrays["input_ids"])}
        if "labels" in arrays:
            counted["predictions"] = max(1, int((arrays["labels"] != IGNORED).sum()))
    return counted
