"""Prints what can be named: recipes, samplers, pruners, tasks, operations and architectures."""

import json
import textwrap

from flexibert import architecture, list_architectures
from flexibert.spec import OPERATIONS

from ..data.synthetic_tasks import SELF_MADE_TASKS
from ..metrics import GLUE_TASKS
from ..recipe import list_recipes
from ..samplers import SAMPLERS
from ..study.pruning import PRUNERS


WIDTH = 80


def main(options) -> None:
    """Prints what can be named, for people or as JSON."""
    tables = {
        "recipes": list_recipes(),
        "samplers": {name: text for name, (text, _) in SAMPLERS.items()},
        "pruners": {name: f"stops candidates {pruning.text}" for name, pruning in PRUNERS.items()},
        "tasks": {**dict.fromkeys(GLUE_TASKS, "GLUE"), **SELF_MADE_TASKS},
        "operations": {op: str(cls.__doc__).splitlines()[0] for op, cls in OPERATIONS.items()},
        "architectures": {name: f"{len(architecture(name))} layers" for name in list_architectures()},
    }
    tables = {title: table for title, table in tables.items() if options.what in (None, title)}
    if options.json:
        print(json.dumps(tables, indent=2))
        return
    for title, table in tables.items():
        print(f"{title}:")
        width = min(32, max(map(len, table)))
        for name, text in table.items():
            print(entry(name, text, width))


def entry(name: str, text: str, width: int) -> str:
    """A name and what it means, within `WIDTH` columns; names longer than `width` have a line of their own."""
    indent = " " * (width + 4)
    lines = textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent) or [""]
    if len(name) > width:
        return "\n".join([f"  {name}", *lines])
    return "\n".join([f"  {name:{width}}  {lines[0][len(indent) :]}", *lines[1:]])
