"""Prints what can be named: recipes, samplers, tasks, operations and architectures."""

from flexibert import architecture, list_architectures
from flexibert.spec import OPERATIONS

from ..data.synthetic_tasks import SELF_MADE_TASKS
from ..metrics import GLUE_TASKS
from ..recipe import list_recipes
from ..samplers import SAMPLERS


def main(options) -> None:
    """Prints what can be named."""
    tables = {
        "recipes": list_recipes(),
        "samplers": {name: text for name, (text, _) in SAMPLERS.items()},
        "tasks": {**dict.fromkeys(GLUE_TASKS, "GLUE"), **SELF_MADE_TASKS},
        "operations": {op: cls.__doc__.splitlines()[0] for op, cls in OPERATIONS.items()},
        "architectures": {name: f"{len(architecture(name))} layers" for name in list_architectures()},
    }
    for title, table in tables.items():
        if options.what in (None, title):
            print(f"{title}:")
            for name, text in table.items():
                print(f"  {name:32} {text}")
