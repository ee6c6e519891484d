"""Fine-tuning learns, repeats itself, shares its work between processes, and says in one line what is wrong."""

import dataclasses
import gc
import json
import os
import random
import resource
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import layer, op
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from search.data.tasks import Task
from search.errors import TrainingDiverged, UserError
from search.metrics import compute
from search.training import finetuning, finetuning_runs
from search.training.finetuning import FinetuningBudget, FinetuningResult, finetune
from search.training.finetuning_runs import finetune_tasks, summarize, sweep
from search.training.finetuning_trainer import FinetuningTrainer
from search.training.question_answering import QuestionAnswering
from search.training.task_types import create_head


ROOT = Path(__file__).resolve().parents[1]
FILLERS = [f"word{i}" for i in range(30)]
QUICK = FinetuningBudget(max_steps=40, batch_size=16, learning_rate=1e-2, max_length=32)


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """Trainer collects garbage at every start; without the libraries' objects that takes no time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "?", *map(str, range(6)), *FILLERS]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def save_encoder(folder, tokenizer, **fields):
    torch.manual_seed(0)
    layers = [layer(32, op("self_attention", 2)), layer(32, op("linear_transform", 1), op("dynamic_convolution", 1))]
    config = FlexiBertConfig(layers=layers, vocab_size=len(tokenizer), max_position_embeddings=64, **fields)
    FlexiBertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tokenizer):
    return save_encoder(tmp_path_factory.mktemp("encoder"), tokenizer)


@pytest.fixture(scope="module")
def encoder_without_dropout(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("encoder")
    return save_encoder(folder, tokenizer, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def sentences(size, seed, label):
    """Texts of varying length, half of whose words say the label."""
    rng = random.Random(seed)
    rows = []
    for _ in range(size):
        value = rng.randrange(2 if label == "class" else 6)
        words = rng.choices([*FILLERS, *[("bad", "good")[value] if label == "class" else str(value)] * 30], k=20)
        words = words[: rng.randint(3, 20)]
        rows.append({"text": " ".join(words), "label": value if label == "class" else float(value)})
    return Dataset.from_list(rows)


def classification(train_size=160, **fields):
    validation = fields.pop("validation", {"validation": sentences(50, 2, "class")})
    train = sentences(train_size, 1, "class")
    values = {"num_labels": 2, "label_names": ("negative", "positive"), "metric": "cola"} | fields
    if values["num_labels"] == 1:
        values["task_type"] = "regression"
    return Task("mood", values.pop("train", train), validation, ("text",), "label", **values)


def regression():
    validation = {"validation": sentences(50, 4, "number")}
    return Task("stars", sentences(160, 3, "number"), validation, ("text",), "label", 1, (), "stsb", "regression")


# --- it learns ----------------------------------------------------------------------------------------------------


def test_classification_learns_and_leaves_a_checkpoint_that_gives_the_same_score(encoder, tokenizer, tmp_path):
    task = classification()
    result = finetune(encoder, task, tokenizer, QUICK, output_dir=tmp_path / "out" / "mood")
    assert result.score == result.metrics["matthews_correlation"] > 0.8
    assert result.train_loss < 0.6 and result.examples_per_second > 0

    folder = tmp_path / "out" / "mood"
    assert [path.name for path in folder.parent.iterdir()] == ["mood"]
    assert not (folder / "training_args.bin").exists()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    loaded = AutoTokenizer.from_pretrained(folder)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.problem_type == "single_label_classification"
    with torch.no_grad():
        predictions = [
            model(**loaded(text, return_tensors="pt")).logits.argmax().item()
            for text in task.validation["validation"]["text"]
        ]
    assert compute("cola", predictions, task.validation["validation"]["label"]) == pytest.approx(result.metrics)


def test_nothing_is_learnt_where_there_is_nothing_to_learn(encoder, tokenizer):
    rng = random.Random(0)
    train, validation = (
        sentences(size, seed, "class").map(lambda row: {"label": rng.randrange(2)})
        for size, seed in ((160, 1), (100, 2))
    )
    task = classification(train=train, validation={"validation": validation})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert abs(finetune(encoder, task, tokenizer, QUICK).score) < 0.4


def test_regression_learns(encoder, tokenizer):
    result = finetune(encoder, regression(), tokenizer, QUICK)
    assert result.metrics["pearson"] > 0.5
    assert result.score == pytest.approx((result.metrics["pearson"] + result.metrics["spearmanr"]) / 2)


def test_same_seed_same_result_other_seed_another(encoder, tokenizer):
    budget = dataclasses.replace(QUICK, max_steps=4)
    losses = [finetune(encoder, regression(), tokenizer, budget, seed).train_loss for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_all_validation_splits_are_reported(encoder, tokenizer):
    splits = {"validation_matched": sentences(30, 5, "class"), "validation_mismatched": sentences(20, 6, "class")}
    task = classification(validation=splits, metric="mnli")
    result = finetune(encoder, task, tokenizer, dataclasses.replace(QUICK, max_steps=2))
    assert set(result.metrics) == {"accuracy_matched", "accuracy_mismatched"}
    assert result.score == pytest.approx(sum(result.metrics.values()) / 2)


def test_any_encoder_of_transformers_will_do(tokenizer, tmp_path):
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    result = finetune(tmp_path / "bert", classification(), tokenizer, QUICK, output_dir=tmp_path / "out")
    assert result.score > 0.8
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.model_type == "bert"


def test_a_head_of_another_task_is_replaced_and_the_encoder_kept(encoder, tokenizer, tmp_path):
    three = classification(num_labels=3, label_names=("a", "b", "c"), metric="mnli")
    finetune(encoder, three, tokenizer, dataclasses.replace(QUICK, max_steps=2), output_dir=tmp_path / "mnli")
    still = dataclasses.replace(QUICK, max_steps=1, learning_rate=1e-30)
    finetune(tmp_path / "mnli", classification(metric="rte"), tokenizer, still, output_dir=tmp_path / "rte")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("mnli", "rte"))
    assert after["classifier.weight"].shape == (2, 32)
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("classifier"))


def test_checkpoints_in_half_precision_are_trained_in_float32(encoder, tokenizer, tmp_path):
    FlexiBertForMaskedLM.from_pretrained(encoder).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    finetune(tmp_path / "half", regression(), tokenizer, dataclasses.replace(QUICK, max_steps=1), 0, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["classifier.weight"].dtype == torch.float32


def test_bf16_computes_the_same_but_for_rounding(encoder, tokenizer):
    budgets = [dataclasses.replace(QUICK, max_steps=2, precision=precision) for precision in ("fp32", "bf16")]
    full, half = (finetune(encoder, classification(), tokenizer, budget).train_loss for budget in budgets)
    assert half != full and half == pytest.approx(full, rel=0.02)


# --- question answering -------------------------------------------------------------------------------------------


def questions(size, seed, unanswerable=False):
    """Contexts of up to 60 words; the answer is the number in it, or it has none."""
    rng = random.Random(seed)
    rows = []
    for row in range(size):
        words = rng.choices(FILLERS, k=rng.randint(5, 60))
        none = unanswerable and row % 3 == 0
        if not none:
            place, answer = rng.randrange(len(words)), str(rng.randrange(6))
            words.insert(place, answer)
        start = 0 if none else len(" ".join([*words[:place], ""]))
        answers = {"text": [], "answer_start": []} if none else {"text": [answer], "answer_start": [start]}
        rows.append({"question": " word1 ?", "context": " ".join(words), "answers": answers})
    return Dataset.from_list(rows)


def question_task(train, validation):
    return Task(
        "numbers",
        train,
        {"validation": validation},
        ("question", "context"),
        "answers",
        0,
        (),
        "squad",
        "question_answering",
    )


@pytest.mark.parametrize("unanswerable", [False, True])
def test_windows_cover_the_context_and_their_labels_give_the_answers_back(tokenizer, unanswerable):
    data = questions(40, 0, unanswerable)
    head = QuestionAnswering(question_task(data, data), tokenizer, max_length=24)
    windows = head.features(data, "train")
    assert len(windows) > len(data) and max(windows["length"]) == 24
    for row in range(len(data)):
        covered = {
            character
            for window in windows.filter(lambda window, row=row: window["row"] == row)["context_offsets"]
            for start, end in window if start >= 0
            for character in range(start, end)
        }  # fmt: skip
        context = data[row]["context"]
        assert covered == {place for place, character in enumerate(context) if character != " "}

    logits = np.zeros((2, len(windows), 24))
    for row, window in enumerate(windows):
        logits[0, row, window["start_positions"]] = logits[1, row, window["end_positions"]] = 5
    assert head.score(tuple(logits), windows, data) == {"exact_match": 1.0, "f1": 1.0}


def test_questions_are_shortened_so_that_context_fits(tokenizer):
    data = Dataset.from_list([{**questions(1, 0)[0], "question": "word1 " * 50}])
    windows = QuestionAnswering(question_task(data, data), tokenizer, 24).features(data, "train")
    assert max(windows["length"]) <= 24


@pytest.mark.parametrize("max_length", [8, 12, 13, 15, 18])
def test_short_windows_advance_and_cover_the_context(tokenizer, max_length):
    data = questions(20, 0)
    head = QuestionAnswering(question_task(data, data), tokenizer, max_length)
    windows = head.features(data, "train")
    assert max(windows["length"]) <= max_length
    for row, example in enumerate(data):
        spans = [span for window in windows if window["row"] == row for span in window["context_offsets"]]
        covered = {place for start, end in spans if start >= 0 for place in range(start, end)}
        assert covered == {place for place, character in enumerate(example["context"]) if character != " "}


def test_windows_without_room_for_a_context(tokenizer):
    data = questions(3, 0)
    with pytest.raises(UserError, match="numbers, train: 6 tokens are too few for a question, a context and"):
        QuestionAnswering(question_task(data, data), tokenizer, 6).features(data, "train")


def test_spans_do_not_run_backwards_nor_too_far():
    from search.training.question_answering import best_spans

    offsets = [(-1, -1), *((2 * i, 2 * i + 1) for i in range(40))]
    start, end = np.zeros((1, 41)), np.zeros((1, 41))
    start[0, 20], end[0, 10], end[0, 30] = 9, 9, 8
    (span,) = best_spans(start, end, [offsets], [0], 1)
    assert (span.start, span.end) == offsets[20][:1] + offsets[30][1:]  # 20..10 would score 18
    start[0, 1], end[0, 40] = 20, 20
    (span,) = best_spans(start, end, [offsets], [0], 1)
    assert span.end < 2 * 40 and span.score < 40  # 1..40 is longer than 30 tokens


def test_question_answering_learns(encoder, tokenizer, tmp_path):
    task = question_task(questions(120, 1), questions(30, 2))
    budget = FinetuningBudget(max_steps=50, batch_size=16, learning_rate=5e-3, max_length=32)
    result = finetune(encoder, task, tokenizer, budget, output_dir=tmp_path / "out")
    assert set(result.metrics) == {"exact_match", "f1"}
    assert result.score == result.metrics["f1"] > 0.8
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")


def test_answers_must_stand_where_they_are_said_to(encoder, tokenizer):
    good = questions(3, 0)
    rows = good.to_list()
    rows[2]["answers"]["answer_start"] = [rows[2]["answers"]["answer_start"][0] + 1]
    with pytest.raises(UserError, match=r"numbers, validation, row 2: the answer '\d' is not at character \d+"):
        finetune(encoder, question_task(good, Dataset.from_list(rows)), tokenizer, QUICK)


# --- batches ------------------------------------------------------------------------------------------------------


def trainer_of(tokenizer, encoder, folder, **options):
    task = classification(train_size=200)
    head = create_head(task, tokenizer, 32)
    arguments = finetuning.build_arguments(QUICK, 0, str(folder), options)
    model = finetuning.load_model(encoder, head)
    features = head.features(task.train, "train")
    return FinetuningTrainer(head, model=model, args=arguments, train_dataset=features, processing_class=tokenizer)


def test_batches_hold_each_example_once_with_others_of_its_length(encoder, tokenizer, tmp_path):
    loader = trainer_of(tokenizer, encoder, tmp_path).get_train_dataloader()
    epochs = [[batch["attention_mask"].sum(-1) for batch in loader] for _ in range(2)]
    lengths = sorted(len(text.split()) + 2 for text in classification(train_size=200).train["text"])
    for epoch in epochs:
        assert sorted(torch.cat(epoch).tolist()) == lengths
        padded = sum(len(batch) * batch.max() for batch in epoch)
        assert padded < 1.3 * sum(lengths)  # 1.7 times in batches drawn at random
    assert [batch.tolist() for batch in epochs[0]] != [batch.tolist() for batch in epochs[1]]
    longest = [int(batch.max()) for batch in epochs[0]]
    assert longest[:8] != sorted(longest[:8], reverse=True)  # long texts do not always come before short ones


def test_encoders_never_see_more_than_the_longest_example(encoder, tokenizer, monkeypatch):
    shapes = []
    forward = FinetuningTrainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        shapes.append((inputs["input_ids"].shape[1], int(inputs["attention_mask"].sum(-1).max())))
        return forward(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(FinetuningTrainer, "compute_loss", spy)
    finetune(encoder, classification(), tokenizer, dataclasses.replace(QUICK, max_steps=3))
    assert shapes and all(width == longest for width, longest in shapes)


def test_tokenised_data_is_kept_between_calls(encoder, tokenizer):
    from search.training.sequence_classification import encode

    task, budget = regression(), dataclasses.replace(QUICK, max_steps=1)
    finetune(encoder, task, tokenizer, budget)
    misses = encode.cache_info().misses
    finetune(encoder, task, tokenizer, budget, seed=1)
    assert encode.cache_info().misses == misses


def test_accumulated_steps_equal_whole_ones(encoder_without_dropout, tokenizer):
    """Also for regression, where Trainer on its own multiplies the loss by the number of accumulation steps."""
    budget = dataclasses.replace(QUICK, max_steps=8)
    whole = finetune(encoder_without_dropout, regression(), tokenizer, budget)
    parts = finetune(encoder_without_dropout, regression(), tokenizer, budget, gradient_accumulation_steps=4)
    assert parts.train_loss == pytest.approx(whole.train_loss, rel=1e-4)
    assert parts.metrics == pytest.approx(whole.metrics, abs=0.02)


TWO_PROCESSES = """
import json, os, sys
sys.path[:0] = sys.argv[1:3]
from accelerate import Accelerator
import torch.distributed
import transformers
from test_finetuning import QUICK, dataclasses, finetune, regression

