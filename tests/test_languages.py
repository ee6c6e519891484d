"""Tokenizers for any script, their unknown tokens, and tokenizers whose ids or special tokens are unusual."""

import json
import random

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from search.data.blocks import tokenized_blocks
from search.data.tokenizer import load_tokenizer, train_tokenizer, unknown_share, vocabulary_size
from search.errors import UserError
from search.evaluation.model_config import model_fields
from search.training.masked_lm import MaskedLanguageModelling


def letters(first, last):
    return [chr(code) for code in range(first, last + 1) if chr(code).isalpha()]


SCRIPTS = {
    "latin": [*"abcdefghijklmnopqrstuvwxyz", *letters(0xDF, 0x17F)],
    "cyrillic": letters(0x430, 0x45F),
    "arabic": letters(0x621, 0x64A),
    "devanagari": [chr(code) for code in range(0x904, 0x94D)],
    "greek": letters(0x3AC, 0x3CE),
    "hangul": letters(0xAC00, 0xAC00 + 1500),
    "chinese": letters(0x4E00, 0x4E00 + 3500),
}


def corpus(script, documents=600, seed=0):
    """Words of letters of a script, some more frequent than others as in real text; Chinese without blanks."""
    rng, alphabet = random.Random(f"{script} {seed}"), SCRIPTS[script]
    weights = [1 / (rank + 10) for rank in range(len(alphabet))]
    longest = 60 if script == "chinese" else 8

    def sentence():
        return " ".join("".join(rng.choices(alphabet, weights, k=rng.randint(2, longest))) for _ in range(10)) + "."

    return Dataset.from_dict({"text": [sentence() for _ in range(documents)]})


@pytest.mark.parametrize("script", SCRIPTS)
def test_less_than_one_in_a_hundred_tokens_is_unknown(tmp_path, script):
    tokenizer = train_tokenizer(corpus(script), 8192)
    blocks = tokenized_blocks(corpus(script, 100, seed=1), tokenizer, 32, tmp_path)
    assert unknown_share(blocks, tokenizer) < 0.01


def test_a_small_vocabulary_says_what_it_does_not_know(tmp_path):
    tokenizer = train_tokenizer(corpus("chinese"), 300)
    share = unknown_share(tokenized_blocks(corpus("chinese", 50, seed=1), tokenizer, 32, tmp_path), tokenizer)
    assert len(tokenizer) <= 300 and 0.2 < share < 0.9


def test_share_of_unknown_tokens():
    tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5})
    assert unknown_share(np.array([[2, 5, 1, 5, 5, 3]]), tokenizer) == 0.25
    assert unknown_share(np.array([[2, 3]]), tokenizer) == 0.0


def saved(folder, ids, truncation=False, **names):
    """A tokenizer of whole words with these ids, as a folder."""
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if truncation:
        backend.enable_truncation(4)
        backend.enable_padding(length=64)
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "mask", "cls", "sep")} | names
    PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(folder)
    return str(folder)


SPECIAL = {f"[{name}]": index for index, name in enumerate(("UNK", "PAD", "MASK", "CLS", "SEP"))}


@pytest.mark.parametrize("largest", [7, 300, 70_000])
def test_ids_go_up_to_the_largest(tmp_path, largest):
    tokenizer = load_tokenizer(saved(tmp_path / "tokenizer", {**SPECIAL, "a": 5, "b": largest}), None, tmp_path)
    assert len(tokenizer) == 7 and vocabulary_size(tokenizer) == largest + 1
    blocks = tokenized_blocks(Dataset.from_dict({"text": ["a b a b b b"] * 9}), tokenizer, 8, tmp_path)
    assert blocks.max() == largest
    assert model_fields(tokenizer, 8, {})["vocab_size"] == largest + 1
    batch = MaskedLanguageModelling(blocks, tokenizer, 0.5, 0).batch(0, 4)[0]
    assert batch.max() <= largest


def test_a_vocabulary_with_a_line_twice(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "fox", "the", "runs"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path), None, tmp_path)
    assert vocabulary_size(tokenizer) > max(tokenizer("the fox runs")["input_ids"])


def test_truncation_and_padding_of_a_file_do_not_matter(tmp_path):
    ids = {**SPECIAL, "a": 5, "b": 6}
    text = Dataset.from_dict({"text": ["a b a b b b a a a a a"] * 9})
    made = [
        tokenized_blocks(text, load_tokenizer(saved(tmp_path / name, ids, cut), None, tmp_path), 16, tmp_path / name)
        for name, cut in (("plain", False), ("cut", True))
    ]
    assert np.array_equal(*made)


@pytest.mark.parametrize("names", [("pad", "cls", "sep", "unk"), ("pad",), ("sep",)])
def test_a_mask_that_is_another_token_too(tmp_path, names):
    source = saved(tmp_path / "tokenizer", {**SPECIAL, "a": 5}, **{f"{name}_token": "[MASK]" for name in names})
    with pytest.raises(UserError, match=r"its mask token '\[MASK\]' is also its .*could not be told") as caught:
        load_tokenizer(source, None, tmp_path)
    assert "\n" not in str(caught.value)
