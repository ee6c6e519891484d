"""Labelled tasks: GLUE as it is defined, a user's own data in every form, and self-made tasks that give no hints."""

import json
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from search.data.corpus import Corpus, load_corpus
from search.data.glue import GLUE_COLUMNS, GLUE_LABELS
from search.data.sources import quiet
from search.data.synthetic_tasks import SELF_MADE_TASKS
from search.data.tasks import load_tasks
from search.errors import UserError
from search.metrics import GLUE_TASKS


NO_CORPUS = None


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


def rows(dataset):
    return [tuple(row.values()) for row in dataset]


def save(folder, **splits):
    """A folder in `datasets` layout; splits are columns or data sets."""
    folder.mkdir(exist_ok=True)
    for split, data in splits.items():
        with quiet():
            (data if isinstance(data, Dataset) else Dataset.from_dict(data)).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def says(message, *names, **options):
    """Loading the tasks raises a UserError of one readable line."""
    with pytest.raises(UserError) as caught:
        load_tasks(names, options.pop("corpus", NO_CORPUS), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


# Self-made tasks


def true_and_false(dataset):
    """Pairs of a true and a false example, without labels."""
    examples = rows(dataset)
    assert [label for *_, label in examples] == [1, 0] * (len(examples) // 2)
    return [(true[:-1], false[:-1]) for true, false in zip(examples[::2], examples[1::2])]


def test_word_order_shuffles_words_and_nothing_else(corpus):
    (task,) = load_tasks(["word_order"], corpus)
    assert (task.text_columns, task.label_column, task.num_labels, task.metric) == (
        ("sentence",), "label", 2, "classification",
    )  # fmt: skip
    kept = []
    for (true,), (false,) in true_and_false(task.train):
        assert true != false and Counter(true.split()) == Counter(false.split())
        assert true[-1] in ".!?" and 6 <= len(true.split()) <= 40
        kept.append((true.split()[0], true.split()[-1]) == (false.split()[0], false.split()[-1]))
    assert 0.45 < np.mean(kept) < 0.6


def test_next_sentence_follows_or_is_from_another_document(corpus):
    (task,) = load_tasks(["next_sentence"], corpus)
    assert task.text_columns == ("sentence1", "sentence2")
    text = [" ".join(document.split()) for document in corpus.train["text"]]
    for (first, second), (same_first, other) in true_and_false(task.train)[:200]:
        assert first == same_first and other not in (first, second)
        assert any(document.find(first) < document.find(second) for document in text if first in document)
        assert any(other in document for document in text if first not in document)


@pytest.mark.parametrize("name", SELF_MADE_TASKS)
def test_self_made_tasks_are_repeatable_and_do_not_leak(corpus, name):
    first, again, other = (load_tasks([name], corpus, seed=seed)[0] for seed in (0, 0, 1))
    assert rows(first.train) == rows(again.train) != rows(other.train)
    assert rows(first.validation["validation"]) == rows(again.validation["validation"])
    train, validation = (true_and_false(split) for split in (first.train, first.validation["validation"]))
    assert not {true for true, _ in train} & {true for true, _ in validation}
    held_out = " ".join(" ".join(document.split()) for document in corpus.validation["text"])
    assert all(sentence in held_out for true, _ in validation for sentence in true)
    assert len(train) > 1500 and len(validation) > 300


def test_self_made_tasks_are_capped(corpus):
    for task in load_tasks(["word_order", "next_sentence"], corpus, max_train_examples=50):
        assert 40 <= len(task.train) <= 50
    (task,) = load_tasks(["word_order"], corpus, max_train_examples=7)
    assert len(task.train) <= 7


@pytest.mark.parametrize("name, floor, ceiling", [("word_order", 0.48, 0.52), ("next_sentence", 0.5, 0.75)])
def test_words_without_order_hardly_tell(corpus, name, floor, ceiling):
    """A linear model on single words: nothing for the order of words; for pairs, how openings begin."""
    (task,) = load_tasks([name], corpus)
    validation = task.validation["validation"]
    model = make_pipeline(CountVectorizer(min_df=2), LogisticRegression(max_iter=300))
    column = task.text_columns[-1]
    model.fit(list(task.train[column]), task.train["label"])
    assert floor <= model.score(list(validation[column]), validation["label"]) <= ceiling


def test_word_pairs_tell_the_order(corpus):
    """The task can be learned, and its validation measures that."""
    (task,) = load_tasks(["word_order"], corpus)
    validation = task.validation["validation"]
    model = make_pipeline(
        CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", min_df=2), LogisticRegression(max_iter=300)
    )
    model.fit(list(task.train["sentence"]), task.train["label"])
    assert model.score(list(validation["sentence"]), validation["label"]) > 0.6


def test_corpus_without_sentences():
    words = Dataset.from_dict({"text": ["no full stops in here"] * 5})
    says("wordless has no suitable sentences in train", "word_order", corpus=Corpus("wordless", words, words))


# GLUE


def test_glue_tables_are_complete():
    assert set(GLUE_COLUMNS) == set(GLUE_LABELS) == set(GLUE_TASKS)


def test_all_of_glue(shared):
    tasks = load_tasks(["all"], NO_CORPUS, glue=str(shared / "data"))
    assert [task.name for task in tasks] == [task.metric for task in tasks] == list(GLUE_TASKS)
    sizes = {task.name: (len(task.train), *map(len, task.validation.values())) for task in tasks}
    assert sizes["cola"] == (8551, 1043) and sizes["mnli"] == (19999, 9815, 999)
    for task in tasks:
        assert list(task.validation) == (
            ["validation_matched", "validation_mismatched"] if task.name == "mnli" else ["validation"]
        )
        for dataset in (task.train, *task.validation.values()):
            assert dataset.column_names == [*task.text_columns, task.label_column]
            if task.num_labels > 1:
                assert set(dataset["label"]) == set(range(task.num_labels)) == set(range(len(task.label_names)))
        assert (task.num_labels == 1) == (task.name == "stsb")


def test_glue_examples_are_capped_at_random_by_seed(shared):
    glue = str(shared / "data" / "glue")
    first, again, other = (
        load_tasks(["rte"], NO_CORPUS, glue=glue, max_train_examples=100, seed=seed)[0] for seed in (0, 0, 1)
    )
    assert len(first.train) == 100 and len(first.validation["validation"]) == 277
    assert rows(first.train) == rows(again.train) != rows(other.train)


def test_glue_from_a_bad_place(tmp_path):
    says("no such file or folder", "cola", glue=str(tmp_path / "nowhere"))
    says("nyu-mll/glue: no such file or folder here, and not had from the Hub", "cola")
    columns = {"sentence": ["a", "b"], "label": [0, -1]}
    folder = save(tmp_path / "glue", train=columns, validation=columns)
    (tmp_path / "glue" / "README.md").write_text(
        "---\nconfigs:\n- config_name: cola\n  data_files:\n  - split: train\n    path: train.parquet\n"
        "  - split: validation\n    path: validation.parquet\n---\n",
        encoding="utf-8",
    )
    says("cola, train, row 1: label -1, accepted are whole numbers from 0 to 1", "cola", glue=folder)
    says("no configuration 'rte', there are cola", "rte", glue=folder)


# Own data

OWN = {
    "words": (["yes", "no", "yes"], ["no", "yes", "no"], ("no", "yes"), [1, 0, 1]),
    "numbers": ([0, 1, 2], [2, 2, 0], ("0", "1", "2"), [0, 1, 2]),
    "stars": ([1, 3, 5], [5, 3, 1], ("1", "3", "5"), [0, 1, 2]),
    "truth": ([True, False, True], [False, False, True], ("False", "True"), [1, 0, 1]),
}


@pytest.mark.parametrize("train, validation, names, indices", OWN.values(), ids=OWN)
def test_own_classification(tmp_path, train, validation, names, indices):
    texts = ["one", "two", "three"]
    folder = save(tmp_path / "own", train={"text": texts, "label": train}, dev={"text": texts, "label": validation})
    (task,) = load_tasks([folder], NO_CORPUS)
    assert (task.name, task.metric, task.text_columns) == ("own", "classification", ("text",))
    assert (task.num_labels, task.label_names) == (len(names), names)
    assert list(task.train["label"]) == indices and list(task.train["text"]) == texts
    assert [names[index] for index in task.validation["validation"]["label"]] == list(map(str, validation))


def test_own_class_names(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["ham", "spam", "unsure"])})
    data = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    (task,) = load_tasks([save(tmp_path / "mail", train=data, validation=data)], NO_CORPUS)
    assert task.label_names == ("ham", "spam", "unsure") and list(task.train["label"]) == [1, 0]
    unlabelled = Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    folder = save(tmp_path / "mail2", train=data, validation=unlabelled)
    says("mail2, validation, row 1: label -1, accepted are 0, 1, 2", folder)


