"""A corpus that is read while it is trained on: every kind of file, the split by hash, and going on to the bit."""

import csv
import gzip
import json
import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from conftest import SPECS
from datasets import Dataset, DatasetDict, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search.cli import main
from search.data import corpus as corpora
from search.data.block_stream import BlockStream
from search.data.corpus import load_corpus, stream_corpus
from search.data.sources import quiet
from search.data.streaming import DocumentReader, TextStream, is_held_out, open_streams, read_head
from search.errors import UserError
from search.training.masked_lm import StreamedLanguageModelling
from search.training.pretraining import PretrainingBudget, inputs_of, pretrain


WORDS = [f"w{number}" for number in range(55)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [" ".join(random.Random(number).choices(WORDS, k=5 + number % 30)) + f" {number}" for number in range(300)]
PARTS = [TEXTS[:100], TEXTS[100:180], TEXTS[180:]]


@pytest.fixture(scope="module")
def tokenizer():
    numbers = [str(number) for number in range(300)]
    backend = Tokenizer(models.WordLevel({token: n for n, token in enumerate(SPECIAL + WORDS + numbers)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def write(folder, kind):
    """The texts in three files of a kind, with rows without text between them; what to give as --corpus."""
    folder.mkdir(exist_ok=True)
    for number, texts in enumerate(PARTS):
        path = folder / f"part{number}.{kind}"
        rows = {"id": [*range(len(texts) + 2)], "text": ["", *texts, " \n"]}
        if kind == "txt":
            path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        elif kind == "csv":
            with open(path, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("id", "text"), *zip(*rows.values())])
        elif kind.startswith("jsonl"):
            lines = "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in zip(*rows.values()))
            path.write_bytes(gzip.compress(lines.encode()) if kind.endswith("gz") else lines.encode())
        elif kind == "parquet":
            with quiet():
                Dataset.from_dict(rows).to_parquet(path, batch_size=40)
    if kind == "saved":
        with quiet():
            Dataset.from_dict({"text": ["", *TEXTS], "id": [*range(301)]}).save_to_disk(folder / "saved")
        return str(folder / "saved")
    return str(folder)


KINDS = ["txt", "csv", "jsonl", "jsonl.gz", "parquet", "saved"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(tmp_path, kind):
    source = write(tmp_path / "data", kind)
    corpus = stream_corpus(source)
    train, validation = list(corpus.train["text"]), list(corpus.validation["text"])
    assert sorted(train + validation) == sorted(TEXTS) and set(map(is_held_out, validation)) == {True}
    mapped = load_corpus(source)
    assert sorted(filter(str.strip, [*mapped.train["text"], *mapped.validation["text"]])) == sorted(TEXTS)
    reader = DocumentReader(corpus.stream, seed=0)
    first = [reader.read(1, 10**6)[0] for _ in train]
    second = [reader.read(1, 10**6)[0] for _ in train]
    assert sorted(first) == sorted(second) == sorted(train)
    if kind != "saved":  # which is one shard
        assert first != second


def hub_like(folder):
    """What opening a data set of the Hub gives: parquet files, read by `datasets` itself."""
    source = write(folder / "data", "parquet")
    with quiet():
        opened = load_dataset("parquet", data_files=f"{source}/*.parquet", split="train", streaming=True)
    return TextStream("hub", opened.select_columns(["text"]), "text", splits=True)


@pytest.mark.parametrize("kind", [*KINDS, "hub"])
def test_reading_goes_on_from_any_place(tmp_path, kind):
    text = hub_like(tmp_path) if kind == "hub" else stream_corpus(write(tmp_path / "data", kind)).stream
    reader, read, states = DocumentReader(text, seed=3), [], []
    for _ in range(12):
        states.append(json.loads(json.dumps(reader.state)))
        read.append(reader.read(61, 10**6))
    assert reader.epoch == 2
    for index in (0, 1, 4, 5, 11):
        again = DocumentReader(text, 3, states[index])
        assert again.state == states[index]
        assert [again.read(61, 10**6) for _ in range(12 - index)] == read[index:]


def stream(source, tokenizer, window=40):
    return BlockStream(stream_corpus(source).stream, tokenizer, 16, "name", window_tokens=window * 16)


def test_blocks_are_the_text_in_windows(tmp_path, tokenizer):
    """Every document is there once an epoch, and blocks do not depend on how they are taken."""
    source = write(tmp_path / "data", "jsonl")
    blocks = stream(source, tokenizer).reader(seed=1).take(0, 880)  # 22 windows
    assert (blocks[:, 0] == 2).all() and (blocks[:, -1] == 3).all()
    first_number = len(SPECIAL + WORDS)
    numbers = [token - first_number for token in blocks[:, 1:-1].ravel() if token >= first_number]
    counts = np.bincount(np.array(numbers), minlength=300)
    trained = [number for number, text in enumerate(TEXTS) if not is_held_out(text)]
    assert not np.delete(counts, trained).any()
    epochs = 880 * 14 / sum(len(TEXTS[number].split()) + 1 for number in trained)
    assert set(counts[trained]) == {int(epochs), int(epochs) + 1} and epochs > 1
    other = stream(source, tokenizer).reader(seed=1)
    for first, count in [(860, 20), (0, 7), (3, 50), (39, 2), (200, 300), (40, 1), (41, 80)]:
        assert np.array_equal(other.take(first, count), blocks[first : first + count])
    assert not np.array_equal(stream(source, tokenizer).reader(seed=2).take(0, 40), blocks[:40])
    unshuffled = stream(source, tokenizer, window=1).reader(seed=1).take(0, 40)
    assert sorted(map(bytes, unshuffled)) == sorted(map(bytes, blocks[:40]))
    assert not np.array_equal(unshuffled, blocks[:40])


def test_windows_grow(tmp_path, tokenizer):
    text = stream_corpus(write(tmp_path / "data", "txt")).stream
    blocks = BlockStream(text, tokenizer, 16, "name", window_tokens=48 * 16, first_window_tokens=5 * 16)
    sizes = [blocks.size(window) for window in range(7)]
    assert sizes == [5, 10, 20, 40, 48, 48, 48]
    places = [(window, offset) for window, size in enumerate(sizes) for offset in range(size)]
    assert [blocks.locate(block) for block in range(sum(sizes))] == places
    whole = blocks.reader(seed=1).take(0, sum(sizes))
    unshuffled = stream(str(tmp_path / "data"), tokenizer, window=1).reader(seed=1).take(0, sum(sizes))
    for end, size in zip(np.cumsum(sizes), sizes):
        window = slice(end - size, end)
        assert sorted(map(bytes, whole[window])) == sorted(map(bytes, unshuffled[window]))
    other = BlockStream(text, tokenizer, 16, "name", window_tokens=48 * 16, first_window_tokens=5 * 16).reader(seed=1)
    assert np.array_equal(np.concatenate([other.take(n, 3) for n in range(0, 150, 3)]), whole[:150])
    another = BlockStream(text, tokenizer, 16, "name", window_tokens=48 * 16, first_window_tokens=5 * 16).reader(
        seed=1
    )
    another.return_to(other.bookmark)
    assert np.array_equal(another.take(150, 40), whole[150:190])


@pytest.mark.parametrize("steps", [0, 1, 5, 13, 40])
def test_a_bookmark_gives_the_same_blocks(tmp_path, tokenizer, steps):
    source = write(tmp_path / "data", "jsonl.gz")
    straight = stream(source, tokenizer).reader(seed=1)
    taken = [straight.take(step * 9, 9) for step in range(60)]
    reader = stream(source, tokenizer).reader(seed=1)
    for step in range(steps):
        reader.take(step * 9, 9)
    bookmark = json.loads(json.dumps(reader.bookmark))
    other = stream(source, tokenizer).reader(seed=1)
    other.return_to(bookmark)
    assert bookmark["window"] == max(0, steps * 9 - 1) // 40
    for step in range(steps, 60):
        assert np.array_equal(other.take(step * 9, 9), taken[step])


def test_the_first_window_is_kept(tmp_path, tokenizer, monkeypatch):
    """Trials of a search begin at the first block again; nothing is read for that twice."""
    blocks = stream(write(tmp_path / "data", "txt"), tokenizer)
    first = blocks.reader(seed=0).take(0, 130)
    read, really = [], DocumentReader.read
    monkeypatch.setattr(DocumentReader, "read", lambda self, *limits: read.append(limits) or really(self, *limits))
    assert np.array_equal(blocks.reader(seed=0).take(0, 30), first[:30])
    assert len(read) <= 1  # ahead, for the second window


def test_which_documents_validate_depends_on_them_alone(tmp_path):
    texts = [f"document {number}" for number in range(3000)]
    held_out = {text for text in texts if is_held_out(text)}
    assert 10 < len(held_out) < 60
    sides = []
    for name, order in (("a", texts), ("b", texts[::-1] + texts[:500])):
        (tmp_path / name).mkdir()
        for part in range(4):
            (tmp_path / name / f"{part}.txt").write_text("\n\n".join(order[part::4]), encoding="utf-8")
        corpus = stream_corpus(str(tmp_path / name))
        sides.append((set(corpus.train["text"]), set(corpus.validation["text"])))
    assert sides[0] == sides[1] == (set(texts) - held_out, held_out)


def test_a_split_to_validate_with(tmp_path):
    (tmp_path / "train.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "validation.txt").write_text("one\n\ntwo", encoding="utf-8")
    corpus = stream_corpus(str(tmp_path))
    assert list(corpus.validation["text"]) == ["one", "two"] and len(corpus.train) == len(TEXTS)
    assert sorted(DocumentReader(corpus.stream, 0).read(300, 10**9)) == sorted(TEXTS)


def test_the_head_is_from_all_shards_and_not_more(tmp_path):
    for part in range(20):
        (tmp_path / f"{part}.txt").write_text("\n\n".join(f"{part} " + "x" * 98 for _ in range(400)), encoding="utf-8")
    text = open_streams(str(tmp_path), None, "text", None)["train"]
    train, held_out = read_head(text, 32_000)
    parts = [document.split()[0] for document in train]
    assert not held_out and len(set(parts)) == 16 and max(map(parts.count, parts)) == 20
    (tmp_path / "many").mkdir()
    for part in range(100):
        (tmp_path / "many" / f"{part}.txt").write_text(f"only {part}", encoding="utf-8")
    train, _ = read_head(open_streams(str(tmp_path / "many"), None, "text", None)["train"], 10**6)
    assert len(train) == 100


def test_two_processes_share_a_batch(tmp_path, tokenizer):
    source = write(tmp_path / "data", "csv")
    batches = [StreamedLanguageModelling(stream(source, tokenizer), tokenizer, 0.15, 0) for _ in range(2)]
    for step in (0, 7, 30):
        arrays = [batch.arrays(step, 8) for batch in batches]
        shares = [inputs_of(arrays[rank], rank, 2, torch.device("cpu"))["input_ids"] for rank in range(2)]
        assert torch.equal(torch.cat(shares), torch.as_tensor(arrays[0]["input_ids"]))


class Killed(Exception):
    pass


def train(source, tokenizer, folder, kill_at=None, steps=20):
    set_seed(0)
    config = FlexiBertConfig(
        vocab_size=len(tokenizer), layers=SPECS["homogeneous"][:1], max_position_embeddings=16, hidden_dropout_prob=0.1
    )
    model = FlexiBertForMaskedLM(config)
    budget = PretrainingBudget(steps=steps, batch_size=8, sequence_length=16, checkpoint_steps=4)

    def progress(done, loss, rate):
        if kill_at is not None and done >= kill_at:
            raise Killed

    accelerator, blocks = Accelerator(cpu=True), stream(source, tokenizer)
    validation = blocks.reader(9).take(0, 8)
    blocks._reader = None
    try:
        result = pretrain(model, blocks, validation, tokenizer, budget, 0, accelerator, folder, progress)
    except Killed:
        return None
    finally:
        accelerator.free_memory()
    return model.state_dict(), result


def test_a_killed_training_ends_as_if_it_had_not_been(tmp_path, tokenizer):
    source = write(tmp_path / "data", "parquet")
    expected, result = train(source, tokenizer, None)
    assert train(source, tokenizer, tmp_path / "t", kill_at=17) is None
    state = json.loads((tmp_path / "t" / "checkpoint" / "pretraining.json").read_text(encoding="utf-8"))
    assert state["step"] == 16 and state["bookmark"]["window"] == 3
    weights, again = train(source, tokenizer, tmp_path / "t")
    assert again.losses == result.losses and all(torch.equal(weights[name], expected[name]) for name in expected)


TINY = {
    "description": "seconds", "tasks": ["next_sentence"], "vocab_size": 400, "trials": 2, "max_train_examples": 40,
    "space": {
        "num_layers": [1], "hidden_size": [16], "num_heads": [2], "feed_forward_size": [16], "feed_forward_depth": [1],
        "operations": [{"op": "self_attention"}, {"op": "linear_transform"}],
    },
    "sampler": {"name": "random"}, "streaming": True,
    "pretraining": {"steps": 4, "batch_size": 4, "sequence_length": 16},
    "finetuning": {"epochs": 1, "max_length": 32},
}  # fmt: skip


def documents(count):
    rng = random.Random(0)
    return ["\n".join(" ".join(rng.choices(WORDS, k=9)).capitalize() + "." for _ in range(6)) for _ in range(count)]


def test_a_streamed_pretraining(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n\n".join(documents(300)), encoding="utf-8")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY), encoding="utf-8")
    (tmp_path / "model.json").write_text(json.dumps({"layers": SPECS["homogeneous"][:1]}), encoding="utf-8")
    given = ["--recipe", str(tmp_path / "tiny.json"), "--corpus", str(tmp_path / "text.txt")]
    assert (
        main(["pretrain", *given, "--architecture", str(tmp_path / "model.json"), "--output", str(tmp_path / "o")])
        == 0
    )
    assert "text: read while it is trained on, in 1 parts" in capsys.readouterr().out
    assert (tmp_path / "o" / "config.json").is_file()


@pytest.mark.slow
def test_a_streamed_search(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n\n".join(documents(400)), encoding="utf-8")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY), encoding="utf-8")
    given = ["--recipe", str(tmp_path / "tiny.json"), "--corpus", str(tmp_path / "text.txt")]
    assert main(["run", *given, "--runs", str(tmp_path), "--name", "r"]) == 0
    assert (tmp_path / "r" / "best" / "config.json").is_file()
    (tmp_path / "tiny.json").write_text(json.dumps({**TINY, "streaming": False}), encoding="utf-8")
    assert main(["run", *given, "--runs", str(tmp_path), "--name", "r"]) == 2
    assert "streaming" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, options, message",
    [
        ('{"words": "x"}\n', [], "text.jsonl, row 0: no column 'text', there are words"),
        ('{"text": "x"}\n{"text": 7}\n', [], "text.jsonl, row 1: column 'text' holds int, not text"),
        ('{"text": "x"}\n{"text": \n', [], "text.jsonl, row 1: JSON parse error"),
        ('{"text": "\\ud800 x"}\n', [], "text.jsonl, row 0: column 'text' holds half of a character"),
        ('{"text": " "}\n', [], "text: the corpus is empty, no row of train holds any text"),
        ('{"text": "x"}\n' * 7, [], "text: none of the first 7 documents is set aside for validation"),
        ('{"text": "x"}\n', ["--teacher", "x"], "--streaming and --teacher do not go together"),
        ('{"text": "x"}\n', ["--sequence-length", "2"], "none of the first 1 documents"),
        (None, [], "no such file or folder"),
    ],
)
def test_what_cannot_be_streamed_in_one_line(tmp_path, capsys, content, options, message):
    path = tmp_path / "text.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    place = ["--architecture", "bert-tiny", "--output", str(tmp_path / "o"), "--corpus", str(path), "--streaming"]
    assert main(["pretrain", *place, *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_streaming_needs_a_corpus():
    with pytest.raises(UserError, match="--streaming needs a --corpus"):
        stream_corpus(None)


def test_a_saved_data_set_with_splits(tmp_path):
    with quiet():
        DatasetDict(
            train=Dataset.from_dict({"text": TEXTS}), validation=Dataset.from_dict({"text": ["held"]})
        ).save_to_disk(tmp_path / "saved")
    corpus = stream_corpus(str(tmp_path / "saved"))
    assert len(corpus.train) == 300 and list(corpus.validation["text"]) == ["held"]


def test_a_damaged_archive_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "HEAD_CHARACTERS", 100)  # the damage lies behind the head
    packed = gzip.compress("\n\n".join(f"{text} {'yz' * 99}" for text in TEXTS * 9).encode(), 0)
    (tmp_path / "a.txt.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "validation.txt").write_text("held", encoding="utf-8")
    reader = DocumentReader(stream_corpus(str(tmp_path)).stream, 0)
    with pytest.raises(UserError, match="a.txt.gz: cannot be read") as caught:
        while True:
            reader.read(10, 10**6)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_benchmark_of_streaming(tmp_path):
    """Of a corpus of megabytes; how fast it is, is for a machine with nothing else to do."""
    from benchmarks.streaming import main as benchmark

    size = ["--gigabytes", "0.02", "--shard-bytes", "4000000", "--vocabulary", "2000", "--architecture", "bert-tiny"]
    budget = ["--steps", "5", "--batch-size", "4", "--sequence-length", "32", "--rounds", "1", "--threads", "1"]
    benchmark([*size, *budget, "--folder", str(tmp_path), "--output", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["ratio"] > 0 and found["streamed"]["own_memory_mib"] < 1024
