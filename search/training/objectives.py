"""What pretraining can optimise: a table of objectives, and the student that computes a weighted sum of them.

The student sees a batch once. If tokens are predicted, some are masked, and what the teacher made of the whole text is
still what the student's states are drawn to, at masked tokens, too, as in data2vec (arXiv 2202.03555, Section 3): they
have to be inferred.

Every objective is a sum over what counts (tokens, sequences, predictions), divided by a process's even share of the
count in the whole batch. So the mean over processes and micro-batches is the mean over the batch, however unevenly
tokens fall on them.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from flexibert.attention_graph import show

from ..errors import UserError
from .hidden_states import PooledCosine, PooledSquare, TokenCosine, TokenSquare
from .logits import logits_loss
from .masked_lm import IGNORED
from .relations import Relations


MASKED_LM, LOGITS = "masked_lm", "logits"

PREDICTING = (MASKED_LM, LOGITS)
"""Objectives that mask tokens and train the prediction head."""

STATE_OBJECTIVES = {
    "token_cosine": TokenCosine,
    "token_mse": TokenSquare,
    "pooled_cosine": PooledCosine,
    "pooled_mse": PooledSquare,
    "relations": Relations,
}
"""Name -> class of what is learnt from a teacher's states."""

OBJECTIVES = (*PREDICTING, *STATE_OBJECTIVES)

DEFAULT_WEIGHTS = {"token_cosine": 1.0, "pooled_cosine": 1.0}
"""Under a teacher, if nothing else is said."""

StateMap = Mapping[str, torch.Tensor]
"""The linear map from a student's states to the teacher's: `weight` (d, D) and `bias` (d,)."""

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def objective_weights(given: Mapping[str, float], taught: bool) -> dict[str, float]:
    """The objectives of a run and their weights.

    Raises:
        UserError: One is unknown, has no weight above 0, or needs a teacher where there is none.
    """
    weights = dict(given) or (DEFAULT_WEIGHTS if taught else {MASKED_LM: 1.0})
    for name, weight in weights.items():
        if name not in OBJECTIVES:
            raise UserError(f"pretraining: objectives: unknown {show(name)}, known: {', '.join(OBJECTIVES)}")
        place = f"pretraining: objectives: {name}"
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise UserError(f"{place}: {show(weight)} is not accepted, expected a number above 0")
        if name != MASKED_LM and not taught:
            raise UserError(f"pretraining: objectives: {name} needs a teacher, give --teacher")
    if taught and not weights.keys() & STATE_OBJECTIVES.keys():
        raise UserError(f"pretraining: objectives: under a teacher one of {', '.join(STATE_OBJECTIVES)} is needed")
    return dict(weights)


def predicts(weights: Iterable[str]) -> bool:
    """Whether objectives train the prediction head, so that a model fills masks afterwards."""
    return any(name in PREDICTING for name in weights)


def states_and_logits(model, inputs: Mapping[str, torch.Tensor], positions: torch.Tensor | None):
    """Last hidden states (B, L, D) of a `FlexiBertForMaskedLM`, and its logits (N, V) at positions, if any are given.

    Args:
        inputs: Those of `MODEL_INPUTS`.
        positions: (N,), indices into the flattened batch.
    """
    states = model.model(**inputs).last_hidden_state
    if positions is None:
        return states, None
    return states, model.lm_head(model.prediction_head(states.flatten(0, 1)[positions]))


