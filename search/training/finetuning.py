"""Fine-tuning of encoders on labelled tasks with transformers' Trainer.

Batches are padded to their longest example and hold examples of similar length, which changes no result of an encoder
that ignores padding and saves most of the time of GLUE's short texts. Under `torchrun` or `accelerate launch` all
processes share every batch, return the same result, and only the main one writes.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import datasets
import numpy as np
import transformers
from accelerate import PartialState
from accelerate.utils import patch_environment
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import is_torch_bf16_gpu_available

from ..data.tasks import Task
from ..errors import TrainingDiverged, UserError
from ..files import replace_folder, reported
from ..metrics import primary
from ..parsing import limited
from .encoders import check_fit, check_vocabulary, load_model
from .finetuning_trainer import FinetuningTrainer, Ticking
from .pair_encoding import encodes_alone, head_fields, start_head, with_token_types
from .soft_labels import SOFT_LABELS, SoftLabels
from .task_types import HasClasses, TaskType, create_head


@dataclass(frozen=True)
class FinetuningBudget:
    """How long and how an encoder is fine-tuned.

    Attributes:
        epochs: Passes over the training split; may be a fraction.
        max_steps: Optimiser steps instead, -1 to go by epochs.
        batch_size: Examples per step, over all processes and accumulation steps together.
        learning_rate: Peak; it rises linearly and falls linearly to 0.
        warmup_fraction: Share of the steps during which it rises.
        max_length: Tokens at which examples are cut; question answering cuts them into windows of this size.
        weight_decay: Of AdamW, on matrices.
        precision: "auto" is bfloat16 where the accelerator has it, else float32.
        classifier_pooling: What the head of a sequence sees, see `FlexiBertConfig`; None is what the checkpoint says.
        class_weights: "balanced" makes rare classes count as much as frequent ones.
        pair_encoding: How the head sees two texts, see `FlexiBertConfig`; None is what the checkpoint says. "separate"
            takes the mean of their states where `classifier_pooling` does not say otherwise.
    """

    epochs: float = limited(above=0, default=3.0)
    max_steps: int = limited(least=-1, default=-1)
    batch_size: int = limited(least=1, default=32)
    learning_rate: float = limited(above=0, default=5e-5)
    warmup_fraction: float = limited(least=0, most=1, default=0.06)
    max_length: int = limited(least=1, default=128)
    weight_decay: float = limited(least=0, default=0.01)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    classifier_pooling: Literal["cls", "mean", None] = None
    class_weights: Literal["balanced", None] = None
    pair_encoding: Literal["joint", "separate", None] = None


@dataclass(frozen=True)
class FinetuningResult:
    """What fine-tuning came to.

    Attributes:
        metrics: Of the validation split as shares of 1; with the split's name behind where there are several, such as
            "accuracy_matched" and "accuracy_mismatched" for MNLI.
        score: The task's one number, see `metrics.primary`.
        train_loss: Mean over all steps.
        examples_per_second: While training.
        seconds: For everything, loading and evaluation included.
        learning_rate, seed: What it was trained with.
        pair_encoding: How two texts were seen, "joint" or "separate"; None for tasks of one text.
    """

    metrics: dict[str, float]
    score: float
    train_loss: float
    examples_per_second: float
    seconds: float
    learning_rate: float
    seed: int
    pair_encoding: str | None = None


def finetune(
    model_dir: Path | str,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    budget: FinetuningBudget = FinetuningBudget(),
    seed: int = 0,
    output_dir: Path | None = None,
    tick: Callable[[], None] | None = None,
    soft_labels: SoftLabels | None = None,
    **training_arguments: Any,
) -> FinetuningResult:
    """Trains an encoder with a new head on a task and evaluates it on all of the task's validation splits.

    Args:
        model_dir: Checkpoint of a FlexiBERT or of any other encoder that transformers has, with whatever head.
        tokenizer: The one that the encoder was pretrained with.
        seed: Decides the weights of the head, the order of the data and dropout.
        output_dir: Where a checkpoint with head and tokenizer is left, and what trackers write; one that stands there
            is replaced at the end.
        tick: Called every ten steps or so, on all processes; may raise, which ends the training.
        soft_labels: What a teacher says about the training examples, to learn as well.
        training_arguments: Fields of transformers' `TrainingArguments` that overrule those made from the budget, such
            as `report_to`, `gradient_accumulation_steps` or `disable_tqdm=False`.

    Raises:
        UserError: Model, tokenizer, task and budget do not fit together, or the checkpoint cannot be written.
        TrainingDiverged: The loss was not finite.
    """
    started = time.perf_counter()
    head = create_head(task, tokenizer, budget.max_length)
    if budget.class_weights and not head.has_classes:
        raise UserError(f"class weights: {task.name} is {task.task_type.replace('_', ' ')}, which has no classes")
    with quiet(), contextlib.ExitStack() as stack:
        transformers.set_seed(seed)
        model = load_model(
            model_dir, head, **head_fields(model_dir, head, budget.pair_encoding, budget.classifier_pooling)
        )
        if encodes_alone(model):
            tokenizer = with_token_types(tokenizer)
            head = replace(head, tokenizer=tokenizer)
        check_fit(model, tokenizer, budget.max_length)
        check_vocabulary(model_dir, tokenizer)
        if not task.validation:
            raise UserError(f"{task.name} has no validation split")
        train = head.features(task.train, "train")
        if soft_labels is not None:
            train = train.add_column(SOFT_LABELS, list(soft_labels.logits))
        validation = {split: (head.features(dataset, split), dataset) for split, dataset in task.validation.items()}

        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        arguments = build_arguments(budget, seed, scratch, training_arguments)
        if output_dir is not None and arguments.should_save:
            with reported(output_dir):
                arguments.output_dir = str(stack.enter_context(replace_folder(output_dir)))
        if arguments.report_to and "TENSORBOARD_LOGGING_DIR" not in os.environ:  # scratch would take its files along
            logs = Path(f"{output_dir or Path('runs', 'finetune', task.name)}.logs")
            run = f"seed{seed}-learning_rate{budget.learning_rate:g}"
            stack.enter_context(patch_environment(tensorboard_logging_dir=logs / run))
        if arguments.label_smoothing_factor and not head.has_classes:
            raise UserError(f"training arguments: label_smoothing_factor smooths classes, {task.name} has none")
        start_head(model, head, train)
        weights = cast(HasClasses, head).class_weights(train) if budget.class_weights else None
        trainer = FinetuningTrainer(
            head, weights, soft_labels, model=model, args=arguments, train_dataset=train, processing_class=tokenizer
        )
        trainer.remove_callback(PrinterCallback)
        if tick is not None:
            trainer.add_callback(Ticking(tick))
        training_started = time.perf_counter()
        outcome = trainer.train()
        training_seconds = time.perf_counter() - training_started
        metrics = by_split({split: evaluate(trainer, head, *data) for split, data in validation.items()})
        if output_dir is not None:
            save(trainer, output_dir)
    trainer.accelerator.wait_for_everyone()
    return FinetuningResult(
        metrics=metrics,
        score=primary(task.metric, metrics),
        train_loss=outcome.training_loss,
        examples_per_second=outcome.global_step * budget.batch_size / training_seconds,
        seconds=time.perf_counter() - started,
        learning_rate=budget.learning_rate,
        seed=seed,
        pair_encoding=getattr(model.config, "pair_encoding", "joint") if head.is_pair else None,
    )


def build_arguments(
    budget: FinetuningBudget, seed: int, output_dir: str, overrides: Mapping[str, Any]
) -> TrainingArguments:
    """transformers' options for a budget; `output_dir` is where Trainer and trackers may write."""
    tracked = overrides.get("report_to", "none") != "none"
    device = PartialState().device.type
    has_bf16 = device != "cpu" and is_torch_bf16_gpu_available()
    options = {
        "output_dir": output_dir,
        "num_train_epochs": budget.epochs,
        "max_steps": budget.max_steps,
        "per_device_train_batch_size": budget.batch_size,
        "learning_rate": budget.learning_rate,
        "warmup_steps": budget.warmup_fraction,
        "weight_decay": budget.weight_decay,
        "seed": seed,
        "bf16": budget.precision == "bf16" or (budget.precision == "auto" and has_bf16),
        "fp16": budget.precision == "fp16",
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device != "cpu",
        "ddp_find_unused_parameters": False,
        "logging_strategy": "steps" if tracked else "no",
        "logging_steps": 50,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    try:
        arguments = TrainingArguments(**options | dict(overrides))
    except (TypeError, ValueError) as error:
        raise UserError(f"training arguments: {error}") from error
    parts = arguments.world_size * max(1, arguments.n_gpu) * arguments.gradient_accumulation_steps
    share, rest = divmod(budget.batch_size, parts)
    if rest or not share:
        raise UserError(f"batch size {budget.batch_size} does not divide over {parts} processes times accumulations")
    arguments.per_device_train_batch_size = share
    arguments.per_device_eval_batch_size = 4 * share
    if budget.precision == "fp32":
        arguments.mixed_precision = "no"  # else it follows `accelerate launch --mixed_precision`
    return arguments


def evaluate(trainer: Trainer, head: TaskType, features: Dataset, dataset: Dataset) -> dict[str, float]:
    """Metrics on a split. All processes get those of the whole split."""
    features = features.select(np.argsort(features["length"][:], kind="stable")[::-1])  # little padding
    logits: Any = trainer.predict(features).predictions  # an array, or one for the start and one for the end
    if not all(np.isfinite(part).all() for part in (logits if isinstance(logits, tuple) else (logits,))):
        raise TrainingDiverged("predictions are not finite after the last step; a lower learning rate may help")
    return head.score(logits, features, dataset)


def by_split(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """One flat dictionary; the split's name goes behind the metric's where there are several splits."""
    if len(scores) == 1:
        return dict(*scores.values())
    return {
        f"{metric}_{split.removeprefix('validation_')}": value
        for split, values in scores.items()
        for metric, value in values.items()
    }


def save(trainer: Trainer, output_dir: Path) -> None:
    """Writes the checkpoint to the trainer's folder, which `replace_folder` then puts in the place of `output_dir`."""
    with reported(output_dir):
        trainer.save_model()
        Path(str(trainer.args.output_dir), "training_args.bin").unlink(missing_ok=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and notices of loading and tokenising; settings come back at the end."""
    messages = transformers.logging
    verbosity, bars, data_bars = (
        messages.get_verbosity(),
        messages.is_progress_bar_enabled(),
        datasets.are_progress_bars_disabled(),
    )
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        messages.set_verbosity(verbosity)
        if bars:
            messages.enable_progress_bar()
        if not data_bars:
            datasets.enable_progress_bars()
