"""Surrogates and encodings: what they are fitted on, what they believe, and the table that they must rank."""

import random

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from benchmarks.search_tables import read_table
from search.bayesopt.boshnas_networks import BoshnasNetworks, gaussian_relu, gaussian_sigmoid
from search.bayesopt.encoding import Encoding
from search.bayesopt.gaussian_process import GaussianProcess, RobustScale
from search.bayesopt.gobi import climb
from search.samplers.boshnas import SURROGATES
from search.space.search_space import SearchSpace


OPERATIONS = (
    {"op": "self_attention"},
    {"op": "linear_transform", "transform": "fourier"},
    {"op": "dynamic_convolution", "kernel_size": 5},
    {"op": "dynamic_convolution", "kernel_size": 9},
)
SPACES = {
    "plain": SearchSpace((2, 3), (32, 64), (2, 4), OPERATIONS, (64, 128), (1, 3)),
    "shared": SearchSpace((2, 4), (32, 64), (2, 4), OPERATIONS, (64, 128), (1, 3), shared_hidden_size=True),
    "stacks": SearchSpace((2, 4), (32, 64), (2, 4), OPERATIONS, (64, 128), (1, 3), layers_per_stack=2),
    "mixed": SearchSpace((2, 3), (32,), (2, 4), OPERATIONS, (64, 128), (1, 3), 1, False, True, True),
    "one": SearchSpace((2,), (32,), (2,), OPERATIONS[:1], (64,)),
}


@pytest.mark.parametrize("name", SPACES)
def test_encoding_agrees_with_the_space(name):
    space = SPACES[name]
    encoding, rng = Encoding(space), np.random.default_rng(0)
    rows = np.concatenate([encoding.sample(30, rng), encoding.mutate(encoding.sample(30, rng), rng)])
    for row in rows:
        values = encoding.values(row)
        active = {name for name, on in zip(encoding.names, encoding.active(row[None])[0]) if on}
        assert active == set(space.active(values))
        spelled = encoding.indices([space.parameters(space.build(values))])[0]
        assert spelled.tolist() == row.tolist()  # canonical: one row per architecture


def test_a_mutant_differs_in_one_choice():
    space = SPACES["plain"]
    encoding, rng = Encoding(space), np.random.default_rng(0)
    rows = encoding.sample(200, rng)
    for row, mutant in zip(rows, encoding.mutate(rows, rng)):
        before, after = encoding.values(row), encoding.values(mutant)
        both = set(space.active(before)) & set(space.active(after))
        assert sum(before[name] != after[name] for name in both) == 1


def test_features_are_the_same_for_the_same_architecture_and_scaled():
    encoding = Encoding(SPACES["plain"])
    features = encoding.features(encoding.sample(2000, np.random.default_rng(1)))
    assert np.abs(features.mean(0)).max() < 0.1
    for block in encoding.blocks.values():
        assert features[:, block].var(0).sum() == pytest.approx(1, abs=0.2)
    encoding = Encoding(SPACES["mixed"])
    rng = random.Random(0)
    values = encoding.space.sample_values(rng)
    shuffled = {**values, "layer0.head0": values["layer0.head1"], "layer0.head1": values["layer0.head0"]}
    rows = encoding.indices([values, shuffled])
    assert (encoding.features(rows[:1]) == encoding.features(rows[1:])).all()


def test_robust_scale_is_monotone_and_inverts():
    scores = np.array([54.8, 66.0, 69.0, 70.0, 71.0, 75.1])
    scale = RobustScale(scores)
    values = scale.transform(scores)
    assert (np.diff(values) > 0).all()
    assert scale.inverse(values) == pytest.approx(scores)
    assert values[-1] - values[-2] > (values[1] - values[0]) / 5  # the failure does not set the scale


@pytest.mark.parametrize("scores", [[], [3.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 9.0]])
def test_robust_scale_of_degenerate_scores(scores):
    values = RobustScale(np.array(scores)).transform(np.array(scores))
    assert np.isfinite(values).all() and np.abs(values).max(initial=0) < 20


