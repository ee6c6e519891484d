"""Costs: parameters without weights equal those of the model, operations and latency behave as they must."""

import pytest
from conftest import SPECS, layer, op

from flexibert import FlexiBertConfig, FlexiBertModel, list_architectures, named_config
from search.cost import count_parameters, forward_flops, measure_latency_ms


@pytest.mark.parametrize("positions", ["absolute", "relative_key", "rotary"])
@pytest.mark.parametrize("name", SPECS)
def test_parameters_are_those_of_the_model(name, positions):
    fields = {"vocab_size": 99, "position_embedding_type": positions, "max_position_embeddings": 20}
    for extra in ({}, {"embedding_size": 24}, {"project_embeddings": True}):
        config = FlexiBertConfig(layers=SPECS[name], **fields, **extra)
        assert count_parameters(config) == FlexiBertModel(config, add_pooling_layer=False).num_parameters()


@pytest.mark.parametrize("name", list_architectures("*-mini*"))
def test_named_architectures(name):
    config = named_config(name)
    assert count_parameters(config) == FlexiBertModel(config, add_pooling_layer=False).num_parameters()


def test_flops_of_a_layer_by_hand():
    config = FlexiBertConfig(vocab_size=50, layers=[layer(16, op("self_attention", 2), feed_forward=(32,))])
    length, predictions = 8, 2
    mixing = 3 * 16 * 16 + 2 * length * 16  # projections, scores and values
    output, feed_forward, head = 16 * 16, 2 * 16 * 32, 16 * 16 + 16 * 50  # last layer: at predictions only
    expected = 2 * (length * mixing + predictions * (output + feed_forward + head))
    assert forward_flops(config, length, predictions) == expected


def test_latency_is_measured():
    config = FlexiBertConfig(vocab_size=50, layers=SPECS["homogeneous"])
    assert 0 < measure_latency_ms(config, sequence_length=8, repetitions=3) < 10_000
