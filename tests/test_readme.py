"""What README, guides and results say works: Python runs, commands parse, recipes, files and links are there."""

import ast
import json
import re
import shlex
from pathlib import Path

import optuna
import pytest

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, list_architectures
from flexibert.spec import OPERATIONS
from search.cli import build_parser
from search.cost import COSTS
from search.data.corpus import load_corpus
from search.data.tokenizer import load_tokenizer
from search.recipe import parse_recipe
from search.samplers import SAMPLERS
from search.training.objectives import OBJECTIVES


ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").replace("\\\n", " ")
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks/results/README.md",
        *sorted(ROOT.glob("docs/**/*.md")),
    ]
}
BLOCKS = [
    pytest.param(language, code, id=f"{page}-{number}")
    for page, text in PAGES.items()
    for number, (language, code) in enumerate(re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL))
]


def found(pattern: str) -> list:
    """What a pattern finds in any page, each once, with the page's name to tell failures apart."""
    return [
        pytest.param(page, match, id=f"{page}: {match if isinstance(match, str) else match[0]}"[:100])
        for page, text in PAGES.items()
        for match in sorted(set(re.findall(pattern, text, re.MULTILINE)))
    ]


def blocks(language: str) -> list:
    return [pytest.param(block.values[1], id=block.id) for block in BLOCKS if block.values[0] == language]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint with a tokenizer that knows the README's sentence."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = load_tokenizer(None, load_corpus(), folder / "cache", 1000)
    layers = [{"hidden_size": 16, "operations": [{"op": "self_attention", "num_heads": 2}], "feed_forward": [16]}]
    FlexiBertForMaskedLM(FlexiBertConfig(vocab_size=len(tokenizer), layers=layers)).save_pretrained(folder / "best")
    tokenizer.save_pretrained(folder / "best")
    return folder / "best"


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code, checkpoint, monkeypatch):
    monkeypatch.chdir(ROOT)
    verbosity = optuna.logging.get_verbosity()
    try:
        exec(re.sub("runs/quickstart/best|mine/reviews", str(checkpoint), code), {})
    finally:
        optuna.logging.set_verbosity(verbosity)


@pytest.mark.parametrize("code", blocks("json"))
def test_recipes_are_accepted(code):
    assert parse_recipe(json.loads(code), "recipe").space.size() > 1


@pytest.mark.parametrize(
    "page, command", found(r"(?:accelerate launch[^`\n]*?|python|torchrun[^`\n]*?) -m search\b([^`\n]*)")
)
def test_commands_parse(page, command):
    arguments = shlex.split(re.sub(r"[\[\]…]", "", command.split(" (")[0]), comments=True)
    if arguments == ["COMMAND", "--help"]:
        return
    assert callable(build_parser().parse_args(arguments).run)


@pytest.mark.parametrize("page, command", found(r"python (benchmarks/\w+\.py(?: [^`\n]*)?)"))
def test_benchmarks_have_the_options(page, command):
    script, *arguments = shlex.split(re.sub(r"[\[\]|…]", " ", command))
    strings = {
        node.value
        for node in ast.walk(ast.parse((ROOT / script).read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    options = [argument for argument in arguments if argument.startswith("--")]
    assert not set(options) - strings, script


def test_there_are_commands_and_code():
    text = "\n".join(PAGES.values())
    assert text.count("-m search") >= 15 and len(blocks("python")) >= 8 and len(blocks("json")) >= 1


@pytest.mark.parametrize("page, target", found(r"(?:^|`)make ([a-z-]+)"))
def test_make_targets_exist(page, target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    "page, name", found(r"`((?:flexibert|search|benchmarks|examples|tests|docs|model_cards)/[\w/.-]+\.\w+)`")
)
def test_named_files_exist(page, name):
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("page, target", found(r"\]\((?!https?:)([^)#]+)"))
def test_links_and_pictures_are_there(page, target):
    path = (ROOT / page).parent / target
    assert path.is_file()
    assert path.suffix not in (".png", ".svg") or path.stat().st_size < 300_000


@pytest.mark.parametrize("page", PAGES)
def test_nothing_needs_what_only_its_writer_has(page):
    assert not re.search(r"\.\./shared|(?<![\w.:/])/(?:home|root|tmp|work)/", PAGES[page])


EXPECTATIONS = re.findall(r"^\| .+? \| .+? \| (.+?) \|$", PAGES["docs/expectations.md"], re.MULTILINE)[2:]


@pytest.mark.parametrize("shown", EXPECTATIONS)
def test_every_expectation_is_shown(shown):
    """A row of docs/expectations.md names a test that is there, or an example, which tests/test_examples.py runs."""
    path, _, test = shown.strip("`").partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^def {test}\(", text, re.MULTILINE) if test else path.startswith("examples/")


def test_every_page_is_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"- (\S+\.md)$", site, re.MULTILINE)) == {
        name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")
    }


def test_every_documented_module_can_be_imported():
    for page, text in PAGES.items():
        for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
            module, _, attribute = name.rpartition(".")
            path = ROOT / name.replace(".", "/")
            if not (path.is_dir() or path.with_suffix(".py").is_file()):
                assert attribute in (ROOT / module / "__init__.py").read_text(encoding="utf-8"), (page, name)


def test_guides_know_every_entry_of_the_tables():
    """What users choose from by name; a new entry that no guide knows is not there for them."""
    define, search, train = (PAGES[f"docs/guides/{name}.md"] for name in ("define", "search", "train"))
    tables = (
        (OPERATIONS, define),
        (list_architectures(), define),
        (SAMPLERS, search),
        (COSTS, search),
        (OBJECTIVES, train),
    )
    for names, page in tables:
        for name in names:
            known = {f"`{name}`", f"`{name.rpartition('-')[0]}-*`", f"`{name.split('-')[0]}-*`"}
            assert any(mention in page for mention in known), name


def test_the_error_that_is_quoted_is_the_real_one():
    layers = [{"hidden_size": 8, "operations": [{"op": "self_attention", "num_heads": 1}] * 2, "feed_forward": [8]}]
    layers[0]["operations"][1] = {"op": "dynamic_convolution", "num_heads": 1, "kernel_size": 4}
    with pytest.raises(ValueError) as error:
        FlexiBertConfig(layers=layers)
    for page in ("README.md", "docs/guides/define.md"):
        assert str(error.value) in PAGES[page]
