"""Tokenizers for any script, their unknown tokens, and tokenizers whose ids or special tokens are unusual."""

import functools
import gettext
import importlib.util
import json
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, pipeline

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search.artifacts.checkpoint import save_checkpoint
from search.artifacts.model_card import CardFacts
from search.cli import build_parser, main
from search.data.blocks import tokenized_blocks
from search.data.corpus import load_corpus
from search.data.documents import documents
from search.data.tokenizer import load_tokenizer, unknown_share, vocabulary_size
from search.data.tokenizer_kinds import TOKENIZER_KINDS, train_wordpiece
from search.errors import UserError
from search.evaluation.model_config import model_fields
from search.recipe import parse_recipe
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
    tokenizer = train_wordpiece(corpus(script), 8192)
    blocks = tokenized_blocks(corpus(script, 100, seed=1), tokenizer, 32, tmp_path)
    assert unknown_share(blocks, tokenizer) < 0.01


def test_a_small_vocabulary_says_what_it_does_not_know(tmp_path):
    tokenizer = train_wordpiece(corpus("chinese"), 300)
    share = unknown_share(tokenized_blocks(corpus("chinese", 50, seed=1), tokenizer, 32, tmp_path), tokenizer)
    assert len(tokenizer) <= 300 and 0.2 < share < 0.9


LANGUAGES = {
    "French": ("fr", "é"), "Russian": ("ru", "д"), "Chinese": ("zh_Hans", "的"),
    "Arabic": ("ar", "ا"), "Hindi": ("hi", "क"),
}  # fmt: skip
"""Language -> its code in catalogues of translated messages, and a letter that stands in most of its sentences."""


MARKUP = re.compile(r"%\([^)]*\)\w|%\w|\{[^}]*\}|<[^>]*>|&\w+;|https?://\S*|\s+")
"""What stands in messages and is no text."""


@functools.cache
def real_text(language):
    """Messages that people have translated, from packages that carry them; each once."""
    code = LANGUAGES[language][0]
    found = {}
    for package in ("django", "jupyterlab_language_pack_zh_CN"):
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations if spec is not None else ():
            for name in {code, code.replace("Hans", "CN")}:
                for path in sorted(Path(folder).rglob(f"locale/{name}/LC_MESSAGES/*.mo")):
                    with open(path, "rb") as file:
                        found |= dict.fromkeys(
                            text
                            for key, text in sorted(gettext.GNUTranslations(file)._catalog.items(), key=repr)
                            if key
                        )
    texts = [" ".join(MARKUP.sub(" ", text).split()) for text in found if isinstance(text, str)]
    texts = [text for text in dict.fromkeys(texts) if len(text) > (10 if language == "Chinese" else 8)]
    if language in ("Russian", "Arabic", "Hindi"):
        texts = [text for text in texts if not re.search("[a-z`]", text)]
    least = {"Chinese": 1000, "Hindi": 200}.get(language, 300)
    if len(texts) < least:
        pytest.skip(f"{language}: no catalogues of messages, install django and jupyterlab-language-pack-zh-CN")
    return tuple(texts)


@functools.cache
def trained(kind, language):
    """A tokenizer, and text that it has not seen: every tenth of the documents."""
    if kind == "unigram":
        pytest.importorskip("sentencepiece", reason="trains pieces")
    texts = real_text(language)
    held = texts[::10]
    seen = [text for text in texts if text not in set(held)]
    return TOKENIZER_KINDS[kind](Dataset.from_dict({"text": seen}), 4096), held


