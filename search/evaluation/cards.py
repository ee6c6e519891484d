"""Model cards of what was trained, put together from what is known of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..artifacts.finetuned_card import FinetunedFacts
from ..artifacts.model_card import CardFacts, Score
from ..data.tasks import Task
from ..training.finetuning import FinetuningBudget, FinetuningResult
from ..training.finetuning_runs import summarize
from ..training.objectives import objective_weights, predicts
from ..training.pretraining import PretrainingBudget, PretrainingResult
from ..training.task_types import TASK_TYPES, is_pair


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
        fills_masks=predicts(weights),
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
            score
            for task in self.tasks
            if task.name in results
            for score in task_scores(task, self.finetuning, [results[task.name]])
        ]
        card = pretraining_card(name, self.corpus, pretraining, pretrained, self.seed, self.teacher)
        return dataclasses.replace(card, scores=(*card.scores, *scores), search={**self.search, "trial": name})


def task_scores(task: Task, budget: FinetuningBudget, results: Sequence[FinetuningResult]) -> tuple[Score, ...]:
    """What the results of a task, one a seed, are on a card."""
    rates = {result.learning_rate for result in results} or {budget.learning_rate}
    length = f"{budget.epochs:g} epochs" if budget.max_steps < 0 else f"{budget.max_steps} steps"
    words = [length, f"batch {budget.batch_size}", f"learning rate {', '.join(f'{rate:g}' for rate in sorted(rates))}"]
    if results[0].pair_encoding == "separate":
        words.append("pairs encoded separately")
    return tuple(
        Score(
            task.name,
            f"{metric}_percent",
            100 * mean,
            _words_about(task),
            budget=", ".join(words),
            seeds=tuple(result.seed for result in results),
            standard_deviation=100 * spread if len(results) > 1 else None,
            task_type=TASK_TYPES[task.task_type].hub_task,
            **_hub_data_set(task),
        )
        for metric, (mean, spread) in summarize(results).items()
        if metric != "score"
    )


def finetuned_card(
    base: str, task: Task, budget: FinetuningBudget, results: Sequence[FinetuningResult], teacher: str = ""
) -> FinetunedFacts:
    """What the card of a fine-tuned checkpoint says; `base` is the name of the encoder that it began with, `teacher`
    that of a model whose logits it learnt, if any."""
    return FinetunedFacts(
        task=task.name,
        hub_task=TASK_TYPES[task.task_type].hub_task,
        base=base,
        training={
            "began_with": base,
            **{name: value for name, value in dataclasses.asdict(budget).items() if value is not None},
            "learning_rate": results[0].learning_rate,
            "training_examples": len(task.train),
            **({"teacher": teacher} if teacher else {}),
            "seeds": ", ".join(str(result.seed) for result in results),
            "seconds": round(results[0].seconds, 1),
        },
        scores=task_scores(task, budget, results),
        is_pair=is_pair(task),
    )


def _words_about(task: Task) -> str:
    """What a task was measured on: its size, and of one's own data what was used of them."""
    return f"{task.name} ({'; '.join(filter(None, [f'{len(task.train):,} training examples', task.columns]))})"


def _hub_data_set(task: Task) -> dict[str, Any]:
    """The task's data set on the Hub, if it came from there."""
    return {"hub_dataset": task.hub_dataset, "config": task.config} if task.hub_dataset else {}
