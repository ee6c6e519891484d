"""A teacher: its text, its states on disk, its embeddings, and what a student learns from it."""

import contextlib
import dataclasses
import json
import os
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from conftest import SPECS
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
)

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search.artifacts.checkpoint import save_checkpoint
from search.artifacts.model_card import CardFacts
from search.cli import main
from search.data.passages import passages
from search.errors import UserError
from search.evaluation.first_weights import FromNearest
from search.evaluation.member_sampling import random_member
from search.evaluation.model_config import SHARED_FIELDS
from search.evaluation.supernet import SuperNetwork, load_supernet, save_supernet
from search.evaluation.zero_shot import SentenceEncoder
from search.space.search_space import SearchSpace
from search.training import teacher as module
from search.training.hidden_states import PooledCosine, PooledSquare, TokenCosine, TokenSquare
from search.training.logits import TEMPERATURE, logits_loss
from search.training.objectives import OBJECTIVES, STATE_OBJECTIVES, objective_weights
from search.training.pretraining import PretrainingBudget, pretrain
from search.training.relations import HEADS, Relations
from search.training.taught_batches import TaughtBatches
from search.training.teacher import Form, Teacher, choose_form, give_embeddings, run_teacher, taught_text


WORDS = [f"word{index}" for index in range(40)]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SHARED = Path(__file__).parents[2] / "shared"


def sentences(count: int, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) + "." for _ in range(count))


