"""Pretraining: what is random is a function of (seed, step), checkpoints are kept, divergence is told."""

import dataclasses
import json
import resource

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.utils import set_seed
from conftest import SPECS, MaskingTokenizer

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search.errors import TrainingDiverged, UserError
from search.training import pretraining
from search.training.masked_lm import IGNORED, MaskedLanguageModelling, epoch_order
from search.training.objectives import Student
from search.training.pretraining import PretrainingBudget, learning_rate, pretrain


@pytest.fixture
def blocks():
    """Text with a pattern: every token is followed by its successor."""
    starts = np.random.default_rng(0).integers(5, 60, (64, 1))
    body = (starts - 5 + np.arange(14)) % 55 + 5
    return np.concatenate([np.full((64, 1), 2), body, np.full((64, 1), 3)], axis=1).astype(np.uint16)


BUDGET = PretrainingBudget(steps=12, batch_size=8, sequence_length=16, learning_rate=3e-3, checkpoint_steps=4)


class Killed(Exception):
    pass


def train(blocks, folder=None, budget=BUDGET, kill_at=None, seed=0, layers="mixed_heads", **config):
    """Trains a small encoder from its first weights; returns it with the result, or None if killed."""
    set_seed(0)
    config = FlexiBertConfig(vocab_size=60, layers=SPECS[layers][:1], max_position_embeddings=16, **config)
    model = FlexiBertForMaskedLM(config)
    accelerator = Accelerator(cpu=True)

    def progress(done, loss, rate):
        if kill_at is not None and done >= kill_at:
            raise Killed

    try:
        return model, pretrain(
            model, blocks, blocks[:8], MaskingTokenizer(), budget, seed, accelerator, folder, progress
        )
    except Killed:
        return None
    finally:
        accelerator.free_memory()


def test_batches_depend_on_seed_and_step_only(blocks):
    task = MaskedLanguageModelling(blocks, MaskingTokenizer(), 0.15, seed=3)
    again = MaskedLanguageModelling(blocks, MaskingTokenizer(), 0.15, seed=3)
    for first, second in zip(task.batch(5, 8), again.batch(5, 8)):
        assert np.array_equal(first, second)
    assert not np.array_equal(task.batch(5, 8)[0], task.batch(6, 8)[0])


def test_every_epoch_sees_every_block_once(blocks):
    task = MaskedLanguageModelling(blocks, MaskingTokenizer(), 0.15, seed=3)
    for epoch in range(2):
        order = [epoch_order(64, 3, epoch)[i] for i in range(64)]
        assert sorted(order) == list(range(64))
    assert not np.array_equal(epoch_order(64, 3, 0), epoch_order(64, 3, 1))
    # a batch that straddles two epochs takes from both
    ids = task.batch(7, 9)[0]
    assert len(ids) == 9


def test_masking_hides_the_right_share_and_no_special_token(blocks):
    task = MaskedLanguageModelling(np.repeat(blocks, 20, axis=0), MaskingTokenizer(), 0.15, seed=0)
    ids = np.repeat(blocks, 20, axis=0).astype(np.int64)
    masked, positions, labels = task.mask(ids, np.random.default_rng(0))
    assert positions.shape == (1280, 2)
    assert np.array_equal(np.take_along_axis(ids, positions, axis=1), labels)
    assert not np.isin(labels, MaskingTokenizer.all_special_ids).any()
    shown = np.take_along_axis(masked, positions, axis=1)
    assert np.mean(shown == MaskingTokenizer.mask_token_id) == pytest.approx(0.8, abs=0.03)
    assert np.mean(shown == labels) == pytest.approx(0.1, abs=0.03)
    untouched = np.ones_like(ids, dtype=bool)
    np.put_along_axis(untouched, positions, False, axis=1)
    assert np.array_equal(masked[untouched], ids[untouched])


def test_rows_of_special_tokens_count_nothing():
    task = MaskedLanguageModelling(np.zeros((1, 16), np.uint16), MaskingTokenizer(), 0.15, seed=0)
    masked, _, labels = task.mask(np.zeros((1, 16), np.int64), np.random.default_rng(0))
    assert (labels == IGNORED).all()


def test_schedule():
    budget = PretrainingBudget(steps=100, learning_rate=1.0, warmup_fraction=0.1)
    rates = [learning_rate(step, budget) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5, abs=0.02) and 0 < rates[99] < 0.02


