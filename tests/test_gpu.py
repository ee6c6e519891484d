"""What only an accelerator can show; without one the same runs on the processor. Not among the default tests."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from conftest import EVERY_OPERATION, SPECS, MaskingTokenizer

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search.training.pretraining import PretrainingBudget, pretrain


pytestmark = pytest.mark.gpu
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VOCAB_SIZE, BATCH, LENGTH = 200, 4, 48


def make_model(layers, **fields):
    set_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = FlexiBertConfig(layers=layers, vocab_size=VOCAB_SIZE, max_position_embeddings=LENGTH, **dropout, **fields)
    return FlexiBertForMaskedLM(config).to(DEVICE)


def logits_and_gradients(model, inputs: dict, dtype: torch.dtype):
    with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
        output = model(**inputs)
    names, parameters = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad))
    return output.logits.float(), dict(zip(names, torch.autograd.grad(output.loss, parameters)))


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).norm() / expected.norm().clamp_min(1e-6)).item()


@pytest.mark.parametrize("positions", ["absolute", "relative_key", "rotary"])
@pytest.mark.parametrize("spec", SPECS)
def test_bf16_is_float32_but_for_rounding(spec, positions):
    model = make_model(SPECS[spec], position_embedding_type=positions)
    inputs = {"input_ids": torch.randint(5, VOCAB_SIZE, (BATCH, LENGTH), device=DEVICE)}
    lengths = LENGTH - 9 * torch.arange(BATCH, device=DEVICE)
    inputs["attention_mask"] = (torch.arange(LENGTH, device=DEVICE) < lengths[:, None]).long()
    inputs["labels"] = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)
    logits, gradients = logits_and_gradients(model, inputs, torch.float32)
    half_logits, half_gradients = logits_and_gradients(model, inputs, torch.bfloat16)
    assert relative_error(half_logits, logits) < 0.02
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()])
    half = torch.cat([gradient.flatten() for gradient in half_gradients.values()])
    assert relative_error(half, whole) < 0.05


def test_the_processor_and_the_accelerator_agree():
    model = make_model(EVERY_OPERATION, position_embedding_type="relative_key").eval()
    ids = torch.randint(5, VOCAB_SIZE, (BATCH, LENGTH), device=DEVICE)
    with torch.no_grad():
        logits = model(ids).logits.cpu()
        expected = model.cpu()(ids.cpu()).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_pretraining_in_bf16_learns_what_it_learns_in_float32(compiled, tmp_path):
    blocks = np.random.default_rng(0).integers(5, VOCAB_SIZE, (64, LENGTH))
    blocks[:, 0], blocks[:, 1:] = 2, blocks[:, 1:2]  # every row repeats one token, which attention can copy
    budget = PretrainingBudget(steps=150, batch_size=16, sequence_length=LENGTH, learning_rate=1e-2)
    losses = {}
    for precision, compile in (("no", False), ("bf16", compiled)):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(mixed_precision=precision)
        model = make_model(SPECS["homogeneous"])
        settings = dataclasses.replace(budget, compile=compile)
        losses[precision] = pretrain(
            model, blocks, blocks[:8], MaskingTokenizer(VOCAB_SIZE), settings, 0, accelerator
        ).validation_loss
    assert losses["no"] < 1.5 and losses["bf16"] == pytest.approx(losses["no"], abs=0.3)
