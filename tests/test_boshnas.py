"""BOSHNAS: Optuna's sampler contract, and what an architecture search asks beyond it."""

import math
import multiprocessing
import random

import optuna
import pytest
from optuna.testing.pytest_samplers import BasicSamplerTestCase
from optuna.trial import TrialState

from flexibert.spec import fingerprint
from search.errors import UserError
from search.samplers.boshnas import BoshnasSampler
from search.search_space import SearchSpace


optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = SearchSpace(
    num_layers=(2, 4),
    hidden_size=(128, 256),
    num_heads=(2, 4),
    operations=(
        {"op": "self_attention"},
        {"op": "linear_transform", "transform": "fourier"},
        {"op": "dynamic_convolution", "kernel_size": 5},
    ),
    feed_forward_size=(512, 1024),
    feed_forward_depth=(1, 3),
)
ONE = SearchSpace((2,), (128,), (2,), ({"op": "self_attention"},), (512,))
FEW = SearchSpace((2,), (128, 256), (2,), ({"op": "self_attention"},), (512,), layers_per_stack=2)


def score(layers):
    """Deep and wide is good, attention late is better, a failure where the first layer convolves."""
    late = layers[-1].operations[0].op == "self_attention"
    penalty = 20 * (layers[0].operations[0].op == "dynamic_convolution")
    return 60 + len(layers) + sum(layer.hidden_size for layer in layers) / 256 + 2 * late - penalty


def search(space, trials, sampler=None, objective=score, **kwargs):
    study = optuna.create_study(direction="maximize", sampler=sampler or BoshnasSampler(space, **{"seed": 0, **kwargs}))
    study.optimize(lambda trial: objective(space.suggest(trial)), n_trials=trials, catch=(ArithmeticError,))
    return study


def architectures(study, space=SPACE):
    return [space.build(trial.params) for trial in study.trials]


class TestContract(BasicSamplerTestCase):
    @pytest.fixture(params=["default", "paper"])
    def sampler(self, request):
        return lambda: BoshnasSampler(SPACE, preset=request.param, seed=0)


def test_finds_the_best_in_a_few_trials():
    study = search(SPACE, 20)
    assert study.best_value == 60 + 4 + 4 + 2
    rng = random.Random(0)
    assert max(score(SPACE.sample(rng)) for _ in range(20)) < study.best_value