def test_training_learns(blocks):
    blocks[:, 1:-1] = blocks[:, 1:2]  # every row repeats one token, which attention can copy
    budget = PretrainingBudget(steps=120, batch_size=16, sequence_length=16, learning_rate=1e-2)
    _, result = train(blocks, budget=budget, layers="homogeneous", hidden_dropout_prob=0)
    assert result.losses[0] == pytest.approx(np.log(60), abs=0.5)
    assert result.validation_loss < 1.0
    assert result.metrics["mlm_accuracy_percent"] > 70
    assert len(result.losses) == 120


def test_a_kill_between_the_renames_loses_nothing(blocks, tmp_path, monkeypatch):
    train(blocks, tmp_path, kill_at=8)
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint-old")
    steps = []
    monkeypatch.setattr(pretraining, "learning_rate", lambda step, budget: steps.append(step) or 1e-3)
    train(blocks, tmp_path)
    assert sorted(set(steps)) == list(range(4, 12))


def test_checkpoint_of_another_run_is_refused(blocks, tmp_path):
    train(blocks, tmp_path, kill_at=8)
    with pytest.raises(UserError, match="another seed"):
        train(blocks, tmp_path, seed=1)
    with pytest.raises(UserError, match="another model"):  # though all its parameters have the same shapes
        train(blocks, tmp_path, hidden_dropout_prob=0.2)
    with pytest.raises(UserError, match="another text"):
        train(blocks[::-1], tmp_path)


def test_divergence_names_the_step_and_keeps_the_checkpoint(blocks, tmp_path):
    train(blocks, tmp_path, kill_at=8)
    path = tmp_path / "checkpoint" / "pretraining.json"
    state = json.loads(path.read_text())
    state["budget"]["learning_rate"] = 1e30
    path.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step 6; a lower learning rate may help"):
        train(blocks, tmp_path, dataclasses.replace(BUDGET, learning_rate=1e30))
    assert json.loads(path.read_text()) == state


def test_weights_are_not_kept_after_a_gradient_that_is_not_finite(blocks, tmp_path, monkeypatch):
    train(blocks, tmp_path, kill_at=8)
    total, calls = Student.total, []

    def steep_at_the_fourth(student, losses):
        calls.append(losses)
        steep = (0 * next(student.parameters()).sum()).sqrt() if len(calls) == 4 else 0.0
        return total(student, losses) + steep

    monkeypatch.setattr(Student, "total", steep_at_the_fourth)
    with pytest.raises(TrainingDiverged, match="the gradient is nan at step 8; a lower learning rate may help"):
        train(blocks, tmp_path)
    assert json.loads((tmp_path / "checkpoint" / "pretraining.json").read_text())["step"] == 4


def test_a_gradient_that_is_not_finite_at_the_last_step_is_told(blocks, monkeypatch):
    total = Student.total

    def steep(student, losses):
        return total(student, losses) + (0 * next(student.parameters()).sum()).sqrt()

    monkeypatch.setattr(Student, "total", steep)
    with pytest.raises(TrainingDiverged, match="the gradient is nan at step 1"):
        train(blocks, budget=dataclasses.replace(BUDGET, steps=1, checkpoint_steps=0))


@pytest.mark.parametrize("limit", [10_000, 100_000], ids=["weights", "optimizer"])
def test_a_full_disk_leaves_the_last_checkpoint(blocks, tmp_path, limit):
    train(blocks, tmp_path, kill_at=8)
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    assert len(before["model.safetensors"]) < 100_000 < len(before["optimizer.bin"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # bytes a file
    try:
        with pytest.raises(UserError, match="checkpoint cannot be written and is left as it was: "):
            train(blocks, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_micro_batches_give_the_same_gradient(blocks):
    budget = PretrainingBudget(steps=1, batch_size=8, sequence_length=16)
    losses = [
        train(blocks, budget=PretrainingBudget(**{**budget.__dict__, "micro_batches": n}))[1].losses[0] for n in (1, 4)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # dropout differs


def test_batch_that_does_not_divide_is_refused(blocks):
    with pytest.raises(UserError, match="batch size 8 does not divide"):
        train(blocks, budget=PretrainingBudget(steps=1, batch_size=8, sequence_length=16, micro_batches=3))
