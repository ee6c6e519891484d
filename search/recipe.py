"""A recipe is a JSON file that says what to search, how, and with which budget; options of the command overrule it."""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from .errors import UserError
from .space.search_space import SearchSpace
from .training.finetuning import FinetuningBudget
from .training.pretraining import PretrainingBudget


RECIPES = resources.files(__package__) / "recipes"

COUNTS = ("trials", "patience", "vocab_size", "max_train_examples", "batch_size", "micro_batches", "max_length")
NOT_NEGATIVE = ("steps", "checkpoint_steps", "weight_decay", "warmup_fraction", "mask_fraction")
ABOVE_ZERO = ("learning_rate", "epochs", "adam_epsilon", "max_grad_norm")
SHARES = ("warmup_fraction", "mask_fraction")


@dataclass(frozen=True)
class Recipe:
    """Everything a search needs besides data on disk.

    Attributes:
        description: One line for `list`.
        space: What may be searched; None in recipes that only say how to pretrain.
        sampler: Name of a sampler, and its options.
        trials: How many different architectures to train.
        patience: Ends the search when so many trials in a row brought no better score; None for no such end.
        hierarchy: Whether to search level by level, from stacks of equal layers to the whole space.
        tasks: Whose mean primary metric is the score; none scores by masked token accuracy.
        corpus: Where the text comes from, None for the embedded one; `corpus_config` names a configuration of it.
        tokenizer: Folder or Hub id, None to train one of `vocab_size` on the corpus.
        max_train_examples: Cap on the examples of a task, None for all.
        model: Fields of `FlexiBertConfig` that all candidates share.
        transfer: Whether, and how, a candidate starts from the weights of the trained one that is most like it.
        pretraining, finetuning: Budgets of every trial.
    """

    description: str
    space: SearchSpace | None = None
    sampler: Mapping[str, Any] = field(default_factory=lambda: {"name": "tpe"})
    trials: int = 20
    patience: int | None = None
    hierarchy: bool = False
    tasks: tuple[str, ...] = ("word_order", "next_sentence")
    corpus: str | None = None
    corpus_config: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 8192
    max_train_examples: int | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    transfer: Literal["none", "ordered", "random_projection"] = "none"
    pretraining: PretrainingBudget = PretrainingBudget()
    finetuning: FinetuningBudget = FinetuningBudget()

    def to_dict(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["space"] = self.space and self.space.to_dict()
        data["pretraining"] = dataclasses.asdict(self.pretraining)
        data["finetuning"] = dataclasses.asdict(self.finetuning)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}


def list_recipes() -> dict[str, str]:
    """Name -> description of the recipes that come with the package."""
    files = sorted(file.name for file in RECIPES.iterdir() if file.name.endswith(".json"))
    return {name.removesuffix(".json"): _read(RECIPES / name, name)["description"] for name in files}


def load_recipe(name_or_path: str) -> Recipe:
    """A recipe of the package by name, or any by path; UserError with the path of what is wrong in it."""
    if name_or_path.endswith(".json"):
        data = _read(Path(name_or_path), name_or_path)
    elif (RECIPES / f"{name_or_path}.json").is_file():
        data = _read(RECIPES / f"{name_or_path}.json", name_or_path)
    else:
        raise UserError(f"unknown recipe {name_or_path!r}, known: {', '.join(list_recipes())}; or the path of a .json")
    return parse_recipe(data, name_or_path)


def _read(file, name: str) -> dict:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"recipe {name}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"recipe {name} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"recipe {name}: expected an object")
    return data


def parse_recipe(data: dict, name: str) -> Recipe:
    """Checks plain data and makes a recipe of it."""
    values = dict(data)
    if "space" in values:
        values["space"] = SearchSpace.from_dict(values["space"], f"{name}: space")
    for key, cls in (("pretraining", PretrainingBudget), ("finetuning", FinetuningBudget)):
        if key in values:
            values[key] = parse_budget(cls, values[key], f"{name}: {key}")
    if "tasks" in values:
        if not isinstance(values["tasks"], list) or not all(isinstance(task, str) for task in values["tasks"]):
            raise UserError(f"{name}: tasks: {values['tasks']!r} is not accepted, expected a list of names")
        values["tasks"] = tuple(values["tasks"])
    if not isinstance(values.get("model", {}), dict):
        raise UserError(f"{name}: model: expected an object")
    recipe = parse_budget(Recipe, values, name)
    if not isinstance(recipe.sampler, dict) or not isinstance(recipe.sampler.get("name"), str):
        raise UserError(f"{name}: sampler: expected an object with a name")
    return recipe


def parse_budget(cls, data: Any, path: str):
    """A dataclass out of plain data: known keys, right types, positive counts."""
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected an object")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in data.items():
        if key not in fields:
            raise UserError(f"{path}: unknown key {key!r}, known: {', '.join(fields)}")
        _check_type(fields[key].type, value, f"{path}: {key}")
        _check_range(key, value, f"{path}: {key}")
    missing = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING and n not in data]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing")
    return cls(**data)


def _check_type(kind: Any, value: Any, path: str) -> None:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UserError(f"{path}: {value!r} is not accepted, known: {', '.join(map(repr, get_args(kind)))}")
        return
    optional = {str | None: (str, type(None)), int | None: (int, type(None))}
    accepted = {int: int, float: (int, float), bool: bool, str: str, **optional}.get(kind)
    if accepted is None:
        return
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        raise UserError(f"{path}: {value!r} is not accepted, expected {name}")


def _check_range(key: str, value: Any, path: str) -> None:
    for keys, expected, accepts in (
        (COUNTS, "at least 1", lambda number: number >= 1),
        (NOT_NEGATIVE, "at least 0", lambda number: number >= 0),
        (ABOVE_ZERO, "a finite number above 0", lambda number: 0 < number < math.inf),
        (SHARES, "at most 1", lambda number: number <= 1),
    ):
        if key in keys and value is not None and not accepts(value):
            raise UserError(f"{path}: {value!r} is not accepted, expected {expected}")
