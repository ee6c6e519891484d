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
# What proposes architectures needs their description, never a model.
PROPOSING = ["bayesopt/*", "space/*", "samplers/*"]
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


@pytest.mark.parametrize("pattern", PROPOSING)
def test_proposing_needs_no_model(pattern):
    paths = sorted((ROOT / "search").glob(f"{pattern}.py"))
    assert paths
    for path in paths:
        models = {module for module in imports(path) if module.split(".")[0] in ("flexibert", "transformers")}
        assert models <= {"flexibert.attention_graph", "flexibert.spec"}, path.name


@pytest.mark.parametrize("package", ["flexibert", "search"])
def test_no_import_goes_round_in_a_circle(package):
    graph = {}
    for name, path in FILES.items():
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        graph[module] = {other for other in imports(path) if other.split(".")[0] == package}
    TopologicalSorter(graph).prepare()
