"""Masked language modelling under Accelerate, resumable to the bit.

Nothing random has a state. Which blocks stand in step s, which tokens are masked and which units are dropped are
functions of (seed, s), so a run that was killed continues from any checkpoint exactly as if it had not been, without
saving generators or the position of a data loader. All processes draw the same global batch and take their share.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..errors import TrainingDiverged, UserError
from ..parsing import limited
from .masked_lm import IGNORED, MaskedLanguageModelling, mlm_loss, to_device
from .state import load_checkpoint, model_digest, save_checkpoint, text_digest


ADVICE = "a lower learning rate may help"


@dataclass(frozen=True)
class PretrainingBudget:
    """How long and how an encoder is pretrained.

    Attributes:
        steps: Optimiser steps.
        batch_size: Sequences per step, over all processes and micro-batches together.
        sequence_length: Tokens per sequence.
        learning_rate: Peak of the schedule.
        warmup_fraction: Share of the steps during which the learning rate rises linearly from 0.
        schedule: How it falls afterwards, to 0 at the last step.
        weight_decay: On matrices; biases, norms and embeddings' norms have none.
        adam_beta2, adam_epsilon: Of AdamW; the first moment's decay is 0.9. Defaults as RoBERTa and FlexiBERT.
        max_grad_norm: Gradients are clipped to this norm.
        mask_fraction: Share of a sequence's tokens to predict; 80% become the mask token, 10% random, 10% stay.
        micro_batches: The batch is accumulated over so many forward passes.
        checkpoint_steps: A checkpoint every so many steps; 0 for none.
        compile: Whether to run the model through `torch.compile`.
    """

    steps: int = limited(least=0, default=1000)
    batch_size: int = limited(least=1, default=64)
    sequence_length: int = limited(least=1, default=128)
    learning_rate: float = limited(above=0, default=1e-3)
    warmup_fraction: float = limited(least=0, most=1, default=0.06)
    schedule: Literal["linear", "cosine"] = "linear"
    weight_decay: float = limited(least=0, default=0.01)
    adam_beta2: float = limited(least=0, most=1 - 1e-9, default=0.98)
    adam_epsilon: float = limited(above=0, default=1e-6)
    max_grad_norm: float = limited(above=0, default=1.0)
    mask_fraction: float = limited(least=0, most=1, default=0.15)
    micro_batches: int = limited(least=1, default=1)
    checkpoint_steps: int = limited(least=0, default=0)
    compile: bool = False

    @property
    def tokens(self) -> int:
        """Tokens seen in all steps together, repetitions counted."""
        return self.steps * self.batch_size * self.sequence_length


@dataclass(frozen=True)
class PretrainingResult:
    """What pretraining came to. Losses in nats per predicted token; accuracy as a share of 1."""

    train_loss: float
    validation_loss: float
    validation_accuracy: float
    tokens_per_second: float
    seconds: float
    losses: tuple[float, ...]


def learning_rate(step: int, budget: PretrainingBudget) -> float:
    """Learning rate of a step, counted from 0."""
    warmup = max(1, round(budget.warmup_fraction * budget.steps))
    if step < warmup:
        return budget.learning_rate * (step + 1) / warmup
    rest = (step - warmup) / max(1, budget.steps - warmup)
    factor = 1 - rest if budget.schedule == "linear" else (1 + math.cos(math.pi * rest)) / 2
    return budget.learning_rate * factor


def build_optimizer(model: torch.nn.Module, budget: PretrainingBudget) -> torch.optim.Optimizer:
    """Fused AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": budget.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    betas = (0.9, budget.adam_beta2)
    return torch.optim.AdamW(groups, lr=budget.learning_rate, betas=betas, eps=budget.adam_epsilon, fused=True)


Progress = Callable[[int, float, float], None]
"""Called with (steps done, last loss in nats, tokens per second)."""

Arguments = Callable[[int], Mapping[str, Any]]
"""What a model is called with besides the batch in a step, counted from 0."""


