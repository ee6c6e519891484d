"""Inputs that went wrong for users, each with what is right, and others of the same kind."""

import csv
import json
import shutil

import pytest

from search.data.corpus import load_corpus
from search.data.sources import load_source
from search.data.tasks import OwnData, load_tasks
from search.data.tokenizer import load_tokenizer, vocabulary_size
from search.errors import UserError
from search.option_values import tasks as parse_tasks
from search.recipe import load_recipe


@pytest.fixture
def cases(shared):
    if not (shared / "cases").is_dir():
        pytest.skip("the folder ../shared/cases with small inputs is not here")
    return shared / "cases"


def load(name, **options):
    (task,) = load_tasks([str(name)], None, options=OwnData(**options))
    return task


def rows_of(task):
    columns = (*task.text_columns, task.label_column)
    return [tuple(row[c] for c in columns) for data in (task.train, *task.validation.values()) for row in data]


def table(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_the_name_of_a_class_is_no_second_sentence(cases):
    task = load(cases / "setfit_noise.jsonl")
    assert (task.text_columns, task.label_names) == (("text",), ("0", "1"))
    assert "text from text, label from label; not used: label_text" in task.columns


def test_words_for_nothing_are_labels_in_nested_folders(cases):
    task = load(cases / "nested3")
    assert task.label_names == ("NA", "None", "null", "yes")
    assert (len(task.train), len(task.validation["validation"])) == (60, 60)
    parts = [f"{cases}/nested3/{split}/part0.csv" for split in ("train", "validation")]
    written = [row["label"] for part in parts for row in load_source(part).splits["train"]]
    assert [task.label_names[label] for _, label in rows_of(task)] == written


def test_documents_lie_in_subfolders_as_they_lie_flat(cases, tmp_path):
    (tmp_path / "flat").mkdir()
    for path in (cases / "txtnest").rglob("*.txt"):
        shutil.copyfile(path, tmp_path / "flat" / path.name)
    nested, flat = (load_corpus(str(folder)) for folder in (cases / "txtnest", tmp_path / "flat"))
    for split in ("train", "validation"):
        assert sorted(getattr(nested, split)["text"]) == sorted(getattr(flat, split)["text"])
    # What stands between blank lines is a document; a line that is broken within a word does not end one.
    assert len(nested.train) + len(nested.validation) == 60


def test_answers_that_are_texts(cases):
    task = load(cases / "qa2.csv")
    assert (task.task_type, task.metric, task.label_names) == ("question_answering", "squad", ())
    for _, context, answers in rows_of(task):
        (text,), (start,) = answers["text"], answers["answer_start"]
        assert context[start : start + len(text)] == text


def test_squads_own_format(cases):
    task = load(cases / "squadv2.json")
    data = json.loads((cases / "squadv2.json").read_text(encoding="utf-8"))["data"]
    asked = [question for article in data for paragraph in article["paragraphs"] for question in paragraph["qas"]]
    assert task.task_type == "question_answering" and len(rows_of(task)) == len(asked) == 40
    unanswerable = sum(not answers["text"] for *_, answers in rows_of(task))
    assert unanswerable == sum(bool(question.get("is_impossible")) for question in asked)


def test_the_row_of_a_missing_label(cases):
    with pytest.raises(UserError, match="^row80label, row 80: label '', accepted are neg, pos$"):
        load(cases / "row80label.csv")


@pytest.mark.parametrize("name", ["kw1.csv:length:labels", "kw3.csv:labels:input_ids"])
def test_columns_that_are_called_like_inputs(cases, name):
    task = load(cases / name)
    assert task.label_names == ("neg", "pos") and len(rows_of(task)) == 60
    assert not {*task.text_columns, task.label_column} & {"length", "labels", "input_ids"}


def test_a_vocabulary_with_one_line_twice(cases):
    tokenizer = load_tokenizer(str(cases / "tok_dupvocab"))
    lines = (cases / "tok_dupvocab" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(lines)) < len(lines) and vocabulary_size(tokenizer) == len(lines) > len(tokenizer) - 1


def test_a_recipe_with_a_byte_order_mark(cases, tmp_path):
    assert (cases / "bomrec.json").read_bytes().startswith(b"\xef\xbb\xbf")
    recipe = load_recipe(str(cases / "bomrec.json"))
    (tmp_path / "plain.json").write_bytes((cases / "bomrec.json").read_bytes()[3:])
    assert recipe == load_recipe(str(tmp_path / "plain.json"))


def test_a_line_of_white_space_is_a_blank_line(cases):
    corpus = load_corpus(str(cases / "wsblank.txt"))
    text = (cases / "wsblank.txt").read_text(encoding="utf-8")
    paragraphs = "\n".join(line.strip() for line in text.splitlines()).strip().split("\n\n")
    assert sorted([*corpus.train["text"], *corpus.validation["text"]]) == sorted(paragraphs) and len(paragraphs) == 60


# Others of the same kinds


@pytest.mark.parametrize(
    "answers", ["the roof", "['the roof']", "{'text': ['the roof'], 'answer_start': [4]}", "[]", ""]
)
def test_answers_in_a_table(tmp_path, answers):
    rows = [(f"Where {n}?", "See the roof there.", answers) for n in range(20)]
    task = load(table(tmp_path / "qa.csv", ("question", "context", "answers"), rows))
    expected = {"text": ["the roof"], "answer_start": [4]} if "roof" in answers else {"text": [], "answer_start": []}
    assert task.task_type == "question_answering" and all(found == expected for *_, found in rows_of(task))


@pytest.mark.parametrize("blank", ["\t", " \t ", "\u00a0", "\u3000"])
def test_white_space_of_every_kind_is_a_blank_line(tmp_path, blank):
    (tmp_path / "a.txt").write_text(f"\n{blank}\n".join(f"Text {n}." for n in range(12)), encoding="utf-8")
    corpus = load_corpus(str(tmp_path / "a.txt"))
    assert len(corpus.train) + len(corpus.validation) == 12


CARD = """---
license: mit
configs:
- config_name: first
  data_files:
  - split: train
    path: a/one-*.csv
  - split: validation
    path: [a/held.csv]
- config_name: second
  default: true
  data_files: b.jsonl
- config_name: third
  data_dir: c
---
# About
"""


@pytest.fixture
def carded(tmp_path):
    """A folder of several configurations, as on the Hub."""
    (tmp_path / "a").mkdir()
    (tmp_path / "c").mkdir()
    rows = [(f"text {n}", ("None", "NA", "yes")[n % 3]) for n in range(30)]
    table(tmp_path / "a" / "one-1.csv", ("text", "label"), rows[:10])
    table(tmp_path / "a" / "one-2.csv", ("text", "label"), rows[10:20])
    table(tmp_path / "a" / "held.csv", ("text", "label"), rows[20:])
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": n % 2}) + "\n" for n, (text, _) in enumerate(rows)),
        encoding="utf-8",
    )
    for split in ("train", "dev"):
        table(tmp_path / "c" / f"{split}.csv", ("text", "label"), rows)
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    return tmp_path


