"""Tasks with labels to fine-tune on: GLUE (arXiv 1804.07461), a user's own data, and tasks made from text alone."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..errors import UserError
from ..metrics import GLUE_TASKS
from .columns import guess, named
from .corpus import Corpus, set_aside
from .documents import is_text
from .glue import GLUE_COLUMNS, GLUE_LABELS
from .labels import read_labels
from .sources import Source, load_source, source_name
from .synthetic_tasks import LABEL_NAMES, SELF_MADE_TASKS, TEXT_COLUMNS, make_splits


@dataclass(frozen=True)
class OwnData:
    """How one's own data are read.

    Attributes:
        task_type: "classification" or "regression", where the labels are numbers and could be either.
        validation: Another source, to validate with.
        encoding: Of text files, by default UTF-8.
        config: Of data that have several configurations.
    """

    task_type: str | None = None
    validation: str | None = None
    encoding: str | None = None
    config: str | None = None


@dataclass(frozen=True)
class Task:
    """Texts with labels, to train on and to validate with.

    Attributes:
        name: Of the results. One's own data never have the name of a task that everybody knows.
        train, validation: Hold the text columns and the label column, nothing else. Validation splits by name, usually
            only "validation"; MNLI has "validation_matched" and "validation_mismatched".
        text_columns: One, or two for pairs of texts; one of lists of words where each word has a class.
        label_column: Class indices; numbers for regression; lists of 0 and 1 for several classes; lists of class
            indices for words; `{"text", "answer_start"}` for question answering.
        num_labels: Number of classes, 1 for regression.
        label_names: Of the classes, empty for regression.
        metric: Name for `metrics.compute`: a GLUE task, "classification", "regression", "multi_label", "entities",
            "word_classes" or "squad".
        task_type: "classification", "regression", "multi_label", "token_classification" or "question_answering".
        hub_dataset, config: The data set on the Hub and its configuration, where the data came from there.
        columns: What of the data is used and why it makes a task of this type, in words; empty for known tasks.
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
    hub_dataset: str = ""
    config: str | None = None
    columns: str = ""


def load_tasks(
    names: Sequence[str],
    corpus: Corpus | None,
    glue: str = "nyu-mll/glue",
    max_train_examples: int | None = None,
    seed: int = 0,
    options: OwnData = OwnData(),
) -> list[Task]:
    """Loads tasks in the order of their names.

    Args:
        names: GLUE tasks, "glue" or "all" for the nine of them, "word_order" and "next_sentence", which are made from
            `corpus` (else None), or own data: what `load_source` reads, where needed with its columns as
            "path:text_column[+text_column]:label_column[+label_column...]"; else `columns.py` says which are used.
            What the labels are, `labels.py` decides. Of a single file a tenth of the examples is set aside for
            validation, by hash.
        glue: Hub id, or folder of the same layout.
        max_train_examples: Keeps that many training examples of each task, chosen by `seed`.
        options: How own data are read.

    Raises:
        UserError: A name is unknown or given twice, data cannot be read, or a split, column or label is wrong.
    """
    expanded = [task for name in names for task in (GLUE_TASKS if name in ("glue", "all") else (name,))]
    own = [name for name in expanded if name not in GLUE_TASKS and name not in SELF_MADE_TASKS]
    if options.validation is not None and len(own) != 1:
        raise UserError(f"--validation belongs to one task of one's own, there are {len(own)}")
    tasks = [_load_task(name, corpus, glue, max_train_examples, seed, options) for name in expanded]
    titles = [task.name for task in tasks]
    for title in titles:
        if titles.count(title) > 1:
            raise UserError(f"two tasks are called {title!r}; results need different names")
    return tasks


def _load_task(name, corpus: Corpus | None, glue: str, most: int | None, seed: int, options: OwnData) -> Task:
    if name in SELF_MADE_TASKS:
        if corpus is None:
            raise UserError(f"{name} is made from a corpus, and there is none")
        train, validation = make_splits(name, corpus, most, seed)
        columns, labels = TEXT_COLUMNS[name], LABEL_NAMES[name]
        task = Task(name, train, {"validation": validation}, columns, "label", 2, labels, "classification")
    elif name in GLUE_TASKS:
        task = _glue_task(name, glue)
    elif "/" in name or ":" in name or any(mark in name for mark in "*?[") or Path(name).expanduser().exists():
        task = _own_task(name, options)
    else:
        raise UserError(
            f"unknown task {name!r}; known are {', '.join((*GLUE_TASKS, 'all', *SELF_MADE_TASKS))}, and own data as "
            "path or Hub id, with columns as path:text[+text2]:label"
        )
    if most is not None and len(task.train) > most:
        rows = np.random.default_rng(seed).choice(len(task.train), most, replace=False)
        task = replace(task, train=task.train.select(rows))
    return task


def _glue_task(name: str, glue: str) -> Task:
    columns, labels = GLUE_COLUMNS[name], GLUE_LABELS[name]
    source = load_source(glue, name)
    splits = _wanted(source, name)
    for split, dataset in splits.items():
        check_columns(dataset, (*columns, "label"), f"{name}, {split}")
        for column in columns:
            check_texts(dataset, column, f"{name}, {split}")
    splits = {split: dataset.select_columns([*columns, "label"]) for split, dataset in splits.items()}
    num_labels = len(labels) or 1
    for split, dataset in splits.items():
        check_labels(dataset["label"][:], num_labels, f"{name}, {split}")
    hub = {"hub_dataset": glue, "config": name} if source.hub else {}
    kind = "classification" if labels else "regression"
    return Task(name, splits.pop("train"), splits, columns, "label", num_labels, labels, name, kind, **hub)


