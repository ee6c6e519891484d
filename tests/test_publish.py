"""Checkpoints and model cards."""

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import SPECS, layer, op
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from flexibert import (
    FlexiBertConfig,
    FlexiBertForMaskedLM,
    FlexiBertForQuestionAnswering,
    FlexiBertForSequenceClassification,
    FlexiBertForTokenClassification,
)
from search.artifacts.checkpoint import SOURCES, save_checkpoint
from search.artifacts.golden import GOLDEN_TOKEN, stated_tolerance, verify, write_golden
from search.artifacts.model_card import CardFacts, Score, write_card
from search.errors import UserError
from search.files import HOST, replace_file, replace_folder


SCORES = (
    Score(
        task="CoLA",
        metric="matthews_correlation_percent",
        value=12.25,
        dataset="GLUE CoLA",
        hub_dataset="nyu-mll/glue",
        config="cola",
        budget="2 epochs",
        seeds=(0, 1),
        standard_deviation=1.5,
    ),
    Score("MRPC", "accuracy_percent", 70.0, "GLUE MRPC", hub_dataset="nyu-mll/glue", config="mrpc"),
    Score("MRPC", "f1_percent", 80.0, "GLUE MRPC", hub_dataset="nyu-mll/glue", config="mrpc"),
    Score("word order", "accuracy_percent", 61.5, "sentences of the corpus, 10k sample"),
    Score("masked words", "mlm_loss_nats", 5.5, "pydoc topics", task_type="fill-mask"),
)
FACTS = CardFacts(
    name="tiny",
    corpus="the help texts of CPython 3.11",
    pretraining={"steps": 120, "batch_size": 32, "learning_rate": 2e-3, "train_seconds": 3.25},
    seeds=(0,),
    scores=SCORES,
    search={"sampler": "tpe", "trial": 7},
    hub_datasets=("wikimedia/wikipedia",),
    language="en",
)


