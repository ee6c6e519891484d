"""Is a super-network true to its members, does it rank them as training alone does, and which policy searches it best?

    python -m search supernet --recipe autobert_zero_tiny --corpus ... --output NET
    python benchmarks/supernet.py slices --output supernet_slices.json
    python benchmarks/supernet.py ranking --supernet NET --corpus ... --output supernet_ranking.json
    python benchmarks/supernet.py policies --supernet NET --corpus ... --output supernet_policies.json

`slices`: largest difference between the logits of members within the super-network and of the extracted models, for
every operation, after all weights, norms included, were made random.
`ranking`: validation losses of random members with inherited weights, after a brief training from there, and after
training alone from random weights; Kendall's tau between them, with a bootstrap interval over members.
`policies`: searches with minus the inherited validation loss as the score; paired, one seed is one stream of random
numbers for all policies.

Seconds are processor time, with one thread if OMP_NUM_THREADS=1. What is done is kept in the output file; the same
command goes on from there. Results and what they mean: `benchmarks/results/README.md`.
"""

import argparse
import dataclasses
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import optuna
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from scipy.stats import kendalltau
from transformers import AutoTokenizer


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flexibert import FlexiBertForMaskedLM  # noqa: E402
from flexibert.spec import layers_to_dicts  # noqa: E402
from search.data.blocks import tokenized_blocks
from search.data.corpus import load_corpus
from search.evaluation.member_sampling import random_member  # noqa: E402
from search.evaluation.supernet import SuperNetwork, load_supernet  # noqa: E402
from search.files import replace_file  # noqa: E402
from search.samplers import create_sampler  # noqa: E402
from search.space.search_space import Architecture, SearchSpace, operation_label  # noqa: E402
from search.training.pretraining import PretrainingBudget, pretrain  # noqa: E402


MEMBERS_SEED = 1
"""Other than that of the training: measured members are not those that were trained last."""


# --- slices -------------------------------------------------------------------------------------------------------

OPERATIONS = [
    {"op": "self_attention"},
    {"op": "self_attention", "similarity": "weighted_multiplicative"},
    *({"op": "linear_transform", "transform": name, "source": "layer"} for name in ("fourier", "cosine")),
    *({"op": "linear_transform", "transform": name, "relative_attention": True} for name in ("fourier", "cosine")),
    *({"op": "dynamic_convolution", "kernel_size": size} for size in (5, 9)),
    *({"op": "dynamic_convolution", "kernel_size": size, "mixed_attention": True} for size in (5, 9)),
    *({"op": "dynamic_convolution", "kernel_size": size, "source": "head"} for size in (5, 9)),
    {"op": "lightweight_convolution", "kernel_size": 9, "gated": False},
    *({"op": "lightweight_convolution", "kernel_size": size} for size in (3, 5, 7, 9, 15, 31, 65)),
    {"op": "attention_graph", "graph": {"mode": "free", "max_nodes": 12}},
]
SPACE = {
    "num_layers": [2, 4],
    "hidden_size": [64, 128],
    "num_heads": [2, 4],
    "operations": OPERATIONS,
    "feed_forward_size": [128, 256],
    "feed_forward_depth": [1, 3],
    "mixed_feed_forward": True,
}


def slices(options) -> dict:
    """Largest absolute difference of logits (8, 64, 1000) over padded batches, per operation."""
    space = SearchSpace.from_dict(SPACE)
    torch.manual_seed(0)
    network = SuperNetwork(space, {"vocab_size": 1000, "position_embedding_type": "relative_key"}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.randint(1, 1000, (8, 64))
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(64) < torch.arange(8, 72, 8)[:, None]).long()}
    differences = {}
    for label in map(operation_label, OPERATIONS):
        restricted = space.restrict({f"layer{index}.operation": [label] for index in range(4)})
        differences[label] = 0.0
        for seed in range(options.members):
            layers = restricted.sample(random.Random(seed))
            with torch.no_grad():
                apart = network.extract(layers).eval()(**inputs).logits - network(layers, **inputs).logits
            differences[label] = max(differences[label], apart.abs().max().item())
    print(f"largest difference {max(differences.values()):g} over {len(differences)} operations")
    return {"members_per_operation": options.members, "largest_difference": differences}


