"""What an encoder knows of sentences without fine-tuning: the cosine of two of them against people's judgement."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModel

import flexibert  # noqa: F401  # registers the encoders with the Auto classes

from ..artifacts.sentence_files import read_state_map
from ..data.sources import quiet
from ..data.tasks import Task
from ..data.tokenizer import load_tokenizer
from ..errors import UserError, one_line
from ..files import check_whole
from ..metrics import correlations
from ..training.hidden_states import pool


class SentenceEncoder:
    """The encoder of any checkpoint with mean pooling (Sentence-BERT, arXiv 1908.10084) and, where the checkpoint has
    one for sentence-transformers, a linear map behind it."""

    def __init__(self, source: str, device: torch.device):
        """source: Folder or Hub id. Raises UserError where there is no encoder, or not all of its weights."""
        path = Path(source).expanduser()
        if path.exists() and not (path / "config.json").is_file():
            raise UserError(f"{source} is no folder of a model: it has no config.json")
        check_whole(path)
        try:
            with quiet():
                model, loading = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        except Exception as error:  # whatever transformers, the Hub's client and parsers of weights let through
            raise UserError(f"{source} cannot be loaded: {one_line(error)}") from None
        lost = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
        if lost:
            raise UserError(f"{source} lacks weights of the encoder: {lost[0]} and {len(lost) - 1} more")
        self.model = model.eval().to(device)
        self.tokenizer = load_tokenizer(source)
        state_map = read_state_map(path)
        self.map = state_map and (state_map["weight"].to(device), state_map["bias"].to(device))

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], max_length: int) -> torch.Tensor:
        """(texts, D)."""
        encoded = self.tokenizer(list(texts), truncation=True, max_length=max_length, padding=False)
        order = np.argsort([len(ids) for ids in encoded["input_ids"]], kind="stable")  # little padding
        parts = []
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            some = {name: [values[index] for index in rows] for name, values in encoded.items()}
            batch = self.tokenizer.pad(some, padding=True, return_tensors="pt").to(self.model.device)
            states = self.model(**batch).last_hidden_state.float()
            parts.append(pool(states, batch["attention_mask"]))
        pooled = torch.cat(parts)[np.argsort(order)]
        return pooled if self.map is None else torch.nn.functional.linear(pooled, *self.map)


def zero_shot(encoder: SentenceEncoder, task: Task, max_length: int) -> dict[str, dict[str, float]]:
    """Pearson's and Spearman's correlation of the cosine of two texts with their label, by validation split.

    Raises:
        UserError: The task has no pairs of texts with numbers as labels.
    """
    if len(task.text_columns) != 2 or task.num_labels != 1:
        raise UserError(f"{task.name}: expected pairs of texts with a number as label, as in stsb")

    def score(dataset: Dataset) -> dict[str, float]:
        first, second = (encoder.embed(dataset[column], max_length) for column in task.text_columns)
        cosines = torch.nn.functional.cosine_similarity(first, second, dim=-1).cpu().numpy()
        if not np.isfinite(cosines).all():
            raise UserError(f"{task.name}: the encoder's states are not finite")
        return correlations(cosines, np.asarray(dataset[task.label_column], float))

    return {split: score(dataset) for split, dataset in task.validation.items()}
