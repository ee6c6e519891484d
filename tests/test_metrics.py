"""Metrics against formulas written out here, against the Hub's script where it is at hand, and the averages' rules."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.errors import UserError
from search.metrics import GLUE_TASKS, METRICS, OF_LISTS, RULES, average, compute, primary


GLUE_METRIC = Path(__file__).resolve().parents[1] / "search" / "glue_metric.py"

classes = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40)
numbers = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=40)


def confusion(predictions, labels):
    pairs = list(zip(predictions, labels))
    return [pairs.count(pair) for pair in ((1, 1), (0, 0), (1, 0), (0, 1))]  # TP, TN, FP, FN


def ranks(values):
    """Ranks from 0, ties sharing the mean of theirs."""
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]


@given(classes)
@settings(deadline=None)
def test_matthews_and_f1_are_the_formulas_of_the_confusion_matrix(pairs):
    predictions, labels = map(list, zip(*pairs))
    tp, tn, fp, fn = confusion(predictions, labels)
    denominator = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        matthews = compute("cola", predictions, labels)["matthews_correlation"]
    assert matthews == pytest.approx((tp * tn - fp * fn) / denominator if denominator else 0.0, abs=1e-12)
    values = compute("mrpc", predictions, labels)
    assert values["accuracy"] == pytest.approx((tp + tn) / len(pairs))
    assert values["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp else 0.0)


@given(numbers)
@settings(deadline=None)
def test_correlations_are_those_of_values_and_of_ranks(pairs):
    predictions, labels = map(list, zip(*pairs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        values = compute("stsb", predictions, labels)
    if len(set(predictions)) == 1 or len(set(labels)) == 1:
        assert values == {"pearson": 0.0, "spearmanr": 0.0}
    else:
        assert values["pearson"] == pytest.approx(np.corrcoef(predictions, labels)[0, 1], abs=1e-9)
        assert values["spearmanr"] == pytest.approx(np.corrcoef(ranks(predictions), ranks(labels))[0, 1], abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "predictions", "labels"),
    [("cola", [0, 0, 0], [0, 1, 0]), ("stsb", [2.5, 2.5, 2.5], [0.0, 1.0, 5.0]), ("regression", [1.0, 2.0], [3, 3])],
)
def test_constant_predictions_count_as_zero_with_a_warning(metric, predictions, labels):
    with pytest.warns(RuntimeWarning, match="constant predictions or labels"):
        values = compute(metric, predictions, labels)
    assert set(values.values()) == {0.0}


def test_classes_never_predicted_have_f1_zero_without_noise():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute("qqp", [0, 0, 0, 0], [0, 1, 0, 0]) == {"accuracy": 0.75, "f1": 0.0}
        values = compute("classification", [0, 0, 2, 2], [0, 1, 2, 2])
    assert values == {"accuracy": 0.75, "f1": pytest.approx((2 / 3 + 0 + 1) / 3)}


@pytest.mark.parametrize(
    ("given", "accepted", "exact", "f1"),
    [
        ("The Broncos!", ["broncos"], 1, 1),
        ("Denver Broncos", ["Carolina Panthers", "the Denver Broncos"], 1, 1),
        ("in Denver", ["Denver"], 0, 2 / 3),
        ("red red blue", ["red green"], 0, 2 / 5),
        ("Denver", [], 0, 0),
        ("", [], 1, 1),
        ("", ["Denver"], 0, 0),
        ("theatre", ["the atre"], 0, 0),
    ],
)
def test_answers_are_compared_as_squad_does(given, accepted, exact, f1):
    assert compute("squad", [given], [accepted]) == {"exact_match": exact, "f1": pytest.approx(f1)}


@pytest.mark.parametrize(
    ("metric", "predictions", "labels", "message"),
    [
        ("bleu", [1], [1], "unknown metric 'bleu', accepted are cola"),
        ("cola", [], [], "0 predictions for 0 labels"),
        ("cola", [1, 0], [1], "2 predictions for 1 labels"),
    ],
)
def test_what_cannot_be_scored_says_so(metric, predictions, labels, message):
    with pytest.raises(UserError, match=message):
        compute(metric, predictions, labels)


def test_primary_is_the_mean_where_glue_has_two_values():
    assert primary("cola", {"matthews_correlation": 0.4}) == 0.4
    assert primary("sst2", {"accuracy": 0.9}) == 0.9
    assert primary("mrpc", {"accuracy": 0.8, "f1": 0.9}) == pytest.approx(0.85)
    assert primary("stsb", {"pearson": 0.7, "spearmanr": 0.6}) == pytest.approx(0.65)
    assert primary("mnli", {"accuracy_matched": 0.7, "accuracy_mismatched": 0.8}) == pytest.approx(0.75)
    assert primary("mnli", {"accuracy": 0.7}) == 0.7
    assert primary("classification", {"accuracy": 0.7, "f1": 0.2}) == 0.7
    assert primary("squad", {"exact_match": 0.3, "f1": 0.5}) == 0.5


def glue_scores():
    return {
        "cola": {"matthews_correlation": 0.2},
        "sst2": {"accuracy": 0.9},
        "mrpc": {"accuracy": 0.7, "f1": 0.8},
        "stsb": {"pearson": 0.8, "spearmanr": 0.7},
        "qqp": {"accuracy": 0.9, "f1": 0.8},
        "mnli": {"accuracy_matched": 0.7, "accuracy_mismatched": 0.8},
        "qnli": {"accuracy": 0.8},
        "rte": {"accuracy": 0.6},
        "wnli": {"accuracy": 0.5},
    }


def test_averages_are_what_their_names_say():
    scores = glue_scores()
    eight = 0.2 + 0.9 + 0.75 + 0.75 + 0.85 + 0.75 + 0.8 + 0.6
    assert average(scores) == average(scores, "mean_of_8") == pytest.approx(eight / 8)
    assert average(scores, "mean_of_9") == pytest.approx((eight + 0.5) / 9)
    higher = 0.2 + 0.9 + 0.8 + 0.8 + 0.9 + 0.8 + 0.8 + 0.6 + 0.5
    assert average(scores, "flexibert") == pytest.approx(higher / 9)


def test_flexibert_rule_gives_the_papers_average_from_its_numbers():
    """FlexiBERT-Mini, 72.9 in the paper (arXiv 2205.11656, Table 3)."""
    tasks = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
    numbers = (23.8, 76.1, 82.4, 87.1, 88.7, 69.0, 81.0, 78.9, 69.3)
    names = {"cola": "matthews_correlation", "mnli": "accuracy_mismatched", "stsb": "pearson"}
    scores = {task: {names.get(task, "accuracy"): number / 100} for task, number in zip(tasks, numbers)}
    scores["mnli"]["accuracy_matched"] = 0.9  # does not count
    scores["qqp"]["f1"] = scores["mrpc"]["f1"] = 0.5  # lower, does not count
    assert round(100 * average(scores, "flexibert"), 1) == 72.9


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_averages_need_all_their_tasks(task):
    scores = glue_scores()
    del scores[task]
    assert (average(scores) is None) == (task != "wnli")
    assert average(scores, "mean_of_9") is average(scores, "flexibert") is None


def test_unknown_average():
    with pytest.raises(UserError, match="unknown average 'mean', accepted are mean_of_8, mean_of_9, flexibert"):
        average(glue_scores(), "mean")
    assert set(RULES) == {"mean_of_8", "mean_of_9", "flexibert"}


SCRIPT = """
import json, sys, evaluate, warnings
warnings.simplefilter("ignore")
path, cases = sys.argv[1], json.loads(sys.argv[2])
print(json.dumps([evaluate.load(path, name).compute(predictions=p, references=r) for name, p, r in cases]))
try:
    evaluate.load(path, "squad")