TEXT = Dataset.from_dict({"text": [sentences(9, seed) for seed in range(60)]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher whose tokenizer file has truncation and a fixed padding switched on, as published ones have."""
    folder = tmp_path_factory.mktemp("teacher")
    vocabulary = {word: index for index, word in enumerate([*SPECIALS, ".", *WORDS])}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=6)
    tokenizer.save(str(folder / "tokenizer.json"))
    set_seed(0)
    BertForMaskedLM(config(len(vocabulary))).save_pretrained(folder)
    return folder


def config(vocab_size: int, **fields) -> BertConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertConfig(vocab_size=vocab_size, max_position_embeddings=64, initializer_range=0.3, **sizes, **fields)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def teacher(folder):
    teacher = Teacher(str(folder), predicts=True)
    teacher.check_fit(AutoTokenizer.from_pretrained(folder), 64)
    return teacher


@pytest.fixture(scope="module")
def text(tokenizer, tmp_path_factory):
    return passages(TEXT, tokenizer, 32, tmp_path_factory.mktemp("text"))


def read(text, teacher, cache, gigabytes=1.0, say=lambda line: None):
    return taught_text(text, teacher, 0, Accelerator(cpu=True), cache, gigabytes, say, lambda done, total: None)


@pytest.fixture(scope="module")
def taught(text, teacher, tmp_path_factory):
    return read(text, teacher, tmp_path_factory.mktemp("states"))


# --- passages -----------------------------------------------------------------------------------------------------


def test_passages_have_all_lengths_and_pairs(text, tokenizer):
    lengths = text.lengths
    assert lengths.min() >= 4 and lengths.max() <= 32 and len(set(lengths)) > 10
    pairs = np.flatnonzero(text.seconds < lengths)
    assert 0.05 < len(pairs) / len(text) < 0.4
    batch = text.pad(np.arange(len(text)), 32, 0)
    ids, mask, types = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    assert (ids[mask == 0] == 0).all() and (ids[mask == 1] != 0).all()
    assert (ids[:, 0] == tokenizer.cls_token_id).all()
    assert (ids[np.arange(len(ids)), lengths - 1] == tokenizer.sep_token_id).all()
    separators = (ids == tokenizer.sep_token_id).sum(1)
    assert (separators == np.where(text.seconds < lengths, 2, 1)).all()
    for row in pairs:
        first = int(np.flatnonzero(ids[row] == tokenizer.sep_token_id)[0])
        assert types[row].tolist() == [0] * (first + 1) + [1] * (lengths[row] - first - 1) + [0] * (32 - lengths[row])


def test_passages_hold_the_text_whatever_the_tokenizer_file_pads_and_cuts(text, tokenizer, tmp_path):
    plain = BertTokenizer(vocab=tokenizer.get_vocab())
    assert np.array_equal(text.tokens, passages(TEXT, plain, 32, tmp_path).tokens)
    used = np.isin(text.tokens, [0, 1, 2, 3, 4], invert=True).sum()
    known = sum(len(plain(document, add_special_tokens=False)["input_ids"]) for document in TEXT["text"])
    assert 0.8 * known < used < 1.3 * known  # unrelated halves of pairs come twice


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="needs the published teacher")
def test_passages_of_a_published_tokenizer_file(tmp_path):
    published = AutoTokenizer.from_pretrained(SHARED / "models" / "all-MiniLM-L6-v2")
    document = " ".join(f"The number {index} follows the number {index - 1}." for index in range(200))
    made = passages(Dataset.from_dict({"text": [document]}), published, 256, tmp_path)
    assert made.lengths.min() < 30 and 128 < made.lengths.max() <= 256  # neither padded nor cut to 128
    assert published.pad_token_id not in made.tokens
    joined = published.decode(made.tokens[: made.starts[1]], skip_special_tokens=True)
    assert joined.startswith("the number")


def test_a_longer_text_begins_like_a_shorter_one(text):
    some = text.head(500)
    assert 500 <= some.starts[-1] < 540
    assert np.array_equal(some.pad(np.arange(4), 32, 0)["input_ids"], text.pad(np.arange(4), 32, 0)["input_ids"])


# --- states on disk -----------------------------------------------------------------------------------------------


def direct(teacher, text, row) -> torch.Tensor:
    """States of one passage alone, without padding."""
    batch = {
        name: torch.from_numpy(array) for name, array in text.pad(np.array([row]), int(text.lengths[row]), 0).items()
    }
    return teacher.states(**batch)[0]


def test_states_are_the_teachers(taught, text, teacher):
    rows = np.array([3, 0, 11])
    states = taught.states.rows(rows, 32)
    for row, state in zip(rows, states):
        length = text.lengths[row]
        torch.testing.assert_close(torch.from_numpy(state[:length]), direct(teacher, text, row), atol=2e-3, rtol=2e-3)
        assert not state[length:].any()


def test_states_are_made_once_and_a_killed_reader_loses_one_chunk(text, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 40)
    calls = []
    reads = run_teacher

    def killed_at_third(*arguments):
        calls.append(arguments[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return reads(*arguments)

    monkeypatch.setattr(module, "run_teacher", killed_at_third)
    with pytest.raises(KeyboardInterrupt):
        read(text, teacher, tmp_path)
    expected = -(-len(text) // 40)
    assert expected > 4
    read(text, teacher, tmp_path)
    assert len(calls) == expected + 1
    again = read(text, teacher, tmp_path)
    assert len(calls) == expected + 1
    [first] = tmp_path.glob("states-*/00000-*.bin")
    first.write_bytes(first.read_bytes()[:-1])
    read(text, teacher, tmp_path)
    assert len(calls) == expected + 2  # a file of another size is made anew
    np.testing.assert_allclose(again.states.rows(np.array([0]), 32)[0, 0], direct(teacher, text, 0)[0], atol=2e-3)


def test_another_teacher_or_text_has_another_cache(text, teacher, tokenizer, tmp_path):
    read(text, teacher, tmp_path)
    other = Teacher(teacher.source)
    with torch.no_grad():
        next(other.model.parameters())[5, 0] += 1
    read(text, other, tmp_path)
    shorter = passages(TEXT, tokenizer, 16, tmp_path / "text")
    read(shorter, teacher, tmp_path)
    assert len(list(tmp_path.glob("states-*"))) == 3


@pytest.mark.parametrize("bytes_each", [64, 34, 20])
def test_states_fit_what_is_given(text, teacher, tmp_path, bytes_each, monkeypatch):
    monkeypatch.setattr(module, "SMALLEST", 8)
    tokens, said = int(text.starts[-1]), []
    taught = read(text, teacher, tmp_path, gigabytes=bytes_each * tokens / 1e9 + 1e-12, say=said.append)
    stored = sum(path.stat().st_size for path in tmp_path.glob("states-*/*.bin"))
    assert stored <= bytes_each * tokens
    assert f"{taught.states.form.size} x {taught.states.form.dtype}" in said[0] and " GB" in said[0]
    states = torch.from_numpy(taught.states.rows(np.arange(6), 32))
    whole = torch.stack(
        [torch.nn.functional.pad(direct(teacher, text, row), (0, 0, 0, 32 - text.lengths[row])) for row in range(6)]
    )
    kept = torch.cat([states[row, : text.lengths[row]] for row in range(6)])
    given = torch.cat([whole[row, : text.lengths[row]] for row in range(6)])
    angles = [
        torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(x, dim=-1).T for x in (kept, given)
    ]
    assert (angles[0] - angles[1]).abs().mean() < {64: 1e-3, 34: 1e-2, 20: 0.1}[bytes_each]


def test_form_is_the_truest_that_fits():
    assert choose_form(384, 1_000_000, 0.768) == Form(384, "float16")
    assert choose_form(384, 1_000_000, 0.767) == Form(384, "int8")
    assert choose_form(384, 1_000_000, 0.2) == Form(198, "int8")
    with pytest.raises(UserError, match="take at least 0.1 GB, --teacher-cache-gb is 0.05"):
        choose_form(384, 1_000_000, 0.05)


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "its states are not finite"), (1e6, r"float16 holds 65,504 at most")]
)
def test_states_that_cannot_be_stored(text, folder, tmp_path, value, message):
    teacher = Teacher(str(folder))
    with torch.no_grad():
        teacher.model.encoder.layer[-1].output.LayerNorm.bias.fill_(value)
    with pytest.raises(UserError, match=message):
        read(text, teacher, tmp_path)
    assert not list(tmp_path.glob("states-*/*.bin"))


def test_a_full_disk_keeps_finished_chunks(text, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 40)
    read(text.head(600), teacher, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("states-*/*")}
    with file_limit(1000), pytest.raises(UserError, match="cannot be written and is left as it was"):
        read(text, teacher, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.glob("states-*/*")} == before


@contextlib.contextmanager
def file_limit(size: int):
    """No file may grow beyond so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- embeddings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [8, 32, 40])
def test_embeddings_are_principal_components(teacher, width):
    table = torch.randn(60, width) * 0.02
    before = table.clone()
    give_embeddings(table, teacher, 0)
    given = teacher.word_embeddings.double()
    centred = given - given.mean(0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    shared = min(width, 32)
    expected = left[:, :shared] * values[:shared]
    rows = slice(1, len(given))
    got = table[rows, :shared].double()
    scale = got.norm() / expected[rows].norm()
    torch.testing.assert_close(got.abs(), scale * expected[rows].abs(), atol=1e-4, rtol=1e-3)
    assert not table[0].any()
    assert torch.equal(table[len(given) :], before[len(given) :])
    assert torch.equal(table[rows, shared:], before[rows, shared:])
    assert got.std() == pytest.approx(before.std().item(), rel=0.15)


# --- objectives ---------------------------------------------------------------------------------------------------


def example(width: int, taught: int = 12):
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return torch.randn(2, 5, width, generator=generator), torch.randn(2, 5, taught, generator=generator), mask


def cosine(x, y) -> float:
    return float(x @ y / (x @ x * (y @ y)) ** 0.5)


def naive(name: str, states, taught, mask) -> float:
    """Each objective from its formula, token by token."""
    total = 0.0
    for h, t, real in zip(states.double().numpy(), taught.double().numpy(), mask.bool().numpy()):
        h, t = h[real], t[real]
        if name == "token_cosine":
            total += sum(1 - cosine(a, b) for a, b in zip(h, t))
        elif name == "token_mse":
            total += sum(((a - b) ** 2).mean() for a, b in zip(h, t))
        elif name == "pooled_cosine":
            total += 1 - cosine(h.mean(0), t.mean(0))
        elif name == "pooled_mse":
            total += ((h.mean(0) - t.mean(0)) ** 2).mean()
        else:
            for token in range(len(h)):
                for head in range(HEADS):
                    p, q = (relation(x, token, head) for x in (t, h))
                    total += (p * np.log(p / q)).sum() / HEADS
    return total


def relation(x, token: int, head: int):
    size = x.shape[1] // HEADS
    part = x[:, head * size : (head + 1) * size]
    scores = part @ part[token] / size**0.5
    return np.exp(scores) / np.exp(scores).sum()


@pytest.mark.parametrize("name", STATE_OBJECTIVES)
def test_objectives_are_their_formulas(name):
    states, taught, mask = example(8 if name == "relations" else 12)
    states.requires_grad_()
    loss = STATE_OBJECTIVES[name]()(states, taught, mask)
    assert loss.item() == pytest.approx(naive(name, states.detach(), taught, mask), rel=1e-5)
    loss.backward()
    assert states.grad[mask.bool()].abs().sum() > 0 and not states.grad[~mask.bool()].any()


@pytest.mark.parametrize("objective", [TokenCosine, TokenSquare, PooledCosine, PooledSquare, Relations])
def test_who_agrees_has_nothing_to_learn(objective):
    _, taught, mask = example(12)
    assert objective()(taught, taught, mask).item() == pytest.approx(0, abs=1e-5)


def test_logits_loss_is_its_formula():
    logits, taught = torch.randn(2, 3, 7).double()
    labels = torch.tensor([2, -100, 0])
    expected = 0.0
    for z, t, label in zip(logits.numpy(), taught.numpy(), labels):
        p, q = (np.exp(x / TEMPERATURE) / np.exp(x / TEMPERATURE).sum() for x in (t, z))
        expected += TEMPERATURE**2 * (p * np.log(p / q)).sum() * (label != -100).item()
    assert logits_loss(logits, taught, labels, -100).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("given", "taught", "message"),
    [
        ({"nonsense": 1}, True, "objectives: unknown 'nonsense', known: masked_lm"),
        ({"token_cosine": 0}, True, "token_cosine: 0 is not accepted, expected a number above 0"),
        ({"token_cosine": "1"}, True, "token_cosine: '1' is not accepted"),
        ({"token_cosine": float("nan")}, True, "token_cosine: nan is not accepted"),
        ({"relations": 1}, False, "relations needs a teacher, give --teacher"),
        ({"masked_lm": 1}, True, "under a teacher one of token_cosine, "),
    ],
)
def test_objectives_that_are_refused(given, taught, message):
    with pytest.raises(UserError, match=message):
        objective_weights(given, taught)


# --- training -----------------------------------------------------------------------------------------------------

BUDGET = PretrainingBudget(steps=6, batch_size=4, sequence_length=32, learning_rate=3e-3, checkpoint_steps=2)
ALL = dict.fromkeys(OBJECTIVES, 1.0)


def student(**fields) -> FlexiBertForMaskedLM:
    set_seed(0)
    fields = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **fields}
    return FlexiBertForMaskedLM(
        FlexiBertConfig(vocab_size=46, layers=SPECS["mixed_heads"][:1], max_position_embeddings=32, **fields)
    )


