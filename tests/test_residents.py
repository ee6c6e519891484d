"""The checkpoints in model_cards/: they open in a process without this package, and are undamaged."""

import subprocess
import sys
from pathlib import Path

import pytest

from search.artifacts.golden import verify


MODEL_CARDS = Path(__file__).resolve().parent.parent / "model_cards"
RESIDENTS = sorted(path.parent for path in MODEL_CARDS.glob("*/model.safetensors"))
SCRIPT = """
import sys
from transformers import AutoModel, AutoTokenizer, pipeline
assert "flexibert" not in sys.modules
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
tokens = AutoTokenizer.from_pretrained(sys.argv[1])("A river runs through it.", return_tensors="pt")
assert model(**tokens).last_hidden_state.isfinite().all()
tokens = AutoTokenizer.from_pretrained(sys.argv[1])("river " * 1000, truncation=True, return_tensors="pt")
assert model(**tokens).last_hidden_state.shape[1] == model.config.max_position_embeddings
"""
FILL_MASK = """
fill = pipeline("fill-mask", sys.argv[1], trust_remote_code=True)
assert "states" in [guess["token_str"] for guess in fill("He was born in the united [MASK].")]
"""
COMPARE = """
import torch
texts = ["A man is playing a guitar.", "Somebody plays the guitar.", "The stock market fell on Monday."]
batch = AutoTokenizer.from_pretrained(sys.argv[1])(texts, padding=True, return_tensors="pt")
mask = batch["attention_mask"][..., None]
vectors = (model(**batch).last_hidden_state.float() * mask).sum(1) / mask.sum(1)
same, other = torch.nn.functional.cosine_similarity(vectors[:1], vectors[1:])
assert same > other + 0.3, (same, other)
"""


@pytest.mark.parametrize("folder", RESIDENTS, ids=lambda folder: folder.name)
def test_a_resident_opens_without_this_package(folder, tmp_path):
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": ""}
    use = COMPARE if (folder / "modules.json").is_file() else FILL_MASK  # it has learnt something
    command = [sys.executable, "-I", "-c", SCRIPT + use, str(folder)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("folder", RESIDENTS, ids=lambda folder: folder.name)
def test_a_resident_is_small_and_undamaged(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) < 30e6
    assert verify(folder) < 0.1  # bfloat16 logits; other processors round otherwise
