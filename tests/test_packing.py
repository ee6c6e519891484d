"""Several sequences in one row: as alone, for every operation, backend and head; and what is refused in one line."""

import pytest
import torch
from conftest import EVERY_OPERATION, SPECS

from flexibert import (
    FlexiBertConfig,
    FlexiBertForMaskedLM,
    FlexiBertForSequenceClassification,
    FlexiBertModel,
)
from flexibert.operations import MixingContext, ScoredAttention


ENCODERS = {**SPECS, "every_operation": EVERY_OPERATION}
LENGTHS = [3, 11, 1, 7, 7, 2]


def make_model(head, layers, **fields):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "max_position_embeddings": 12}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = head(FlexiBertConfig(layers=layers, **{**sizes, **dropout, **fields})).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def packed(how="cu_seq_lens"):
    """One row of 31 tokens, longer than the table of positions, and the sequences in it."""
    torch.manual_seed(1)
    row = {
        "input_ids": torch.randint(1, 64, (1, sum(LENGTHS))),
        "token_type_ids": torch.randint(0, 2, (1, sum(LENGTHS))),
    }
    alone = [dict(zip(row, parts)) for parts in zip(*(x.split(LENGTHS, dim=1) for x in row.values()))]
    if how != "position_ids":
        bounds = torch.tensor([0, *LENGTHS]).cumsum(0, dtype=torch.int32)
        row |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": max(LENGTHS), "max_length_k": 11}
    if how != "cu_seq_lens":
        row["position_ids"] = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return row, alone


@pytest.mark.parametrize("how", ["cu_seq_lens", "position_ids", "both"])
@pytest.mark.parametrize("positions", ["absolute", "relative_key", "relative_key_query", "rotary"])
@pytest.mark.parametrize("layers", ENCODERS.values(), ids=ENCODERS)
def test_packed_sequences_are_as_alone(layers, positions, how):
    model = make_model(FlexiBertModel, layers, position_embedding_type=positions)
    row, alone = packed(how)
    actual = model(**row)
    expected = [model(**inputs) for inputs in alone]
    states = torch.cat([output.last_hidden_state for output in expected], dim=1)
    torch.testing.assert_close(actual.last_hidden_state, states, atol=1e-5, rtol=1e-5)
    pooled = torch.cat([output.pooler_output for output in expected])
    torch.testing.assert_close(actual.pooler_output, pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_backends_agree_on_packed_sequences(backend):
    model = make_model(FlexiBertModel, SPECS["homogeneous"], attn_implementation=backend)
    row, alone = packed()
    expected = torch.cat([model(**inputs).last_hidden_state for inputs in alone], dim=1)
    torch.testing.assert_close(model(**row).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow  # it is compiled for every shape
@pytest.mark.parametrize("positions", ["absolute", "rotary"])
@torch.no_grad()  # on CPUs flex attention has no gradient
def test_flex_attention_computes_the_same(positions):
    graph = [layer for layer in SPECS["graph"] if len(layer["operations"]) == 1]
    model = make_model(FlexiBertModel, [*SPECS["multiplicative"][:1], *graph], position_embedding_type=positions)
    row, alone = packed()
    padded = {"input_ids": row["input_ids"][:, :24].view(3, 8), "attention_mask": torch.ones(3, 8, dtype=torch.long)}
    padded["attention_mask"][1, 5:] = 0
    real = padded["attention_mask"].bool()
    expected = [model(**alone[1]).last_hidden_state, model(**padded).last_hidden_state[real]]
    expected.append(model(**row).last_hidden_state)
    model.set_attn_implementation("flex_attention")
    actual = [model(**alone[1]).last_hidden_state, model(**padded).last_hidden_state[real]]
    actual.append(model(**row).last_hidden_state)
    for one, other in zip(actual, expected):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_heads_on_packed_sequences(pooling):
    row, alone = packed("both")
    classifier = make_model(FlexiBertForSequenceClassification, EVERY_OPERATION, classifier_pooling=pooling)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    output = classifier(**row, labels=labels)
    expected = torch.cat([classifier(**inputs).logits for inputs in alone])
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-5)
    output.loss.backward()
    gradient = classifier.model.embeddings.word_embeddings.weight.grad.clone()
    classifier.zero_grad()
    torch.nn.functional.cross_entropy(torch.cat([classifier(**inputs).logits for inputs in alone]), labels).backward()
    torch.testing.assert_close(classifier.model.embeddings.word_embeddings.weight.grad, gradient, atol=1e-5, rtol=1e-4)
    masked_lm = make_model(FlexiBertForMaskedLM, EVERY_OPERATION)
    expected = torch.cat([masked_lm(**inputs).logits for inputs in alone], dim=1)
    torch.testing.assert_close(masked_lm(**row).logits, expected, atol=1e-5, rtol=1e-5)


def test_positions_that_are_no_packing_stay_positions():
    """Those of one sequence may be anything, also with gaps; beside a mask they are never a packing."""
    model = make_model(FlexiBertModel, SPECS["homogeneous"])
    ids = torch.randint(1, 64, (1, 6))
    for positions in ([0, 2, 4, 6, 8, 10], [3, 4, 5, 6, 7, 8], [5, 4, 3, 2, 1, 0], [0, 0, 0, 0, 0, 5]):
        changed = ids.clone()
        changed[0, -1] = ids[0, -1] % 63 + 1
        inputs = {"position_ids": torch.tensor([positions])}
        first, second = (model(x, **inputs).last_hidden_state[0, 0] for x in (ids, changed))
        assert not torch.equal(first, second)
    masked = {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]), "attention_mask": torch.ones_like(ids)}
    first, second = (model(x, **masked).last_hidden_state[0, 0] for x in (ids, changed))
    assert not torch.equal(first, second)


