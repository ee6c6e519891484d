"""Pretraining under Accelerate: masked language modelling, a teacher, or both; resumable to the bit.

Nothing random has a state. Which blocks stand in step s, which tokens are masked and which units are dropped are
functions of (seed, s), so a run that was killed continues from any checkpoint exactly as if it had not been, without
saving generators or the position of a data loader. All processes draw the same global batch and take their share.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..data.block_stream import BlockStream
from ..errors import TrainingDiverged, UserError
from ..parsing import limited
from .masked_lm import IGNORED, MaskedLanguageModelling, StreamedLanguageModelling, to_device
from .objectives import LOGITS, MASKED_LM, StateMap, Student, objective_weights, predicts
from .state import load_checkpoint, model_digest, save_checkpoint, text_digest
from .taught_batches import TaughtBatches, counts
from .teacher import TaughtText


ADVICE = "a lower learning rate may help"


@dataclass(frozen=True)
class PretrainingBudget:
    """How long and how an encoder is pretrained.

    Attributes:
        steps: Optimiser steps.
        batch_size: Sequences per step, over all processes and micro-batches together; under a teacher, where sequences
            are of all lengths, as many tokens as so many of the longest have.
        sequence_length: Tokens per sequence, under a teacher of the longest.
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
        objectives: Name in `objectives.OBJECTIVES` -> weight. Empty is masked language modelling, under a teacher
            `objectives.DEFAULT_WEIGHTS`.
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
    objectives: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens seen in all steps together, repetitions counted."""
        return self.steps * self.batch_size * self.sequence_length

    def split(self, times: int, processes: int) -> "PretrainingBudget":
        """The same steps in so many times more micro-batches, or a few more that come out even."""
        share = self.batch_size // (processes * self.micro_batches)
        return replace(self, micro_batches=self.micro_batches * equal_parts(share, times))


@dataclass(frozen=True)
class PretrainingResult:
    """What pretraining came to.

    Attributes:
        train_loss: Mean of the last steps; of masked language modelling in nats per predicted token.
        metrics: Of the validation text, with units in their names: `mlm_loss_nats` and `mlm_accuracy_percent` of
            masked language modelling, `distillation_loss` and its parts under a teacher.
        tokens_per_second, seconds: Of this start; tokens without padding.
        losses: Of every step.
        state_map: `weight` and `bias` of the linear map onto the teacher's states, if one was learnt.
    """

    train_loss: float
    metrics: Mapping[str, float]
    tokens_per_second: float
    seconds: float
    losses: tuple[float, ...]
    state_map: StateMap | None = None

    @property
    def validation_loss(self) -> float:
        """Of masked language modelling, or where that is not learnt, of distillation."""
        return self.metrics["mlm_loss_nats" if "mlm_loss_nats" in self.metrics else "distillation_loss"]

    @property
    def summary(self) -> str:
        """What the validation text says, in a line."""
        parts = []
        if "mlm_loss_nats" in self.metrics:
            parts.append(
                f"validation loss {self.metrics['mlm_loss_nats']:.3f} nats, "
                f"masked tokens right {self.metrics['mlm_accuracy_percent']:.1f} %"
            )
        if "distillation_loss" in self.metrics:
            parts.append(f"distillation loss {self.metrics['distillation_loss']:.4f}")
        return ", ".join(parts)


def equal_parts(share: int, least: int) -> int:
    """Into how many equal parts, `least` or more if that can be, a number of sequences is cut."""
    return next((parts for parts in range(least, share) if share % parts == 0), max(1, share))


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
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2]
    others = [p for p in trained if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": budget.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    betas = (0.9, budget.adam_beta2)
    return torch.optim.AdamW(groups, lr=budget.learning_rate, betas=betas, eps=budget.adam_epsilon, fused=True)


Progress = Callable[[int, float, float], None]
"""Called with (steps done, last loss in nats, tokens per second)."""

Report = Callable[[int, float], None]
"""Told (steps done, validation loss) on all processes alike; may raise, which ends the training."""

Arguments = Callable[[int, int], Mapping[str, Any]]
"""What a model is called with besides the batch in a step and in a part of its batch, both counted from 0."""


def pretrain(
    model,
    blocks: np.ndarray | TaughtText | BlockStream,
    validation_blocks: np.ndarray | TaughtText,
    tokenizer,
    budget: PretrainingBudget,
    seed: int,
    accelerator: Accelerator,
    folder: Path | None = None,
    progress: Progress | None = None,
    arguments: Arguments = lambda step, part: {},
    rungs: Sequence[int] = (),
    report: Report | None = None,
    report_part: Report | None = None,
    state_map: StateMap | None = None,
    identity: Mapping[str, Any] | None = None,
):
    """Trains a masked language model in place of its first weights, or from its last checkpoint in `folder`.

    Args:
        model: A `FlexiBertForMaskedLM`, or what is called like one; trained in place, also under data parallelism.
        blocks: (N, L) token ids to train on, blocks that are read meanwhile, or passages with a teacher's states;
            `validation_blocks` the same for validation, but none that are read meanwhile.
        seed: Decides the order of the data, masks and dropout.
        accelerator: Devices, precision and processes.
        folder: Where checkpoints are kept, if the budget has any.
        progress: Told about every tenth step or so.
        arguments: Further arguments of the model, a function of the step and the part of its batch (parts are the
            micro-batches of all processes); validation has those of step `budget.steps`, part 0.
        rungs: After so many steps the model is validated and `report` is told; nothing else depends on it.
        report_part: Told at the end (number of a batch, loss) of every batch of the validation text.
        state_map: First linear map onto the teacher's states, by default a random one.
        identity: What else must be as it was for a checkpoint to go on.

    Raises:
        TrainingDiverged: The loss is not finite; the last checkpoint is left as it is.
        UserError: The batch does not divide over processes and micro-batches, a checkpoint is of another run, or one
            cannot be written; the last one is left as it is.
    """
    parts = accelerator.num_processes * budget.micro_batches
    if budget.batch_size % parts:
        raise UserError(
            f"batch size {budget.batch_size} does not divide over {accelerator.num_processes} processes "
            f"times {budget.micro_batches} micro-batches"
        )
    taught = isinstance(blocks, TaughtText)
    weights = objective_weights(budget.objectives, taught)
    batches = batch_source(blocks, tokenizer, budget, weights, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = blocks.states.form.size if isinstance(blocks, TaughtText) else None
        student = Student(model, weights, size, state_map)
    text = {"text": text_name(blocks)}
    same = {"seed": seed, **text, "budget": asdict(budget), "model": model_digest(model), **(identity or {})}
    trained = torch.compile(student) if budget.compile else student
    trained, optimizer = accelerator.prepare(trained, build_optimizer(student, budget))
    first_step, losses, bookmark = load_checkpoint(accelerator, folder, same)
    if bookmark:
        batches.return_to(bookmark)

    trained.train()
    pending: list[torch.Tensor] = []
    started = last_time = time.perf_counter()
    tokens = last_tokens = 0
    rate = 0.0
    for step in range(first_step, budget.steps):
        set_seed(step_seed(seed, step, accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, budget)
        arrays = batches.arrays(step, budget.batch_size)
        counted = counts(arrays)
        tokens += counted.get("tokens", arrays["input_ids"].size)
        total = torch.zeros((), device=accelerator.device)
        for micro_batch in range(budget.micro_batches):
            share = micro_batch * accelerator.num_processes + accelerator.process_index
            inputs = inputs_of(arrays, share, parts, accelerator.device)
            inputs |= batches.asked(inputs)
            accumulating = micro_batch < budget.micro_batches - 1
            with accelerator.no_sync(trained) if accumulating else nullcontext():
                loss = student.total(trained(inputs, arguments(step, share))) / budget.micro_batches
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
            rate = (tokens - last_tokens) / (now - last_time)
            last_tokens, last_time = tokens, now
            if progress is not None:
                progress(done, losses[-1], rate)
        if report is not None and done in rungs:
            validation = batch_source(validation_blocks, tokenizer, budget, weights, seed=0)
            report(done, compared_loss(evaluate(trained, student, validation, accelerator, arguments(step, 0))))
            trained.train()
        kept = checkpoint or done == budget.steps
        if kept and not (math.isfinite(gradient_norm) or accelerator.optimizer_step_was_skipped):
            raise TrainingDiverged(f"the gradient is {gradient_norm:g} at step {done}; {ADVICE}")
        if checkpoint and folder is not None:
            save_checkpoint(accelerator, folder, done, losses, batches.bookmark, same)
    seconds = time.perf_counter() - started

    validation = batch_source(validation_blocks, tokenizer, budget, weights, seed=0)
    batch_losses: list[float] = []
    metrics = evaluate(trained, student, validation, accelerator, arguments(budget.steps, 0), batch_losses)
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingDiverged(f"the validation loss is {value:g} ({name}) after step {budget.steps}; {ADVICE}")
    if report_part is not None:
        for index, batch_loss in enumerate(batch_losses):
            report_part(index, batch_loss)
    accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
    student.release()
    state_map = None if student.map is None else {name: whole(p) for name, p in student.map.named_parameters()}
    accelerator.free_memory()
    recent = losses[-max(1, budget.steps // 20) :]
    return PretrainingResult(
        train_loss=sum(recent) / max(1, len(recent)) if recent else float("nan"),
        metrics=metrics,
        tokens_per_second=tokens / seconds if seconds and tokens else rate,
        seconds=seconds,
        losses=tuple(losses),
        state_map=state_map,
    )


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, also where every process holds a shard."""
    full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return full.detach().to("cpu", torch.float32, copy=True)


