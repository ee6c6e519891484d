"""BOSHNAS, beyond the contract of all samplers in `test_samplers.py`."""

import math
import multiprocessing
import random

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from flexibert.spec import fingerprint
from search.bayesopt.attention_encoding import GraphEncoding
from search.bayesopt.encoding import Encoding
from search.bayesopt.gaussian_process import GaussianProcess
from search.errors import UserError
from search.samplers.boshnas import BoshnasSampler, read_history
from search.samplers.history import _ROWS, BEST, LATEST, LISTENED, listened
from search.space.search_space import SearchSpace


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
    study = optuna.create_study(
        direction="maximize", sampler=sampler or BoshnasSampler(space, **{"seed": 0, **kwargs})
    )
    study.optimize(lambda trial: objective(space.suggest(trial)), n_trials=trials, catch=(ArithmeticError,))
    return study


def architectures(study, space=SPACE):
    return [space.build(trial.params) for trial in study.trials]


@pytest.fixture(autouse=True)
def quick_networks(monkeypatch):
    """Less training and climbing of the paper's networks: how good they are is not the question here."""
    monkeypatch.setattr("search.bayesopt.boshnas_networks.EPOCHS", 20)
    monkeypatch.setattr("search.bayesopt.gobi.MAX_STEPS", 20)


def test_finds_the_best_and_keeps_to_good_ones():
    study = search(SPACE, 30)
    assert study.best_value == pytest.approx(70)
    at_random = search(SPACE, 30, optuna.samplers.RandomSampler(seed=0))
    assert sorted(t.value for t in study.trials)[15] > sorted(t.value for t in at_random.trials)[27]


def test_another_surrogate_searches_otherwise():
    linear = search(SPACE, 25, surrogate="linear")
    assert architectures(linear) != architectures(search(SPACE, 25))
    assert linear.best_value >= 68


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_nothing_is_trained_twice(preset):
    study = search(SPACE, 13, preset=preset)
    assert len(set(architectures(study))) == 13


def test_proposals_are_a_function_of_trials_and_seed():
    first, second = search(SPACE, 8), search(SPACE, 8)
    assert architectures(first) == architectures(second)
    assert architectures(search(SPACE, 8, seed=1)) != architectures(first)
    resumed = optuna.create_study(direction="maximize", sampler=BoshnasSampler(SPACE, seed=0))
    resumed.add_trials(first.trials[:7])
    assert SPACE.suggest(resumed.ask()) == architectures(first)[7]


def propose_in_new_process(trials):
    study = optuna.create_study(direction="maximize", sampler=BoshnasSampler(SPACE, seed=0))
    study.add_trials(trials)
    return fingerprint(SPACE.suggest(study.ask()))


def test_same_proposal_in_a_new_process():
    trials = search(SPACE, 5).trials
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(propose_in_new_process, (trials,)) == propose_in_new_process(trials)


def test_order_of_finishing_does_not_matter():
    def proposal(order):
        study = optuna.create_study(direction="maximize", sampler=BoshnasSampler(SPACE, seed=0))
        trials = [study.ask() for _ in range(4)]
        scores = [score(SPACE.suggest(trial)) for trial in trials]
        for number in order:
            study.tell(trials[number], scores[number])
        return SPACE.suggest(study.ask())

    assert proposal([0, 1, 2, 3]) == proposal([3, 1, 0, 2])


def test_running_trials_are_not_proposed_again():
    study = search(SPACE, 4)
    asked = [SPACE.suggest(study.ask()) for _ in range(4)]
    assert len(set(asked)) == 4


def test_parameters_outside_the_space_are_sampled_independently():
    study = optuna.create_study(direction="maximize", sampler=BoshnasSampler(SPACE, seed=0))
    rates = []

    def objective(trial):
        rates.append(trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True))
        return score(SPACE.suggest(trial))

    study.optimize(objective, n_trials=6)
    assert len(set(rates)) == 6
    assert architectures(study) == architectures(search(SPACE, 6))


