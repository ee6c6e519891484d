"""What pretraining can optimise: a table of objectives, and the student that computes a weighted sum of them.

The student sees a batch once. If masked language modelling is among the objectives its tokens are masked, and what the
teacher made of the whole text is still what its states are drawn to, at masked tokens, too, as in data2vec (arXiv
2202.03555, Section 3): they have to be inferred.

Every objective is a sum over what counts (tokens, sequences, predictions), divided by a process's even share of the
count in the whole batch. So the mean over processes and micro-batches is the mean over the batch, however unevenly
tokens fall on them.
"""

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import UserError
from .hidden_states import PooledCosine, PooledSquare, TokenCosine, TokenSquare
from .relations import Relations


MASKED_LM = "masked_lm"

TEACHER_OBJECTIVES = {
    "token_cosine": TokenCosine,
    "token_mse": TokenSquare,
    "pooled_cosine": PooledCosine,
    "pooled_mse": PooledSquare,
    "relations": Relations,
}
"""Name -> class of what is learnt from a teacher's states."""

OBJECTIVES = (MASKED_LM, *TEACHER_OBJECTIVES)

DEFAULT_WEIGHTS = {"token_cosine": 1.0, "pooled_cosine": 1.0}
"""Under a teacher, if nothing else is said."""


def objective_weights(given: Mapping[str, float], taught: bool) -> dict[str, float]:
    """The objectives of a run and their weights.

    Raises:
        UserError: One is unknown, has no weight above 0, or needs a teacher where there is none.
    """
    weights = dict(given) or (DEFAULT_WEIGHTS if taught else {MASKED_LM: 1.0})
    for name, weight in weights.items():
        if name not in OBJECTIVES:
            raise UserError(f"pretraining: objectives: unknown {name!r}, known: {', '.join(OBJECTIVES)}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise UserError(f"pretraining: objectives: {name}: {weight!r} is not accepted, expected a number above 0")
        if name in TEACHER_OBJECTIVES and not taught:
            raise UserError(f"pretraining: objectives: {name} needs a teacher, give --teacher")
    if taught and not weights.keys() & TEACHER_OBJECTIVES.keys():
        raise UserError(f"pretraining: objectives: under a teacher one of {', '.join(TEACHER_OBJECTIVES)} is needed")
    return dict(weights)


class Student(nn.Module):
    """A masked language model and what its objectives add to it: the linear map onto the teacher's states.

    Args:
        model: A `FlexiBertForMaskedLM`, or what is called like one.
        weights: Objective -> weight.
        size: Width of the teacher's states, None without a teacher.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, float], size: int | None = None):
        super().__init__()
        self.model = model
        self.weights = dict(weights)
        taught = {name: TEACHER_OBJECTIVES[name]() for name in weights if name in TEACHER_OBJECTIVES}
        self.objectives = nn.ModuleDict(taught)
        self.map = None
        if any(objective.uses_map for objective in taught.values()):
            self.map = nn.Linear(model.config.hidden_size, size)
        self.untrained = []
        if taught and MASKED_LM not in weights:
            # Data parallelism wants to know what no gradient will come to.
            self.untrained = [*model.prediction_head.parameters(), model.lm_head.bias]
        for parameter in self.untrained:
            parameter.requires_grad_(False)

    def release(self) -> None:
        """Gives the model back as it was, but trained."""
        for parameter in self.untrained:
            parameter.requires_grad_(True)

    def forward(self, inputs: Mapping[str, torch.Tensor], arguments: Mapping[str, object]) -> dict[str, torch.Tensor]:
        """Losses by objective; outside of training also the hits of masked language modelling, `masked_lm_hits`.

        Args:
            inputs: Of the model; for masked language modelling `positions` and `labels` (N,); under a teacher its
                `states` (B, L, d). What a loss is divided by: `tokens`, `rows`, `predictions`.
            arguments: Of the model besides.
        """
        if not self.objectives:
            return self.predict(inputs, arguments)
        mask = inputs["attention_mask"]
        names = ("input_ids", "attention_mask", "token_type_ids")
        hidden = self.model.model(**{name: inputs[name] for name in names}, **arguments).last_hidden_state
        losses = {}
        mapped = None if self.map is None else self.map(hidden).float()
        for name, objective in self.objectives.items():
            states = mapped if objective.uses_map else hidden.float()
            losses[name] = objective(states, inputs["states"], mask) / inputs[objective.counted]
        if MASKED_LM in self.weights:
            at = hidden.flatten(0, 1)[inputs["positions"]]
            logits = self.model.lm_head(self.model.prediction_head(at))
            losses |= self.predictions(logits, inputs["labels"], inputs["predictions"])
        return losses

    def predict(self, inputs, arguments) -> dict[str, torch.Tensor]:
        """Masked language modelling alone."""
        given = {"input_ids": inputs["input_ids"], "prediction_positions": inputs["positions"], **arguments}
        if self.training:
            return {MASKED_LM: self.model(**given, labels=inputs["labels"]).loss}
        return self.predictions(self.model(**given).logits, inputs["labels"], 1)

    def predictions(self, logits, labels, count) -> dict[str, torch.Tensor]:
        loss = nn.functional.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
        losses = {MASKED_LM: loss / count}
        if not self.training:
            losses[f"{MASKED_LM}_hits"] = (logits.argmax(-1) == labels).sum() / count
        return losses

    def total(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum."""
        return sum(weight * losses[name] for name, weight in self.weights.items())
