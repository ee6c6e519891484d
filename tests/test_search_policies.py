"""The comparison of search policies, on a table of a few encoders."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from benchmarks.policies import POLICIES
from benchmarks.search_oracles import KINDS, SIZE_EFFECTS, log_weights, oracle
from benchmarks.search_policies import main, report
from benchmarks.search_problems import HALVES, SPACES, Half, Problem, pool_problem, problems
from benchmarks.search_tables import OPERATIONS, read_table
from benchmarks.taught_tables import EMBEDDING_SIZE, LENGTH, teach
from benchmarks.taught_tables import SPACES as TAUGHT_SPACES
from flexibert import FlexiBertConfig, FlexiBertModel
from search.bayesopt.encoding import Encoding
from search.errors import UserError
from search.space.search_space import SearchSpace


@pytest.fixture
def table(tmp_path):
    """24 encoders, the score of which is their depth and width, one of them trained twice."""
    rng = random.Random(0)
    items = []
    for _ in range(24):
        layers = [
            {
                "operation_type": (key := rng.choice([*OPERATIONS, ("DSC", 5), ("DSC", 9)]))[0],
                "operation_parameter": key[1],
                "num_operation_heads": rng.choice([2, 4]),
                "feed_forward_dimension": rng.choice([512, 1024]),
                "num_feed_forward": rng.choice([1, 3]),
            }
            for _ in range(rng.choice([2, 4]))
        ]
        width = rng.choice([128, 256])
        items.append({"hidden_size": width, "layers": layers, "scores": {"glue": 60 + len(layers) + width / 128}})
    items.append({**items[0], "scores": {"glue": items[0]["scores"]["glue"] + 1}})
    path = tmp_path / "table.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


def test_the_published_form_of_the_benchmark_is_the_same_table(table, tmp_path):
    items = json.loads(table.read_text(encoding="utf-8"))
    published = []
    for item in items:
        encoder = {"hidden_size": item["hidden_size"], "nas_config": {"encoder_layers": item["layers"]}}
        settings = {"learning_rate": 5e-4, "model_hparam_overrides": encoder}
        published.append({"completed": True, "scores": item["scores"], "hparams": settings})
    published.insert(3, {"completed": False, "is_running": True, "hparams": published[0]["hparams"]})
    path = tmp_path / "published.json"
    path.write_text(json.dumps(published), encoding="utf-8")
    space, architectures, scores = read_table(table)
    other_space, others, other_scores = read_table(path)
    assert other_space == space and others == architectures and other_scores.tolist() == scores.tolist()


def compare(table, tmp_path, mode, policies, seeds=2, evaluations=12):
    output = tmp_path / f"{mode}.json"
    arguments = ["--table", table, "--mode", mode, "--policies", policies, "--seeds", seeds]
    assert main([str(a) for a in [*arguments, "--evaluations", evaluations, "--output", output]]) == 0
    return json.loads(output.read_text(encoding="utf-8"))


def test_encoders_that_were_trained_twice_count_once_with_their_mean(table):
    space, architectures, scores = read_table(table)
    assert len(architectures) == len(scores) == 24
    item = json.loads(table.read_text(encoding="utf-8"))[0]
    assert scores[0] == item["scores"]["glue"] + 0.5
    assert all(layers in space for layers in architectures)
    assert space.size() == 10_621_440


@pytest.mark.parametrize("mode", ["pool", "oracle"])
def test_tables_of_other_encoders(table, tmp_path, mode):
    items = json.loads(table.read_text(encoding="utf-8"))
    items[0]["layers"] += 4 * [{**items[0]["layers"][0], "operation_type": "DSC", "operation_parameter": 13}]
    items[1]["hidden_size"] = 512
    for layer in items[2]["layers"]:
        layer.update(feed_forward_dimension=2048, num_feed_forward=2)
    table.write_text(json.dumps(items), encoding="utf-8")
    space, architectures, _ = read_table(table)
    assert all(layers in space for layers in architectures)
    assert (max(space.num_layers), space.hidden_size, space.feed_forward_depth) == (8, (128, 256, 512), (1, 2, 3))
    assert space.operations[-1]["kernel_size"] == 13
    results = compare(table, tmp_path, mode, "boshnas,random", evaluations=6)
    assert all(len(run) == 6 for policy in results["policies"].values() for run in policy["scores"])


def test_pool_runs_measure_every_member_once(table, tmp_path):
    policies = "boshnas,random,optuna-tpe,regularised-evolution,local-search,forest-ei"
    results = compare(table, tmp_path, "pool", policies, evaluations=100)
    *_, scores = read_table(table)
    assert results["mode"] == "pool" and results["table"] == "table.json"
    assert list(results["policies"]) == policies.split(",")
    for policy in results["policies"].values():
        assert len(policy["scores"]) == len(policy["seconds"]) == 2
        for run in policy["scores"]:
            assert sorted(run) == pytest.approx(sorted(scores.tolist()))
        assert all(seconds > 0 for seconds in policy["seconds"])


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_runs_in_both_modes(table, tmp_path, name):
    for mode in ("pool", "oracle"):
        policy = compare(table, tmp_path, mode, name, seeds=1, evaluations=14)["policies"][name]
        assert [len(run) for run in policy["scores"]] == [14]


def test_the_oracle_answers_for_the_space(table, tmp_path):
    first = compare(table, tmp_path, "oracle", "boshnas,random")
    second = compare(table, tmp_path, "oracle", "random")
    assert first["policies"]["random"]["scores"] == second["policies"]["random"]["scores"]  # runs repeat
    assert first["policies"]["boshnas"] == second["policies"]["boshnas"]  # and are kept
    *_, scores = read_table(table)
    best = max(max(run) for run in first["policies"]["boshnas"]["scores"])
    assert scores.max() - 1 < best <= scores.max()


def test_nearest_member_is_the_one_with_the_fewest_differing_parameters(table):
    problem = pool_problem(*read_table(table))
    row = problem.members[5].copy()
    assert problem.nearest(row, set()) == 5
    column = next(c for c, n in enumerate(problem.encoding.names) if n == "layer0.num_heads")
    row[column] = 1 - row[column]
    distances = (problem.members != row).sum(1)
    assert distances[problem.nearest(row, set())] == distances.min()
    assert problem.nearest(problem.members[5], {5}) != 5


def test_messages(table, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare(table, tmp_path, "pool", "boshnas,bohb")
    assert "unknown bohb" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare(tmp_path / "absent.json", tmp_path, "pool", "random")
    assert "absent.json" in capsys.readouterr().err
    (tmp_path / "pool.json").write_text('{"mode": "oracle", "policies": {}}', encoding="utf-8")
    with pytest.raises(SystemExit):
        compare(table, tmp_path, "pool", "random")
    assert "pool.json holds results of another mode or table" in capsys.readouterr().err
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps([{"hidden_size": 128, "layers": []}]), encoding="utf-8")
    with pytest.raises(UserError, match=r"broken.json\[0\]"):
        read_table(broken)
    broken.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="broken.json holds no encoders"):
        read_table(broken)
    item = json.loads(table.read_text(encoding="utf-8"))[0]
    broken.write_text(json.dumps([{**item, "scores": {"glue": float("nan")}}]), encoding="utf-8")
    with pytest.raises(UserError, match=r"\[0\].scores.glue: nan is not accepted"):
        read_table(broken)


@pytest.mark.parametrize("name", TAUGHT_SPACES)
def test_tables_of_layer_specs_span_their_space(tmp_path, name):
    """Whatever the order in which a table names the groups of a layer's heads."""
    rng, whole = random.Random(0), SearchSpace.from_dict(TAUGHT_SPACES[name])
    items = [{"layers": [x.to_dict() for x in whole.sample(rng)], "scores": {"taught": i}} for i in range(80)]
    (tmp_path / "table.json").write_text(json.dumps(items), encoding="utf-8")
    space, architectures, scores = read_table(tmp_path / "table.json", "taught")
    assert all(layers in space for layers in architectures)
    assert space.size() == whole.size() and len(scores) > 70


