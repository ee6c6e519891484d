"""Costs: parameters without weights equal those of the model, operations and latency behave as they must; and what
follows from the table of them."""

import subprocess
import sys

import pytest
from conftest import SPECS, layer, op

from flexibert import FlexiBertConfig, FlexiBertModel, list_architectures, named_config
from search.artifacts import describe
from search.cli import build_parser
from search.cost import (
    COSTS,
    SCORE,
    Cost,
    CostMeter,
    choose_objectives,
    count_parameters,
    forward_flops,
    limit_option,
    measure_latency_ms,
)
from search.errors import UserError


@pytest.mark.parametrize("positions", ["absolute", "relative_key", "relative_key_query", "rotary"])
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


# --- the table ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COSTS)
def test_every_cost_is_measured_and_labelled(name):
    config = FlexiBertConfig(vocab_size=50, layers=SPECS["homogeneous"])
    cost = COSTS[name]
    value = CostMeter(8, wanted=[name]).metrics(config)[name]
    assert value > 0 and isinstance(value, int) == cost.whole
    assert cost.unit in describe.label(name) and cost.text
    beyond = value + 1 if cost.direction == "minimize" else value - 1
    assert cost.exceeds(beyond, value) and not cost.exceeds(value, value)
    assert choose_objectives([SCORE, name]) == {SCORE: "maximize", name: cost.direction}
    assert hasattr(build_parser().parse_args(["run"]), limit_option(name))


def test_a_cost_is_measured_once():
    meter = CostMeter(8, wanted=["latency_ms"])
    config = FlexiBertConfig(vocab_size=50, layers=SPECS["homogeneous"])
    assert meter.measure("latency_ms", config) == meter.metrics(config)["latency_ms"]
    assert "latency_ms" not in CostMeter(8).metrics(config)


@pytest.mark.parametrize(
    "names, message",
    [
        (["weight"], "unknown objective 'weight', known: score_percent, parameters"),
        (["parameters"], "--objectives: expected score_percent"),
        ([SCORE, SCORE], "--objectives: expected score_percent"),
        ([], "--objectives: expected score_percent"),
    ],
)
def test_what_is_no_objective(names, message):
    with pytest.raises(UserError) as error:
        choose_objectives(names)
    assert str(error.value).startswith(message)


def test_a_new_cost_is_one_entry(monkeypatch):
    """What CONTRIBUTING promises: objective, limit, metric and label follow from the table."""
    cost = Cost("layers of an encoder", lambda config, length, device: config.num_hidden_layers, unit="layers")
    monkeypatch.setitem(COSTS, "depth_layers", cost)
    config = FlexiBertConfig(vocab_size=50, layers=SPECS["homogeneous"])
    assert choose_objectives([SCORE, "depth_layers"])["depth_layers"] == "minimize"
    assert build_parser().parse_args(["run", "--max-depth-layers", "1.5"]).max_depth_layers == 1.5
    assert CostMeter(8, wanted=["depth_layers"]).metrics(config)["depth_layers"] == 2
    assert describe.label("depth_layers") == "depth (layers)"


def test_the_command_reads_the_table_without_torch():
    code = "import sys, search.cli; search.cli.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
