"""The comparison of search policies, on a table of a few encoders."""

import json
import random

import pytest

from benchmarks.search_policies import OPERATIONS, POLICIES, main, pool_problem, read_table
from search.errors import UserError


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
