"""The command as a user meets it: a whole search, kill and resume, two processes, and every line of bad input."""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import validate_repo_id

from flexibert import FlexiBertModel
from search.cli import build_parser, main
from search.commands.run import next_commands
from search.study.run_folder import RunFolder


ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "description": "seconds on a CPU",
    "space": {
        "num_layers": [1, 2],
        "hidden_size": [16],
        "num_heads": [2],
        "operations": [{"op": "self_attention"}, {"op": "linear_transform"}, {"op": "dynamic_convolution"}],
        "feed_forward_size": [16, 32],
    },
    "sampler": {"name": "random"},
    "trials": 2,
    "tasks": ["word_order"],
    "vocab_size": 300,
    "max_train_examples": 64,
    "pretraining": {"steps": 4, "batch_size": 8, "sequence_length": 32, "learning_rate": 0.001},
    "finetuning": {"max_steps": 2, "batch_size": 8, "max_length": 32},
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A few thousand words of text whose sentences can be told apart."""
    words = [
        "the",
        "a",
        "one",
        "small",
        "large",
        "red",
        "green",
        "blue",
        "fox",
        "dog",
        "cat",
        "bird",
        "runs",
        "sleeps",
        "jumps",
        "sees",
        "finds",
        "over",
        "under",
        "near",
    ]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    lines = []
    for start in range(400):
        picks = [words[(start * step + offset) % len(words)] for step, offset in ((3, 1), (5, 2), (7, 3), (11, 4))]
        lines.append(" ".join(picks * 2).capitalize() + f" {start}. Then " + " ".join(picks[::-1]) + " again.")
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path, corpus):
    return write_recipe(tmp_path, corpus)


def write_recipe(tmp_path, corpus, **changes):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps({**TINY, "corpus": str(corpus), **changes}), encoding="utf-8")
    return str(path)


def environment(**changes):
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **changes}


def command(*arguments, launcher=("-m", "search"), **kwargs):
    """Runs the command in a process of its own."""
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(**kwargs.pop("env", {})),
        **kwargs,
    )


def test_a_search_leaves_a_run_folder_and_says_what_to_try(tmp_path, recipe, capsys):
    done = command("run", "--recipe", recipe, "--runs", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tiny"
    summary = json.loads((folder / "summary.json").read_text())
    trials = sorted(path.name for path in (folder / "trials").iterdir() if not path.name.startswith("."))
    assert len(trials) == 2
    for name in ("config.json", "model.safetensors", "README.md", "modeling_flexibert.py", "tokenizer.json"):
        assert (folder / "best" / name).is_file(), name
    assert (folder / "best" / "tasks" / "word_order" / "model.safetensors").is_file()
    assert (folder / "report" / "report.md").is_file() and list((folder / "report").glob("*.png"))
    assert summary["best"]["fingerprint"] in (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "load it" in done.stdout and "fine-tune it" in done.stdout and "publish it" in done.stdout
    assert str(folder / "best") in done.stdout
    assert json.loads((folder / "best" / "config.json").read_text())["layers"] == summary["best"]["layers"]
    assert "Traceback" not in done.stderr

    once_more = command("run", "--recipe", recipe, "--runs", str(tmp_path / "runs"), "--json")
    assert json.loads(once_more.stdout)["best"] == summary["best"]

    def said(*arguments):
        assert main(arguments) == 0
        return capsys.readouterr().out

    assert "Nothing was uploaded" in said("publish", str(folder / "best"), "--repo-id", "someone/tiny")
    assert "report.md" in said("report", str(folder))
    assert json.loads(said("report", str(folder), "--json")) == json.loads((folder / "summary.json").read_text())
    scores = said(
        "finetune", "--model", str(folder / "best"), "--tasks", "word_order", "--corpus", recipe_corpus(recipe),
        "--max-train-examples", "32", "--epochs", "1", "--max-length", "32", "--output", str(tmp_path / "fine"),
    )  # fmt: skip
    assert "word_order" in scores and "accuracy" in scores
    assert (tmp_path / "fine" / "word_order" / "config.json").is_file()


def test_a_search_without_enough_memory_takes_smaller_micro_batches(tmp_path, recipe, monkeypatch, capsys):
    """Of what is trained, encoders and heads, as much fits into the memory as half a batch."""
    largest, inner = [], FlexiBertModel.forward

    def forward(self, input_ids=None, *others, **arguments):
        if self.training and len(input_ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        largest.append(len(input_ids) if self.training else 0)
        return inner(self, input_ids, *others, **arguments)

    monkeypatch.setattr(FlexiBertModel, "forward", forward)
    options = ["--recipe", recipe, "--runs", str(tmp_path / "runs"), "--trials", "1", "--max-failures", "1"]
    assert main(["run", *options]) == 0
    folder = tmp_path / "runs" / "tiny"
    assert "CUDA out of memory. Tried to allocate 2 GiB; to be tried again" in capsys.readouterr().out
    assert max(largest) == 4 and largest.count(4) == 2 * (4 + 2)  # two for each step of pretraining and fine-tuning
    [checkpoint] = (folder / "trials").glob("0001-*")
    assert re.search(r"micro.batches\W+2\b", (checkpoint / "README.md").read_text(encoding="utf-8"))
    assert "(done again as trial 1)" in (folder / "report" / "report.md").read_text(encoding="utf-8")


def test_weights_are_transferred_and_costs_weighed_level_by_level(tmp_path, corpus):
    recipe = write_recipe(tmp_path, corpus, trials=3, sampler={"name": "boshnas"})
    options = (
        *("--transfer", "ordered", "--objectives", "score_percent,latency_ms", "--max-parameters", "100000"),
        *("--max-latency-ms", "1e6", "--latency-batch", "3", "--latency-repetitions", "2"),
    )
    done = command("run", "--recipe", recipe, "--runs", str(tmp_path / "runs"), "--hierarchy", *options)
    assert done.returncode == 0, done.stderr
    metrics = [trial["metrics"] for trial in completed(tmp_path / "runs" / "tiny")]
    assert metrics[0]["transferred_percent"] == 0 < metrics[1]["transferred_percent"]
    assert all(0 < row["latency_ms"] <= 1e6 and row["parameters"] <= 100_000 for row in metrics)
    report = (tmp_path / "runs/tiny/report/report.md").read_text(encoding="utf-8")
    assert "## Levels" in report and "## How latency was measured" in report
    measured = [trial["measured"] for trial in completed(tmp_path / "runs" / "tiny")]
    for row, how in zip(metrics, measured):
        assert how["low"] <= how["ms"] == row["latency_ms"] <= how["high"]
        assert how["conditions"].items() >= {"runtime": "torch", "batch": 3, "repetitions": 2}.items()
    (entry,) = json.loads((tmp_path / "runs/tiny/summary.json").read_text(encoding="utf-8"))["conditions"]
    assert entry["trials"] == 3 and entry["length"] == how["conditions"]["length"]
    other = (*options, "--latency-batch", "4")
    refused = command("run", "--recipe", recipe, "--runs", str(tmp_path / "runs"), "--hierarchy", *other)
    assert refused.returncode == 2 and "exists with another latency" in refused.stderr


def recipe_corpus(recipe):
    return json.loads(Path(recipe).read_text(encoding="utf-8"))["corpus"]


@pytest.mark.parametrize(
    "launcher", [("-m", "search"), pytest.param(("search",), marks=pytest.mark.slow)], ids=["module", "folder"]
)
def test_accelerate_launches_both_ways(tmp_path, recipe, launcher):
    script = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    arguments = ("run", "--recipe", recipe, "--runs", str(tmp_path / "runs"), "--trials", "1")
    done = command(*launcher, *arguments, launcher=script, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "tiny" / "best" / "config.json").is_file()


def test_two_processes_train_one_trial(tmp_path, recipe):
    script = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29631", "-m", "search")
    arguments = ("run", "--recipe", recipe, "--runs", str(tmp_path / "runs"))
    done = command(*arguments, launcher=script, env={"ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    assert summary["best"]["metrics"]["score_percent"] > 0
    assert done.stdout.count("Try next") == 1


def test_a_killed_search_goes_on_with_the_same_command(tmp_path, corpus):
    recipe = write_recipe(tmp_path, corpus, trials=3)
    arguments = ["-m", "search", "run", "--recipe", recipe, "--runs", str(tmp_path / "runs")]
    trials = tmp_path / "runs" / "tiny" / "trials"
    process = subprocess.Popen([sys.executable, *arguments], env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (trials.is_dir() and any((path / "tasks").is_dir() for path in trials.iterdir())):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

    done = command(*arguments[2:])
    assert done.returncode == 0, done.stderr
    whole = command("run", "--recipe", recipe, "--runs", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    scores = [
        sorted(
            (trial["fingerprint"], trial["metrics"]["score_percent"]) for trial in completed(tmp_path / runs / "tiny")
        )
        for runs in ("runs", "whole")
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 3

    # As if it had been killed between the end of the best trial and its copy.
    best = tmp_path / "runs" / "tiny" / "best"
    shutil.rmtree(best)
    assert command(*arguments[2:]).returncode == 0
    assert (best / "model.safetensors").is_file()


def completed(folder):
    import optuna

    study = optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")
    return [
        {name: trial.user_attrs.get(name) for name in ("fingerprint", "metrics", "measured")}
        for trial in study.trials
        if trial.state.name == "COMPLETE" and "duplicate_of" not in trial.user_attrs
    ]


# --- bad input ----------------------------------------------------------------------------------------------------


def refused(capsys, *arguments) -> str:
    """The one line that the command prints for a mistake."""
    assert main(arguments) == 2
    output = capsys.readouterr()
    lines = output.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("search: error: "), output.err
    return lines[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"operations": [{"op": "self_atention"}]}, "unknown operation 'self_atention', known: self_attention"),
        ({"num_heads": [3]}, "not a multiple of the 3 heads"),
    ],
)
def test_bad_spaces(capsys, tmp_path, corpus, change, message):
    recipe = write_recipe(tmp_path, corpus, space={**TINY["space"], **change})
    assert message in refused(capsys, "run", "--recipe", recipe, "--runs", str(tmp_path / "runs"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--recipe", "quickstrat"), "unknown recipe 'quickstrat', known: "),
        (("--sampler", "tpee"), "unknown sampler 'tpee', known: boshnas, boshnas-paper, opnas"),
        (
            ("--sampler", "evolution", "--objectives", "score_percent,parameters"),
            "--objectives: the sampler evolution searches for one objective",
        ),
        (("--patience", "0"), "'0' is not accepted, expected a whole number of at least 1"),
        (("--tasks", "colla"), "colla"),
        (("--trials", "0"), "'0' is not accepted, expected a whole number of at least 1"),
        (("--seed", "-1"), "'-1' is not accepted"),
        (("--seed", "5000000000"), "expected a whole number below 2^31"),
        (("--steps", "-1"), "'-1' is not accepted"),
        (("--learning-rate", "nan"), "'nan' is not accepted"),
        (("--storage", "postgresql://nobody@127.0.0.1:1/none"), "does not answer"),
        (("--corpus", "no_such_file.txt"), "no_such_file.txt"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_bad_options(capsys, tmp_path, recipe, arguments, message):
    base = () if "--recipe" in arguments else ("--recipe", recipe)
    assert message in refused(capsys, "run", *base, "--runs", str(tmp_path / "runs"), *arguments)


def test_empty_corpus(capsys, tmp_path):
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    recipe = write_recipe(tmp_path, tmp_path / "empty.txt")
    assert "empty.txt" in refused(capsys, "run", "--recipe", recipe, "--runs", str(tmp_path / "runs"))


def test_corpus_shorter_than_a_sequence(capsys, tmp_path):
    (tmp_path / "short.txt").write_text("A few words.\n\nAnd a few more.", encoding="utf-8")
    recipe = write_recipe(tmp_path, tmp_path / "short.txt")
    assert "32" in refused(capsys, "run", "--recipe", recipe, "--runs", str(tmp_path / "runs"))


def test_missing_column(capsys, tmp_path):
    (tmp_path / "data.csv").write_text("body\nsome text\n", encoding="utf-8")
    recipe = write_recipe(tmp_path, tmp_path / "data.csv")
    message = refused(capsys, "run", "--recipe", recipe, "--runs", str(tmp_path / "runs"))
    assert "text" in message and "body" in message


def test_folder_that_cannot_be_written(capsys, tmp_path, recipe):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "cannot write to" in refused(capsys, "run", "--recipe", recipe, "--runs", str(tmp_path / "file"))


def test_a_run_is_about_the_content_of_its_data_and_not_where_that_lies(capsys, tmp_path, corpus):
    """The moved same files go on; a changed corpus and changed labels are told apart from them."""
    text = Path(corpus).read_text(encoding="utf-8")
    rows = [f"{line.split('.')[0][:40]},{index % 2}" for index, line in enumerate(text.split("\n\n")[:60])]
    table = "\n".join(["text,label", *(row for row in rows if row.count(",") == 1)])
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "corpus.txt").write_text(text, encoding="utf-8")
        (folder / "own.csv").write_text(table, encoding="utf-8")

    def run(folder, trials):
        recipe = write_recipe(tmp_path, str(folder / "corpus.txt"), tasks=[str(folder / "own.csv")])
        return main(["run", "--recipe", recipe, "--runs", str(tmp_path / "runs"), "--trials", str(trials)])

    assert run(here, 1) == 0
    assert run(there, 2) == 0
    (there / "own.csv").write_text(table.replace(",0", ",1", 3), encoding="utf-8")
    capsys.readouterr()
    assert run(there, 3) == 2
    assert "run 'tiny' was made with other data: task own changed since; bring the data" in capsys.readouterr().err
    (here / "corpus.txt").write_text(f"{text}\n\nAnother document.", encoding="utf-8")
    assert run(here, 3) == 2
    assert "was made with other data: corpus (train)" in capsys.readouterr().err
    assert len(completed(tmp_path / "runs" / "tiny")) == 2


@pytest.mark.parametrize(
    "changes, part",
    [({"space": {**TINY["space"], "hidden_size": [32]}}, "space"), ({"tasks": ["next_sentence"]}, "objective")],
)
def test_a_run_of_another_kind_is_left_untouched(capsys, tmp_path, corpus, changes, part):
    runs = str(tmp_path / "runs")
    assert main(["run", "--recipe", write_recipe(tmp_path, corpus), "--runs", runs, "--trials", "1"]) == 0
    capsys.readouterr()
    folder = tmp_path / "runs" / "tiny"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "study.db" not in path.name}
    message = refused(capsys, "run", "--recipe", write_recipe(tmp_path, corpus, **changes), "--runs", runs)
    assert f"run 'tiny' exists with another {part}" in message
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "study.db" not in path.name}
    assert before == after and len(completed(folder)) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("report", "nowhere"), "is no run folder"),
        (("publish", "nowhere", "--repo-id", "a/b"), "nowhere"),
        (("finetune", "--model", "nowhere", "--tasks", "word_order"), "nowhere"),
        (("finetune", "--model", "nowhere", "--tasks", ""), "--tasks: expected at least one task"),
        (("pretrain", "--architecture", "bert-minni", "--output", "{tmp}/out"), "bert-mini"),
        (("pretrain", "--architecture", "bert-mini", "--output", "{tmp}"), "exists and is no checkpoint"),
        (("pretrain", "--architecture", "bert-mini", "--output", "{tmp}/out", "--report-to", "nonsense"), "nonsense"),
        (("report", "{tmp}", "--storage", "nonsense"), "does not answer"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_other_commands(capsys, tmp_path, arguments, message):
    (tmp_path / "file").touch()
    assert message in refused(capsys, *(argument.format(tmp=tmp_path) for argument in arguments))


def test_list_names_what_there_is(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in ("quickstart", "flexibert", "tpe", "cola", "word_order", "dynamic_convolution", "bert-mini"):
        assert name in text


def test_list_fits_a_terminal_and_a_program(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert main(["list", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    assert set(tables) == {"recipes", "samplers", "pruners", "tasks", "operations", "architectures"}
    for table in tables.values():
        for name, description in table.items():
            assert name in text and description.split()[0] in text
    assert main(["list", "pruners", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["pruners"]


@pytest.mark.parametrize(
    "name", ["plain", "two words", "it's", 'a "quoted" $HOME', "semi;colon & more", "-dash", "äß"]
)
def test_what_to_try_next_can_be_pasted_into_a_shell(tmp_path, name):
    folder = RunFolder(tmp_path / name)
    load, finetune, publish = next_commands(folder, "--tasks 'my task.csv'")
    for line in (load, finetune, publish):
        words = shlex.split(line.split("it  ", 1)[1])
        shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {shlex.join(words)}"], capture_output=True, text=True)
        assert shown.stdout.splitlines() == words
    assert repr(str(folder.best)) in shlex.split(load.split("it  ", 1)[1])[2]
    compile(shlex.split(load.split("it  ", 1)[1])[2], "code", "exec")
    assert shlex.split(finetune.split("it  ", 1)[1])[4:] == ["--model", str(folder.best), "--tasks", "my task.csv"]
    words = shlex.split(publish.split("it  ", 1)[1])
    assert words[4] == str(folder.best)
    validate_repo_id(words[6])
    taught = shlex.split(next_commands(folder, "", fills_masks=False)[0].split("it  ", 1)[1])[2]
    compile(taught, "code", "exec")
    assert repr(str(folder.best)) in taught and "mask" not in taught, "what learnt from states alone fills no masks"


def test_terminals_that_know_few_characters(tmp_path):
    """A run folder of another alphabet, numbers with signs: shown as well as can be, never a traceback."""
    code = "import search.cli as c; c.speak_plainly();print('2 \u00d7 128 \u2192 \u00e4\u00e9 \u65e5 \u2013 \u00b1')"
    for encoding in ("ascii", "ascii:strict", "latin-1"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, env=environment(PYTHONIOENCODING=encoding, LANG="C")
        )
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode("latin-1")
        assert "128 -> " in text and "?" in text
    assert done.stdout.decode("latin-1").startswith("2 × 128")
    done = command("list", "architectures", env={"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C"})
    assert done.returncode == 0 and "bert-mini" in done.stdout
    missing = command("report", str(tmp_path / "über"), env={"PYTHONIOENCODING": "ascii", "LANG": "C"})
    assert missing.returncode == 2 and "Traceback" not in missing.stderr and "is no run folder" in missing.stderr


def test_the_console_script_is_the_command():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    module, function = re.search(r'^flexibert-search = "([\w.]+):(\w+)"$', project, re.MULTILINE).groups()
    code = f"import sys, {module} as m; sys.argv = ['flexibert-search', 'list', 'pruners']; sys.exit(m.{function}())"
    done = command("-c", code, launcher=())
    assert done.returncode == 0 and "wilcoxon" in done.stdout


@pytest.mark.parametrize("name", ["run", "pretrain", "finetune", "report", "publish", "pull", "list"])
def test_every_command_has_help(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert "usage: search" in capsys.readouterr().out


def test_reference_and_wheel_know_every_command():
    """The table of the reference, and what `make wheel-test` tries."""
    (commands,) = (action for action in build_parser()._actions if action.dest == "==SUPPRESS==" and action.choices)
    page = (ROOT / "docs" / "reference" / "command.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(commands.choices)
    tried = runpy.run_path(str(ROOT / "tests" / "installed" / "check.py"))["commands"]()
    assert {arguments[0] for arguments, *_ in tried} == set(commands.choices)


def test_a_shell_completes_the_command():
    """As the reference says; bash is asked what it would offer."""
    shtab = pytest.importorskip("shtab")
    script = shtab.complete(build_parser(), shell="bash", root_prefix="it")
    ask = """
    offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_it; echo "${COMPREPLY[@]}"; }
    offer search pu; offer search list ""; offer search pull --ver
    """
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True)
    first, second, third = done.stdout.splitlines()
    assert first == "publish pull" and "samplers" in second.split() and third == "--verify"


def test_pretraining_a_named_architecture(tmp_path, corpus):
    layers = [{"hidden_size": 16, "operations": [{"op": "self_attention", "num_heads": 2}], "feed_forward": [16]}]
    (tmp_path / "layers.json").write_text(json.dumps(layers), encoding="utf-8")
    done = command(
        "pretrain", "--architecture", str(tmp_path / "layers.json"), "--corpus", str(corpus), "--steps", "4",
        "--batch-size", "4", "--sequence-length", "32", "--output", str(tmp_path / "model"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "model" / "config.json").read_text())["layers"] == layers
    assert "validation loss" in done.stdout