# --- text ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Lab:
    """A trained super-network, the text that its members are trained and measured on, and how they are trained."""

    network: SuperNetwork
    tokenizer: object
    blocks: np.ndarray
    validation_blocks: np.ndarray
    budget: PretrainingBudget
    accelerator: Accelerator

    def loss(self, model, count: int = 256) -> float:
        """Validation loss in nats on the first so many blocks."""
        budget = dataclasses.replace(self.budget, steps=0)
        data = self.blocks, self.validation_blocks[:count], self.tokenizer
        return pretrain(model, *data, budget, seed=0, accelerator=self.accelerator).validation_loss

    def train(self, model: FlexiBertForMaskedLM, steps: int, learning_rate: float) -> float:
        """Validation loss in nats after so many steps."""
        budget = dataclasses.replace(self.budget, steps=steps, learning_rate=learning_rate, checkpoint_steps=0)
        data = self.blocks, self.validation_blocks, self.tokenizer
        return pretrain(model, *data, budget, seed=0, accelerator=self.accelerator).validation_loss


def open_lab(options) -> Lab:
    network, description = load_supernet(options.supernet)
    budget = {name: description.training[name] for name in ("batch_size", "sequence_length", "learning_rate")}
    budget = PretrainingBudget(**budget)
    tokenizer = AutoTokenizer.from_pretrained(options.supernet)
    corpus = load_corpus(options.corpus, options.corpus_config)
    caches = options.supernet.parent / ".cache"
    blocks, validation_blocks = (
        tokenized_blocks(text, tokenizer, budget.sequence_length, caches) for text in (corpus.train, corpus.validation)
    )
    return Lab(network, tokenizer, blocks, validation_blocks, budget, Accelerator(cpu=True))


def timed(function: Callable[..., float], *arguments) -> tuple[float, float]:
    """A result and the processor seconds that it took."""
    started = time.process_time()
    return function(*arguments), time.process_time() - started


# --- ranking ------------------------------------------------------------------------------------------------------


def ranking(options) -> dict:
    """Measures members one by one, and how the rankings agree."""
    lab = open_lab(options)
    results = read(options.output) or {"members": [], "steps": options.steps, "brief_steps": options.brief_steps}
    for number in range(len(results["members"]), options.members):
        layers = random_member(lab.network.space, MEMBERS_SEED, number)
        member = {"layers": layers_to_dicts(layers), "seconds": {}, "loss": {}}
        for name, measure in (("inherited", inherited), ("brief", brief), ("alone", alone)):
            member["loss"][name], member["seconds"][name] = timed(measure, lab, layers, options)
        results["members"].append(member)
        if number >= 2:  # two members agree or do not
            results["agreement"] = {name: agreement(results["members"], name) for name in ("inherited", "brief")}
        replace_file(options.output, json.dumps(results, indent=1))
        print(number, {name: round(loss, 3) for name, loss in member["loss"].items()}, member["seconds"], flush=True)
    for name, values in results.get("agreement", {}).items():
        print(name, values)
    return results


def inherited(lab: Lab, layers: Architecture, options) -> float:
    return lab.loss(lab.network.extract(layers))


def brief(lab: Lab, layers: Architecture, options) -> float:
    return lab.train(lab.network.extract(layers), options.brief_steps, options.brief_learning_rate)


def alone(lab: Lab, layers: Architecture, options) -> float:
    set_seed(0)
    return lab.train(FlexiBertForMaskedLM(lab.network.config(layers)), options.steps, lab.budget.learning_rate)


def agreement(members: Sequence[dict], name: str) -> dict:
    """Kendall's tau with training alone, its 95% bootstrap interval, and the share of its time."""
    losses = np.array([[member["loss"][name], member["loss"]["alone"]] for member in members])
    rng = np.random.default_rng(0)
    samples = [losses[rng.integers(len(losses), size=len(losses))] for _ in range(2000)]
    taus = [kendalltau(*sample.T).statistic for sample in samples]
    seconds = {key: sum(member["seconds"][key] for member in members) for key in (name, "alone")}
    return {
        "tau": kendalltau(*losses.T).statistic,
        "interval": np.nanpercentile(taus, [2.5, 97.5]).tolist(),
        "time_ratio": seconds[name] / seconds["alone"],
    }


