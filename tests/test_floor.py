"""An encoder that was not pretrained scores what guessing does, one that was scores more: the pipeline learns."""

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.utils import set_seed
from conftest import layer, op
from datasets import Dataset
from transformers import BertTokenizer

from flexibert import FlexiBertForMaskedLM
from search.data.tasks import Task, load_tasks
from search.evaluation.model_config import build_config
from search.training.finetuning import FinetuningBudget, finetune
from search.training.pretraining import PretrainingBudget, pretrain


pytestmark = pytest.mark.slow
WORDS = 40
LAYERS = [layer(32, op("self_attention", 2), feed_forward=(64,))] * 2


@pytest.fixture(scope="module")
def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(WORDS))]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


class Language:
    """Every word has one that always follows it, which only many sentences tell."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        order = self.rng.permutation(WORDS)
        self.follows = np.empty(WORDS, int)
        self.follows[order] = np.roll(order, -1)

    def sentence(self, length: int) -> list[int]:
        words = [self.rng.integers(WORDS)]
        while len(words) < length:
            words.append(self.follows[words[-1]])
        return words

    def blocks(self, count: int) -> np.ndarray:
        return np.array([[2, *(5 + word for word in self.sentence(14)), 3] for _ in range(count)])

    def examples(self, count: int) -> Dataset:
        """Sentences in order (1) and shuffled (0)."""
        rows = []
        for label in np.arange(count) % 2:
            words = self.sentence(10)
            words = words if label else self.rng.permutation(words)
            rows.append({"text": " ".join(f"w{word}" for word in words), "label": int(label)})
        return Dataset.from_list(rows)


def test_pretraining_is_what_makes_the_difference(tokenizer, tmp_path):
    language = Language()
    set_seed(0)
    model = FlexiBertForMaskedLM(build_config(LAYERS, tokenizer, 16, {}))
    model.save_pretrained(tmp_path / "first_weights")
    blocks = language.blocks(2000)
    budget = PretrainingBudget(steps=800, batch_size=32, sequence_length=16, learning_rate=5e-3)
    pretrain(model, blocks, blocks[:64], tokenizer, budget, seed=0, accelerator=Accelerator())
    model.save_pretrained(tmp_path / "pretrained")

    validation = {"validation": language.examples(400)}
    task = Task("order", language.examples(200), validation, ("text",), "label", 2, ("shuffled", "in_order"), "cola")
    budget = FinetuningBudget(epochs=8, batch_size=16, learning_rate=1e-3, max_length=16)
    floor, score = (
        finetune(tmp_path / name, task, tokenizer, budget).score for name in ("first_weights", "pretrained")
    )
    assert abs(floor) < 0.15  # guesses have a standard deviation of 0.05
    assert score > floor + 0.15


def test_cola_is_not_learnt_without_pretraining(shared, tokenizer, tmp_path):
    tokenizer = tokenizer.from_pretrained(shared / "data" / "tokenizers" / "bert-base-uncased")
    set_seed(0)
    FlexiBertForMaskedLM(build_config(LAYERS, tokenizer, 64, {})).save_pretrained(tmp_path)
    (task,) = load_tasks(["cola"], None, str(shared / "data"))
    budget = FinetuningBudget(epochs=1, learning_rate=5e-4, max_length=64)
    assert abs(finetune(tmp_path, task, tokenizer, budget).score) < 0.1  # guesses: 0.03
