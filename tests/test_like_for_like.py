"""The experiment that compares encoders on equal terms, its table, and the model cards made of its results."""

import json

import pytest
import torch
from transformers import AutoConfig

import benchmarks.like_for_like
from benchmarks import model_cards
from benchmarks.like_for_like import MODELS, main, table
from flexibert import FlexiBertForMaskedLM
from flexibert.spec import layers_to_dicts
from search.metrics import GLUE_TASKS


TASKS = [name for name in GLUE_TASKS if name != "wnli"]
METRICS = {"cola": "matthews_correlation", "stsb": "pearson"}
TINY = ["--steps", "4", "--batch-size", "4", "--max-train-examples", "16", "--max-validation-examples", "16"]


def result(model: str, seed: int, score: float) -> dict:
    layers, positions = MODELS[model]
    return {
        "model": model,
        "seed": seed,
        "layers": layers_to_dicts(layers),
        "position_embedding_type": positions,
        "classifier_pooling": "mean",
        "parameters": 5_000_000,
        "vocab_size": 99,
        "corpus": "some text",
        "pretraining": {"steps": 10, "sequence_length": 128, "tokens": 1280},
        "pretrained": {"mlm_loss_nats": 7 - score / 100, "seconds": 1.0},
        "finetuning": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-4},
        "train_examples": dict.fromkeys(TASKS, 1000),
        "validation_examples": {task: {"validation": 500} for task in TASKS},
        "tasks": {task: {METRICS.get(task, "accuracy"): score / 100} for task in TASKS},
        "mean_of_8_percent": score,
        "machine": {"device": "abacus", "threads": 1, "precision": "bf16"},
    }


@pytest.fixture
def results(tmp_path):
    for model, scores in {"bert-mini": (40.0, 42.0), "fnet-mini": (43.5, 44.5)}.items():
        for seed, score in enumerate(scores):
            (tmp_path / f"{model}-seed{seed}.json").write_text(json.dumps(result(model, seed, score)))
    return tmp_path


def test_table_has_mean_and_spread_with_the_best_first(results):
    rows = table(results).splitlines()
    assert rows[2].startswith("| fnet-mini | 5.00 M | 6.560 ± 0.007 | 44.0 ± 0.7 |")
    assert rows[3].startswith("| bert-mini | 5.00 M | 6.590 ± 0.014 | 41.0 ± 1.4 |")
    assert "fnet-mini - bert-mini: +3.0 points" in table(results)


def test_cards_hold_the_numbers_of_the_results(results, tmp_path):
    model_cards.main(["--results", str(results), "--output", str(tmp_path / "cards")])
    config = AutoConfig.from_pretrained(tmp_path / "cards" / "fnet-mini")
    assert config.layer_specs == MODELS["fnet-mini"][0] and config.max_position_embeddings == 128
    card = (tmp_path / "cards" / "fnet-mini" / "README.md").read_text()
    assert "44 ± 0.7071" in card and "rte (a sample of 1,000 training and 500 validation examples)" in card
    assert not list((tmp_path / "cards").glob("*/model.safetensors"))


@pytest.mark.slow
def test_a_stopped_experiment_goes_on_and_its_winner_becomes_a_resident(shared, tmp_path, monkeypatch):
    def run(work, output):
        text = ["--corpus", str(shared / "data"), "--corpus-config", "wikipedia_small"]
        arguments = [*text, "--glue", str(shared / "data"), "--models", "fnet-mini"]
        tokenizer = ["--tokenizer", str(shared / "data/tokenizers/bert-base-uncased"), "--precision", "no"]
        main([*arguments, *tokenizer, *TINY, "--seeds", "1", "--work", str(work), "--output", str(output)])
        return json.loads((output / "fnet-mini-seed1.json").read_text())

    whole = run(tmp_path / "whole", tmp_path / "whole_results")
    finetune = benchmarks.like_for_like.finetune

    def stop_at_mrpc(folder, task, *rest):
        if task.name == "mrpc":
            raise KeyboardInterrupt
        return finetune(folder, task, *rest)

    monkeypatch.setattr(benchmarks.like_for_like, "finetune", stop_at_mrpc)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "work", tmp_path / "results")
    monkeypatch.setattr(benchmarks.like_for_like, "finetune", finetune)
    resumed = run(tmp_path / "work", tmp_path / "results")
    assert resumed["tasks"] == whole["tasks"]
    assert resumed["pretrained"]["mlm_loss_nats"] == whole["pretrained"]["mlm_loss_nats"]

    checkpoint = str(tmp_path / "work" / "fnet-mini-seed1" / "pretrained")
    card = ["--results", str(tmp_path / "results"), "--output", str(tmp_path / "cards")]
    model_cards.main([*card, "--checkpoint", checkpoint, "--name", "resident"])
    model = FlexiBertForMaskedLM.from_pretrained(tmp_path / "cards" / "resident")
    assert model.dtype == torch.bfloat16
