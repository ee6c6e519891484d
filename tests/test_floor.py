"""An encoder that was not pretrained scores what guessing does, one that was scores more: the pipeline learns."""

import pytest
from accelerate import Accelerator
from accelerate.utils import set_seed
from conftest import layer, op

from flexibert import FlexiBertForMaskedLM
from search.corpus import load_corpus, load_tokenizer, tokenized_blocks
from search.evaluator import build_config
from search.finetuning import FinetuningBudget, finetune
from search.pretraining import PretrainingBudget, pretrain
from search.tasks import load_tasks


pytestmark = pytest.mark.slow
LAYERS = [layer(128, op("self_attention", 2), feed_forward=(256,))] * 2
PRETRAINING = PretrainingBudget(steps=600, batch_size=32, sequence_length=64, learning_rate=2e-3)
FINETUNING = FinetuningBudget(epochs=3, learning_rate=5e-4, max_length=64)


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


@pytest.fixture(scope="module")
def encoders(corpus, tmp_path_factory):
    """Tokenizer, and folders of the same encoder with its first weights and after pretraining."""
    folder = tmp_path_factory.mktemp("floor")
    tokenizer = load_tokenizer(None, corpus, folder, vocab_size=4096)
    splits = [tokenized_blocks(split, tokenizer, 64, folder) for split in (corpus.train, corpus.validation)]
    set_seed(0)
    model = FlexiBertForMaskedLM(build_config(LAYERS, tokenizer, 64, {}))
    model.save_pretrained(folder / "first weights")
    pretrain(model, *splits, tokenizer, PRETRAINING, seed=0, accelerator=Accelerator())
    model.save_pretrained(folder / "pretrained")
    return tokenizer, folder / "first weights", folder / "pretrained"


def test_word_order_needs_pretraining(corpus, encoders):
    tokenizer, first_weights, pretrained = encoders
    (task,) = load_tasks(["word_order"], corpus)
    floor, score = (finetune(model, task, tokenizer, FINETUNING).score for model in (first_weights, pretrained))
    print(f"word_order: {floor:.3f} from first weights, {score:.3f} pretrained")
    assert 0.45 < floor < 0.55  # 2,000 examples, half of them in order
    assert score > floor + 0.05


def test_cola_is_not_learnt_without_pretraining(shared, encoders):
    tokenizer, first_weights, _ = encoders
    (task,) = load_tasks(["cola"], None, str(shared / "data"))
    matthews = finetune(first_weights, task, tokenizer, FINETUNING).score
    print(f"cola: {matthews:.3f} from first weights")
    assert abs(matthews) < 0.1  # its standard deviation for guesses is 0.03
