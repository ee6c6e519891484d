"""Extractive question answering as in SQuAD (arXiv 1606.05250, and 1806.03822 with questions that have no answer).

A context that is too long for the encoder is cut into windows that overlap. The encoder scores for each token whether
the answer starts or ends there; the best span over all windows of a question is its answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding, PreTrainedTokenizerBase

from ..data.tasks import Task, check_columns
from ..errors import UserError
from ..metrics import compute


MAX_ANSWER_TOKENS = 30


@dataclass(frozen=True)
class QuestionAnswering:
    """Text columns are question and context; labels are `{"text": [...], "answer_start": [...]}` as in SQuAD."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    auto_class = AutoModelForQuestionAnswering
    hub_task = "question-answering"
    collator = DataCollatorWithPadding
    targets = ("start_positions", "end_positions")
    is_pair = False
    learns_softly = False
    has_classes = False

    def config(self) -> dict[str, Any]:
        return {}

    def features(self, dataset: Dataset, split: str) -> Dataset:
        """Windows of a split, each with the row of its question and the characters that its tokens cover.

        Raises:
            UserError: A column is missing, an answer does not stand where it should, or the tokenizer cannot tell
                characters.
        """
        if not self.tokenizer.is_fast:
            raise UserError(f"{self.task.name}: question answering needs a fast tokenizer, which knows characters")
        place = f"{self.task.name}, {split}"
        return encode(dataset, self.tokenizer, self.task.text_columns, self.task.label_column, self.max_length, place)

    def count(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Over how many items of a batch its loss is a mean: windows."""
        return len(batch["start_positions"])

    def loss(self, outputs, batch: Mapping[str, torch.Tensor], weights=None, smoothing: float = 0.0) -> torch.Tensor:
        """Sum over the windows of the mean over start and end of the cross-entropy over tokens in nats.

        Padding is no candidate, or the loss would depend on the longest window of a batch.
        """
        padding = batch["attention_mask"] == 0
        start = _cross_entropy(outputs.start_logits, padding, batch["start_positions"])
        end = _cross_entropy(outputs.end_logits, padding, batch["end_positions"])
        return (start + end) / 2

    def score(self, logits: tuple[np.ndarray, np.ndarray], features: Dataset, dataset: Dataset) -> dict[str, float]:
        """Exact match and F1 of the answers that the logits (N, L) of start and end choose."""
        start_logits, end_logits = logits[:2]
        labels = [answers["text"] for answers in dataset[self.task.label_column]]
        contexts = dataset[self.task.text_columns[1]]
        some_unanswerable = any(not answers["text"] for answers in self.task.train[self.task.label_column])
        spans = best_spans(start_logits, end_logits, features["context_offsets"], features["row"], len(dataset))
        answers = [
            "" if some_unanswerable and span.null_score > span.score else context[span.start : span.end]
            for span, context in zip(spans, contexts)
        ]
        return compute("squad", answers, labels)


def _cross_entropy(logits: torch.Tensor, padding: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Sum over windows; logits and padding (N, L), places (N,)."""
    return functional.cross_entropy(logits.float().masked_fill(padding, -torch.inf), places, reduction="sum")


@lru_cache(maxsize=8)
def encode(dataset, tokenizer, text_columns, label_column, max_length, place) -> Dataset:
    """Checked data cut into windows, in memory.

    Columns besides the model's inputs and labels: "row" of the question in the data set, "length" in tokens, and
    "context_offsets" (L, 2), the characters [start, end) of each context token, (-1, -1) for other tokens.
    """
    question_column, context_column = text_columns
    room = max_length - max_length // 2 - tokenizer.num_special_tokens_to_add(pair=True)  # for context, at least
    if room < 1:
        raise UserError(f"{place}: {max_length} tokens are too few for a question, a context and what stands around")
    stride = min(max_length // 3, room - 1)  # windows have to advance
    check_columns(dataset, (*text_columns, label_column), place)
    check_answers(dataset[context_column], dataset[label_column], place)

    def tokenize(batch, rows):
        encoded = tokenizer(
            shorten(batch[question_column], tokenizer, max_length // 2),
            batch[context_column],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_attention_mask=False,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        examples = encoded.pop("overflow_to_sample_mapping")
        offsets = [
            [offset if part == 1 else (-1, -1) for offset, part in zip(mapping, encoded.sequence_ids(window))]
            for window, mapping in enumerate(encoded.pop("offset_mapping"))
        ]
        targets = [
            answer_tokens(batch[label_column][example], np.array(window)) for example, window in zip(examples, offsets)
        ]
        return {
            **encoded,
            "start_positions": [start for start, _ in targets],
            "end_positions": [end for _, end in targets],
            "row": [rows[example] for example in examples],
            "length": [len(ids) for ids in encoded["input_ids"]],
            "context_offsets": offsets,
        }

    return dataset.map(
        tokenize, batched=True, with_indices=True, remove_columns=dataset.column_names, keep_in_memory=True
    )


def check_answers(contexts: Iterable[str], labels: Iterable[Mapping], place: str) -> None:
    """Raises UserError at the first answer that does not stand where it is said to."""
    for row, (context, answers) in enumerate(zip(contexts, labels)):
        if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= set(answers):
            raise UserError(f"{place}, row {row}: answers are written {{'text': [...], 'answer_start': [...]}}")
        for text, start in zip(answers["text"], answers["answer_start"]):
            if context[start : start + len(text)] != text:
                raise UserError(f"{place}, row {row}: the answer {text!r} is not at character {start} of the context")


def shorten(questions: Sequence[str], tokenizer, max_tokens: int) -> list[str]:
    """Questions of at most so many tokens, so that every window has room for context."""
    questions = [question.strip() for question in questions]
    encoded = tokenizer(
        questions, truncation=True, max_length=max_tokens, add_special_tokens=False, return_offsets_mapping=True
    )
    return [
        question[: offsets[-1][1]] if offsets else question
        for question, offsets in zip(questions, encoded["offset_mapping"])
    ]


def answer_tokens(answers: Mapping, offsets: np.ndarray) -> tuple[int, int]:
    """First and last token of the first answer, or twice the first token where this window does not hold all of it.

    Args:
        offsets: (L, 2) characters of context tokens, -1 elsewhere.
    """
    if not answers["text"]:
        return 0, 0
    first, last = answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])
    starts = np.flatnonzero((offsets[:, 0] >= 0) & (offsets[:, 0] <= first))
    ends = np.flatnonzero(offsets[:, 1] >= last)
    covered = len(starts) and len(ends) and offsets[starts[-1], 1] > first
    return (int(starts[-1]), int(ends[0])) if covered else (0, 0)


@dataclass
class Span:
    """The best answer so far of a question: characters [start, end) of its context, and log-scores."""

    start: int = 0
    end: int = 0
    score: float = -np.inf
    null_score: float = np.inf


def best_spans(start_logits, end_logits, offsets, rows, num_questions: int) -> list[Span]:
    """The best span of each question over all its windows.

    Args:
        start_logits, end_logits: (N, L) for N windows, whatever value at padding.
        offsets: For each window (L', 2), the characters of context tokens and -1 elsewhere; L' <= L.
        rows: (N,) which question a window belongs to.

    Returns:
        One span per question. Its `null_score` is that of the first token, which stands for "no answer here", in the
        window that is least sure of it.
    """
    spans = [Span() for _ in range(num_questions)]
    for start_scores, end_scores, window, row in zip(start_logits, end_logits, offsets, rows):
        window, span = np.array(window), spans[row]
        span.null_score = min(span.null_score, float(start_scores[0] + end_scores[0]))
        context = np.flatnonzero(window[:, 0] >= 0)
        if not len(context):
            continue
        scores = start_scores[context, None] + end_scores[None, context]  # (C, C)
        tokens = np.arange(len(context))
        distance = tokens[None, :] - tokens[:, None]
        scores = np.where((distance >= 0) & (distance < MAX_ANSWER_TOKENS), scores, -np.inf)
        first, last = np.unravel_index(scores.argmax(), scores.shape)
        if scores[first, last] > span.score:
            span.start, span.end = int(window[context[first], 0]), int(window[context[last], 1])
            span.score = float(scores[first, last])
    return spans