def test_own_labels_that_are_lists(tmp_path):
    data = {"text": ["a", "b"], "label": [[{"a": 1}], [{"a": 2}]]}
    says("many, train, row 0: label [{'a': 1}], accepted are", save(tmp_path / "many", train=data, validation=data))
    data = {"text": ["a", "b"], "label": [{"name": "x"}, {"name": "y"}]}
    says("not one label a row", save(tmp_path / "dicts", train=data, validation=data))


def test_own_regression_of_pairs_with_named_columns(tmp_path):
    columns = {"id": ["x", "y"], "left": ["a", "b"], "right": ["c", "d"], "closeness": [0.5, 4.0]}
    folder = save(tmp_path / "close", train=columns, validation=columns)
    (task,) = load_tasks([f"{folder}:left+right:closeness"], NO_CORPUS)
    assert (task.metric, task.num_labels, task.label_names) == ("regression", 1, ())
    assert task.train.column_names == ["left", "right", "closeness"]
    assert rows(task.train) == [("a", "c", 0.5), ("b", "d", 4.0)]
    says("3 columns hold text, and no rule says which to take", folder)


def test_own_question_answering(tmp_path):
    columns = {
        "id": ["1"],
        "question": ["Who?"],
        "context": ["Me."],
        "answers": [{"text": ["Me"], "answer_start": [0]}],
    }
    folder = save(tmp_path / "squad", train=columns, validation=columns)
    for name in (folder, f"{folder}:question+context:answers"):
        (task,) = load_tasks([name], NO_CORPUS)
        assert (task.metric, task.text_columns, task.label_column) == ("squad", ("question", "context"), "answers")
        assert task.train[0]["answers"] == {"text": ["Me"], "answer_start": [0]}


