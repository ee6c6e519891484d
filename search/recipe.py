"""A recipe is a JSON file that says what to search, how, and with which budget; options of the command overrule it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from .data.tokenizer_kinds import TOKENIZER_KINDS
from .errors import UserError
from .evaluation.architectures import load_architecture
from .evaluation.model_config import check_fields
from .parsing import limited, one_of, parse, read_json
from .samplers import create_sampler
from .space.restriction import around, fix
from .space.search_space import SearchSpace
from .study.pruning import PRUNERS
from .training.finetuning import FinetuningBudget
from .training.pretraining import PretrainingBudget


RECIPES = resources.files(__package__) / "recipes"

MAX_VOCABULARY = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """Everything a search needs besides data on disk.

    Attributes:
        description: One line for `list`.
        space: What may be searched; None in recipes that only say how to pretrain.
        fix: Parameters of the space and what they may still be, see `restriction.fix`.
        around: An encoder by name, of which the search keeps near, see `restriction.around`; it is trained first.
        start_from: Encoders that are trained before what the sampler proposes, see `architectures.load_architectures`.
        sampler: Name of a sampler, and its options.
        trials: How many different architectures to train.
        pruner: Stops candidates that look hopeless, see `study.pruning`; None stops none.
        patience: Ends the search when so many trials in a row brought no better score; None for no such end.
        hierarchy: Whether to search level by level, from stacks of equal layers to the whole space.
        tasks: Whose mean primary metric is the score; none scores by masked token accuracy.
        corpus: Where the text comes from, None for the embedded one; `corpus_config` names a configuration of it.
        streaming: Whether the corpus is read while it is trained on, see `data.streaming`.
        tokenizer: Folder or Hub id, None to train one of `vocab_size` on the corpus, or to take the teacher's.
        tokenizer_kind: Name in `tokenizer_kinds.TOKENIZER_KINDS` of what is trained on the corpus.
        teacher: Folder or Hub id of an encoder to learn from, see `training.teacher`; None for none.
        embeddings: Whether word embeddings start at random or from the teacher's, where there is one.
        max_train_examples: Cap on the examples of a task, None for all.
        model: Fields of `FlexiBertConfig` that all candidates share.
        transfer: Whether, and how, a candidate starts from the weights of the trained one that is most like it.
        pretraining, finetuning: Budgets of every trial.
    """

    description: str
    space: SearchSpace | None = None
    fix: Mapping[str, Any] | None = None
    around: str | None = None
    start_from: tuple[str, ...] = ()
    sampler: Mapping[str, Any] = field(
        default_factory=lambda: {"name": "tpe"}, metadata={"noun": "an object with a name"}
    )
    pruner: str | None = one_of(*PRUNERS, default=None)
    trials: int = limited(least=1, default=20)
    patience: int | None = limited(least=1, default=None)
    hierarchy: bool = False
    tasks: tuple[str, ...] = ("word_order", "next_sentence")
    corpus: str | None = None
    corpus_config: str | None = None
    streaming: bool = False
    tokenizer: str | None = None
    tokenizer_kind: str = one_of(*TOKENIZER_KINDS, default="wordpiece")
    teacher: str | None = None
    embeddings: Literal["random", "teacher"] = "teacher"
    vocab_size: int = limited(least=1, most=MAX_VOCABULARY, default=8192)
    max_train_examples: int | None = limited(least=1, default=None)
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
    data = read_json(file, f"recipe {name}")
    if not isinstance(data, dict):
        raise UserError(f"recipe {name}: expected an object")
    return data


def parse_recipe(data: dict, name: str) -> Recipe:
    """Checks plain data and makes a recipe of it."""
    recipe = parse(Recipe, data, name)
    check_fields(recipe.model, f"{name}: model")
    if not isinstance(recipe.sampler.get("name"), str):
        raise UserError(f"{name}: sampler: expected an object with a name")
    recipe = _restrict(recipe, name)
    if recipe.space is not None:
        try:
            create_sampler(recipe.sampler, recipe.space, seed=0)
        except UserError as error:
            raise UserError(f"{name}: sampler: {error}") from None
    return recipe


def _restrict(recipe: Recipe, name: str) -> Recipe:
    """The recipe with what `around` and `fix` leave of its space."""
    space, first = recipe.space, recipe.start_from
    if space is None:
        if recipe.around or recipe.fix:
            raise UserError(f"{name}: {'around' if recipe.around else 'fix'}: the recipe has no space")
        return recipe
    if recipe.around is not None:
        space = around(space, load_architecture(recipe.around)["layers"], f"{name}: around")
        first = (recipe.around, *(other for other in first if other != recipe.around))
    if recipe.fix is not None:
        space = fix(space, recipe.fix, f"{name}: fix")
    return dataclasses.replace(recipe, space=space, start_from=first)