def test_a_row_may_be_longer_than_the_table_if_its_positions_are_given():
    ids = torch.randint(1, 64, (2, 20))
    position_ids = torch.arange(20)[None] % 12 // 2
    assert (
        make_model(FlexiBertModel, SPECS["fourier"])(ids, position_ids=position_ids).last_hidden_state.shape[1] == 20
    )
    for fields, inputs in (
        ({}, {}),
        ({}, {"position_ids": torch.arange(20)[None]}),
        ({"position_embedding_type": "relative_key"}, {"position_ids": position_ids}),
    ):
        with pytest.raises(ValueError, match="^sequence length 20 exceeds max_position_embeddings 12$"):
            make_model(FlexiBertModel, SPECS["homogeneous"], **fields)(ids, **inputs)


def test_what_a_packed_batch_cannot_have_is_said():
    model = make_model(FlexiBertModel, SPECS["homogeneous"])
    row, _ = packed()
    ones = torch.ones_like(row["input_ids"])
    mixing = [{**SPECS["fourier"][0], "operations": [{"op": "linear_transform", "num_heads": 2, "mix_padding": True}]}]
    for encoder, changes, message in (
        (model, {"cu_seq_lens_q": torch.tensor([0, 5])}, "^cu_seq_lens_q: from 0 to the 31 tokens of one row"),
        (model, {"cu_seq_lens_q": torch.tensor([0, 7, 5, 31])}, "^cu_seq_lens_q: from 0 to the 31 tokens of one row"),
        (model, {"cu_seq_lens_q": torch.tensor([0, 31])}, "^sequence length 31 exceeds max_position_embeddings 12"),
        (model, {"attention_mask": ones - ones.cumsum(1) // 31}, "^attention_mask: none is expected beside cu_seq_l"),
        (model, {"output_hidden_states": True}, "^output_hidden_states, output_attentions: not with a packed batch"),
        (
            make_model(FlexiBertModel, mixing),
            {},
            r"^a packed batch has no padding to mix, but layers\[0\] has mix_pad",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            encoder(**{**row, **changes})
    two = {"input_ids": row["input_ids"].repeat(2, 1), "cu_seq_lens_q": row["cu_seq_lens_q"]}
    with pytest.raises(ValueError, match="^cu_seq_lens_q: from 0 to the 31 tokens of one row"):
        model(**two)
    assert model(**row, attention_mask=ones).last_hidden_state.isfinite().all()


def test_flash_attention_in_float32_is_refused_in_one_line():
    config = FlexiBertConfig(layers=SPECS["homogeneous"])
    config._attn_implementation_internal = "flash_attention_2"  # what from_pretrained sets where it is installed
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    with pytest.raises(ValueError, match="^attn_implementation: flash_attention_2 does not compute in float32; load "):
        ScoredAttention(config, 8)(query, key, value, MixingContext(None, None, None))


def test_flex_attention_where_softmax_is_all_there_is():
    masks = FlexiBertModel(FlexiBertConfig(layers=SPECS["homogeneous"]))
    assert masks._supports_flex_attn and masks._supports_flash_attn
    for layers, positions in ((SPECS["fourier"], "absolute"), (SPECS["homogeneous"], "relative_key")):
        model = FlexiBertModel(FlexiBertConfig(layers=layers, position_embedding_type=positions))
        assert not model._supports_flex_attn and not model._supports_flash_attn
        with pytest.raises(ValueError, match="flex"):
            config = FlexiBertConfig(layers=layers, position_embedding_type=positions)
            FlexiBertModel._from_config(config, attn_implementation="flex_attention")
