"""Model dictionaries, the public code's checkpoints under all their names, transformers' models; what is refused."""

import copy
import re

import numpy as np
import pytest
import torch
import transformers
from test_reference import random_tensors

from flexibert import (
    FlexiBertForMaskedLM,
    FlexiBertModel,
    config_from_model_dict,
    convert_reference_state_dict,
    convert_transformers_model,
)
from flexibert.convert import CONVERTIBLE
from flexibert.modeling_flexibert import (
    FlexiBertForQuestionAnswering,
    FlexiBertForSequenceClassification,
    FlexiBertForTokenClassification,
)
from flexibert.spec import DynamicConvolution, LinearTransform, SelfAttention


STANDARD = {
    "l": 3,
    "o": ["sa", "l", "c"],
    "h": [16, 24, 16],
    "n": [2, 3, 4],
    "f": [[32], [20, 40], [8]],
    "p": ["wma", "dct", 5],
}
HETERO = {
    "l": 2,
    "o": [["sa_sdp_8", "sa_sdp_8", "l_dft_8", "c_5_8"], ["sa_wma_8", "sa_wma_8", "c_9_8", "c_9_8"]],
    "h": [32, 20],
    "f": [[32], [24, 16]],
}


# --- model dictionaries -------------------------------------------------------------------------------------------


def test_standard_format():
    config = config_from_model_dict(STANDARD)
    attention, transform, convolution = (layer.operations for layer in config.layer_specs)
    assert attention == (SelfAttention(2, "weighted_multiplicative"),)
    assert transform == (LinearTransform(3, "cosine", "layer", "backward", relative_attention=True),)
    assert convolution == (DynamicConvolution(4, 5, "layer", mixed_attention=True),)
    assert [layer.hidden_size for layer in config.layer_specs] == [16, 24, 16]
    assert [layer.feed_forward for layer in config.layer_specs] == [(32,), (20, 40), (8,)]


def test_hetero_format_groups_neighbours_without_tensors_of_their_own():
    first, second = config_from_model_dict(HETERO).layer_specs
    transform = LinearTransform(1, "fourier", "head", "backward", relative_attention=True)
    assert first.operations == (
        SelfAttention(2),
        transform,
        DynamicConvolution(1, 5, "head", relative_attention=True),
    )
    matrix, convolution = (
        SelfAttention(1, "weighted_multiplicative"),
        DynamicConvolution(1, 9, "head", relative_attention=True),
    )
    assert second.operations == (matrix, matrix, convolution, convolution)
    assert first.head_size is None and second.head_size == 8


def test_bert_is_the_same_in_both_formats():
    standard = {"l": 2, "o": ["sa"] * 2, "h": [64] * 2, "n": [4] * 2, "f": [[128]] * 2, "p": ["sdp"] * 2}
    hetero = {"l": 2, "o": [["sa_sdp_16"] * 4] * 2, "h": [64] * 2, "f": [[128]] * 2}
    assert config_from_model_dict(standard).fingerprint == config_from_model_dict(hetero).fingerprint


def test_fields_beside_the_dictionary():
    config = config_from_model_dict(STANDARD)
    assert (config.vocab_size, config.max_position_embeddings, config.type_vocab_size) == (50265, 512, 2)
    assert (config.position_embedding_type, config.tie_word_embeddings) == ("relative_key", False)
    config = config_from_model_dict(STANDARD, vocab_size=77, position_embedding_type="rotary")
    assert (config.vocab_size, config.position_embedding_type) == (77, "rotary")


def test_padding_is_mixed_on_request_only():
    for model_dict in (STANDARD, HETERO):
        for mix_padding in (False, True):
            config = config_from_model_dict(model_dict, mix_padding=mix_padding)
            operations = [operation for layer in config.layer_specs for operation in layer.operations]
            choices = {operation.mix_padding for operation in operations if hasattr(operation, "mix_padding")}
            assert choices == {mix_padding}


