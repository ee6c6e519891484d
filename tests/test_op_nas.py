"""OP-NAS and evolution: priorities by hand, rounds, determinism, and odd studies; see also `test_samplers.py`."""

import json
import math
import random
import subprocess
import sys

import numpy as np
import optuna
import pytest

from flexibert.attention_graph import GRAPHS
from flexibert.spec import parse_layers
from search.errors import UserError
from search.recipe import load_recipe
from search.samplers import create_sampler
from search.samplers.evolution import EvolutionSampler
from search.samplers.op_nas import OperationPriority, OpNasSampler
from search.samplers.population import Member, function, read_members
from search.space.search_space import SearchSpace


optuna.logging.set_verbosity(optuna.logging.WARNING)

FLEXIBERT = {
    "num_layers": [2, 4],
    "hidden_size": [16, 32],
    "num_heads": [2, 4],
    "operations": [
        {"op": "self_attention"},
        {"op": "self_attention", "similarity": "weighted_multiplicative"},
        {"op": "linear_transform"},
        {"op": "dynamic_convolution", "kernel_size": 5},
    ],
    "feed_forward_size": [32, 64],
    "feed_forward_depth": [1, 3],
    "mixed_feed_forward": True,
}
AUTOBERT = {
    "num_layers": [4],
    "hidden_size": [16],
    "num_heads": [2],
    "operations": [
        {"op": "attention_graph", "graph": {"mode": "tail", "max_nodes": 9}},
        *({"op": "lightweight_convolution", "kernel_size": size} for size in (3, 9, 65)),
    ],
    "feed_forward_size": [24],
}
FREE = {**AUTOBERT, "operations": [{"op": "attention_graph", "graph": {"mode": "free"}}, *AUTOBERT["operations"][1:]]}
MIXED = {**AUTOBERT, "mixed_heads": True}
RECIPES = {"flexibert": FLEXIBERT, "tail": AUTOBERT, "free": FREE, "mixed": MIXED}
SPACES = {name: SearchSpace.from_dict(data) for name, data in RECIPES.items()}
SMALL = {"population": 8, "parents": 2, "children": 3}


def op_nas(space, **options):
    return OpNasSampler(space, **{"seed": 0, **SMALL, **options})


def evolution(space, **options):
    return EvolutionSampler(space, **{"seed": 0, "population": 8, "tournament": 4, **options})


def score(layers):
    """A toy objective that depends on the order of the layers and, in attention graphs, on the primitives."""
    total = 0.0
    for index, layer in enumerate(layers):
        for group in layer.operations:
            if index % 2 == 0:
                wanted = getattr(group, "kernel_size", 0) in (5, 9)
            elif hasattr(group, "nodes"):
                wanted = min(" ".join(group.nodes).count("softsign"), 2)
            else:
                wanted = getattr(group, "similarity", "") == "weighted_multiplicative"
            total += wanted * group.num_heads / layer.num_heads
        total += 0.1 * (layer.feed_forward[-1] == 64)
    return total


class Study:
    """As much of a study as a sampler sees, without the cost of storing parameters one by one."""

    def __init__(self, direction="maximize"):
        self.direction = optuna.study.StudyDirection[direction.upper()]
        self.directions = [self.direction]
        self.trials = []

    def get_trials(self, deepcopy=True, states=None):
        return [trial for trial in self.trials if states is None or trial.state in states]

    def add(self, params, value, state=optuna.trial.TrialState.COMPLETE):
        self.trials.append(frozen(len(self.trials), params, value, state))


def frozen(number, params, value=None, state=optuna.trial.TrialState.RUNNING):
    return optuna.trial.FrozenTrial(number, state, value, None, None, params, {}, {}, {}, {}, number)


def run(sampler, trials, direction="maximize", objective=score, study=None):
    study = study or Study(direction)
    for _ in range(trials):
        trial = frozen(len(study.trials), {})
        params = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
        study.add(params, objective(sampler.space.build(params)))
    return study


def best_value(study):
    return max(trial.value for trial in study.trials)


