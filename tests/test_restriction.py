"""Parts of a space, and encoders that a search begins with."""

import json
import random

import optuna
import pytest

from flexibert import architecture
from flexibert.spec import fingerprint, layers_to_dicts
from search.errors import UserError
from search.evaluation.architectures import BEST_OF_A_RUN, enqueue_known, load_architectures
from search.recipe import parse_recipe
from search.space.restriction import around, fix
from search.space.search_space import SearchSpace
from search.study.run_folder import RunFolder
from search.study.storage import open_study


DATA = {
    "num_layers": [2, 3, 4],
    "hidden_size": [16, 32, 64, 128],
    "num_heads": [2, 4],
    "operations": [
        {"op": "self_attention"},
        {"op": "linear_transform", "transform": "cosine"},
        {"op": "dynamic_convolution", "kernel_size": 5},
        {"op": "dynamic_convolution", "kernel_size": 9},
    ],
    "feed_forward_size": [16, 32],
}
SPACE = SearchSpace.from_dict(DATA)


def members(space, count=200):
    rng = random.Random(0)
    return [space.sample(rng) for _ in range(count)]


def test_fixed_parameters_are_fixed_and_the_rest_is_free():
    part = fix(SPACE, {"num_layers": 3, "layer1.operation": "self_attention", "*.hidden_size": [32, 64]}, "fix")
    found = members(part)
    assert {len(layers) for layers in found} == {3}
    assert {layers[1].operations[0].op for layers in found} == {"self_attention"}
    assert {layer.hidden_size for layers in found for layer in layers} == {32, 64}
    assert len({layers[0].operations[0] for layers in found}) >= 4
    assert all(layers in SPACE and layers in part for layers in found)
    assert part.size() == (2 * 2 * 4 * 2) ** 2 * (2 * 2 * 1 * 2)


def test_patterns_stand_for_kinds_of_operations():
    part = fix(SPACE, {"layer0.operation": "dynamic_convolution*", "layer[123].operation": "[!d]*"}, "fix")
    for layers in members(part):
        assert [layer.operations[0].op == "dynamic_convolution" for layer in layers] == [True] + [False] * (
            len(layers) - 1
        )


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"layer9.hidden_size": 16}, "fix: 'layer9.hidden_size' is no parameter of the space, known: num_layers, "),
        ({"num_layers": 7}, "fix: num_layers: 7 is not accepted for num_layers, known: 2, 3, 4"),
        ({"num_layers": True}, "fix: num_layers: True is not accepted"),
        ({"num_layers": []}, "fix: num_layers: [] is not accepted"),
        ({"num_layers": {"a": 1}}, "fix: num_layers: {'a': 1} is not accepted"),
        ({"*.hidden_size": [16], "layer0.hidden_size": 32}, "fix: layer0.hidden_size: 32 is not accepted"),
        ({"layer0.operation": "fnet"}, "known: self_attention, linear_transform(transform=cosine), dynamic"),
    ],
)
def test_what_cannot_be_fixed(wanted, message):
    with pytest.raises(UserError) as error:
        fix(SPACE, wanted, "fix")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_around_an_architecture():
    centre = members(fix(SPACE, {"num_layers": 3, "*.hidden_size": 32, "*.num_heads": 2}, "fix"), 1)[0]
    part = around(SPACE, centre, "around")
    found = members(part)
    assert centre in part
    assert {layer.hidden_size for layers in found for layer in layers[:3]} == {16, 32, 64}
    assert {len(layers) for layers in found} == {2, 3, 4}
    assert len({layers[0].operations[0] for layers in found}) > 2
    with pytest.raises(UserError, match="^around: the architecture is not in the space"):
        around(fix(SPACE, {"num_layers": 2}, "fix"), architecture("bert-mini"), "around")


def recipe(**changes):
    return parse_recipe({"description": "d", "space": DATA, **changes}, "mine")


def test_recipes_restrict_their_space(tmp_path):
    centre = members(SPACE, 1)[0]
    (tmp_path / "centre.json").write_text(json.dumps(layers_to_dicts(centre)), encoding="utf-8")
    near = recipe(around=str(tmp_path / "centre.json"), fix={"*.num_heads": 2}, start_from=["bert-mini"])
    assert near.start_from == (str(tmp_path / "centre.json"), "bert-mini")
    assert set(near.space.choices["layer0.num_heads"]) == {2}
    assert parse_recipe({k: v for k, v in near.to_dict().items() if v is not None}, "again") == near
    for changes, message in (
        ({"fix": {"depth": 1}}, "mine: fix: 'depth' is no parameter"),
        ({"fix": []}, "mine: fix: expected an object"),
        ({"around": "bert-mini"}, "mine: around: the architecture is not in the space"),
        ({"around": "bert-minni"}, "architecture bert-minni: "),
        ({"space": None, "fix": {"a": 1}}, "mine: fix: the recipe has no space"),
        ({"pruner": "medium"}, "mine: pruner: 'medium' is not accepted, known: median"),
    ):
        with pytest.raises(UserError) as error:
            recipe(**changes)
        assert str(error.value).startswith(message)


# --- encoders to begin with ---------------------------------------------------------------------------------------


def earlier_run(folder, scores):
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    study = open_study(run.storage, run.name, {}, {"score_percent": "maximize"})
    for layers, score in zip(members(SPACE, len(scores)), scores):
        trial = optuna.trial.create_trial(
            values=[score],
            user_attrs={"layers": layers_to_dicts(layers), "fingerprint": fingerprint(layers), "metrics": {}},
        )
        study.add_trial(trial)
    return members(SPACE, len(scores))


def test_encoders_by_name(tmp_path):
    assert load_architectures("bert-mini") == [architecture("bert-mini")]
    several = members(SPACE, 3)
    (tmp_path / "one.json").write_text(json.dumps(layers_to_dicts(several[0])), encoding="utf-8")
    (tmp_path / "three.json").write_text(json.dumps([layers_to_dicts(x) for x in several]), encoding="utf-8")
    assert load_architectures(str(tmp_path / "one.json")) == several[:1]
    assert load_architectures(str(tmp_path / "three.json")) == several
    trained = earlier_run(tmp_path / "run", [1.0, 7.0, 3.0, 2.0, 5.0, 4.0, 6.0])
    best = [trained[index] for index in (1, 6, 4, 5, 2)]
    assert load_architectures(str(tmp_path / "run")) == best and len(best) == BEST_OF_A_RUN


@pytest.mark.parametrize(
    "content, message",
    [(b"{", "is not JSON"), (b"3", "expected a list of layers"), (b'[[{"hidden_size": 3}]]', r"\[0\]\[0\]: ")],
)
def test_what_is_no_encoder(tmp_path, content, message):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_architectures(str(tmp_path / "bad.json"))
    earlier_run(tmp_path / "empty", [])
    with pytest.raises(UserError, match="has no finished trial"):
        load_architectures(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="architecture nothing"):
        load_architectures("nothing")


def test_known_encoders_come_first_and_once(tmp_path):
    trained = earlier_run(tmp_path / "run", [1.0, 2.0])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert enqueue_known(study, SPACE, ["bert-mini", str(tmp_path / "run")]) == (2, 1)
    assert enqueue_known(study, SPACE, [str(tmp_path / "run")]) == (0, 0)
    assert [SPACE.suggest(study.ask()) for _ in range(2)] == trained[::-1]
    assert SPACE.suggest(study.ask()) not in trained
    with pytest.raises(UserError, match="none of 1 encoders is in the space"):
        enqueue_known(study, SPACE, ["bert-mini"])