def plain(text, accents=True):
    """Without blanks, case and, where they do not matter, accents; different ways of writing a character are one."""
    text = unicodedata.normalize("NFKC" if accents else "NFKD", text).lower()
    return "".join(c for c in text if not c.isspace() and (accents or unicodedata.category(c) != "Mn"))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_every_kind_knows_real_text(kind, language):
    tokenizer, held = trained(kind, language)
    encoded = tokenizer(list(held), add_special_tokens=False)["input_ids"]
    ids = np.array([token for tokens in encoded for token in tokens])
    share = unknown_share(ids, tokenizer)
    assert share < 0.01 and share == (0.0 if kind == "byte_bpe" else share)
    accents = kind != "wordpiece" or language in ("Chinese", "Hindi")  # which have none: what they have are letters
    known = [(text, tokens) for text, tokens in zip(held, encoded) if tokenizer.unk_token_id not in tokens]
    assert len(known) > 0.8 * len(held)
    for text, tokens in known:
        assert plain(tokenizer.decode(tokens), accents) == plain(text, accents)
    if kind != "wordpiece":  # which neither knows case nor where blanks were
        form = "NFC" if kind == "byte_bpe" else "NFKC"
        assert tokenizer.decode(known[0][1]) == unicodedata.normalize(form, known[0][0])


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_every_kind_is_trained_the_same_every_time(kind):
    first, _ = trained(kind, "French")
    seen = [text for text in real_text("French") if text not in set(real_text("French")[::10])]
    second = TOKENIZER_KINDS[kind](Dataset.from_dict({"text": seen}), 4096)
    assert first.get_vocab() == second.get_vocab()
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_every_kind_travels_with_a_checkpoint(tmp_path, kind):
    tokenizer, held = trained(kind, "Russian")
    config = FlexiBertConfig(layers=SPEC, **model_fields(tokenizer, 48, {}))
    torch.manual_seed(0)
    save_checkpoint(FlexiBertForMaskedLM(config), tokenizer, tmp_path / "c", CardFacts("c", "c", {}, (0,), ()))
    again = AutoTokenizer.from_pretrained(tmp_path / "c")
    assert again.is_fast and again.model_max_length == 48
    names = ("pad", "unk", "cls", "sep", "mask")
    assert [getattr(again, f"{name}_token") for name in names] == [f"[{name.upper()}]" for name in names]
    assert {again.mask_token_id, again.pad_token_id} <= set(again.all_special_ids)
    assert again(list(held)) == tokenizer(list(held))
    pair = again("один", "два")
    tokens = again.convert_ids_to_tokens(pair["input_ids"])
    middle = tokens.index("[SEP]")
    assert (tokens[0], tokens[-1], tokens.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
    assert pair["token_type_ids"] == [0] * (middle + 1) + [1] * (len(tokens) - middle - 1)
    # Words given one by one are the same tokens as in a text, and offsets say where in it they stand.
    text = "Введите правильное число"
    encoded = again(text, return_offsets_mapping=True)
    assert again(text.split(), is_split_into_words=True)["input_ids"] == encoded["input_ids"]
    shown = [text[start:end] for start, end in encoded["offset_mapping"][1:-1]]
    assert "".join(shown) == text.replace(" ", "")
    masked = again(f"слово {again.mask_token} слово")
    assert masked["input_ids"].count(again.mask_token_id) == 1
    answers = pipeline("fill-mask", str(tmp_path / "c"))(f"слово {again.mask_token}.")
    assert len(answers) == 5


SPEC = [{"hidden_size": 16, "operations": [{"op": "self_attention", "num_heads": 2}], "feed_forward": [16]}]


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("size", [1, 40])
def test_a_vocabulary_that_is_too_small(kind, size):
    if kind == "unigram":
        pytest.importorskip("sentencepiece", reason="trains pieces")
    with pytest.raises(UserError, match=f"a vocabulary of {size}") as caught:
        TOKENIZER_KINDS[kind](corpus("chinese", 50), size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_odd_text(kind):
    if kind == "unigram":
        pytest.importorskip("sentencepiece", reason="trains pieces")
    odd = [
        "zero\0byte and more words",
        "\ud7ff\ue000 \U0010ffff end",
        "x" * 20_000,
        "a\u2581b \u200b \ufeff",
        "[MASK] in text",
    ]
    text = Dataset.from_dict({"text": [*odd, *("the fox runs over the hill" for _ in range(20))]})
    tokenizer = TOKENIZER_KINDS[kind](text, 600)
    assert all(len(tokens) > 2 for tokens in tokenizer(odd)["input_ids"])
    assert "fox" in tokenizer.decode(tokenizer("the fox")["input_ids"])


def test_japanese_and_thai_keep_their_marks():
    """Marks that make another letter of one, wherever they stand in the text."""
    words = ["がぎぐべん", "ที่นี่"]
    for word in words:
        tokenizer = train_wordpiece(Dataset.from_dict({"text": [f"{word} {word}" for _ in range(50)]}), 300)
        again = tokenizer.decode(tokenizer(word, add_special_tokens=False)["input_ids"])
        assert unicodedata.normalize("NFC", again) == unicodedata.normalize("NFC", word)
    tokenizer = train_wordpiece(Dataset.from_dict({"text": ["café naïve"] * 50}), 300)
    assert tokenizer.decode(tokenizer("café", add_special_tokens=False)["input_ids"]) == "cafe"


def test_the_kind_is_an_option_and_a_field_of_a_recipe(tmp_path, capsys):
    for command in (
        ["run"],
        ["pretrain", "--architecture", "x", "--output", "y"],
        ["supernet", "--recipe", "x", "--output", "y"],
    ):
        for kind in TOKENIZER_KINDS:
            assert build_parser().parse_args([*command, "--tokenizer-kind", kind]).tokenizer_kind == kind
    assert parse_recipe({"description": "", "tokenizer_kind": "byte_bpe"}, "r").tokenizer_kind == "byte_bpe"
    with pytest.raises(
        UserError, match="r: tokenizer_kind: 'bpe' is not accepted, known: wordpiece, unigram, byte_bpe"
    ):
        parse_recipe({"description": "", "tokenizer_kind": "bpe"}, "r")
    source = saved(tmp_path / "tokenizer", SPECIAL)
    given = ["pretrain", "--architecture", "bert-tiny", "--output", str(tmp_path / "o"), "--tokenizer", source]
    assert main([*given, "--tokenizer-kind", "unigram"]) == 2
    assert "--tokenizer-kind unigram says how a tokenizer is trained, but --tokenizer" in capsys.readouterr().err


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


TINY = {
    "description": "two encoders in seconds",
    "space": {
        "num_layers": [1], "hidden_size": [32], "num_heads": [2], "feed_forward_size": [32], "feed_forward_depth": [1],
        "operations": [{"op": "self_attention"}, {"op": "linear_transform"}],
    },
    "sampler": {"name": "random"}, "trials": 2, "vocab_size": 2000, "tasks": [],
    "pretraining": {"steps": 150, "batch_size": 16, "sequence_length": 32, "learning_rate": 0.005},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_search_in_every_script(tmp_path, language, kind):
    """The encoder that a search finds fills masks in the script of its text."""
    if kind == "unigram":
        pytest.importorskip("sentencepiece", reason="trains pieces")
    (tmp_path / "text.txt").write_text("\n\n".join(real_text(language)), encoding="utf-8")
    (tmp_path / "tiny.json").write_text(json.dumps({**TINY, "tokenizer_kind": kind}), encoding="utf-8")
    place = ["--corpus", str(tmp_path / "text.txt"), "--runs", str(tmp_path), "--name", "r"]
    assert main(["run", "--recipe", str(tmp_path / "tiny.json"), *place]) == 0
    fill = pipeline("fill-mask", str(tmp_path / "r" / "best"), top_k=20)
    held = next(text for text in documents(load_corpus(str(tmp_path / "text.txt")).validation) if len(text) > 20)
    words = [held[:5], held[5:15]] if language == "Chinese" else held.split()[:4]
    answers = fill(" ".join([*words[:1], fill.tokenizer.mask_token, *words[1:]]))
    script = unicodedata.name(LANGUAGES[language][1]).split()[0]
    found = "".join(answer["token_str"] for answer in answers)
    assert any(c.isalpha() and unicodedata.name(c, "").startswith(script) for c in found), found
