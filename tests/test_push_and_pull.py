"""To the Hub and back by huggingface_hub itself; the Hub is a small one on the loopback that refuses what is wrong."""

import json
import os
import re
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
import transformers
from hub_server import TOKEN, problem_of, running
from huggingface_hub import HfApi, constants
from safetensors.torch import load_file, save_file
from test_publish import FACTS, build, make_tokenizer

from search.artifacts.checkpoint import save_checkpoint
from search.artifacts.hub import pull, push
from search.artifacts.integrity import inspect
from search.artifacts.model_card import TEMPLATE
from search.cli import main
from search.errors import UserError


NAME = "someone/tiny"


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The server with nothing in it, and a user who is logged in and has an empty cache."""
    server.repositories.clear(), server.objects.clear(), server.requests.clear(), server.failing.clear()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # it keeps the address that it had at its first use
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    huggingface_hub.utils.disable_progress_bars()
    yield server
    huggingface_hub.utils.enable_progress_bars()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Shared by tests that only read."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(build(), make_tokenizer(), folder, FACTS)
    return folder


@pytest.fixture
def own(checkpoint, tmp_path):
    """A checkpoint that a test may change."""
    return shutil.copytree(checkpoint, tmp_path / "own")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- up -----------------------------------------------------------------------------------------------------------


def test_dry_run_says_what_would_be_and_asks_nobody(own, hub):
    (own / "tasks" / "cola").mkdir(parents=True)
    (own / "tasks" / "cola" / "model.safetensors").touch()
    (own / ".env").touch()
    text = push(own, NAME, private=True, revision="draft")
    assert text.startswith("Would upload 13 files, ")
    assert f"to the private {hub.url}/someone/tiny, revision draft:" in text
    assert "  model.safetensors " in text and "  .eval_results/nyu-mll--glue.yaml " in text
    assert "tasks" not in text and ".env" not in text and text.endswith("Nothing was uploaded; --push does it.")
    assert "golden    outputs differ by 0 from those at saving, 0.0001 may be" in text
    assert hub.requests == []


def test_push(own, hub):
    sent = contents(own)
    (own / "tasks").mkdir()
    (own / "tasks" / "config.json").touch()
    text = push(own, NAME, private=True, dry_run=False)
    assert hub.repositories[NAME].private
    there = hub.files(NAME)
    del there[".gitattributes"]
    assert there == sent
    assert text.startswith("Uploaded 13 files") and f"{hub.url}/{NAME}/commit/" in text.splitlines()[-1]


def test_an_upload_that_was_cut_off_is_done_again(own, hub):
    """What was sent is not sent twice, and until all is there nothing is."""
    hub.failing["/commit/"] = 1
    with pytest.raises(UserError, match=rf"^{hub.url}: {NAME}: .*500"):
        push(own, NAME, private=False, dry_run=False)
    assert set(hub.files(NAME)) == {".gitattributes"}
    assert hub.count("PUT", "/objects/") == 2  # weights and golden outputs
    push(own, NAME, private=False, dry_run=False)
    assert hub.count("PUT", "/objects/") == 2 and "model.safetensors" in hub.files(NAME)


def test_the_same_model_may_be_pushed_again(own, hub):
    push(own, NAME, private=False, dry_run=False)
    (own / "README.md").write_text((own / "README.md").read_text(encoding="utf-8") + "\nMore.\n", encoding="utf-8")
    push(own, NAME, private=False, dry_run=False)
    assert hub.files(NAME)["README.md"].endswith(b"More.\n")
    assert len(hub.repositories[NAME].commits) == 3


@pytest.mark.parametrize("kind", ["readme alone", "another model", "other weights"])
def test_something_else_is_not_overwritten_silently(own, hub, kind):
    push(own, NAME, private=False, dry_run=False)
    before = {
        "readme alone": {".gitattributes": b"", "README.md": b"# Mine"},
        "another model": {".gitattributes": b"", "model.safetensors": b"theirs", "vocab.txt": b"a"},
        "other weights": {**hub.files(NAME), "model.safetensors": b"theirs"},
    }[kind]
    hub.repositories[NAME].commit("main", before)
    with pytest.raises(UserError, match="holds something else .*; with --replace this checkpoint takes its place$"):
        push(own, NAME, private=False, dry_run=False)
    assert hub.files(NAME) == before
    text = push(own, NAME, private=False, dry_run=False, replace=True)
    assert set(hub.files(NAME)) == {".gitattributes", *contents(own)}
    assert ("Removed what was there before: vocab.txt" in text) == (kind == "another model")


def test_a_branch_is_made_and_main_stays(own, hub):
    push(own, NAME, private=False, dry_run=False, revision="v2")
    assert set(hub.files(NAME)) == {".gitattributes"} and "config.json" in hub.files(NAME, "v2")


def test_a_public_repository_is_not_taken_for_a_private_one(own, hub):
    HfApi().create_repo(NAME, private=False)
    with pytest.raises(UserError, match="is there already and is public; make it private first"):
        push(own, NAME, private=True, dry_run=False)
    assert set(hub.files(NAME)) == {".gitattributes"}


def test_two_at_once_do_not_overwrite_each_other(own, hub, monkeypatch):
    look = HfApi.list_repo_tree

    def look_late(*arguments, **options):
        entries = list(look(*arguments, **options))
        hub.repositories[NAME].commit("main", {"thesis.txt": b"precious"})
        return entries

    monkeypatch.setattr(HfApi, "list_repo_tree", look_late)
    with pytest.raises(UserError, match="was changed by somebody else meanwhile"):
        push(own, NAME, private=False, dry_run=False)
    assert hub.files(NAME) == {"thesis.txt": b"precious"}


def test_without_a_token_it_says_what_to_do(own, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=f"^{hub.url} wants to know who asks for {NAME}: run `hf auth login`, or set"):
        push(own, NAME, private=True, dry_run=False)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="wants to know who asks") as error:
        push(own, NAME, private=True, dry_run=False)
    assert "\n" not in str(error.value) and "hf_wrong" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(UserError, match="does not let this token do that to nobody/tiny; see `hf auth whoami`"):
        push(own, "nobody/tiny", private=True, dry_run=False)


@pytest.mark.parametrize("repo_id", ["", "a/b/c", "-x", "me/ti ny", "me/tiny.git"])
def test_bad_repo_id(checkpoint, hub, repo_id):
    for call in (lambda: push(checkpoint, repo_id, private=True), lambda: pull(repo_id)):
        with pytest.raises(UserError, match=f"repo id {re.escape(repr(repo_id))}"):
            call()


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def change_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["prediction_head.dense.bias"] += 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def lose_weights(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["prediction_head.dense.bias"], weights["prediction_head.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["prediction_head.dense.bias"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def forget_length(folder):
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"model_max_length": 40', '"model_max_length": 400'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "config.json missing"),
        (remove("model.safetensors"), "model.safetensors missing"),
        (remove("operations.py"), "operations.py missing"),
        (remove("README.md"), "README.md missing"),
        (write("config.json", "{"), "config.json is damaged: "),
        (write("config.json", "[1]"), "config.json is not the configuration of a model"),
        (write("config.json", '{"model_type": "bert"}'), "model_type 'bert' is not accepted, expected 'flexibert'"),
        (write("README.md", "---\nlicense: [\n---\n"), "own is not whole: card: "),
        (write("README.md", "# A model"), "own is not whole: card: README.md has no license"),
        (write(".eval_results/x.yaml", "- value: 1"), "own is not whole: card: .eval_results/x.yaml: KeyError"),
        (write(".eval_results/x.yaml", "a: 1"), "own is not whole: card: .eval_results/x.yaml is no list"),
        (write("operations.py", "def ("), "own is not whole: code: "),
        (write("model.safetensors", "half"), "model.safetensors is damaged: "),
        (change_weights, "own is not whole: golden: outputs differ by "),
        (lose_weights, "weights missing: prediction_head.dense.bias and 1 more"),
        (spoil_weights, "weights not finite: prediction_head.dense.bias"),
        (forget_length, "own is not whole: tokenizer: cuts to 400 tokens, the model takes 40"),
        (write("golden.safetensors", ""), "golden.safetensors is damaged: "),
    ],
)
def test_only_whole_checkpoints_are_uploaded(own, hub, damage, message):
    damage(own)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        push(own, NAME, private=True, dry_run=False)
    assert "\n" not in str(error.value) and hub.requests == []


def test_missing_folder(tmp_path, hub):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        push(tmp_path / "nowhere", NAME, private=True)


@pytest.mark.parametrize(
    "path, content",
    [
        ("README.md", b"---\nlicense: 7\n---\n"),
        ("README.md", b"---\nlicense: mit\nmodel-index:\n- name: x\n  results: 1\n---\n"),
        (".eval_results/a.yaml", b"- dataset: {id: nyu-mll/glue}\n  value: 1"),
        (".eval_results/a.yaml", b"- dataset: {id: a b, task_id: cola}\n  value: 1"),
        (".eval_results/a.yaml", b"- dataset: {id: a/b, task_id: cola}\n  value: high"),
        (".eval_results/a.yaml", 2 * b"- dataset: {id: a/b, task_id: c}\n  value: 1\n"),
    ],
)
def test_the_server_refuses_what_the_hub_would(path, content):
    assert problem_of(path, content)


# --- down ---------------------------------------------------------------------------------------------------------


def test_pull_to_a_folder(own, hub, tmp_path, capsys):
    push(own, NAME, private=False, dry_run=False, revision="v2")
    assert main(["pull", NAME, "--revision", "v2", "--output", str(tmp_path / "got"), "--verify", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] and [check["question"] for check in result["checks"]] == [
        "files", "card", "code", "weights", "tokenizer", "golden",
    ]  # fmt: skip
    got = contents(tmp_path / "got")
    got.pop(".gitattributes")
    assert got == contents(own)
    assert main(["pull", NAME, "--output", str(tmp_path / "got")]) == 2
    assert "got exists; name a new folder or an empty one" in capsys.readouterr().err


def test_pull_tells_damage(own, hub, capsys):
    push(own, NAME, private=False, dry_run=False)
    change_weights(own)
    hub.repositories[NAME].commit(
        "main", {**hub.files(NAME), "model.safetensors": (own / "model.safetensors").read_bytes()}
    )
    assert main(["pull", NAME, "--verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(constants.HF_HUB_CACHE)
    assert [line for line in lines if "FAILED" in line] == [lines[-1]] and "golden" in lines[-1]


@pytest.mark.slow
def test_its_own_code_runs_only_when_asked(own, tmp_path):
    """In a process without this package; a file that writes a mark tells whether it ran."""
    path, mark = own / "operations.py", tmp_path / "mark"
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}\n\nopen({str(mark)!r}, 'w').close()\n", encoding="utf-8")
    code = next(finding for finding in inspect(own) if finding.question == "code")
    assert code.ok and code.text.startswith("operations.py of another version than flexibert")
    assert not mark.exists()
    *_, alone = inspect(own, run_its_code=True)
    assert alone.ok and alone.text.startswith("opened by itself, outputs differ by 0") and mark.exists()
    path.write_text("raise RuntimeError('old')", encoding="utf-8")
    *_, alone = inspect(own, run_its_code=True)
    assert alone.ok is False and "RuntimeError: old" in alone.text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["someone/else"], r"has no someone/else|who asks for someone/else"),
        ([NAME, "--revision", "v9"], "/someone/tiny has no revision v9"),
    ],
)
def test_pull_says_what_is_not_there(own, hub, capsys, arguments, message):
    push(own, NAME, private=False, dry_run=False)
    assert main(["pull", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


def test_pull_without_a_network(hub, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["pull", NAME]) == 2
    assert "cannot be reached, and someone/tiny is not in the cache" in capsys.readouterr().err


# --- as users of transformers do it -------------------------------------------------------------------------------


def test_push_to_hub_gives_the_same_files(own, hub):
    """Weights, configuration, code and tokenizer; card and golden outputs, which it cannot know, stay as they are."""
    model, tokenizer = build(), make_tokenizer()
    model.push_to_hub(NAME)
    tokenizer.push_to_hub(NAME)
    pushed, saved = hub.files(NAME), contents(own)
    beside = {"golden.safetensors", "architecture.svg", ".eval_results/nyu-mll--glue.yaml"}
    assert set(saved) - set(pushed) == beside
    assert {name for name in set(pushed) & set(saved) if pushed[name] != saved[name]} == {"README.md"}
    push(own, NAME, private=False, dry_run=False)
    assert hub.files(NAME)["README.md"] == saved["README.md"]
    model.push_to_hub(NAME)
    kept = hub.files(NAME)
    assert kept["golden.safetensors"] == saved["golden.safetensors"]
    assert b"Layer 3, 4 heads" in kept["README.md"]


USE = """
import sys
sys.modules["flexibert"] = None  # importing the package raises
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

