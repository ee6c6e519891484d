"""Reports and summaries of studies, on fabricated ones."""

import json
import math
import random

import matplotlib.image
import numpy as np
import optuna
import pytest
from conftest import SPECS, layer, op
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from flexibert.spec import fingerprint, parse_layers
from search.artifacts import describe, plots
from search.artifacts.report import summarise, write_report
from search.errors import UserError
from search.study.results import front, pareto_mask, read_results


pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # set_metric_names

OPERATIONS = [
    op("self_attention", 2),
    op("self_attention", 2, similarity="weighted_multiplicative"),
    op("linear_transform", 2, transform="cosine"),
    op("dynamic_convolution", 2, kernel_size=5),
    op("attention_graph", 2, nodes=["a = transpose(k)", "b = matmul(q, a)", "c = softmax(b)", "d = matmul(c, v)"]),
]


def random_layers(rng):
    return [
        layer(rng.choice([64, 128]), rng.choice(OPERATIONS), rng.choice(OPERATIONS)) for _ in range(rng.choice([2, 4]))
    ]


def complete(values, layers=None, metrics=None, **attributes):
    """A completed trial of a search."""
    layers = SPECS["homogeneous"] if layers is None else layers
    values = [values] if isinstance(values, (int, float)) else list(values)
    metrics = {"score_percent": values[0], "parameters": 1_000_000} if metrics is None else metrics
    name = fingerprint(parse_layers(layers))
    return create_trial(
        values=values, user_attrs={"layers": layers, "fingerprint": name, "metrics": metrics, **attributes}
    )


def failed(reason=None):
    return create_trial(state=TrialState.FAIL, user_attrs={} if reason is None else {"failure": reason})


def make_study(*trials, directions=("maximize",)):
    study = optuna.create_study(directions=list(directions), study_name="demo")
    study.add_trials(trials)
    return study


def random_study(size, seed=0):
    rng = random.Random(seed)
    trials = []
    for index in range(size):
        score = rng.uniform(40, 80)
        metrics = {"score_percent": score, "parameters": rng.randrange(10**6, 10**7), "latency_ms": rng.uniform(1, 9)}
        prediction = {"mean": score + rng.gauss(0, 2), "standard_deviation": 2.0} if index > 3 else None
        attributes = {"prediction": prediction} if prediction else {}
        trials.append(complete(score, random_layers(rng), metrics, **attributes))
    return make_study(*trials)


@pytest.fixture
def small_pictures(monkeypatch):
    """Drawn in a fraction of the time."""
    monkeypatch.setitem(plots.STYLE, "figure.dpi", 30)


def report_text(study, folder):
    write_report(study, folder)
    return (folder / "report.md").read_text(encoding="utf-8")


def test_report_of_a_full_study(tmp_path):
    study = random_study(15)
    files = write_report(study, tmp_path / "report")
    names = ["report.md", "best_so_far.png", "pareto.png", "operations.png", "predictions.png"]
    assert [file.name for file in files] == names
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == sorted(names)
    for file in files[1:]:
        pixels = matplotlib.image.imread(file)
        assert pixels.shape[0] > 400 and pixels.std() > 0.05
    text = files[0].read_text(encoding="utf-8")
    best = study.best_trial
    assert f"## Best architecture: trial {best.number}, `{best.user_attrs['fingerprint']}`" in text
    assert describe.layer_table(parse_layers(best.user_attrs["layers"])) in text
    assert f"| 1 | {best.number} | {best.value:.4g} |" in text
    assert all(f"({name})" in text for name in names[1:])


def test_trials_are_ranked_and_repeats_left_out(tmp_path, small_pictures):
    study = make_study(complete(50.0), complete(70.0), complete(60.0), complete(70.0, duplicate_of=1))
    text = report_text(study, tmp_path)
    assert [result.number for result in read_results(study)] == [0, 1, 2]
    rows = [line for line in text.split("## All trials, best first")[1].splitlines() if line.startswith("| ")][2:5]
    assert [row.split(" | ")[1] for row in rows] == ["1", "2", "0"]
    assert "Trials: 3 completed, 1 repeated." in text
    assert "| 3 | repeats trial 1 |" in text
    assert summarise(study)["best"]["number"] == 1


def test_failures_are_counted_and_explained(tmp_path, small_pictures):
    reason = "loss is nan at step 120\nand a | pipe, a <tag>"
    study = make_study(failed(reason), complete(50.0), failed())
    text = report_text(study, tmp_path)
    assert "Trials: 1 completed, 2 failed." in text
    assert "| 0 | loss is nan at step 120 and a \\| pipe, a &lt;tag> |" in text
    assert "| 2 | failed without a reason" in text


