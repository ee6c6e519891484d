"""Kinds of tasks: each learns, has the gradient of the whole batch however it is cut, and is filed as what it is."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import f1_score
from test_finetuning import (  # noqa: F401
    FILLERS,
    QUICK,
    classification,
    encoder,
    encoder_without_dropout,
    question_task,
    questions,
    regression,
    tokenizer,
)
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from search.data.tasks import Task
from search.errors import UserError
from search.training.encoders import load_model
from search.training.finetuning import build_arguments, finetune
from search.training.finetuning_trainer import FinetuningTrainer
from search.training.task_types import TASK_TYPES, create_head


TAGS = ("O", "B-MOOD", "I-MOOD")


def tagged(size, seed):
    """Sentences of words in which "good" begins an entity that "bad" continues."""
    rng, rows = random.Random(seed), []
    for _ in range(size):
        words = rng.choices(FILLERS, k=rng.randint(2, 12))
        tags = [0] * len(words)
        for place in sorted(rng.sample(range(len(words)), 2), reverse=True):
            words[place : place + 1] = ["good", "bad"]
            tags[place : place + 1] = [1, 2]
        rows.append({"tokens": words, "ner_tags": tags})
    return Dataset.from_list(rows)


def token_task(train=None):
    train = tagged(120, 1) if train is None else train
    kinds = ("entities", "token_classification")
    return Task("names", train, {"validation": tagged(40, 2)}, ("tokens",), "ner_tags", 3, TAGS, *kinds)


def labelled(size, seed):
    """Texts whose labels are which of three words they hold."""
    rng, rows = random.Random(seed), []
    for _ in range(size):
        labels = [rng.randrange(2) for _ in range(3)]
        words = rng.choices(FILLERS, k=rng.randint(2, 6)) + [w for w, on in zip(("good", "bad", "?"), labels) if on]
        rng.shuffle(words)
        rows.append({"text": " ".join(words), "labels": labels})
    return Dataset.from_list(rows)


def label_task(train=None):
    train = labelled(160, 1) if train is None else train
    names, kind = ("good", "bad", "what"), "multi_label"
    return Task("topics", train, {"validation": labelled(40, 2)}, ("text",), "labels", 3, names, kind, kind)


TASKS = {
    "classification": classification,
    "regression": regression,
    "multi_label": label_task,
    "token_classification": token_task,
    "question_answering": lambda: question_task(questions(60, 1), questions(20, 2)),
}


def test_there_is_a_task_of_every_type():
    assert TASKS.keys() == TASK_TYPES.keys()
    with pytest.raises(UserError, match="mood: unknown task type 'poetry', accepted are classification, regression, "):
        create_head(dataclasses.replace(classification(), task_type="poetry"), None, 32)


@pytest.mark.parametrize("kind", TASK_TYPES)
def test_a_batch_has_one_gradient_however_it_is_cut(kind, encoder_without_dropout, tokenizer, tmp_path):  # noqa: F811
    """Sentences, windows and words are not spread evenly over the parts."""
    task = TASKS[kind]()
    head = create_head(task, tokenizer, 32)
    features = head.features(task.train, "train")
    weights = head.class_weights(features) if head.has_classes else None
    states = []
    for parts in (1, 2, 4):
        budget = dataclasses.replace(QUICK, max_steps=1, learning_rate=1e-3, warmup_fraction=0.0, batch_size=16)
        options = {"gradient_accumulation_steps": parts, "optim": "sgd", "max_grad_norm": 0.0}
        arguments = build_arguments(budget, 0, str(tmp_path), options)
        model = load_model(encoder_without_dropout, head, hidden_dropout_prob=0.0)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if name.startswith(("classifier", "qa_outputs")):
                torch.nn.init.normal_(parameter, std=0.02)
        trainer = FinetuningTrainer(
            head, weights, model=model, args=arguments, train_dataset=features, processing_class=tokenizer
        )
        trainer.train()
        states.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    for state in states[1:]:
        assert (state - states[0]).abs().max() < 1e-7  # steps of 1e-3 times the gradient


@pytest.mark.parametrize("kind", TASK_TYPES)
def test_the_loss_is_that_of_transformers(kind, encoder_without_dropout, tokenizer):  # noqa: F811
    task = TASKS[kind]()
    head = create_head(task, tokenizer, 32)
    rows = 1 if kind == "question_answering" else 7  # there padding takes part in the loss of transformers
    features = head.features(task.train, "train").select(range(rows))
    model = load_model(encoder_without_dropout, head).eval()
    names = ["input_ids", *head.targets]
    batch = head.collator(tokenizer)([{name: row[name] for name in names} for row in features])
    if kind == "multi_label":
        batch["labels"] = batch["labels"].float()
    with torch.no_grad():
        outputs = model(**batch)
    torch.testing.assert_close(head.loss(outputs, batch) / head.count(batch), outputs.loss)


def test_token_classification_learns_and_the_pipeline_finds_entities(encoder, tokenizer, tmp_path):  # noqa: F811
    result = finetune(encoder, token_task(), tokenizer, QUICK, output_dir=tmp_path / "out")
    assert set(result.metrics) == {"precision", "recall", "f1", "accuracy"}
    assert result.score == result.metrics["f1"] > 0.9
    find = pipeline("token-classification", str(tmp_path / "out"), aggregation_strategy="simple")
    (found,) = find("word1 good bad word2")
    assert (found["entity_group"], found["word"]) == ("MOOD", "good bad")


def test_words_that_are_cut_off_count_as_outside(tokenizer):  # noqa: F811
    data = Dataset.from_list([{"tokens": ["word1"] * 9 + ["good"], "ner_tags": [0] * 9 + [1]}, *tagged(1, 0)])
    task = token_task(data)
    head = create_head(task, tokenizer, 8)
    features = head.features(data, "train").select([1, 0])
    right = np.zeros((2, 8, 3))
    for row, labels in enumerate(features["labels"]):
        for place, label in enumerate(labels):
            right[row, place, max(label, 0)] = label != -100
    assert head.score(right, features, data)["recall"] < 1
    whole = create_head(task, tokenizer, 64)
    features = whole.features(data, "train")
    right = np.zeros((2, 64, 3))
    for row, labels in enumerate(features["labels"]):
        for place, label in enumerate(labels):
            right[row, place, max(label, 0)] = label != -100
    assert whole.score(right, features, data)["f1"] == 1


@pytest.mark.parametrize("leading_blank", [False, True])
def test_words_begin_where_their_first_token_does(leading_blank):
    from search.training.token_classification import first_tokens

    words = ["New", "", "York-based", "x"]
    text = " ".join(words)
    spans = [(0, 0), (0, 3), (5, 9), (9, 10), (10, 15), (16, 17), (0, 0)]
    if leading_blank:  # as byte-level vocabularies have it
        spans = [(start - (text[start - 1 : start] == " "), end) for start, end in spans]
    assert first_tokens(words, spans) == {0: 1, 2: 2, 3: 5}


def test_many_labels_are_learnt_each_by_itself(encoder, tokenizer, tmp_path):  # noqa: F811
    budget = dataclasses.replace(QUICK, max_steps=120, classifier_pooling="mean")
    result = finetune(encoder, label_task(), tokenizer, budget, output_dir=tmp_path / "out")
    assert set(result.metrics) == {"f1_micro", "f1_macro", "accuracy"}
    assert result.score == result.metrics["f1_micro"] > 0.8
    classify = pipeline("text-classification", str(tmp_path / "out"), top_k=None)
    (answers,) = classify(["word1 good ? word2"])
    with torch.no_grad():
        logits = classify.model(**classify.tokenizer("word1 good ? word2", return_tensors="pt")).logits
    found = {answer["label"]: answer["score"] for answer in answers}
    assert [found[name] for name in ("good", "bad", "what")] == pytest.approx(logits.sigmoid()[0].tolist(), rel=1e-4)


def test_class_weights_find_the_rare_class(encoder, tokenizer):  # noqa: F811
    train, validation = (
        data.select([row for row, label in enumerate(data["label"]) if label == 0 or row % 16 == 0])
        for data in (classification(400).train, *classification().validation.values())
    )
    head = create_head(classification(train=train), tokenizer, 32)
    weights = head.class_weights(head.features(train, "train"))
    counts = np.bincount(train["label"])
    assert weights.tolist() == pytest.approx((len(train) / 2 / counts).tolist())
    assert counts[0] > 10 * counts[1]


def test_class_weights_of_other_types(tokenizer):  # noqa: F811
    rows = [{"text": "good", "labels": [1, 0, 0]}, {"text": "bad", "labels": [0, 1, 0]}, *labelled(1, 0).to_list()]
    task = label_task(Dataset.from_list([*rows[:2], {"text": "?", "labels": [1, 0, 0]}]))
    head = create_head(task, tokenizer, 32)
    assert head.class_weights(head.features(task.train, "train")).tolist() == [0.5, 2.0, 1.0]
    head = create_head(token_task(), tokenizer, 64)
    tags = [tag for row in token_task().train["ner_tags"] for tag in row]
    expected = [len(tags) / 3 / tags.count(tag) for tag in range(3)]
    assert head.class_weights(head.features(token_task().train, "train")).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["regression", "question_answering"])
def test_weights_and_smoothing_need_classes(kind, encoder, tokenizer):  # noqa: F811
    message = f"class weights: .* is {kind.replace('_', ' ')}, which has no classes"
    with pytest.raises(UserError, match=message):
        finetune(encoder, TASKS[kind](), tokenizer, dataclasses.replace(QUICK, class_weights="balanced"))
    with pytest.raises(UserError, match="label_smoothing_factor smooths classes, .* has none"):
        finetune(encoder, TASKS[kind](), tokenizer, QUICK, label_smoothing_factor=0.1)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (label_task, {"labels": [0, 1]}, r"topics, train, row 3: label \[0, 1\], accepted are 3 zeros and ones"),
        (label_task, {"labels": [0, 1, 2]}, r"topics, train, row 3: label \[0, 1, 2\], accepted are"),
        (label_task, {"labels": None}, "topics, train, row 3: label None, accepted are"),
        (token_task, {"ner_tags": [0]}, r"names, train, row 3: 1 labels for \d+ words"),
        (token_task, {"tokens": None}, r"names, train, row 3: \d+ labels for 0 words"),
        (token_task, {"tokens": ["a"], "ner_tags": [3]}, "names, train, row 3: label 3, accepted are whole numbers "),
        (token_task, {"tokens": ["a"], "ner_tags": [-1]}, "row 3: label -1, accepted are .* and -100 for none"),
    ],
)
def test_bad_labels(task, row, message, tokenizer):  # noqa: F811
    rows = task().train.to_list()[:5]
    rows[3] |= row
    train = Dataset.from_list(rows)
    with pytest.raises(UserError, match=message):
        create_head(task(), tokenizer, 32).features(train, "train")


def test_scores_of_many_labels_are_scikit_learns():
    from search.metrics import compute

    generator = np.random.default_rng(0)
    predictions, labels = generator.integers(0, 2, (2, 50, 4))
    values = compute("multi_label", predictions, labels)
    assert values["f1_micro"] == f1_score(labels, predictions, average="micro")
    assert values["f1_macro"] == f1_score(labels, predictions, average="macro")
    assert values["accuracy"] == (predictions == labels).all(1).mean()


def test_an_entity_counts_as_a_whole():
    from search.metrics import compute, is_entity_tags

    labels = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-PER"]]
    given = [["B-PER", "O", "O", "B-LOC"], ["O", "B-PER"]]
    values = compute("entities", given, labels)  # two of three, one of them too short
    assert (values["precision"], values["recall"], values["f1"]) == pytest.approx((2 / 3,) * 3)
    assert values["accuracy"] == pytest.approx(5 / 6)
    assert is_entity_tags(TAGS) and not is_entity_tags(("NOUN", "VERB", "O"))
    assert compute("word_classes", [["N", "V"], ["V"]], [["N", "V"], ["N"]])["accuracy"] == pytest.approx(2 / 3)


def plain_rows(kind, dataset, tokenizer):  # noqa: F811
    """Examples as transformers' own example scripts make them."""
    rows = []
    for row in dataset:
        if kind == "token_classification":
            encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=32)
            words, before = encoded.word_ids(), None
            encoded["labels"] = []
            for word in words:  # run_ner: the first token of a word has its label
                new = word is not None and word != before
                encoded["labels"].append(row["ner_tags"][word] if new else -100)
                before = word
        elif kind == "multi_label":
            encoded = tokenizer(row["text"], truncation=True, max_length=32)
            encoded["labels"] = [float(label) for label in row["labels"]]
        else:
            encoded = tokenizer(
                row["question"], row["context"], truncation="only_second", max_length=64, return_offsets_mapping=True
            )
            (start,), (text,) = row["answers"]["answer_start"], row["answers"]["text"]
            of_context = [place == 1 for place in encoded.sequence_ids()]
            spans = [span if inside else (-1, -1) for span, inside in zip(encoded.pop("offset_mapping"), of_context)]
            encoded["start_positions"] = next(n for n, (first, _) in enumerate(spans) if first == start)
            encoded["end_positions"] = next(n for n, (_, last) in enumerate(spans) if last == start + len(text))
        rows.append(dict(encoded))
    return rows


