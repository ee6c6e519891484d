"""A search without the command: search_in_python.py [TRIALS [STEPS]]

Any objective will do. Here it is how well a candidate learns, in a few steps, to repeat the token before each token.
"""

import sys

import optuna
import torch

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM
from flexibert.spec import layers_to_dicts
from search import BoshnasSampler, load_recipe


trials, steps = (int(word) for word in (*sys.argv[1:], *("8", "60")[len(sys.argv) - 1 :]))
space = load_recipe("quickstart").space


def objective(trial: optuna.Trial) -> float:
    layers = space.suggest(trial)
    torch.manual_seed(0)
    model = FlexiBertForMaskedLM(FlexiBertConfig(layers=layers, vocab_size=64, max_position_embeddings=32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        ids = torch.randint(5, 64, (16, 24))
        loss = model(ids, labels=ids.roll(1, dims=1)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trial.set_user_attr("layers", layers_to_dicts(layers))
    return loss.item()


study = optuna.create_study(direction="minimize", sampler=BoshnasSampler(space, seed=0))
study.optimize(objective, n_trials=trials)
print(f"best loss {study.best_value:.3f} nats:")
for layer in study.best_trial.user_attrs["layers"]:
    print(layer)
