"""The same rows out of every kind of file in every layout, and one line on what is none of them."""

import csv
import gzip
import io
import json
import shutil
import zipfile

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from search.data.corpus import load_corpus
from search.data.layouts import split_of
from search.data.sources import load_source, quiet
from search.data.tasks import OwnData, load_tasks
from search.errors import UserError


LABELS = ("None", "NA", "null", "nan")
ROWS = [(f'Größe "{i}", 数 {i};\nنص {i}\tend' if i % 3 else f"plain {i}", LABELS[i % 4]) for i in range(24)]


def content(ending, rows, mark="", line_end="\n"):
    """The rows as the bytes of a file."""
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    if ending in (".parquet", ".arrow"):
        file = io.BytesIO()
        if ending == ".arrow":
            table = pa.table(columns)
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        else:
            with quiet():
                Dataset.from_dict(columns).to_parquet(file)
        return file.getvalue()
    objects = [{"text": text, "label": label} for text, label in rows]
    if ending == ".json":
        return (mark + json.dumps(objects, ensure_ascii=False, indent=1)).encode()
    if ending == ".jsonl":
        return (mark + "".join(json.dumps(row, ensure_ascii=False) + line_end for row in objects)).encode()
    file = io.StringIO()
    delimiter = {".tsv": "\t", ".csv": ",", "; .csv": ";"}[ending]
    writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end)
    writer.writerows([("text", "label"), *rows])
    return (mark + file.getvalue()).encode()


def write(path, ending, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(ending, rows, **options))


def flat(folder, ending, suffix):
    write(folder / f"data{suffix}", ending, ROWS)
    return folder / f"data{suffix}"


def upper_case(folder, ending, suffix):
    write(folder / f"DATA{suffix.upper()}", ending, ROWS)
    return folder / f"DATA{suffix.upper()}"


def marked(folder, ending, suffix):
    write(folder / f"data{suffix}", ending, ROWS, mark="\ufeff", line_end="\r\n")
    return folder / f"data{suffix}"


def folder_of_parts(folder, ending, suffix):
    for part in range(3):
        write(folder / f"part{part}{suffix}", ending, ROWS[part * 8 : part * 8 + 8])
    return folder


def nested(folder, ending, suffix):
    for part in range(3):
        write(folder / "a" / f"b{part}" / f"part{suffix}", ending, ROWS[part * 8 : part * 8 + 8])
    (folder / "README.md").write_text("Some words about it.\n", encoding="utf-8")
    (folder / "a" / "readme.txt").write_text("More words.\n", encoding="utf-8")
    return folder


def pattern(folder, ending, suffix):
    folder_of_parts(folder, ending, suffix)
    return folder / f"part*{suffix}"


def gz(folder, ending, suffix):
    folder.mkdir(exist_ok=True)
    (folder / f"data{suffix}.gz").write_bytes(gzip.compress(content(ending, ROWS)))
    return folder / f"data{suffix}.gz"


def archive(folder, ending, suffix):
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "data.zip", "w") as file:
        file.writestr(f"inner/data{suffix}", content(ending, ROWS))
        file.writestr("inner/README.txt", "About it.")
    return folder / "data.zip"


ENDINGS = [".csv", "; .csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow"]
LAYOUTS = [flat, upper_case, marked, folder_of_parts, nested, pattern, gz, archive]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_layout_holds_the_same(tmp_path, ending):
    seen = {}
    for layout in LAYOUTS:
        place = tmp_path / layout.__name__
        place.mkdir()
        source = load_source(str(layout(place, ending, ending.split()[-1])))
        data = source.splits["train"]
        assert source.one_file and list(source.splits) == ["train"], layout
        seen[layout.__name__] = list(zip(data["text"], data["label"]))
        (task,) = load_tasks([str(layout(place, ending, ending.split()[-1]))], None)
        assert task.label_names == ("NA", "None", "nan", "null"), layout
        encoded = {**dict(zip(task.train["text"], task.train["label"]))}
        encoded |= dict(zip(task.validation["validation"]["text"], task.validation["validation"]["label"]))
        assert {text: task.label_names[label] for text, label in encoded.items()} == dict(ROWS), layout
    assert all(rows == ROWS for rows in seen.values()), {name for name, rows in seen.items() if rows != ROWS}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("names", [("train/part0", "validation/part0"), ("train", "dev"), ("x/train-a", "x/val_b")])
