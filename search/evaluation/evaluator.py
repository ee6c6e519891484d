"""How good an architecture is: pretrain it, fine-tune it on tasks, measure."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase

from flexibert import FlexiBertForMaskedLM
from flexibert.spec import Architecture

from ..artifacts.checkpoint import save_checkpoint
from ..artifacts.model_card import write_card
from ..cost import SCORE, CostMeter, count_parameters
from ..data.block_stream import BlockStream
from ..data.tasks import Task
from ..progress import RunProgress
from ..study.watch import Watch
from ..training.finetuning import FinetuningBudget, FinetuningResult, finetune
from ..training.objectives import StateMap
from ..training.pretraining import PretrainingBudget, PretrainingResult, equal_parts, pretrain
from ..training.teacher import TaughtText
from .cards import TrialCards
from .curves import Log, curves
from .first_weights import FirstWeights
from .weight_transfer import ENOUGH_OVERLAP


@dataclass
class Evaluator:
    """Trains architectures, all alike: the same text, tasks, budgets and seed.

    Attributes:
        first_weights: What candidates start from.
        blocks, validation_blocks: As of `pretrain`.
        tasks: Whose mean primary metric is the score; none scores by masked token accuracy.
        costs: What is measured besides how good they are.
        cards: Writes the model card of a trial.
    """

    first_weights: FirstWeights
    tokenizer: PreTrainedTokenizerBase
    blocks: np.ndarray | TaughtText | BlockStream
    validation_blocks: np.ndarray | TaughtText
    tasks: Sequence[Task]
    pretraining: PretrainingBudget
    finetuning: FinetuningBudget
    costs: CostMeter
    cards: TrialCards
    seed: int
    accelerator: Accelerator
    progress: RunProgress

    def __call__(
        self,
        layers: Architecture,
        folder: Path,
        source: Path | None = None,
        watch: Watch | None = None,
        split: int = 1,
    ) -> dict[str, float]:
        """Trains an encoder and leaves its checkpoint in `folder`, with one fine-tuned checkpoint per task beneath.

        Args:
            source: Checkpoint whose weights it starts from. If it can give most of them, it is only fine-tuned.
            watch: Looks on and may end the training.
            split: Into how many times more micro-batches batches are cut than the budgets say, as far as they can be.
                The gradients of a step stay what they are.

        Returns:
            Metrics with their units in their names, `score_percent` among them.

        Raises:
            TrainingDiverged: A loss was not finite.
            optuna.TrialPruned, OutOfTime: `watch` has ended it.
        """
        watch = watch or Watch()
        set_seed(self.seed)
        model, given, state_map = self.first_weights.model(layers, source)
        budget = self.pretraining.split(split, self.accelerator.num_processes)
        if (given or 0) >= ENOUGH_OVERLAP:
            budget = dataclasses.replace(budget, steps=0)
        known = {"fingerprint": model.config.fingerprint, "parameters": count_parameters(model.config)}
        with curves(self.accelerator, folder.name, known) as log:
            pretrained = self._pretrain(model, state_map, budget, watch, log)
            if self.accelerator.is_main_process:
                card = self.cards.card(folder.name, budget, pretrained, {})
                save_checkpoint(model, self.tokenizer, folder, card, pretrained.state_map)
            self.accelerator.wait_for_everyone()
            results = {task.name: self._finetune(task, folder, watch, split) for task in self.tasks}
            if self.accelerator.is_main_process:
                write_card(folder, self.cards.card(folder.name, budget, pretrained, results))
            transferred = {} if given is None else {"transferred_percent": 100 * given}
            measured = collect_metrics(pretrained, results)
            # One process measures, while the others wait for the next trial.
            costs = self.costs.metrics(model.config) if self.accelerator.is_main_process else {}
            metrics = {**costs, **measured, **transferred}
            log(metrics, budget.steps)
        return metrics

    def _pretrain(
        self,
        model: FlexiBertForMaskedLM,
        state_map: StateMap | None,
        budget: PretrainingBudget,
        watch: Watch,
        log: Log,
    ) -> PretrainingResult:
        def progress(done: int, loss: float, rate: float) -> None:
            self.progress.update("pretraining", done, budget.steps, loss, rate)
            log({"loss": loss, "tokens_per_second": rate}, done)
            watch.tick()

        try:
            return pretrain(
                model,
                self.blocks,
                self.validation_blocks,
                self.tokenizer,
                budget,
                self.seed,
                self.accelerator,
                progress=progress,
                rungs=watch.rungs(budget.steps),
                report=lambda done, loss: watch.report(done, loss, budget.steps),
                report_part=watch.report if watch.over_parts else None,
                state_map=state_map,
            )
        finally:
            self.accelerator.free_memory()  # also of a candidate that was stopped

    def _finetune(self, task: Task, folder: Path, watch: Watch, split: int) -> FinetuningResult:
        self.progress.update(f"fine-tuning on {task.name}", 0, 1)
        place, budget = folder / "tasks" / task.name, self.finetuning
        parts = equal_parts(budget.batch_size // self.accelerator.num_processes, split)
        arguments: dict[str, Any] = {"gradient_accumulation_steps": parts} if parts > 1 else {}
        result = finetune(folder, task, self.tokenizer, budget, self.seed, place, tick=watch.tick, **arguments)
        self.progress.update(f"fine-tuning on {task.name}", 1, 1, result.train_loss)
        return result


def collect_metrics(pretrained: PretrainingResult, results: Mapping[str, FinetuningResult]) -> dict[str, float]:
    """What training came to, in one flat dictionary."""
    metrics = {
        **pretrained.metrics,
        "pretraining_tokens_per_second": pretrained.tokens_per_second,
        "pretraining_seconds": pretrained.seconds,
        "finetuning_seconds": sum(result.seconds for result in results.values()),
    }
    for task, result in results.items():
        metrics |= {f"{task}_{name}_percent": 100 * value for name, value in result.metrics.items()}
    scores = [100 * result.score for result in results.values()]
    metrics[SCORE] = sum(scores) / len(scores) if scores else untuned_score(pretrained.metrics)
    return metrics


def untuned_score(metrics: Mapping[str, float]) -> float:
    """What stands for tasks where there are none, in percent: agreement with the teacher, or masked tokens right."""
    if "distillation_loss" in metrics:
        return 100 * (1 - metrics["distillation_loss"])
    return metrics["mlm_accuracy_percent"]
