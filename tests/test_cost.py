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
    Limits,
    choose_objectives,
    count_parameters,
    forward_flops,
    limit_option,
)
from search.errors import UserError
from search.runtimes.bench import Bench, Measurement
from search.runtimes.conditions import Conditions


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


# --- the table ----------------------------------------------------------------------------------------------------


class Asked(Bench):
    """A bench that answers by itself, and counts the encoders that it was asked for; `tests/test_runtimes.py` has the
    real one."""

    def __init__(self, ms=lambda config: 1.0):
        super().__init__(Conditions(length=8))
        self.ms, self.asked = ms, []

    def measure(self, config):
        if config.fingerprint not in self.known:
            self.asked.append(config.fingerprint)
            ms = self.ms(config)
            self._remember(config, Measurement(ms, ms, ms, reference_ms=1.0, energy_mj=2 * ms))
        return self.known[config.fingerprint]


@pytest.mark.parametrize("name", COSTS)
def test_every_cost_is_measured_and_labelled(name):
    config = FlexiBertConfig(vocab_size=50, layers=SPECS["homogeneous"])
    cost = COSTS[name]
    value = CostMeter(Asked(), wanted=[name]).metrics(config)[name]
    assert value > 0 and isinstance(value, int) == cost.whole
    assert cost.unit in describe.label(name) and cost.text
    beyond = value + 1 if cost.direction == "minimize" else value - 1
    assert cost.exceeds(beyond, value) and not cost.exceeds(value, value)
    assert choose_objectives([SCORE, name]) == {SCORE: "maximize", name: cost.direction}
    assert hasattr(build_parser().parse_args(["run"]), limit_option(name))


def test_a_cost_is_measured_once():
    meter = CostMeter(Asked(), wanted=["latency_ms", "energy_mj"])
    config = FlexiBertConfig(vocab_size=50, layers=SPECS["homogeneous"])
    assert meter.measure("latency_ms", config) == meter.metrics(config)["latency_ms"]
    assert len(meter.bench.asked) == 1 and meter.notes(config)["reference_ms"] == 1.0
    without = CostMeter(meter.bench)
    assert "latency_ms" not in without.metrics(config) and without.notes(config) == {}


def widths(count):
    """Configurations of one layer, of different widths."""
    for index in range(1, count + 1):
        yield FlexiBertConfig(layers=[layer(16 * index, op("self_attention", 1 + index % 4), head_size=4)])


def test_few_of_many_candidates_are_measured():
    """What the predictor finds clear is judged by it; what is near the limit is measured, and what is trained."""

    def ms(config):
        return 1 + config.layer_specs[0].hidden_size / 1000

    bench = Asked(ms)
    limits = Limits({"latency_ms": 3.0, "parameters": 10**9}, CostMeter(bench, ["latency_ms"]))
    candidates = list(widths(200))
    verdicts = [limits.may_hold(config) for config in candidates]
    assert verdicts == [ms(config) <= 3.0 for config in candidates]
    assert 12 <= len(bench.asked) <= 20
    assert candidates[-1].fingerprint not in bench.asked
    assert not limits.hold(candidates[-1]) and candidates[-1].fingerprint in bench.asked


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
    cost = Cost("layers of an encoder", lambda config, bench: config.num_hidden_layers, unit="layers")
    monkeypatch.setitem(COSTS, "depth_layers", cost)
    config = FlexiBertConfig(vocab_size=50, layers=SPECS["homogeneous"])
    assert choose_objectives([SCORE, "depth_layers"])["depth_layers"] == "minimize"
    assert build_parser().parse_args(["run", "--max-depth-layers", "1.5"]).max_depth_layers == 1.5
    assert CostMeter(Asked(), wanted=["depth_layers"]).metrics(config)["depth_layers"] == 2
    assert describe.label("depth_layers") == "depth (layers)"


def test_the_command_reads_the_table_without_torch():
    code = "import sys, search.cli; search.cli.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
