"""Training a super-network, killed or not, and searching with it: what candidates inherit and what they give back."""

import datetime
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from conftest import MaskingTokenizer
from safetensors.torch import load_file

from flexibert import FlexiBertForMaskedLM
from flexibert.attention_graph import GRAPHS, parse_graph
from search.cli import main
from search.evaluation.first_weights import WRITERS, writers
from search.evaluation.member_sampling import random_member
from search.evaluation.supernet import SuperNetwork, load_supernet
from search.progress import RunProgress
from search.samplers import create_sampler
from search.space.search_space import SearchSpace
from search.study.run_folder import RunFolder
from search.study.search import Search
from search.study.storage import open_study
from search.study.trials import finished
from search.training.pretraining import PretrainingBudget, pretrain


ROOT = Path(__file__).resolve().parent.parent
SPACE = {
    "num_layers": [2],
    "hidden_size": [16],
    "num_heads": [2],
    "operations": [
        {"op": "attention_graph", "graph": {"max_nodes": 7}},
        *({"op": "lightweight_convolution", "kernel_size": size} for size in (3, 9)),
    ],
    "feed_forward_size": [16],
}
RECIPE = {
    "description": "seconds on a CPU",
    "space": SPACE,
    "sampler": {"name": "opnas", "population": 3, "parents": 1, "children": 2},
    "trials": 4,
    "tasks": [],
    "vocab_size": 60,
    "model": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "pretraining": {"steps": 6, "batch_size": 8, "sequence_length": 32, "learning_rate": 0.003},
}


# --- training -----------------------------------------------------------------------------------------------------


BUDGET = PretrainingBudget(steps=12, batch_size=4, sequence_length=16, learning_rate=3e-3, checkpoint_steps=3)


def train(folder=None, kill_at=None):
    """Trains a super-network with dropout; the process kills itself before step `kill_at`. Returns its weights."""
    space = SearchSpace.from_dict(SPACE)
    blocks = np.random.default_rng(0).integers(5, 60, (32, 16)).astype(np.uint16)
    set_seed(0)
    network = SuperNetwork(space, {"vocab_size": 60, "max_position_embeddings": 16})

    def path(step, part):
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"layers": random_member(space, 7, step)}

    accelerator = Accelerator(cpu=True)
    pretrain(network, blocks, blocks[:4], MaskingTokenizer(), BUDGET, 7, accelerator, folder, arguments=path)
    return network.state_dict()


def test_training_killed_at_a_random_step_gives_the_same_bits(tmp_path):
    step = random.randrange(1, BUDGET.steps)
    code = "import sys, pathlib, test_supernet_search as t; t.train(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(step)], env=environment, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoint").is_dir() == (step >= 3)
    whole, resumed = train(), train(tmp_path)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole), step


def test_every_branch_is_trained():
    set_seed(0)
    first = SuperNetwork(SearchSpace.from_dict(SPACE), {"vocab_size": 60, "max_position_embeddings": 16}).state_dict()
    last = train()
    branches = {name.split("/")[2] for name in first if "layers/" in name and not torch.equal(first[name], last[name])}
    assert branches == {"attention_graph", "lightweight_convolution"}


# --- the commands -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recipe, text, and a super-network that was trained with both."""
    folder = tmp_path_factory.mktemp("supernet")
    words = ["the", "small", "red", "fox", "runs", "over", "a", "large", "dog", "and", "sees", "one", "blue", "bird"]
    rng = random.Random(0)
    text = "\n\n".join(" ".join(rng.choice(words) for _ in range(40)) + "." for _ in range(200))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    recipe = {**RECIPE, "corpus": str(folder / "text.txt")}
    (folder / "small.json").write_text(json.dumps(recipe), encoding="utf-8")
    assert main(["supernet", "--recipe", str(folder / "small.json"), "--output", str(folder / "net")]) == 0
    return folder


def run(folder, *options, recipe="small", net="net"):
    supernet = ["--evaluator", "supernet", "--supernet", str(folder / net)] if net else []
    return main(
        ["run", "--recipe", str(folder / f"{recipe}.json"), "--runs", str(folder / "runs"), *supernet, *options]
    )


def trials(folder, name):
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{folder / 'runs' / name / 'study.db'}")
    return [
        (trial, next((folder / "runs" / name / "trials").glob(f"{trial.number:04d}-*"))) for trial in finished(study)
    ]


def weights(path):
    return load_file(path / "supernet.safetensors")


def test_the_command_leaves_a_super_network(folder):
    network, description = load_supernet(folder / "net")
    assert description.space == SearchSpace.from_dict(SPACE)
    assert description.training["steps"] == 6
    assert not (folder / "net.training").exists()
    layers = random_member(network.space, 0, 0)
    assert network.extract(layers).config.vocab_size == 60


def test_two_processes_train_the_same_super_network(folder):
    """Each takes half of every batch, so weights differ by rounding, which Adam makes larger where gradients are 0."""
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29641", "-m", "search")
    arguments = ("supernet", "--recipe", str(folder / "small.json"), "--output", str(folder / "pair"))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *launcher, *arguments], env=environment, check=True, timeout=600)
    alone, pair = weights(folder / "net"), weights(folder / "pair")
    assert alone.keys() == pair.keys()
    for name in alone:
        assert (alone[name] - pair[name]).abs().mean() < 1e-5, name


