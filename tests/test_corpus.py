"""Text from every source, tokenizers that come out the same, blocks that lose nothing, and one line on bad input."""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from search.data import blocks as blocks_module
from search.data.blocks import tokenized_blocks
from search.data.corpus import Corpus, load_corpus
from search.data.documents import documents
from search.data.python_text import python_documents
from search.data.sources import quiet
from search.data.tokenizer import load_tokenizer
from search.data.tokenizer_kinds import train_wordpiece
from search.errors import UserError


ROOT = Path(__file__).resolve().parents[1]
TEXTS = [f"Document {i} speaks of {word}. It ends here." for i in range(20) for word in ("foxes", "dogs")]


def texts(dataset):
    return list(dataset["text"])


@pytest.fixture(scope="module")
def python_corpus():
    return load_corpus()


@pytest.fixture(scope="module")
def tokenizer(python_corpus, tmp_path_factory):
    return load_tokenizer(None, python_corpus, tmp_path_factory.mktemp("cache"), vocab_size=1000)


# Where text comes from


def test_default_corpus_is_english_prose(python_corpus):
    words = [word for text in documents(python_corpus.train) for word in text.split()]
    assert len(words) > 60_000
    common = Counter(word.lower() for word in words)
    assert {"the", "a", "of", "is", "to"} <= {word for word, _ in common.most_common(10)}
    code = sum(any(mark in word for mark in ("::=", ">>>", "+--", "===")) for word in words)
    assert code < 1e-3 * len(words)


def test_default_corpus_repeats_no_paragraph_and_does_not_leak(python_corpus):
    both = [texts(python_corpus.train), texts(python_corpus.validation)]
    train, validation = ([p for text in split for p in text.split("\n\n")] for split in both)
    assert len(set(train)) == len(train)
    assert not set(train) & set(validation)
    assert 0.08 < len(both[1]) / (len(both[0]) + len(both[1])) < 0.12


def test_default_corpus_is_the_same_in_another_process():
    code = "from search.data.python_text import python_documents; import json; print(json.dumps(python_documents()))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert json.loads(run.stdout) == python_documents()


def write(folder, ending):
    path = folder / f"texts{ending}"
    dataset = Dataset.from_dict({"text": TEXTS, "other": range(len(TEXTS))})
    with quiet():
        if ending == ".parquet":
            dataset.to_parquet(path)
        elif ending == ".csv":
            dataset.to_csv(path)
        elif ending == ".txt":
            path.write_text("\n\n".join(text.replace(". ", ".\n") for text in TEXTS), encoding="utf-8")
        else:
            dataset.to_json(path, lines=ending == ".jsonl")
    return path


@pytest.mark.parametrize("ending", [".parquet", ".json", ".jsonl", ".csv", ".txt"])
def test_reads_files_and_sets_validation_aside(tmp_path, ending):
    corpus = load_corpus(str(write(tmp_path, ending)))
    assert corpus.name == "texts"
    assert corpus.train.column_names == corpus.validation.column_names == ["text"]
    assert len(corpus.validation) == len(TEXTS) // 10
    read = [" ".join(text.split()) for text in texts(corpus.train) + texts(corpus.validation)]
    assert sorted(read) == sorted(TEXTS)


def test_split_depends_on_the_documents_alone(tmp_path):
    forwards, backwards = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    repeated = [*TEXTS, *TEXTS[:10], "", "  "]
    for path, rows in ((forwards, repeated), (backwards, repeated[::-1])):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")
    first, second = load_corpus(str(forwards)), load_corpus(str(backwards))
    assert set(texts(first.validation)) == set(texts(second.validation))
    assert not set(texts(first.train)) & set(texts(first.validation))
    assert all(text.strip() for text in texts(first.validation))