@pytest.mark.parametrize(
    "base, key, index, value, message",
    [
        (STANDARD, "l", None, 2, "model_dict.o: expected a list of 2 entries"),
        (STANDARD, "l", None, 0, "model_dict.l: 0 is not accepted"),
        (STANDARD, "l", None, True, "model_dict.l: True is not accepted"),
        pytest.param(STANDARD, "l", None, 10**5000, "model_dict.o: expected a list of a huge int", id="huge"),
        (STANDARD, "o", None, "sa", "model_dict.o: expected a list of 3 entries"),
        (STANDARD, "o", 1, "x", "model_dict.o[1]: 'x' is not accepted, known: sa, l, c"),
        (STANDARD, "o", 1, ["sa_sdp_8"], "model_dict.o[1]: ['sa_sdp_8'] is not accepted"),
        (STANDARD, "h", 0, -16, "model_dict.h[0]: -16 is not accepted"),
        (STANDARD, "h", 0, 16.0, "model_dict.h[0]: 16.0 is not accepted"),
        (STANDARD, "h", 0, 2**20, "model_dict: layers[0].hidden_size: 1048576 is not accepted"),
        (STANDARD, "n", 1, 5, "model_dict.n[1]: 5 heads do not divide the hidden size 24"),
        (STANDARD, "n", 2, 1, "model_dict.n[2]: 1 is odd"),
        (STANDARD, "n", 0, "2", "model_dict.n[0]: '2' is not accepted"),
        (STANDARD, "n", None, [10**5000] * 3, "model_dict.n[0]: a huge int heads do not divide"),
        (STANDARD, "f", 2, [], "model_dict.f[2]: expected a list of at least one entry"),
        (STANDARD, "f", 2, 8, "model_dict.f[2]: expected a list"),
        (STANDARD, "f", 1, [20, 0], "model_dict.f[1][1]: 0 is not accepted"),
        (STANDARD, "p", 0, "dct", "model_dict.p[0]: 'dct' is not accepted with sa, known: sdp, wma"),
        (STANDARD, "p", 1, 5, "model_dict.p[1]: 5 is not accepted with l, known: dft, dct"),
        (STANDARD, "p", 2, 4, "model_dict.p[2]: 4 is not accepted, expected an odd whole number"),
        (STANDARD, "p", 2, "sdp", "model_dict.p[2]: 'sdp' is not accepted"),
        (STANDARD, "x", None, 1, "model_dict: unknown key 'x'"),
        (HETERO, "n", None, [4, 4], "model_dict: unknown key 'n'"),
        (HETERO, "o", 0, "sa_sdp_8", "model_dict.o[0]: expected a list"),
        (HETERO, "o", 0, [], "model_dict.o[0]: expected a list"),
        (HETERO, "o", 1, ["sa_sdp_8", "sa_sdp"], "model_dict.o[1][1]: 'sa_sdp', expected e.g. sa_sdp_64"),
        (HETERO, "o", 1, ["sa_sdp_0"], "model_dict.o[1][0]: 'sa_sdp_0'"),
        (HETERO, "o", 1, ["sa_sdp_8", "c_6_8"], "model_dict.o[1][1]: 6 is not accepted, expected an odd"),
        (HETERO, "o", 1, ["l_dct_8", "l_dct_8", "l_sdp_8"], "model_dict.o[1][2]: 'sdp' is not accepted with l"),
        (HETERO, "o", 1, ["sa_sdp_8", "sa_sdp_4"], "model_dict.o[1][1]: 'sa_sdp_4' differs in head size"),
        (HETERO, "o", 1, [None], "model_dict.o[1][0]: None"),
    ],
)  # fmt: skip
def test_bad_model_dicts(base, key, index, value, message):
    model_dict = copy.deepcopy(base)
    if index is None:
        model_dict[key] = value
    else:
        model_dict[key][index] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        config_from_model_dict(model_dict)


@pytest.mark.parametrize("value", [None, [], "l", 3])
def test_no_model_dict(value):
    with pytest.raises(ValueError, match="model_dict: expected an object"):
        config_from_model_dict(value)


