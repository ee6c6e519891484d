"""Two texts encoded alone: the same states as of each text by itself, learnt where one sequence is not."""

import dataclasses
import random

import pytest
import torch
import transformers
from conftest import EVERY_OPERATION
from datasets import Dataset
from test_finetuning import FILLERS, QUICK, classification, encoder, question_task, questions, tokenizer  # noqa: F401
from transformers import AutoModelForSequenceClassification, pipeline

from flexibert import FlexiBertConfig, FlexiBertForSequenceClassification
from search.data.tasks import Task
from search.errors import UserError
from search.training.finetuning import finetune
from search.training.pair_encoding import with_token_types


PAIRS = [("word1 word2 good", "bad"), ("word3", "word4 word5 word6 word7"), ("good ?", "word8 bad")]
SEPARATE = dataclasses.replace(QUICK, pair_encoding="separate")


def pairs(size, seed, number):
    """Texts that share none to all of their words; the label is how many, or whether most."""
    rng, rows = random.Random(seed), []
    for _ in range(size):
        words, same = rng.sample(FILLERS, 10), rng.randrange(6)
        label = float(same) if number else int(same > 2)
        second = [*words[:same], *words[5 : 10 - same]]
        rng.shuffle(second)
        rows.append({"first": " ".join(words[:5]), "second": " ".join(second), "label": label})
    return Dataset.from_list(rows)


def pair_task(number, size=160):
    kinds = ("regression", "regression") if number else ("classification", "classification")
    labels = (1, ()) if number else (2, ("other", "same"))
    validation = {"validation": pairs(60, 2, number)}
    return Task("pairs", pairs(size, 1, number), validation, ("first", "second"), "label", *labels, *kinds)


def tokenize(tokenizer, *texts, **options):  # noqa: F811
    return with_token_types(tokenizer)(*texts, return_tensors="pt", **options)


def make_model(tokenizer, **fields):  # noqa: F811
    torch.manual_seed(0)
    config = FlexiBertConfig(
        layers=EVERY_OPERATION, vocab_size=len(tokenizer), max_position_embeddings=32, pair_encoding="separate",
        initializer_range=0.2, **fields,
    )  # fmt: skip
    return FlexiBertForSequenceClassification(config).eval()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_states_are_those_of_each_text_alone(side, labels, pooling, tokenizer):  # noqa: F811
    model = make_model(tokenizer, num_labels=labels, classifier_pooling=pooling)
    for batch in (PAIRS, PAIRS[:1]):
        inputs = tokenize(tokenizer, *zip(*batch), padding=True, padding_side=side)
        with torch.no_grad():
            logits = model(**inputs).logits
            embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
            of_embeds = model(inputs_embeds=embeds, **inputs).logits
            for row, texts in enumerate(batch):
                alone = [tokenizer(text, return_tensors="pt") for text in texts]
                states = [model.model.pool(model.model(**one).last_hidden_state, None) for one in alone]
                torch.testing.assert_close(logits[row : row + 1], model.classifier(*states), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(of_embeds, logits, rtol=1e-4, atol=1e-5)


def test_a_single_number_is_the_cosine(tokenizer):  # noqa: F811
    model = make_model(tokenizer, num_labels=1)
    torch.nn.init.ones_(model.classifier.weight)
    torch.nn.init.zeros_(model.classifier.bias)
    with torch.no_grad():
        assert model(**tokenize(tokenizer, "good word1", "good word1")).logits.item() == pytest.approx(1)


def test_texts_that_cannot_be_told_apart(tokenizer):  # noqa: F811
    model, inputs = make_model(tokenizer), tokenize(tokenizer, "good", "bad")
    for types in (None, torch.zeros_like(inputs["input_ids"])):
        with pytest.raises(ValueError, match="token_type_ids: pair_encoding 'separate' needs them"):
            model(inputs["input_ids"], token_type_ids=types)
    with pytest.raises(ValueError, match="position_ids: not accepted with pair_encoding 'separate'"):
        model(**inputs, position_ids=torch.arange(inputs["input_ids"].shape[1])[None])
    with pytest.raises(ValueError, match="pair_encoding"):
        FlexiBertConfig(pair_encoding="together")


@pytest.mark.parametrize("number", [False, True])
def test_comparing_is_learnt_alone_and_travels(number, encoder, tokenizer, tmp_path):  # noqa: F811
    budget = dataclasses.replace(QUICK, max_steps=30 if number else 200, learning_rate=5e-3)
    separate = dataclasses.replace(budget, pair_encoding="separate")
    task = pair_task(number, 160 if number else 800)
    joint = finetune(encoder, task, tokenizer, budget)
    result = finetune(encoder, task, tokenizer, separate, output_dir=tmp_path / "out")
    assert (joint.pair_encoding, result.pair_encoding) == ("joint", "separate")
    assert result.score > max(0.6, joint.score + 0.1)

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert (model.config.pair_encoding, model.config.classifier_pooling) == ("separate", "mean")
    classify = pipeline("text-classification", str(tmp_path / "out"), function_to_apply="none")
    with torch.no_grad():
        logits = model(**tokenize(tokenizer, "word1", "word1 word2")).logits
    answer = classify([{"text": "word1", "text_pair": "word1 word2"}])[0]
    assert answer["score"] == pytest.approx(logits.max().item(), rel=1e-4)
    # The checkpoint serves tasks of one text and joint pairs, too.
    once = dataclasses.replace(QUICK, max_steps=1)
    assert finetune(tmp_path / "out", classification(), tokenizer, once).pair_encoding is None
    again = dataclasses.replace(once, pair_encoding="joint")
    assert finetune(tmp_path / "out", pair_task(number), tokenizer, again).pair_encoding == "joint"


def test_encoding_that_does_not_fit(encoder, tokenizer, tmp_path):  # noqa: F811
    for task in (classification(), question_task(questions(5, 1), questions(5, 2))):
        with pytest.raises(UserError, match="pair encoding: .* is no classification or regression of two texts"):
            finetune(encoder, task, tokenizer, SEPARATE)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="pair encoding: 'separate' needs a FlexiBERT, .* is none"):
        finetune(tmp_path, pair_task(True), tokenizer, SEPARATE)
    once = dataclasses.replace(QUICK, max_steps=1)
    assert finetune(tmp_path, pair_task(True), tokenizer, once).pair_encoding == "joint"
