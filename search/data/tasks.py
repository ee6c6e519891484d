"""Tasks with labels to fine-tune on: GLUE (arXiv 1804.07461), a user's own data, and tasks made from text alone."""

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset

from ..errors import UserError
from ..metrics import GLUE_TASKS
from .corpus import Corpus, is_text, load_splits, set_aside, source_name
from .glue import GLUE_COLUMNS, GLUE_LABELS
from .synthetic_tasks import LABEL_NAMES, SELF_MADE_TASKS, TEXT_COLUMNS, make_splits


@dataclass(frozen=True)
class Task:
    """Texts with labels, to train on and to validate with.

    Attributes:
        train, validation: Hold the text columns and the label column, nothing else. Validation splits by name, usually
            only "validation"; MNLI has "validation_matched" and "validation_mismatched".
        text_columns: One, or two for pairs of texts.
        label_column: Class indices; numbers for regression; lists of zeros and ones, one a class, for many labels;
            lists of class indices, one a word, for token classification, whose text column holds lists of words;
            `{"text", "answer_start"}` for question answering.
        num_labels: Number of classes, 1 for regression.
        label_names: Of the classes, empty for regression.
        metric: Name for `metrics.compute`: a GLUE task or one of the kinds there.
        task_type: "classification", "regression", "multi_label", "token_classification" or "question_answering".
    """

    name: str
    train: Dataset
    validation: dict[str, Dataset]
    text_columns: tuple[str, ...]
    label_column: str
    num_labels: int
    label_names: tuple[str, ...]
    metric: str
    task_type: str = "classification"


def load_tasks(
    names: Sequence[str],
    corpus: Corpus | None,
    glue: str = "nyu-mll/glue",
    max_train_examples: int | None = None,
    seed: int = 0,
) -> list[Task]:
    """Loads tasks in the order of their names.

    Args:
        names: GLUE tasks, "glue" or "all" for the nine of them, "word_order" and "next_sentence", which are made from
            `corpus` (else None), or own data: a file, folder or Hub id, where needed with its columns as
            "path:text_column[+text_column]:label_column". Own labels may be words, whole numbers, or fractions, which
            make the task a regression; columns `question`, `context` and `answers` are question answering as in SQuAD.
            Of a single file a tenth of the examples is set aside for validation, by hash.
        glue: Hub id, or folder of the same layout.
        max_train_examples: Keeps that many training examples of each task, chosen by `seed`.

    Raises:
        UserError: A name is unknown or given twice, data cannot be read, or a split, column or label is wrong.
    """
    expanded = [task for name in names for task in (GLUE_TASKS if name in ("glue", "all") else (name,))]
    tasks = [_load_task(name, corpus, glue, max_train_examples, seed) for name in expanded]
    titles = [task.name for task in tasks]
    for title in titles:
        if titles.count(title) > 1:
            raise UserError(f"two tasks are called {title!r}; results need different names")
    return tasks


def _load_task(name: str, corpus: Corpus | None, glue: str, max_train_examples: int | None, seed: int) -> Task:
    if name in SELF_MADE_TASKS:
        if corpus is None:
            raise UserError(f"{name} is made from a corpus, and there is none")
        train, validation = make_splits(name, corpus, max_train_examples, seed)
        columns, labels = TEXT_COLUMNS[name], LABEL_NAMES[name]
        task = Task(name, train, {"validation": validation}, columns, "label", 2, labels, "classification")
    elif name in GLUE_TASKS:
        task = _glue_task(name, glue)
    elif "/" in name or ":" in name or Path(name).exists():
        task = _own_task(name)
    else:
        raise UserError(
            f"unknown task {name!r}; known are {', '.join((*GLUE_TASKS, 'all', *SELF_MADE_TASKS))}, and own data as "
            "path or Hub id, with columns as path:text[+text2]:label"
        )
    if max_train_examples is not None and len(task.train) > max_train_examples:
        rows = np.random.default_rng(seed).choice(len(task.train), max_train_examples, replace=False)
        task = replace(task, train=task.train.select(rows))
    return task


def _glue_task(name: str, glue: str) -> Task:
    columns, labels = GLUE_COLUMNS[name], GLUE_LABELS[name]
    splits = _select(load_splits(glue, name), columns, "label", name)
    num_labels = len(labels) or 1
    for split, dataset in splits.items():
        check_labels(dataset["label"][:], num_labels, f"{name}, {split}")
    kind = "classification" if labels else "regression"
    return Task(name, splits.pop("train"), splits, columns, "label", num_labels, labels, metric=name, task_type=kind)


def _own_task(name: str) -> Task:
    source, columns, label_column = _parse(name)
    title = re.sub(r"[^\w-]+", "_", source_name(source).rpartition("/")[2])
    loaded = load_splits(source)
    if not columns:
        columns, label_column = _guess_columns(next(iter(loaded.values())), name)
    one_file = Path(source).expanduser().is_file()
    if one_file:
        loaded = _set_aside(loaded["train"], columns, title)
    splits = _select(loaded, columns, label_column, title)
    label = splits["train"].features[label_column]
    if isinstance(label, dict):
        return Task(title, splits.pop("train"), splits, columns, label_column, 2, (), "squad", "question_answering")
    if getattr(label, "dtype", None) is None:  # lists
        raise UserError(f"{title}: column {label_column!r} holds {label}, not one label a row")
    if label.dtype.startswith("float"):
        for split, dataset in splits.items():
            check_labels(dataset[label_column][:], 1, f"{title}, {split}")
        return Task(title, splits.pop("train"), splits, columns, label_column, 1, (), "regression", "regression")
    splits, labels = _classes(splits, label_column, title, tuple(splits) if one_file else ("train",))
    return Task(title, splits.pop("train"), splits, columns, label_column, len(labels), labels, "classification")