@pytest.mark.parametrize("key", "lohnf")
def test_missing_key(key):
    model_dict = {name: value for name, value in STANDARD.items() if name != key}
    with pytest.raises(ValueError, match=f"model_dict: missing key '{key}'"):
        config_from_model_dict(model_dict)


# --- checkpoints of the public code -------------------------------------------------------------------------------


def checkpoint(model_dict, relative=True):
    return random_tensors(model_dict, relative, np.random.default_rng(0))


@pytest.fixture(params=[STANDARD, HETERO], ids=["standard", "hetero"])
def model_dict(request):
    return request.param


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def test_sizes_and_positions_are_read_off_the_tensors(model_dict):
    config, _ = convert_reference_state_dict(checkpoint(model_dict), model_dict)
    assert (config.vocab_size, config.max_position_embeddings, config.type_vocab_size) == (30, 20, 2)
    assert config.position_embedding_type == "relative_key"
    config, _ = convert_reference_state_dict(checkpoint(model_dict, relative=False), model_dict)
    assert (config.max_position_embeddings, config.position_embedding_type) == (20, "absolute")


def test_prefixes_and_names_of_all_sources(model_dict):
    """Whatever the classes called their parts, the same tensors come out."""
    tensors = checkpoint(model_dict)
    _, expected = convert_reference_state_dict(tensors, model_dict)
    FlexiBertForMaskedLM(convert_reference_state_dict(tensors, model_dict)[0]).load_state_dict(expected)

    without_pooler = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert_same(convert_reference_state_dict(without_pooler, model_dict)[1], expected)

    # The pull request: another prefix, W as a linear layer, no alias of the first feed-forward layer.
    renamed = {
        re.sub("^bert", "flexibert", re.sub(r"\.W$", ".W.weight", name)): tensor for name, tensor in tensors.items()
    }
    assert_same(convert_reference_state_dict(renamed, model_dict)[1], expected)

    # The fork: saved position ids, aliases beside or in place of what they stand for.
    aliased = dict(tensors, **{"bert.embeddings.position_ids": torch.arange(20)[None]})
    aliased["cls.predictions.decoder.bias"] = aliased["cls.predictions.bias"]
    for name in list(aliased):
        if ".sequential.0." in name:
            aliased[name.replace("sequential.0", "dense")] = aliased[name]
    assert_same(convert_reference_state_dict(aliased, model_dict)[1], expected)
    only_alias = {
        name: tensor
        for name, tensor in aliased.items()
        if "sequential.0" not in name and name != "cls.predictions.bias"
    }
    assert_same(convert_reference_state_dict(only_alias, model_dict)[1], expected)


def test_unused_absolute_positions_may_be_missing():
    tensors = checkpoint(STANDARD)
    del tensors["bert.embeddings.position_embeddings.weight"]
    assert convert_reference_state_dict(tensors, STANDARD)[0].max_position_embeddings == 20


def test_base_model(model_dict):
    tensors = {
        name.removeprefix("bert."): tensor
        for name, tensor in checkpoint(model_dict).items()
        if not name.startswith("cls.")
    }
    config, state_dict = convert_reference_state_dict(tensors, model_dict)
    FlexiBertModel(config).load_state_dict(state_dict)
    loaded = FlexiBertModel.from_pretrained(None, config=config, state_dict=state_dict)
    assert_same(dict(loaded.state_dict()), state_dict)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler")}
    config, state_dict = convert_reference_state_dict(tensors, model_dict)
    FlexiBertModel(config, add_pooling_layer=False).load_state_dict(state_dict)


def with_heads(model_dict, pooler=True, **heads):
    tensors = {
        name: tensor
        for name, tensor in checkpoint(model_dict).items()
        if not name.startswith("cls.") and (pooler or "pooler" not in name)
    }
    for name, size in heads.items():
        input_size = model_dict["h"][-1]
        tensors[f"{name.replace('__', '.')}.weight"] = torch.randn(size, input_size)
        tensors[f"{name.replace('__', '.')}.bias"] = torch.randn(size)
    return tensors


