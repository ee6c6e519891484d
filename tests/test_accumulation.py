"""A step of transformers' Trainer has the gradient of the whole batch, however it is cut into micro-batches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SPECS
from transformers import Trainer, TrainingArguments

import flexibert
from flexibert import FlexiBertConfig


EXAMPLES, LENGTH, VOCAB_SIZE = 8, 12, 32
KINDS = {
    "masked_lm": ("FlexiBertForMaskedLM", {}),
    "masked_lm_sparse": ("FlexiBertForMaskedLM", {"sparse_prediction": True}),
    "single_label": ("FlexiBertForSequenceClassification", {"num_labels": 3}),
    "regression": ("FlexiBertForSequenceClassification", {"num_labels": 1}),
    "regression_of_several": (
        "FlexiBertForSequenceClassification",
        {"num_labels": 3, "problem_type": "regression"},
    ),
    "multi_label": ("FlexiBertForSequenceClassification", {"num_labels": 3}),
    "token_classification": ("FlexiBertForTokenClassification", {"num_labels": 3}),
    "question_answering": ("FlexiBertForQuestionAnswering", {}),
    "multiple_choice": ("FlexiBertForMultipleChoice", {}),
}


def make_examples(kind: str) -> list[dict[str, torch.Tensor]]:
    """Rows of different length, with different numbers of labelled tokens where tokens are labelled."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for number in range(EXAMPLES):
        shape = (2, LENGTH) if kind == "multiple_choice" else (LENGTH,)
        ids = torch.randint(1, VOCAB_SIZE, shape, generator=generator)
        mask = torch.ones(shape, dtype=torch.long)
        mask[..., LENGTH - number // 2 :] = 0
        example = {"input_ids": ids, "attention_mask": mask}
        classes = torch.randint(0, 3, (LENGTH,), generator=generator)
        if kind == "question_answering":
            example |= {"start_positions": classes[0], "end_positions": classes[1]}
        elif kind in ("masked_lm", "masked_lm_sparse", "token_classification"):
            example["labels"] = torch.where(torch.arange(LENGTH) <= number, classes, -100)
        elif kind == "single_label":
            example["labels"] = classes[0]
        elif kind == "multiple_choice":
            example["labels"] = classes[0] % 2
        elif kind == "regression":
            example["labels"] = torch.rand((), generator=generator)
        else:
            example["labels"] = (classes[:3] > 0).float()
        examples.append(example)
    return examples


def step(kind: str, accumulation: int, folder, processes: int = 1) -> dict[str, torch.Tensor]:
    """What one step of plain gradient descent adds to every parameter, so minus its gradient."""
    head, fields = KINDS[kind]
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": LENGTH}
    model = getattr(flexibert, head)(FlexiBertConfig(layers=SPECS["widening"], **sizes, **dropout, **fields))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=1,
        per_device_train_batch_size=EXAMPLES // accumulation // processes,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        ddp_backend="gloo" if processes > 1 else None,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=make_examples(kind)).train()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_changes_no_gradient(kind, tmp_path):
    whole = step(kind, 1, tmp_path)
    assert max(change.abs().max() for change in whole.values()) > 1e-3
    for accumulation in (2, 4):
        for name, change in step(kind, accumulation, tmp_path).items():
            torch.testing.assert_close(change, whole[name], atol=1e-6, rtol=0, msg=f"{name} in {accumulation}")


@pytest.mark.slow
def test_processes_change_no_gradient(tmp_path):
    """Two processes, each with its half of every micro-batch."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run([*launch, __file__, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads((tmp_path / "norms.json").read_text())
    for kind in KINDS:
        whole = step(kind, 1, tmp_path)
        for accumulation in (1, 2):
            changes = torch.load(tmp_path / f"{kind}_{accumulation}.pt")
            for name, change in changes.items():
                torch.testing.assert_close(change, whole[name], atol=1e-6, rtol=0, msg=f"{kind} {name}")
    assert set(found) == {f"{kind}_{accumulation}" for kind in KINDS for accumulation in (1, 2)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    norms = {}
    for kind in KINDS:
        for accumulation in (1, 2):
            changes = step(kind, accumulation, folder / "trainer", processes=2)
            if torch.distributed.get_rank() == 0:
                torch.save(changes, folder / f"{kind}_{accumulation}.pt")
                norms[f"{kind}_{accumulation}"] = sum(change.norm().item() for change in changes.values())
    if torch.distributed.get_rank() == 0:
        (folder / "norms.json").write_text(json.dumps(norms), encoding="utf-8")
