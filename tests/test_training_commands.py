"""What `pretrain` and `finetune` refuse, each with one line and status 2, and what they leave as it was."""

import json
import os
import random
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from test_finetuning import question_task, questions
from test_pair_encoding import pair_task
from test_task_types import token_task
from transformers import AutoTokenizer, BertTokenizer

from search.artifacts.finetuned_card import write_finetuned_card
from search.artifacts.integrity import inspect
from search.cli import main
from search.evaluation.cards import finetuned_card
from search.training.finetuning import FinetuningBudget, FinetuningResult
from search.training.task_types import TASK_TYPES


ROOT = Path(__file__).resolve().parent.parent
LAYERS = [{"hidden_size": 16, "operations": [{"op": "self_attention", "num_heads": 2}], "feed_forward": [16]}]
BUDGET = {"steps": 12, "batch_size": 4, "sequence_length": 32, "checkpoint_steps": 2}
RECIPES = {
    "tiny": {"vocab_size": 128},
    "short": {"vocab_size": 128, "model": {"max_position_embeddings": 16}},
    "few": {"vocab_size": 128, "model": {"vocab_size": 60}},
}


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = [f"word{index}" for index in range(30)]
    return [" ".join(rng.choices(words, k=12)).capitalize() + "." for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, recipes, labelled data good and bad, and a pretrained encoder; the commands run in it."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "corpus.txt").write_text("\n\n".join(sentences(200, 0)), encoding="utf-8")
    (folder / "layers.json").write_text(json.dumps(LAYERS), encoding="utf-8")
    for name, fields in RECIPES.items():
        recipe = {"description": name, "pretraining": BUDGET, **fields}
        (folder / f"{name}.json").write_text(json.dumps(recipe), encoding="utf-8")
    data = {"good": (0, 1), "out_of_range": (0, 7), "no_validation": None}
    for name, labels in data.items():
        (folder / name).mkdir()
        splits = {"train": (0, 1), "validation": labels} if labels else {"train": (0, 1)}
        for split, classes in splits.items():
            rows = [f"{text},{classes[row % 2]}" for row, text in enumerate(sentences(12, 1))]
            (folder / name / f"{split}.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    assert main([*PRETRAIN, "--output", "model"]) == 0
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*specials, *(f"other{index}" for index in range(300))]
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained("other_tokenizer")
    words = list(BertTokenizer.from_pretrained("model").get_vocab())
    swapped = [*specials, *reversed([word for word in words if word not in specials])]
    BertTokenizer(vocab={word: index for index, word in enumerate(swapped)}).save_pretrained("same_size")
    yield folder
    os.chdir(before)


PRETRAIN = ("pretrain", "--architecture", "layers.json", "--corpus", "corpus.txt", "--recipe", "tiny.json")
FINETUNE = ("finetune", "--model", "model", "--corpus", "corpus.txt", "--max-length", "32", "--epochs", "1")


def refused(capsys, *arguments) -> str:
    """The one line that the command prints for a mistake."""
    capsys.readouterr()
    assert main(arguments) == 2
    output = capsys.readouterr().err
    assert len(output.strip().splitlines()) == 1 and output.startswith("search: error: "), output
    return output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "out_of_range"), "out_of_range, validation, row 1: label 7, accepted are 0, 1"),
        (("--tasks", "no_validation"), "no_validation: no split 'validation', there is train"),
        (("--tasks", "good:txt:label"), "good, train: no column 'txt', there are text, label"),
        (("--tasks", "good:text:class"), "good, train: no column 'class', there are text, label"),
        (
            ("--tasks", "good", "--tokenizer", "other_tokenizer"),
            "the tokenizer has 305 tokens, but the model ",
        ),
        (("--tasks", "good", "--output", "."), "good exists and is no checkpoint; name a new folder or an empty one"),
        (("--tasks", "good", "--tokenizer", "same_size"), "the tokenizer is another one than that of model: "),
        (("--tasks", "good", "--report-to", "nonsense"), "--report-to: nonsense is not there, "),
        (("--tasks", "good", "--pair-encoding", "separate"), "pair encoding: no task is a classification or "),
        (("--tasks", "good", "--teacher-model", "model"), "model is not fine-tuned: it has no weights for "),
        (("--tasks", "good", "--label-weight", "1.5"), "'1.5' is not accepted, expected a number from 0 to 1"),
        (("--tasks", "good", "--max-length", "33"), "max_length 33 is beyond the 32 positions of the model"),
        (("--tasks", "good", "--learning-rate", "1e36", "--batch-size", "2"), "a lower learning rate may help"),
    ],
)
def test_finetune_refuses(capsys, folder, arguments, message):
    assert message in refused(capsys, *FINETUNE, *arguments)


