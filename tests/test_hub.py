"""A saved checkpoint carries its code: it loads, with every head, where this package is not installed."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import EVERY_OPERATION

import flexibert
from flexibert import FlexiBertConfig
from flexibert.configuration_flexibert import AUTO_MAP


HEADS = {auto: name.split(".")[1] for auto, name in AUTO_MAP.items() if auto != "AutoConfig"}
CODE = {
    f"{name}.py" for name in ("attention_graph", "spec", "operations", "configuration_flexibert", "modeling_flexibert")
}
INPUT_IDS = torch.arange(1, 23).view(2, 11)

REVISION = "0123456789" * 4
# Runs elsewhere, without this package and without a network: loads every head, computes, saves again; then opens one
# checkpoint with all heads.
SCRIPT = """
import json, sys
import torch, transformers

sys.modules["flexibert"] = None  # importing the package raises
heads, sources = json.loads(sys.argv[1]), json.loads(sys.argv[2])
input_ids = torch.arange(1, 23).view(2, 11)
for source, out in sources:
    outputs = {}
    for auto, name in heads.items():
        auto_class = getattr(transformers, auto)
        model = auto_class.from_pretrained(source + auto, trust_remote_code=True).eval()
        assert type(model).__name__ == name, type(model)
        outputs[auto] = model(input_ids[:, None] if "MultipleChoice" in auto else input_ids)[0].detach()
        model.save_pretrained(f"{out}/{auto}")
        opened, info = auto_class.from_pretrained(
            source + "AutoModelForMaskedLM", trust_remote_code=True, output_loading_info=True
        )
        assert type(opened).__name__ == name
        assert not [key for key in info["missing_keys"] if "layers." in key or "embeddings." in key]
    config = transformers.AutoConfig.from_pretrained(source + "AutoModel", trust_remote_code=True)
    assert config.num_hidden_layers == 2 and config.fingerprint
    torch.save(outputs, out + "/outputs.pt")
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder for every head, and what each computes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = FlexiBertConfig(layers=EVERY_OPERATION, vocab_size=30, max_position_embeddings=16)
    outputs = {}
    for auto, name in HEADS.items():
        head = getattr(flexibert, name)
        torch.manual_seed(0)
        head(config).save_pretrained(folder / auto)
        model = head.from_pretrained(folder / auto).eval()
        outputs[auto] = model(INPUT_IDS[:, None] if "MultipleChoice" in auto else INPUT_IDS)[0].detach()
    return folder, outputs


@pytest.fixture(scope="module")
def elsewhere(checkpoints, tmp_path_factory):
    """Folder of what the other process computed and saved, from local folders and from the Hub's cache."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for auto in HEADS:  # the layout in which huggingface_hub keeps what it downloaded
        repository = folder / "home" / "hub" / f"models--someone--{auto}"
        shutil.copytree(checkpoints[0] / auto, repository / "snapshots" / REVISION)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(REVISION, encoding="utf-8")
    outs = {"folder": folder / "from_folder", "hub": folder / "from_hub"}
    for out in outs.values():
        out.mkdir()
    sources = [(f"{checkpoints[0]}{os.sep}", str(outs["folder"])), ("someone/", str(outs["hub"]))]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", SCRIPT, json.dumps(HEADS), json.dumps(sources)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert result.returncode == 0, result.stderr
    return outs


def test_what_a_checkpoint_holds(checkpoints):
    folder, _ = checkpoints
    for auto in HEADS:
        assert {path.name for path in (folder / auto).iterdir()} == CODE | {"config.json", "model.safetensors"}
        config = json.loads((folder / auto / "config.json").read_text(encoding="utf-8"))
        assert config["auto_map"] == AUTO_MAP
        assert config["architectures"] == [HEADS[auto]]


def test_loads_without_the_package(checkpoints, elsewhere):
    """Equal to the last bit, and saved again with the same files, code and configuration."""
    folder, expected = checkpoints
    for source in elsewhere.values():
        outputs = torch.load(source / "outputs.pt")
        for auto in HEADS:
            assert torch.equal(outputs[auto], expected[auto]), (source.name, auto)
            assert {path.name for path in (source / auto).iterdir()} == {
                path.name for path in (folder / auto).iterdir()
            }
            for path in (folder / auto).iterdir():
                assert (source / auto / path.name).read_bytes() == path.read_bytes(), (source.name, auto, path.name)