def test_without_training_candidates_are_what_they_inherit(folder):
    before = weights(folder / "net")
    assert run(folder, "--steps", "0", "--trials", "2", "--name", "inherit") == 0
    network, _ = load_supernet(folder / "net")
    for _, checkpoint in trials(folder, "inherit"):
        model = FlexiBertForMaskedLM.from_pretrained(checkpoint)
        expected = network.extract(model.config.layer_specs).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert not (folder / "runs" / "inherit" / "supernet").exists()  # nothing was learnt
    assert all(torch.equal(value, before[name]) for name, value in weights(folder / "net").items())


def test_good_trials_write_back_and_a_stopped_run_makes_it_good(folder):
    before = weights(folder / "net")
    assert run(folder, "--name", "whole") == 0
    copy = folder / "runs" / "whole" / "supernet"
    done = trials(folder, "whole")
    assert json.loads((copy / "supernet.json").read_text())["written_back"] == [trial.number for trial, _ in done]
    assert len(done) == 4 <= WRITERS
    model = FlexiBertForMaskedLM.from_pretrained(done[-1][1])
    network, _ = load_supernet(copy)
    torch.testing.assert_close(network.extract(model.config.layer_specs).state_dict(), model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in weights(folder / "net").items())

    # The same run in two parts. What the last trial of the first wrote back is lost, as if it was killed before.
    assert run(folder, "--name", "parts", "--trials", "1") == 0
    for path in (folder / "runs" / "parts" / "supernet").iterdir():
        path.unlink()
    assert run(folder, "--name", "parts") == 0
    parts = weights(folder / "runs" / "parts" / "supernet")
    assert all(torch.equal(value, parts[name]) for name, value in weights(copy).items())


def test_writers_are_the_best_so_far():
    day = datetime.datetime(2020, 1, 1)
    scores = [5.0, 1.0, 2.0, 3.0, 4.0, 0.5, 6.0, 2.0, 2.5]
    done = [
        SimpleNamespace(number=i, values=[score], datetime_complete=day + datetime.timedelta(i))
        for i, score in enumerate(scores)
    ]
    assert [trial.number for trial in writers(done[::-1])] == [0, 1, 2, 3, 4, 6, 7, 8]


BAD = {
    "no folder": (["--supernet", "{folder}/nothing"], "is no super-network"),
    "no --supernet": ([], "go together"),
    "transfer": (["--supernet", "{folder}/net", "--transfer", "ordered"], "--transfer"),
    "another space": (["--supernet", "{folder}/net", "--recipe", "{folder}/wide.json"], "is of another space"),
    "another tokenizer": (["--supernet", "{folder}/net", "--recipe", "{folder}/words.json"], "has another tokenizer"),
    "longer text": (["--supernet", "{folder}/net", "--sequence-length", "256"], "takes 128 tokens"),
    "another model": (["--supernet", "{folder}/net", "--recipe", "{folder}/dropout.json"], "hidden_dropout_prob"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_suit_is_said_in_one_line(folder, capsys, case):
    changes = {
        "wide": {"space": {**SPACE, "hidden_size": [32]}},
        "words": {"vocab_size": 50},
        "dropout": {"model": {**RECIPE["model"], "hidden_dropout_prob": 0.2}},
    }
    for name, change in changes.items():
        data = {**RECIPE, "corpus": str(folder / "text.txt"), **change}
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    options, message = BAD[case]
    options = [option.format(folder=folder) for option in options]
    assert run(folder, "--name", case.replace(" ", "-"), "--evaluator", "supernet", *options, net=None) == 2
    error = capsys.readouterr().err
    assert error.startswith("search: error: ") and message in error and error.count("\n") == 1


def test_a_folder_with_something_else_is_not_overwritten(folder, capsys):
    (folder / "other").mkdir()
    (folder / "other" / "thesis.txt").touch()
    recipe = str(folder / "small.json")
    assert main(["supernet", "--recipe", recipe, "--output", str(folder / "other")]) == 2
    assert "is no super-network" in capsys.readouterr().err
    assert main(["supernet", "--recipe", "pretrain_cpu", "--output", str(folder / "third")]) == 2
    assert "has no space" in capsys.readouterr().err


# --- equal functions ----------------------------------------------------------------------------------------------


def test_the_same_function_is_never_trained_twice(tmp_path):
    space = SearchSpace.from_dict({**SPACE, "num_layers": [1]})
    plain = GRAPHS["scaled-dot-product"]
    renamed = [line.replace("(v)", "(p)").replace(", v)", ", p)") for line in plain]
    first, second = (
        space.parameters(space.build({**space.parameters(space.sample(random.Random(0))), **parameters}))
        for parameters in (
            {"layer0.operation": "attention_graph", **space.graph_space.encode(parse_graph(lines), "layer0.graph.")}
            for lines in (plain, renamed)
        )
    )
    assert space.build(first) != space.build(second)
    seen = []

    def evaluate(layers, folder, source):
        seen.append(layers)
        return {"score_percent": float(len(seen)), "parameters": 1}

    study = open_study(f"sqlite:///{tmp_path}/study.db", "run", {}, {"score_percent": "maximize"})
    for parameters in (first, second):
        study.enqueue_trial(parameters)
    sampler = create_sampler({"name": "random"}, space, seed=0)
    Search(study, sampler, evaluate, RunFolder(tmp_path), Accelerator(cpu=True), RunProgress(enabled=False)).run(2)
    assert seen[0] == space.build(first) and space.build(second) not in seen
    assert study.trials[1].user_attrs["duplicate_of"] == 0 and study.trials[1].values == [1.0]