@pytest.mark.parametrize(
    "tensors, model_class",
    [
        (with_heads(STANDARD, classifier=5), FlexiBertForSequenceClassification),
        (with_heads(STANDARD, pooler=False, classifier=5), FlexiBertForTokenClassification),
        (with_heads(STANDARD, pooler=False, qa_outputs=2), FlexiBertForQuestionAnswering),
    ],
)
def test_heads(tensors, model_class):
    config, state_dict = convert_reference_state_dict(tensors, STANDARD)
    model = model_class(config)
    model.load_state_dict(state_dict)
    if hasattr(model, "classifier"):
        assert config.num_labels == 5
        assert torch.equal(model.classifier.weight, tensors["classifier.weight"])


def test_classification_head_of_the_pull_request():
    """dense, tanh, out_proj on the first token: a pooler and a classifier, whatever pooler the checkpoint has too."""
    tensors = with_heads(STANDARD, classifier__dense=16, classifier__out_proj=3)
    config, state_dict = convert_reference_state_dict(tensors, STANDARD)
    model = FlexiBertForSequenceClassification(config).eval()
    model.load_state_dict(state_dict)
    ids = torch.arange(7)[None]
    first = model.model(ids).last_hidden_state[:, 0]
    hidden = torch.tanh(first @ tensors["classifier.dense.weight"].T + tensors["classifier.dense.bias"])
    expected = hidden @ tensors["classifier.out_proj.weight"].T + tensors["classifier.out_proj.bias"]
    torch.testing.assert_close(model(ids).logits, expected)


def test_mix_padding_of_checkpoints(model_dict):
    """By default as trained, with padding in the transforms; on request padding changes nothing."""
    ids = torch.arange(12).reshape(2, 6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    for mix_padding in (True, False):
        config, state_dict = convert_reference_state_dict(checkpoint(model_dict), model_dict, mix_padding=mix_padding)
        model = FlexiBertForMaskedLM(config).eval()
        model.load_state_dict(state_dict)
        padded, alone = model(ids, mask).logits[1, :4], model(ids[1:, :4]).logits[0]
        assert torch.allclose(padded, alone, atol=1e-4) == (not mix_padding)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("bert.embeddings.word_embeddings.weight"), "embeddings.word_embeddings.weight is missing"),
        (lambda t: t.pop("bert.encoder.layer.0.attention.self.W"), "encoder.layer.0.attention.self.W is missing"),
        (
            lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"),
            "encoder.layer.1.output.dense.bias is missing",
        ),
        (
            lambda t: t.pop("bert.encoder.layer.0.intermediate.sequential.0.bias"),
            "encoder.layer.0.intermediate.sequential.0.bias is missing",
        ),
        (
            lambda t: t.update({"bert.encoder.layer.0.attention.self.query.weight": torch.zeros(8, 16)}),
            "encoder.layer.0.attention.self.query.weight gives the shape (8, 16) where (16, 16) is expected",
        ),
        (
            lambda t: t.update({"bert.encoder.layer.3.output.dense.bias": torch.zeros(8)}),
            "encoder.layer.3.output.dense.bias has no place",
        ),
        (lambda t: t.update({"bert.extra": torch.zeros(8)}), "extra has no place"),
    ],
)  # fmt: skip
def test_checkpoints_that_do_not_fit(change, message):
    tensors = checkpoint(STANDARD)
    change(tensors)
    with pytest.raises(ValueError, match=re.escape(f"state_dict: {message}")):
        convert_reference_state_dict(tensors, STANDARD)


@pytest.mark.parametrize(
    "changes",
    [
        {"h": [16, 24, 8]},
        {"n": [4, 3, 4]},
        {"f": [[32], [20, 40], [16]]},
        {"p": ["wma", "dct", 9]},
        {"o": ["sa", "sa", "c"], "p": ["wma", "wma", 5]},
    ],
)
def test_dictionary_of_another_checkpoint(changes):
    with pytest.raises(ValueError, match="state_dict: "):
        convert_reference_state_dict(checkpoint(STANDARD), {**STANDARD, **changes})


