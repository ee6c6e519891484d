"""transformers' Trainer with batches of similar length, losses of tasks, and an end to training that diverges."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from ..errors import TrainingDiverged
from .soft_labels import SOFT_LABELS, SoftLabels
from .task_types import LearnsSoftly, TaskType


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

    The loss is the task's own, a sum over items (texts, words, windows) divided by the items of the whole batch, over
    all accumulation steps and processes. So the gradient is the same however a batch is cut, whatever the model.

    Args:
        head: What the task is.
        weights: Of its classes, see its `class_weights`.
        soft_labels: What the column of this name is, where the examples have it.
    """

    def __init__(
        self,
        head: TaskType,
        weights: torch.Tensor | None = None,
        soft_labels: SoftLabels | None = None,
        **options: Any,
    ):
        # The function is what tells Trainer that the loss is divided already.
        super().__init__(
            **options, data_collator=head.collator(options["processing_class"]), compute_loss_func=head.loss
        )
        self.head = head
        self.soft_labels = soft_labels
        self.weights = weights if weights is None else weights.to(self.args.device)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if SOFT_LABELS not in self._signature_columns:
            self._signature_columns.append(SOFT_LABELS)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        items = torch.tensor(float(sum(map(self.head.count, batches))), device=device)
        return batches, self.accelerator.reduce(items, reduction="sum")

    def compute_loss(self, model, inputs: Mapping[str, Any], return_outputs=False, num_items_in_batch=None):
        """The share of this part of a batch, times the processes, because their gradients are averaged."""
        targets = (*self.head.targets, SOFT_LABELS)
        outputs = model(**{name: value for name, value in inputs.items() if name not in targets})
        loss = self.head.loss(outputs, inputs, self.weights, self.args.label_smoothing_factor)
        if SOFT_LABELS in inputs and self.soft_labels is not None:
            soft = cast(LearnsSoftly, self.head).soft_loss(outputs, inputs[SOFT_LABELS], self.soft_labels.temperature)
            loss = self.soft_labels.label_weight * loss + (1 - self.soft_labels.label_weight) * soft
        if model.training and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes / num_items_in_batch
        else:
            loss = loss / max(1, self.head.count(inputs))
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthGroupedSampler:
        parts = self.args.gradient_accumulation_steps * self.args.world_size
        features = cast(Dataset, self.train_dataset)
        lengths = features["length"][:]  # of all columns, of which only the model's reach the data loader
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
