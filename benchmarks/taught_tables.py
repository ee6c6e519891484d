"""Tables of really trained encoders for `search_policies.py`: random members of a space, each taught for some seconds.

    python benchmarks/taught_tables.py --table taught_widths --teacher sentence-transformers/all-MiniLM-L6-v2 \
        --corpus train-00000-of-00041.parquet --output taught_widths.json

CORPUS is a parquet file with a column text, as wikimedia/wikipedia on the Hub has them in 20231101.en.

Every encoder learns to say the teacher's last states of 32 tokens of Wikipedia through a linear map (one minus cosine,
for each token and for the mean over tokens), all of them from the same frozen embeddings, the first principal
components of the teacher's. Text, order and steps are the same for all; seeds of the first weights differ. The score
is 100 times the mean cosine on held-out text. The first encoders are trained a second time with other first weights,
which tells the noise: read_table takes the mean of both.

The file is a list of {"layers": layer specs, "scores": {"taught": points}, "seconds": processor time}; a stopped run
goes on where its file ends.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flexibert import FlexiBertConfig, FlexiBertModel  # noqa: E402
from flexibert.spec import Architecture  # noqa: E402
from search.errors import UserError  # noqa: E402
from search.files import replace_file  # noqa: E402
from search.space.search_space import SearchSpace  # noqa: E402


OPERATIONS = [
    {"op": "self_attention"},
    {"op": "self_attention", "similarity": "weighted_multiplicative"},
    {"op": "linear_transform", "transform": "fourier"},
    {"op": "linear_transform", "transform": "cosine"},
    {"op": "dynamic_convolution", "kernel_size": 5},
    {"op": "dynamic_convolution", "kernel_size": 9},
]

SPACES = {
    "taught_widths": {
        "num_layers": [2, 3, 4],
        "hidden_size": [32, 64, 128],
        "num_heads": [2, 4],
        "operations": OPERATIONS,
        "feed_forward_size": [64, 128, 256],
        "feed_forward_depth": [1, 2],
    },
    "taught_layers": {
        "num_layers": [2, 4],
        "hidden_size": [48, 96],
        "num_heads": [2, 4],
        "operations": OPERATIONS,
        "feed_forward_size": [96, 192],
        "feed_forward_depth": [1, 3],
        "mixed_feed_forward": True,
    },
    "taught_heads": {
        "num_layers": [1, 2, 3],
        "hidden_size": [48, 96],
        "num_heads": [2, 3],
        "operations": [
            *OPERATIONS[:3],
            {"op": "lightweight_convolution", "kernel_size": 3},
            {"op": "lightweight_convolution", "kernel_size": 15},
        ],
        "feed_forward_size": [96, 384],
        "mixed_heads": True,
    },
}

LENGTH = 32
BATCH_SIZE = 12
STEPS = {"taught_widths": 80, "taught_layers": 40, "taught_heads": 50}
VALIDATION_SEQUENCES = 96
LEARNING_RATE = 3e-3
EMBEDDING_SIZE = 64
TAUGHT_TWICE = 12


class Lessons:
    """Embeddings and a teacher's states of (N, 32) tokens, validation last."""

    @torch.no_grad()
    def __init__(self, teacher: str, corpus: Path, sequences: int):
        tokenizer = AutoTokenizer.from_pretrained(teacher)
        model = AutoModel.from_pretrained(teacher, dtype=torch.float32).eval()
        text = pandas.read_parquet(corpus)["text"][:400]
        rows = [tokenizer(t, truncation=True, max_length=129, padding=False)["input_ids"][1:-1] for t in text]
        ids = np.concatenate(rows)[: sequences * LENGTH]
        ids = torch.from_numpy(ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH))
        if len(ids) < sequences:
            raise UserError(f"{corpus}: {len(ids)} sequences of {LENGTH} tokens, expected at least {sequences}")
        ids = ids[torch.randperm(sequences, generator=torch.Generator().manual_seed(0))]
        self.states = torch.cat([model(input_ids=chunk).last_hidden_state for chunk in ids.split(64)])
        table = model.get_input_embeddings().weight
        centred = table - table.mean(0)
        _, axes = torch.linalg.eigh(centred.T @ centred)
        components = centred @ axes[:, -EMBEDDING_SIZE:]
        self.embeddings = 0.02 * F.embedding(ids, components / components.std())


def teach(layers: Architecture, lessons: Lessons, steps: int, seed: int) -> float:
    """The score of an encoder after some steps, in points."""
    torch.manual_seed(seed)
    config = FlexiBertConfig(
        layers=layers, vocab_size=2, embedding_size=EMBEDDING_SIZE, max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = FlexiBertModel(config, add_pooling_layer=False)
    to_teacher = torch.nn.Linear(config.hidden_size, lessons.states.shape[-1])

    def likeness(part: slice) -> torch.Tensor:
        said = to_teacher(model(inputs_embeds=lessons.embeddings[part]).last_hidden_state)
        meant = lessons.states[part]
        tokens = F.cosine_similarity(said, meant, dim=-1).mean()
        return (tokens + F.cosine_similarity(said.mean(1), meant.mean(1), dim=-1).mean()) / 2

    optimizer = torch.optim.AdamW([*model.parameters(), *to_teacher.parameters()], LEARNING_RATE, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min((step + 1) / 8, (steps - step) / (steps - 8))
        optimizer.zero_grad()
        (1 - likeness(slice(step * BATCH_SIZE, (step + 1) * BATCH_SIZE))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return 100 * likeness(slice(steps * BATCH_SIZE, None)).item()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", choices=SPACES, required=True)
    parser.add_argument("--teacher", required=True, help="folder or Hub id")
    parser.add_argument("--corpus", type=Path, required=True, help="parquet file with a column text")
    parser.add_argument("--encoders", type=int, default=240)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    steps, space = STEPS[options.table], SearchSpace.from_dict(SPACES[options.table])
    rng = random.Random(0)
    members = list(dict.fromkeys(space.sample(rng) for _ in range(2 * options.encoders)))[: options.encoders]
    members += members[:TAUGHT_TWICE]
    try:
        lessons = Lessons(options.teacher, options.corpus, steps * BATCH_SIZE + VALIDATION_SEQUENCES)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    items = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else []
    for seed, layers in list(enumerate(members))[len(items) :]:
        started = time.process_time()
        score = teach(layers, lessons, steps, seed)
        seconds = round(time.process_time() - started, 2)
        specs = [layer.to_dict() for layer in layers]
        items.append({"layers": specs, "scores": {"taught": round(score, 3)}, "seconds": seconds})
        if len(items) % 20 == 0 or len(items) == len(members):
            replace_file(options.output, json.dumps(items) + "\n")
            print(f"{len(items)} of {len(members)}, the last one {score:.2f} points in {seconds} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