def _own_task(name: str, options: OwnData) -> Task:
    path, texts, label = _parse(name)
    title = own_title(path)
    if options.config is not None:
        title += "_" + NO_WORD.sub("_", options.config)
    source = load_source(path, options.config, options.encoding)
    if options.validation is not None:
        source = source.with_validation(load_source(options.validation, encoding=options.encoding))
    train = next(iter(source.splits.values()))
    columns = guess(train, name) if not texts else named(texts, _parts(label, train.column_names), train.features)
    alone = source.one_file
    splits = source.splits if alone else _wanted(source, title)

    def place(split: str, row: int) -> str:
        return ", ".join(filter(None, [title, source.place(split, None if row < 0 else row)]))

    for split, dataset in splits.items():
        hint = "" if texts else f"; {path}:TEXT:LABEL says which are meant"
        check_columns(dataset, (*columns.texts, *columns.labels), place(split, -1), hint)
        if columns.kind != "token_classification":
            for column in columns.texts:
                check_texts(dataset, column, place(split, -1), partial(place, split), empty=False)
    splits = {split: data.select_columns([*columns.texts, *columns.labels]) for split, data in splits.items()}
    labels = read_labels(splits, columns, place, ("train",), options.task_type)
    splits = labels.splits
    if alone:
        splits = _set_aside(splits["train"], columns.texts, title)
    about = f"{columns.describe(train.column_names)}; {labels.task_type.replace('_', ' ')}, because {labels.reason}"
    free = _free_names((*columns.texts, columns.labels[0]))
    splits = {split: dataset.rename_columns(free) for split, dataset in splits.items()}
    return Task(
        title,
        splits.pop("train"),
        splits,
        tuple(free.get(column, column) for column in columns.texts),
        free.get(columns.labels[0], columns.labels[0]),
        labels.num_labels,
        labels.label_names,
        labels.metric,
        labels.task_type,
        hub_dataset=path if source.hub else "",
        config=options.config if source.hub else None,
        columns=about,
    )


INPUTS = (
    "input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "special_tokens_mask", "labels",
    "label_ids", "length", "row", "words", "first_tokens", "start_positions", "end_positions", "context_offsets",
    "offset_mapping", "overflow_to_sample_mapping",
)  # fmt: skip
"""Names that examples have once they are tokenised."""


def _free_names(columns: Iterable[str]) -> dict[str, str]:
    """Columns that are called like inputs of a model -> other names that are not taken."""
    columns = list(columns)
    return {c: next(n for n in (c + "_" * i for i in range(1, 9)) if n not in columns) for c in columns if c in INPUTS}


NO_WORD = re.compile(r"[^\w-]+")


def own_title(path: str) -> str:
    """What one's own data are called in results: never as a task that everybody knows."""
    title = NO_WORD.sub("_", source_name(path).rpartition("/")[2]).strip("_") or "data"
    return f"own_{title}" if title in GLUE_TASKS or title in SELF_MADE_TASKS else title


def _parse(name: str) -> tuple[str, tuple[str, ...], str]:
    """Source, text columns and label column; no columns where the name gives none."""
    if ":" not in name or Path(name).expanduser().exists():
        return name, (), ""
    source, *columns = name.rsplit(":", 2)
    texts = tuple(columns[0].split("+")) if len(columns) == 2 else ()
    if not 1 <= len(texts) <= 2 or not all((source, *texts, columns[1])) or len({*texts, columns[1]}) <= len(texts):
        raise UserError(f"task {name!r}: expected path, or path:text_column:label_column, or path:text+text2:label")
    return source, texts, columns[1]


def _parts(label: str, columns: Sequence[str]) -> tuple[str, ...]:
    """One label column, or several joined by "+"."""
    return (label,) if label in columns else tuple(label.split("+"))


def _set_aside(dataset: Dataset, columns: Sequence[str], title: str) -> dict[str, Dataset]:
    """Train and validation of a file, which has no splits."""
    train, validation = set_aside({row: repr(texts) for row, texts in enumerate(zip(*(dataset[c] for c in columns)))})
    if not train:
        raise UserError(f"{title}: all examples have the same text, but some are set aside for validation")
    return {"train": dataset.select(train), "validation": dataset.select(validation)}


def _wanted(source: Source, title: str) -> dict[str, Dataset]:
    """The training split and the validation splits."""
    splits = source.splits
    wanted = {split: data for split, data in splits.items() if split == "train" or split.startswith("validation")}
    for needed in ("train", "validation"):
        if not any(split.startswith(needed) for split in wanted):
            raise UserError(
                f"{title}: no split {needed!r}, there is {', '.join(splits)}; accepted is a data set with the splits "
                "'train' and 'validation', or a folder with files called so"
            )
    return wanted


def check_columns(dataset: Dataset, columns: Iterable[str], place: str, hint: str = "") -> None:
    """Raises UserError where a column is missing, then with a hint at the end, or all rows are."""
    for column in columns:
        if column not in dataset.column_names:
            raise UserError(f"{place}: no column {column!r}, there are {', '.join(dataset.column_names)}{hint}")
    if len(dataset) == 0:
        raise UserError(f"{place}: no examples")


def check_texts(
    dataset: Dataset, column: str, place: str, row_place: Callable[[int], str] | None = None, empty: bool = True
) -> None:
    """Raises UserError at the first row without a text, which may be `empty` in data that others have published."""
    if not is_text(dataset.features[column]):
        raise UserError(f"{place}: column {column!r} holds {dataset.features[column]}, not text")
    for row, text in enumerate(dataset[column]):
        if text is None or not (empty or text.strip()):
            where = row_place(row) if row_place else f"{place}, row {row}"
            raise UserError(f"{where}: column {column!r} holds no text")


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
