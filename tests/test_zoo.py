"""Named architectures: the published parameter counts to the digit, and the names themselves."""

import pytest
import torch

from flexibert import (
    FlexiBertConfig,
    FlexiBertForMaskedLM,
    FlexiBertModel,
    architecture,
    config_from_model_dict,
    fingerprint,
    list_architectures,
    named_config,
)
from flexibert.zoo import unused_reference_parameters


# FlexiBERT's counting rule: RoBERTa's vocabulary, relative and (unused) absolute positions, an untied decoder.
FLEXIBERT_RULE = {"vocab_size": 50265, "position_embedding_type": "relative_key", "tie_word_embeddings": False}


def model_dict(o, h, n, f, p):
    return {"l": len(o), "o": o, "h": h, "n": n, "f": f, "p": p}


def homogeneous(depth, hidden_size, num_heads, size, operation="sa", parameter="sdp"):
    return model_dict(
        [operation] * depth, [hidden_size] * depth, [num_heads] * depth, [[size]] * depth, [parameter] * depth
    )


MODEL_DICTS = {
    "bert-tiny": homogeneous(2, 128, 2, 512),
    "bert-mini": homogeneous(4, 256, 4, 1024),
    "bert-small": homogeneous(4, 512, 8, 2048),
    "bert-medium": homogeneous(8, 512, 8, 2048),
    "bert-base": homogeneous(12, 768, 12, 3072),
    "bert-large": homogeneous(24, 1024, 16, 4096),
    "fnet-tiny": homogeneous(2, 128, 2, 512, "l", "dft"),
    "fnet-mini": homogeneous(4, 256, 4, 1024, "l", "dft"),
    "convbert-tiny": homogeneous(2, 128, 2, 512, "c", 9),
    "convbert-mini": homogeneous(4, 256, 4, 1024, "c", 9),
    "flexibert-mini": model_dict(
        ["sa", "sa", "l", "l"],
        [256, 256, 128, 128],
        [2, 2, 4, 4],
        [[512, 512, 512], [512, 512, 512], [1024], [1024]],
        ["sdp", "sdp", "dct", "dct"],
    ),
    "flexibert-mini-without-second-order": homogeneous(2, 128, 4, 1024),
    "flexibert-mini-without-heteroscedastic": model_dict(
        ["l", "l", "sa", "sa"],
        [256, 256, 128, 128],
        [4, 4, 4, 4],
        [[1024] * 3, [1024] * 3, [512] * 3, [512] * 3],
        ["dct", "dct", "sdp", "sdp"],
    ),
    "flexibert-large": model_dict(
        ["sa"] * 12 + ["l"] * 12,
        [1024] * 12 + [512] * 12,
        [8] * 12 + [16] * 12,
        [[2048] * 3] * 12 + [[4096]] * 12,
        ["sdp"] * 12 + ["dct"] * 12,
    ),
}

# Masked language model, encoder and embeddings, the same with pooler.
PUBLISHED_COUNTS = {
    "bert-tiny": (13_536_601, 7_035_648, 7_052_160),
    "bert-mini": (29_421_657, 16_437_248, 16_503_040),
    "bert-small": (64_937_305, 38_887_680, 39_150_336),
    "bert-medium": (77_825_113, 51_775_488, 52_038_144),
    "bert-base": (164_135_001, 124_889_088, 125_479_680),
    "bert-large": (408_552_025, 355_978_752, 357_028_352),
    "fnet-tiny": (13_528_409, 7_027_456, 7_043_968),
    "fnet-mini": (29_405_273, 16_420_864, 16_486_656),
    "convbert-tiny": (13_515_371, 7_014_418, 7_030_930),
    "convbert-mini": (29_292_193, 16_307_784, 16_373_576),
    "flexibert-mini": (22_658_457, 16_157_504, 16_174_016),
    "flexibert-mini-without-second-order": (13_728_153, 7_227_200, 7_243_712),
    "flexibert-mini-without-heteroscedastic": (26_957_337, 20_456_384, 20_472_896),
    "flexibert-large": (345_264_857, 319_215_232, 319_477_888),
}

# Two more rows of the same table, which have no name in the zoo.
UNNAMED_COUNTS = {
    (2, 256, 4, 1024): (27_703_001, 14_718_592, 14_784_384),
    (4, 128, 2, 512): (14_072_281, 7_571_328, 7_587_840),
}

BERT_COUNTS = {
    "bert-tiny": 4_385_920,
    "bert-mini": 11_170_560,
    "bert-small": 28_763_648,
    "bert-medium": 41_373_184,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
}


