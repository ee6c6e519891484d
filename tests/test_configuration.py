"""FlexiBertConfig: JSON, derived sizes, validation; configurations of released versions still load."""

import copy
import json
from pathlib import Path

import pytest
from conftest import EVERY_OPERATION, SPECS
from transformers import AutoConfig

from flexibert import FlexiBertConfig, FlexiBertModel, configuration_flexibert, parse_layers
from flexibert.configuration_flexibert import AUTO_MAP


FIXTURES = Path(__file__).parent / "fixtures"


def test_defaults_have_the_shape_of_bert_mini():
    config = FlexiBertConfig()
    assert (config.num_hidden_layers, config.hidden_size, config.embedding_size) == (4, 256, 256)
    assert (config.num_attention_heads, config.intermediate_size) == (4, 1024)
    assert config.auto_map == AUTO_MAP


@pytest.mark.parametrize("layers", [*SPECS.values(), EVERY_OPERATION])
def test_round_trip_through_json(layers, tmp_path):
    config = FlexiBertConfig(layers=layers, position_embedding_type="rotary", num_labels=5)
    config.save_pretrained(tmp_path / "inner")
    loaded = AutoConfig.from_pretrained(tmp_path, subfolder="inner")
    assert type(loaded) is FlexiBertConfig
    assert {**loaded.to_dict(), "_name_or_path": ""} == config.to_dict()
    assert loaded.fingerprint == config.fingerprint
    assert loaded.layer_specs == parse_layers(layers)
    assert len(loaded.id2label) == 5


def test_derived_sizes_follow_the_last_layer():
    config = FlexiBertConfig(layers=SPECS["widening"])
    assert (config.num_hidden_layers, config.hidden_size, config.embedding_size) == (3, 48, 16)
    assert (config.num_attention_heads, config.intermediate_size) == (4, 64)
    config.layers = SPECS["narrowing"]
    assert (config.num_hidden_layers, config.hidden_size, config.embedding_size) == (2, 32, 16)


def test_layers_of_objects_and_of_data_are_the_same():
    assert FlexiBertConfig(layers=parse_layers(SPECS["mixed_heads"])) == FlexiBertConfig(layers=SPECS["mixed_heads"])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"layers": [{"hidden_size": 8}]}, r"^layers\[0\]: operations is missing"),
        ({"layers": "bert"}, "^layers: expected a list"),
        ({"vocab_size": 0}, "^vocab_size: 0 is not accepted"),
        ({"embedding_size": -1}, "^embedding_size: -1 is not accepted"),
        ({"max_position_embeddings": 0}, "^max_position_embeddings: 0 is not accepted"),
        ({"hidden_dropout_prob": 1.5}, "^hidden_dropout_prob: 1.5 is not accepted, expected a number from 0 to 1"),
        ({"classifier_dropout": -1}, "^classifier_dropout: -1 is not accepted, expected a number from 0 to 1"),
        ({"rotary_base": 0}, "^rotary_base: 0 is not accepted, expected a number above 0"),
        ({"type_vocab_size": -3}, "^type_vocab_size: -3 is not accepted"),
        ({"vocab_size": 1 << 40}, "^vocab_size: .* is not accepted, expected a whole number from 1 to 16777216"),
        ({"max_position_embeddings": 1 << 40}, "^max_position_embeddings: .* is not accepted"),
        ({"type_vocab_size": 1 << 20}, "^type_vocab_size: 1048576 is not accepted"),
        ({"num_labels": 1 << 40}, "^num_labels: .* is not accepted, expected a whole number from 0 to 65536"),
        ({"num_labels": "3"}, "^num_labels: '3' is not accepted"),
        ({"pad_token_id": 9, "vocab_size": 9}, "^pad_token_id: 9 is not accepted, expected a token of the 9"),
        ({"layer_norm_eps": float("nan")}, "^layer_norm_eps: nan is not accepted"),
        ({"initializer_range": -0.1}, "^initializer_range: -0.1 is not accepted"),
        ({"id2label": 3}, "^id2label: 3 is not accepted, expected an object of up to 65536 labels"),
        ({"dtype": "float31"}, "^configuration: .*float31"),
    ],
)
def test_bad_values_raise_with_their_path(fields, message):
    with pytest.raises(ValueError, match=message):
        FlexiBertConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": "8"},
        {"position_embedding_type": "relative"},
        {"classifier_pooling": "max"},
        {"hidden_act": None},
        {"num_layers": None},
    ],
)
def test_fields_are_typed(fields):
    """By transformers itself, with the name of the field; unknown names are kept, as everywhere in transformers."""
    name = next(iter(fields))
    if name == "num_layers":
        assert FlexiBertConfig(**fields).num_layers is None
    else:
        with pytest.raises(ValueError, match=f"^Validation error for field '{name}'.*$"):
            FlexiBertConfig(**fields)


def test_a_model_of_too_many_parameters_is_refused_with_their_number(monkeypatch):
    wide = {"hidden_size": 1 << 16, "operations": SPECS["homogeneous"][0]["operations"], "feed_forward": [1 << 20]}
    with pytest.raises(ValueError, match=r"^layers: the model would have 156,\d{3},\d{3},\d{3} parameters, accepted"):
        FlexiBertConfig(layers=[wide])
    with pytest.raises(ValueError, match=r"^layers: the model would have .* accepted are up to 10,000,000,000"):
        FlexiBertConfig(vocab_size=1 << 24, embedding_size=1 << 16)
    config = FlexiBertConfig(layers=SPECS["widening"], vocab_size=99)
    count = config.num_parameters
    assert count == FlexiBertModel(config, add_pooling_layer=False).num_parameters()
    count += 2 * 48  # the largest head of the configuration: two labels
    monkeypatch.setattr(configuration_flexibert, "MAX_PARAMETERS", count - 1)
    with pytest.raises(ValueError, match=f"^layers: the model would have {count:,} parameters"):
        FlexiBertConfig(layers=SPECS["widening"], vocab_size=99)
    with pytest.raises(ValueError, match=f"^layers: the model would have {count:,} parameters"):
        FlexiBertModel(config)  # before anything is allocated
    monkeypatch.setattr(configuration_flexibert, "MAX_PARAMETERS", count)
    FlexiBertModel(config)


@pytest.mark.parametrize("name", ["hidden_act", "pooler_activation"])
def test_an_activation_that_nobody_knows_is_named(name):
    with pytest.raises(ValueError, match=f"^{name}: 'gellu' is not accepted, known: gelu, "):
        FlexiBertModel(FlexiBertConfig(layers=SPECS["homogeneous"], **{name: "gellu"}))


def test_layers_changed_by_hand_are_checked_before_they_are_saved(tmp_path):
    config = FlexiBertConfig(layers=copy.deepcopy(SPECS["homogeneous"]))
    config.layers[1]["hidden_size"] = -1
    with pytest.raises(Exception, match=r"layers\[1\]\.hidden_size: -1 is not accepted"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("config_*.json")), ids=lambda path: path.stem)
def test_configurations_of_released_versions_load(path):
    """Installed code takes precedence over the code in a checkpoint, so it reads whatever an older version wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    written = json.loads(FlexiBertConfig.from_json_file(path).to_json_string(use_diff=False))
    del data["transformers_version"]
    assert {key: written[key] for key in data} == data
