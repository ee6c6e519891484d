"""What streaming a corpus costs beside mapping it into memory: tokens per second, and memory.

    python benchmarks/streaming.py --gigabytes 2 --memory-gigabytes 1 [--steps 300] [--architecture bert-mini]

Writes a corpus of random words whose frequencies fall as in text (Zipf's law) into files of 64 MB, and pretrains the
same encoder on it for the same steps, mapped and streamed, each in a process of its own. The streamed one may
not take more memory than is said beyond what it has once the libraries are loaded (RLIMIT_DATA). Tokens per second are
those of the training, with what streaming reads meanwhile; the median of `--rounds`, in which the two take turns. The
results are one JSON object: `ratio` is streamed by mapped, `own_memory_mib` is all memory that is a process's own.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate import Accelerator

from flexibert import FlexiBertForMaskedLM, named_config
from search.data.block_stream import BlockStream
from search.data.blocks import tokenized_blocks
from search.data.corpus import load_corpus, stream_corpus
from search.data.tokenizer import load_tokenizer, vocabulary_size
from search.training.pretraining import PretrainingBudget, pretrain


SHARD_BYTES = 64 * 2**20
WORDS = 30_000
WORDS_PER_DOCUMENT = 400


def write_corpus(folder: Path, size: int, shard_size: int = SHARD_BYTES) -> None:
    """Files of documents in lines of JSON, with so many bytes together."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(WORDS)])
    weights = 1 / np.arange(10, WORDS + 10)
    weights /= weights.sum()
    written = shard = 0
    while written < size:
        with open(folder / f"{shard:05}.jsonl", "w", encoding="utf-8") as file:
            end = min(size, written + shard_size)
            while written < end:
                drawn = rng.choice(words, (64, WORDS_PER_DOCUMENT), p=weights)
                for document in drawn:
                    written += file.write(json.dumps({"text": " ".join(document)}) + "\n")
        shard += 1


def measure(way: str, folder: Path, options, results) -> None:
    """In a process of its own: tokens per second, and the most memory that was in use."""
    torch.set_num_threads(options.threads)
    cache = folder.with_name("cache")
    if way == "mapped":
        corpus = load_corpus(str(folder))
    else:
        if options.memory_gigabytes:
            limit = psutil.Process().memory_info().data + int(options.memory_gigabytes * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        corpus = stream_corpus(str(folder))
    tokenizer = load_tokenizer(str(folder.with_name("tokenizer")))
    length = options.sequence_length
    blocks = (
        tokenized_blocks(corpus.train, tokenizer, length, cache)
        if corpus.stream is None
        else BlockStream(corpus.stream, tokenizer, length, "benchmark")
    )
    validation = tokenized_blocks(corpus.validation, tokenizer, length, cache)[:32]
    config = named_config(
        options.architecture, vocab_size=vocabulary_size(tokenizer), max_position_embeddings=max(512, length)
    )
    torch.manual_seed(0)
    budget = PretrainingBudget(steps=options.steps, batch_size=options.batch_size, sequence_length=length)
    accelerator = Accelerator(mixed_precision=options.precision)
    result = pretrain(FlexiBertForMaskedLM(config), blocks, validation, tokenizer, budget, 0, accelerator)
    used = psutil.Process().memory_full_info()
    results.put({"tokens_per_second": result.tokens_per_second, "own_memory_mib": used.uss / 2**20})


def run(options, folder: Path) -> dict:
    """Both ways in turns."""
    text = folder / "text"
    write_corpus(text, int(options.gigabytes * 2**30), options.shard_bytes)
    tokenizer = load_tokenizer(None, stream_corpus(str(text)), folder / "cache", options.vocabulary)
    tokenizer.save_pretrained(folder / "tokenizer")
    context = multiprocessing.get_context("spawn")
    rows: dict[str, list[dict]] = {"mapped": [], "streamed": []}
    for _ in range(options.rounds):
        for way, found in rows.items():
            results = context.Queue()
            process = context.Process(target=measure, args=(way, text, options, results))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{way}: ended with status {process.exitcode}")
            found.append(results.get())
    medians = {
        way: {name: statistics.median(row[name] for row in found) for name in found[0]} for way, found in rows.items()
    }
    ratio = medians["streamed"]["tokens_per_second"] / medians["mapped"]["tokens_per_second"]
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "folder")}
    return {"settings": settings, **medians, "ratio": ratio}


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--memory-gigabytes", type=float, default=1.0, help="of the streamed one; 0 for no limit")
    parser.add_argument("--architecture", default="bert-mini")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--precision", default="no")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--folder", type=Path, help="for the corpus; by default a temporary one")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = run(options, Path(folder))
    text = json.dumps(found, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
