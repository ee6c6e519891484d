"""Is a checkpoint whole? What can be asked of the files in a folder, one line a question."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.utils import validate_repo_id
from transformers import AutoTokenizer, PreTrainedModel

import flexibert

from ..errors import UserError, first_line
from .checkpoint import SOURCES, check_checkpoint
from .golden import GOLDEN, GOLDEN_TOKEN, load_whole, stated_tolerance, verify


@dataclass(frozen=True)
class Finding:
    """The answer to one question: whether all is as it should be (None: that cannot be told), and what there is to
    say."""

    question: str
    ok: bool | None
    text: str

    def __str__(self) -> str:
        return f"{ {True: 'ok', False: 'FAILED', None: '-'}[self.ok]:8}{self.question:10}{self.text}"


class CannotBeTold(Exception):
    """A question has no answer for this checkpoint."""


def inspect(folder: Path, run_its_code: bool = False) -> list[Finding]:
    """Asks all there is to ask. Without `run_its_code` nothing that the folder brings is run.

    Args:
        run_its_code: Also opens the checkpoint with its own Python files, in a process without this package, and
            compares the golden outputs there; the files can do there what they want.
    """
    checkpoint = _Checkpoint(Path(folder))
    questions: dict[str, Callable[[], str]] = {
        "files": checkpoint.files,
        "card": checkpoint.card,
        "code": checkpoint.code,
        "weights": checkpoint.weights,
        "tokenizer": checkpoint.tokenizer,
        "golden": checkpoint.golden,
    }
    if run_its_code:
        questions["its code"] = checkpoint.its_code
    findings = []
    for question, answer in questions.items():
        try:
            findings.append(Finding(question, True, answer()))
        except CannotBeTold as reason:
            findings.append(Finding(question, None, str(reason)))
        except Exception as error:  # whatever a damaged file brings about, the other questions are still asked
            findings.append(Finding(question, False, first_line(error)))
        if question == "files" and not findings[-1].ok:
            break  # what is no checkpoint needs no more questions
    return findings


class _Checkpoint:
    """What is asked of one folder; each answer is a line, or an exception that says what is wrong."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def model(self) -> PreTrainedModel:
        return load_whole(self.folder)

    def files(self) -> str:
        names = check_checkpoint(self.folder)
        return f"{len(names)} files, {sum((self.folder / name).stat().st_size for name in names) / 1e6:.1f} MB"

    def card(self) -> str:
        return check_card(self.folder)

    def code(self) -> str:
        own = Path(flexibert.__file__).parent
        others = []
        for name in SOURCES:
            text = (self.folder / name).read_text(encoding="utf-8")
            ast.parse(text, name)
            if text != (own / name).read_text(encoding="utf-8"):
                others.append(name)
        if others:
            return f"{', '.join(others)} of another version than flexibert {flexibert.__version__}, which opens it"
        return f"{len(SOURCES)} files, those of flexibert {flexibert.__version__}"

    def weights(self) -> str:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"{self.model.num_parameters():,} parameters in {dtype}, {type(self.model).__name__}"

    def tokenizer(self) -> str:
        tokenizer, config = AutoTokenizer.from_pretrained(self.folder), self.model.config
        largest = max(tokenizer.get_vocab().values())
        if largest >= config.vocab_size:
            raise UserError(f"token {largest} has no embedding, the model knows {config.vocab_size:,}")
        if tokenizer.model_max_length > config.max_position_embeddings:
            longest = config.max_position_embeddings
            raise UserError(f"cuts to {tokenizer.model_max_length} tokens, the model takes {longest}")
        return f"{len(tokenizer):,} tokens, cuts to {tokenizer.model_max_length}"

    def golden(self) -> str:
        return self.compared(lambda: verify(self.folder, self.model), "outputs differ")

    def its_code(self) -> str:
        return self.compared(self.alone, "opened by itself, outputs differ")

    def compared(self, difference_of: Callable[[], float], text: str) -> str:
        if not (self.folder / GOLDEN).is_file():
            raise CannotBeTold(f"there is no {GOLDEN} to compare with")
        difference, tolerance = difference_of(), stated_tolerance(self.folder)
        text = f"{text} by {difference:.2g} from those at saving, {tolerance:g} may be"
        if not difference <= tolerance:  # NaN is neither more nor less
            raise UserError(text)
        return text

    def alone(self) -> float:
        """The difference in a process that opens the checkpoint with its own files."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-I", "-c", OPEN_ALONE, str(self.folder.resolve()), str(GOLDEN_TOKEN)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise UserError((result.stderr.strip().splitlines() or ["it ended without a word"])[-1])
        return float(result.stdout.split()[-1])


OPEN_ALONE = """
import json, sys
import torch, transformers
from safetensors.torch import load_file

sys.modules["flexibert"] = None  # importing it raises
folder = sys.argv[1]
golden = load_file(folder + "/golden.safetensors")
config = json.load(open(folder + "/config.json", encoding="utf-8"))
name = config["architectures"][0]
auto = next(auto for auto, place in config["auto_map"].items() if place.split(".")[-1] == name)
model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
inputs = {name: tensor for name, tensor in golden.items() if "logits" not in name}
with torch.no_grad():
    outputs = model(**inputs)
difference = 0.0
for name, expected in golden.items():
    if "logits" in name:
        found = outputs[name]
        if found.dim() > expected.dim():  # one token of a masked language model
            found = found[:, min(int(sys.argv[2]), found.shape[1] // 2)]
        difference = max(difference, (found.double() - expected.double()).abs().max().item())
print(difference)
"""


def check_card(folder: Path) -> str:
    """What the card and the files of results beside it hold; raises where huggingface_hub cannot read them."""
    card = ModelCard.load(folder / "README.md")
    for name in ("license", "library_name", "pipeline_tag"):
        if not getattr(card.data, name):
            raise UserError(f"README.md has no {name}")
    results = [result for file in sorted(folder.glob(".eval_results/*.yaml")) for result in read_results(file)]
    said = len(card.data.eval_results or ())
    return f"{card.data.pipeline_tag}, {said} results, {len(results)} of them on whole data sets of the Hub"


def read_results(file: Path) -> list:
    """Entries of one file in .eval_results/, see https://huggingface.co/docs/hub/eval-results."""
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(data, list):
        raise UserError(f".eval_results/{file.name} is no list of results")
    try:
        entries = parse_eval_result_entries(data)
        for entry in entries:
            validate_repo_id(entry.dataset_id)
            float(entry.value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f".eval_results/{file.name}: {type(error).__name__}: {error}") from error
    return entries