# --- the protocol -------------------------------------------------------------------------------------------------


def test_the_halves_share_nothing_but_how_they_are_made():
    design, held_back = HALVES["design"], HALVES["held-back"]
    for field in ("tasks", "taught", "kinds", "spaces"):
        assert not set(getattr(design, field)) & set(getattr(held_back, field))
    assert {*design.kinds, *held_back.kinds} == set(KINDS)
    names = {half: [name for name, _ in problems(HALVES[half], Path(), 1)] for half in HALVES}
    for half, found in names.items():
        assert len(set(found)) == len(found) >= 30, half
        for part in (*SIZE_EFFECTS, "0.0", "0.5", "1.0"):
            assert any(part in name.split("/") for name in found), (half, part)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["heads", "graphs"])
def test_oracles_are_functions_in_points(kind, space):
    space = SearchSpace.from_dict(SPACES[space])
    rng = random.Random(0)
    members = [space.sample(rng) for _ in range(200)]
    first, again, other = (
        oracle(space, kind, "positive", members, np.random.default_rng(seed))(members) for seed in (0, 0, 1)
    )
    assert (first == again).all() and not (first == other).all()
    assert first.mean() == pytest.approx(70) and first.std() == pytest.approx(3)


def test_size_effects_are_what_they_are_called():
    space = SearchSpace.from_dict(SPACES["widths"])
    rng = random.Random(0)
    members = [space.sample(rng) for _ in range(200)]
    weights = log_weights(members)
    for effect, expected in (("positive", 1), ("negative", -1), ("absent", 0)):
        scores = [oracle(space, "network", effect, members, np.random.default_rng(s))(members) for s in range(6)]
        taus = [kendalltau(weights, values).statistic for values in scores]
        assert np.mean(taus) * expected > 0.2 if expected else abs(np.mean(taus)) < 0.2