def test_own_data_in_csv_and_json(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\nGood.,yes\nBad.,no\n", encoding="utf-8")
    (tmp_path / "validation.csv").write_text("text,label\nFine.,yes\n", encoding="utf-8")
    (task,) = load_tasks([str(tmp_path)], NO_CORPUS)
    assert task.label_names == ("no", "yes") and rows(task.validation["validation"]) == [("Fine.", 1)]
    folder = tmp_path / "json"
    folder.mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps({"text": text, "label": label}) for text, label in (("a", 0.25), ("b", 1.5))]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (task,) = load_tasks([f"{folder}:text:label"], NO_CORPUS)
    assert task.metric == "regression" and rows(task.train) == [("a", 0.25), ("b", 1.5)]


def test_a_single_file_is_split_by_hash(tmp_path):
    texts = [f"Text number {number}." for number in range(40)] + ["Said twice.", "Said twice."]
    labels = ["rare", *(("NA", "None")[number % 2] for number in range(41))]
    lines = [f"{text},{label}" for text, label in zip(texts, labels)]
    parts = []
    for name, order in (("first.csv", lines), ("second.csv", lines[::-1])):
        (tmp_path / name).write_text("\n".join(["what,kind", *order]), encoding="utf-8")
        (task,) = load_tasks([f"{tmp_path / name}:what:kind"], NO_CORPUS)
        train, validation = list(task.train["what"]), list(task.validation["validation"]["what"])
        assert task.label_names == ("NA", "None", "rare") and 5 <= len(validation) <= 6
        assert sorted(train + validation) == sorted(texts) and not set(train) & set(validation)
        parts.append((set(train), set(validation)))
    assert parts[0] == parts[1]
    (tmp_path / "same.csv").write_text("text,label\nx,1\nx,0\n", encoding="utf-8")
    says("same: all examples have the same text", f"{tmp_path / 'same.csv'}:text:label")
    says("first: no column 'label', there are what, kind", f"{tmp_path / 'first.csv'}:what:label")