def train(taught, tokenizer, budget=BUDGET, model=None, precision="no", **options):
    model = model or student()
    AcceleratorState._reset_state()  # else the precision cannot change
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    try:
        return model, pretrain(model, taught, taught, tokenizer, budget, 0, accelerator, **options)
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state()


def test_every_passage_comes_in_every_epoch(taught, tokenizer):
    batches = TaughtBatches(taught, tokenizer, 0.15, seed=0, masked=False, asks=False)
    epochs = [batches._epoch(epoch, 4) for epoch in range(2)]
    for epoch in epochs:
        assert set(np.concatenate(epoch)) == set(range(len(taught.passages)))
        sizes = [len(rows) * batches.widths[rows].max() for rows in epoch]
        assert max(sizes) <= 4 * 32 and np.mean(sizes) > 0.85 * 4 * 32
    assert len(epochs[0]) == len(epochs[1])
    for step in (0, 3):
        again = TaughtBatches(taught, tokenizer, 0.15, seed=0, masked=False, asks=False)
        assert np.array_equal(batches.arrays(step, 4)["input_ids"], again.arrays(step, 4)["input_ids"])


@pytest.mark.parametrize("objectives", [{}, ALL], ids=["default", "all"])
def test_accumulation_changes_nothing(taught, tokenizer, objectives):
    budget = dataclasses.replace(BUDGET, checkpoint_steps=0, objectives=objectives)
    results = [train(taught, tokenizer, dataclasses.replace(budget, micro_batches=n)) for n in (1, 4)]
    np.testing.assert_allclose(results[0][1].losses, results[1][1].losses, rtol=2e-4)
    assert results[0][1].metrics == pytest.approx(results[1][1].metrics, rel=1e-2)
    weights = [model.state_dict() for model, _ in results]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=3e-3, rtol=0.05)


