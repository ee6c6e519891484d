"""Task distillation: learning from the logits of a model that is fine-tuned on the same task.

Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), as for the BERT miniatures (arXiv 1908.08962) and in the second stage of
TinyBERT (arXiv 1909.10351). The teacher reads the training examples once, with its own tokenizer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from ..data.tasks import Task
from ..data.tokenizer import load_tokenizer
from ..errors import UserError
from .encoders import load_model
from .pair_encoding import encodes_alone, with_token_types
from .task_types import create_head


SOFT_LABELS = "soft_labels"
"""Column of the training examples with the teacher's logits."""

EXAMPLES_AT_ONCE = 64


@dataclass(frozen=True)
class TaskTeacher:
    """A fine-tuned model that others learn from.

    Attributes:
        source: Its folder, or one that holds a checkpoint for each task, by name, as `finetune --output` leaves it.
        temperature: By which logits of both are divided, the loss being multiplied by its square.
        label_weight: Share of the labels in the loss, from 0 to 1; the rest is the teacher's.
    """

    source: str
    temperature: float = 2.0
    label_weight: float = 0.5

    def read(self, task: Task, max_length: int) -> "SoftLabels":
        """What the teacher says about a task's training examples.

        Raises:
            UserError: There is no such model, it was fine-tuned on something else, or the task has no label a text.
        """
        places = (Path(self.source, task.name), Path(self.source))
        source = str(next((path for path in places if path.is_dir()), self.source))
        head = create_head(task, load_tokenizer(source), max_length)
        if not head.learns_softly:
            raise UserError(
                f"teacher model: {task.name} is {task.task_type.replace('_', ' ')}, which is not distilled"
            )
        model = load_model(source, head, new_head=False)
        if encodes_alone(model):
            head = create_head(task, with_token_types(head.tokenizer), max_length)
        check_labels(model, task, source)
        logits = predict(model, head.collator(head.tokenizer), head.features(task.train, "train"))
        if not np.isfinite(logits).all():
            raise UserError(f"teacher model {source}: its logits are not finite")
        return SoftLabels(logits, self.temperature, self.label_weight)


@dataclass(frozen=True)
class SoftLabels:
    """A teacher's logits of all training examples, (N, C), and how much they count, see `TaskTeacher`."""

    logits: np.ndarray
    temperature: float
    label_weight: float


def check_labels(model: PreTrainedModel, task: Task, source: str) -> None:
    """Raises UserError where the teacher's classes are not those of the task, in their order."""
    names: Any = model.config.id2label
    known = tuple(names[index] for index in range(len(names)))
    anonymous = known == tuple(f"LABEL_{index}" for index in range(len(known)))
    if len(known) != task.num_labels or (task.label_names and not anonymous and known != task.label_names):
        given, wanted = ", ".join(known), ", ".join(task.label_names) or f"{task.num_labels} numbers"
        raise UserError(f"teacher model {source}: it tells {given} apart, {task.name} has {wanted}")


@torch.no_grad()
def predict(model: PreTrainedModel, collator, features) -> np.ndarray:
    """Logits (N, C) of tokenised examples, in their order; examples of similar length go together."""
    device = PartialState().device
    model = model.to(device).eval()
    order = np.argsort(features["length"][:], kind="stable")
    names = [name for name in ("input_ids", "token_type_ids") if name in features.column_names]
    features = features.select_columns(names)
    logits = np.zeros((len(features), model.config.num_labels or 0), np.float32)
    for rows in np.array_split(order, -(-len(order) // EXAMPLES_AT_ONCE)):
        batch = collator([features[int(row)] for row in rows]).to(device)
        logits[rows] = model(**batch).logits.float().cpu().numpy()
    return logits
