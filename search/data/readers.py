"""Files as tables: one way for each kind of file, wherever it lies and however it is packed.

Nothing is guessed from what stands in a cell: "None", "NA" and "nan" are words, an empty cell is an empty text.
"""

import bz2
import codecs
import csv
import gzip
import hashlib
import io
import itertools
import json
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ..errors import UserError
from ..files import reported
from .cache import make_once


ENCODING = "utf-8"

Row = Mapping[str, Any]


def read(path: Path, encoding: str | None = None) -> Dataset:
    """The table in one unpacked file, mapped into memory.

    Raises:
        UserError: It is empty or not what its ending says; the message names the row.
    """
    kind = KINDS[path.suffix.lower()]
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    if isinstance(kind, str):
        if kind == "parquet" and pq.read_metadata(path).num_rows == 0:
            raise UserError(f"{path}: no rows")
        # The library keeps what it made by the name and the time of the file.
        try:
            return datasets.load_dataset(kind, data_files={"train": glob_escaped(path)}, split="train")
        except ValueError as error:
            raise UserError(f"{path}: no rows") if "corresponds to no data" in str(error) else error from None

    def make(folder: Path) -> None:
        _write_table(lambda: kind(path, encoding), folder / "table.arrow", path)

    folder = make_once(_cached(path, kind.__name__, encoding), make)
    return Dataset.from_file(str(folder / "table.arrow"))


def kind_of(path: Path) -> str | Callable[[Path, str | None], Iterator[Row]] | None:
    """What reads a file, by its ending; of a packed one by that before. None where nothing does."""
    inner = Path(path.stem) if path.suffix.lower() in PACKINGS else path
    return KINDS.get(inner.suffix.lower())