def counts(config):
    """Parameters of the masked language model, the encoder, and the encoder with pooler."""
    with torch.device("meta"):
        models = FlexiBertForMaskedLM(config), FlexiBertModel(config, add_pooling_layer=False), FlexiBertModel(config)
    return tuple(model.num_parameters() for model in models)


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_flexibert_counts(name):
    config = named_config(name, **FLEXIBERT_RULE)
    unused = unused_reference_parameters(config)
    assert tuple(count + unused for count in counts(config)) == PUBLISHED_COUNTS[name]


@pytest.mark.parametrize("shape", UNNAMED_COUNTS)
def test_flexibert_counts_of_model_dicts(shape):
    config = config_from_model_dict(homogeneous(*shape))
    unused = unused_reference_parameters(config)
    assert tuple(count + unused for count in counts(config)) == UNNAMED_COUNTS[shape]


@pytest.mark.parametrize("name", BERT_COUNTS)
def test_bert_counts(name):
    assert counts(named_config(name))[2] == BERT_COUNTS[name]


@pytest.mark.parametrize(
    "name, millions, with_pooler",
    [("autobert-zero-small", 12.8, 12.9), ("autobert-zero-base", 103.0, 103.6), ("autobert-zero-large", 313.1, 314.2)],
)
def test_autobert_zero_counts(name, millions, with_pooler):
    _, encoder, model = counts(named_config(name))
    assert round(encoder / 1e6, 1) == millions
    assert round(model / 1e6, 1) == with_pooler


def test_autobert_zero_small_without_factorised_embeddings():
    assert round(counts(named_config("autobert-zero-small", embedding_size=256))[1] / 1e6, 1) == 16.8


def test_autobert_zero_layers():
    """Kernel sizes, projections and parameters of every layer of the base model."""
    config = named_config("autobert-zero-base")
    with torch.device("meta"):
        layers = FlexiBertModel(config).layers
    per_layer = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    two_inputs, three_inputs = 6_497_280, 7_087_872
    convolutions = {65: 6_498_060, 9: 6_497_388, 7: 6_497_364, 3: 6_497_316}
    assert per_layer[0::2] == [convolutions[kernel] for kernel in (65, 9, 3, 7, 7, 3)]
    assert per_layer[1::2] == [two_inputs] * 4 + [three_inputs] * 2
    operations = [layer.operations[0] for layer in config.layer_specs]
    assert operations[7] == operations[5]
    assert [operation.inputs for operation in operations[1::2]] == [("q", "k")] * 4 + [("q", "k", "v")] * 2


def test_autobert_zero_large_repeats_blocks():
    base = [layer.operations[0] for layer in architecture("autobert-zero-base")]
    large = [layer.operations[0] for layer in architecture("autobert-zero-large")]
    assert len(large) == 24
    for block in range(6):
        wanted = [operation.to_dict() | {"num_heads": 16} for operation in base[2 * block : 2 * block + 2]] * 2
        assert [operation.to_dict() for operation in large[4 * block : 4 * block + 4]] == wanted


@pytest.mark.parametrize("name", MODEL_DICTS)
def test_same_as_the_papers_dictionary(name):
    assert architecture(name) == config_from_model_dict(MODEL_DICTS[name]).layer_specs


@pytest.mark.parametrize("name", list_architectures())
def test_configuration_keeps_the_architecture(name):
    config = FlexiBertConfig(layers=architecture(name))
    assert config.layer_specs == architecture(name)
    assert config.fingerprint == fingerprint(architecture(name)) == named_config(name).fingerprint


def test_architectures_differ():
    names = list_architectures()
    assert len({fingerprint(architecture(name)) for name in names}) == len(names)


def test_list_architectures():
    assert list_architectures("bert-*") == list(BERT_COUNTS)
    assert list_architectures("*-mini") == ["bert-mini", "fnet-mini", "convbert-mini", "flexibert-mini"]
    assert list_architectures("nothing*") == []
    assert set(MODEL_DICTS) < set(list_architectures())


def test_unknown_name():
    with pytest.raises(ValueError, match="unknown architecture 'flexibert_mini', known: flexibert-mini"):
        architecture("flexibert_mini")
    with pytest.raises(ValueError, match="unknown architecture 'xyz', known: .*bert-tiny.*autobert-zero-large"):
        named_config("xyz")
    with pytest.raises(ValueError, match="unknown architecture None"):
        architecture(None)


def test_named_config_overrides():
    config = named_config("flexibert-mini", vocab_size=99, position_embedding_type="absolute")
    assert (config.vocab_size, config.position_embedding_type, config.tie_word_embeddings) == (99, "absolute", False)
    assert named_config("autobert-zero-small").embedding_size == 128
    assert named_config("bert-mini").tie_word_embeddings
