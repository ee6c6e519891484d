"""Recipes: those of the package are right, and what is wrong in others is said with its path."""

import json
from pathlib import Path

import pytest

from search.errors import UserError
from search.recipe import Recipe, list_recipes, load_recipe, parse_recipe
from search.samplers import create_sampler


SPACE = {
    "num_layers": [1, 2],
    "hidden_size": [16],
    "num_heads": [2],
    "operations": [{"op": "self_attention"}],
    "feed_forward_size": [16],
}


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_of_the_package_loads(name):
    recipe = load_recipe(name)
    assert recipe.description
    if recipe.space is not None:
        create_sampler(recipe.sampler, recipe.space, seed=0)


def test_the_papers_space_has_its_size():
    assert load_recipe("flexibert").space.size() == 3_317_817_600


@pytest.mark.parametrize("name", list_recipes())
def test_round_trip_through_json(name):
    recipe = load_recipe(name)
    data = {key: value for key, value in json.loads(json.dumps(recipe.to_dict())).items() if value is not None}
    assert parse_recipe(data, "again") == recipe


def write(tmp_path, **changes):
    data = {"description": "d", "trials": 3, **changes}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


def test_a_file_overrules_defaults(tmp_path):
    recipe = load_recipe(write(tmp_path, pretraining={"steps": 7}))
    assert recipe == Recipe("d", trials=3, pretraining=recipe.pretraining)
    assert recipe.pretraining.steps == 7 and recipe.pretraining.batch_size == 64


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"trial": 1}, "unknown key 'trial', known: description, space"),
        ({"trials": "3"}, "trials: '3' is not accepted, expected int"),
        ({"trials": True}, "trials: True is not accepted"),
        ({"pretraining": {"step": 3}}, "pretraining: unknown key 'step', known: steps"),
        (
            {"pretraining": {"schedule": "cos"}},
            "pretraining: schedule: 'cos' is not accepted, known: 'linear', 'cosine'",
        ),
        ({"pretraining": 5}, "pretraining: expected an object"),
        ({"space": {"num_layers": [2]}}, "space: hidden_size is missing"),
        ({"trials": 0}, "trials: 0 is not accepted, expected at least 1"),
        ({"max_train_examples": "many"}, "max_train_examples: 'many' is not accepted"),
        ({"tasks": "cola"}, "tasks: 'cola' is not accepted, expected a list of names"),
        ({"model": []}, "model: expected an object"),
        ({"pretraining": {"micro_batches": 0}}, "micro_batches: 0 is not accepted, expected at least 1"),
        ({"pretraining": {"mask_fraction": 2}}, "mask_fraction: 2 is not accepted, expected at most 1"),
        ({"pretraining": {"learning_rate": float("nan")}}, "learning_rate: nan is not accepted"),
        ({"finetuning": {"epochs": -1}}, "epochs: -1 is not accepted, expected a finite number above 0"),
        ({"pretraining": {"sequence_length": 0}}, "sequence_length: 0 is not accepted, expected at least 1"),
        ({"pretraining": {"adam_beta2": float("inf")}}, "adam_beta2: inf is not accepted, expected a finite number"),
        ({"pretraining": {"weight_decay": 10**400}}, "is not accepted, expected a finite number"),
        ({"finetuning": {"classifier_pooling": "max"}}, "classifier_pooling: 'max' is not accepted, known: 'cls'"),
        ({"transfer": True}, "transfer: True is not accepted, known: 'none'"),
        ({"tasks": ["cola", 3]}, "tasks: ['cola', 3] is not accepted, expected a list of names"),
        ({"sampler": "tpe"}, "sampler: expected an object with a name"),
        ({"sampler": {"name": 3}}, "sampler: expected an object with a name"),
        ({"space": SPACE, "sampler": {"name": "tpee"}}, "sampler: unknown sampler 'tpee', known: boshnas"),
        ({"space": SPACE, "sampler": {"name": "tpe", "start": 3}}, "sampler: sampler tpe has no option 'start'"),
        (
            {"space": SPACE, "sampler": {"name": "tpe", "n_startup_trials": "six"}},
            "sampler: n_startup_trials: 'six' is not accepted, expected a whole number of at least 1",
        ),
        ({"space": SPACE, "sampler": {"name": "opnas", "alpha": -1}}, "sampler: alpha: -1 is not accepted"),
        ({"space": SPACE, "sampler": {"name": "nsga2", "population_size": 1}}, "sampler: sampler nsga2: "),
        ({"space": {**SPACE, "restrictions": {}}}, "space: unknown key 'restrictions'"),
        ({"model": {"hidden_dropout": 0.1}}, "model: unknown key 'hidden_dropout', known: vocab_size"),
        ({"model": {"layers": []}}, "model: unknown key 'layers'"),
        ({"model": {"hidden_dropout_prob": 2}}, "model: hidden_dropout_prob: 2 is not accepted, expected a number"),
        ({"model": {"hidden_dropout_prob": "a"}}, "model: hidden_dropout_prob: 'a' is not accepted, expected float"),
        ({"model": {"classifier_pooling": "max"}}, "model: classifier_pooling: 'max' is not accepted, known: 'cls'"),
        ({"model": {"hidden_act": "wave"}}, "model: hidden_act: 'wave' is not accepted, known: gelu"),
    ],
)
def test_mistakes_are_named_with_their_path(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert message in str(error.value) and path in str(error.value) and "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    path = write(tmp_path)
    marked = tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes())
    assert load_recipe(str(marked)) == load_recipe(path)


def test_unknown_recipe_lists_the_known_ones():
    with pytest.raises(UserError, match="unknown recipe 'quickstrat', known: .*quickstart"):
        load_recipe("quickstrat")


def test_file_that_is_not_there_or_not_json(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_recipe(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is not JSON"):
        load_recipe(str(tmp_path / "bad.json"))
    for name, content in {"deep": b"[" * 100_000, "bytes": b"\xff\xfe{", "number": b"1" * 10_000}.items():
        (tmp_path / f"{name}.json").write_bytes(content)
        with pytest.raises(UserError, match="is not JSON"):
            load_recipe(str(tmp_path / f"{name}.json"))
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="expected an object"):
        load_recipe(str(tmp_path / "list.json"))
