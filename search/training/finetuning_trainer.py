"""transformers' Trainer with batches of similar length, and an end to training that diverges."""

from collections.abc import Callable, Iterator, Sequence

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from ..errors import TrainingDiverged


class LengthGroupedSampler(Sampler[int]):
    """Batches of similar length in random order, another one in every epoch.

    transformers' sampler of this name goes from long to short texts again and again, which costs accuracy where short
    texts are of another kind than long ones (SST-2's phrases and sentences). Here the batches are shuffled afterwards,
    and texts are sorted among fewer: `WINDOW` batches already save most of the padding.
    """

    WINDOW = 8

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths = lengths
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        indices = get_length_grouped_indices(self.lengths, self.batch_size, self.WINDOW, self.generator)
        whole = len(indices) // self.batch_size
        for batch in torch.randperm(whole, generator=self.generator).tolist():
            yield from indices[batch * self.batch_size : (batch + 1) * self.batch_size]
        yield from indices[whole * self.batch_size :]


class FinetuningTrainer(Trainer):
    """A Trainer with batches of similar length that stops at the first loss that is not finite, in all processes.

    Its sampler has a generator of its own, because dropout drives the global ones of several processes apart.
    """

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        parts = self.args.gradient_accumulation_steps * self.args.world_size
        lengths = self.train_dataset["length"][:]  # of all columns, of which only the model's reach the data loader
        return LengthGroupedSampler(lengths, self.args.train_batch_size * parts, self.args.seed)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = self.accelerator.reduce(super().training_step(*args, **kwargs), reduction="mean")
        if not torch.isfinite(loss):
            step = self.state.global_step + 1
            raise TrainingDiverged(f"the loss is {loss} at step {step}; a lower learning rate may help")
        return loss


class Ticking(TrainerCallback):
    """Calls `tick` after every tenth step and the first, in all processes."""

    def __init__(self, tick: Callable[[], None]):
        self.tick = tick

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % 10 == 1:
            self.tick()
