"""Masked language modelling: batches, masks and loss (BERT, arXiv 1810.04805, Section 3.1)."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..data.block_stream import BlockStream


IGNORED = -100


class MaskedLanguageModelling:
    """Batches of masked language modelling as a function of (seed, step).

    Every sequence has the same number M of predicted tokens, so shapes are static and the mean over processes and
    micro-batches is the mean over tokens.
    """

    def __init__(self, blocks: np.ndarray, tokenizer, mask_fraction: float, seed: int):
        """blocks: (N, L) token ids."""
        self.blocks = blocks
        self.seed = seed
        self.vocab_size = len(tokenizer)  # of ids to put in at random; there may be larger ones
        self.mask_token_id = tokenizer.mask_token_id
        self.special_ids = np.array(sorted(tokenizer.all_special_ids))
        self.mask_fraction = mask_fraction

    def arrays(self, step: int, batch_size: int) -> dict[str, np.ndarray]:
        """The global batch of a step as a student takes it."""
        return dict(zip(("input_ids", "positions", "labels"), self.batch(step, batch_size)))

    def asked(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What somebody else has to say of a batch; nobody is there."""
        return {}

    @property
    def bookmark(self) -> dict[str, Any]:
        """What helps to go on from the last step, as plain data; a text in memory needs nothing."""
        return {}

    def return_to(self, bookmark: dict[str, Any]) -> None:
        """Makes use of a bookmark."""

    def batch(self, step: int, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The global batch of a step: ids (B, L) masked, positions (B, M) within the sequence, labels (B, M)."""
        ids = self.taken(step * batch_size, batch_size).astype(np.int64)
        return self.mask(ids, np.random.default_rng([self.seed, 1, step]))

    def taken(self, first: int, count: int) -> np.ndarray:
        """(count, L), blocks in the order of training; every epoch has another."""
        epochs = [epoch_order(len(self.blocks), self.seed, (first + i) // len(self.blocks)) for i in range(count)]
        return self.blocks[[order[(first + i) % len(self.blocks)] for i, order in enumerate(epochs)]]

    def validation(self) -> Iterator[dict[str, np.ndarray]]:
        """At most 256 blocks in batches of 32, under masks that depend on the text alone."""
        ids = np.asarray(self.blocks[:256]).astype(np.int64)
        masked = self.mask(ids, np.random.default_rng(0))
        for start in range(0, len(ids), 32):
            yield dict(zip(("input_ids", "positions", "labels"), (array[start : start + 32] for array in masked)))

    def mask(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Chooses M tokens per row of ids (B, L), never special ones, and masks them 80/10/10 as BERT does."""
        predictions = min(max(1, round(self.mask_fraction * ids.shape[1])), ids.shape[1] - 1)
        scores = rng.random(ids.shape)
        scores[np.isin(ids, self.special_ids)] = 2.0
        positions = np.sort(np.argpartition(scores, predictions, axis=1)[:, :predictions], axis=1)
        labels = np.take_along_axis(ids, positions, axis=1)
        kind = rng.random(positions.shape)
        random_ids = rng.integers(0, self.vocab_size, positions.shape)
        replaced = np.where(kind < 0.8, self.mask_token_id, np.where(kind < 0.9, random_ids, labels))
        masked = ids.copy()
        np.put_along_axis(masked, positions, replaced, axis=1)
        # A row of almost only special tokens offers fewer than M: those predictions do not count.
        chosen = np.take_along_axis(scores, positions, axis=1)
        return masked, positions, np.where(chosen < 2.0, labels, IGNORED)


class StreamedLanguageModelling(MaskedLanguageModelling):
    """The same of a text that is read while it is trained on; it has no batches for validation."""

    def __init__(self, stream: BlockStream, tokenizer, mask_fraction: float, seed: int):
        super().__init__(np.empty((0, stream.sequence_length), np.int64), tokenizer, mask_fraction, seed)
        self.reader = stream.reader(seed)

    @property
    def bookmark(self) -> dict[str, Any]:
        return self.reader.bookmark

    def return_to(self, bookmark: dict[str, Any]) -> None:
        self.reader.return_to(bookmark)

    def taken(self, first: int, count: int) -> np.ndarray:
        return self.reader.take(first, count)


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the blocks in an epoch."""
    return np.random.default_rng([seed, 0, epoch]).permutation(size)


def to_device(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """A share of a batch as tensors; `positions` (B, M) and `labels` become flat, indices into the flattened batch."""
    arrays = dict(arrays)
    if "positions" in arrays:
        ids = arrays["input_ids"]
        arrays["positions"] = (arrays["positions"] + np.arange(len(ids))[:, None] * ids.shape[1]).ravel()
        arrays["labels"] = arrays["labels"].ravel()
    tensors = {name: torch.as_tensor(np.asarray(array, order="C")) for name, array in arrays.items()}
    if device.type == "cuda":  # A copy out of ordinary memory would wait for the device to finish its last step.
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