def test_folder_of_plain_text(tmp_path):
    (tmp_path / "one.txt").write_text("First line\nof one.\n\nSecond.", encoding="utf-8")
    (tmp_path / "two.txt").write_text("Third.\n\n\nFourth.\n", encoding="utf-8")
    corpus = load_corpus(str(tmp_path))
    assert sorted(" ".join(text.split()) for text in texts(corpus.train) + texts(corpus.validation)) == [
        "First line of one.",
        "Fourth.",
        "Second.",
        "Third.",
    ]


def test_folder_in_datasets_layout_keeps_its_splits_and_configurations(tmp_path):
    for split, rows in (("train", TEXTS), ("validation", ["One held out."])):
        with quiet():
            Dataset.from_dict({"body": rows}).to_parquet(tmp_path / f"{split}.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n  - split: train\n    path: train.parquet\n"
        "  - split: validation\n    path: validation.parquet\n---\n",
        encoding="utf-8",
    )
    corpus = load_corpus(str(tmp_path), "small", text_column="body")
    assert corpus.name == f"{tmp_path.name}/small"
    assert texts(corpus.train) == TEXTS and texts(corpus.validation) == ["One held out."]
    with pytest.raises(UserError, match="no configuration 'large', there are small"):
        load_corpus(str(tmp_path), "large")


def test_shared_wikipedia(shared):
    corpus = load_corpus(str(shared / "data"), "wikipedia_small")
    assert (corpus.name, len(corpus.train), len(corpus.validation)) == ("data/wikipedia_small", 3801, 1200)


@pytest.mark.parametrize(
    "content, options, message",
    [
        ("text\n\n", {}, "bad.csv: no rows"),
        ("text,b\n ,1\n,2\n", {}, "bad: the corpus is empty"),
        ("text\nOnly one.\n", {}, "holds one document"),
        ("text,b\nOne.,1\nTwo.,2\n", {"text_column": "body"}, "no column 'body', there are text, b"),
        ("text,b\nOne.,1\nTwo.,2\n", {"text_column": "b"}, "column 'b' holds Value('int64'), not text"),
        ("", {}, "the file is empty"),
    ],
)
def test_bad_csv(tmp_path, content, options, message):
    path = tmp_path / "bad.csv"
    path.write_text(content, encoding="utf-8")
    says(message, load_corpus, str(path), **options)


def test_bad_sources(tmp_path):
    says("no such file or folder", load_corpus, str(tmp_path / "nowhere"))
    says("no such file or folder", load_corpus, "texts.parquet")
    says("doesn't contain any data files", load_corpus, str(tmp_path))
    (tmp_path / "image.png").write_bytes(b"")
    says("unknown kind of file, accepted are .parquet", load_corpus, str(tmp_path / "image.png"))
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    says("broken.parquet", load_corpus, str(tmp_path / "broken.parquet"))
    (tmp_path / "broken.json").write_text('{"text": ', encoding="utf-8")
    says("broken.json: JSON parse error", load_corpus, str(tmp_path / "broken.json"))
    (tmp_path / "latin.txt").write_bytes("Gr\xfc\xdfe.\n\nNoch einer.".encode("latin-1"))
    says("latin.txt", load_corpus, str(tmp_path / "latin.txt"))


def test_hub_without_network():
    says("nobody/nothing: no such file or folder here, and not had from the Hub", load_corpus, "nobody/nothing")
    says("tokenizer nobody/nothing: ", load_tokenizer, "nobody/nothing", None, Path())


def test_without_training_split(shared):
    says("no split 'train' to learn from, only validation, test", load_corpus, str(shared / "data"), "wikitext2")


