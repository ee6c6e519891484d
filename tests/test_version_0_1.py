"""Run folders and checkpoints of version 0.1 still open: reported, continued, loaded with their own code or ours."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from flexibert import FlexiBertConfig
from search.artifacts.golden import golden_tolerance, verify
from search.cli import main


FIXTURE = Path(__file__).parent / "fixtures" / "run_0.1"
BEST = "0000-9a5e5a9a0b7b"


@pytest.fixture
def run(tmp_path):
    """A run of four trials, of which one still has its checkpoint."""
    folder = tmp_path / "runs" / "old"
    shutil.copytree(FIXTURE / "trials", folder / "trials")
    shutil.copytree(FIXTURE / "trials" / BEST, folder / "best")
    with closing(sqlite3.connect(folder / "study.db")) as database:
        database.executescript((FIXTURE / "study.sql").read_text(encoding="utf-8"))
    return folder


def trials(run):
    return optuna.load_study(study_name=None, storage=f"sqlite:///{run / 'study.db'}").get_trials()


def test_it_is_reported(run, capsys):
    assert main(["report", str(run), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["trials"]["completed"] == 4
    assert summary["best"]["fingerprint"] == BEST.partition("-")[2] and summary["best"]["score_percent"] == 50.0
    assert "9a5e5a9a0b7b" in (run / "report" / "report.md").read_text(encoding="utf-8")


def test_it_is_continued(run):
    before = trials(run)
    command = ["run", "--recipe", str(FIXTURE / "recipe.json"), "--runs", str(run.parent), "--name", run.name]
    assert main([*command, "--trials", "5"]) == 0
    after = trials(run)
    assert [trial.values for trial in after[:4]] == [trial.values for trial in before]
    assert len(after) == 5 and after[4].state.is_finished() and after[4].user_attrs["layers"]
    assert (run / "trials" / f"0004-{after[4].user_attrs['fingerprint']}" / "model.safetensors").is_file()


def test_its_checkpoint_computes_what_it_did(run):
    assert verify(run / "best") <= golden_tolerance(FlexiBertConfig.from_pretrained(run / "best"))


def test_its_checkpoint_opens_with_its_own_code(run, tmp_path):
    """In a process that cannot import this package."""
    code = f"""
import sys
sys.path = [path for path in sys.path if path not in ("", {str(Path(__file__).parents[1])!r})]
sys.modules["flexibert"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained({str(run / "best")!r}, trust_remote_code=True).eval()
golden = load_file({str(run / "best" / "golden.safetensors")!r})
with torch.no_grad():
    logits = model(golden["input_ids"], attention_mask=golden["attention_mask"]).logits
print(type(model).__module__.split(".")[0], logits.shape[0])
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["transformers_modules", "2"]
