"""Batches in groups of similar length: the same results for real tokens, in any order of rows, with gradients."""

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
def test_groups_change_nothing(name, batch):
    torch.manual_seed(0)
    model = FlexiBertModel(FlexiBertConfig(vocab_size=99, layers=SPECS[name], max_position_embeddings=32)).eval()
    ids, mask = batch
    whole = model(ids, attention_mask=mask)
    model.config.length_groups = 3
    grouped = model(ids, attention_mask=mask)
    difference = (whole.last_hidden_state - grouped.last_hidden_state).abs() * mask[..., None]
    assert difference.max() < 1e-5
    assert grouped.last_hidden_state[1, 17:].abs().max() == 0  # cut, so it was never computed
    assert torch.allclose(whole.pooler_output[:6], grouped.pooler_output[:6], atol=1e-5)


def test_gradients_are_the_same(batch):
    ids, mask = batch
    gradients = []
    for groups in (1, 4):
        torch.manual_seed(0)
        config = FlexiBertConfig(vocab_size=99, layers=SPECS["mixed_heads"], length_groups=groups)
        model = FlexiBertForMaskedLM(config).eval()
        model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients):
        assert torch.allclose(first, second, atol=1e-5)


def test_recorded_states_are_whole(batch):
    ids, mask = batch
    model = FlexiBertModel(FlexiBertConfig(vocab_size=99, layers=SPECS["homogeneous"], length_groups=4)).eval()
    states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(states) == 3 and all(state.shape == (7, 23, 32) for state in states)


@pytest.mark.parametrize("groups, mix_padding", [(0, False), (2, True)])
def test_what_cannot_be_grouped_is_refused(groups, mix_padding):
    layer = SPECS["cosine"][0]
    layer = {**layer, "operations": [{**layer["operations"][0], "mix_padding": mix_padding}]}
    with pytest.raises(ValueError, match=f"length_groups: {groups} is not accepted"):
        FlexiBertConfig(layers=[layer], length_groups=groups)
