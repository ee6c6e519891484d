"""`search export`: files for ONNX Runtime that compute what PyTorch computes, and what it refuses."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import SPECS, layer, op
from tokenizers import Tokenizer
from transformers import BertTokenizer

from flexibert import (
    FlexiBertConfig,
    FlexiBertForMaskedLM,
    FlexiBertForQuestionAnswering,
    FlexiBertForSequenceClassification,
    FlexiBertForTokenClassification,
)
from search.artifacts.export import MANIFEST
from search.cli import main


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


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_every_head(head, tmp_path, capsys):
    """A user without torch: tokenizers, ONNX Runtime and the manifest give what the model gives."""
    model = save(head, tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--precision", "float32"]) == 0
    folder = tmp_path / "model" / "onnx"
    assert "largest difference from PyTorch" in capsys.readouterr().out
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["outputs"] == HEADS[head] and manifest["fingerprint"] == model.config.fingerprint
    (file,) = manifest["files"]
    assert file["difference"] < 1e-4 and file["bytes"] >= (folder / file["file"]).stat().st_size

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(["the cat sat", "a dog ran under the tree"])
    inputs = {
        "input_ids": np.array([encoding.ids for encoding in encodings]),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
        "token_type_ids": np.array([encoding.type_ids for encoding in encodings]),
    }
    actual = onnxruntime.InferenceSession(str(folder / file["file"])).run(None, inputs)
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    for name, array in zip(manifest["outputs"], actual):
        np.testing.assert_allclose(array, expected[name].numpy(), atol=1e-4)


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