except ValueError as error:
    print(error)
"""


def test_evaluate_loads_the_metric_offline_and_without_the_package(tmp_path):
    """By the path of the file alone, in a process that has neither the package nor a network nor a cache."""
    random = np.random.default_rng(0)
    cases = []
    for name in METRICS:
        if name in ("stsb", "regression"):
            cases.append([name, *random.normal(size=(2, 20)).astype(np.float32).tolist()])
        elif name not in (*OF_LISTS, "multi_label"):
            cases.append([name, *random.integers(0, 2, size=(2, 20)).tolist()])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(GLUE_METRIC), json.dumps(cases)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    values, error = result.stdout.splitlines()
    assert json.loads(values) == [pytest.approx(compute(*case)) for case in cases]
    assert error.startswith("unknown configuration 'squad', accepted are cola")


@pytest.mark.slow
def test_values_agree_with_the_hubs_metric():
    import evaluate

    try:
        metrics = {name: evaluate.load("glue", name) for name in ("cola", "stsb", "mrpc", "mnli")}
    except (FileNotFoundError, ConnectionError, OSError):
        pytest.skip("the Hub's glue script is not in the cache")
    random = np.random.default_rng(1)
    for name, metric in metrics.items():
        shape = (2, 50)
        pair = random.normal(size=shape) if name == "stsb" else random.integers(0, 3 if name == "mnli" else 2, shape)
        assert metric.compute(predictions=pair[0], references=pair[1]) == pytest.approx(compute(name, *pair))
