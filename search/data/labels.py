"""What the label column of somebody's table says: classes, a number, several classes, classes of words, answers."""

import ast
import json
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, Features, List, Value

from ..errors import UserError
from .columns import Columns, is_list
from .documents import is_text


MAX_WHOLE_CLASSES = 200
"""So many different whole numbers may be classes; more are a quantity such as a year, a price or a time."""

IGNORED = -100
"""The class of a word that has none."""

ENTITY = re.compile("[BILESU]-.")

Place = Callable[[str, int], str]
"""Split and row -> where that is, for messages."""


@dataclass(frozen=True)
class Labels:
    """Labels of all splits in the form in which they are trained.

    Attributes:
        splits: With one label column.
        task_type, metric, num_labels, label_names: As of a task.
        reason: Why it is this type of task, in words.
    """

    splits: dict[str, Dataset]
    task_type: str
    metric: str
    num_labels: int
    label_names: tuple[str, ...]
    reason: str


def read_labels(
    splits: dict[str, Dataset], columns: Columns, place: Place, known: Sequence[str], task_type: str | None = None
) -> Labels:
    """Decides what kind of task the labels make, and encodes them.

    Args:
        known: Splits whose labels are the classes.
        task_type: "classification" or "regression" of numbers, where the user decides.

    Raises:
        UserError: A label is missing or is not accepted.
    """
    column = columns.labels[0]
    feature = splits["train"].features[column]
    if columns.kind == "question_answering":
        return _answers(splits, columns, place)
    if columns.kind == "token_classification":
        return _tags(splits, columns, place, known)
    if len(columns.labels) > 1:
        return _columns_of_classes(splits, columns.labels, place)
    if is_list(feature):
        return _several(splits, column, place, known)
    if not isinstance(getattr(feature, "dtype", None), str) or feature.dtype.startswith(("timestamp", "date", "time")):
        raise UserError(f"{place('train', 0)}: column {column!r} holds {feature}, not one label a row")
    kind, reason = _classes_or_numbers(splits, column, feature, known)
    if task_type is not None and task_type != kind:
        kind, reason = task_type, "as --task-type says"
    if kind == "regression":
        return _numbers(splits, column, place, reason)
    return _classes(splits, column, place, known, reason)


def _classes_or_numbers(splits, column: str, feature: Any, known: Sequence[str]) -> tuple[str, str]:
    """Whether labels are classes or numbers, and why."""
    if isinstance(feature, ClassLabel):
        return "classification", "its classes have names"
    values = {label for split in known for label in splits[split][column]} - {None, ""}
    if is_text(feature) or feature.dtype == "bool":
        numbers = [as_number(value) for value in values]
        if feature.dtype == "bool" or not values or None in numbers:
            return "classification", f"{len(values)} different words"
        values = set(numbers)
    if any(not float(value).is_integer() for value in values if math.isfinite(value)):
        return "regression", "the labels have decimals"
    if any(not math.isfinite(value) for value in values):
        return "regression", "the labels are numbers"
    if len(values) > MAX_WHOLE_CLASSES:
        return "regression", f"{len(values):,} different whole numbers are more than {MAX_WHOLE_CLASSES}"
    return "classification", f"{len(values)} different whole numbers"


NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*")


