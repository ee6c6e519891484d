"""The contract that every sampler keeps which the command offers, and what counts as a measurement."""

import math
import random
import warnings

import optuna
import pytest
from optuna.testing.pytest_samplers import BasicSamplerTestCase
from optuna.trial import TrialState, create_trial

from search.errors import UserError
from search.samplers import SAMPLERS, create_sampler
from search.samplers.base import repetitions, turn
from search.samplers.trials import DUPLICATE_OF, FAILURE, INTERRUPTED, LEVEL, PREDICTION, counts, is_failure
from search.space.search_space import SearchSpace


optuna.logging.set_verbosity(optuna.logging.ERROR)

PLAIN = {
    "num_layers": [2, 4],
    "hidden_size": [16, 32],
    "num_heads": [2, 4],
    "operations": [{"op": "self_attention"}, {"op": "linear_transform"}, {"op": "dynamic_convolution"}],
    "feed_forward_size": [32, 64],
    "feed_forward_depth": [1, 2],
    "mixed_feed_forward": True,
}
SEARCHED = {**PLAIN, "operations": [{"op": "attention_graph", "graph": {"mode": "tail", "max_nodes": 8}}]}
SPACES = {"plain": SearchSpace.from_dict(PLAIN), "searched": SearchSpace.from_dict({**SEARCHED, "num_layers": [2]})}
QUICK = {
    "opnas": {"population": 3, "parents": 2, "children": 2},
    "evolution": {"population": 3, "tournament": 2},
    "tpe": {"n_startup_trials": 3},
    "gp": {"n_startup_trials": 3},
    "nsga2": {"population_size": 3},
}
"""Options with which samplers leave their random start within a few trials."""

PROPOSES_NEW = ("boshnas", "boshnas-paper", "opnas", "evolution")
"""These look at what other trials have and respect limits; for Optuna's own the search does."""

CASES = [(name, "plain") for name in SAMPLERS]
CASES += [(name, "searched") for name in SAMPLERS if name not in ("gp", "boshnas-paper")]
"""These two take seconds for every proposal where a space has hundreds of parameters."""


@pytest.fixture(autouse=True)
def quick_networks(monkeypatch):
    """Less training and climbing of the paper's networks: how good they are is not the question here."""
    monkeypatch.setattr("search.bayesopt.boshnas_networks.EPOCHS", 10)
    monkeypatch.setattr("search.bayesopt.gobi.MAX_STEPS", 5)
    monkeypatch.setattr("search.samplers.boshnas_paper.INITIAL_TRIALS", 3)


def create(name, space="plain", **kwargs):
    return create_sampler({"name": name, **QUICK.get(name, {})}, SPACES[space], **{"seed": 5, **kwargs})


def score(layers):
    return len(layers) + sum(layer.hidden_size / 32 + layer.feed_forward[0] / 640 for layer in layers)


def new_study(trials=(), directions=("maximize",), sampler=None):
    study = optuna.create_study(directions=directions, sampler=sampler)
    study.add_trials(trials)
    return study