def says(message, function, *args, **options):
    """The call raises a UserError of one readable line."""
    with pytest.raises(UserError) as caught:
        function(*args, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_loading_is_quiet_and_leaves_settings_alone(tmp_path, capfd):
    datasets.enable_progress_bars()  # commands that were tested in this process have switched them off
    levels = {name: logging.getLogger(name).level for name in ("datasets", "huggingface_hub", "transformers")}
    load_corpus(str(write(tmp_path, ".csv")))
    assert datasets.is_progress_bar_enabled()
    assert levels == {name: logging.getLogger(name).level for name in levels}
    assert capfd.readouterr() == ("", "")


# Tokenizers


def test_trained_tokenizer_is_a_bert_tokenizer(tokenizer, python_corpus):
    assert isinstance(tokenizer, BertTokenizer) and len(tokenizer) == 1000
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    encoded = tokenizer("The Function", "returns")
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == [
        "[CLS]", "the", "function", "[SEP]", "returns", "[SEP]",
    ]  # fmt: skip
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert tokenizer.tokenize("##a [MASK]") == ["[UNK]", "[UNK]", "a", "[MASK]"], "only five tokens are special"
    unknown = tokenizer(texts(python_corpus.validation), add_special_tokens=False)["input_ids"]
    assert np.mean([token == tokenizer.unk_token_id for ids in unknown for token in ids]) < 1e-3


def test_training_comes_out_the_same(python_corpus):
    """The trainer of `tokenizers` alone gives another vocabulary each time, within one process too."""
    dataset = python_corpus.train.select(range(300))
    first, second = (train_wordpiece(dataset, 800).get_vocab() for _ in range(2))
    assert first == second and len(first) == 800


def test_trained_tokenizer_is_kept_by_content(tmp_path):
    corpora = [Corpus("c", Dataset.from_dict({"text": rows}), None) for rows in (TEXTS, TEXTS, TEXTS[1:])]
    first, again, other = (load_tokenizer(None, corpus, tmp_path, vocab_size=100) for corpus in corpora)
    assert first.get_vocab() == again.get_vocab()
    assert len(list(tmp_path.glob("tokenizer-*/tokenizer.json"))) == 2
    load_tokenizer(None, corpora[0], tmp_path, vocab_size=110)
    assert len(list(tmp_path.glob("tokenizer-*/tokenizer.json"))) == 3


def test_vocabulary_too_small_for_its_characters(tmp_path):
    corpus = Corpus("c", Dataset.from_dict({"text": TEXTS}), None)
    says("a vocabulary of 20 is too small", load_tokenizer, None, corpus, tmp_path, 20)
    assert not list(tmp_path.glob("tokenizer-*/*"))


@pytest.mark.parametrize("missing", ["pad", "mask", "cls", "sep"])
def test_tokenizer_without_a_special_token(tmp_path, missing):
    names = [name for name in ("pad", "mask", "cls", "sep", "unk") if name != missing]
    backend = Tokenizer(models.WordLevel({f"[{name}]": i for i, name in enumerate(names)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{name}_token": f"[{name}]" for name in names})
    wrapped.save_pretrained(tmp_path / "tokenizer")
    says(f"it has no {missing} token", load_tokenizer, str(tmp_path / "tokenizer"), None, tmp_path)


def test_bad_tokenizer_folders(tmp_path):
    says("no such folder", load_tokenizer, str(tmp_path / "nowhere"), None, tmp_path)
    says(str(tmp_path), load_tokenizer, str(tmp_path), None, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text('{"model": "no"}', encoding="utf-8")
    says(str(tmp_path), load_tokenizer, str(tmp_path), None, tmp_path)


@pytest.mark.parametrize("name, first", [("bert-base-uncased", "[CLS]"), ("roberta-base", "<s>")])
def test_shared_tokenizers(shared, tmp_path, name, first):
    tokenizer = load_tokenizer(str(shared / "data" / "tokenizers" / name), None, tmp_path)
    blocks = tokenized_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, tmp_path)
    assert {tokenizer.convert_ids_to_tokens(int(token)) for token in blocks[:, 0]} == {first}


# Blocks


def test_blocks_hold_the_text_in_order_without_padding(tokenizer, python_corpus, tmp_path):
    dataset = python_corpus.validation
    blocks = tokenized_blocks(dataset, tokenizer, 32, tmp_path)
    assert isinstance(blocks, np.memmap) and blocks.dtype == np.uint16 and blocks.shape[1] == 32
    assert (blocks[:, 0] == tokenizer.cls_token_id).all() and (blocks[:, -1] == tokenizer.sep_token_id).all()
    expected = []
    for text in dataset["text"]:
        expected += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
    content = blocks[:, 1:-1].ravel()
    assert content.tolist() == expected[: len(content)]
    assert len(expected) - len(content) < 30


def test_blocks_of_a_large_vocabulary_have_wider_numbers(tmp_path):
    names = {f"{name}_token": f"[{name}]" for name in ("unk", "pad", "mask", "cls", "sep")}
    words = [*names.values(), *map(str, range(70_000))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    blocks = tokenized_blocks(Dataset.from_dict({"text": ["69999 1 2"]}), tokenizer, 4, tmp_path)
    assert blocks.dtype == np.uint32 and tokenizer.decode(blocks[0, 1]) == "69999"


def test_blocks_are_kept_by_content(tokenizer, tmp_path, monkeypatch):
    dataset = Dataset.from_dict({"text": TEXTS})
    first = tokenized_blocks(dataset, tokenizer, 16, tmp_path)
    tokenizer(TEXTS[:2], padding=True, truncation=True, max_length=8)  # leaves its mark in the tokenizer
    written = []
    write_blocks = blocks_module._write_blocks
    monkeypatch.setattr(blocks_module, "_write_blocks", lambda *args: (written.append(args), write_blocks(*args)))
    again = tokenized_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, tmp_path)
    assert not written and (again == first).all()
    tokenized_blocks(dataset, tokenizer, 17, tmp_path)
    tokenized_blocks(dataset.select(range(30)), tokenizer, 16, tmp_path)
    tokenized_blocks(dataset, BertTokenizer(tokenizer.get_vocab(), do_lower_case=False), 16, tmp_path)
    assert len(written) == 3


def test_blocks_are_read_only(tokenizer, tmp_path):
    blocks = tokenized_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        blocks[0, 0] = 1


def test_text_shorter_than_one_sequence(tokenizer, tmp_path):
    dataset = Dataset.from_dict({"text": ["A few words."]})
    says("too few for one sequence of 64", tokenized_blocks, dataset, tokenizer, 64, tmp_path)
    assert not list(tmp_path.glob("blocks-*/*")), "nothing is left that a later call could take for blocks"
    says("at least 3 tokens", tokenized_blocks, dataset, tokenizer, 2, tmp_path)


def make_blocks(tokenizer, cache, started, delay):
    """In a process of its own: writes blocks of TEXTS, with a pause after the first batch."""
    batched = blocks_module.batched

    def slowly(items, size):
        for batch in batched(items, 5):
            yield batch
            started.set()
            time.sleep(delay)

    blocks_module.batched = slowly
    tokenized_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, cache)


@pytest.fixture
def start(tokenizer, tmp_path):
    """Starts `make_blocks` and returns the process once it has written something, or waits for one that does."""
    context = multiprocessing.get_context("fork")
    processes = []

    def start_one(delay):
        started = context.Event()
        process = context.Process(target=make_blocks, args=(tokenizer, tmp_path, started, delay))
        process.start()
        processes.append(process)
        return process, started

    yield start_one
    for process in processes:
        process.kill()
        process.join()


def test_a_killed_process_leaves_nothing_behind(tokenizer, tmp_path, start):
    process, started = start(delay=60)
    assert started.wait(60)
    assert list(tmp_path.glob(".blocks-*.partial"))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(tmp_path.glob("blocks-*/*"))
    blocks = tokenized_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, tmp_path)
    expected = tokenized_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, tmp_path / "elsewhere")
    assert (blocks == expected).all()
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))


def test_the_second_process_waits_for_the_first(tokenizer, tmp_path, start, monkeypatch):
    process, started = start(delay=0.1)
    assert started.wait(60)
    monkeypatch.setattr(blocks_module, "_write_blocks", lambda *args: pytest.fail("it is being written already"))
    blocks = tokenized_blocks(Dataset.from_dict({"text": TEXTS}), tokenizer, 16, tmp_path)
    process.join()
    assert process.exitcode == 0 and len(blocks) > 0
