"""Task distillation: losses are their formulas, a student follows its teacher, and what does not fit is said."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_finetuning import QUICK, classification, encoder, regression, tokenizer  # noqa: F401
from test_task_types import label_task, token_task

from search.errors import UserError
from search.training.finetuning import finetune
from search.training.finetuning_runs import finetune_tasks
from search.training.soft_labels import TaskTeacher
from search.training.task_types import create_head


SHUFFLED = [1, 0] * 80


@pytest.fixture(scope="module")
def tuned(encoder, tokenizer, tmp_path_factory):  # noqa: F811
    """Models that were fine-tuned on the tasks "mood" and "stars", in folders of their names."""
    folder = tmp_path_factory.mktemp("tuned")
    tokenizer.save_pretrained(encoder)
    finetune_tasks(encoder, [classification(), regression()], tokenizer, QUICK, output_dir=folder)
    return folder


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_soft_losses_are_their_formulas(tokenizer):  # noqa: F811
    student, teacher = np.random.default_rng(0).normal(size=(2, 5, 3))
    outputs, soft = SimpleNamespace(logits=torch.tensor(student)), torch.tensor(teacher)

    p, q = softmax(teacher / 3), softmax(student / 3)
    loss = create_head(classification(), tokenizer, 32).soft_loss(outputs, soft, 3.0)
    assert loss.item() == pytest.approx(9 * (p * np.log(p / q)).sum(), rel=1e-5)

    p, q = (1 / (1 + np.exp(-logits / 3)) for logits in (teacher, student))
    expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(-1).sum()
    assert create_head(label_task(), tokenizer, 32).soft_loss(outputs, soft, 3.0).item() == pytest.approx(
        9 * expected, rel=1e-5
    )

    loss = create_head(regression(), tokenizer, 32).soft_loss(outputs, soft, 3.0)
    assert loss.item() == pytest.approx(((student - teacher) ** 2).sum(), rel=1e-5)


def test_a_teacher_reads_the_examples_in_their_order(tuned, tokenizer):  # noqa: F811
    from transformers import pipeline

    task = classification(train_size=70)
    soft = TaskTeacher(str(tuned), 4.0, 0.25).read(task, 32)
    assert (soft.logits.shape, soft.temperature, soft.label_weight) == ((70, 2), 4.0, 0.25)
    answers = pipeline("text-classification", str(tuned / "mood"))(task.train["text"][:])
    assert [answer["label"] for answer in answers] == [task.label_names[row.argmax()] for row in soft.logits]


def test_a_student_follows_its_teacher_and_not_wrong_labels(encoder, tuned, tokenizer):  # noqa: F811
    """Labels that say nothing, and no weight for them: all that is learnt comes from the teacher."""
    train = classification().train.remove_columns("label").add_column("label", SHUFFLED)
    task = classification(train=train)
    soft = TaskTeacher(str(tuned / "mood"), label_weight=0.0).read(task, 32)
    assert finetune(encoder, task, tokenizer, QUICK, soft_labels=soft).score > 0.8
    hard = dataclasses.replace(soft, label_weight=1.0)
    alone = finetune(encoder, task, tokenizer, QUICK)
    assert finetune(encoder, task, tokenizer, QUICK, soft_labels=hard).train_loss == pytest.approx(alone.train_loss)


def test_every_task_has_its_own_teacher(encoder, tuned, tokenizer):  # noqa: F811
    results = finetune_tasks(
        encoder, [classification(), regression()], tokenizer, QUICK, teacher=TaskTeacher(str(tuned))
    )
    assert results["mood"][0].score > 0.8 and results["stars"][0].score > 0.5


@pytest.mark.parametrize(
    ("task", "teacher", "message"),
    [
        (classification(), "stars", "stars: it tells LABEL_0 apart, mood has negative, positive"),
        (
            classification(num_labels=2, label_names=("positive", "negative")),
            "mood",
            "mood: it tells negative, positive apart, mood has positive, negative",
        ),
        (token_task(), "mood", "teacher model: names is token classification, which is not distilled"),
        (classification(), "nowhere", "nowhere"),
    ],
)
def test_teachers_that_do_not_fit(task, teacher, message, tuned):
    with pytest.raises(UserError, match=message):
        TaskTeacher(str(tuned / teacher)).read(task, 32)


def test_a_teacher_that_was_never_fine_tuned(encoder, tuned, tokenizer):  # noqa: F811
    with pytest.raises(UserError, match="is not fine-tuned: it has no weights for classifier"):
        TaskTeacher(str(encoder)).read(classification(), 32)