def test_split_folders(tmp_path, ending, names):
    suffix = ending.split()[-1]
    for name, rows in zip(names, (ROWS[:16], ROWS[16:])):
        write(tmp_path / f"{name}{suffix}", ending, rows)
    (task,) = load_tasks([str(tmp_path)], None)
    assert task.label_names == ("NA", "None", "nan", "null")
    for data, rows in ((task.train, ROWS[:16]), (task.validation["validation"], ROWS[16:])):
        assert [(text, task.label_names[label]) for text, label in zip(data["text"], data["label"])] == rows


TEXT = "One line.\nAnd another.\n\nSecond 段落.\n \nThird.\n\t\n\n\nFourth, مرحبا.\n"
DOCUMENTS = ["One line.\nAnd another.", "Second 段落.", "Third.", "Fourth, مرحبا."]


def as_gz(folder, data):
    (folder / "a.txt.gz").write_bytes(gzip.compress(data))


def as_zip(folder, data):
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        file.writestr("in/a.TXT", data)


def as_nested(folder, data):
    (folder / "x" / "y").mkdir(parents=True)
    (folder / "x" / "y" / "a.txt").write_bytes(data)
    (folder / "x" / "README").write_text("no document", encoding="utf-8")


def as_flat(folder, data):
    (folder / "a.txt").write_bytes(data)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_paragraphs_are_documents_everywhere(tmp_path, mark, line_end):
    for layout in (as_flat, as_nested, as_gz, as_zip):
        folder = tmp_path / layout.__name__
        folder.mkdir()
        layout(folder, (mark + TEXT.replace("\n", line_end)).encode())
        assert list(load_source(str(folder)).splits["train"]["text"]) == DOCUMENTS, layout
        if (files := list(folder.iterdir()))[0].is_file():
            assert list(load_source(str(files[0])).splits["train"]["text"]) == DOCUMENTS, layout


def test_texts_in_subfolders(tmp_path):
    for number in range(6):
        path = tmp_path / "ab"[number % 2] / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"Text {number} goes\nover lines\nand more.\n", encoding="utf-8")
    corpus = load_corpus(str(tmp_path))
    assert len(corpus.train) + len(corpus.validation) == 6


@pytest.mark.parametrize("kind", ["one", "dict"])
def test_saved_to_disk(tmp_path, kind):
    data = Dataset.from_dict({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]})
    saved = data if kind == "one" else DatasetDict(train=data, validation=data.select(range(8)))
    with quiet():
        saved.save_to_disk(str(tmp_path / "saved"))
    (task,) = load_tasks([str(tmp_path / "saved")], None)
    assert task.label_names == ("NA", "None", "nan", "null")
    assert len(task.validation["validation"]) == (3 if kind == "one" else 8)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1251", "utf-16", "gb18030"])
def test_other_encodings(tmp_path, encoding):
    word = {"latin-1": "Grüße", "cp1251": "Привет", "utf-16": "مرحبا", "gb18030": "你好"}[encoding]
    path = tmp_path / "data.csv"
    path.write_bytes(f"text,label\n{word} a,x\n{word} b,y\n".encode(encoding))
    assert list(load_source(str(path), encoding=encoding).splits["train"]["text"]) == [f"{word} a", f"{word} b"]
    if encoding != "utf-16":  # whose byte order mark says what it is
        with pytest.raises(UserError, match="data.csv: not utf-8 .*--encoding"):
            load_source(str(path))
    with pytest.raises(UserError, match="--encoding: unknown encoding: klingon"):
        load_source(str(path), encoding="klingon")


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "data.csv"
    for word in ("first", "other"):
        path.write_text(f"text,label\n{word},x\n", encoding="utf-8")
        packed = tmp_path / "data.jsonl.gz"
        packed.write_bytes(gzip.compress(json.dumps({"text": word}).encode()))
        assert list(load_source(str(path)).splits["train"]["text"]) == [word]
        assert list(load_source(str(packed)).splits["train"]["text"]) == [word]


