"""What the README says can be typed works: its Python runs, its commands parse, its files and recipes exist."""

import re
import shlex
from pathlib import Path

import pytest

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search.cli import build_parser
from search.data.corpus import load_corpus
from search.data.tokenizer import load_tokenizer


ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"(?:accelerate launch[^`\n]*?|python|torchrun[^`\n]*?) -m search\b([^`\n]*)", README)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint with a tokenizer that knows the README's sentence."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = load_tokenizer(None, load_corpus(), folder / "cache", 1000)
    layers = [{"hidden_size": 16, "operations": [{"op": "self_attention", "num_heads": 2}], "feed_forward": [16]}]
    FlexiBertForMaskedLM(FlexiBertConfig(vocab_size=len(tokenizer), layers=layers)).save_pretrained(folder / "best")
    tokenizer.save_pretrained(folder / "best")
    return folder / "best"


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_runs(code, checkpoint):
    exec(code.replace("runs/quickstart/best", str(checkpoint)), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    arguments = shlex.split(re.sub(r"[\[\]…]", "", command.split(" (")[0]), comments=True)
    assert callable(build_parser().parse_args(arguments).run)


def test_there_are_commands_and_code():
    assert len(COMMANDS) >= 8 and sum(language == "python" for language, _ in BLOCKS) >= 2


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`((?:flexibert|search|benchmarks|examples)/[\w/.]+\.\w+)`", README)))
)
def test_named_files_exist(name):
    assert (ROOT / name).is_file()


def test_the_error_that_it_quotes_is_the_real_one():
    layers = [{"hidden_size": 8, "operations": [{"op": "self_attention", "num_heads": 1}] * 2, "feed_forward": [8]}]
    layers[0]["operations"][1] = {"op": "dynamic_convolution", "num_heads": 1, "kernel_size": 4}
    with pytest.raises(ValueError) as error:
        FlexiBertConfig(layers=layers)
    assert str(error.value) in README