def make_tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "capital", "of", "is", "a", "film", "one", "."]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    names = {f"{name}_token": token for name, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=40, **names)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def build(layers=None, **fields):
    """A model whose biases and norms are random too."""
    torch.manual_seed(0)
    layers = SPECS["mixed_heads"] + SPECS["graph"][:1] if layers is None else layers
    model = FlexiBertForMaskedLM(FlexiBertConfig(vocab_size=13, layers=layers, max_position_embeddings=40, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    """Shared by tests that only read."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(build(), tokenizer, folder, FACTS)
    return folder


@pytest.fixture
def own(tmp_path, tokenizer):
    """A checkpoint that a test may change."""
    save_checkpoint(build(), tokenizer, tmp_path / "own", FACTS)
    return tmp_path / "own"


def test_checkpoint_is_complete(checkpoint):
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "golden.safetensors", "tokenizer.json", "tokenizer_config.json",
        "README.md", "architecture.svg", ".eval_results", *SOURCES,
    }  # fmt: skip
    assert not [path for path in checkpoint.parent.iterdir() if path != checkpoint]


def test_the_tokenizer_cuts_what_is_too_long(tmp_path, tokenizer):
    """A tokenizer that knows a shorter length keeps it; the one that was handed in stays as it is."""
    for own, saved in ((10**30, 40), (64, 40), (16, 16)):
        given = copy.deepcopy(tokenizer)
        given.model_max_length = own
        save_checkpoint(build(), given, tmp_path / "model", FACTS)
        assert given.model_max_length == own
        loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
        tokens = loaded("capital " * 400, truncation=True, return_tensors="pt")
        assert tokens["input_ids"].shape == (1, saved)
        FlexiBertForMaskedLM.from_pretrained(tmp_path / "model")(**tokens)


@pytest.mark.parametrize("fields", [{}, {"position_embedding_type": "relative_key"}, {"tie_word_embeddings": False}])
def test_golden_logits_are_bit_equal(tmp_path, tokenizer, fields):
    model = build(**fields)
    model.set_attn_implementation("eager")
    save_checkpoint(model.train(), tokenizer, tmp_path / "model", FACTS)
    assert verify(tmp_path / "model") == 0.0
    assert model.training and model.config._attn_implementation == "eager"


def test_golden_logits_in_bfloat16(tmp_path, tokenizer):
    save_checkpoint(build().to(torch.bfloat16), tokenizer, tmp_path / "model", FACTS)
    assert load_file(tmp_path / "model" / "golden.safetensors")["logits"].dtype == torch.bfloat16
    assert verify(tmp_path / "model") == 0.0
    assert "| stored as | bfloat16 |" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_golden_logits_are_the_models(checkpoint):
    golden = load_file(checkpoint / "golden.safetensors")
    assert golden["attention_mask"].min() == 0 and golden["logits"].shape == (2, 13)
    logits = build().eval()(golden["input_ids"], attention_mask=golden["attention_mask"]).logits
    torch.testing.assert_close(logits[:, GOLDEN_TOKEN], golden["logits"])


@pytest.mark.parametrize(
    "head, fields, names",
    [
        (FlexiBertForSequenceClassification, {}, {"logits"}),
        (FlexiBertForSequenceClassification, {"pair_encoding": "separate"}, {"logits", "token_type_ids"}),
        (FlexiBertForTokenClassification, {}, {"logits"}),
        (FlexiBertForQuestionAnswering, {}, {"start_logits", "end_logits"}),
    ],
)
def test_every_head_has_golden_outputs(tmp_path, head, fields, names):
    torch.manual_seed(0)
    model = head(FlexiBertConfig(vocab_size=13, layers=SPECS["mixed_heads"], max_position_embeddings=40, **fields))
    model.save_pretrained(tmp_path)
    write_golden(model, tmp_path)
    golden = load_file(tmp_path / "golden.safetensors")
    assert set(golden) == {"input_ids", "attention_mask"} | names
    assert verify(tmp_path) == 0.0 and stated_tolerance(tmp_path) == 1e-4
    FlexiBertForMaskedLM(model.config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="golden.safetensors holds .* of another shape or name than the model's"):
        verify(tmp_path)


def test_damage_is_noticed(own):
    weights = load_file(own / "model.safetensors")
    weights["prediction_head.dense.bias"] += 0.01
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    assert verify(own) > 1e-4


def test_verify_needs_golden_logits(own):
    (own / "golden.safetensors").unlink()
    with pytest.raises(UserError, match="golden.safetensors is missing"):
        verify(own)


# --- whole or not at all ------------------------------------------------------------------------------------------


def test_failed_save_leaves_the_old_checkpoint(own):
    class FullDisk:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("half", encoding="utf-8")
            raise OSError("No space left on device")

    before = {path.name: path.read_bytes() for path in own.iterdir() if path.is_file()}
    with pytest.raises(UserError, match="own cannot be written and is left as it was: No space left"):
        save_checkpoint(build(SPECS["fourier"]), FullDisk(), own, FACTS)
    assert {path.name: path.read_bytes() for path in own.iterdir() if path.is_file()} == before
    assert [path.name for path in own.parent.iterdir()] == ["own"]


def test_checkpoint_is_replaced_as_a_whole(own, tokenizer):
    (own / "tasks").mkdir()
    save_checkpoint(build(SPECS["fourier"]), tokenizer, own, dataclasses.replace(FACTS, scores=()))
    assert FlexiBertConfig.from_pretrained(own).num_hidden_layers == 2
    assert not (own / "tasks").exists() and not (own / ".eval_results").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_other_peoples_data_is_not_overwritten(tmp_path, tokenizer, kind):
    target = tmp_path / "target"
    if kind == "folder":
        target.mkdir()
    precious = target / "thesis.txt" if kind == "folder" else target
    precious.write_text("precious", encoding="utf-8")
    with pytest.raises(UserError, match="target exists and is no checkpoint"):
        save_checkpoint(build(), tokenizer, target, FACTS)
    assert precious.read_text(encoding="utf-8") == "precious"


def test_remains_of_killed_processes_are_cleared(tmp_path):
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    pids = {"dead": f"{int(process.stdout)}@{HOST}", "alive": f"{os.getppid()}@{HOST}", "elsewhere": "1@another"}
    dead, alive, elsewhere = (tmp_path / f".0001-ab.{pid}.partial" for pid in pids.values())
    dead.mkdir(), alive.mkdir(), elsewhere.mkdir()
    with replace_folder(tmp_path / "0003-ef") as aside:
        (aside / "file").touch()
    assert not dead.exists() and alive.exists() and elsewhere.exists()
    assert (tmp_path / "0003-ef" / "file").exists()


def test_folder_survives_a_failed_rename(tmp_path, monkeypatch):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "old").touch()
    real = os.replace

    def refuse_new(source, target):
        if str(source).endswith(".partial"):
            raise OSError("refused")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse_new)
    with pytest.raises(OSError, match="refused"), replace_folder(tmp_path / "best"):
        pass
    assert (tmp_path / "best" / "old").exists() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_of_a_checkpoint_are_for_whom_the_umask_lets(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with replace_folder(tmp_path / "checkpoint") as aside:
            save_file({"weight": torch.zeros(1)}, aside / "model.safetensors")
            (aside / "tasks").mkdir()
            (aside / "tasks" / "config.json").write_text("{}")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "checkpoint").rglob("*") if path.is_file()]
    assert len(files) == 2 and {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_replace_file(tmp_path):
    replace_file(tmp_path / "a.txt", "ä")
    replace_file(tmp_path / "a.txt", b"\x00")
    assert (tmp_path / "a.txt").read_bytes() == b"\x00" and len(list(tmp_path.iterdir())) == 1


# --- the card -----------------------------------------------------------------------------------------------------


def test_card_metadata(checkpoint):
    data = ModelCard.load(checkpoint / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "fill-mask")
    assert data.datasets == ["wikimedia/wikipedia"] and data.language == "en"
    assert [result.metric_value for result in data.eval_results] == [score.value for score in SCORES]
    first, own = data.eval_results[0], data.eval_results[3]
    assert (first.dataset_type, first.dataset_config, first.metric_type) == (
        "nyu-mll/glue",
        "cola",
        "matthews_correlation",
    )
    assert (own.dataset_type, own.dataset_name) == ("sentences-of-the-corpus-10k-sample", SCORES[3].dataset)
    assert data.eval_results[4].metric_type == "mlm_loss" and data.eval_results[4].task_type == "fill-mask"


def test_scores_on_hub_datasets(checkpoint):
    files = list((checkpoint / ".eval_results").iterdir())
    assert [file.name for file in files] == ["nyu-mll--glue.yaml"]
    entries = parse_eval_result_entries(yaml.safe_load(files[0].read_text(encoding="utf-8")))
    assert [(entry.dataset_id, entry.task_id, entry.value) for entry in entries] == [
        ("nyu-mll/glue", "cola", 12.25),
        ("nyu-mll/glue", "mrpc", 70.0),
    ]
    assert entries[0].notes == "matthews correlation (%); validation split; 2 epochs"


def test_card_text(checkpoint):
    text = (checkpoint / "README.md").read_text(encoding="utf-8")
    model = build()
    assert f"| parameters | {model.model.num_parameters():,} without the prediction head |" in text
    assert f"| fingerprint | {model.config.fingerprint} |" in text
    assert "| 1 to 2 | 32 | 1 × self-attention (scaled dot product); 1 × self-attention (weighted" in text
    assert "Layer 3, 4 heads:\n\n```text\nt0 = neg(k)\n" in text
    assert (
        "| steps | 120 |\n| batch size | 32 |\n| learning rate | 0.002 |\n| train (s) | 3.25 |\n| seeds | 0 |" in text
    )
    assert "| CoLA | matthews correlation (%) | 12.25 ± 1.5 | GLUE CoLA, validation | 2 epochs | 0, 1 |" in text
    assert "the help texts of CPython 3.11" in text and "| sampler | tpe |" in text
    assert "No operation mixes padding" in text
    assert "2205.11656" in text and "2107.07445" in text
    assert "{{" not in text and "{%" not in text and text.endswith("```\n")


def test_card_without_scores_and_search(own):
    write_card(own, dataclasses.replace(FACTS, scores=(), search={}, hub_datasets=(), language=None))
    text = (own / "README.md").read_text(encoding="utf-8")
    data = ModelCard.load(own / "README.md").data
    assert "Nothing was measured." in text and "## How it was found" not in text
    assert data.eval_results is None and data.datasets is None
    assert not list((own / ".eval_results").iterdir())
    assert verify(own) == 0.0


def test_card_without_weights(tmp_path):
    build().config.save_pretrained(tmp_path)
    write_card(tmp_path, FACTS)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "without the weights" in text and text.count("```python") == 1 and "## Check" not in text
    assert f"| parameters | {build().model.num_parameters():,} without" in text and "| stored as | – |" in text


def test_card_says_what_mixes_padding(tmp_path, tokenizer):
    layers = [*SPECS["homogeneous"], layer(32, op("linear_transform", 4, mix_padding=True))]
    save_checkpoint(build(layers), tokenizer, tmp_path / "model", FACTS)
    assert "**Padding.** Layer 3 mixes padding into the tokens" in (tmp_path / "model" / "README.md").read_text(
        encoding="utf-8"
    )


def test_card_takes_any_name(own):
    name = "a | b\n---\n# {{ 7 * 7 }} <script> 'x': \"y\""
    score = Score(name, "accuracy_percent", 50.0, "../data/ä | x")
    write_card(own, dataclasses.replace(FACTS, name=name, corpus=name, scores=(score,)))
    card = ModelCard.load(own / "README.md")
    assert card.data.model_name == " ".join(name.split())
    assert re.fullmatch(r"[\w.-]+", card.data.eval_results[0].dataset_type, re.ASCII)
    assert "# a \\| b --- # {{ 7 * 7 }} &lt;script> 'x': \"y\"\n" in card.text and "<script>" not in card.text
    assert "| ../data/ä \\| x, validation |" in card.text


def test_score_that_is_not_a_number(own):
    write_card(own, dataclasses.replace(FACTS, scores=(dataclasses.replace(SCORES[0], value=float("nan")),)))
    assert ModelCard.load(own / "README.md").data.eval_results is None
    assert "| CoLA | matthews correlation (%) | – ± 1.5 |" in (own / "README.md").read_text(encoding="utf-8")
    assert not list((own / ".eval_results").iterdir())


def test_facts_are_plain_json():
    assert CardFacts.from_dict(json.loads(json.dumps(dataclasses.asdict(FACTS)))) == FACTS
    assert CardFacts.from_dict({"name": "a", "corpus": "b", "pretraining": {}, "seeds": []}).scores == ()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, "0.0001"), (torch.bfloat16, "0.05")])
def test_the_card_states_the_tolerance_of_the_golden_logits(tmp_path, tokenizer, dtype, tolerance):
    save_checkpoint(build().to(dtype), tokenizer, tmp_path / "model", FACTS)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert f"differ by more than {tolerance} is damaged" in " ".join(card.split())
    model = FlexiBertForMaskedLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    golden = load_file(tmp_path / "model" / "golden.safetensors")
    logits = model.eval()(golden["input_ids"], attention_mask=golden["attention_mask"]).logits[:, GOLDEN_TOKEN]
    assert (logits.float() - golden["logits"].float()).abs().max() <= float(tolerance)