def test_minus_one_is_a_class_where_nothing_is_zero(tmp_path):
    data = {"text": ["a", "b", "c"], "label": [1, -1, 1]}
    (task,) = load_tasks([save(tmp_path / "signs", train=data, validation=data)], NO_CORPUS)
    assert task.label_names == ("-1", "1") and list(task.train["label"]) == [1, 0, 1]


def test_shared_superglue(shared):
    folder = str(shared / "data" / "superglue")
    cb, wic = load_tasks([f"{folder}/cb", f"{folder}/wic:sentence1+sentence2:label"], NO_CORPUS)
    assert (cb.text_columns, cb.num_labels, len(cb.train)) == (("premise", "hypothesis"), 3, 250)
    assert (wic.num_labels, len(wic.validation["validation"])) == (2, 638)


GOOD = {"text": ["a", "b", "c"], "label": [0, 1, 0]}
BAD = {
    "missing label": ({"text": ["a"]}, {"text": ["a"]}, "", "bad, train: no column 'label', there are text; "),
    "misnamed text": (GOOD, GOOD, ":body:label", "bad, train: no column 'body', there are text, label"),
    "missing in validation": (GOOD, {"text": ["a"]}, "", "bad, validation: no column 'label', there are text"),
    "number for text": (
        {"text": [1, 2], "label": [0, 1]}, {"text": [1], "label": [0]}, ":text:label",
        "column 'text' holds Value('int64'), not text",
    ),
    "no text": ({"text": ["a", None], "label": [0, 1]}, GOOD, "", "bad, train, row 1: column 'text' holds no text"),
    "no label": ({"text": ["a", "b", "c"], "label": [0, 1, None]}, GOOD, "", "train, row 2: label None, accepted"),
    "unlabelled": ({"text": ["a", "b", "c"], "label": [0, 1, -1]}, GOOD, "", "row 2: label -1, accepted are 0, 1"),
    "new label": (GOOD, {"text": ["a"], "label": [2]}, "", "validation, row 0: label 2, accepted are 0, 1"),
    "one class": ({"text": ["a", "b"], "label": ["x", "x"]}, GOOD, "", "fewer than two different labels"),
    "not a number": (
        {"text": ["a"], "label": [float("nan")]}, {"text": ["a"], "label": [0.5]}, "", "accepted are finite numbers",
    ),
    "empty": (GOOD, {"text": [], "label": []}, "", "validation.parquet: no rows"),
}  # fmt: skip


@pytest.mark.parametrize("train, validation, columns, message", BAD.values(), ids=BAD)
def test_bad_own_data(tmp_path, train, validation, columns, message):
    says(message, save(tmp_path / "bad", train=train, validation=validation) + columns)


def test_missing_splits(tmp_path):
    says("alone: no split 'validation', there is train; accepted is", save(tmp_path / "alone", train=GOOD))
    says("late: no split 'train', there is validation", save(tmp_path / "late", validation=GOOD))


def test_bad_names(tmp_path):
    says("unknown task 'colla'; known are cola, sst2", "colla")
    says("next_sentence, and own data as path", "colla")
    says("no such file or folder", str(tmp_path / "nowhere"))
    says("nobody/nothing: no such file or folder here, and not had from the Hub", "nobody/nothing")
    for name in ("data.csv:text", "data.csv:a+b+c:label", "data.csv::label", "data.csv:a:a", "data.csv:a+a:label"):
        says("expected path, or path:text_column:label_column", name)
    one, two = (save(tmp_path / parent / "same", train=GOOD, validation=GOOD) for parent in make_parents(tmp_path))
    says("two tasks are called 'same'", one, two)
    assert len(load_tasks([one], NO_CORPUS)) == 1


def make_parents(folder):
    for name in ("one", "two"):
        (folder / name).mkdir()
        yield name