def pretrain(
    model,
    blocks: np.ndarray,
    validation_blocks: np.ndarray,
    tokenizer,
    budget: PretrainingBudget,
    seed: int,
    accelerator: Accelerator,
    folder: Path | None = None,
    progress: Progress | None = None,
    arguments: Arguments = lambda step: {},
):
    """Trains a masked language model in place of its first weights, or from its last checkpoint in `folder`.

    Args:
        model: A `FlexiBertForMaskedLM`, or what is called like one; trained in place, also under data parallelism.
        blocks: (N, L) token ids to train on; `validation_blocks` the same for validation.
        seed: Decides the order of the data, masks and dropout.
        accelerator: Devices, precision and processes.
        folder: Where checkpoints are kept, if the budget has any.
        progress: Told about every tenth step or so.
        arguments: Further arguments of the model, a function of the step alone; validation has those of step
            `budget.steps`.

    Raises:
        TrainingDiverged: The loss is not finite; the last checkpoint is left as it is.
        UserError: The batch does not divide over processes and micro-batches, a checkpoint is of another run, or one
            cannot be written; the last one is left as it is.
    """
    share, rest = divmod(budget.batch_size, accelerator.num_processes * budget.micro_batches)
    if rest or not share:
        raise UserError(
            f"batch size {budget.batch_size} does not divide over {accelerator.num_processes} processes "
            f"times {budget.micro_batches} micro-batches"
        )
    objective = MaskedLanguageModelling(blocks, tokenizer, budget.mask_fraction, seed)
    trained = torch.compile(model) if budget.compile else model
    trained, optimizer = accelerator.prepare(trained, build_optimizer(model, budget))
    identity = {"seed": seed, "text": text_digest(blocks), "budget": asdict(budget), "model": model_digest(model)}
    first_step, losses = load_checkpoint(accelerator, folder, identity)

    trained.train()
    pending: list[torch.Tensor] = []
    started = last_time = time.perf_counter()
    last_step, rate = first_step, 0.0
    for step in range(first_step, budget.steps):
        set_seed(step_seed(seed, step, accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, budget)
        arrays = objective.batch(step, budget.batch_size)
        total = torch.zeros((), device=accelerator.device)
        for micro_batch in range(budget.micro_batches):
            start = (micro_batch * accelerator.num_processes + accelerator.process_index) * share
            batch = to_device(tuple(array[start : start + share] for array in arrays), accelerator.device)
            accumulating = micro_batch < budget.micro_batches - 1
            with accelerator.no_sync(trained) if accumulating else nullcontext():
                loss = mlm_loss(trained, batch, **arguments(step)) / budget.micro_batches
                accelerator.backward(loss)
            total += loss.detach()
        gradient_norm = accelerator.clip_grad_norm_(trained.parameters(), budget.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pending.append(total)

        done = step + 1
        checkpoint = folder is not None and budget.checkpoint_steps and done % budget.checkpoint_steps == 0
        if done % 10 == 0 or checkpoint or done == budget.steps:
            losses += collect(pending, accelerator, done)
            pending = []
            now = time.perf_counter()
            rate = (done - last_step) * budget.batch_size * budget.sequence_length / (now - last_time)
            last_step, last_time = done, now
            if progress is not None:
                progress(done, losses[-1], rate)
        kept = checkpoint or done == budget.steps
        if kept and not (math.isfinite(gradient_norm) or accelerator.optimizer_step_was_skipped):
            raise TrainingDiverged(f"the gradient is {gradient_norm:g} at step {done}; {ADVICE}")
        if checkpoint:
            save_checkpoint(accelerator, folder, done, losses, identity)
    seconds = time.perf_counter() - started

    validation = evaluate(trained, validation_blocks, tokenizer, budget, accelerator, **arguments(budget.steps))
    if not math.isfinite(validation[0]):
        raise TrainingDiverged(f"the validation loss is {validation[0]:g} after step {budget.steps}; {ADVICE}")
    accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
    tokens = (budget.steps - first_step) * budget.batch_size * budget.sequence_length
    accelerator.free_memory()
    recent = losses[-max(1, budget.steps // 20) :]
    return PretrainingResult(
        train_loss=sum(recent) / max(1, len(recent)) if recent else float("nan"),
        validation_loss=validation[0],
        validation_accuracy=validation[1],
        tokens_per_second=tokens / seconds if seconds and tokens else rate,
        seconds=seconds,
        losses=tuple(losses),
    )


def step_seed(seed: int, step: int, process: int) -> int:
    """Seed of everything that a process draws within a step, which is dropout."""
    return int(np.random.SeedSequence([seed, 2, step, process]).generate_state(1)[0])


def collect(pending: list[torch.Tensor], accelerator: Accelerator, done: int) -> list[float]:
    """Losses of the last steps, averaged over processes; fetched together, because each fetch waits for the device."""
    losses = accelerator.reduce(torch.stack(pending), reduction="mean").tolist()
    for offset, loss in enumerate(losses):
        if not math.isfinite(loss):
            step = done - len(losses) + offset + 1
            raise TrainingDiverged(f"the loss is {loss} at step {step}; {ADVICE}")
    return losses


@torch.no_grad()
def evaluate(
    model, blocks: np.ndarray, tokenizer, budget: PretrainingBudget, accelerator: Accelerator, **arguments
) -> tuple[float, float]:
    """Loss in nats and accuracy on at most 256 validation blocks under masks that never change."""
    model.eval()
    objective = MaskedLanguageModelling(blocks, tokenizer, budget.mask_fraction, seed=0)
    count = min(len(blocks), 256)
    arrays = objective.mask(np.asarray(blocks[:count]).astype(np.int64), np.random.default_rng(0))
    sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    size, processes = 32, accelerator.num_processes
    for start in range(accelerator.process_index * size, round_up(count, size * processes), size * processes):
        # Every process takes part in every round, sharded models need that; rows past the end count nothing.
        rows = np.arange(start, start + size) % count
        ids, positions, labels = (array[rows] for array in arrays)
        labels = np.where(np.arange(start, start + size)[:, None] < count, labels, IGNORED)
        batch = to_device((ids, positions, labels), accelerator.device)
        inputs = {"input_ids": batch.input_ids, "prediction_positions": batch.positions}
        logits = model(**inputs, **arguments).logits.float()
        losses = torch.nn.functional.cross_entropy(logits, batch.labels, ignore_index=IGNORED, reduction="sum")
        hits = (logits.argmax(-1) == batch.labels).sum()
        sums += torch.stack([losses.double(), hits.double(), (batch.labels != IGNORED).sum().double()])
    loss, hits, predictions = accelerator.reduce(sums, reduction="sum").tolist()
    return loss / predictions, hits / predictions


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


# --- checkpoints --------------------------------------------------------------------------------------------------