def test_configurations_of_a_card(carded):
    first = load(carded, config="first")
    assert first.label_names == ("NA", "None", "yes") and first.name == f"{carded.name}_first"
    assert [len(first.train), len(first.validation["validation"])] == [20, 10] and first.hub_dataset == ""
    assert load(carded).label_names == ("0", "1")  # the one that is the default
    third = load(carded, config="third")
    assert [len(third.train), len(third.validation["validation"])] == [30, 30]
    corpus = load_corpus(str(carded), "first")
    assert (corpus.name, len(corpus.train), len(corpus.validation)) == (f"{carded.name}/first", 20, 10)


@pytest.mark.parametrize(
    "old, new, config, message",
    [
        ("", "", "fourth", "no configuration 'fourth', there are first, second, third"),
        ("  default: true\n", "", None, "has several configurations, name one of first, second, third"),
        ("a/held.csv", "a/lost.csv", "first", "'first': split 'validation': no file is called a/lost.csv"),
        ("data_files: b.jsonl", "data_files: [", "second", "README.md: its metadata are no YAML"),
        ("data_files: b.jsonl", "data_files: 7", "second", "expected a pattern or a list of them"),
        ("data_files: b.jsonl", "data_files: https://example.org/b.jsonl", "second", "does not lie in the folder"),
        ("data_dir: c", "data_dir: d", "third", "no data files in"),
    ],
)  # fmt: skip
def test_cards_with_mistakes_in_one_line(carded, old, new, config, message):
    card = carded / "README.md"
    card.write_text(CARD.replace(old, new) if old else CARD, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_source(str(carded), config)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_configuration_without_a_name_and_names_of_classes(tmp_path):
    table(tmp_path / "some.csv", ("text", "label"), [(f"text {n}", n % 2) for n in range(20)])
    card = """---
configs:
- data_files:
  - split: train
    path: some.csv
  - split: validation
    path: some.csv
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': bad
          '1': good
---
"""
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    for config in (None, "default"):
        assert load(tmp_path, config=config).label_names == ("bad", "good")


def test_a_configuration_that_is_a_folder(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            table(tmp_path / name / f"{split}.csv", ("text", "label"), [(f"{name} {n}", n % 2) for n in range(9)])
    assert load(tmp_path, config="y").train["text"][0] == "y 0"
    with pytest.raises(UserError, match="no configuration 'z', neither in its README.md nor as a folder"):
        load(tmp_path, config="z")


def test_a_readme_that_is_no_card(tmp_path):
    table(tmp_path / "data.csv", ("text", "label"), [(f"text {n}", n % 2) for n in range(20)])
    for text in ("# Words\n", "---\ntitle: [\n---\n", "---\nlicense: mit\n---\n", "\n---\n", "\ud7ff\0"):
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        assert len(rows_of(load(tmp_path))) == 20


@pytest.mark.parametrize("command", [["finetune", "--model", "m"], ["evaluate", "m"], ["run"]])
def test_commas_in_paths_of_every_command(tmp_path, command):
    from search.cli import build_parser

    path = table(tmp_path / "a, b.csv", ("text", "label"), [("x", 1)])
    options = build_parser().parse_args([*command, "--tasks", f"{path}:text:label,rte"])
    assert options.tasks == parse_tasks(f"{path}:text:label,rte") == (f"{path}:text:label", "rte")
