"""A million random mutations in AutoBERT-Zero's space: is every architecture legal, and does a sample of them train?

    python benchmarks/graph_mutations.py --output benchmarks/results/graph_mutations.json

Walks from plain BERT through the recipe's space, once with free graphs and once with the softmax tail. Every mutant is
parsed from its printed form and must be a canonical member of the space. At equal distances one is built at small
width, with weights up to five times their initial size, and takes a forward and a backward pass on a padded batch.
"""

import argparse
import dataclasses
import json
import random
import time
from pathlib import Path

import torch

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, LayerSpec
from flexibert.attention_graph import GRAPHS, canonical, parse_graph
from search.recipe import load_recipe
from search.space.search_space import SearchSpace


def walk(space: SearchSpace, mutations: int, models: int, seed: int) -> dict:
    """Takes so many steps, trying so many models on the way; counts what it finds."""
    rng = random.Random(seed)
    values = plain_bert(space)
    counts = dict.fromkeys(("illegal", "different_graphs", "models", "models_with_nan"), 0)
    seen, seconds = set(), 0.0
    for step in range(1, mutations + 1):
        started = time.process_time()
        values = space.mutate_values(values, rng)
        seconds += time.process_time() - started
        for graph in space.graphs(values).values():
            if hash(graph) not in seen:
                seen.add(hash(graph))
                counts["illegal"] += not is_legal(graph, space)
        if step % (mutations // models) == 0:
            layers = space.build(values)
            counts["illegal"] += layers not in space
            counts["models"] += 1
            counts["models_with_nan"] += not trains(layers, step)
    counts["different_graphs"] = len(seen)
    return {"mutations": mutations, **counts, "mutation_ms": 1e3 * seconds / mutations}


def plain_bert(space: SearchSpace) -> dict:
    """Parameter values of scaled dot product attention in every layer."""
    [hidden_size], [num_heads], [feed_forward] = space.hidden_size, space.num_heads, space.feed_forward_size
    attention = {"op": "attention_graph", "num_heads": num_heads, "nodes": GRAPHS["scaled-dot-product"]}
    layer = {"hidden_size": hidden_size, "operations": [attention], "feed_forward": [feed_forward]}
    return space.parameters([LayerSpec.from_dict(layer)] * max(space.num_layers))


def is_legal(graph, space: SearchSpace) -> bool:
    parsed = parse_graph(graph.lines)
    bounded = len(parsed.nodes) <= space.graph_space.max_nodes
    return bounded and parsed.mixes_tokens() and canonical(parsed) == graph and parsed in space.graph_space


def trains(layers, seed: int) -> bool:
    """Whether loss, logits and gradients of a padded batch are finite."""
    torch.manual_seed(seed)
    small = [dataclasses.replace(layer, hidden_size=16, feed_forward=(24,)) for layer in layers]
    model = FlexiBertForMaskedLM(FlexiBertConfig(layers=small, vocab_size=50, max_position_embeddings=32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 4 * torch.rand(()))
    ids = torch.randint(1, 50, (3, 24))
    mask = torch.ones_like(ids)
    mask[1, 15:] = mask[2, 1:] = 0
    output = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100))
    output.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return all(x.isfinite().all() for x in (output.loss, output.logits, *gradients))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="autobert_zero_tiny")
    parser.add_argument("--mutations", type=int, default=1_000_000, help="half of them with each kind of graph")
    parser.add_argument("--models", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    data = load_recipe(arguments.recipe).space.to_dict()
    results = {}
    for mode in ("tail", "free"):
        operations = [
            {**op, "graph": {**op["graph"], "mode": mode}} if "graph" in op else op for op in data["operations"]
        ]
        space = SearchSpace.from_dict({**data, "operations": operations})
        results[mode] = walk(space, arguments.mutations // 2, arguments.models // 2, arguments.seed)
        print(mode, results[mode], flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
