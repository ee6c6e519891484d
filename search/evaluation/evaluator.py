"""How good an architecture is: pretrain it, fine-tune it on tasks, measure."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from flexibert.spec import Architecture

from ..artifacts.checkpoint import save_checkpoint
from ..artifacts.model_card import CardFacts, Score, write_card
from ..cost import count_parameters, measure_latency_ms
from ..data.tasks import Task
from ..metrics import GLUE_TASKS
from ..progress import RunProgress
from ..training.finetuning import FinetuningBudget, FinetuningResult, finetune
from ..training.pretraining import PretrainingBudget, PretrainingResult, pretrain
from .cards import pretraining_card
from .model_config import build_config
from .weight_transfer import ENOUGH_OVERLAP, overlap, transfer


SCORE = "score_percent"
LATENCY = "latency_ms"


@dataclass
class Evaluator:
    """Trains architectures, all alike: the same text, tasks, budgets and seed.

    Attributes:
        corpus: Name of the text, for model cards.
        model: Fields of `FlexiBertConfig` besides the layers.
        blocks, validation_blocks: (N, L) token ids.
        tasks: Whose mean primary metric is the score; none scores by masked token accuracy.
        glue: Where GLUE tasks came from, a folder or a Hub id.
        search: What a model card says about how the architecture was found.
        transfer: How a candidate takes over the weights of a trained one, see `weight_transfer.transfer`.
        measure_latency: Whether trials have the metric `latency_ms`.
    """

    corpus: str
    model: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase
    blocks: np.ndarray
    validation_blocks: np.ndarray
    tasks: Sequence[Task]
    pretraining: PretrainingBudget
    finetuning: FinetuningBudget
    seed: int
    accelerator: Accelerator
    progress: RunProgress
    glue: str
    search: Mapping[str, Any]
    transfer: Literal["none", "ordered", "random_projection"] = "none"
    measure_latency: bool = False
    latencies: dict[str, float] = dataclasses.field(default_factory=dict)

    def __call__(self, layers: Architecture, folder: Path, source: Path | None = None) -> dict[str, float]:
        """Trains an encoder and leaves its checkpoint in `folder`, with one fine-tuned checkpoint per task beneath.

        Args:
            source: Checkpoint whose weights it starts from. If it can give most of them, it is only fine-tuned.

        Returns:
            Metrics with their units in their names, `score_percent` among them.

        Raises:
            TrainingDiverged: A loss was not finite.
        """
        set_seed(self.seed)
        model = self.first_model(layers)
        given = self._start_from(model, source) if source is not None else 0.0
        budget = dataclasses.replace(self.pretraining, steps=0) if given >= ENOUGH_OVERLAP else self.pretraining
        pretrained = pretrain(
            model,
            self.blocks,
            self.validation_blocks,
            self.tokenizer,
            budget,
            self.seed,
            self.accelerator,
            progress=lambda done, loss, rate: self.progress.update("pretraining", done, budget.steps, loss, rate),
        )
        if self.accelerator.is_main_process:
            save_checkpoint(model, self.tokenizer, folder, self.card(folder.name, budget, pretrained, {}))
        self.accelerator.wait_for_everyone()
        results = {task.name: self._finetune(task, folder) for task in self.tasks}
        if self.accelerator.is_main_process:
            write_card(folder, self.card(folder.name, budget, pretrained, results))
        metrics = collect_metrics(count_parameters(model.config), pretrained, results)
        if self.transfer != "none":
            metrics["transferred_percent"] = 100 * given
        if self.measure_latency:
            metrics[LATENCY] = self.latency_ms(model.config)
        return metrics

    def first_model(self, layers: Architecture) -> FlexiBertForMaskedLM:
        """A candidate before it is trained."""
        return FlexiBertForMaskedLM(self.config(layers))

    def update(self, study: optuna.Study) -> None:
        """Told on the main process of the study before the first trial and after every one; nothing to learn here."""

    def find_source(self, layers: Architecture, trained: Sequence[tuple[Architecture, Path]]) -> Path | None:
        """The checkpoint with the largest overlap, if any has one."""
        config = self.config(layers)
        overlaps = [(overlap(self.config(ancestor), config), folder) for ancestor, folder in trained]
        best, folder = max(overlaps, key=lambda pair: pair[0], default=(0.0, None))
        return folder if best > 0 else None

    def _start_from(self, model: FlexiBertForMaskedLM, source: Path) -> float:
        """Takes over weights; returns the overlap."""
        config = FlexiBertConfig.from_pretrained(source)
        transfer(model, load_file(source / "model.safetensors"), config, self.transfer, self.seed)
        return overlap(config, model.config)

    def config(self, layers: Architecture) -> FlexiBertConfig:
        """The configuration of a candidate."""
        return build_config(layers, self.tokenizer, self.longest_sequence, self.model)

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequences that a candidate has to take."""
        return max(self.pretraining.sequence_length, self.finetuning.max_length if self.tasks else 0)

    def latency_ms(self, config: FlexiBertConfig) -> float:
        """Median milliseconds of a candidate's forward pass on one sequence of the pretraining length.

        Measured once, so that what a limit admitted is not beyond it in the results.
        """
        name = config.fingerprint
        if name not in self.latencies:
            length = self.pretraining.sequence_length
            self.latencies[name] = measure_latency_ms(config, length, device=self.accelerator.device)
        return self.latencies[name]

    def _finetune(self, task: Task, folder: Path) -> FinetuningResult:
        self.progress.update(f"fine-tuning on {task.name}", 0, 1)
        result = finetune(folder, task, self.tokenizer, self.finetuning, self.seed, folder / "tasks" / task.name)
        self.progress.update(f"fine-tuning on {task.name}", 1, 1, result.train_loss)
        return result

    def card(
        self, name: str, pretraining: PretrainingBudget, pretrained: PretrainingResult, results: Mapping
    ) -> CardFacts:
        """What the model card of a trial says; `results` has a `FinetuningResult` per task done so far."""
        budget = (
            f"{self.finetuning.epochs:g} epochs"
            if self.finetuning.max_steps < 0
            else f"{self.finetuning.max_steps} steps"
        )
        budget += f", batch {self.finetuning.batch_size}, learning rate {self.finetuning.learning_rate:g}"
        scores = [
            Score(
                task.name,
                f"{metric}_percent",
                100 * value,
                f"{task.name} ({len(task.train):,} training examples)",
                budget=budget,
                seeds=(self.seed,),
                **self._hub_data_set(task),
            )
            for task in self.tasks
            if task.name in results
            for metric, value in results[task.name].metrics.items()
        ]
        card = pretraining_card(name, self.corpus, pretraining, pretrained, self.seed)
        return dataclasses.replace(card, scores=(*card.scores, *scores), search={**self.search, "trial": name})

    def _hub_data_set(self, task: Task) -> dict[str, str]:
        """The task's data set on the Hub, if it came from there."""
        if task.name not in GLUE_TASKS or Path(self.glue).exists():
            return {}
        return {"hub_dataset": self.glue, "config": task.name}


def collect_metrics(
    parameters: int, pretrained: PretrainingResult, results: Mapping[str, FinetuningResult]
) -> dict[str, float]:
    """All numbers of a trial in one flat dictionary."""
    metrics = {
        "parameters": parameters,
        "mlm_loss_nats": pretrained.validation_loss,
        "mlm_accuracy_percent": 100 * pretrained.validation_accuracy,
        "pretraining_tokens_per_second": pretrained.tokens_per_second,
        "pretraining_seconds": pretrained.seconds,
        "finetuning_seconds": sum(result.seconds for result in results.values()),
    }
    for task, result in results.items():
        metrics |= {f"{task}_{name}_percent": 100 * value for name, value in result.metrics.items()}
    scores = [100 * result.score for result in results.values()]
    metrics[SCORE] = sum(scores) / len(scores) if scores else metrics["mlm_accuracy_percent"]
    return metrics