outer = Accelerator()
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[3])
budget = dataclasses.replace(QUICK, max_steps=8)
result = finetune(sys.argv[3], regression(), tokenizer, budget, 0, sys.argv[4] + "/out")
outer.wait_for_everyone()
# A file each: what two processes print at once may end up on one line.
with open(f"{sys.argv[4]}-{outer.process_index}.json", "w", encoding="utf-8") as file:
    json.dump([outer.num_processes, result.train_loss, result.metrics, sorted(os.listdir(sys.argv[4]))], file)
torch.distributed.destroy_process_group()
"""


def test_two_processes_share_the_work_and_agree(encoder_without_dropout, tokenizer, tmp_path):
    tokenizer.save_pretrained(encoder_without_dropout)
    budget = dataclasses.replace(QUICK, max_steps=8)
    alone = finetune(encoder_without_dropout, regression(), tokenizer, budget)
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES, encoding="utf-8")
    (tmp_path / "results").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    result = subprocess.run(
        [*command, ROOT, ROOT / "tests", encoder_without_dropout, tmp_path / "results"],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, second = (json.loads((tmp_path / f"results-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert first == second
    processes, loss, metrics, written = first
    assert processes == 2 and written == ["out"]
    assert loss == pytest.approx(alone.train_loss, rel=1e-4)
    assert metrics == pytest.approx(alone.metrics, abs=0.02)


# --- manners ------------------------------------------------------------------------------------------------------


def test_nothing_is_printed_and_settings_come_back(encoder, tokenizer, capfd, tmp_path):
    transformers.logging.set_verbosity_info()
    try:
        finetune(encoder, regression(), tokenizer, dataclasses.replace(QUICK, max_steps=2), 0, tmp_path / "out")
        assert transformers.logging.get_verbosity() == transformers.logging.INFO
    finally:
        transformers.logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")


def test_training_arguments_pass_through(encoder, tokenizer, capfd):
    finetune(encoder, regression(), tokenizer, dataclasses.replace(QUICK, max_steps=2), disable_tqdm=False)
    assert "2/2" in capfd.readouterr().err
    with pytest.raises(UserError, match="training arguments: .*'warmth'"):
        finetune(encoder, regression(), tokenizer, QUICK, warmth=3)


# --- bad input ----------------------------------------------------------------------------------------------------


def with_label(value):
    rows = sentences(5, 0, "class").to_list()
    rows[3]["label"] = value
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (classification(train=with_label(2)), "mood, train, row 3: label 2, accepted are whole numbers from 0 to 1"),
        (classification(train=with_label(-1)), "mood, train, row 3: label -1, accepted are whole numbers"),
        (classification(train=with_label(None)), "mood, train, row 3: label None, accepted"),
        (classification(validation={"validation": with_label(7)}), "mood, validation, row 3: label 7, accepted"),
        (classification(num_labels=1, train=with_label(None)), "row 3: label None, accepted are finite numbers"),
        (classification(validation={}), "mood has no validation split"),
        (classification(train=sentences(5, 0, "class").select([])), "mood, train: no examples"),
        (
            classification(train=sentences(5, 0, "class").rename_column("text", "sentence")),
            "mood, train: no column 'text', there are sentence, label",
        ),
    ],
)
def test_bad_tasks(encoder, tokenizer, task, message):
    with pytest.raises(UserError, match=message):
        finetune(encoder, task, tokenizer, QUICK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 65}, "max_length 65 is beyond the 64 positions of the model"),
        ({"batch_size": 3}, "batch size 3 does not divide over 2 processes times accumulations"),
    ],
)
def test_bad_budgets(encoder, tokenizer, changes, message):
    budget = dataclasses.replace(QUICK, **changes)
    with pytest.raises(UserError, match=message):
        finetune(encoder, classification(), tokenizer, budget, gradient_accumulation_steps=2)


def test_roberta_has_two_positions_less_than_it_says(tokenizer, tmp_path):
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=34,
    )  # fmt: skip
    transformers.RobertaForMaskedLM(config).save_pretrained(tmp_path)
    finetune(tmp_path, classification(), tokenizer, dataclasses.replace(QUICK, max_steps=1))
    with pytest.raises(UserError, match="max_length 33 is beyond the 32 positions"):
        finetune(tmp_path, classification(), tokenizer, dataclasses.replace(QUICK, max_length=33))


@pytest.mark.parametrize("added", [-1, 128])
def test_tokenizer_of_another_vocabulary(tokenizer, tmp_path, added):
    config = FlexiBertConfig(vocab_size=len(tokenizer) + added, layers=[layer(16, op("self_attention", 1))])
    FlexiBertForMaskedLM(config).save_pretrained(tmp_path)
    message = f"the tokenizer has {len(tokenizer)} tokens, but the model was made for {len(tokenizer) + added}"
    with pytest.raises(UserError, match=message):
        finetune(tmp_path, classification(), tokenizer, QUICK)


def test_folders_that_hold_no_model(encoder, tokenizer, tmp_path):
    with pytest.raises(UserError, match="is no folder of a model: it has no config.json"):
        finetune(tmp_path, classification(), tokenizer, QUICK)
    with pytest.raises(UserError, match="nowhere cannot be loaded: "):
        finetune(tmp_path / "nowhere", classification(), tokenizer, QUICK)
    (tmp_path / "config.json").write_text((encoder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match="cannot be loaded: "):
        finetune(tmp_path, classification(), tokenizer, QUICK)
    weights = load_file(encoder / "model.safetensors")
    lost = {f"other.{name}": weight for name, weight in weights.items()}
    save_file(lost, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks weights of the encoder: model.embeddings"):
        finetune(tmp_path, classification(), tokenizer, QUICK)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="model.safetensors is damaged: "):
        finetune(tmp_path, classification(), tokenizer, QUICK)


def test_divergence_says_at_which_step_and_leaves_the_last_checkpoint(encoder, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"the last good one")
    budget = dataclasses.replace(QUICK, learning_rate=1e36, warmup_fraction=0.0)
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step [23]; a lower learning rate may help"):
        finetune(encoder, classification(), tokenizer, budget, 0, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"the last good one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_leaves_the_last_checkpoint(encoder, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"the last good one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # bytes a file; the weights are larger
    try:
        with pytest.raises(UserError, match="out cannot be written and is left as it was: .*File too large"):
            finetune(
                encoder, classification(), tokenizer, dataclasses.replace(QUICK, max_steps=1), 0, tmp_path / "out"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"the last good one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_output_that_cannot_be_written_is_told_before_training(encoder, tokenizer, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        finetune(encoder, classification(), tokenizer, QUICK, 0, tmp_path / "file" / "out")


# --- many runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """Replaces training by a score that is best at a learning rate of 1e-4 and diverges above 4e-4."""
    calls = []

    def fake(model_dir, task, tokenizer, budget, seed=0, output_dir=None, **training_arguments):
        calls.append((task.name, Path(model_dir).name, budget.learning_rate, seed, output_dir, training_arguments))
        if budget.learning_rate > 4e-4:
            raise TrainingDiverged("the loss is nan at step 7")
        score = 1 - abs(np.log(budget.learning_rate / 1e-4)) / 10
        return FinetuningResult({"accuracy": score}, score, 0.1, 1.0, 1.0, budget.learning_rate, seed)

    monkeypatch.setattr(finetuning_runs, "finetune", fake)
    return calls


def test_sweep_draws_from_the_range_and_puts_the_best_first(calls, tokenizer):
    results = sweep("model", classification(), tokenizer, QUICK, trials=25, report_to="none")
    rates = [rate for _, _, rate, *_ in calls]
    assert len(set(rates)) == 25 and all(2e-5 <= rate <= 5e-4 for rate in rates)
    assert results[0].score == max(result.score for result in results)
    assert abs(np.log(results[0].learning_rate / 1e-4)) < 0.2
    assert len(results) == sum(rate <= 4e-4 for rate in rates)
    assert all(arguments == {"report_to": "none"} for *_, arguments in calls)
    again = [result.learning_rate for result in sweep("model", classification(), tokenizer, QUICK, trials=25)]
    assert again == [result.learning_rate for result in results]


def test_sweep_of_a_grid(calls, tokenizer):
    results = sweep("model", classification(), tokenizer, QUICK, learning_rates=(3e-4, 1e-4, 9e-4, 3e-5))
    assert sorted(rate for _, _, rate, *_ in calls) == [3e-5, 1e-4, 3e-4, 9e-4]
    assert [result.learning_rate for result in results] == [1e-4, 3e-4, 3e-5]
    with pytest.raises(TrainingDiverged):
        sweep("model", classification(), tokenizer, QUICK, learning_rates=(9e-4, 8e-4))


def test_tasks_run_with_every_seed_and_small_ones_start_from_mnli(calls, tokenizer, tmp_path):
    tasks = [dataclasses.replace(classification(), name=name) for name in ("rte", "cola", "mnli")]
    results = finetune_tasks(
        "model", tasks, tokenizer, QUICK, (3, 4), tmp_path, learning_rates=(5e-5, 1e-4), start_from=tmp_path / "mnli"
    )
    assert list(results) == ["mnli", "rte", "cola"]
    final = [call[:5] for call in calls if call[0] == "rte"][2:]
    assert final == [("rte", "mnli", 1e-4, 3, tmp_path / "rte"), ("rte", "mnli", 1e-4, 4, None)]
    assert {start for name, start, *_ in calls if name != "rte"} == {"model"}
    assert [result.seed for result in results["cola"]] == [3, 4]


def test_each_task_is_reported_before_the_next_one_can_fail(calls, tokenizer):
    tasks = [dataclasses.replace(classification(), name=name) for name in ("cola", "sst2")]
    reported = []
    with pytest.raises(TrainingDiverged, match="^cola, seed 7: "):
        finetune_tasks("model", tasks, tokenizer, dataclasses.replace(QUICK, learning_rate=9e-4), (7,))
    budget = dataclasses.replace(QUICK, learning_rate=1e-4)
    finetune_tasks("model", tasks, tokenizer, budget, (7,), report=lambda *task: reported.append(task))
    assert [(name, len(results)) for name, results in reported] == [("cola", 1), ("sst2", 1)]


def test_what_stands_in_the_way_is_noticed_before_training(calls, tokenizer, tmp_path):
    (tmp_path / "cola").mkdir()
    (tmp_path / "cola" / "train.csv").write_text("precious", encoding="utf-8")
    tasks = [dataclasses.replace(classification(), name=name) for name in ("mnli", "rte", "cola")]
    with pytest.raises(UserError, match="cola exists and is no checkpoint"):
        finetune_tasks("model", tasks, tokenizer, QUICK, output_dir=tmp_path)
    with pytest.raises(UserError, match="nowhere: no such checkpoint to start from"):
        finetune_tasks("model", tasks, tokenizer, QUICK, start_from=tmp_path / "nowhere")
    assert not calls and (tmp_path / "cola" / "train.csv").read_text(encoding="utf-8") == "precious"


def test_mean_and_spread_over_seeds():
    results = [FinetuningResult({"accuracy": value}, value, 0.1, 1.0, 1.0, 1e-4, 0) for value in (0.5, 0.6, 0.7)]
    assert summarize(results) == {"accuracy": pytest.approx((0.6, 0.1)), "score": pytest.approx((0.6, 0.1))}
    assert summarize(results[:1])["score"] == (0.5, 0.0)


# --- the example --------------------------------------------------------------------------------------------------


def test_example_is_plain_transformers_and_runs(encoder, tokenizer, tmp_path, monkeypatch, capsys):
    example = ROOT / "examples" / "glue_trainer.py"
    lines = [line for line in example.read_text(encoding="utf-8").splitlines() if line]
    assert len(lines) < 30 and not any("search" in line for line in lines)

    tokenizer.save_pretrained(encoder)
    glue = tmp_path / "glue"
    readme = ["---", "configs:", "- config_name: cola", "  data_files:"]
    for split in ("train", "validation"):
        rows = sentences(64, len(split), "class").rename_column("text", "sentence")
        rows.to_parquet(glue / "cola" / f"{split}-00000-of-00001.parquet")
        readme += [f"  - split: {split}", f"    path: cola/{split}-*.parquet"]
    (glue / "README.md").write_text("\n".join([*readme, "---"]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("sys.argv", [str(example), str(encoder), "cola", str(glue)])
    runpy.run_path(str(example), run_name="__main__")
    assert "eval_accuracy" in capsys.readouterr().out
    assert (tmp_path / "cola-model" / "model.safetensors").is_file()
