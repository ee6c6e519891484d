"""Pretraining that is killed (really, by SIGKILL) and started again ends as if nothing had happened, to the bit."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, set_seed
from conftest import SPECS, MaskingTokenizer
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search.data.block_stream import BlockStream
from search.data.passages import Passages
from search.data.streaming import open_streams
from search.files import replace_file
from search.training import pretraining, state
from search.training.pretraining import PretrainingBudget, pretrain
from search.training.teacher import Form, StateCache, TaughtText


ROOT = Path(__file__).resolve().parents[1]
BUDGET = PretrainingBudget(
    steps=30, batch_size=8, sequence_length=16, learning_rate=3e-3, checkpoint_steps=3, micro_batches=2
)
KILLS = sorted(random.Random(0).sample(range(BUDGET.steps), 5))


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path, kill_at: int | str | None, environment: dict[str, str | int]) -> None:
    """In a process of its own: trains until the step, or until the first call of the function, to be killed at."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    step_seed = pretraining.step_seed
    if isinstance(kill_at, int):
        pretraining.step_seed = lambda seed, step, process: (
            die() if step == kill_at else step_seed(seed, step, process)
        )
    elif kill_at is not None:
        module, name = {"save_state": (Accelerator, "save_state"), "replace": (state.os, "replace")}[kill_at]
        finish = getattr(module, name)
        setattr(module, name, lambda *args: (finish(*args), die()))

    rng = np.random.default_rng(0)
    blocks = np.concatenate([np.full((40, 1), 2), rng.integers(5, 60, (40, 14)), np.full((40, 1), 3)], axis=1)
    validation, budget = blocks[:8], BUDGET
    if "TAUGHT" in environment:
        blocks = validation = taught_text(rng)
        budget = dataclasses.replace(BUDGET, objectives={"token_cosine": 1.0, "pooled_mse": 0.5, "masked_lm": 0.1})
    if "STREAMED" in environment:
        blocks = streamed_text(rng, folder.with_name(f"{folder.name}-text"))
    set_seed(0)
    dropout = {} if "NO_DROPOUT" not in environment else {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    model = FlexiBertForMaskedLM(
        FlexiBertConfig(vocab_size=60, layers=SPECS["mixed_heads"][:1], max_position_embeddings=16, **dropout)
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=sharding() if "SHARDED" in environment else None)
    pretrain(model, blocks, validation, MaskingTokenizer(), budget, 1, accelerator, folder)


def taught_text(rng: np.random.Generator) -> TaughtText:
    """Passages of several lengths, and states that a teacher may have made of them."""
    lengths = rng.integers(4, 17, 40)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    passages = Passages(rng.integers(5, 60, starts[-1]), starts, lengths, 16, "random")
    states = StateCache(Path("random"), passages, Form(12, "float16"))
    states.opened[0] = rng.normal(size=(starts[-1], 12)).astype(np.float16), np.empty(0)
    return TaughtText(passages, states, None)


def streamed_text(rng: np.random.Generator, folder: Path) -> BlockStream:
    """Three files of documents, in windows of 40 blocks, so that there are several windows and epochs."""
    folder.mkdir(exist_ok=True)
    for part in range(3):
        text = "\n\n".join(" ".join(f"n{number:02}" for number in rng.integers(5, 60, 20)) for _ in range(40))
        replace_file(folder / f"{part}.txt", text)
    backend = Tokenizer(WordLevel({f"n{number:02}": number for number in range(60)}, unk_token="n01"))
    backend.pre_tokenizer = WhitespaceSplit()
    names = {f"{name}_token": f"n{number:02}" for number, name in enumerate(("pad", "unk", "cls", "sep", "mask"))}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    text = open_streams(str(folder), None, "text", None)["train"]
    return BlockStream(text, tokenizer, 16, "numbers", window_tokens=40 * 16)


def sharding() -> FullyShardedDataParallelPlugin:
    """FSDP over processes without accelerators, which Accelerate (1.15) only takes up if it believes in some."""
    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["FlexiBertLayer"],
        state_dict_type="FULL_STATE_DICT",
    )


def run(folder: Path, way: str, kill_at: int | str | None = None, processes: int | None = None) -> None:
    """Runs `train` in processes started as `torchrun` does."""
    processes = processes or (1 if way == "alone" else 2)
    context = multiprocessing.get_context("fork")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": processes}
    workers = []
    for rank in range(processes):
        environment = {**address, "RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
        environment |= dict.fromkeys(way.upper().split(), 1)
        workers.append(context.Process(target=train, args=(folder, kill_at, environment)))
        workers[-1].start()
    for worker in workers:
        worker.join(300)
        if kill_at is not None:
            workers[-1].kill()  # It may wait for the first one, which is dead.
    assert [worker.exitcode for worker in workers] == [0 if kill_at is None else -signal.SIGKILL] * processes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def assert_equal(first: Path, second: Path) -> None:
    """Weights, optimiser and losses of two last checkpoints."""
    states = [json.loads((folder / "checkpoint" / "pretraining.json").read_text()) for folder in (first, second)]
    assert states[0] == states[1] and states[0]["step"] == len(states[0]["losses"]) == BUDGET.steps
    weights = [load_weights(folder / "checkpoint") for folder in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])
    optimizers = [torch.load(folder / "checkpoint" / "optimizer.bin") for folder in (first, second)]
    assert len({json.dumps(optimizer["param_groups"]) for optimizer in optimizers}) == 1
    moments = [optimizer["state"] for optimizer in optimizers]
    assert len(moments[0]) == len(moments[1]) > 10
    for index, moment in moments[0].items():
        assert all(torch.equal(value, moments[1][index][name]) for name, value in moment.items())


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    sharded = folder / "pytorch_model_fsdp.bin"
    return torch.load(sharded) if sharded.is_file() else load_file(folder / "model.safetensors")


@pytest.fixture(
    scope="module",
    params=[
        "alone",
        "replicated",
        "taught",
        *(pytest.param(way, marks=pytest.mark.slow) for way in ("sharded", "streamed")),
    ],
)
def uninterrupted(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(folder, request.param)
    return folder, request.param


def test_five_kills_change_nothing(uninterrupted, tmp_path):
    expected, way = uninterrupted
    for step in KILLS:
        run(tmp_path, way, kill_at=step)
    run(tmp_path, way)
    assert_equal(tmp_path, expected)


@pytest.mark.parametrize("kill_at", ["save_state", "replace"])
def test_kills_while_a_checkpoint_is_written_change_nothing(uninterrupted, tmp_path, kill_at):
    """Killed with the new checkpoint half-made, and between the renames that put it in the place of the old one."""
    expected, way = uninterrupted
    run(tmp_path, way, kill_at=KILLS[0])
    for _ in range(2):
        run(tmp_path, way, kill_at)
    run(tmp_path, way)
    assert_equal(tmp_path, expected)


@pytest.mark.parametrize("way", ["taught", pytest.param("streamed", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_does(tmp_path, way):
    """Passages of uneven lengths fall on both, or blocks of a stream, and they draw no dropout that differs."""
    losses = []
    for processes in (1, 2):
        run(tmp_path / str(processes), f"{way} no_dropout", processes=processes)
        state = json.loads((tmp_path / str(processes) / "checkpoint" / "pretraining.json").read_text(encoding="utf-8"))
        losses.append(state["losses"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
