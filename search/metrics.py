"""How well a task is done: metrics of predictions, the one number of a task, and averages named for what they are.

Values are shares of 1. The GLUE metrics and their names are those of the Hub's `glue` metric (GLUE: arXiv 1804.07461),
computed with scikit-learn and scipy, so that they work offline; `glue_metric.py` offers them through `evaluate`.
Where a metric is not defined because all predictions (or all labels) are the same, it is 0 and a warning, never NaN.

This module imports nothing but `errors` from its package, because `evaluate` copies it beside `glue_metric.py`.
"""

import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqeval.metrics
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from .errors import UserError


GLUE_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


def matthews(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Matthews' correlation of classes, in -1..1."""
    if is_constant(predictions, labels):
        return undefined("matthews_correlation")
    return {"matthews_correlation": float(matthews_corrcoef(labels, predictions))}


def correlations(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation of numbers, in -1..1."""
    if is_constant(predictions, labels):
        return undefined("pearson", "spearmanr")
    pearson, spearman = pearsonr(predictions, labels)[0], spearmanr(predictions, labels)[0]
    return {"pearson": float(pearson), "spearmanr": float(spearman)}


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {"accuracy": float(accuracy_score(labels, predictions))}


def accuracy_and_f1(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, and F1 of class 1 of two; F1 is 0 where class 1 is never predicted."""
    return accuracy(predictions, labels) | {"f1": float(f1_score(labels, predictions, zero_division=0))}


def accuracy_and_macro_f1(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, and the mean over classes of F1; a class that is never predicted has 0."""
    f1 = f1_score(labels, predictions, average="macro", zero_division=0)
    return accuracy(predictions, labels) | {"f1": float(f1)}


def micro_and_macro_f1(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of any number of classes a text, (N, C) zeros and ones: F1 over all decisions, the mean over classes of F1, and
    the share of texts whose classes are all right."""
    micro, macro = (f1_score(labels, predictions, average=average, zero_division=0) for average in ("micro", "macro"))
    return {"f1_micro": float(micro), "f1_macro": float(macro)} | accuracy(predictions, labels)


OUTSIDE = "O"
"""The tag of words that belong to no entity."""


def is_entity_tags(names: Sequence[str]) -> bool:
    """Whether tags are those of entities ("B-PER", "I-PER", "O"), and not classes of single words ("NOUN")."""
    return all(name == OUTSIDE or re.match("[BILESU]-.", name) for name in names)


def entities(predictions: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities as of CoNLL 2003 (arXiv cs/0306050), and accuracy of tags.

    Args:
        predictions, labels: Tags of words ("B-PER", "I-PER", "O"), a list a sentence.
    """
    measures = {"precision": seqeval.metrics.precision_score, "recall": seqeval.metrics.recall_score}
    measures |= {"f1": seqeval.metrics.f1_score}
    values = {name: float(measure(labels, predictions, zero_division=0)) for name, measure in measures.items()}
    return values | {"accuracy": float(seqeval.metrics.accuracy_score(labels, predictions))}


def word_classes(predictions: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """Accuracy, and the mean over classes of F1, of words that have a class each."""
    return accuracy_and_macro_f1(*(np.array([tag for row in rows for tag in row]) for rows in (predictions, labels)))


def is_constant(*arrays: np.ndarray) -> bool:
    return any(np.ptp(array) == 0 for array in arrays)


def undefined(*names: str) -> dict[str, float]:
    message = f"{' and '.join(names)} of constant predictions or labels: not defined, counted as 0"
    warnings.warn(message, RuntimeWarning, stacklevel=4)
    return dict.fromkeys(names, 0.0)


def exact_match_and_f1(predictions: Sequence[str], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """SQuAD's measures (arXiv 1606.05250, Section 6.1), the best over the accepted answers of each question.

    Args:
        predictions: One answer per question, "" for none.
        labels: The accepted answers per question; no answers at all means that "" is right.
    """
    pairs = [(words(given), [words(text) for text in texts or ("",)]) for given, texts in zip(predictions, labels)]
    exact = [max(given == answer for answer in answers) for given, answers in pairs]
    overlap = [max(word_f1(given, answer) for answer in answers) for given, answers in pairs]
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def word_f1(given: list[str], answer: list[str]) -> float:
    if not given or not answer:
        return float(given == answer)
    common = sum((Counter(given) & Counter(answer)).values())
    return 2 * common / (len(given) + len(answer))


METRICS: dict[str, Callable[..., dict[str, float]]] = {
    "cola": matthews,
    "sst2": accuracy,
    "mrpc": accuracy_and_f1,
    "stsb": correlations,
    "qqp": accuracy_and_f1,
    "mnli": accuracy,
    "mnli_matched": accuracy,
    "mnli_mismatched": accuracy,
    "qnli": accuracy,
    "rte": accuracy,
    "wnli": accuracy,
    "hans": accuracy,
    "classification": accuracy_and_macro_f1,
    "regression": correlations,
    "multi_label": micro_and_macro_f1,
    "entities": entities,
    "word_classes": word_classes,
    "squad": exact_match_and_f1,
}
"""Name of a metric -> function of (predictions, labels). The GLUE names first."""

OF_LISTS = ("entities", "word_classes", "squad")
"""Metrics of lists of texts, not of arrays of numbers."""


def compute(metric: str, predictions, labels) -> dict[str, float]:
    """All values of a metric.

    Args:
        metric: A name of `METRICS`.
        predictions: (N,) class indices, or numbers for "stsb" and "regression"; (N, C) zeros and ones for
            "multi_label"; lists of tags for "entities" and "word_classes"; answers for "squad".
        labels: (N,) of the same kind; for "squad" a list of accepted answers per question.

    Raises:
        UserError: No such metric, nothing to score, or another number of labels than of predictions.
    """
    if metric not in METRICS:
        raise UserError(f"unknown metric {metric!r}, accepted are {', '.join(METRICS)}")
    if len(predictions) != len(labels) or len(labels) == 0:
        raise UserError(f"{metric}: {len(predictions)} predictions for {len(labels)} labels")
    if metric not in OF_LISTS:
        predictions, labels = np.asarray(predictions), np.asarray(labels)
    return METRICS[metric](predictions, labels)


PRIMARY = {
    "cola": ("matthews_correlation",),
    "stsb": ("pearson", "spearmanr"),
    "regression": ("pearson", "spearmanr"),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "multi_label": ("f1_micro",),
    "entities": ("f1",),
    "squad": ("f1",),
}
"""Metric -> the values that make the one number of a task; accuracy for those not named here."""


def primary_values(metric: str, values: Mapping[str, float]) -> list[float]:
    """The values behind a task's one number; of each validation split where a task has several (MNLI)."""
    names = PRIMARY.get(metric, ("accuracy",))
    return [value for key, value in values.items() if key.startswith(names)]


def primary(metric: str, values: Mapping[str, float]) -> float:
    """The one number of a task, by GLUE's convention: where there are several values, their unweighted mean.

    That is Matthews' correlation for CoLA, the mean of Pearson and Spearman for STS-B, of accuracy and F1 for MRPC and
    QQP, of matched and mismatched accuracy for MNLI, and accuracy for the rest; F1 for question answering and
    entities, and micro F1 for many labels.
    """
    return float(np.mean(primary_values(metric, values)))


def highest(metric: str, values: Mapping[str, float]) -> float:
    """The higher value of each pair, and the mismatched accuracy for MNLI, as the code of FlexiBERT has it."""
    if metric == "mnli" and "accuracy_mismatched" in values:
        return values["accuracy_mismatched"]
    return max(primary_values(metric, values))


RULES = {
    "mean_of_8": (tuple(task for task in GLUE_TASKS if task != "wnli"), primary),
    "mean_of_9": (GLUE_TASKS, primary),
    "flexibert": (GLUE_TASKS, highest),
}
"""Name of an average -> (the tasks that it needs, the number of each)."""


def average(scores: Mapping[str, Mapping[str, float]], rule: str = "mean_of_8") -> float | None:
    """The average over GLUE, or None when a task is missing.

    "mean_of_8", the default and the customary one, leaves out WNLI, whose validation set contradicts its training set.
    "mean_of_9" has it in. Both take the `primary` number of each task. "flexibert" is the rule behind the FlexiBERT
    paper's numbers: nine tasks, the higher of each pair of metrics, and MNLI's mismatched half only; it is never lower
    than "mean_of_9" but for MNLI, and no other paper's average may be compared with it.

    Args:
        scores: GLUE task -> its values as `compute` names them, "accuracy_matched" and "accuracy_mismatched" for MNLI.
        rule: A name of `RULES`.

    Raises:
        UserError: No such rule.
    """
    if rule not in RULES:
        raise UserError(f"unknown average {rule!r}, accepted are {', '.join(RULES)}")
    tasks, number = RULES[rule]
    if any(task not in scores for task in tasks):
        return None
    return float(np.mean([number(task, scores[task]) for task in tasks]))
