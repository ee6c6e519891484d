"""What an encoder knows of sentences without fine-tuning: the cosine of two of them against people's judgement."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

import flexibert  # noqa: F401  # registers the encoders with the Auto classes

from ..data.sources import one_line, quiet
from ..data.tasks import Task
from ..errors import UserError
from ..metrics import correlations
from ..training.hidden_states import pool


def load_encoder(source: str, device: torch.device) -> PreTrainedModel:
    """The encoder of any checkpoint without its head, in float32; UserError where there is none."""
    path = Path(source).expanduser()
    if path.exists() and not (path / "config.json").is_file():
        raise UserError(f"{source} is no folder of a model: it has no config.json")
    try:
        with quiet():
            model, loading = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # whatever transformers, the Hub's client and parsers of weights let through
        raise UserError(f"{source} cannot be loaded: {one_line(error)}") from None
    lost = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
    if lost:
        raise UserError(f"{source} lacks weights of the encoder: {lost[0]} and {len(lost) - 1} more")
    return model.eval().to(device)


@torch.inference_mode()
def embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> torch.Tensor:
    """The mean of the last hidden states over a text's tokens (Sentence-BERT, arXiv 1908.10084): (texts, D)."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False)
    order = np.argsort([len(ids) for ids in encoded["input_ids"]], kind="stable")  # little padding
    parts = []
    for start in range(0, len(order), 64):
        batch = {name: [values[index] for index in order[start : start + 64]] for name, values in encoded.items()}
        batch = tokenizer.pad(batch, padding=True, return_tensors="pt").to(model.device)
        states = model(**batch).last_hidden_state.float()
        parts.append(pool(states, batch["attention_mask"]))
    return torch.cat(parts)[np.argsort(order)]


def zero_shot(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int
) -> dict[str, dict[str, float]]:
    """Pearson's and Spearman's correlation of the cosine of two texts with their label, by validation split.

    Raises:
        UserError: The task has no pairs of texts with numbers as labels.
    """
    if len(task.text_columns) != 2 or task.num_labels != 1:
        raise UserError(f"{task.name}: expected pairs of texts with a number as label, as in stsb")

    def score(dataset: Dataset) -> dict[str, float]:
        first, second = (embed(model, tokenizer, dataset[column], max_length) for column in task.text_columns)
        cosines = torch.nn.functional.cosine_similarity(first, second, dim=-1).cpu().numpy()
        if not np.isfinite(cosines).all():
            raise UserError(f"{task.name}: the encoder's states are not finite")
        return correlations(cosines, np.asarray(dataset[task.label_column], float))

    return {split: score(dataset) for split, dataset in task.validation.items()}