def plain_score(kind, predictions, rows):
    """Micro F1 of labels, F1 of entities by seqeval, exact answers: computed without this package."""
    if kind == "multi_label":
        return f1_score([row["labels"] for row in rows], predictions > 0, average="micro")
    if kind == "token_classification":
        truth = [[TAGS[label] for label in row["labels"] if label >= 0] for row in rows]
        found = [
            [TAGS[value] for value, label in zip(values.argmax(-1), row["labels"]) if label >= 0]
            for values, row in zip(predictions, rows)
        ]
        return entity_f1(truth, found)
    starts, ends = predictions
    pairs = zip(starts.argmax(-1), ends.argmax(-1), rows)
    return np.mean([(first, last) == (row["start_positions"], row["end_positions"]) for first, last, row in pairs])


PLAIN = {
    "multi_label": (AutoModelForSequenceClassification, DataCollatorWithPadding, "f1_micro"),
    "token_classification": (AutoModelForTokenClassification, DataCollatorForTokenClassification, "f1"),
    "question_answering": (AutoModelForQuestionAnswering, DataCollatorWithPadding, "exact_match"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLAIN)
def test_scores_are_those_of_transformers_own_examples(kind, encoder, tokenizer, tmp_path):  # noqa: F811
    """The same data, encoder and budget through a plain `Trainer`: the means over three seeds differ by noise."""
    auto, collator, metric = PLAIN[kind]
    task = TASKS[kind]()
    if kind == "question_answering":  # in one window each
        short = [
            data.filter(lambda row: len(row["context"].split()) < 50) for data in (questions(160, 1), questions(60, 2))
        ]
        task = question_task(*short)
    budget = dataclasses.replace(QUICK, max_steps=80, max_length=64 if kind == "question_answering" else 32)
    train, validation = (plain_rows(kind, data, tokenizer) for data in (task.train, task.validation["validation"]))
    own, plain = [], []
    for seed in range(3):
        result = finetune(encoder, task, tokenizer, budget, seed=seed, output_dir=tmp_path / f"own{seed}")
        own.append(result.metrics[metric])
        set_seed(seed)
        labels = {} if kind == "question_answering" else {"num_labels": len(task.label_names)}
        extra = {"problem_type": "multi_label_classification"} if kind == "multi_label" else {}
        model = auto.from_pretrained(encoder, **labels, **extra)
        arguments = TrainingArguments(
            str(tmp_path / "plain"), max_steps=80, per_device_train_batch_size=16, learning_rate=1e-2, seed=seed,
            warmup_steps=5, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, collator(tokenizer), train_dataset=train)
        trainer.train()
        plain.append(plain_score(kind, trainer.predict(validation).predictions, validation))
    assert np.mean(own) > 0.6 and abs(np.mean(own) - np.mean(plain)) < 0.1, (own, plain)
    hub_task = {"multi_label": "text-classification"}.get(kind, kind.replace("_", "-"))
    assert TASK_TYPES[kind].hub_task == hub_task