class Student(nn.Module):
    """A masked language model and what its objectives add to it: the linear map onto the teacher's states.

    Args:
        model: A `FlexiBertForMaskedLM`; or one that has `width`, the largest of a last state, and `states_and_logits`,
            and is called like one.
        weights: Objective -> weight.
        size: Width of the teacher's states, None without a teacher.
        state_map: The first linear map, if it shall not be random; for wider states its columns are the leading ones.
            One onto another width is of another teacher and is not used.
    """

    def __init__(
        self, model: Any, weights: Mapping[str, float], size: int | None = None, state_map: StateMap | None = None
    ):
        super().__init__()
        self.model: Any = model
        self.weights = dict(weights)
        self.objectives: Any = nn.ModuleDict(
            {name: STATE_OBJECTIVES[name]() for name in weights if name not in PREDICTING}
        )
        self.predicts = predicts(weights)
        own = not hasattr(model, "states_and_logits")
        self.map: nn.Linear | None = None
        if size is not None and any(objective.uses_map for objective in self.objectives.values()):
            self.map = nn.Linear(model.config.hidden_size if own else model.width, size)
            if state_map is not None:
                take_columns(self.map, state_map)
        # Data parallelism wants to know what no gradient will come to.
        self.untrained = [] if self.predicts or not own else [*model.prediction_head.parameters(), model.lm_head.bias]
        for parameter in self.untrained:
            parameter.requires_grad_(False)

    def release(self) -> None:
        """Gives the model back as it was, but trained."""
        for parameter in self.untrained:
            parameter.requires_grad_(True)

    def forward(self, inputs: Mapping[str, torch.Tensor], arguments: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Losses by objective; outside of training also the hits of masked language modelling, `masked_lm_hits`.

        Args:
            inputs: Of the model; where tokens are predicted `positions` and `labels` (N,); under a teacher its
                `states` (B, L, d) and for its logits `taught_logits` (N, V). What a loss is divided by: `tokens`,
                `rows`, `predictions`.
            arguments: Of the model besides.
        """
        if not self.objectives:
            return self._predict(inputs, arguments)
        given = {name: inputs[name] for name in MODEL_INPUTS}, inputs["positions"] if self.predicts else None
        if hasattr(self.model, "states_and_logits"):
            hidden, logits = self.model.states_and_logits(*given, **arguments)
        else:
            hidden, logits = states_and_logits(self.model, *given)
        losses = {}
        mapped = None if self.map is None else onto_teacher(self.map, hidden).float()
        for name, objective in self.objectives.items():
            states = mapped if objective.uses_map else hidden.float()
            losses[name] = objective(states, inputs["states"], inputs["attention_mask"]) / inputs[objective.counted]
        if MASKED_LM in self.weights:
            losses |= self._predictions(logits, inputs["labels"], inputs["predictions"])
        if LOGITS in self.weights:
            loss = logits_loss(logits, inputs["taught_logits"], inputs["labels"], IGNORED)
            losses[LOGITS] = loss / inputs["predictions"]
        return losses

    def total(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum."""
        return functools.reduce(torch.add, (weight * losses[name] for name, weight in self.weights.items()))

    def _predict(self, inputs, arguments) -> dict[str, torch.Tensor]:
        """Masked language modelling alone."""
        given = {"input_ids": inputs["input_ids"], "prediction_positions": inputs["positions"], **arguments}
        if self.training:
            return {MASKED_LM: self.model(**given, labels=inputs["labels"]).loss}
        return self._predictions(self.model(**given).logits, inputs["labels"], 1)

    def _predictions(self, logits, labels, count) -> dict[str, torch.Tensor]:
        loss = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
        losses = {MASKED_LM: loss / count}
        if not self.training:
            losses[f"{MASKED_LM}_hits"] = (logits.argmax(-1) == labels).sum() / count
        return losses


@torch.no_grad()
def take_columns(linear: nn.Linear, state_map: StateMap) -> None:
    """Gives a map what another one has, as far as both have the columns; nothing if they lead to other widths."""
    weight, bias = state_map["weight"], state_map["bias"]
    if len(bias) == linear.out_features:
        width = min(linear.in_features, weight.shape[1])
        linear.weight[:, :width] = weight[:, :width].to(linear.weight)
        linear.bias.copy_(bias)


def onto_teacher(linear: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """Narrower states than the widest take the leading columns, as all weights of a super-network."""
    return nn.functional.linear(hidden, linear.weight[:, : hidden.shape[-1]], linear.bias)