name = "someone/tiny"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModel.from_pretrained(name, trust_remote_code=True)
assert type(model).__name__ == "FlexiBertModel" and "transformers_modules" in type(model).__module__
print(pipeline("fill-mask", name, trust_remote_code=True)("the capital of [MASK] is a film .")[0]["token_str"])

model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=3, trust_remote_code=True)
batch = tokenizer(["the capital", "a film is one ."], padding=True, return_tensors="pt")
optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
for _ in range(2):
    loss = model(**batch, labels=torch.tensor([0, 2])).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert losses[1] < losses[0], losses
"""


def test_a_clean_process_uses_it(checkpoint, hub, tmp_path):
    """Downloads by itself, fills a mask, takes a step of training; then each snippet of the card, in its folder."""
    push(checkpoint, NAME, private=False, dry_run=False)
    snippets = re.findall(r"```python\n(.*?)```", (checkpoint / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    elsewhere = 2  # under a teacher, which needs sentence-transformers, and without weights
    assert len(snippets) == 3 == TEMPLATE.read_text(encoding="utf-8").count("```python") - elsewhere
    code = "\n".join([USE, f"import os\nos.chdir({str(checkpoint)!r})", *snippets])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "torch.Size([1, " in result.stdout and "'token_str'" in result.stdout