def test_bf16_has_the_same_loss(taught, tokenizer):
    budget = dataclasses.replace(BUDGET, steps=1, objectives=ALL, checkpoint_steps=0)
    losses = [train(taught, tokenizer, budget, precision=precision)[1].losses[0] for precision in ("no", "bf16")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_student_learns_and_only_what_is_taught_changes(taught, tokenizer):
    model = student()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    budget = dataclasses.replace(BUDGET, steps=150, batch_size=8, checkpoint_steps=0)
    _, result = train(taught, tokenizer, budget, model)
    assert result.metrics["distillation_loss"] < 0.5 * result.losses[0] / 2
    parts = result.metrics["token_cosine_loss"], result.metrics["pooled_cosine_loss"]
    assert result.metrics["distillation_loss"] == pytest.approx(np.mean(parts))
    assert "mlm_loss_nats" not in result.metrics
    assert all(parameter.requires_grad for parameter in model.parameters())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("prediction_head.") or name == "lm_head.bias" for name in changed)
    assert result.state_map["weight"].shape == (32, model.config.hidden_size)


def test_a_super_network_is_taught_and_its_members_inherit_the_map(taught, tokenizer, tmp_path):
    space = SearchSpace.from_dict(
        {
            "num_layers": [1],
            "hidden_size": [16, 32],
            "num_heads": [2],
            "operations": [{"op": "self_attention"}, {"op": "linear_transform", "transform": "fourier"}],
            "feed_forward_size": [16],
            "feed_forward_depth": [1],
        }
    )
    fields = {"vocab_size": 46, "max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "pad_token_id": 0}
    network = SuperNetwork(space, fields)
    budget = dataclasses.replace(BUDGET, steps=30, objectives=ALL, checkpoint_steps=0)

    def path(step, part):
        return {"layers": random_member(space, 0, step)}

    _, result = train(taught, tokenizer, budget, network, arguments=path)
    assert np.mean(result.losses[-5:]) < np.mean(result.losses[:5])
    assert {f"{name}_loss" for name in STATE_OBJECTIVES} <= result.metrics.keys()

    network.state_map = result.state_map
    save_supernet(network, tokenizer, tmp_path / "net", {})
    loaded, _ = load_supernet(tmp_path / "net")
    member = path(budget.steps, 0)["layers"]
    untrained = dataclasses.replace(budget, steps=0)
    _, inherited = train(taught, tokenizer, untrained, loaded.extract(member), state_map=loaded.state_map)
    assert inherited.metrics == pytest.approx(result.metrics, rel=1e-5), "as within the super-network"
    members = (path(step, 0)["layers"] for step in range(9))
    narrow = next(layers for layers in members if layers[0].hidden_size == 16)
    model = loaded.extract(narrow)
    _, trained = train(taught, tokenizer, budget, model, state_map=loaded.state_map)
    loaded.write_back(narrow, model, trained.state_map)
    _, again = train(taught, tokenizer, untrained, loaded.extract(narrow), state_map=loaded.state_map)
    assert again.metrics == pytest.approx(trained.metrics, rel=1e-5), "what was written back comes out"
    assert torch.equal(loaded.state_map["weight"][:, 16:], result.state_map["weight"][:, 16:])


def test_a_candidate_that_starts_from_a_trained_one_takes_its_map(taught, tokenizer, tmp_path):
    budget = dataclasses.replace(BUDGET, steps=20, checkpoint_steps=0)
    model, result = train(taught, tokenizer, budget)
    save_checkpoint(
        model, tokenizer, tmp_path / "source", CardFacts("source", "text", {}, (0,), teacher="t"), result.state_map
    )
    fields = {name: value for name, value in model.config.to_diff_dict().items() if name in SHARED_FIELDS}
    first = FromNearest(fields, "ordered", 0).model(model.config.layer_specs, tmp_path / "source")
    untrained = dataclasses.replace(budget, steps=0)
    _, inherited = train(taught, tokenizer, untrained, first.model, state_map=first.state_map)
    assert inherited.metrics == pytest.approx(result.metrics, rel=1e-5)
    _, without = train(taught, tokenizer, untrained, first.model)
    assert without.metrics["distillation_loss"] > result.metrics["distillation_loss"] + 0.1


# --- the command --------------------------------------------------------------------------------------------------

LAYERS = [{"hidden_size": 16, "operations": [{"op": "self_attention", "num_heads": 2}], "feed_forward": [16]}]


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    """The commands run in it: a corpus, a recipe, pairs with similarities, a teacher."""
    place = tmp_path_factory.mktemp("work")
    (place / "corpus.txt").write_text("\n\n".join(TEXT["text"]), encoding="utf-8")
    (place / "layers.json").write_text(json.dumps(LAYERS), encoding="utf-8")
    budget = {"steps": 4, "batch_size": 4, "sequence_length": 32, "checkpoint_steps": 2}
    space = {"num_layers": [1], "hidden_size": [16], "num_heads": [2], "feed_forward_size": [16, 32]}
    space |= {"operations": [{"op": "self_attention"}], "feed_forward_depth": [1]}
    recipe = {"description": "tiny", "pretraining": budget, "space": space, "trials": 2, "tasks": []}
    (place / "tiny.json").write_text(json.dumps(recipe), encoding="utf-8")
    rows = [f"{sentences(1, seed)},{sentences(1, seed + 1)},{seed % 5}.5" for seed in range(40)]
    (place / "pairs.csv").write_text("\n".join(["text,text2,label", *rows]), encoding="utf-8")
    (place / "teacher").symlink_to(folder)
    before = Path.cwd()
    os.chdir(place)
    yield place
    os.chdir(before)


TINY = ("--corpus", "corpus.txt", "--recipe", "tiny.json", "--teacher", "teacher")
PRETRAIN = ("pretrain", "--architecture", "layers.json", *TINY)


def test_pretrain_evaluate_and_what_sentence_transformers_needs(place, capsys):
    assert main([*PRETRAIN, "--output", "taught"]) == 0
    assert "distillation loss" in capsys.readouterr().out
    modules = json.loads(Path("taught/modules.json").read_text(encoding="utf-8"))
    assert [entry["path"] for entry in modules] == ["", "1_Pooling", "2_Dense"]
    pooling = json.loads(Path("taught/1_Pooling/config.json").read_text(encoding="utf-8"))
    assert pooling["pooling_mode_mean_tokens"] and pooling["word_embedding_dimension"] == 16
    assert json.loads(Path("taught/sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"] == 32
    dense = json.loads(Path("taught/2_Dense/config.json").read_text(encoding="utf-8"))
    weights = load_file("taught/2_Dense/model.safetensors")
    assert weights["linear.weight"].shape == (dense["out_features"], dense["in_features"]) == (32, 16)
    card = Path("taught/README.md").read_text(encoding="utf-8")
    assert "Learnt from the last hidden states of teacher" in card and "fill-mask" not in card.split("## How")[1]

    encoder = SentenceEncoder("taught", torch.device("cpu"))
    texts = [sentences(1, seed) for seed in range(5)]
    vectors = encoder.embed(texts, 32)
    model = FlexiBertForMaskedLM.from_pretrained("taught").model
    for text, vector in zip(texts, vectors):
        ids = encoder.tokenizer(text, truncation=True, max_length=32, padding=False, return_tensors="pt")["input_ids"]
        pooled = model(ids).last_hidden_state[0].mean(0)
        expected = weights["linear.weight"] @ pooled + weights["linear.bias"]
        torch.testing.assert_close(vector, expected.detach(), atol=1e-5, rtol=1e-4)

    evaluate = ("evaluate", "taught", "--tasks", "pairs.csv:text+text2:label", "--max-length", "32")
    assert main([*evaluate, "--output", "scores.json"]) == 0
    scores = json.loads(Path("scores.json").read_text(encoding="utf-8"))["pairs"]["validation"]
    assert (
        scores.keys() == {"pearson", "spearmanr"} and f"{100 * scores['spearmanr']:7.2f} %" in capsys.readouterr().out
    )


def test_a_search_is_led_by_the_teacher(place, capsys):
    assert main(["run", *TINY, "--name", "led", "--sampler", "random"]) == 0
    summary = json.loads(Path("runs/led/summary.json").read_text(encoding="utf-8"))
    assert '"distillation_loss"' in json.dumps(summary)
    assert "1_Pooling" in {path.name for path in Path("runs/led/best").iterdir()}
    best = FlexiBertForMaskedLM.from_pretrained("runs/led/best")
    assert best.config.vocab_size == 46


def test_a_super_network_by_the_command(place, capsys):
    assert main(["supernet", *TINY, "--output", "shared"]) == 0
    assert "distillation loss" in capsys.readouterr().out


@pytest.fixture(scope="module")
def bad(place, folder):
    """Teachers that cannot teach."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def save(name, model):
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)

    sizes = {"vocab_size": 46, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
    save("decoder", GPT2Model(GPT2Config(**sizes)))
    save("short", BertModel(config(46).__class__(**{**config(46).to_dict(), "max_position_embeddings": 16})))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    save("offset", RobertaModel(RobertaConfig(vocab_size=46, max_position_embeddings=33, pad_token_id=0, **sizes)))
    save("few", BertModel(config(40)))
    save("headless", BertModel(config(46)))
    words = [*SPECIALS, ".", *(f"other{index}" for index in range(40))]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained("other_tokenizer")
    recipe = json.loads(Path("tiny.json").read_text(encoding="utf-8"))
    recipe["pretraining"]["objectives"] = {"token_cosine": 1, "logits": 1}
    Path("logits.json").write_text(json.dumps(recipe), encoding="utf-8")
    recipe["pretraining"]["objectives"] = {"token_cosin": 1}
    Path("misspelt.json").write_text(json.dumps(recipe), encoding="utf-8")
    Path("empty").mkdir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--teacher", "decoder"), "teacher decoder: gpt2 is no encoder"),
        (("--teacher", "short"), "teacher short takes 16 tokens, sequence_length 32 is beyond it"),
        (("--teacher", "offset", "--sequence-length", "33"), "teacher offset takes 32 tokens, sequence_length 33"),
        (("--teacher", "few"), "teacher few: its tokenizer has 46 tokens, the model has 40"),
        (("--teacher", "empty"), "teacher empty cannot be loaded: "),
        (("--teacher", "./nowhere"), "teacher ./nowhere: no such folder"),
        (("--tokenizer", "other_tokenizer"), "--tokenizer other_tokenizer is another one than that of the teacher"),
        (("--recipe", "logits.json", "--teacher", "headless"), "teacher headless has no head for masked tokens"),
        (("--recipe", "misspelt.json"), "objectives: unknown 'token_cosin', known: masked_lm"),
        (("--teacher-cache-gb", "1e-9"), "--teacher-cache-gb is 1e-09"),
        (("--sequence-length", "4"), "passages need at least 8 tokens"),
    ],
)
def test_pretrain_refuses(capsys, place, bad, arguments, message):
    capsys.readouterr()
    assert main([*PRETRAIN, "--output", "new", *arguments]) == 2
    output = capsys.readouterr().err
    assert len(output.strip().splitlines()) == 1 and output.startswith("search: error: "), output
    assert message in output
    assert not Path("new").exists()


def test_evaluate_refuses_what_it_cannot_compare(capsys, place):
    Path("classes.csv").write_text("text,label\na,0\nb,1\nc,0\nd,1\n" * 5, encoding="utf-8")
    assert main(["evaluate", "teacher", "--tasks", "classes.csv:text:label", "--max-length", "32"]) == 2
    assert "expected pairs of texts with a number as label" in capsys.readouterr().err