def as_number(value: Any) -> int | float | None:
    """The number that a text is, or None; "nan", "inf" and "1_000" are words."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        if not NUMBER.fullmatch(value):
            return None
        value = float(value)
    return int(value) if math.isfinite(value) and float(value).is_integer() else value


def _numbers(splits, column: str, place: Place, reason: str) -> Labels:
    encoded = {}
    for split, dataset in splits.items():
        values = dataset[column][:]
        numbers = []
        for row, value in enumerate(values):
            number = float(value) if isinstance(value, bool) else as_number(value)
            if number is None or not math.isfinite(number):
                raise UserError(f"{place(split, row)}: label {value!r}, accepted are finite numbers")
            numbers.append(float(number))
        encoded[split] = _with(dataset, column, numbers, Value("float64"))
    return Labels(encoded, "regression", "regression", 1, (), reason)


def _classes(splits, column: str, place: Place, known: Sequence[str], reason: str) -> Labels:
    """Classes in the order of their numbers if all are numbers, else of their names."""
    feature = splits["train"].features[column]
    named = isinstance(feature, ClassLabel)
    rows = {split: dataset[column][:] for split, dataset in splits.items()}
    if not named:
        found = [value for split in known for value in rows[split] if value not in (None, "")]
        if is_text(feature) and any(as_number(value) is None for value in found):
            values = sorted(set(found))
        else:
            rows = {split: [_whole(value) for value in labels] for split, labels in rows.items()}
            values = sorted({_whole(value) for value in found})
    else:
        values = list(range(len(feature.names)))
    if len(values) < 2:
        raise UserError(f"{place('train', -1)}: column {column!r} of train holds fewer than two different labels")
    indices = {value: index for index, value in enumerate(values)}
    counted_from_0 = named or 0 in indices  # then a number below marks what has no label
    encoded = {}
    for split, labels in rows.items():
        for row, label in enumerate(labels):
            if label not in indices or (counted_from_0 and isinstance(label, int) and label < 0):
                accepted = textwrap.shorten(", ".join(str(value) for value in values if value not in (-1, "")), 200)
                raise UserError(f"{place(split, row)}: label {label!r}, accepted are {accepted}")
        encoded[split] = _with(splits[split], column, [indices[label] for label in labels], Value("int64"))
    names = tuple(feature.names) if named else tuple(map(str, values))
    return Labels(encoded, "classification", "classification", len(names), names, reason)


def _whole(value: Any) -> Any:
    number = as_number(value)
    return value if number is None else number


def _several(splits, column: str, place: Place, known: Sequence[str]) -> Labels:
    """Lists of classes, or of a 0 or 1 for each class."""
    inner = _inner(splits["train"].features[column])
    rows = {split: dataset[column][:] for split, dataset in splits.items()}
    for split, labels in rows.items():
        for row, label in enumerate(labels):
            if label is None or any(isinstance(value, (list, dict)) or value in (None, "") for value in label):
                raise UserError(f"{place(split, row)}: label {label!r}, accepted are lists of classes")
    lengths = {len(label) for labels in rows.values() for label in labels}
    found = {value for split in known for label in rows[split] for value in label}
    binary = not any(value not in (0, 1) for labels in rows.values() for label in labels for value in label)
    if binary and len(lengths) == 1 and max(lengths) > 1 and not isinstance(inner, ClassLabel):
        encoded = rows
        names = tuple(f"LABEL_{index}" for index in range(max(lengths)))
    else:
        values = list(range(len(inner.names))) if isinstance(inner, ClassLabel) else sorted(found)
        names = tuple(inner.names) if isinstance(inner, ClassLabel) else tuple(map(str, values))
        for split, labels in rows.items():
            for row, label in enumerate(labels):
                if unknown := [value for value in label if value not in values]:
                    accepted = textwrap.shorten(", ".join(names), 200)
                    raise UserError(f"{place(split, row)}: label {unknown[0]!r}, accepted are {accepted}")
        encoded = {split: [[int(v in label) for v in values] for label in labels] for split, labels in rows.items()}
    if len(names) < 2:
        raise UserError(f"{place('train', -1)}: column {column!r} of train holds fewer than two different labels")
    feature = List(Value("int64"))
    data = {
        split: _with(splits[split], column, [list(map(int, r)) for r in encoded[split]], feature) for split in rows
    }
    return Labels(data, "multi_label", "multi_label", len(names), names, "a list of classes a row")


def _columns_of_classes(splits, columns: Sequence[str], place: Place) -> Labels:
    """A column of 0 and 1 for each class becomes one column of lists."""
    data = {}
    for split, dataset in splits.items():
        rows = [list(cells) for cells in zip(*(dataset[column][:] for column in columns))]
        for row, cells in enumerate(rows):
            for column, cell in zip(columns, cells):
                if cell not in (0, 1):
                    raise UserError(f"{place(split, row)}: column {column!r} holds {cell!r}, accepted are 0 and 1")
        rows = [list(map(int, cells)) for cells in rows]
        data[split] = _with(dataset.remove_columns(list(columns)), columns[0], rows, List(Value("int64")))
    reason = f"{len(columns)} columns of 0 and 1"
    return Labels(data, "multi_label", "multi_label", len(columns), tuple(columns), reason)


def _tags(splits, columns: Columns, place: Place, known: Sequence[str]) -> Labels:
    (words,), (tags,) = columns.texts, columns.labels
    inner = _inner(splits["train"].features[tags])
    for split, dataset in splits.items():
        for row, (texts, labels) in enumerate(zip(dataset[words], dataset[tags])):
            if not texts or labels is None or len(texts) != len(labels):
                counts = (len(labels or ()), len(texts or ()))
                raise UserError(
                    f"{place(split, row)}: {counts[0]} labels in {tags!r} for {counts[1]} words in {words!r}"
                )
            if None in texts or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{place(split, row)}: column {words!r} holds something else than words")
            if None in labels:
                raise UserError(f"{place(split, row)}: a word in column {tags!r} has no label")
    if isinstance(inner, ClassLabel):
        values, names = list(range(len(inner.names))), tuple(inner.names)
    else:
        found = {tag for split in known for labels in splits[split][tags] for tag in labels} - {IGNORED}
        values = sorted(found, key=lambda tag: (tag != "O", tag))
        names = tuple(map(str, values))
    if len(names) < 2:
        raise UserError(f"{place('train', -1)}: column {tags!r} of train holds fewer than two different labels")
    indices = {**{value: index for index, value in enumerate(values)}, IGNORED: IGNORED}
    data = {}
    for split, dataset in splits.items():
        rows = dataset[tags][:]
        for row, labels in enumerate(rows):
            if unknown := [tag for tag in labels if tag not in indices]:
                accepted = textwrap.shorten(", ".join(names), 200)
                raise UserError(f"{place(split, row)}: label {unknown[0]!r}, accepted are {accepted}")
        data[split] = _with(dataset, tags, [[indices[tag] for tag in labels] for labels in rows], List(Value("int64")))
    metric = "entities" if all(name == "O" or ENTITY.match(name) for name in names) else "word_classes"
    return Labels(data, "token_classification", metric, len(names), names, "a label for each word")


ANSWER = Features({"text": List(Value("string")), "answer_start": List(Value("int64"))})


def _answers(splits, columns: Columns, place: Place) -> Labels:
    """Answers with their places in the context, found there where the data do not say them."""
    context, column = columns.texts[1], columns.labels[0]
    data = {}
    for split, dataset in splits.items():
        rows = []
        for row, (text, value) in enumerate(zip(dataset[context], dataset[column])):
            answers = _answer(value, text)
            if isinstance(answers, str):
                raise UserError(f"{place(split, row)}: column {column!r}: {answers}")
            rows.append(answers)
        data[split] = _with(dataset, column, rows, dict(ANSWER))
    return Labels(data, "question_answering", "squad", 2, (), "question, context and answers")


def _answer(value: Any, context: str) -> dict[str, list] | str:
    """SQuAD's form of an answer written in any way; a text says what is wrong."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        for parse in (json.loads, ast.literal_eval):
            try:
                value = parse(value)
                break
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    if value is None or value == "":
        return {"text": [], "answer_start": []}
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping) and "text" in value:
        texts, starts = value["text"], value.get("answer_start")
    elif isinstance(value, list) and all(isinstance(one, Mapping) and "text" in one for one in value):
        texts = [one["text"] for one in value]
        starts = [one.get("answer_start") for one in value]
    elif isinstance(value, list):
        texts, starts = value, None
    else:
        return f"{str(value)[:60]!r} is no answer; accepted are texts, or {{'text': [...], 'answer_start': [...]}}"
    texts = [texts] if isinstance(texts, str) else list(texts or ())
    starts = [starts] if isinstance(starts, int) else list(starts if starts is not None else [None] * len(texts))
    if len(texts) != len(starts) or not all(isinstance(text, str) and text for text in texts):
        return f"{len(texts)} texts and {len(starts)} places in answer_start"
    for index, (text, start) in enumerate(zip(texts, starts)):
        found = context.find(text) if start is None else start
        if not isinstance(found, int) or found < 0 or context[found : found + len(text)] != text:
            where = "" if start is None else f" at character {start}"
            return f"the answer {text[:60]!r} does not stand in the context{where}"
        starts[index] = found
    return {"text": texts, "answer_start": starts}


def _inner(feature: Any) -> Any:
    return feature[0] if isinstance(feature, list) else feature.feature


def _with(dataset: Dataset, column: str, values: list, feature: Any) -> Dataset:
    """The data set with other values in a column, which becomes the last."""
    if column in dataset.column_names:
        dataset = dataset.remove_columns(column)
    return dataset.add_column(column, values, feature=feature)