def _parse(name: str) -> tuple[str, tuple[str, ...], str]:
    """Source, text columns and label column; no columns where the name gives none."""
    if ":" not in name or Path(name).exists():
        return name, (), ""
    source, *columns = name.rsplit(":", 2)
    texts = tuple(columns[0].split("+")) if len(columns) == 2 else ()
    if not 1 <= len(texts) <= 2 or not all((source, *texts, columns[1])) or len({*texts, columns[1]}) <= len(texts):
        raise UserError(f"task {name!r}: expected path, or path:text_column:label_column, or path:text+text2:label")
    return source, texts, columns[1]


def _set_aside(dataset: Dataset, columns: Sequence[str], title: str) -> dict[str, Dataset]:
    """Train and validation of a file, which has no splits."""
    check_columns(dataset, columns, title)
    train, validation = set_aside({row: repr(texts) for row, texts in enumerate(zip(*(dataset[c] for c in columns)))})
    if not train:
        raise UserError(f"{title}: all examples have the same text, but some are set aside for validation")
    return {"train": dataset.select(train), "validation": dataset.select(validation)}


def _guess_columns(dataset: Dataset, name: str) -> tuple[tuple[str, ...], str]:
    """Those of SQuAD if they are there, else "label" and all columns of text."""
    if {"question", "context", "answers"} <= set(dataset.column_names):
        return ("question", "context"), "answers"
    columns = tuple(c for c in dataset.column_names if c != "label" and is_text(dataset.features[c]))
    if not 1 <= len(columns) <= 2:
        raise UserError(
            f"task {name!r}: {len(columns)} columns hold text, where 1 or 2 are expected; name them as "
            f"{name}:text[+text2]:label, there are {', '.join(dataset.column_names)}"
        )
    return columns, "label"


def _select(splits: dict[str, Dataset], texts: Sequence[str], label: str, title: str) -> dict[str, Dataset]:
    """The training split and the validation splits, reduced to these columns."""
    wanted = {split: data for split, data in splits.items() if split == "train" or split.startswith("validation")}
    for needed in ("train", "validation"):
        if not any(split.startswith(needed) for split in wanted):
            raise UserError(
                f"{title}: no split {needed!r}, there is {', '.join(splits)}; accepted is a data set with the splits "
                "'train' and 'validation', or a folder with files called so"
            )
    for split, dataset in wanted.items():
        check_columns(dataset, (*texts, label), f"{title}, {split}")
        for column in texts:
            check_texts(dataset, column, f"{title}, {split}")
    return {split: dataset.select_columns([*texts, label]) for split, dataset in wanted.items()}


def _classes(
    splits: dict[str, Dataset], column: str, title: str, known: Sequence[str]
) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """Splits with class indices as labels, and the names of the classes, which are those of the splits `known`."""
    feature = splits["train"].features[column]
    if isinstance(feature, ClassLabel):
        values = range(len(feature.names))
    else:
        values = sorted({label for split in known for label in splits[split][column]} - {None})
    if len(values) < 2:
        raise UserError(f"{title}: column {column!r} of train holds fewer than two different labels")
    indices = {value: index for index, value in enumerate(values)}
    counted_from_0 = isinstance(feature, ClassLabel) or 0 in indices  # then a number below marks what has no label
    encoded = {}
    for split, dataset in splits.items():
        labels = dataset[column][:]
        for row, label in enumerate(labels):
            if label not in indices or (counted_from_0 and isinstance(label, int) and label < 0):
                known = textwrap.shorten(", ".join(str(value) for value in values if value not in (-1, "")), 200)
                raise UserError(f"{title}, {split}, row {row}: label {label!r}, accepted are {known}")
        encoded[split] = dataset.remove_columns(column).add_column(column, [indices[label] for label in labels])
    names = feature.names if isinstance(feature, ClassLabel) else values
    return encoded, tuple(map(str, names))


def check_columns(dataset: Dataset, columns: Iterable[str], place: str) -> None:
    """Raises UserError where a column is missing, or all rows are."""
    for column in columns:
        if column not in dataset.column_names:
            raise UserError(f"{place}: no column {column!r}, there are {', '.join(dataset.column_names)}")
    if len(dataset) == 0:
        raise UserError(f"{place}: no examples")


def check_texts(dataset: Dataset, column: str, place: str) -> None:
    """Raises UserError at the first row without a text."""
    if not is_text(dataset.features[column]):
        raise UserError(f"{place}: column {column!r} holds {dataset.features[column]}, not text")
    texts = dataset[column][:]
    if None in texts:
        raise UserError(f"{place}, row {texts.index(None)}: column {column!r} holds no text")


def check_labels(labels: Iterable, num_labels: int, place: str) -> None:
    """Raises UserError at the first label that is no class, or for regression no number."""
    accepted = f"whole numbers from 0 to {num_labels - 1}" if num_labels > 1 else "finite numbers"
    for row, label in enumerate(labels):
        if num_labels > 1:
            good = isinstance(label, int) and 0 <= label < num_labels
        else:
            good = isinstance(label, (int, float)) and math.isfinite(label)
        if not good:
            raise UserError(f"{place}, row {row}: label {label!r}, accepted are {accepted}")