def test_position_type_of_another_checkpoint():
    with pytest.raises(ValueError, match="distance_embedding.weight has no place"):
        convert_reference_state_dict(checkpoint(STANDARD), STANDARD, position_embedding_type="absolute")


# --- transformers' models; that outputs are equal is in test_oracles.py -------------------------------------------

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 24,
}


def test_converted_model_is_a_copy():
    model = transformers.BertForMaskedLM(transformers.BertConfig(num_attention_heads=4, **SMALL))
    converted = convert_transformers_model(model)
    assert isinstance(converted, FlexiBertForMaskedLM) and converted.training
    assert converted.num_parameters() == model.num_parameters()
    word_embeddings = converted.get_input_embeddings().weight
    assert converted.lm_head.weight is word_embeddings
    with torch.no_grad():
        word_embeddings.zero_()
    assert model.get_input_embeddings().weight.any()


def test_converted_model_keeps_dtype_mode_and_fields():
    source = transformers.BertConfig(
        num_attention_heads=4, layer_norm_eps=1e-5, hidden_act="relu", hidden_dropout_prob=0.3, pad_token_id=7,
        attention_probs_dropout_prob=0.2, classifier_dropout=0.4, eos_token_id=3, tie_word_embeddings=False, **SMALL,
    )  # fmt: skip
    model = transformers.BertModel(source).eval().to(torch.bfloat16)
    converted = convert_transformers_model(model)
    assert converted.dtype == torch.bfloat16 and not converted.training
    for name in ("vocab_size", "max_position_embeddings", "layer_norm_eps", "hidden_act", "hidden_dropout_prob"):
        assert getattr(converted.config, name) == getattr(source, name)
    for name in ("pad_token_id", "attention_probs_dropout_prob", "classifier_dropout", "eos_token_id"):
        assert getattr(converted.config, name) == getattr(source, name)
    assert converted.config.tie_word_embeddings is False


def test_converted_model_survives_saving(tmp_path):
    model = transformers.FNetModel(transformers.FNetConfig(**SMALL)).eval()
    converted = convert_transformers_model(model)
    converted.save_pretrained(tmp_path)
    ids = torch.arange(11)[None]
    with torch.no_grad():
        saved = FlexiBertModel.from_pretrained(tmp_path)(ids)
        torch.testing.assert_close(saved.last_hidden_state, converted(ids).last_hidden_state)


def test_model_without_pooler():
    config = transformers.BertConfig(num_attention_heads=4, **SMALL)
    assert convert_transformers_model(transformers.BertModel(config, add_pooling_layer=False)).pooler is None
    assert convert_transformers_model(transformers.BertModel(config)).pooler is not None


def foreign(theirs, **fields):
    """A small model of a class of transformers with random weights, norms and biases included."""
    kind = theirs.config_class
    sizes = dict(SMALL)
    if kind is transformers.DistilBertConfig:
        sizes = {"vocab_size": 50, "dim": 32, "hidden_dim": 40, "n_layers": 2, "max_position_embeddings": 24}
    heads = {} if kind is transformers.FNetConfig else {"num_attention_heads": 4}
    widths = {"embedding_size": 16} if kind in (transformers.ElectraConfig, transformers.ConvBertConfig) else {}
    torch.manual_seed(0)
    model = theirs(kind(**{**sizes, **heads, **widths, "num_labels": 3, **fields})).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.tie_weights()
    return model