def rows(path: Path, encoding: str | None = None) -> Iterator[Row]:
    """The rows of one file, packed or not, without holding more than a part of it in memory.

    Raises:
        UserError: It is not what its ending says; the message names the row.
    """
    kind = kind_of(path)
    try:
        if callable(kind):
            yield from kind(path, encoding)
        elif kind == "parquet":
            for batch in pq.ParquetFile(unpacked(path)).iter_batches(batch_size=1000):
                yield from batch.to_pylist()
        else:
            with pa.memory_map(str(unpacked(path))) as file:
                yield from _arrow_rows(file)
    except (*DAMAGED, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _arrow_rows(file: pa.MemoryMappedFile) -> Iterator[Row]:
    """Of Arrow's stream format or its file format."""
    try:
        for batch in pa.ipc.open_stream(file):
            yield from batch.to_pylist()
    except pa.ArrowInvalid:
        file.seek(0)
        whole = pa.ipc.open_file(file)
        for index in range(whole.num_record_batches):
            yield from whole.get_batch(index).to_pylist()


DAMAGED = (zipfile.BadZipFile, EOFError, lzma.LZMAError, RuntimeError, gzip.BadGzipFile, zlib.error)
"""What libraries raise where a packed file is damaged or has a password."""


def unpacked(path: Path) -> Path:
    """What a packed file holds: a file with the inner ending, or for an archive a folder; else the path itself."""
    packing = path.suffix.lower()
    if packing not in PACKINGS:
        return path
    target = _cached(path, "unpacked")

    def make(folder: Path) -> None:
        try:
            if packing == ".zip":
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(folder)
            else:
                with PACKINGS[packing](path, "rb") as source, open(folder / path.stem, "wb") as file:
                    shutil.copyfileobj(source, file)
        except DAMAGED as error:
            raise UserError(f"{path}: cannot be unpacked: {error}") from None

    make_once(target, make)
    return target if packing == ".zip" else target / path.stem


def glob_escaped(path: Path) -> str:
    """A path for `datasets`, which else takes brackets and stars in it for patterns."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in str(path))


def _cached(path: Path, *settings) -> Path:
    """Where what is made of a file is kept: another place as soon as the file has changed."""
    stat = path.stat()
    key = repr((str(path.resolve()), stat.st_mtime_ns, stat.st_size, *settings))
    name = hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
    return Path(datasets.config.HF_DATASETS_CACHE) / "files" / name


CHUNK = 10_000


def _write_table(rows: Callable[[], Iterator[Row]], target: Path, path: Path) -> None:
    """Reads twice: once to know what columns there are and what they hold, once to write them."""
    schema, first = None, 0
    for chunk in _chunks(rows()):
        found = _schema(chunk, first, path)
        try:
            schema = found if schema is None else pa.unify_schemas([schema, found], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise UserError(_mixed(chunk, first, schema, path)) from None
        first += len(chunk)
    if schema is None:
        raise UserError(f"{path}: no rows")
    # A column without any value holds no numbers either.
    schema = pa.schema([f if not pa.types.is_null(f.type) else f.with_type(pa.string()) for f in schema])
    with reported(target), pa.ipc.new_stream(target, schema) as writer:
        for chunk in _chunks(rows()):
            writer.write_table(pa.table([_array(chunk, field) for field in schema], schema=schema))


def _array(chunk: list[Row], field: pa.Field) -> pa.Array:
    return pa.array([row.get(field.name) for row in chunk], field.type)


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(itertools.islice(rows, CHUNK)):
        yield chunk


def _schema(chunk: list[Row], first: int, path: Path) -> pa.Schema:
    fields = []
    for name in dict.fromkeys(name for row in chunk for name in row):
        try:
            fields.append(pa.field(name, pa.array([row.get(name) for row in chunk]).type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            raise UserError(_mixed(chunk, first, None, path, name)) from None
    return pa.schema(fields)


def _mixed(chunk: list[Row], first: int, schema: pa.Schema | None, path: Path, column: str | None = None) -> str:
    """Says in which row a column holds something else than in the rows before."""
    for name in dict.fromkeys(name for row in chunk for name in row) if column is None else (column,):
        known = None if schema is None or name not in schema.names else schema.field(name).type
        for number, row in enumerate(chunk, first):
            if row.get(name) is None:
                continue
            try:
                kind = pa.array([row[name]]).type
                fields = [pa.schema([pa.field(name, value)]) for value in (known or kind, kind)]
                known = pa.unify_schemas(fields, promote_options="permissive").field(name).type
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                value = repr(row[name])
                shown = value if len(value) < 60 else f"{value[:57]}..."
                return f"{path}, row {number}: column {name!r} holds {shown}, where rows before hold {known or 'else'}"
    return f"{path}: rows hold different kinds of values"


def _open(path: Path, encoding: str | None) -> io.TextIOWrapper:
    opened = PACKINGS.get(path.suffix.lower(), open)
    with opened(path, "rb") as file:
        start = file.read(4)
    if encoding is None:
        encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else ENCODING
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    codecs.lookup(encoding)
    return io.TextIOWrapper(opened(path, "rb"), encoding=encoding, newline="")


def _lines(path: Path, encoding: str | None) -> Iterator[str]:
    """With their ends, each of them a line feed in the end."""
    with _open(path, encoding) as file:
        file.reconfigure(newline=None)
        yield from file


def _decoded(function: Callable[[Path, str | None], Iterator[Row]]) -> Callable[[Path, str | None], Iterator[Row]]:
    """Says in one line that a text is not in the encoding."""

    def decoded(path: Path, encoding: str | None) -> Iterator[Row]:
        try:
            yield from function(path, encoding)
        except UnicodeError as error:
            given = encoding or ENCODING
            reason = getattr(error, "reason", str(error))
            raise UserError(f"{path}: not {given} ({reason}); name what it is written in with --encoding") from None
        except LookupError as error:
            raise UserError(f"--encoding: {error}") from None

    decoded.__name__ = function.__name__
    return decoded


@_decoded
def paragraphs(path: Path, encoding: str | None) -> Iterator[Row]:
    """Documents of plain text; a line of white space ends one."""
    lines: list[str] = []
    for line in itertools.chain(_lines(path, encoding), [""]):
        if line.strip():
            lines.append(line)
        elif lines:
            yield {"text": "".join(lines).rstrip("\n")}
            lines = []


@_decoded
def separated(path: Path, encoding: str | None) -> Iterator[Row]:
    """Rows of comma-, semicolon- or tab-separated values, all of them texts. Rows are counted without the header."""
    dialect = _dialect(path, encoding)
    with _open(path, encoding) as file:
        reader = csv.reader(file, **dialect)
        header: list[str] | None = None
        number = 0
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(f"{path}, row {number}: {error}") from None
            if cells is None:
                return
            if not cells:
                continue
            if header is None:
                header = _header(cells, path)
                continue
            if len(cells) > len(header):
                raise UserError(f"{path}, row {number}: {len(cells)} values, the header names {len(header)} columns")
            yield dict(zip(header, cells + [""] * (len(header) - len(cells))))
            number += 1


def _header(cells: list[str], path: Path) -> list[str]:
    header = [cell.strip() or f"Unnamed: {index}" for index, cell in enumerate(cells)]
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"{path}: two columns are called {name!r}")
    return header


LONGEST_CELL = 2**31 - 1


def _dialect(path: Path, encoding: str | None) -> dict[str, Any]:
    """The separator that gives the header most columns, and whether quotes mean anything in a file with tabs."""
    csv.field_size_limit(LONGEST_CELL)
    usual = "\t" if {".tsv", ".tab"} & {suffix.lower() for suffix in path.suffixes[-2:]} else ","
    with _open(path, encoding) as file:
        line = next((line for line in file if line.strip()), "")
    widths = {mark: len(next(csv.reader([line], delimiter=mark), ())) for mark in (usual, ",", ";", "\t")}
    delimiter = max(widths, key=widths.__getitem__)
    strict: dict[str, Any] = {"delimiter": delimiter, "strict": True}
    if delimiter != "\t":
        return strict
    with _open(path, encoding) as file:
        try:
            for _ in csv.reader(file, **strict):
                pass
        except csv.Error:  # as in GLUE's own files
            return {"delimiter": delimiter, "quoting": csv.QUOTE_NONE}
    return strict


@_decoded
def json_lines(path: Path, encoding: str | None) -> Iterator[Row]:
    """An object a line."""
    number = 0
    for line in _lines(path, encoding):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, row {number}: JSON parse error: {error}") from None
        yield _object(row, path, number)
        number += 1


@_decoded
def json_whole(path: Path, encoding: str | None) -> Iterator[Row]:
    """A list of objects, an object of columns, SQuAD's own format, or objects one after the other in lines."""
    with _open(path, encoding) as file:
        text = file.read()
    try:
        value = json.loads(text)
    except ValueError as error:
        if "Extra data" not in str(error):
            raise UserError(f"{path}: JSON parse error: {error}") from None
        yield from json_lines(path, encoding)
        return
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if isinstance(value, list) and value and isinstance(value[0], dict) and "paragraphs" in value[0]:
        yield from _squad(value, path)
        return
    if isinstance(value, dict):
        columns = {name: list(v.values()) if isinstance(v, dict) else v for name, v in value.items()}
        if len({len(v) if isinstance(v, list) else None for v in columns.values()} | {None}) == 2 and all(
            isinstance(v, list) for v in columns.values()
        ):
            value = [dict(zip(columns, cells)) for cells in zip(*columns.values())]
        else:
            value = [value]
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a list of objects, found {type(value).__name__}")
    for number, row in enumerate(value):
        yield _object(row, path, number)


def _object(row: Any, path: Path, number: int) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{path}, row {number}: expected an object with columns, found {type(row).__name__}")
    return row


def _squad(articles: list, path: Path) -> Iterator[Row]:
    """SQuAD 1.1 and 2.0; a question that is impossible has no answers."""
    for number, article in enumerate(articles):
        try:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [] if question.get("is_impossible") else question.get("answers", [])
                    yield {
                        "id": str(question.get("id", "")),
                        "question": question["question"],
                        "context": paragraph["context"],
                        "answers": {name: [answer[name] for answer in answers] for name in ("text", "answer_start")},
                    }
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, article {number}: not as in SQuAD, {error!r} is missing or wrong") from None


@_decoded
def tagged_words(path: Path, encoding: str | None) -> Iterator[Row]:
    """CoNLL's columns: a word a line, its tag last; blank lines between sentences."""
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(itertools.chain(_lines(path, encoding), [""]), 1):
        cells = line.split()
        if cells and (cells[0] == "-DOCSTART-" or (cells[0] == "#" and not words)):
            continue
        if not cells:
            if words:
                yield {"tokens": words, "ner_tags": tags}
            words, tags = [], []
        elif len(cells) == 1:
            raise UserError(f"{path}, line {number}: expected a word and a tag, found {line.strip()!r}")
        else:
            words.append(cells[0])
            tags.append(cells[-1])


KINDS: dict[str, str | Callable[[Path, str | None], Iterator[Row]]] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".json": json_whole,
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".csv": separated,
    ".tsv": separated,
    ".tab": separated,
    ".txt": paragraphs,
    ".conll": tagged_words,
    ".bio": tagged_words,
    ".iob": tagged_words,
    ".iob2": tagged_words,
}
"""Ending of a file -> its builder in `datasets`, or what reads its rows."""

PACKINGS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zip": None}
"""Endings that come behind another, or of archives."""