def test_a_fine_tuned_checkpoint_has_a_card_of_its_own_and_can_be_published(capsys, folder):
    """The card's snippet runs in a process without this package."""
    assert main([*FINETUNE, "--tasks", "good", "--seeds", "0,1", "--output", "carded"]) == 0
    checkpoint = Path("carded", "good")
    card = ModelCard.load(checkpoint / "README.md")
    assert (card.data.pipeline_tag, card.data.model_name) == ("text-classification", "model, fine-tuned on good")
    scores = json.loads(Path("carded/scores.json").read_text(encoding="utf-8"))["good"]
    wanted = {name: sum(100 * run["metrics"][name] for run in scores) / 2 for name in scores[0]["metrics"]}
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == pytest.approx(wanted)
    assert {result.task_type for result in card.data.eval_results} == {"text-classification"}
    assert "0, 1" in card.text and "It tells apart: 0, 1." in card.text
    assert all(finding.ok for finding in inspect(checkpoint)), "golden outputs are there and the same"

    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    code = f"import sys\nsys.modules['flexibert'] = None\n{snippet}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkpoint, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "'label': " in done.stdout
    capsys.readouterr()
    assert main(["publish", str(checkpoint), "--repo-id", "me/good"]) == 0
    assert "README.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "example", "text"),
    [
        (pair_task(True), "{'text': 'One text.', 'text_pair': 'Another text.'}", "pairs encoded separately"),
        (token_task(), "'A text with a name.'", "It tells apart: O, B-MOOD, I-MOOD."),
        (question_task(questions(5, 1), questions(5, 2)), "model(**inputs)", "AutoModelForQuestionAnswering"),
    ],
    ids=["pair", "token", "question"],
)
def test_cards_of_other_tasks(folder, tmp_path, task, example, text, monkeypatch):
    head = TASK_TYPES[task.task_type]
    labels = dict(enumerate(task.label_names)) or {0: "LABEL_0"}
    separate = "separate" if task.name == "pairs" else None
    fields = {"id2label": labels, "pair_encoding": separate or "joint"}
    model = head.auto_class.from_pretrained("model", **fields)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained("model").save_pretrained(tmp_path)
    results = [FinetuningResult({"f1": 0.5}, 0.5, 0.1, 1.0, 1.0, 1e-4, seed, separate) for seed in (0, 1)]
    facts = finetuned_card("base", task, FinetuningBudget(), results, teacher="sage")
    write_finetuned_card(tmp_path, facts)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == head.hub_task == card.data.eval_results[0].task_type
    assert example in card.text.replace('"', "'") and text in card.text and "sage" in card.text
    assert card.data.eval_results[0].metric_value == 50
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    exec(snippet.replace(", trust_remote_code=True", ""), {})


def test_scores_of_earlier_tasks_are_kept(capsys, folder):
    for name in ("mood", "tone"):
        Path(name).mkdir()
        for split in ("train", "validation"):
            Path(name, f"{split}.csv").write_text(Path("good", f"{split}.csv").read_text(encoding="utf-8"), "utf-8")
        assert main([*FINETUNE, "--tasks", name, "--output", "both"]) == 0
    assert set(json.loads(Path("both/scores.json").read_text(encoding="utf-8"))) == {"mood", "tone"}
    Path("both/scores.json").write_text("[1]", encoding="utf-8")
    assert "both/scores.json holds no scores" in refused(capsys, *FINETUNE, "--tasks", "mood", "--output", "both")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text-column", "body"), "corpus: no column 'body', there are text"),
        (("--recipe", "short.json"), "max_position_embeddings: 16 is not accepted, tokenizer and texts need 32"),
        (("--recipe", "few.json"), "vocab_size: 60 is not accepted, tokenizer and texts need "),
        (("--learning-rate", "1e30"), "the loss is nan at step 2; a lower learning rate may help"),
        (("--batch-size", "40", "--sequence-length", "2"), "sequence_length 2: at least 3 tokens are needed"),
        (("--report-to", "nonsense"), "--report-to: nonsense is not there, "),
    ],
)
def test_pretrain_refuses(capsys, folder, arguments, message):
    assert message in refused(capsys, *PRETRAIN, "--output", "new", *arguments)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("arguments", "limit", "written"),
    [
        ((*PRETRAIN, "--output", "model"), 9_000, "model.training/checkpoint"),
        ((*PRETRAIN, "--output", "model", "--steps", "1"), 9_000, "model"),
        ((*FINETUNE, "--tasks", "good", "--output", "tuned"), 9_000, "tuned/good"),
    ],
    ids=["checkpoint", "model", "fine-tuned model"],
)
def test_a_full_disk_leaves_what_was_there(capsys, folder, arguments, limit, written):
    before = {path: path.read_bytes() for name in ("model", "good") for path in Path(name).iterdir() if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # bytes a file
    try:
        message = refused(capsys, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"error: {written} cannot be written and is left as it was: " in message
    assert {path: path.read_bytes() for path in before} == before


def test_a_cache_that_cannot_be_written(capsys, folder):
    Path("elsewhere").mkdir()
    Path("elsewhere/.cache").write_text("", encoding="utf-8")
    message = refused(capsys, *PRETRAIN, "--output", "elsewhere/model")
    assert "elsewhere/.cache/tokenizer-" in message and "cannot be written" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [(*PRETRAIN, "--output", "new", "--batch-size", "3"), (*FINETUNE, "--tasks", "good", "--batch-size", "3")],
    ids=["pretrain", "finetune"],
)
def test_batches_that_two_processes_cannot_share(folder, arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "search"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 1  # torchrun's own; with status 2 of each process
    assert done.stderr.count("search: error: batch size 3 does not divide over 2 processes") == 1
    assert "exitcode  : 2" in done.stderr
