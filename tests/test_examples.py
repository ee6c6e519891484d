"""Every file in examples/ runs, on a tiny checkpoint, and says what it should."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search.data.corpus import load_corpus
from search.data.tokenizer import load_tokenizer


EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NUMBER = r"(\d+\.\d+(?:e-\d+)?)"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Two layers, all kinds of operations of FlexiBERT."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = load_tokenizer(None, load_corpus(), folder / "cache", 1000)
    operations = [
        {"op": "self_attention", "num_heads": 2},
        {"op": "linear_transform", "num_heads": 1, "transform": "cosine"},
        {"op": "dynamic_convolution", "num_heads": 1, "kernel_size": 5},
    ]
    layers = [{"hidden_size": 32, "operations": operations, "feed_forward": [32]}] * 2
    torch.manual_seed(0)
    config = FlexiBertConfig(vocab_size=len(tokenizer), layers=layers, max_position_embeddings=64)
    FlexiBertForMaskedLM(config).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    return str(folder / "tiny")


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs an example in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        with monkeypatch.context():
            try:
                runpy.run_path(str(EXAMPLES / name), run_name="__main__")
            except SystemExit as end:
                assert not end.code
        return capsys.readouterr().out

    return run


def test_each_is_short_and_has_a_test():
    own = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 40, path.name
        assert f'"{path.name}"' in own, path.name


def test_fill_mask(run, checkpoint):
    assert len(run("fill_mask.py", checkpoint, "the [MASK] of it").splitlines()) == 5


def test_classify(run, checkpoint, tmp_path):
    rows = ["text,label", *['"a fine film, really",good', "a dull film,bad"] * 24]
    (tmp_path / "mine.csv").write_text("\n".join(rows), encoding="utf-8")
    said = run("classify.py", checkpoint, "mine.csv", "out")
    assert {line.split()[0] for line in said.splitlines()[-6:]} <= {"good", "bad"}
    assert AutoConfig.from_pretrained("out").id2label == {0: "bad", 1: "good"}


def test_streaming(run, tmp_path):
    pages = "\n\n".join(f"the page {number} of a river that runs through it" for number in range(600))
    (tmp_path / "pages.txt").write_text(pages, encoding="utf-8")
    steps = ("--steps", 3, "--batch-size", 2, "--sequence-length", 16)
    assert "| steps | 3 |" in run("streaming.py", "pages.txt", *steps)


def test_embed_sentences(run, checkpoint):
    rows = [line.split()[:3] for line in run("embed_sentences.py", checkpoint).splitlines()]
    assert [rows[index][index] for index in range(3)] == ["1.00"] * 3
    assert rows[0][1] == rows[1][0] != "1.00"


@pytest.mark.slow
def test_lora(run, checkpoint):
    pytest.importorskip("peft")
    said = run("lora.py", checkpoint, 3)
    assert "trainable params" in said and float(re.search(f"differ by {NUMBER}", said)[1]) < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_int8(run, checkpoint):
    *sizes, difference = map(float, re.findall(NUMBER, run("int8.py", checkpoint)))
    assert len(sizes) == 2 and 0 < difference < 10


@pytest.mark.slow
def test_compile_model(run, checkpoint):
    differences = re.findall(f"difference {NUMBER}", run("compile_model.py", checkpoint))
    assert len(differences) == 2 and max(map(float, differences)) < 1e-4


@pytest.mark.slow
def test_export_onnx(run, checkpoint):
    pytest.importorskip("onnxscript")
    said = run("export_onnx.py", checkpoint, "onnx")
    assert float(re.search(f"PyTorch {NUMBER}", said)[1]) < 1e-4
    assert re.search(r"logits \(2, \d+, \d+\)", said)
    assert re.search(r"logits \(1, \d+, \d+\)", run("run_exported.py", "onnx", "A text."))


@pytest.mark.slow
def test_search_in_python(run):
    said = run("search_in_python.py", 2, 1)
    assert "best loss" in said and said.count("hidden_size") in (2, 3)


@pytest.mark.slow
def test_trackers_and_dashboard(run):
    pytest.importorskip("tensorboard")
    tiny = ["--trials", "1", "--steps", "2", "--batch-size", "4", "--max-train-examples", "32", "--epochs", "1"]
    said = run("trackers.py", "tensorboard", *tiny)
    assert "tfevents" in said.splitlines()[-1]
    said = run("dashboard.py", "runs/tracked")
    for metric in ("parameters", "mlm_loss_nats", "score_percent", "word_order"):
        assert re.search(rf"^{metric}\S* +[\d.e+]+ to", said, re.MULTILINE), metric


@pytest.mark.slow
def test_glue_trainer(run, checkpoint, shared):
    said = run("glue_trainer.py", checkpoint, "rte", shared / "data")
    assert "eval_accuracy" in said