def gaussian_process(slope=0.5):
    encoding = Encoding(SPACES["plain"])
    return encoding, GaussianProcess(encoding.blocks, slope)


def test_without_data_larger_is_better_and_everything_uncertain():
    encoding, surrogate = gaussian_process()
    rows = encoding.sample(50, np.random.default_rng(0))
    features = encoding.features(rows)
    surrogate.fit(features[:0], np.empty(0))
    prediction = surrogate.predict(features)
    size = features[:, encoding.blocks["size"]][:, -1]
    assert np.argsort(prediction.mean).tolist() == np.argsort(size).tolist()
    assert (prediction.epistemic > 0.5).all()


def test_posterior_equals_the_textbook_formula():
    """Against the posterior of jointly Gaussian values, from the covariance of all rows at once."""
    encoding, surrogate = gaussian_process()
    rng = np.random.default_rng(0)
    x, new = encoding.features(encoding.sample(12, rng)), encoding.features(encoding.sample(5, rng))
    y = rng.normal(size=12)
    surrogate.fit(x, y)
    together = np.concatenate([x, new])
    prior = np.tensordot(surrogate._weights, surrogate._kernels(together, together), 1)
    mean = surrogate._prior_mean(together)
    solve = np.linalg.solve(prior[:12, :12] + surrogate._noise * np.eye(12), np.c_[y - mean[:12], prior[:12, 12:]])
    prediction = surrogate.predict(new)
    assert prediction.mean == pytest.approx(mean[12:] + prior[12:, :12] @ solve[:, 0])
    covariance = prior[12:, 12:] - prior[12:, :12] @ solve[:, 1:]
    assert prediction.epistemic**2 == pytest.approx(np.diag(covariance), rel=1e-6)


def test_a_measurement_lowers_the_uncertainty_where_it_was_made():
    encoding, surrogate = gaussian_process()
    features = encoding.features(encoding.sample(30, np.random.default_rng(0)))
    surrogate.fit(features[:10], np.linspace(-1, 1, 10))
    before = surrogate.predict(features)
    surrogate.add(features[20:21], before.mean[20:21])
    after = surrogate.predict(features)
    assert after.epistemic[20] < before.epistemic[20]
    assert after.mean == pytest.approx(before.mean, abs=1e-6)  # what was expected teaches nothing
    assert (after.epistemic <= before.epistemic + 1e-9).all()


def test_uncertainty_is_calibrated_on_functions_of_its_own_kind():
    encoding, surrogate = gaussian_process()
    rng = np.random.default_rng(0)
    features = encoding.features(encoding.sample(200, rng))
    size = features[:, encoding.blocks["size"]]
    order = features[:, encoding.blocks["order"]]
    y = size @ [0.5, 1.0, 1.0] + order @ rng.normal(size=order.shape[1]) + 0.2 * rng.normal(size=200)
    surrogate.fit(features[:60], y[:60])
    prediction = surrogate.predict(features[60:])
    z = (y[60:] - prediction.mean) / np.hypot(prediction.aleatoric, prediction.epistemic)
    assert 0.7 < z.std() < 1.3
    assert prediction.aleatoric[0] == pytest.approx(0.2, abs=0.1)


def test_moments_of_gaussian_activations_match_samples():
    torch.manual_seed(0)
    m, s = torch.tensor([-1.0, 0.2, 1.5]), torch.tensor([0.5, 1.0, 0.25])
    samples = m + s.sqrt() * torch.randn(200_000, 3)
    for function, sampled in ((gaussian_relu, samples.relu()), (gaussian_sigmoid, samples.sigmoid())):
        mean, variance = function(m, s)
        assert mean.tolist() == pytest.approx(sampled.mean(0).tolist(), abs=0.03)
        assert variance.tolist() == pytest.approx(sampled.var(0).tolist(), abs=0.03)