# --- priorities ---------------------------------------------------------------------------------------------------

NAMES = list(SPACES["tail"].choices)
LABELS = SPACES["tail"].choices["layer0.operation"]


def member(number, **operations):
    """A trial with these operations, by layer, as indices into LABELS."""
    indices = [-1] * len(NAMES)
    for layer, index in operations.items():
        indices[NAMES.index(f"{layer}.operation")] = index
    return Member(number, 0.0, {}, indices, str(number))


def priority(members, scores, **options):
    return OperationPriority(SPACES["tail"], members, np.array(scores), **options)


def test_priorities_by_hand():
    members = [member(0, layer0=0), member(1, layer0=0), member(2, layer0=1), member(3, layer1=2)]
    table = priority(members, [0.6, 0.8, 1.0, 0.5], alpha=0.5)  # rescaled: 0.2, 0.6, 1, 0
    bonus = 0.5 * math.sqrt(2 * math.log(3))
    expected = [0.4 + bonus / math.sqrt(2), 1 + bonus, 1 + bonus]  # the third was never tried here
    np.testing.assert_allclose(table.priorities("layer0.operation", LABELS[:3]), expected)
    weights = np.exp(expected)
    np.testing.assert_allclose(table.probabilities("layer0.operation", LABELS[:3]), weights / weights.sum())
    np.testing.assert_allclose(table.priorities("layer0.operation", LABELS[1:2]), expected[1:2])


def test_without_exploration_operations_are_ordered_by_their_mean():
    members = [member(i, layer0=i % 3) for i in range(9)]
    scores = np.array([3.0, 1.0, 2.0] * 3) + np.arange(9) / 10
    order = np.argsort(priority(members, scores, alpha=0.0).priorities("layer0.operation", LABELS[:3]))
    assert order.tolist() == [1, 2, 0]


def test_what_was_never_tried_comes_first():
    rng = random.Random(0)
    members = [member(i, layer0=rng.randrange(3)) for i in range(50)]
    scores = [rng.random() for _ in members]
    for alpha in (0.1, 0.5, 1.0):
        values = priority(members, scores, alpha=alpha).priorities("layer0.operation", LABELS)
        assert values.argmax() == 3
    assert priority([], []).priorities("layer0.operation", LABELS).tolist() == [0.0] * 4


def test_tied_positions_share_their_statistics():
    members = [member(0, layer0=0, layer1=1), member(1, layer0=1, layer2=0)]
    loose, tied = (priority(members, [0.0, 1.0], alpha=0.0, tied_positions=tied) for tied in (False, True))
    assert loose.priorities("layer0.operation", LABELS[:2]).tolist() == [0.0, 1.0]
    assert loose.priorities("layer3.operation", LABELS[:2]).tolist() == [0.0, 0.0]
    for layer in range(4):
        assert tied.priorities(f"layer{layer}.operation", LABELS[:2]).tolist() == [0.5, 0.5]
    assert tied.priorities("num_layers", (4,)).tolist() == [0.0]


def test_temperature_and_infinite_alpha():
    members, scores = [member(0, layer0=0), member(1, layer0=1)], [0.0, 1.0]
    cold = priority(members, scores, alpha=0.0, temperature=0.01)
    assert cold.probabilities("layer0.operation", LABELS[:2])[1] > 0.999
    uniform = priority(members, scores, alpha=math.inf)
    assert uniform.probabilities("layer0.operation", LABELS[:2]).tolist() == [0.5, 0.5]
    rng = random.Random(0)
    drawn = [cold.choose("layer0.operation", LABELS[:2], rng) for _ in range(20)]
    assert set(drawn) == {LABELS[1]}


@pytest.mark.parametrize("scores", [[1.0, 1.0], [math.inf, -math.inf], [-math.inf, 3.0], []])
def test_odd_scores_give_finite_priorities(scores):
    members = [member(i, layer0=i) for i in range(len(scores))]
    assert np.isfinite(priority(members, scores).priorities("layer0.operation", LABELS)).all()