# --- policies -----------------------------------------------------------------------------------------------------

ROUNDS = {"name": "opnas", "population": 20, "parents": 3, "children": 2}
TIED = {"alpha": 0.1, "tied_positions": True}
POLICIES = {
    "opnas": {**ROUNDS, **TIED, "temperature": 0.2, "inter_priority": True},
    "opnas-paper": {**ROUNDS, **TIED, "temperature": 0.05},
    "plain-evolution": {**ROUNDS, "alpha": float("inf")},
    "regularised-evolution": {"name": "evolution", "population": 20, "tournament": 5},
    "random": {"name": "random"},
}
"""Samplers and their options: OP-NAS as in the recipe `autobert_zero_tiny`; with priorities within layers alone, as in
the paper; without any."""


def policies(options) -> dict:
    """Runs every policy with every seed, seed by seed; those that are in the file are kept."""
    lab = open_lab(options)
    space = lab.network.space

    @cache
    def score(layers: Architecture) -> float:
        return -lab.loss(lab.network.extract(layers), options.blocks)

    results = read(options.output) or {"evaluations": options.evaluations, "blocks": options.blocks, "runs": []}
    for seed in range(options.seeds):
        if seed == len(results["runs"]):
            results["runs"].append({})
        run, started = results["runs"][seed], time.process_time()
        for name in POLICIES.keys() - run.keys():
            run[name] = search(space, POLICIES[name], seed, options.evaluations, score)
        results["reached"] = {name: reached(results["runs"][: seed + 1], name) for name in POLICIES}
        replace_file(options.output, json.dumps(results))
        best = {name: round(max(scores), 4) for name, scores in run.items()}
        print(seed, best, f"{time.process_time() - started:.0f} s", flush=True)
    for name, values in results["reached"].items():
        print(name, values)
    return results


def search(space: SearchSpace, sampler: dict, seed: int, evaluations: int, score: Callable) -> list[float]:
    """Scores of one search, in order."""
    study = optuna.create_study(direction="maximize", sampler=create_sampler(sampler, space, seed))
    study.optimize(lambda trial: score(space.suggest(trial)), n_trials=evaluations)
    return [trial.value for trial in study.get_trials(deepcopy=False)]


def reached(runs: Sequence[dict], name: str, rival: str = "plain-evolution") -> dict:
    """Evaluations until a policy has the final best of evolution with the same seed; one more than all where never."""
    counts = []
    for run in runs:
        hits = np.flatnonzero(np.array(run[name]) >= max(run[rival]))
        counts.append(int(hits[0]) + 1 if len(hits) else len(run[name]) + 1)
    never = sum(count > len(run[name]) for count, run in zip(counts, runs))
    final = float(np.mean([max(run[name]) for run in runs]))
    return {"median": float(np.median(counts)), "mean": float(np.mean(counts)), "never": never, "final": final}


# --- command ------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    for mode in (slices, ranking, policies):
        sub = modes.add_parser(mode.__name__, help=mode.__doc__)
        sub.set_defaults(measure=mode)
        sub.add_argument("--output", type=Path, required=True)
        if mode is not slices:
            sub.add_argument("--supernet", type=Path, required=True)
            sub.add_argument("--corpus", required=True)
            sub.add_argument("--corpus-config")
        if mode is policies:
            sub.add_argument("--seeds", type=int, default=20)
            sub.add_argument("--evaluations", type=int, default=200)
            sub.add_argument("--blocks", type=int, default=32, help="of validation text, per evaluation")
        else:
            sub.add_argument("--members", type=int, default=8 if mode is slices else 20)
        if mode is ranking:
            sub.add_argument("--steps", type=int, default=600, help="of training alone")
            sub.add_argument("--brief-steps", type=int, default=15, help="of training inherited weights")
            sub.add_argument("--brief-learning-rate", type=float, default=5e-4)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    results = options.measure(options)
    replace_file(options.output, json.dumps(results, indent=1 if options.mode != "policies" else None) + "\n")


if __name__ == "__main__":
    main()
