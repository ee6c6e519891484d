"""Model cards of what was trained, put together from what is known of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..artifacts.model_card import CardFacts, Score
from ..data.tasks import Task
from ..training.finetuning import FinetuningBudget, FinetuningResult
from ..training.objectives import MASKED_LM, objective_weights
from ..training.pretraining import PretrainingBudget, PretrainingResult
from ..training.task_types import TASK_TYPES


def pretraining_card(
    name: str, corpus: str, budget: PretrainingBudget, result: PretrainingResult, seed: int, teacher: str = ""
) -> CardFacts:
    """What the model card of a pretrained encoder says before any fine-tuning; `teacher` is a name."""
    weights = objective_weights(budget.objectives, bool(teacher))
    facts = {**dataclasses.asdict(budget), "tokens": budget.tokens, "train_seconds": round(result.seconds, 1)}
    facts["objectives"] = ", ".join(f"{name} x {weight:g}" for name, weight in weights.items())
    names = {
        "mlm_loss_nats": ("masked language modelling", "fill-mask"),
        "distillation_loss": ("distillation", "feature-extraction"),
    }
    scores = tuple(
        Score(task, metric, result.metrics[metric], corpus, task_type=task_type)
        for metric, (task, task_type) in names.items()
        if metric in result.metrics
    )
    return CardFacts(
        name=name,
        corpus=corpus,
        pretraining=facts,
        seeds=(seed,),
        scores=scores,
        teacher=teacher,
        fills_masks=MASKED_LM in weights,
    )


@dataclass(frozen=True)
class TrialCards:
    """The model cards of a search.

    Attributes:
        corpus: Name of the text.
        tasks, finetuning: What candidates are fine-tuned on, and how long.
        seed: Of all trials.
        search: How architectures were found, as names and values.
        teacher: Name of the teacher, if there is one.
    """

    corpus: str
    tasks: Sequence[Task]
    finetuning: FinetuningBudget
    seed: int
    search: Mapping[str, Any]
    teacher: str = ""

    def card(
        self,
        name: str,
        pretraining: PretrainingBudget,
        pretrained: PretrainingResult,
        results: Mapping[str, FinetuningResult],
    ) -> CardFacts:
        """What the card of a trial says; `results` has the tasks done so far."""
        scores = [
            Score(
                task.name,
                f"{metric}_percent",
                100 * value,
                _words_about(task),
                budget=self._budget(),
                seeds=(self.seed,),
                task_type=TASK_TYPES[task.task_type].hub_task,
                **_hub_data_set(task),
            )
            for task in self.tasks
            if task.name in results
            for metric, value in results[task.name].metrics.items()
        ]
        card = pretraining_card(name, self.corpus, pretraining, pretrained, self.seed, self.teacher)
        return dataclasses.replace(card, scores=(*card.scores, *scores), search={**self.search, "trial": name})

    def _budget(self) -> str:
        budget = self.finetuning
        length = f"{budget.epochs:g} epochs" if budget.max_steps < 0 else f"{budget.max_steps} steps"
        return f"{length}, batch {budget.batch_size}, learning rate {budget.learning_rate:g}"


def _words_about(task: Task) -> str:
    """What a task was measured on: its size, and of one's own data what was used of them."""
    return f"{task.name} ({'; '.join(filter(None, [f'{len(task.train):,} training examples', task.columns]))})"


def _hub_data_set(task: Task) -> dict[str, str | None]:
    """The task's data set on the Hub, if it came from there."""
    return {"hub_dataset": task.hub_dataset, "config": task.config} if task.hub_dataset else {}
