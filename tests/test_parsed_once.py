"""In a trial an architecture is read from data once in a process, however often it is turned to data and back."""

import json
from collections import Counter

import optuna
import pytest

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, attention_graph, spec
from flexibert.spec import fingerprint, layers_to_dicts, parse_layers
from search.artifacts.report import write_report
from search.evaluation.weight_transfer import overlap
from search.samplers import create_sampler
from search.space.functional_hash import function_fingerprint
from search.space.search_space import SearchSpace


SPACE = {
    "num_layers": [1, 2],
    "hidden_size": [8, 16],
    "num_heads": [2],
    "operations": [
        {"op": "lightweight_convolution", "kernel_size": 3},
        {"op": "attention_graph", "graph": {"mode": "free", "max_nodes": 8}},
    ],
    "feed_forward_size": [8, 24],
}


@pytest.fixture
def parsed(monkeypatch):
    """Counts every architecture and every graph that is read from data."""
    counts = Counter()
    parse_encoder, parse_graph = spec._parse_layers, attention_graph._parse_graph

    def count_encoder(data, path):
        if not all(isinstance(layer, spec.LayerSpec) for layer in data):
            counts[json.dumps(data, sort_keys=True)] += 1
        return parse_encoder(data, path)

    def count_graph(lines, path):
        counts[tuple(lines)] += 1
        return parse_graph(lines, path)

    monkeypatch.setattr(spec, "_parse_layers", count_encoder)
    monkeypatch.setattr(attention_graph, "_parse_graph", count_graph)
    spec._known_layers.cache_clear()
    attention_graph._known_graph.cache_clear()
    return counts


@pytest.mark.parametrize("sampler", ["random", "opnas", "boshnas"])
def test_a_proposed_architecture_is_parsed_once(parsed, sampler, tmp_path):
    space = SearchSpace.from_dict(SPACE)
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("identity", {"objective": {"objectives": ["score_percent"]}})
    for number in range(3):
        study.sampler = create_sampler({"name": sampler}, space, number)
        trial = study.ask()
        layers = space.suggest(trial)
        assert space.parameters(layers) == space.normalize(trial.params)
        data = json.loads(json.dumps(layers_to_dicts(layers)))  # as it goes through a storage and to other processes
        assert parse_layers(data) == parse_layers(data) == layers
        trial.set_user_attr("layers", data)
        trial.set_user_attr("fingerprint", fingerprint(layers))
        trial.set_user_attr("function", function_fingerprint(layers))
        trial.set_user_attr("metrics", {"score_percent": 1.0 * number})
        config = FlexiBertConfig(layers=layers, vocab_size=16, max_position_embeddings=8)
        assert overlap(config, config) == 1
        FlexiBertForMaskedLM(config).save_pretrained(tmp_path / str(number))
        loaded = FlexiBertForMaskedLM.from_pretrained(tmp_path / str(number))
        assert loaded.config.layer_specs == layers
        study.tell(trial, 1.0 * number)
    assert parsed and max(parsed.values()) == 1, parsed.most_common(3)
    write_report(study, tmp_path / "report")
    assert max(parsed.values()) == 1, parsed.most_common(3)
