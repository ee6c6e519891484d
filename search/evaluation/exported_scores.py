"""How good an exported encoder is on its tasks, beside the model that it was made from."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import PreTrainedTokenizerBase

from ..data.tasks import Task
from ..errors import UserError
from ..metrics import GLUE_TASKS, correlations
from ..runtimes.files import SENTENCE_EMBEDDING, Batch, Exportable, auto_class, output_names
from ..training.finetuning import by_split
from ..training.pair_encoding import encodes_alone, with_token_types
from ..training.task_types import create_head


Run = Callable[[Batch], Sequence[np.ndarray]]
"""Outputs of a model for a batch, in the order of `output_names`."""

SIZE = 32
"""Texts of a batch."""


def tasks_of(checkpoint: Path | str) -> list[str]:
    """GLUE's tasks among those that the card of a checkpoint has results of; empty without a card."""
    card = Path(checkpoint) / "README.md"
    if not card.is_file():
        return []
    try:
        results = ModelCard.load(card).data.eval_results or []
    except (ValueError, KeyError, TypeError, AttributeError):  # somebody's own card
        return []
    return list(dict.fromkeys(r.dataset_config for r in results if r.dataset_config in GLUE_TASKS))


def check_fits(model: Exportable, task: Task) -> None:
    """Raises UserError where a checkpoint cannot have been fine-tuned on a task."""
    if SENTENCE_EMBEDDING in output_names(model):
        if len(task.text_columns) != 2 or task.num_labels != 1:
            raise UserError(f"{task.name}: a sentence encoder is compared on pairs of texts with numbers as labels")
        return
    head, config = create_head(task, None, 0), model.config
    if auto_class(type(model).__name__) != head.auto_class.__name__:
        raise UserError(f"{task.name}: a {type(model).__name__} was not fine-tuned on it, it is {task.task_type}")
    expected = head.config().get("num_labels", config.num_labels)
    if config.num_labels != expected:
        raise UserError(f"{task.name}: it has {expected} labels, and the checkpoint {config.num_labels}")


def score(model: Exportable, tokenizer: PreTrainedTokenizerBase, run: Run, task: Task) -> dict[str, float]:
    """Metrics of a task in percent, "mrpc_f1_percent", of whatever runs the model."""
    metrics = {
        split: _score(model, tokenizer, run, task, dataset, split) for split, dataset in task.validation.items()
    }
    return {f"{task.name}_{name}_percent": 100 * value for name, value in by_split(metrics).items()}


def _score(model, tokenizer, run: Run, task: Task, dataset: Dataset, split: str) -> dict[str, float]:
    length = model.config.max_position_embeddings
    if SENTENCE_EMBEDDING in output_names(model):
        first, second = (_embed(tokenizer, run, dataset[column][:], length) for column in task.text_columns)
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        labels = np.asarray(dataset[task.label_column][:], float)
        return correlations((first * second).sum(1) / np.maximum(norms, 1e-12), labels)
    if encodes_alone(model):
        tokenizer = with_token_types(tokenizer)
    head = create_head(task, tokenizer, length)
    features = head.features(dataset, split)
    features = features.select(np.argsort(features["length"][:], kind="stable"))  # little padding
    types = features["token_type_ids"][:] if "token_type_ids" in features.column_names else None
    parts = list(_run(run, features["input_ids"][:], types, tokenizer.pad_token_id or 0))
    outputs = [_joined([part[index] for part in parts]) for index in range(len(parts[0]))]
    return head.score(outputs[0] if len(outputs) == 1 else tuple(outputs), features, dataset)  # type: ignore[arg-type]


def _embed(tokenizer, run: Run, texts: list[str], length: int) -> np.ndarray:
    encoded = tokenizer(texts, truncation=True, max_length=length, return_attention_mask=False)
    order = np.argsort([len(ids) for ids in encoded["input_ids"]], kind="stable")
    ids = [encoded["input_ids"][index] for index in order]
    embeddings = np.concatenate([outputs[-1] for outputs in _run(run, ids, None, tokenizer.pad_token_id or 0)])
    return embeddings[np.argsort(order)]


def _run(run: Run, ids: Sequence, types: Sequence | None, pad: int) -> Iterator[Sequence[np.ndarray]]:
    """Outputs of one batch after the other."""
    for start in range(0, len(ids), SIZE):
        rows = slice(start, start + SIZE)
        longest = max(2, *map(len, ids[rows]))
        shape = len(ids[rows]), longest
        batch = {
            "input_ids": np.full(shape, pad, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, own in enumerate(ids[rows]):
            batch["input_ids"][row, : len(own)] = own
            batch["attention_mask"][row, : len(own)] = 1
            if types is not None:
                batch["token_type_ids"][row, : len(own)] = types[start + row]
        yield run(batch)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Outputs of all batches in one array; those that are given for each token are as long as the longest."""
    shape = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
    padded = [np.pad(p, [(0, 0), *((0, most - own) for most, own in zip(shape, p.shape[1:]))], constant_values=-1e4)
              for p in parts]  # fmt: skip
    return np.concatenate(padded)
