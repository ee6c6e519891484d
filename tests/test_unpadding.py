"""Batches without their padding: the same results for real tokens, with gradients."""

import pytest
import torch
from conftest import SPECS

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, FlexiBertModel


@pytest.fixture
def batch():
    """Rows of 3 to 23 tokens, one of them padded on the left."""
    ids = torch.randint(1, 99, (7, 23), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row, length in enumerate((23, 3, 9, 17, 5, 12)):
        mask[row, length:] = 0
    mask[6, :5] = 0
    return ids, mask


@pytest.mark.parametrize("name", SPECS)
def test_unpadding_changes_nothing(name, batch):
    torch.manual_seed(0)
    model = FlexiBertModel(FlexiBertConfig(vocab_size=99, layers=SPECS[name], max_position_embeddings=32)).eval()
    ids, mask = batch
    whole = model(ids, attention_mask=mask)
    model.config.unpad_inputs = True
    packed = model(ids, attention_mask=mask)
    difference = (whole.last_hidden_state - packed.last_hidden_state).abs() * mask[..., None]
    assert difference.max() < 1e-5
    assert (packed.last_hidden_state * (1 - mask[..., None])).abs().max() == 0  # was never computed
    assert torch.allclose(whole.pooler_output[:6], packed.pooler_output[:6], atol=1e-5)


def test_gradients_are_the_same(batch):
    ids, mask = batch
    gradients = []
    for unpad in (False, True):
        torch.manual_seed(0)
        config = FlexiBertConfig(vocab_size=99, layers=SPECS["mixed_heads"], unpad_inputs=unpad)
        model = FlexiBertForMaskedLM(config).eval()
        model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients):
        assert torch.allclose(first, second, atol=1e-5)


def test_recorded_states_are_whole(batch):
    ids, mask = batch
    model = FlexiBertModel(FlexiBertConfig(vocab_size=99, layers=SPECS["homogeneous"], unpad_inputs=True)).eval()
    states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(states) == 3 and all(state.shape == (7, 23, 32) for state in states)


def test_layers_that_mix_padding_in_are_refused():
    layer = SPECS["cosine"][0]
    layer = {**layer, "operations": [{**layer["operations"][0], "mix_padding": True}]}
    with pytest.raises(ValueError, match=r"unpad_inputs: true is not accepted, layers\[0\] has mix_padding"):
        FlexiBertConfig(layers=[layer], unpad_inputs=True)
