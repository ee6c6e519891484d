"""`search export`: files for ONNX Runtime that compute what PyTorch computes, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import SPECS, layer, op
from transformers import BertTokenizer

from flexibert import (
    FlexiBertConfig,
    FlexiBertForMaskedLM,
    FlexiBertForQuestionAnswering,
    FlexiBertForSequenceClassification,
    FlexiBertForTokenClassification,
)
from search.artifacts.export import MANIFEST
from search.artifacts.sentence_files import write_sentence_files
from search.cli import main


EXAMPLE = Path(__file__).parents[1] / "examples" / "run_exported.py"
LAYERS = [layer(32, op("self_attention", 2), op("dynamic_convolution", 2, kernel_size=5)), *SPECS["cosine"][:1]]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "sat", "ran", "on", "under", "tree"]


def save(head, folder, **fields):
    torch.manual_seed(0)
    config = FlexiBertConfig(layers=LAYERS, vocab_size=len(WORDS), max_position_embeddings=24, **fields)
    model = head(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(folder)
    return model


HEADS = {
    FlexiBertForMaskedLM: ["logits"],
    FlexiBertForSequenceClassification: ["logits"],
    FlexiBertForTokenClassification: ["logits"],
    FlexiBertForQuestionAnswering: ["start_logits", "end_logits"],
}


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(head, marks=slow if "Token" in head.__name__ or "Masked" in head.__name__ else ())
        for head in HEADS
    ],
    ids=lambda head: head.__name__,
)
def test_every_head(head, tmp_path, capsys):
    """What the readme of an export says, and the example, run where nobody can import torch, and give what the model
    gives."""
    model = save(head, tmp_path / "model")
    precisions = ["float32", *["int8"] * (head is FlexiBertForSequenceClassification)]
    assert main(["export", str(tmp_path / "model"), "--precision", ",".join(precisions)]) == 0
    folder = tmp_path / "model" / "onnx"
    assert "largest difference from PyTorch" in capsys.readouterr().out
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["outputs"] == HEADS[head] and manifest["fingerprint"] == model.config.fingerprint
    file, *small = manifest["files"]
    assert [file["precision"] for file in small] == precisions[1:]
    assert all(file["relative_error"] < 0.2 for file in small)
    assert file["difference"] < 1e-4 and file["bytes"] >= (folder / file["file"]).stat().st_size

    texts = ["the cat sat", "a dog ran under the tree"]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    snippet = (
        readme.split("```python\n")[1].split("```")[0].replace('["A text.", "And one that is longer."]', repr(texts))
    )
    saving = "\nnp.savez('outputs.npz', *outputs, **{f'_{name}': rows for name, rows in inputs.items()})\n"
    example = [str(EXAMPLE), ".", *texts]
    code = (
        "import runpy, sys\nsys.modules |= dict.fromkeys(('torch', 'transformers', 'flexibert', 'search'))\n"
        f"{snippet}{saving}sys.argv[:] = {example!r}\nrunpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in HEADS[head])
    found = np.load(folder / "outputs.npz")
    inputs = {name: torch.from_numpy(found[f"_{name}"]) for name in manifest["inputs"]}
    with torch.no_grad():
        expected = model(**inputs)
    for index, name in enumerate(manifest["outputs"]):
        np.testing.assert_allclose(found[f"arr_{index}"], expected[name].numpy(), atol=1e-4)


def test_what_int8_costs_in_score(tmp_path, capsys):
    """On the validation data of the task that a checkpoint was fine-tuned on: PyTorch's accuracy, and each file's."""
    model = save(FlexiBertForSequenceClassification, tmp_path / "model", num_labels=2)
    texts = [f"{a} {b} {c}" for a in ("the", "a") for b in ("cat", "dog") for c in ("sat", "ran", "on", "under")]
    rows = [f"{text},{'good' if index % 3 else 'bad'}" for index, text in enumerate(texts)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *rows, ""]), encoding="utf-8")
    task = ["--tasks", f"{tmp_path}/train.csv:text:label", "--validation", f"{tmp_path}/validation.csv"]
    assert main(["export", str(tmp_path / "model"), *task, "--output", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(tmp_path / "out"))]
    assert len(lines) == 2 and all("than in PyTorch" in line or "as in PyTorch" in line for line in lines)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text(encoding="utf-8"))
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        chosen = model(**tokenizer(texts, return_tensors="pt", padding=True)).logits.argmax(-1)
    right = np.mean([(index % 3 > 0) == bool(label) for index, label in enumerate(chosen)])
    (name,) = [name for name in manifest["scores"] if "accuracy" in name]
    assert manifest["scores"][name] == pytest.approx(100 * right)
    assert [file["scores"].keys() for file in manifest["files"]] == [manifest["scores"].keys()] * 2
    assert manifest["files"][0]["scores"] == manifest["scores"]
    assert "accuracy" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    save(FlexiBertForSequenceClassification, tmp_path / "other", num_labels=5)
    save(FlexiBertForMaskedLM, tmp_path / "masked")
    for other, reason in (("other", "it has 2 labels, and the checkpoint 5"), ("masked", "was not fine-tuned on it")):
        assert main(["export", str(tmp_path / other), *task, "--precision", "float32"]) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1
        assert not (tmp_path / other / "onnx").exists()


def test_a_sentence_encoder(tmp_path):
    """Its files give what the library sentence-transformers would: the mean of a text's states through the map."""
    model = save(FlexiBertForMaskedLM, tmp_path / "model")
    learnt = {"weight": torch.randn(6, 32), "bias": torch.randn(6)}
    write_sentence_files(tmp_path / "model", model.config, learnt)
    pairs = [
        f"{a} sat,{b} ran on the tree,{number}" for number, (a, b) in enumerate([("cat", "dog"), ("a", "the")] * 4)
    ]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("\n".join(["first,second,label", *pairs, ""]), encoding="utf-8")
    task = ["--tasks", f"{tmp_path}/train.csv:first+second:label", "--validation", f"{tmp_path}/validation.csv"]
    arguments = [*task, "--task-type", "regression", "--precision", "float32"]
    assert main(["export", str(tmp_path / "model"), *arguments]) == 0
    folder = tmp_path / "model" / "onnx"
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["outputs"] == ["last_hidden_state", "sentence_embedding"]
    assert any("spearman" in name for name in manifest["files"][0]["scores"])
    batch = BertTokenizer.from_pretrained(tmp_path / "model")(["the cat sat", "a"], return_tensors="pt", padding=True)
    with torch.no_grad():
        states, mask = model.model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        expected = (states * mask).sum(1) / mask.sum(1) @ learnt["weight"].T + learnt["bias"]
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    _, embedding = session.run(None, {name: ids.numpy() for name, ids in batch.items()})
    np.testing.assert_allclose(embedding, expected.numpy(), atol=1e-4)


