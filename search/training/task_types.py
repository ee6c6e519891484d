"""Kinds of tasks: a name in the data, a class here.

A class is made of (task, tokenizer, max_length) and says: with which head of transformers a model is loaded and what
its configuration holds (`auto_class`, `config`), what becomes of examples (`features`, `collator`, `targets`), what is
learnt (`loss`, a sum over `count` items, with `class_weights` where it `has_classes`, and `soft_loss` where it
`learns_softly` from a teacher's logits), how good predictions are
(`score`), and which of the Hub's tasks it is in a model card (`hub_task`).
"""

from typing import cast

from transformers import PreTrainedTokenizerBase

from ..data.tasks import Task
from ..errors import UserError
from .question_answering import QuestionAnswering
from .sequence_classification import Classification, MultiLabel, Regression
from .token_classification import TokenClassification


TaskType = Classification | Regression | MultiLabel | TokenClassification | QuestionAnswering

HasClasses = Classification | MultiLabel | TokenClassification
LearnsSoftly = Classification | Regression | MultiLabel
"""What is so says the attribute of a similar name: `has_classes`, `learns_softly`."""

TASK_TYPES: dict[str, type[TaskType]] = {
    "classification": Classification,
    "regression": Regression,
    "multi_label": MultiLabel,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
}
"""`Task.task_type` -> class."""


def is_pair(task: Task) -> bool:
    """Whether a task's labels are of two texts."""
    return task.task_type in TASK_TYPES and create_head(task, None, 0).is_pair


def create_head(task: Task, tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> TaskType:
    """What fine-tuning needs to know about a task."""
    if task.task_type not in TASK_TYPES:
        raise UserError(f"{task.name}: unknown task type {task.task_type!r}, accepted are {', '.join(TASK_TYPES)}")
    return TASK_TYPES[task.task_type](task, cast(PreTrainedTokenizerBase, tokenizer), max_length)