def propose(study, space):
    """The next proposal and its trial."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Optuna, about experiments and independent sampling
        trial = study.ask()
        return SPACES[space].suggest(trial), trial


def search(name, space, trials, sampler=None):
    study = new_study(sampler=sampler or create(name, space))
    for _ in range(trials):
        layers, trial = propose(study, space)
        study.tell(trial, score(layers))
    return study


@pytest.fixture(scope="module")
def history():
    """(sampler, space) -> six trials of a search, made once."""
    made = {}

    def read(name, space):
        if (name, space) not in made:
            made[name, space] = search(name, space, 6).trials
        return made[name, space]

    return read


def params(layers, space):
    return SPACES[space].parameters(layers)


class TestOptunasContract(BasicSamplerTestCase):
    @pytest.fixture(params=SAMPLERS)
    def sampler(self, request):
        return lambda: create(request.param)


@pytest.mark.parametrize("name, space", CASES)
class TestContract:
    def test_one_object_serves_as_well_as_a_new_one_for_every_trial(self, name, space, history):
        study = new_study()
        for expected in history(name, space):
            study.sampler = create(name, space)
            layers, trial = propose(study, space)
            assert trial.params == expected.params
            study.tell(trial, score(layers))

    def test_another_study_with_the_same_trials_has_the_same_proposal(self, name, space, history):
        if name == "nsga2":
            pytest.skip("Optuna notes the parents of a generation with the study, not with its trials")
        trials = history(name, space)
        layers, _ = propose(new_study(trials[:5], sampler=create(name, space)), space)
        assert layers == SPACES[space].build(trials[5].params)

    def test_seeds_differ(self, name, space):
        first, second = (propose(new_study(sampler=create(name, space, seed=seed)), space)[0] for seed in (0, 1))
        assert first != second or name in ("boshnas",)  # whose first proposal is the prior's, large and wide

    def test_the_order_in_which_trials_end_does_not_matter(self, name, space, history):
        proposals = []
        for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
            study = new_study(history(name, space)[:2], sampler=create(name, space))
            asked = []
            for old in history(name, space)[2:]:
                study.enqueue_trial(old.params)
                asked.append(propose(study, space))
            for index in order:
                layers, trial = asked[index]
                study.tell(trial, score(layers))
            proposals.append(propose(study, space)[0])
        assert proposals[0] == proposals[1]

    def test_interrupted_trials_change_nothing(self, name, space, history):
        """As after a kill: the trial failed without telling anything, and was done again."""
        if name == "nsga2":
            pytest.skip("Optuna's NSGA-II breeds differently after an enqueued trial")
        trials = history(name, space)
        study = search(name, space, 3)
        params, distributions = trials[3].params, trials[3].distributions
        killed = create_trial(
            state=TrialState.FAIL, params=params, distributions=distributions, user_attrs={INTERRUPTED: "killed"}
        )
        study.add_trial(killed)
        study.enqueue_trial(params)
        for expected in trials[3:]:
            layers, trial = propose(study, space)
            assert trial.params == expected.params
            study.tell(trial, score(layers))

    def test_trials_of_every_state_are_no_obstacle(self, name, space, history):
        old = history(name, space)
        study = new_study(old[:4], sampler=create(name, space))
        rng = random.Random(0)

        def other(state, **fields):
            values = SPACES[space].normalize(SPACES[space].sample_values(rng))
            distributions = SPACES[space].distributions()
            return create_trial(state=state, params=values, distributions=distributions, **fields)

        study.add_trials(
            [
                other(TrialState.FAIL, user_attrs={FAILURE: "the loss is nan"}),
                other(TrialState.FAIL, user_attrs={INTERRUPTED: "killed"}),
                other(TrialState.PRUNED),
                other(TrialState.RUNNING),
                create_trial(state=TrialState.RUNNING),
                other(TrialState.COMPLETE, value=math.inf),
                create_trial(state=TrialState.COMPLETE, value=1.0),
            ]
        )
        study.add_trial(
            create_trial(
                value=old[0].value,
                params=old[0].params,
                distributions=old[0].distributions,
                user_attrs={DUPLICATE_OF: 0},
            )
        )
        known = {SPACES[space].build(trial.params) for trial in study.trials if trial.params}
        for _ in range(2):
            layers, _ = propose(study, space)
            assert layers in SPACES[space]
            assert layers not in known or name not in PROPOSES_NEW
            known.add(layers)

    def test_enqueued_architectures_come_back_as_they_are(self, name, space, history):
        study = new_study(history(name, space), sampler=create(name, space))
        layers = SPACES[space].sample(random.Random(9))
        study.enqueue_trial(params(layers, space))
        proposed, trial = propose(study, space)
        assert proposed == layers
        assert not trial.user_attrs.keys() & {PREDICTION, LEVEL}

    def test_limits_are_kept(self, name, space, history):
        def feasible(layers):
            return sum(layer.hidden_size for layer in layers) <= 48

        sampler = create(name, space, feasible=feasible)
        study = new_study(history(name, space), sampler=sampler)
        layers, _ = propose(study, space)
        assert sampler.feasible is feasible
        assert feasible(layers) or name not in PROPOSES_NEW

    def test_several_objectives_are_searched_or_refused_in_one_line(self, name, space):
        directions = ("maximize", "minimize")
        try:
            study = new_study(directions=directions, sampler=create(name, space, objectives=2))
        except UserError as error:
            assert name in ("opnas", "evolution")
            assert str(error) == f"--objectives: the sampler {name} searches for one objective"
            return
        for _ in range(5):
            layers, trial = propose(study, space)
            study.tell(trial, [score(layers), len(layers)])


@pytest.mark.parametrize("name", ["boshnas", "opnas", "evolution", "random", "tpe"])
def test_levels_keep_the_contract(name):
    space = SPACES["plain"]

    def run(study, trials):
        for _ in range(trials):
            layers, trial = propose(study, "plain")
            study.tell(trial, score(layers))
        return study

    whole = run(new_study(sampler=create(name, hierarchy_trials=8)), 6).trials
    resumed = new_study(whole[:3], sampler=create(name, hierarchy_trials=8))
    killed = create_trial(
        state=TrialState.FAIL,
        params=whole[3].params,
        distributions=whole[3].distributions,
        user_attrs={INTERRUPTED: "killed", LEVEL: whole[3].user_attrs[LEVEL]},
    )
    resumed.add_trial(killed)
    resumed.enqueue_trial(whole[3].params, user_attrs={LEVEL: whole[3].user_attrs[LEVEL]})
    trials = [trial for trial in run(resumed, 3).trials if counts(trial)]
    assert [space.build(trial.params) for trial in trials] == [space.build(trial.params) for trial in whole]
    assert [trial.user_attrs[LEVEL] for trial in trials] == [trial.user_attrs[LEVEL] for trial in whole]


# --- what counts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trial, measured, failed",
    [
        (create_trial(value=1.0), True, False),
        (create_trial(value=math.inf), False, False),
        (create_trial(values=[1.0, -math.inf]), False, False),
        (create_trial(value=1.0, user_attrs={DUPLICATE_OF: 0}), False, False),
        (create_trial(state=TrialState.RUNNING), False, False),
        (create_trial(state=TrialState.PRUNED), False, False),
        (create_trial(state=TrialState.FAIL), False, False),
        (create_trial(state=TrialState.FAIL, user_attrs={FAILURE: "nan"}), False, True),
        (create_trial(state=TrialState.FAIL, user_attrs={FAILURE: "no disk", INTERRUPTED: "no disk"}), False, False),
    ],
)
def test_which_trials_count(trial, measured, failed):
    assert counts(trial) is measured
    assert is_failure(trial) is failed


def test_turns_pass_over_interrupted_trials():
    study = new_study()
    study.add_trial(create_trial(value=1.0))
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={INTERRUPTED: "killed"}))
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={FAILURE: "nan"}))
    study.add_trial(create_trial(state=TrialState.RUNNING))
    assert [turn(study, trial) for trial in study.trials] == [0, 1, 1, 2]


def test_repetitions_are_counted_from_the_last_trial_that_ended():
    study = new_study()
    again = create_trial(value=1.0, user_attrs={DUPLICATE_OF: 0})
    pruned, killed = (
        create_trial(state=TrialState.PRUNED),
        create_trial(state=TrialState.FAIL, user_attrs={INTERRUPTED: "killed"}),
    )
    expected = []
    for trial, count in [(again, 1), (create_trial(value=1.0), 0), (again, 1), (killed, 1), (pruned, 2)]:
        study.add_trial(trial)
        expected.append((repetitions(study.trials), count))
    study.add_trial(create_trial(state=TrialState.RUNNING))
    study.add_trial(create_trial(state=TrialState.WAITING))
    expected.append((repetitions(study.trials), 2))
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={FAILURE: "nan"}))
    expected.append((repetitions(study.trials), 0))
    assert all(found == count for found, count in expected), expected