def test_every_precision(tmp_path):
    save(FlexiBertForMaskedLM, tmp_path / "model")
    (tmp_path / "texts.txt").write_text(
        "the cat sat on the tree\n\na dog ran\n\nthe dog sat under a tree\n" * 5, "utf-8"
    )
    arguments = [
        "--encoder",
        "--precision",
        "float32,float16,int8,int8-static",
        "--corpus",
        str(tmp_path / "texts.txt"),
    ]
    assert main(["export", str(tmp_path / "model"), "--output", str(tmp_path / "out"), *arguments]) == 0
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["outputs"] == ["last_hidden_state"]
    errors = {file["precision"]: file["relative_error"] for file in manifest["files"]}
    assert list(errors) == ["float32", "float16", "int8", "int8-static"]
    assert errors["float32"] < 1e-5 < errors["float16"] < 5e-3 < errors["int8"] < 0.2
    assert errors["int8-static"] < 0.3
    assert (tmp_path / "out" / "model_float16.onnx").stat().st_size < (tmp_path / "out" / "model.onnx").stat().st_size


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--precision", "int4"],
            "--precision: 'int4' is not accepted for onnx, known: float32, float16, int8",
        ),
        (["--precision", "int8,int8"], "--precision: expected different ones of"),
        (["--precision", "int8-static"], "give the texts that fix the ranges of activations with --corpus"),
        (["--runtime", "tensorrt"], "--runtime: 'tensorrt' is not accepted, known: onnx, openvino"),
        (["--output", "full"], "full exists and is no export; name a new folder or an empty one"),
    ],
)
def test_refuses(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    save(FlexiBertForMaskedLM, tmp_path / "model")
    capsys.readouterr()
    assert main(["export", "model", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["nothing", "folder"])
def test_refuses_what_is_no_checkpoint(name, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    assert main(["export", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