def test_log_weights_follow_those_of_the_models():
    space = SearchSpace.from_dict(SPACES["widths"])
    rng = random.Random(0)
    members = [space.sample(rng) for _ in range(30)]
    exact = [
        sum(p.numel() for p in FlexiBertModel(FlexiBertConfig(layers=x, vocab_size=2)).layers.parameters())
        for x in members
    ]
    assert kendalltau(log_weights(members), exact).statistic > 0.8


def test_noise_belongs_to_the_member():
    problem = Problem(
        Encoding(SearchSpace.from_dict(SPACES["heads"])), lambda rows: np.zeros(len(rows)), 0, 0, None, 2.0
    )
    rows = problem.encoding.sample(300, np.random.default_rng(0))
    shown = [problem.measure(row) for row in rows]
    assert shown == [problem.measure(row) for row in rows]
    assert all(score == 0 for _, score in shown)
    assert np.std([noisy for noisy, _ in shown]) == pytest.approx(2, rel=0.15)


def test_the_protocol_counts_evaluations_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(HALVES, "design", Half((), (), ("additive",), ("nas_bench_bert",)))
    monkeypatch.setattr("benchmarks.search_policies.EVALUATIONS", 14)
    output = ["--table", "none.json", "--output", str(tmp_path / "design.json")]
    arguments = ["--mode", "design", "--seeds", "2", *output, "--policies"]
    assert main([*arguments, "random"]) == 0
    first = json.loads((tmp_path / "design.json").read_text())
    assert main([*arguments, "random,forest-ei"]) == 0
    both = json.loads((tmp_path / "design.json").read_text())
    for name, problem in both["problems"].items():
        assert problem["random"] == first["problems"][name]["random"]
        assert len(problem["random"]) == len(problem["forest-ei"]) == 2
        assert all(1 <= count <= 15 for policy in problem.values() for count in policy)
    assert len(both["problems"]) == 3
    assert "all (3) | random |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--mode", "held-back", *output])
    assert "results of another mode" in capsys.readouterr().err


def test_the_report_ranks_by_means_and_shares_ties():
    found = {
        "a/1": {"x": [1, 3], "y": [2, 2], "z": [101, 101]},
        "b/1": {"x": [5, 5], "y": [9, 9], "z": [7, 7]},
        "b/2": {"x": [5, 5]},
    }
    lines = [line.split(" | ") for line in report(found, ["x", "y", "z"])]
    first = {(line[0], line[1]): [part.split(" ")[0] for part in line[2:]] for line in lines[1:]}
    assert first["all (2)", "x"] == ["1.25", "100%", "3.5", "4"]
    assert first["all (2)", "y"] == ["2.25", "50%", "5.5", "5.5"]
    assert first["b (1)", "z"] == ["2.00", "0%", "7.0", "7"]


def test_an_encoder_is_taught_the_same_way_every_time():
    """A teacher whose states are a linear map of the embeddings is learnt within some steps."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(264, LENGTH, EMBEDDING_SIZE, generator=generator)
    states = embeddings @ torch.randn(EMBEDDING_SIZE, 8, generator=generator)
    lessons = SimpleNamespace(embeddings=embeddings, states=states)
    layers = SearchSpace.from_dict(TAUGHT_SPACES["taught_widths"]).sample(random.Random(0))
    taught = [teach(layers, lessons, 20, seed) for seed in (0, 0, 1)]
    assert taught[0] == taught[1] != taught[2]
    assert 20 < taught[0] <= 100
