"""Who may import whom: the arrows that keep the parts apart, read off the source."""

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
# What travels with every checkpoint. Each file imports only those before it.
TRAVELLING = ["attention_graph", "spec", "configuration_flexibert", "operations", "modeling_flexibert"]
# Room of search/ -> the rooms that it may import. Nobody is asked about what lies under all of them.
UNDERNEATH = {"errors", "files", "option_values", "parsing", "progress"}
ARROWS: dict[str, set[str]] = {
    "runtimes": set(),
    "cost": {"runtimes"},
    "metrics": set(),
    "glue_metric": {"metrics"},
    # search space and search strategy
    "space": set(),
    "similarity": set(),
    "bayesopt": {"space", "similarity"},
    "samplers": {"space", "bayesopt"},
    "study": {"cost", "space", "samplers"},
    "artifacts": {"cost", "runtimes", "samplers", "study"},
    # performance estimation
    "data": {"metrics"},
    "training": {"data", "metrics"},
    "evaluation": {"cost", "runtimes", "metrics", "space", "samplers", "study", "artifacts", "data", "training"},
    # the command
    "recipe": {"space", "samplers", "study", "data", "training", "evaluation"},
    "commands": {
        "cost",
        "runtimes",
        "metrics",
        "samplers",
        "study",
        "artifacts",
        "data",
        "training",
        "evaluation",
        "recipe",
    },
    "option_groups": {"cost", "runtimes"},
    "cli": {"option_groups", "study"},
    "__main__": {"cli"},
}
# What proposes architectures needs their description, never a model.
PROPOSING = ["bayesopt", "space", "samplers"]
FILES = {
    path.relative_to(ROOT).as_posix(): path
    for name in ("flexibert", "search")
    for path in ROOT.glob(f"{name}/**/*.py")
}


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in it: "torch.nn", "flexibert.spec"."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) + 1 - node.level], node.module or ""]) if node.level else node.module
            )
            base = base.rstrip(".")
            submodules = {f"{base}.{alias.name}" for alias in node.names}
            known = {name for name in submodules if is_module(name)}
            names |= known or {base}
    return names


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def travelling(name: str) -> Path:
    return ROOT / "flexibert" / f"{name}.py"


@pytest.mark.parametrize("name", TRAVELLING)
def test_what_travels_imports_what_travels(name):
    """As `from .module import Name`, the only form that transformers copies and finds again, and public packages."""
    text = travelling(name).read_text(encoding="utf-8")
    relative = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module in TRAVELLING[: TRAVELLING.index(name)], ast.unparse(node)
            relative.add(node.module)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in modules:
                assert module != "__future__", "a string for an annotation breaks the strict configuration"
                top = module.split(".")[0]
                assert top in {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names, module
    # transformers reads the text line by line, so a docstring must not look like an import.
    assert set(re.findall(r"^\s*(?:from|import)\s+\.(\S+)", text, re.MULTILINE)) == relative


@pytest.mark.parametrize("name", ["attention_graph", "spec"])
def test_descriptions_need_the_standard_library_only(name):
    outside = {module for module in imports(travelling(name)) if module.split(".")[0] not in sys.stdlib_module_names}
    assert outside <= {"flexibert.attention_graph"}


def test_the_models_know_nothing_of_the_search():
    for name, path in FILES.items():
        if name.startswith("flexibert/"):
            assert not {module for module in imports(path) if module.split(".")[0] == "search"}, name


def room(module: str) -> str:
    """Which part of search/ a module belongs to: "search.space.hierarchy" is in space, "search.cost" is cost."""
    return module.split(".")[1] if "." in module else "__init__"


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("search/")])
def test_imports_go_along_the_arrows(name):
    own = room(module_of(name))
    rooms = {room(module) for module in imports(FILES[name]) if module.split(".")[0] == "search"} - {own}
    assert rooms <= ARROWS.get(own, set()) | UNDERNEATH, (
        f"{name} imports {rooms - ARROWS.get(own, set()) - UNDERNEATH}"
    )


def test_the_arrows_know_every_room_and_go_round_in_no_circle():
    rooms = {room(module_of(name)) for name in FILES if name.startswith("search/")} - {"__init__"}
    assert rooms == ARROWS.keys() | UNDERNEATH
    assert not [source for source, targets in ARROWS.items() if not targets <= ARROWS.keys()]
    TopologicalSorter(ARROWS).prepare()


@pytest.mark.parametrize("folder", PROPOSING)
def test_proposing_needs_no_model(folder):
    paths = sorted((ROOT / "search" / folder).glob("*.py"))
    assert paths
    for path in paths:
        models = {module for module in imports(path) if module.split(".")[0] in ("flexibert", "transformers")}
        assert models <= {"flexibert.attention_graph", "flexibert.spec"}, path.name


@pytest.mark.parametrize("package", ["flexibert", "search"])
def test_no_import_goes_round_in_a_circle(package):
    graph = {}
    for name, path in FILES.items():
        graph[module_of(name)] = {other for other in imports(path) if other.split(".")[0] == package}
    TopologicalSorter(graph).prepare()
