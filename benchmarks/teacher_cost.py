"""What a teacher costs: reading the text once, disk, and a step against one of masked language modelling.

    python benchmarks/teacher_cost.py --teacher sentence-transformers/all-MiniLM-L6-v2 \
        --corpus Salesforce/wikitext --corpus-config wikitext-2-raw-v1

Both ways train the same architecture with the same tokenizer and as many tokens a step; they take turns. Times are of
the processor, all threads, so what else the machine does counts little; a step's is the median of those of ten.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import set_seed

from flexibert import FlexiBertForMaskedLM, named_config
from search.data.blocks import tokenized_blocks
from search.data.corpus import load_corpus
from search.data.passages import passages
from search.data.tokenizer import load_tokenizer
from search.files import replace_file
from search.training.memory import keep_freed_memory
from search.training.pretraining import PretrainingBudget, pretrain
from search.training.teacher import Teacher, taught_text


GROUP = 10
"""Steps between two looks at the clock."""


def tokens_per_second(
    architecture: str, text, tokenizer, budget: PretrainingBudget, accelerator: Accelerator
) -> float:
    """Of processor time, padding not counted, from the median group of steps without the first."""
    set_seed(0)
    config = named_config(architecture, vocab_size=len(tokenizer), max_position_embeddings=budget.sequence_length)
    rates, last = [], time.process_time()

    def look(done: int, loss: float, rate: float) -> None:
        """`rate` is by the clock on the wall, which is made one of the processor."""
        nonlocal last, wall
        rates.append(rate * (time.perf_counter() - wall) / (time.process_time() - last))
        last, wall = time.process_time(), time.perf_counter()

    wall = time.perf_counter()
    pretrain(FlexiBertForMaskedLM(config), text, text, tokenizer, budget, 0, accelerator, progress=look)
    return statistics.median(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--corpus")
    parser.add_argument("--corpus-config")
    parser.add_argument("--architecture", default="bert-mini")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "teacher_cost.json")
    options = parser.parse_args()
    accelerator = Accelerator(cpu=True, mixed_precision=options.precision)
    keep_freed_memory()
    budget = PretrainingBudget(steps=options.steps, batch_size=options.batch_size, sequence_length=128)
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch)
        corpus = load_corpus(options.corpus, options.corpus_config)
        teacher, tokenizer = Teacher(options.teacher), load_tokenizer(options.teacher)
        text = passages(corpus.train, tokenizer, 128, cache).head(budget.tokens)
        started = time.process_time()
        taught = taught_text(text, teacher, tokenizer.pad_token_id, accelerator, cache, 1e3, print, lambda *_: None)
        reading = time.process_time() - started
        blocks = tokenized_blocks(corpus.train, tokenizer, 128, cache)
        ways = {"masked language modelling": blocks, "teacher": taught}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, source in ways.items():
                rates[way].append(tokens_per_second(options.architecture, source, tokenizer, budget, accelerator))
        stored = sum(path.stat().st_size for path in taught.states.folder.iterdir())
    medians = {way: statistics.median(values) for way, values in rates.items()}
    result = {
        "teacher": teacher.name,
        "corpus": corpus.name,
        "architecture": options.architecture,
        "precision": options.precision,
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "budget": dataclasses.asdict(budget),
        "tokens_read": taught.size,
        "tokens_read_per_processor_second": taught.size / reading,
        "bytes_per_token": stored / taught.size,
        "trained_tokens_per_processor_second": medians,
        "rounds": rates,
        "cost_of_a_token_relative_to_masked_language_modelling": medians["masked language modelling"]
        / medians["teacher"],
    }
    print(json.dumps(result, indent=2))
    replace_file(options.output, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
