"""Damaged files: whoever reads a folder says in one line which file it is."""

import errno
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import SPECS
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search import cli
from search.artifacts import export
from search.artifacts.checkpoint import check_checkpoint
from search.artifacts.golden import load_whole
from search.data.cache import cached
from search.data.tokenizer import load_tokenizer
from search.errors import UserError
from search.evaluation.first_weights import FromNearest
from search.evaluation.supernet import load_supernet
from search.evaluation.zero_shot import SentenceEncoder
from search.files import check_whole
from search.training.encoders import load_model
from search.training.state import load_checkpoint
from search.training.teacher import Teacher


def nearest(folder):
    return FromNearest({"vocab_size": 20}, "ordered", 0).model(SPECS["widening"], folder)


READERS = {
    "tokenizer": (lambda folder: load_tokenizer(str(folder)), UserError),
    "fine-tuning": (lambda folder: load_model(folder, None), UserError),
    "teacher": (lambda folder: Teacher(str(folder)), UserError),
    "evaluation": (lambda folder: SentenceEncoder(str(folder), torch.device("cpu")), UserError),
    "export": (lambda folder: export.load(folder, True), UserError),
    "super-network": (load_supernet, UserError),
    "training": (lambda folder: load_checkpoint(Accelerator(cpu=True), folder.parent, {}), UserError),
    "transfer": (nearest, RuntimeError),  # of the candidate, not of the search
}
DAMAGE = {
    "config.json": lambda file: file.write_bytes(file.read_bytes()[:-5]),
    "tokenizer.json": lambda file: file.write_bytes(b""),
    "model.safetensors": lambda file: file.write_bytes(file.read_bytes()[:-5]),
    "golden.safetensors": lambda file: file.write_bytes(b"\xff" * 100),
}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "checkpoint"
    place.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "pretraining.json"):
        (place / name).write_text(json.dumps({"step": 1, "losses": []}), encoding="utf-8")
    for name in ("model.safetensors", "golden.safetensors"):
        save_file({"weight": torch.ones(3)}, place / name)
    check_whole(place)
    check_whole("someone/on-the-hub")
    return place


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("reader", READERS)
def test_the_damaged_file_is_named(folder, reader, name):
    DAMAGE[name](folder / name)
    read, kind = READERS[reader]
    with pytest.raises(kind) as refused:
        read(folder)
    assert str(refused.value).startswith(f"{folder / name} is damaged: ") and "\n" not in str(refused.value)
    assert isinstance(refused.value, UserError) == (kind is UserError)


@pytest.mark.parametrize("error", [OSError(), ValueError("\n")], ids=["silent", "blank"])
@pytest.mark.parametrize("reader", ["fine-tuning", "export", "super-network", "golden"])
def test_an_error_without_a_word_is_told_by_its_kind(tmp_path, monkeypatch, reader, error):
    """Libraries raise such ones, too; the line then ends with the name of the exception."""

    def fails(*args, **kwargs):
        raise error

    if reader == "super-network":
        error = OSError() if isinstance(error, ValueError) else error
        space = {"num_layers": [1], "hidden_size": [8], "num_heads": [1], "operations": [{"op": "self_attention"}]}
        description = {"space": {**space, "feed_forward_size": [8]}, "fields": {"vocab_size": 9}}
        (tmp_path / "supernet.json").write_text(json.dumps(description), encoding="utf-8")
        monkeypatch.setattr("search.evaluation.supernet.load_file", fails)
        read = load_supernet
    else:
        FlexiBertForMaskedLM(FlexiBertConfig(layers=SPECS["homogeneous"], vocab_size=9)).save_pretrained(tmp_path)
        monkeypatch.setattr("transformers.AutoModelForMaskedLM.from_pretrained", fails)
        monkeypatch.setattr("flexibert.FlexiBertForMaskedLM.from_pretrained", fails)
        read = {"export": lambda folder: export.load(folder, False), "golden": load_whole}.get(reader) or (
            lambda folder: load_model(folder, SimpleNamespace(auto_class=AutoModelForMaskedLM), new_head=False)
        )
    with pytest.raises(UserError, match=f"{type(error).__name__}$"):
        read(tmp_path)


def test_a_checkpoint_that_is_published_is_looked_at(folder):
    for name in ("README.md", "attention_graph.py", "configuration_flexibert.py", "modeling_flexibert.py"):
        (folder / name).touch()
    for name in ("operations.py", "spec.py"):
        (folder / name).touch()
    DAMAGE["model.safetensors"](folder / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        check_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"PK half of what torch has saved"])
def test_what_training_resumes_from_is_looked_at(folder, content):
    (folder / "optimizer.bin").write_bytes(content)
    with pytest.raises(UserError, match="optimizer.bin is damaged: its end is missing"):
        load_checkpoint(Accelerator(cpu=True), folder.parent, {})
    (folder / "pretraining.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="pretraining.json is damaged: it holds no steps"):
        load_checkpoint(Accelerator(cpu=True), folder.parent, {})


def test_damaged_caches_say_what_to_do(tmp_path):
    (tmp_path / "tokens.npy").write_bytes(b"\x93NUMPY half")
    with pytest.raises(UserError, match="is damaged, remove it and it is made again"), cached(tmp_path):
        np.load(tmp_path / "tokens.npy")


FULL = {
    "system": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "torch": RuntimeError("PytorchStreamWriter failed writing file: No space left on device"),
}


@pytest.fixture
def command(monkeypatch):
    """The command, where all it does is to raise an error."""

    def end_with(error):
        def run(options):
            raise error

        def parser():
            one = cli.Parser()
            one.set_defaults(run=run)
            return one

        monkeypatch.setattr(cli, "build_parser", parser)
        return cli.main([])

    return end_with


@pytest.mark.parametrize("kind", FULL)
def test_a_full_disk_is_one_line_wherever_it_is_met(command, capsys, kind):
    assert command(FULL[kind]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_no_fault_of_the_user_is_not_hidden(command):
    with pytest.raises(ValueError, match="of our own"):
        command(ValueError("of our own"))