def test_what_was_believed_is_kept_in_units_of_the_score():
    study = search(SPACE, 25)
    beliefs = [trial.user_attrs.get("prediction") for trial in study.trials]
    assert beliefs[:3] == [None] * 3
    errors = []
    for trial, belief in zip(study.trials[3:], beliefs[3:]):
        assert belief.keys() == {"mean", "standard_deviation"}
        errors.append(abs(trial.value - belief["mean"]) / belief["standard_deviation"])
    assert sorted(errors)[len(errors) // 2] < 2
    lower = search(SPACE, 8, sampler=None, objective=score)
    minimised = optuna.create_study(direction="minimize", sampler=BoshnasSampler(SPACE, seed=0))
    minimised.optimize(lambda trial: -score(SPACE.suggest(trial)), n_trials=8)
    for one, other in zip(lower.trials[3:], minimised.trials[3:]):
        assert other.user_attrs["prediction"]["mean"] == pytest.approx(-one.user_attrs["prediction"]["mean"])


def test_only_candidates_are_proposed_until_there_are_no_more():
    rng = random.Random(0)
    candidates = [SPACE.sample(rng) for _ in range(6)]
    study = search(SPACE, 8, candidates=candidates)
    assert set(architectures(study)) == set(candidates)
    assert len(set(architectures(study)[:6])) == 6


def test_constraints_hold():
    def feasible(layers):
        return sum(layer.hidden_size for layer in layers) <= 384

    study = search(SPACE, 12, feasible=feasible)
    assert all(feasible(layers) for layers in architectures(study))
    with pytest.raises(UserError, match="no architecture of the space is feasible"):
        search(FEW, 1, feasible=lambda layers: False)


def test_several_objectives_trace_the_pareto_front():
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=BoshnasSampler(SPACE, seed=0))

    def objective(trial):
        layers = SPACE.suggest(trial)
        return score(layers), sum(layer.hidden_size * layer.feed_forward[0] for layer in layers)

    study.optimize(objective, n_trials=30)
    front = {trial.values[1]: trial.values[0] for trial in study.best_trials}
    assert len(front) >= 4
    assert min(front) == 2 * 128 * 512  # the smallest
    assert max(front.values()) >= 69


@pytest.mark.parametrize("preset", ["default", "paper"])
class TestBadInput:
    def test_a_space_with_one_member(self, preset):
        study = search(ONE, 13, preset=preset)
        assert len(set(architectures(study, ONE))) == 1

    def test_a_space_with_fewer_members_than_trials(self, preset):
        study = search(FEW, 13, preset=preset)
        assert len(set(architectures(study, FEW))) == 2

    def test_all_trials_failed(self, preset):
        def fail(layers):
            raise ZeroDivisionError

        study = search(SPACE, 12, objective=fail, preset=preset)
        assert all(trial.state == TrialState.FAIL for trial in study.trials)
        assert len(set(architectures(study))) == 12  # a failed architecture is not tried again

    def test_what_fails_is_left_alone(self, preset):
        """The prior that larger is better leads to the failures first."""

        def fail_if_wide(layers):
            return score(layers) / (layers[0].hidden_size != 256)

        trials = search(SPACE, 40, objective=fail_if_wide, preset=preset).trials
        failures = [trial.state == TrialState.FAIL for trial in trials]
        assert failures[0] or preset == "paper"
        assert sum(failures) > 0 and sum(failures[20:]) <= (4 if preset == "default" else 12)

    def test_scores_that_are_not_finite(self, preset):
        values = iter([math.nan, math.inf, 1.0, -math.inf, 2.0] * 3)
        study = search(SPACE, 13, objective=lambda layers: next(values), preset=preset)
        assert all(math.isfinite(t.user_attrs.get("prediction", {"mean": 0})["mean"]) for t in study.trials)

    def test_constant_scores(self, preset):
        study = search(SPACE, 13, objective=lambda layers: 50.0, preset=preset)
        assert len(set(architectures(study))) == 13

    def test_the_same_architecture_many_times(self, preset):
        study = optuna.create_study(direction="maximize", sampler=BoshnasSampler(SPACE, preset=preset, seed=0))
        params = SPACE.sample_values(random.Random(0))
        for value in range(12):
            study.add_trial(
                optuna.create_trial(params=params, distributions=SPACE.distributions(), value=50 + 0.1 * value)
            )
        assert SPACE.suggest(study.ask()) != SPACE.build(params)

    def test_trials_of_another_space(self, preset):
        study = search(FEW, 3, optuna.samplers.RandomSampler(seed=0))
        study.sampler = BoshnasSampler(SPACE, preset=preset, seed=0)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)


def test_nothing_that_is_not_feasible_is_proposed_for_want_of_anything_else():
    study = search(SPACE, 5)
    study.sampler = BoshnasSampler(SPACE, seed=0, feasible=lambda layers: False)
    with pytest.raises(UserError, match="no architecture of the space is feasible"):
        SPACE.suggest(study.ask())


def test_enqueued_trials_are_left_as_they_are():
    study = search(SPACE, 4)
    layers = SPACE.sample(random.Random(3))
    study.enqueue_trial(SPACE.parameters(layers))
    trial = study.ask()
    assert SPACE.suggest(trial) == layers
    assert "prediction" not in trial.user_attrs


def test_messages():
    with pytest.raises(UserError, match="preset: 'other'.*default, paper"):
        BoshnasSampler(SPACE, preset="other")
    with pytest.raises(UserError, match="surrogate: 'trees'.*gaussian_process, linear"):
        BoshnasSampler(SPACE, surrogate="trees")
    with pytest.raises(UserError, match="surrogate: the preset paper has its own"):
        BoshnasSampler(SPACE, preset="paper", surrogate="linear")
    with pytest.raises(UserError, match="candidates: expected at least one"):
        BoshnasSampler(SPACE, candidates=[])
    with pytest.raises(UserError, match="candidates: .*not in the space"):
        BoshnasSampler(FEW, candidates=[SPACE.build({n: v[0] for n, v in SPACE.choices.items()})[:1]])