STUDIES = {
    "empty": [],
    "all failed": [failed("diverged"), failed()],
    "one": [complete(50.0)],
    "two": [complete(50.0), complete(51.0)],
    "constant": [complete(50.0)] * 5,
    "infinite": [complete(math.inf), complete(50.0)],
    "only infinite": [complete(-math.inf)],
    "without metrics": [complete(50.0, metrics={})] * 3,
    "metrics not a number": [complete(50.0, metrics={"parameters": math.nan, "latency_ms": math.inf})] * 2,
    "prediction not a number": [complete(50.0, prediction={"mean": math.nan, "standard_deviation": 1.0})] * 2,
    "prediction without doubt": [complete(50.0, prediction={"mean": 50.0, "standard_deviation": 0.0})],
    "many layers": [complete(50.0, SPECS["homogeneous"] * 20)],
    "failed last": [complete(50.0), failed()],
}


@pytest.mark.parametrize("name", STUDIES)
def test_odd_studies(name, tmp_path, small_pictures):
    study = make_study(*STUDIES[name])
    files = write_report(study, tmp_path)
    json.dumps(summarise(study), allow_nan=False)
    usable = [trial for trial in STUDIES[name] if trial.state == TrialState.COMPLETE and math.isfinite(trial.value)]
    assert (len(files) > 1) == bool(usable)
    assert (summarise(study)["best"] is None) == (not usable)
    assert ("there is nothing to rank yet" in files[0].read_text(encoding="utf-8")) == (not usable)


def test_infinite_score_is_named(tmp_path, small_pictures):
    assert "| 0 | value inf is not finite |" in report_text(make_study(*STUDIES["infinite"]), tmp_path)