def text_name(text: np.ndarray | TaughtText | BlockStream) -> str:
    """Equal for the same text to train on."""
    if isinstance(text, TaughtText):
        return text.states.folder.name
    return text.name if isinstance(text, BlockStream) else text_digest(text)


def batch_source(
    text: np.ndarray | TaughtText | BlockStream,
    tokenizer,
    budget: PretrainingBudget,
    weights: Mapping[str, float],
    seed: int,
) -> MaskedLanguageModelling | TaughtBatches:
    """What makes the batches of a text."""
    if isinstance(text, TaughtText):
        masked = predicts(weights)
        return TaughtBatches(text, tokenizer, budget.mask_fraction, seed, masked, LOGITS in weights)
    if isinstance(text, BlockStream):
        return StreamedLanguageModelling(text, tokenizer, budget.mask_fraction, seed)
    return MaskedLanguageModelling(text, tokenizer, budget.mask_fraction, seed)


def inputs_of(
    arrays: Mapping[str, np.ndarray], share: int, parts: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """One of the parts of a global batch, and an even share of what its losses are divided by."""
    mine = {name: np.array_split(array, parts)[share] for name, array in arrays.items()}
    divisors = {name: np.float32(count / parts) for name, count in counts(arrays).items()}
    return to_device({**mine, **divisors}, device)


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
    trained,
    student: Student,
    batches: MaskedLanguageModelling | TaughtBatches,
    accelerator: Accelerator,
    arguments: Mapping[str, Any],
    batch_losses: list[float] | None = None,
) -> dict[str, float]:
    """Metrics of validation batches, whose masks never change. Every process sees all of them; sharded models need it.

    Args:
        batch_losses: Gets the `compared_loss` of every batch.

    Returns:
        `mlm_loss_nats` and `mlm_accuracy_percent`; under a teacher `distillation_loss`, the mean of its objectives by
        weight, and each of them.
    """
    trained.eval()
    sums: dict[str, float] = {}
    counted: dict[str, int] = {}
    for arrays in batches.validation():
        inputs = inputs_of(arrays, 0, 1, accelerator.device)
        inputs |= batches.asked(inputs)
        sizes = {"predictions": int((arrays["labels"] != IGNORED).sum())} if "labels" in arrays else {}
        sizes |= {name: int(size) for name, size in counts(arrays).items()}
        units = {name: torch.ones((), device=accelerator.device) for name in sizes}
        losses = {name: loss.item() for name, loss in trained({**inputs, **units}, arguments).items()}
        if batch_losses is not None and all(sizes.values()):
            batch_losses.append(compared_loss(validation_metrics(student, losses, sizes)))
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss
        for name, size in sizes.items():
            counted[name] = counted.get(name, 0) + size
    return validation_metrics(student, sums, counted)


def validation_metrics(student: Student, sums: Mapping[str, float], counted: Mapping[str, int]) -> dict[str, float]:
    """What sums of losses over a validation text come to; for the names see `evaluate`."""
    metrics = {}
    if MASKED_LM in sums:
        metrics["mlm_loss_nats"] = sums[MASKED_LM] / counted["predictions"]
        metrics["mlm_accuracy_percent"] = 100 * sums[f"{MASKED_LM}_hits"] / counted["predictions"]
    if student.objectives:
        losses = {name: sums[name] / counted[objective.counted] for name, objective in student.objectives.items()}
        if LOGITS in sums:
            losses[LOGITS] = sums[LOGITS] / counted["predictions"]
        weight = sum(student.weights[name] for name in losses)
        metrics["distillation_loss"] = sum(student.weights[name] * loss for name, loss in losses.items()) / weight
        metrics |= {f"{name}_loss": loss for name, loss in losses.items()}
    return metrics


def compared_loss(metrics: Mapping[str, float]) -> float:
    """The loss by which candidates are compared while they train: of distillation, where there is a teacher."""
    return metrics["distillation_loss" if "distillation_loss" in metrics else "mlm_loss_nats"]