# --- searched graphs ----------------------------------------------------------------------------------------------

GRAPHS = SearchSpace(
    num_layers=(2, 3),
    hidden_size=(32,),
    num_heads=(2,),
    operations=(
        {"op": "attention_graph", "graph": {"mode": "tail", "max_nodes": 8}},
        {"op": "lightweight_convolution", "kernel_size": 3},
        {"op": "lightweight_convolution", "kernel_size": 9},
    ),
    feed_forward_size=(64,),
)


def graph_score(layers):
    """Log-sigmoids in all graphs but the first layer's are good, and a convolution there."""
    nodes = [" ".join(getattr(layer.operations[0], "nodes", ())) for layer in layers]
    return sum(text.count("logsigmoid(") for text in nodes[1:]) + (nodes[0] == "")


def test_rows_of_searched_graphs_are_architectures():
    encoding = GraphEncoding(GRAPHS)
    rows = encoding.sample(40, np.random.default_rng(0))
    mutants = encoding.mutate(rows, np.random.default_rng(0))
    architectures = [GRAPHS.build(encoding.values(row)) for row in (*rows, *mutants)]
    again = encoding.indices(GRAPHS.parameters(layers) for layers in architectures)
    assert np.array_equal(again, np.concatenate([rows, mutants]))
    assert all(one != other for one, other in zip(architectures[:40], architectures[40:]))
    features = encoding.features(rows)
    assert np.isfinite(features).all()
    assert len(np.unique(features, axis=0)) > 0.8 * len(np.unique(rows, axis=0))


def test_searched_graphs_are_searched():
    """Measured with seeds 0 to 2: 7, 4 and 7, where as many random architectures have 1."""

    def best(sampler):
        return search(GRAPHS, 20, sampler, graph_score).best_value

    ours, random_search = (
        np.mean([best(create(seed)) for seed in range(2)])
        for create in (
            lambda seed: BoshnasSampler(GRAPHS, seed=seed),
            lambda seed: optuna.samplers.RandomSampler(seed),
        )
    )
    assert ours > random_search


def test_the_paper_preset_embeds_searched_graphs():
    study = search(GRAPHS, 13, objective=graph_score, preset="paper")
    assert len(set(architectures(study, GRAPHS))) == 13
    assert any("prediction" in trial.user_attrs for trial in study.trials)


@pytest.mark.parametrize("objectives", [1, 2])
def test_of_a_long_history_the_best_the_latest_and_some_others_are_heard(objectives):
    scores = np.random.default_rng(0).normal(size=(3000, objectives))
    heard = listened(scores)
    assert len(heard) == LISTENED and (np.diff(heard) > 0).all()
    for objective in scores.T:
        assert set(np.argsort(-objective)[: BEST // objectives]) <= set(heard)
    assert set(range(3000 - LATEST, 3000)) <= set(heard)
    assert np.diff(heard).max() < 40  # no part of the history is left out
    assert listened(scores[:LISTENED]).tolist() == list(range(LISTENED))


def test_a_proposal_after_thousands_of_trials(monkeypatch):
    """What a model is fitted to stays bounded, what is known does not; the same after the trials are read anew."""
    rng, study = random.Random(0), optuna.create_study(direction="maximize")
    trials = []
    for number in range(1200):
        values = SPACE.normalize(SPACE.sample_values(rng))
        score = float(values["num_layers"]) + rng.random()
        trials.append(optuna.create_trial(value=score, params=values, distributions=SPACE.distributions()))
        trials[-1].number = number
    monkeypatch.setattr(study, "get_trials", lambda deepcopy=True, states=None: trials if states is None else [])
    new = optuna.create_trial(state=TrialState.RUNNING)
    new.number, sizes = len(trials), []
    inner = GaussianProcess.fit
    monkeypatch.setattr(GaussianProcess, "fit", lambda self, x, y: (sizes.append(len(x)), inner(self, x, y))[1])
    proposals = []
    for _ in range(2):
        values, _ = BoshnasSampler(SPACE, seed=0).propose(study, new)
        proposals.append(values)
        assert SPACE.build(values) not in {SPACE.build(trial.params) for trial in trials}
        _ROWS.clear()
    assert proposals[0] == proposals[1] and sizes == [LISTENED] * 2


def test_a_repetition_is_known_but_measures_nothing():
    study = search(FEW, 1)
    [other] = set(FEW.choices["stack0.hidden_size"]) - {study.trials[0].params["stack0.hidden_size"]}
    study.add_trial(
        optuna.trial.create_trial(
            value=60.0,
            params={**study.trials[0].params, "stack0.hidden_size": other},
            distributions=FEW.distributions(),
            user_attrs={"duplicate_of": 0},
        )
    )
    new = optuna.trial.create_trial(state=TrialState.RUNNING)
    new.number = 2
    history = read_history(study, new, Encoding(FEW))
    assert len(history.seen) == 2 and len(history.scores) == 1
