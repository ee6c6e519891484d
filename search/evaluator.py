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

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM

from .cost import count_parameters, measure_latency_ms
from .finetuning import FinetuningBudget, FinetuningResult, finetune
from .metrics import GLUE_TASKS
from .model_card import CardFacts, Score, write_card
from .pretraining import PretrainingBudget, PretrainingResult, pretrain
from .progress import RunProgress
from .publish import save_checkpoint
from .search_space import Architecture
from .tasks import Task


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
    measure_latency: bool = False

    def __call__(self, layers: Architecture, folder: Path) -> dict[str, float]:
        """Trains an encoder and leaves its checkpoint in `folder`, with one fine-tuned checkpoint per task beneath.

        Returns:
            Metrics with their units in their names, `score_percent` among them.

        Raises:
            TrainingDiverged: A loss was not finite.
        """
        config = self.config(layers)
        set_seed(self.seed)
        model = FlexiBertForMaskedLM(config)
        total = self.pretraining.steps
        pretrained = pretrain(
            model,
            self.blocks,
            self.validation_blocks,
            self.tokenizer,
            self.pretraining,
            self.seed,
            self.accelerator,
            progress=lambda done, loss, rate: self.progress.update("pretraining", done, total, loss, rate),
        )
        if self.accelerator.is_main_process:
            save_checkpoint(model, self.tokenizer, folder, self.card(folder.name, pretrained, {}))
        self.accelerator.wait_for_everyone()
        results = {task.name: self._finetune(task, folder) for task in self.tasks}
        if self.accelerator.is_main_process:
            write_card(folder, self.card(folder.name, pretrained, results))
        metrics = collect_metrics(count_parameters(config), pretrained, results)
        return {**metrics, LATENCY: self.latency_ms(config)} if self.measure_latency else metrics

    def config(self, layers: Architecture) -> FlexiBertConfig:
        """The configuration of a candidate."""
        longest = max(self.pretraining.sequence_length, self.finetuning.max_length if self.tasks else 0)
        return build_config(layers, self.tokenizer, longest, self.model)

    def latency_ms(self, config: FlexiBertConfig) -> float:
        """Median milliseconds of a candidate's forward pass on one sequence of the pretraining length."""
        return measure_latency_ms(config, self.pretraining.sequence_length, device=self.accelerator.device)

    def _finetune(self, task: Task, folder: Path) -> FinetuningResult:
        self.progress.update(f"fine-tuning on {task.name}", 0, 1)
        result = finetune(folder, task, self.tokenizer, self.finetuning, self.seed, folder / "tasks" / task.name)
        self.progress.update(f"fine-tuning on {task.name}", 1, 1, result.train_loss)
        return result

    def card(self, name: str, pretrained: PretrainingResult, results: Mapping[str, FinetuningResult]) -> CardFacts:
        """What the model card of a trial says."""
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
        card = pretraining_card(name, self.corpus, self.pretraining, pretrained, self.seed)
        return dataclasses.replace(card, scores=(*card.scores, *scores), search={**self.search, "trial": name})

    def _hub_data_set(self, task: Task) -> dict[str, str]:
        """The task's data set on the Hub, if it came from there."""
        if task.name not in GLUE_TASKS or Path(self.glue).exists():
            return {}
        return {"hub_dataset": self.glue, "config": task.name}


def pretraining_card(
    name: str, corpus: str, budget: PretrainingBudget, result: PretrainingResult, seed: int
) -> CardFacts:
    """What the model card of a pretrained encoder says before any fine-tuning."""
    score = Score("masked language modelling", "mlm_loss_nats", result.validation_loss, corpus, task_type="fill-mask")
    return CardFacts(
        name=name,
        corpus=corpus,
        pretraining={**dataclasses.asdict(budget), "tokens": budget.tokens, "train_seconds": round(result.seconds, 1)},
        seeds=(seed,),
        scores=(score,),
    )


def build_config(
    layers: Architecture, tokenizer: PreTrainedTokenizerBase, max_length: int, fields: Mapping[str, Any]
) -> FlexiBertConfig:
    """The configuration of an encoder for a tokenizer and sequences of up to `max_length` tokens."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return FlexiBertConfig(
        **{"vocab_size": len(tokenizer), "layers": layers, "max_position_embeddings": max_length, **ids, **fields}
    )


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
