"""The cards in model_cards/: all there, readable for the Hub, made of result files, and their snippets run."""

import json
import re
import shutil
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hub_server import problem_of
from huggingface_hub import ModelCard

from benchmarks import model_cards
from flexibert import FlexiBertConfig, list_architectures, named_config
from search.artifacts.describe import number
from search.artifacts.integrity import check_card


ROOT = Path(__file__).resolve().parent.parent
FOLDERS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/config.json"))
RESULTS = {
    **{folder.name: f"like_for_like/{folder.name}-seed*.json" for folder in FOLDERS},
    "fnet-mini": "like_for_like/none",  # what was measured under this name is the next one
    "fnet-mini-pure": "like_for_like/fnet-mini-seed*.json",
    "flexibert-mini-wikipedia": "resident/searched-seed*.json",
    **{name: f"taught_resident/{name}.json" for name in ("flexibert-mini-sentences", "flexibert-tiny-sentences")},
}
"""Model -> the files that the numbers of its card come from, if there are any."""


def by_name(test):
    return pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)(test)


def test_every_named_model_has_one():
    names = {folder.name for folder in FOLDERS}
    assert set(list_architectures()) <= names
    for name in list_architectures():
        config = FlexiBertConfig.from_pretrained(ROOT / "model_cards" / name)
        assert config.fingerprint == named_config(name).fingerprint, name


@by_name
def test_the_hub_can_read_it(folder):
    for path in [folder / "README.md", *folder.glob(".eval_results/*.yaml")]:
        assert problem_of(path.relative_to(folder).as_posix(), path.read_bytes()) is None
    assert "fill-mask" in check_card(folder) or "sentence-similarity" in check_card(folder)
    card = ModelCard.load(folder / "README.md")
    ids = {result.dataset_type for result in card.data.eval_results or () if "/" in result.dataset_type}
    assert ids <= {"nyu-mll/glue"}
    for picture in re.findall(r"!\[.+?\]\((.+?)\)", card.text):
        assert ET.parse(folder / picture).getroot().tag.endswith("svg")


def leaves(data, key=""):
    if isinstance(data, dict):
        for name, value in data.items():
            yield from leaves(value, f"{key}.{name}")
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield key, float(data)


def figures_of(pattern: str) -> set[str]:
    """What a card may print: values of result files, means and deviations over seeds, shares as percent."""
    found: dict[str, list[float]] = {}
    for path in sorted((ROOT / "benchmarks/results").glob(pattern)):
        data = json.loads(path.read_text(encoding="utf-8"))
        for index, entry in enumerate(data.pop("pretrained", []) if isinstance(data.get("pretrained"), list) else []):
            data[f"told{index}"] = entry["value"]
        for key, value in leaves(data):
            found.setdefault(key, []).append(value)
    figures = set()
    for values in found.values():
        for scale in (1, 100):
            scaled = [scale * value for value in values]
            figures.add(number(statistics.fmean(scaled)))
            if len(values) > 1:
                figures.add(number(statistics.stdev(scaled)))
    return figures


@by_name
def test_every_result_stands_in_a_result_file(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    results = text.partition("\n## Results\n")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in results.splitlines() if row.startswith("| ") and "---" not in row][1:]
    printed = {figure.strip() for row in rows for figure in row[2].split("±")}
    assert printed <= figures_of(RESULTS[folder.name])
    assert bool(printed) == bool(list((ROOT / "benchmarks/results").glob(RESULTS[folder.name])))
    assert printed or "Nothing was measured." in results


@pytest.mark.parametrize("which", ["measured", pytest.param("all", marks=pytest.mark.slow)])
def test_cards_are_those_of_today(which, tmp_path, capsys):
    """Made anew they are the same to the byte: no number was typed in."""
    if which == "all":
        for name in model_cards.RESIDENTS:
            shutil.copytree(ROOT / "model_cards" / name, tmp_path / name, ignore=shutil.ignore_patterns("*.svg"))
        model_cards.main(["--output", str(tmp_path)])
    else:
        runs = {"flexibert-mini": model_cards.read_results(model_cards.RESULTS / "like_for_like")["flexibert-mini"]}
        model_cards.write_measured(runs, tmp_path)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert len(made) >= (4 if which == "measured" else 3 * len(FOLDERS))
    for path in made:
        assert (tmp_path / path).read_bytes() == (ROOT / "model_cards" / path).read_bytes(), path


def test_what_the_authors_say_is_marked_as_theirs():
    for name in ("flexibert-mini", "flexibert-large", "autobert-zero-base"):
        text = (ROOT / "model_cards" / name / "README.md").read_text(encoding="utf-8")
        theirs = text.partition("**What its authors report**, which was not repeated here:")[2].partition("\n## ")[0]
        assert "The paper's abstract says" in theirs
        assert theirs not in text.partition("\n## Results\n")[2]


RUN = """
import json, os, sys
import torch
for folder, snippets in json.loads(sys.stdin.read()).items():
    os.chdir(folder)
    with torch.device("meta"):  # no memory for the largest
        for snippet in snippets:
            exec(snippet, {})
"""


@pytest.mark.parametrize("pattern", ["*-tiny", pytest.param("*", marks=pytest.mark.slow)])
def test_snippets_of_cards_without_weights_run(pattern):
    """In one clean process; those of cards with weights run in test_push_and_pull.py and, slowly, below."""
    snippets = {
        str(folder): re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
        for folder in FOLDERS
        if folder.match(pattern) and not (folder / "model.safetensors").is_file()
    }
    assert snippets and all(len(found) == 1 for found in snippets.values())
    done = subprocess.run([sys.executable, "-c", RUN], input=json.dumps(snippets), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("parameters with the prediction head") == len(snippets)


@pytest.mark.slow
@pytest.mark.parametrize("name", model_cards.RESIDENTS)
def test_snippets_of_residents_run(name, tmp_path):
    folder = shutil.copytree(ROOT / "model_cards" / name, tmp_path / name)
    snippets = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    if name.endswith("-sentences"):
        snippets = [snippet for snippet in snippets if "sentence_transformers" not in snippet]
    code = "\n".join(["import sys; sys.modules['flexibert'] = None", *snippets])
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert snippets and done.returncode == 0, done.stderr[-2000:]