def test_names_with_signs(tmp_path):
    folder = tmp_path / "a, b: [c] *"
    for ending in (".csv", ".parquet"):
        write(folder / f"x,y:z[1]{ending}", ending, ROWS)
        for name in (str(folder / f"x,y:z[1]{ending}"), f"{folder}/x,y:z[1]{ending}:text:label"):
            (task,) = load_tasks([name], None)
            assert len(task.train) + len(task.validation["validation"]) == len(ROWS)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", [".", "..", "./", "../own"])
def test_folders_named_by_dots(tmp_path, monkeypatch, name):
    folder = tmp_path / "own"
    write(folder / "data.csv", ".csv", ROWS)
    (folder / "inner").mkdir()
    monkeypatch.chdir(folder / "inner" if name == ".." else folder)
    (task,) = load_tasks([name], None)
    assert task.name == "own"


@pytest.mark.parametrize(
    "name, split",
    [
        ("train/part0.csv", "train"),
        ("data/dev.csv", "validation"),
        ("validation_matched-00000-of-00001.parquet", "validation_matched"),
        ("dev_mismatched.tsv", "validation_mismatched"),
        ("a/b.csv", None),
        ("latest.csv", None),
        ("strain.csv", None),
        ("my-test.csv", "test"),
    ],
)
def test_split_by_name(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("a.csv", "text,label\nx,1\ny,2,3\n", "a.csv, row 1: 3 values, the header names 2 columns"),
        ("a.tsv", "text\ttext\nx\t1\n", "a.tsv: two columns are called 'text'"),
        ("a.csv", 'text,label\nx,1\n"y,2\n', "a.csv, row 1: unexpected end of data"),
        ("a.jsonl", '{"text": "x"}\n{"text": }\n', "a.jsonl, row 1: JSON parse error"),
        ("a.jsonl", '{"text": "x"}\n{"text": 3}\n', "a.jsonl, row 1: column 'text' holds 3, where rows before hold"),
        ("a.json", '[{"text": "x"}, 7]', "a.json, row 1: expected an object with columns, found int"),
        ("a.json", "3", "a.json: expected a list of objects, found int"),
        ("a.zip", "no archive", "a.zip: cannot be unpacked"),
        ("a.csv.gz", "no gz", "a.csv.gz: cannot be unpacked"),
        ("a.conll", "EU B-ORG\nrejects\n", "a.conll, line 2: expected a word and a tag, found 'rejects'"),
    ],
)
def test_bad_files_in_one_line(tmp_path, file, content, message):
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_source(str(tmp_path / file))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("ending, kind", [("csv", "int64"), ("tsv", "int64"), ("jsonl", "int64")])
def test_one_column_of_numbers(tmp_path, ending, kind):
    path = tmp_path / f"a.{ending}"
    path.write_text('{"text": 7}\n{"text": 8}\n' if ending == "jsonl" else "text\n7\n8\n", encoding="utf-8")
    assert list(load_source(str(path)).splits["train"]["text"]) == [7, 8]
    with pytest.raises(UserError, match=f"a: column 'text' holds .*{kind}.*, not text"):
        load_corpus(str(path))


def test_files_with_different_columns(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,1\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"words": "x"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="files with different columns, a.csv has text, label, b.jsonl has words"):
        load_source(str(tmp_path))


def test_a_validation_file_of_ones_own(tmp_path):
    write(tmp_path / "mine.csv", ".csv", ROWS[:16])
    write(tmp_path / "held.jsonl", ".jsonl", ROWS[16:])
    options = OwnData(validation=str(tmp_path / "held.jsonl"))
    (task,) = load_tasks([str(tmp_path / "mine.csv")], None, options=options)
    assert list(task.train["text"]) == [text for text, _ in ROWS[:16]]
    assert list(task.validation["validation"]["text"]) == [text for text, _ in ROWS[16:]]
    with pytest.raises(UserError, match="--validation belongs to one task of one's own, there are 0"):
        load_tasks(["cola"], None, options=options)