def outputs_of(model, theirs, masked=True):
    """All outputs at real tokens of three rows, the second of them padded on the right."""
    torch.manual_seed(1)
    choices = (3, 2, 9) if "MultipleChoice" in theirs.__name__ else (3, 9)
    ids = torch.randint(2, 50, choices)
    mask = torch.ones_like(ids)
    if masked and "FNet" not in theirs.__name__:  # FNet takes no mask
        mask[1, ..., 6:] = 0
        ids = ids.masked_fill(mask == 0, model.config.pad_token_id)
    inputs = {"input_ids": ids} if "FNet" in theirs.__name__ else {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        outputs = model(**inputs)
    names = [name for name in ("last_hidden_state", "logits", "start_logits", "end_logits") if name in outputs]
    per_token = "logits" not in names or outputs["logits"].shape[:2] == (3, 9)
    found = {name: outputs[name][mask.bool()] if per_token else outputs[name] for name in names}
    if outputs.get("pooler_output") is not None:
        found["pooler_output"] = outputs.pooler_output
    return found


@pytest.mark.parametrize("theirs", CONVERTIBLE, ids=lambda cls: cls.__name__)
def test_every_head_of_every_family_computes_the_same(theirs, tmp_path):
    if theirs is transformers.ConvBertForMultipleChoice:  # takes the last token, which may be padding
        with pytest.raises(ValueError, match=r"^model\.config\.summary_type: 'last' is not accepted"):
            convert_transformers_model(foreign(theirs))
        return
    fields = {"num_labels": 2} if "QuestionAnswering" in theirs.__name__ else {}
    model = foreign(theirs, **fields)
    converted = convert_transformers_model(model)
    assert type(converted) is CONVERTIBLE[theirs]
    expected = outputs_of(model, theirs)
    converted.save_pretrained(tmp_path)
    for same in (converted, type(converted).from_pretrained(tmp_path)):
        actual = outputs_of(same, theirs)
        if "pooler_output" not in expected:
            actual.pop("pooler_output", None)  # drawn anew with the bare model
        assert actual.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], atol=1e-5, rtol=1e-5)
    names = {0: "no", 1: "perhaps", 2: "yes"}
    if "ForSequence" in theirs.__name__:
        named = convert_transformers_model(foreign(theirs, id2label=names, label2id={v: k for k, v in names.items()}))
        assert named.config.id2label == names


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Electra"])
def test_heads_that_predict_tokens_tied_and_untied(family, tied):
    theirs = getattr(transformers, f"{family}ForMaskedLM")
    model = foreign(theirs, tie_word_embeddings=tied)
    converted = convert_transformers_model(model)
    assert (converted.lm_head.weight is converted.get_input_embeddings().weight) == tied
    expected, actual = outputs_of(model, theirs), outputs_of(converted, theirs)
    torch.testing.assert_close(actual["logits"], expected["logits"], atol=1e-5, rtol=1e-5)


def test_an_electra_of_one_width_and_choices_without_activation():
    for fields in ({"embedding_size": 32}, {"summary_activation": ""}, {"summary_activation": "tanh"}):
        theirs = transformers.ElectraForMultipleChoice
        model = foreign(theirs, **fields)
        expected, actual = outputs_of(model, theirs), outputs_of(convert_transformers_model(model), theirs)
        torch.testing.assert_close(actual["logits"], expected["logits"], atol=1e-5, rtol=1e-5)


def test_a_public_sentence_encoder(shared):
    folder = shared / "models" / "all-MiniLM-L6-v2"
    if not folder.is_dir():
        pytest.skip("the checkpoint is not here")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(["A river runs through it.", "The weather is fine"], padding=True, return_tensors="pt")
    converted = convert_transformers_model(model)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected, actual = model(**inputs), converted(**inputs)
    difference = (actual.last_hidden_state - expected.last_hidden_state)[real].abs().max()
    assert difference < 1e-5 and converted.num_parameters() == model.num_parameters()


@pytest.mark.parametrize(
    "model, message",
    [
        (None, "model: NoneType is not accepted, known: BertModel, FNetModel, ConvBertModel, BertForMaskedLM"),
        (
            transformers.BertForNextSentencePrediction(transformers.BertConfig(num_attention_heads=4, **SMALL)),
            "model: BertForNextSentencePrediction is not accepted",
        ),
        (
            transformers.BertModel(transformers.BertConfig(is_decoder=True, num_attention_heads=4, **SMALL)),
            "model.config.is_decoder: True is not accepted",
        ),
        (
            transformers.ConvBertForMaskedLM(
                transformers.ConvBertConfig(hidden_act="relu", embedding_size=16, num_attention_heads=4, **SMALL)
            ),
            "model.config.hidden_act: 'relu'",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_models_that_are_refused(model, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        convert_transformers_model(model)
