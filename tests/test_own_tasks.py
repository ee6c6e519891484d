"""What somebody's table is taken for: its columns, its kind of task, and where it came from."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.data.sources import quiet
from search.data.tasks import OwnData, load_tasks
from search.errors import UserError
from search.metrics import GLUE_TASKS, METRICS
from search.option_values import tasks as parse_tasks
from search.training.task_types import TASK_TYPES


def lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(name, **options):
    (task,) = load_tasks([str(name)], None, options=OwnData(**options))
    assert task.metric in METRICS and task.task_type in TASK_TYPES
    return task


def all_rows(task):
    columns = (*task.text_columns, task.label_column)
    return sorted(
        (tuple(row[column] for column in columns) for data in (task.train, *task.validation.values()) for row in data),
        key=repr,
    )


def texts(count):
    return [f"Sentence number {number}." for number in range(count)]


# Columns


@pytest.mark.parametrize(
    "extra",
    [
        {"label_text": "negative"}, {"id": "a7"}, {"date": "yesterday"}, {"user_id": "u1", "url": "somewhere"},
        {"title": "A title"}, {"lang": "en", "source": "web"},
    ],
)  # fmt: skip
def test_a_further_column_is_no_second_text(tmp_path, extra):
    rows = [{"text": text, "label": number % 2, **extra} for number, text in enumerate(texts(20))]
    task = load(lines(tmp_path / "own.jsonl", rows))
    assert task.text_columns == ("text",) and task.num_labels == 2
    assert task.columns == (
        f"text from text, label from label; not used: {', '.join(extra)}; classification, "
        "because 2 different whole numbers"
    )


@pytest.mark.parametrize(
    "pair",
    [
        "sentence1 sentence2",
        "premise hypothesis",
        "question sentence",
        "text text_pair",
        "text_a text_b",
        "query passage",
    ],
)
def test_known_pairs_are_pairs(tmp_path, pair):
    first, second = pair.split()
    rows = [{"id": "x", first: text, second: "Other.", "label": n % 2} for n, text in enumerate(texts(20))]
    assert load(lines(tmp_path / "own.jsonl", rows)).text_columns == (first, second)


def test_text_of_an_unknown_name(tmp_path):
    rows = [{"guid": "7", "beschreibung": text, "label": n % 2} for n, text in enumerate(texts(20))]
    assert load(lines(tmp_path / "own.jsonl", rows)).text_columns == ("beschreibung",)
    rows = [{"left": text, "right": text, "label": n % 2} for n, text in enumerate(texts(20))]
    with pytest.raises(UserError, match="2 columns hold text, and no rule says which to take; name them as"):
        load(lines(tmp_path / "two.jsonl", rows))


@pytest.mark.parametrize("names", ["length labels", "labels input_ids", "label labels", "row words", "row label_ids"])
def test_columns_of_any_name(tmp_path, names):
    text, label = names.split()
    rows = [{text: words, label: "pn"[n % 2]} for n, words in enumerate(texts(20))]
    task = load(f"{lines(tmp_path / 'own.jsonl', rows)}:{text}:{label}")
    assert not {*task.text_columns, task.label_column} & {"length", "labels", "input_ids", "row", "words", "label_ids"}
    assert [words for words, _ in all_rows(task)] == sorted(texts(20))
    assert task.label_names == ("n", "p")


# Where data come from


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_ones_own_file_is_never_a_known_task(tmp_path, name):
    task = load(lines(tmp_path / f"{name}.jsonl", [{"text": t, "label": n % 2} for n, t in enumerate(texts(20))]))
    assert (task.name, task.metric, task.hub_dataset) == (f"own_{name}", "classification", "")


def test_known_tasks_from_a_folder_claim_no_hub(shared):
    (task,) = load_tasks(["rte"], None, glue=str(shared / "data"))
    assert (task.name, task.metric, task.hub_dataset, task.config) == ("rte", "rte", "", None)


def test_commas_and_colons_in_paths(tmp_path):
    odd = tmp_path / "a, b:c.csv"
    odd.write_text("text,label\nx,1\n", encoding="utf-8")
    assert parse_tasks(f"cola, {odd},rte") == ("cola", str(odd), "rte")
    assert parse_tasks(f"{odd}:text:label,sst2") == (f"{odd}:text:label", "sst2")
    assert parse_tasks("cola,, rte ,") == ("cola", "rte")


# Rows


@pytest.mark.parametrize("row, column, ending", [(80, "label", "csv"), (3, "label", "jsonl"), (55, "text", "csv")])
def test_messages_count_rows_as_the_file_does(tmp_path, row, column, ending):
    rows = [{"text": text, "label": "pn"[n % 2]} for n, text in enumerate(texts(100))]
    rows[row][column] = ""
    path = tmp_path / f"own.{ending}"
    if ending == "csv":
        path.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows), encoding="utf-8")
    else:
        lines(path, rows)
    with pytest.raises(UserError, match=f"^own, row {row}: .*{'holds no text' if column == 'text' else 'label'}"):
        load(path)


def test_messages_name_the_file_of_a_row(tmp_path):
    for part in range(3):
        rows = [{"text": text, "label": "pn"[n % 2]} for n, text in enumerate(texts(10))]
        if part == 2:
            rows[4]["label"] = None
        lines(tmp_path / f"part{part}.jsonl", rows)
    with pytest.raises(UserError, match=r"row 4: label None, accepted are n, p") as caught:
        load(tmp_path)
    assert "part2.jsonl" in str(caught.value)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_empty_text_is_the_same_everywhere(tmp_path, ending):
    rows = {"text": ["a", "b", "", "d"], "label": ["x", "y", "x", "y"]}
    path = tmp_path / f"own.{ending}"
    with quiet():
        {"csv": Dataset.to_csv, "jsonl": Dataset.to_json, "parquet": Dataset.to_parquet}[ending](
            Dataset.from_dict(rows), path
        )
    with pytest.raises(UserError, match="^own, row 2: column 'text' holds no text$"):
        load(path)


# Kinds of labels


@pytest.mark.parametrize(
    "values, kind, names",
    [
        ([0.0, 1.0], "classification", ("0", "1")),
        (["0", "1"], "classification", ("0", "1")),
        (["10", "9", "2"], "classification", ("2", "9", "10")),
        ([0.5, 1.0], "regression", ()),
        (["0.5", "1.25"], "regression", ()),
        (list(range(1_700_000_000, 1_700_000_300)), "regression", ()),
        (["1", "two"], "classification", ("1", "two")),
        (["nan", "0.5"], "classification", ("0.5", "nan")),
        ([True, False], "classification", ("False", "True")),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_classes_or_numbers(tmp_path, values, kind, names, ending):
    count = max(40, len(values))
    rows = [{"text": text, "label": values[n % len(values)]} for n, text in enumerate(texts(count))]
    path = tmp_path / f"own.{ending}"
    if ending == "csv":
        path.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows), encoding="utf-8")
    else:
        lines(path, rows)
    task = load(path)
    assert (task.task_type, task.label_names) == (kind, names) and f"{kind}, because" in task.columns
    expected = {row["text"]: row["label"] for row in rows}
    for text, label in all_rows(task):
        shown = task.label_names[label] if names else label
        assert float(expected[text]) == label if not names else str(expected[text]).removesuffix(".0") == shown


def test_the_user_decides(tmp_path):
    path = lines(tmp_path / "own.jsonl", [{"text": text, "label": n % 5} for n, text in enumerate(texts(40))])
    assert load(path).num_labels == 5
    task = load(path, task_type="regression")
    assert (task.num_labels, task.task_type) == (1, "regression") and "as --task-type says" in task.columns
    path = lines(tmp_path / "half.jsonl", [{"text": text, "label": n % 3 / 2} for n, text in enumerate(texts(40))])
    assert load(path, task_type="classification").label_names == ("0", "0.5", "1")
    path = lines(tmp_path / "words.jsonl", [{"text": text, "label": "pn"[n % 2]} for n, text in enumerate(texts(40))])
    with pytest.raises(UserError, match="own|words, row 0: label 'p', accepted are finite numbers"):
        load(path, task_type="regression")


def test_timestamps_are_no_labels(tmp_path):
    import datetime

    days = [datetime.datetime(2020, 1, 1 + day) for day in range(20)]
    path = tmp_path / "own.parquet"
    with quiet():
        Dataset.from_dict({"text": texts(20), "label": days}).to_parquet(path)
    with pytest.raises(UserError, match="column 'label' holds Value.*timestamp.*, not one label a row"):
        load(path)


@pytest.mark.parametrize("form", ["names", "numbers", "hot", "columns", "named columns"])
def test_many_labels(tmp_path, form):
    chosen = [["a"], ["a", "c"], [], ["b"]]
    rows = []
    for number, text in enumerate(texts(40)):
        names = chosen[number % 4]
        hot = [int(name in names) for name in "abc"]
        value = {"names": names, "numbers": ["abc".index(n) for n in names], "hot": hot}.get(form)
        rows.append({"id": "x", "text": text} | ({"labels": value} if value is not None else dict(zip("abc", hot))))
    path = lines(tmp_path / "own.jsonl", rows)
    task = load(f"{path}:text:a+b+c" if form == "named columns" else path)
    assert (task.task_type, task.metric, task.num_labels) == ("multi_label", "multi_label", 3)
    names = {"hot": ("LABEL_0", "LABEL_1", "LABEL_2"), "numbers": ("0", "1", "2")}.get(form, ("a", "b", "c"))
    assert task.label_names == names
    expected = [(text, [int(name in chosen[n % 4]) for name in "abc"]) for n, text in enumerate(texts(40))]
    assert all_rows(task) == sorted(expected, key=repr)


SENTENCES = [(["EU", "rejects", "calls"], ["B-ORG", "O", "O"]), (["Peter", "Blackburn"], ["B-PER", "I-PER"])]


def tagged(folder, form):
    sentences = [([*words, str(number)], [*tags, "O"]) for number in range(10) for words, tags in SENTENCES]
    if form == "conll":
        path = folder / "own.conll"
        body = "\n\n".join("\n".join(f"{w} NN I-NP {t}" for w, t in zip(*sentence)) for sentence in sentences)
        path.write_text(f"-DOCSTART- -X- O O\n\n{body}\n", encoding="utf-8")
        return path
    names = ["O", "B-ORG", "B-PER", "I-PER"]
    if form == "names":
        return lines(folder / "own.jsonl", [{"tokens": words, "ner_tags": tags} for words, tags in sentences])
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    columns = {"tokens": [words for words, _ in sentences], "ner_tags": [tags for _, tags in sentences]}
    with quiet():
        Dataset.from_dict(columns, features=features).to_parquet(folder / "own.parquet")
    return folder / "own.parquet"


@pytest.mark.parametrize("form", ["conll", "names", "classes"])
def test_words_with_tags(tmp_path, form):
    task = load(tagged(tmp_path, form))
    assert (task.task_type, task.metric, task.text_columns) == ("token_classification", "entities", ("tokens",))
    assert task.label_names == ("O", "B-ORG", "B-PER", "I-PER")
    sentences = [([*words, str(n)], [*tags, "O"]) for n in range(10) for words, tags in SENTENCES]
    found = [(words, [task.label_names[tag] for tag in tags]) for words, tags in all_rows(task)]
    assert sorted(found) == sorted(sentences)


def test_a_word_without_a_tag(tmp_path):
    rows = [{"tokens": ["a", "b"], "ner_tags": ["O", "B-X"]}] * 5 + [{"tokens": ["a", "b"], "ner_tags": ["O"]}]
    with pytest.raises(UserError, match="^own, row 5: 1 labels in 'ner_tags' for 2 words in 'tokens'$"):
        load(lines(tmp_path / "own.jsonl", rows))


CONTEXT = "The tower was built in 18{0:02} by Eiffel. n{0}"


@pytest.mark.parametrize("form", ["text", "list", "dict", "python", "json", "squad", "parts"])
def test_answers_in_every_form(tmp_path, form):
    rows, articles = [], []
    for number in range(20):
        context, year = CONTEXT.format(number), f"18{number:02}"
        answers = {"text": [year], "answer_start": [23]}
        value = {"text": year, "list": [year], "dict": answers, "python": str(answers), "json": json.dumps(answers)}
        parts = [{"text": year, "answer_start": 23}]
        question = f"When {number}?"
        rows.append({"question": question, "context": context, "answers": value.get(form, parts)})
        asked = [{"question": question, "id": f"{number}", "answers": parts, "is_impossible": False}]
        articles.append({"title": "t", "paragraphs": [{"context": context, "qas": asked}]})
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"version": "v2.0", "data": articles} if form == "squad" else rows), encoding="utf-8")
    task = load(path)
    assert (task.task_type, task.metric) == ("question_answering", "squad")
    found = all_rows(task)
    assert len(found) == 20
    for _, context, answers in found:
        (text,), (start,) = answers["text"], answers["answer_start"]
        assert context[start : start + 4] == text and start == 23


def test_questions_without_an_answer(tmp_path):
    asked = [
        {"question": f"Q{n}?", "id": str(n), "answers": [], "plausible_answers": [{"text": "x", "answer_start": 0}],
         "is_impossible": True} for n in range(20)
    ]  # fmt: skip
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "x y", "qas": asked}]}]}), encoding="utf-8")
    assert all(answers == {"text": [], "answer_start": []} for *_, answers in all_rows(load(path)))


def test_an_answer_that_is_not_there(tmp_path):
    rows = [
        {"question": "q?", "context": CONTEXT.format(n), "answers": "1900" if n == 7 else "tower"} for n in range(9)
    ]
    with pytest.raises(
        UserError, match="^own, row 7: column 'answers': the answer '1900' does not stand in the context"
    ):
        load(lines(tmp_path / "own.jsonl", rows))


# Any table

CELL = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3),
    st.sampled_from([2**40, 2**63, 2**64, -(2**70)]), st.floats(width=16), st.text(max_size=6),
    st.sampled_from(["NA", "None", "nan", "0", "1", "x", ""]), st.lists(st.integers(0, 2), max_size=3),
    st.lists(st.sampled_from(["a", "b"]), max_size=2),
    st.dictionaries(st.sampled_from(["text", "x"]), st.text(max_size=2)),
)  # fmt: skip
NAME = st.sampled_from(
    [
        "text",
        "label",
        "labels",
        "sentence1",
        "tokens",
        "ner_tags",
        "question",
        "context",
        "answers",
        "id",
        "x\ny",
        "\u0434",
        "",
    ]
)
ROW = st.dictionaries(NAME, CELL, min_size=1, max_size=4)
COLUMNS = st.dictionaries(
    NAME, st.sampled_from([CELL, st.text(max_size=5), st.integers(0, 2)]), min_size=1, max_size=4
)
TABLE = st.one_of(
    st.lists(ROW, max_size=12),
    COLUMNS.flatmap(lambda columns: st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=20)),
)


def any_table(folder, rows, ending):
    path = folder / f"own.{ending}"
    if ending == "csv":
        header = list(dict.fromkeys(name for row in rows for name in row))
        cells = [header, *([str(row.get(name, "")) for name in header] for row in rows)]
        path.write_text("\n".join(",".join(row) for row in cells), encoding="utf-8", errors="surrogatepass")
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    try:
        load(path)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 700


def check_any_table(folder, examples):
    @settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )
    @given(TABLE, st.sampled_from(["csv", "jsonl"]))
    def check(rows, ending):
        any_table(folder, rows, ending)

    check()


def test_any_table_is_read_or_refused_in_one_line(tmp_path):
    check_any_table(tmp_path, 200)


@pytest.mark.slow
def test_ten_thousand_tables(tmp_path):
    check_any_table(tmp_path, 10_000)