def test_stale_pictures_go(tmp_path, small_pictures):
    write_report(random_study(8), tmp_path)
    assert (tmp_path / "predictions.png").exists()
    write_report(make_study(complete(50.0)), tmp_path)
    assert not (tmp_path / "predictions.png").exists() and (tmp_path / "best_so_far.png").exists()
    write_report(make_study(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_study_of_something_else(tmp_path):
    with pytest.raises(UserError, match="trial 0 of the study holds no architecture"):
        write_report(make_study(create_trial(value=1.0)), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_beliefs_in_numbers(tmp_path, small_pictures):
    beliefs = [(50.0, 51.0, 2.0), (60.0, 63.0, 2.0), (70.0, 80.0, 2.0), (80.0, 80.0, 2.0)]  # score, mean, deviation
    trials = [
        complete(score, prediction={"mean": mean, "standard_deviation": deviation})
        for score, mean, deviation in beliefs
    ]
    text = report_text(make_study(*trials, complete(99.0)), tmp_path)
    assert "predicted 4 scores before their trials, with a mean absolute error of 3.5." in text
    assert "50% of them lay within one standard deviation and 75% within two" in text
    assert "Rank correlation (Spearman): 0.95." in text


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@given(points)
def test_pareto_mask_is_the_front(pairs):
    scores = np.array([score for score, _ in pairs], dtype=float)
    costs = np.array([cost for _, cost in pairs], dtype=float)
    mask = pareto_mask(scores, costs)

    def beaten(i):
        return any(
            scores[j] >= scores[i] and costs[j] <= costs[i] and (scores[j] > scores[i] or costs[j] < costs[i])
            for j in range(len(pairs))
        )

    assert {pairs[i] for i in np.flatnonzero(mask)} == {pairs[i] for i in range(len(pairs)) if not beaten(i)}
    assert len({pairs[i] for i in np.flatnonzero(mask)}) == mask.sum()


def test_pareto_mask_without_cost():
    scores, costs = np.array([9.0, 1.0, 2.0]), np.array([math.nan, 5.0, 4.0])
    assert pareto_mask(scores, costs).tolist() == [False, False, True]


def test_front_of_one_objective_sets_score_against_parameters():
    sizes = {50.0: 10, 60.0: 30, 55.0: 40, 70.0: 50}
    study = make_study(*(complete(score, metrics={"parameters": size}) for score, size in sizes.items()))
    assert [result.score for result in front(study, read_results(study))] == [70.0, 60.0, 50.0]
    members = summarise(study)["front"]
    assert [(member["score_percent"], member["parameters"]) for member in members] == [
        (70.0, 50),
        (60.0, 30),
        (50.0, 10),
    ]


def test_front_of_two_objectives_is_optunas(tmp_path, small_pictures):
    values = [(50.0, 3.0), (60.0, 5.0), (55.0, 6.0), (70.0, 9.0), (40.0, 2.0), (39.0, 2.5)]
    study = make_study(
        *map(complete, values), complete(values[3], duplicate_of=3), directions=("maximize", "minimize")
    )
    study.set_metric_names(["score_percent", "latency_ms"])
    numbers = [result.number for result in front(study, read_results(study))]
    assert numbers == [3, 1, 0, 4]
    assert set(numbers) == {trial.number for trial in study.best_trials} - {6}
    assert "each of these and better in one: score (%), latency (ms)." in report_text(study, tmp_path)
    assert summarise(study)["objectives"] == ["score_percent", "latency_ms"]


def test_less_can_be_better(tmp_path, small_pictures):
    study = make_study(complete(3.0), complete(2.0), complete(4.0), directions=("minimize",))
    study.set_metric_names(["mlm_loss_nats"])
    assert "trial 1," in report_text(study, tmp_path)
    assert summarise(study)["best"]["mlm_loss_nats"] == 2.0
    line = plots.best_so_far([0, 1, 2], np.array([3.0, 2.0, 4.0]), [], "loss", -1).axes[0].lines[0]
    assert line.get_ydata().tolist() == [3.0, 2.0, 2.0, 2.0]


def test_share_of_heads():
    encoders = [
        parse_layers(
            [layer(64, op("self_attention", 1), op("linear_transform", 3)), layer(64, op("self_attention", 4))]
        ),
        parse_layers([layer(64, op("linear_transform", 2))]),
    ]
    axes = plots.operations(encoders, "title").axes[0]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers}
    assert heights == {"self-attention (scaled dot product)": [0.125, 1.0], "Fourier transform": [0.875, 0.0]}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1\nn=2", "2\nn=1"]


def test_operations_have_colours_of_their_own():
    groups = [operation for layers in SPECS.values() for spec in parse_layers(layers) for operation in spec.operations]
    colors = plots._operation_colors(groups)
    assert set(colors) == {group.name for group in groups}
    assert len(set(colors.values())) == len(colors)


def test_summary_holds_the_run():
    study = random_study(6)
    summary = json.loads(json.dumps(summarise(study), allow_nan=False))
    best = study.best_trial
    assert parse_layers(summary["best"]["layers"]) == parse_layers(best.user_attrs["layers"])
    assert summary["best"]["metrics"] == best.user_attrs["metrics"]
    assert summary["trials"]["completed"] == 6
    assert summary["environment"]["versions"]["optuna"] == optuna.__version__
    assert best.number in [member["number"] for member in summary["front"]]


def test_words():
    assert describe.label("mlm_loss_nats") == "mlm loss (nats)"
    assert describe.label("cola_matthews_correlation_percent") == "cola matthews correlation (%)"
    assert describe.label("tokens_per_second") == "tokens/s"
    assert describe.label("parameters") == "parameters"
    assert [describe.number(value) for value in (1234567, 71.23456, 41234.5, 5e-5, None, math.nan, True, "x")] == [
        "1,234,567", "71.23", "41,234", "5e-05", "–", "–", "True", "x",
    ]  # fmt: skip
    assert describe.escape("a|b\n<i> \\ c") == "a\\|b &lt;i> \\\\ c"


def test_layer_table():
    layers = parse_layers([*SPECS["homogeneous"], *SPECS["mixed_heads"][:1]])
    assert describe.layer_table(layers).splitlines()[2:] == [
        "| 1 to 2 | 32 | 4 × self-attention (scaled dot product) | 8 | 48 |",
        "| 3 | 32 | 1 × self-attention (scaled dot product); 1 × self-attention (weighted multiplicative); "
        "1 × cosine transform; 1 × dynamic convolution (kernel 5) | 8 | 64 → 48 → 40 |",
    ]
    assert describe.widths(parse_layers(SPECS["widening"])) == "16, 32, 48"
    assert describe.widths(layers) == "3 × 32"
    group = parse_layers([layer(32, op("linear_transform", 4, source="layer", mix_padding=True))])[0].operations[0]
    assert describe.head_group(group) == "4 × Fourier transform, source layer, mix padding true"


def test_graphs_are_printed():
    text = describe.graph_lines(parse_layers(SPECS["graph"]))
    assert text.startswith("Layer 1, 4 heads:\n\n```text\nt0 = neg(k)\n")
    assert text.count("```text") == 3
    assert describe.graph_lines(parse_layers(SPECS["homogeneous"])) == ""
