"""Model cards of what was trained, put together from what is known of it."""

import dataclasses

from ..artifacts.model_card import CardFacts, Score
from ..training.pretraining import PretrainingBudget, PretrainingResult


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