def test_networks_learn_and_repeat_themselves():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8))
    y = 1 / (1 + np.exp(-2 * x[:, 0]))
    first, second = BoshnasNetworks(seed=1), BoshnasNetworks(seed=1)
    state = torch.get_rng_state()
    first.fit(x[:50], y[:50])
    second.fit(x[:50], y[:50])
    assert (torch.get_rng_state() == state).all()
    prediction = first.predict(x[50:])
    assert kendalltau(prediction.mean, y[50:]).statistic > 0.5
    assert (prediction.aleatoric > 0).all() and (prediction.epistemic > 0).all()
    assert (second.predict(x[50:]).mean == prediction.mean).all()


def test_gobi_climbs_to_the_maximum_within_its_box():
    peak = torch.tensor([0.3, -2.0])

    def acquisition(x):
        return -((x - peak) ** 2).sum(-1) - 0.1 * ((x - peak) ** 4).sum(-1)

    starts = torch.tensor([[1.0, 1.0], [-1.0, 0.0]])
    found = climb(acquisition, starts, torch.full((2,), -1.0), torch.ones(2), torch.Generator().manual_seed(0))
    assert found == pytest.approx(torch.tensor([[0.3, -1.0], [0.3, -1.0]]), abs=0.05)
    assert starts.tolist() == [[1.0, 1.0], [-1.0, 0.0]]


def test_ranks_trained_encoders_that_it_has_not_seen(shared):
    """Kendall tau after 20, 50 and 100 random encoders of the table; a forest reaches .66, .72 and .74."""
    space, architectures, scores = read_table(shared / "bench" / "nas_bench_bert" / "architectures.json")
    assert space.size() == 10_621_440
    encoding = Encoding(space)
    features = encoding.features(encoding.indices([space.parameters(layers) for layers in architectures]))
    for count, expected in ((20, 0.68), (50, 0.73), (100, 0.745)):
        taus = []
        for seed in range(10):
            order = np.random.default_rng(seed).permutation(len(scores))
            known, unknown = order[:count], order[count:]
            surrogate = GaussianProcess(encoding.blocks)
            surrogate.fit(features[known], RobustScale(scores[known]).transform(scores[known]))
            taus.append(kendalltau(surrogate.predict(features[unknown]).mean, scores[unknown]).statistic)
        assert np.mean(taus) > expected


@pytest.mark.parametrize("name", SURROGATES)
def test_every_surrogate_of_the_table_learns_what_is_linear(name):
    encoding, rng = Encoding(SPACES["plain"]), np.random.default_rng(0)
    x = encoding.features(encoding.sample(120, rng))
    y = x[:, encoding.blocks["composition"]] @ rng.normal(size=x[:, encoding.blocks["composition"]].shape[1])
    surrogate = SURROGATES[name](encoding.blocks)
    surrogate.fit(x[:60], y[:60])
    surrogate.add(x[60:70], y[60:70])
    assert kendalltau(surrogate.predict(x[70:]).mean, y[70:]).statistic > 0.8


def test_what_an_encoder_is_made_of_counts_whatever_the_order():
    """The best shares of an operation lie in the middle, which no linear kernel sees."""
    encoding, rng = Encoding(SPACES["plain"]), np.random.default_rng(0)
    x = encoding.features(encoding.sample(160, rng))
    shares = x[:, encoding.blocks["composition"]][:, -3]
    y = -((shares - np.median(shares)) ** 2) / shares.var()
    tau = {}
    for name in SURROGATES:
        surrogate = SURROGATES[name](encoding.blocks)
        surrogate.fit(x[:80], y[:80])
        tau[name] = kendalltau(surrogate.predict(x[80:]).mean, y[80:]).statistic
    assert tau["gaussian_process"] > 0.3 + tau["linear"]


def test_weights_are_fitted_to_a_part_of_many_measurements(monkeypatch):
    encoding, surrogate = gaussian_process()
    x = encoding.features(encoding.sample(90, np.random.default_rng(0)))
    y = x[:, 0] + x[:, -1]
    surrogate.fit(x, y)
    monkeypatch.setattr("search.bayesopt.gaussian_process.FITTED", 45)
    part = GaussianProcess(encoding.blocks, 0.5)
    part.fit(x, y)
    assert len(part._x) == 90 and not np.allclose(part._weights, surrogate._weights)
    assert kendalltau(part.predict(x).mean, surrogate.predict(x).mean).statistic > 0.9
