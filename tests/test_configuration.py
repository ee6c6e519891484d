"""FlexiBertConfig: JSON, derived sizes, validation; configurations of released versions still load."""

import copy
import json
from pathlib import Path

import pytest
from conftest import EVERY_OPERATION, SPECS
from transformers import AutoConfig

from flexibert import FlexiBertConfig, parse_layers
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
        with pytest.raises(Exception, match=f"Validation error for field '{name}'"):
            FlexiBertConfig(**fields)


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
