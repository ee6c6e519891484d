"""The report as one page: what it shows, that it needs nothing else, and how a browser lays it out."""

import json
import random
import re
import shutil
import subprocess
from itertools import groupby

import numpy as np
import optuna
import pytest
from conftest import SPECS
from optuna.trial import TrialState, create_trial
from test_report import complete, failed, make_study, random_layers, random_study

from flexibert.spec import parse_layers
from search.artifacts import charts
from search.artifacts.page import TEMPLATE, epsilon_squared, render_page, variance_shares, write_page
from search.study.results import read_results


pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def searched(size=40):
    """A study with everything that a page can show."""
    study = random_study(size)
    rng = random.Random(1)
    study.add_trial(failed("OutOfMemoryError: <script>alert(1)</script> & more"))
    stop = {"step": 16, "of": 150, "loss": 6.25}
    attributes = {"layers": random_layers(rng), "fingerprint": "0123456789ab", "stopped": stop}
    study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs=attributes, intermediate_values={16: -6.25}))
    budget = {"steps": 150, "batch_size": 32, "sequence_length": 64}
    study.set_user_attr("identity", {"pretraining": budget, "objective": {"tasks": ["cola"]}})
    return study


def page_of(study):
    return render_page(study, read_results(study))


def test_a_page_shows_what_was_found_and_needs_nothing_else():
    study = searched()
    page = page_of(study)
    for words in (
        "Best score so far", "Score against parameters", "Score against latency (ms)", "What matters, by layer",
        "Believed against measured", "Number 1: trial", "Number 3: trial", "All trials, best first", "Stopped early",
        "Trials that do not count", "tokens saved by stopping",
    ):  # fmt: skip
        assert words in page, words
    for result in read_results(study):
        assert result.fingerprint in page
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|src=", page)
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert page.count("<script>") == 1


@pytest.mark.parametrize(
    "study",
    [
        lambda: make_study(),
        lambda: make_study(failed("broke")),
        lambda: make_study(complete(50.0)),
        lambda: make_study(complete(50.0), complete(50.0, SPECS["fourier"])),
        lambda: make_study(complete(50.0, metrics={"parameters": float("nan")})),
        lambda: make_study(complete((50.0, 3.0)), complete((60.0, 4.0)), directions=("maximize", "minimize")),
        lambda: make_study(complete(0.0), complete(-1e30, SPECS["cosine"]), directions=("minimize",)),
    ],
    ids=["empty", "failed", "one", "equal", "nan", "two objectives", "wide range"],
)
def test_little_to_show(study):
    page = page_of(study())
    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL)).lower()
    assert page.startswith("<!DOCTYPE html>") and page.rstrip().endswith("</html>")


def test_names_of_studies_are_text(tmp_path):
    study = optuna.create_study(study_name='<img src=x onerror="x">')
    assert "<img" not in page_of(study)
    assert write_page(study, tmp_path / "new").read_text(encoding="utf-8") == page_of(study)


@pytest.mark.parametrize("name", SPECS)
def test_every_operation_can_be_drawn(name):
    layers = parse_layers(SPECS[name])
    drawn = charts.encoder(layers)
    assert drawn.count("<rect") == sum(len(layer.operations) for layer, _ in groupby(layers))
    for layer in layers:
        for operation in layer.operations:
            assert f"{operation.num_heads} × {operation.name}" in drawn
    assert set(charts.HUES) >= {operation.op for layer in layers for operation in layer.operations}


# --- what matters -------------------------------------------------------------------------------------------------


def test_shares_of_variance_by_hand():
    choices, values = ["a"] * 4 + ["b"] * 4, np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    # Between 32, within 10, in all 42; mean square within 10 / 6.
    assert epsilon_squared(choices, values) == pytest.approx((32 - 10 / 6) / 42)
    assert epsilon_squared(["a"] * 8, values) is None
    assert epsilon_squared(list("abcdefgh"), values) is None
    assert epsilon_squared(choices, np.ones(8)) is None
    assert epsilon_squared(choices[:4], values[:4]) is None


def test_what_does_not_matter_has_no_share_on_average():
    rng = np.random.default_rng(0)
    shares = [epsilon_squared(rng.integers(0, 6, 40).tolist(), rng.normal(size=40)) for _ in range(300)]
    assert np.mean(shares) < 0.06  # cut off at 0, else 0


def test_the_layer_that_matters_is_found():
    study = random_study(60)
    encoders = [result.layers for result in read_results(study)]
    values = np.array([float(layers[1].hidden_size) for layers in encoders])
    table = variance_shares(encoders, values)
    assert table["width"]["2"] == pytest.approx(1.0) and table["width"]["1"] < 0.3
    assert max(share for name, row in table.items() for share in row.values() if name != "width") < 0.6


def test_ticks_are_round_and_cover():
    for low, high in ((0, 1), (3, 3), (-5, 1e6), (0.001, 0.0011), (1e-9, 1e9), (0, 0)):
        marks, (left, right) = charts.ticks([low, high])
        assert left < low <= high < right and 1 <= len(marks) <= 6 and left <= marks[0] <= marks[-1] <= right
    marks, _ = charts.ticks([0, 3], whole=True)
    assert all(mark == int(mark) for mark in marks)


# --- colours ------------------------------------------------------------------------------------------------------


def luminance(color):
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    """Of the Web Content Accessibility Guidelines 2.1, success criterion 1.4.3."""
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_text_and_marks_stand_out_in_light_and_dark():
    style = TEMPLATE.read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    light, dark = (dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks)
    for colors in (light, {**light, **dark}):
        for ground in ("back", "card"):
            assert contrast(colors["text"], colors[ground]) >= 7
            assert contrast(colors["soft"], colors[ground]) >= 4.5
            for mark in ("trial", "best", "stopped"):
                assert contrast(colors[mark], colors[ground]) >= 3
        assert contrast(colors["on"], colors["trial"]) >= 4.5


# --- in a browser -------------------------------------------------------------------------------------------------

PROBE = """<script>
const head = document.querySelectorAll("th button")[1];  // the trial's number
const column = () => [...head.closest("table").tBodies[0].rows].map(row => Number(row.cells[1].dataset.value));
head.click(); const down = column(); head.click(); const up = column();
const style = getComputedStyle(document.body);
parent.postMessage(JSON.stringify({
  down, up, overflow: document.documentElement.scrollWidth - innerWidth, width: innerWidth,
  back: style.backgroundColor,
  small: Math.min(...[...document.querySelectorAll("svg text")].map(text => text.getBoundingClientRect().height)),
}), "*");
</script>"""

FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark"><body><script>
addEventListener("message", event => document.body.setAttribute("data-probe", event.data));
</script><iframe src="page.html" style="border: 0; height: 900px; width: {width}px"></iframe></body>"""
"""A window is never narrower than 500 pixels, a frame is as narrow as it is told to be."""


@pytest.mark.parametrize("scheme, back", [(1, "rgb(255, 255, 255)"), (0, "rgb(20, 23, 27)")], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_a_browser_lays_it_out(tmp_path, width, scheme, back):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed")
    (tmp_path / "page.html").write_text(page_of(searched()).replace("</body>", PROBE + "</body>"), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1600,1000", "--dump-dom",
            f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=5000", (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, encoding="utf-8",
    )  # fmt: skip
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr[-500:]
    probe = json.loads(found[1].replace("&quot;", '"'))
    assert probe["down"] == sorted(probe["down"], reverse=True) and probe["up"] == sorted(probe["up"])
    assert len(probe["up"]) == 40 and probe["width"] == width
    assert probe["overflow"] <= 0 and probe["small"] >= 10 and probe["back"] == back