# --- rounds -------------------------------------------------------------------------------------------------------


def layers_that_differ(one, other):
    return sum(a != b for a, b in zip(one, other))


def test_first_trials_are_random_and_know_both_kinds_of_layers():
    study = run(op_nas(SPACES["tail"], population=60), 60)
    labels = [study.trials[i].params[f"layer{layer}.operation"] for i in range(60) for layer in range(4)]
    assert 0.35 < np.mean([label == "attention_graph" for label in labels]) < 0.65  # although one of four choices


def test_children_of_a_round_have_the_best_of_earlier_rounds_as_parents():
    space = SPACES["tail"]
    sampler = op_nas(space, inter_rate=0.0, max_edits=1)
    study = run(sampler, 8 + 3 * 6, objective=lambda layers: score(layers) + random.Random(repr(layers)).random())
    architectures = [space.build(trial.params) for trial in study.trials]
    for number in range(8, len(study.trials)):
        start = 8 + (number - 8) // 6 * 6
        best = sorted(study.trials[:start], key=lambda trial: -trial.value)[:2]
        parent = best[(number - 8) % 6 // 3]
        assert layers_that_differ(architectures[number], architectures[parent.number]) == 1


@pytest.mark.parametrize("inter_priority", [False, True])
def test_layers_are_drawn_by_priority_on_request(inter_priority):
    """The best kernel by far, where it is an option, and otherwise all of them."""
    space = SPACES["tail"]
    best = "lightweight_convolution"  # of 9 taps, which is the default
    study = run(op_nas(space), 40, objective=lambda layers: sum("=9" in str(layer.operations) for layer in layers))
    members, scores = read_members(study, space), np.array([trial.value for trial in study.trials])
    priority = OperationPriority(space, members, scores, alpha=0.0, temperature=0.01, tied_positions=True)
    sampler, rng = op_nas(space, inter_priority=inter_priority), random.Random(0)
    poor = {f"layer{index}.operation": "lightweight_convolution(kernel_size=3)" for index in range(4)}
    parent = space.normalize({**members[0].values, **poor})
    drawn = set()
    for _ in range(60):
        child = sampler._inter_level(parent, lambda name, options: priority.choose(name, options, rng), rng)
        drawn |= {child[name] for name in poor if child[name] != parent[name]}
    assert best in drawn and (len(drawn) == 1) == inter_priority


def test_inter_level_mutation_changes_one_more_layer():
    space = SPACES["tail"]
    study = run(op_nas(space, inter_rate=1.0), 14)
    parents = sorted(study.trials[:8], key=lambda trial: -trial.value)[:2]
    changed = [
        layers_that_differ(space.build(trial.params), space.build(parents[i // 3].params))
        for i, trial in enumerate(study.trials[8:])
    ]
    assert set(changed) <= {1, 2} and 2 in changed


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("create", [op_nas, evolution])
def test_no_function_is_proposed_twice(name, create):
    space = SPACES[name]
    study = run(create(space), 60)
    members = read_members(study, space)
    assert len(members) == 60
    assert len({member.function for member in members}) == 60
    for trial, read in zip(study.trials, members):
        assert space.build(trial.params) == space.build(read.values)
        assert function(read.values, space) == read.function


def test_unit_and_direction_of_the_objective_do_not_matter():
    def proposals(direction, objective):
        return [trial.params for trial in run(op_nas(SPACES["tail"]), 30, direction, objective).trials]

    expected = proposals("maximize", score)
    assert proposals("maximize", lambda layers: 40 + 100 * score(layers)) == expected
    assert proposals("minimize", lambda layers: 3 - score(layers)) == expected


def test_evolution_ages():
    """Parents come from the last trials with aging, from the best without."""
    space = SPACES["tail"]
    study = run(evolution(space, population=4), 4, objective=lambda layers: 1.0)
    study = run(evolution(space, population=8), 4, study=study, objective=lambda layers: 0.0)
    old = [space.build(trial.params) for trial in study.trials]
    for aging, expected in ((True, range(4, 8)), (False, range(4))):
        for seed in range(20):
            sampler = evolution(space, population=4, aging=aging, seed=seed)
            params = sampler.sample_relative(study, frozen(8, {}), space.distributions())
            assert any(layers_that_differ(space.build(params), old[number]) == 1 for number in expected)


def test_a_known_architecture_can_start_the_search():
    space = SPACES["tail"]
    attention = {"op": "attention_graph", "num_heads": 2, "nodes": GRAPHS["scaled-dot-product"]}
    bert = parse_layers([{"hidden_size": 16, "operations": [attention], "feed_forward": [24]}] * 4)
    study = optuna.create_study(direction="maximize", sampler=op_nas(space))
    study.enqueue_trial(space.parameters(bert))
    assert space.suggest(study.ask()) == bert


# --- determinism --------------------------------------------------------------------------------------------------

NEW_PROCESS = """
import json, sys, optuna
from search.samplers.op_nas import OpNasSampler
from search.space.search_space import SearchSpace
space, trials = json.load(sys.stdin)
space = SearchSpace.from_dict(space)
study = optuna.create_study(direction="maximize")
for params, value in trials:
    study.add_trial(optuna.create_trial(params=params, distributions=space.distributions(), value=value))
study.sampler = OpNasSampler(space, seed=3, population=8, parents=2, children=3)
trial = study.ask()
space.suggest(trial)
print(json.dumps(trial.params))
"""


def test_same_trials_and_seed_give_the_same_proposal_in_a_new_process():
    space = SearchSpace.from_dict({**AUTOBERT, "num_layers": [2]})
    study = run(op_nas(space, seed=3), 12)
    data = json.dumps([space.to_dict(), [(trial.params, trial.value) for trial in study.trials]])
    command = [sys.executable, "-c", NEW_PROCESS]
    output = subprocess.run(command, input=data, capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == run(op_nas(space, seed=3), 1, study=study).trials[-1].params


@pytest.mark.parametrize("create", [op_nas, evolution])
@pytest.mark.parametrize("name", SPACES)
def test_the_order_in_which_trials_finish_does_not_matter(create, name):
    space = SPACES[name]
    proposals = []
    for order in (range(12), reversed(range(12)), random.Random(0).sample(range(12), 12)):
        study, asked = Study(), run(create(space), 12).trials
        study.trials = [frozen(trial.number, trial.params) for trial in asked]
        for number in order:
            study.trials[number] = asked[number]
            read_members(study, space)
        proposals.append(run(create(space), 1, study=study).trials[-1].params)
    assert proposals[0] == proposals[1] == proposals[2]


def test_seeds_differ():
    params = [run(op_nas(SPACES["tail"], seed=seed), 1).trials[0].params for seed in (0, 1, None, None)]
    assert all(one != other for i, one in enumerate(params) for other in params[:i])


# --- odd studies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("create", [op_nas, evolution])
def test_an_exhausted_space_repeats_itself(create):
    one_of_each = {name: value[:1] for name, value in FLEXIBERT.items() if isinstance(value, list)}
    space = SearchSpace.from_dict({**one_of_each, "operations": FLEXIBERT["operations"], "layers_per_stack": 2})
    study = run(create(space), 20)
    assert len({trial.params["stack0.operation"] for trial in study.trials}) == space.size() == 4
    one = SearchSpace.from_dict({**AUTOBERT, "operations": [{"op": "self_attention"}]})
    assert len(run(create(one), 12).trials) == 12


@pytest.mark.parametrize("create", [op_nas, evolution])
def test_failed_pruned_and_foreign_trials(create):
    space, study, states = SPACES["tail"], Study(), optuna.trial.TrialState
    for state in [states.FAIL, states.PRUNED] * 6:
        params = run(create(space), 1, study=study).trials.pop().params
        study.add(params, None, state)
    study.add({}, None, states.WAITING)
    study.add({"x": 0.5}, 9.0)
    study.add({**params, "layer0.operation": "no such thing"}, 9.0)
    study = run(create(space), 3, study=study)
    members = read_members(study, space)
    assert len({member.function for member in members}) == len(members) == 12 + 3


@pytest.mark.parametrize("create", [op_nas, evolution])
@pytest.mark.parametrize("value", [1.0, math.inf, -math.inf])
def test_constant_and_infinite_scores(create, value):
    assert len(run(create(SPACES["tail"]), 16, objective=lambda layers: value).trials) == 16


def test_a_part_of_the_space():
    part = SPACES["tail"].restrict({"layer0.operation": ["attention_graph"]})
    for trial in run(op_nas(part), 20).trials:
        assert trial.params["layer0.operation"] == "attention_graph"


@pytest.mark.parametrize("create", [op_nas, evolution])
def test_only_feasible_architectures_are_proposed(create):
    def feasible(layers):
        return layers[0].operations[0].op == "attention_graph"

    space = SPACES["tail"]
    trials = run(create(space, feasible=feasible), 20).trials
    assert all(feasible(space.build(trial.params)) for trial in trials)
    assert len(run(create(space, feasible=lambda layers: False), 3).trials) == 3


def test_other_parameters_are_sampled_beside():
    space = SPACES["flexibert"]
    sampler = op_nas(space)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    rates = []
    for _ in range(12):
        trial = study.ask()
        layers = space.suggest(trial)
        rates.append(trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True))
        study.tell(trial, len(layers))
    assert len(set(rates)) == 12 and all(1e-5 <= rate <= 1e-3 for rate in rates)


@pytest.mark.parametrize("create", [op_nas, evolution])
def test_several_objectives_are_refused(create):
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=create(SPACES["tail"]))
    with pytest.raises(UserError, match="one objective, the study has 2"):
        SPACES["tail"].suggest(study.ask())


@pytest.mark.parametrize(
    "option, expected",
    [
        ({"population": 0}, "a whole number of at least 1"),
        ({"parents": 2.5}, "a whole number of at least 1"),
        ({"children": "5"}, "a whole number of at least 1"),
        ({"max_edits": True}, "a whole number of at least 1"),
        ({"temperature": 0.0}, "a number of at least 1e-06"),
        ({"alpha": -0.1}, "a number of at least 0"),
        ({"alpha": math.nan}, "a number of at least 0"),
        ({"inter_rate": 1.5}, "a number of at least 0 and at most 1"),
        ({"tied_positions": "no"}, "known: true, false"),
        ({"inter_priority": 1}, "known: true, false"),
    ],
)
def test_options_out_of_range_are_refused(option, expected):
    [(name, value)] = option.items()
    with pytest.raises(UserError) as error:
        op_nas(SPACES["tail"], **option)
    message = str(error.value)
    assert message.startswith(f"{name}: {value!r} is not accepted, ") and message.endswith(expected)


@pytest.mark.parametrize("option", [{"population": 0}, {"tournament": 0}, {"aging": 1}])
def test_options_of_evolution_out_of_range_are_refused(option):
    with pytest.raises(UserError, match=f"{next(iter(option))}: .* is not accepted"):
        evolution(SPACES["tail"], **option)


# --- worth --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tail", "free", "flexibert"])
def test_it_beats_random_search_on_a_toy(name):
    space = SPACES[name]

    def best(create):
        return np.mean([best_value(run(create(seed), 80)) for seed in range(4)])

    random_search = best(lambda seed: op_nas(space, seed=seed, population=1000))
    assert best(lambda seed: op_nas(space, seed=seed, population=20)) > random_search
    assert best(lambda seed: evolution(space, seed=seed, population=20, aging=False)) > random_search


@pytest.mark.parametrize("name", ["autobert_zero_tiny", "autobert_zero_small", "autobert_zero_base"])
def test_recipes_propose(name):
    recipe = load_recipe(name)
    sampler = create_sampler(recipe.sampler, recipe.space, seed=0).sampler(Study(), frozen(0, {}))
    assert isinstance(sampler, OpNasSampler)
    assert len(run(sampler, 2, objective=len).trials) == 2
    assert recipe.trials > sampler.population
