"""Search spaces: exact sizes, membership, mutation, Optuna's define-by-run, and messages for bad recipes."""

import random

import optuna
import pytest

from flexibert.spec import parse_layers
from search.errors import UserError
from search.space.search_space import SearchSpace, operation_label


OPERATIONS = [
    {"op": "self_attention"},
    {"op": "self_attention", "similarity": "weighted_multiplicative"},
    {"op": "linear_transform", "transform": "fourier"},
    {"op": "linear_transform", "transform": "cosine"},
    {"op": "dynamic_convolution", "kernel_size": 5},
    {"op": "dynamic_convolution", "kernel_size": 9},
]
PAPER = {
    "num_layers": [2, 4],
    "hidden_size": [128, 256],
    "num_heads": [2, 4],
    "operations": OPERATIONS,
    "feed_forward_size": [512, 1024],
    "feed_forward_depth": [1, 3],
}
MIXED = {
    "num_layers": [1, 2],
    "hidden_size": [8],
    "num_heads": [2, 3],
    "operations": OPERATIONS[:2],
    "feed_forward_size": [4, 5],
    "feed_forward_depth": [1, 2],
    "mixed_feed_forward": True,
    "mixed_heads": True,
    "head_size": 4,
}
SPACES = {
    "level 1": {**PAPER, "layers_per_stack": 2},
    "homogeneous feed-forward": PAPER,
    "full": {**PAPER, "mixed_feed_forward": True},
    "one width": {**PAPER, "shared_hidden_size": True},
    "mixed heads": MIXED,
}


@pytest.fixture(params=SPACES)
def space(request):
    return SearchSpace.from_dict(SPACES[request.param])


@pytest.mark.parametrize(
    "name, size",
    [
        ("level 1", 9_312),
        ("homogeneous feed-forward", 84_943_872),
        ("full", 3_317_817_600),
        ("one width", 10_621_440),
    ],
)
def test_published_sizes(name, size):
    assert SearchSpace.from_dict(SPACES[name]).size() == size


def test_flexibert_2_layer_count():
    kernel_13 = {"op": "dynamic_convolution", "kernel_size": 13}
    data = {
        "num_layers": [1],
        "hidden_size": [128, 256, 512, 768],
        "num_heads": [2, 4, 8, 12],
        "operations": [*OPERATIONS, kernel_13],
        "feed_forward_size": [256, 512, 1024, 2048, 3072, 4096],
        "feed_forward_depth": [1, 2, 3],
        "mixed_feed_forward": True,
        "mixed_heads": True,
        "head_size": 64,
    }
    assert SearchSpace.from_dict(data).size() == 22_502_760
    assert SearchSpace.from_dict({**data, "num_layers": [2, 4]}).size() == 22_502_760**2 + 22_502_760**4


def test_size_counts_different_architectures():
    space = SearchSpace.from_dict({**MIXED, "num_layers": [1]})
    rng = random.Random(0)
    assert len({space.sample(rng) for _ in range(3000)}) == space.size()


def test_samples_are_members_and_differ(space):
    rng = random.Random(0)
    samples = [space.sample(rng) for _ in range(50)]
    assert all(sample in space for sample in samples)
    assert len(set(samples)) > 20


def test_same_seed_same_samples(space):
    first, second = random.Random(7), random.Random(7)
    assert [space.sample(first) for _ in range(5)] == [space.sample(second) for _ in range(5)]


def test_parameters_invert_build(space):
    rng = random.Random(1)
    for _ in range(50):
        layers = space.sample(rng)
        assert space.build(space.parameters(layers)) == layers


def test_only_active_parameters_count(space):
    rng = random.Random(2)
    for _ in range(20):
        values = {name: rng.choice(options) for name, options in space.choices.items()}
        active = space.active(values)
        changed = {
            name: value if name in active else rng.choice(space.choices[name]) for name, value in values.items()
        }
        assert space.build(changed) == space.build(values)


def test_mutants_are_different_members(space):
    rng = random.Random(3)
    layers = space.sample(rng)
    for _ in range(100):
        mutant = space.mutate(layers, rng)
        assert mutant in space and mutant != layers
        layers = mutant


def test_mutation_reaches_every_member():
    space = SearchSpace.from_dict(
        {**PAPER, "num_layers": [1], "operations": OPERATIONS[:3], "feed_forward_depth": [1]}
    )
    rng = random.Random(4)
    layers, seen = space.sample(rng), set()
    for _ in range(2000):
        seen.add(layers)
        layers = space.mutate(layers, rng)
    assert len(seen) == space.size()


def test_one_member_space_cannot_mutate():
    one = {name: value[:1] for name, value in PAPER.items()}
    space = SearchSpace.from_dict(one)
    assert space.size() == 1
    with pytest.raises(ValueError, match="one member"):
        space.mutate(space.sample(random.Random(0)), random.Random(0))


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler, optuna.samplers.TPESampler])
def test_suggest_builds_what_the_trial_says(space, sampler):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler(seed=0))
    for value in range(12):
        trial = study.ask()
        layers = space.suggest(trial)
        assert layers in space
        assert space.build(trial.params) == layers
        study.tell(trial, value)


def test_enqueued_architecture_comes_back(space):
    layers = space.sample(random.Random(5))
    study = optuna.create_study()
    study.enqueue_trial(space.parameters(layers))
    assert space.suggest(study.ask()) == layers


def test_foreign_architectures_are_not_members(space):
    foreign = parse_layers(
        [{"hidden_size": 30, "operations": [{"op": "self_attention", "num_heads": 3}], "feed_forward": [7]}]
    )
    assert foreign not in space
    assert () not in space


def test_restriction_is_a_part_of_the_space():
    space = SearchSpace.from_dict(PAPER)
    part = space.restrict({"num_layers": [2], "layer0.operation": ["self_attention"]})
    assert part.size() == 16 * 96
    rng = random.Random(6)
    for _ in range(20):
        layers = part.sample(rng)
        assert layers in part and layers in space
        assert len(layers) == 2 and operation_label(layers[0].operations[0].to_dict()) == "self_attention"
    with pytest.raises(ValueError, match="layer0.operation"):
        space.restrict({"layer0.operation": ["no such thing"]})


def test_round_trip(space):
    assert SearchSpace.from_dict(space.to_dict()) == space


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_heads": [3]}, "not a multiple of the 3 heads"),
        ({"operations": [{"op": "self_atention"}]}, r"operations\[0\]: unknown operation 'self_atention', known: "),
        ({"operations": [{"op": "dynamic_convolution", "kernel_size": 4}]}, r"kernel_size: 4 .* odd"),
        ({"operations": []}, "operations"),
        ({"operations": ["self_attention"]}, r"operations\[0\]"),
        ({"num_layers": []}, "num_layers"),
        ({"num_layers": [0]}, "num_layers"),
        ({"num_layers": [True]}, "num_layers"),
        ({"num_layers": 2}, "num_layers"),
        ({"num_layers": [3], "layers_per_stack": 2}, "layers_per_stack"),
        ({"hidden_size": [128, 128]}, "twice"),
        ({"mixed_heads": 1}, "mixed_heads"),
        ({"head_size": [64]}, "head_size"),
        ({"depth": [2]}, "unknown key 'depth', known: num_layers"),
    ],
)
def test_bad_spaces_are_refused_with_a_path(change, message):
    with pytest.raises(UserError, match=message) as error:
        SearchSpace.from_dict({**PAPER, **change}, "here: space")
    assert str(error.value).startswith("here: space")
    assert "\n" not in str(error.value)


def test_missing_field_is_named():
    with pytest.raises(UserError, match="hidden_size is missing"):
        SearchSpace.from_dict({"num_layers": [2]})


def test_the_table_says_what_every_parameter_decides(space):
    assert list(space.table) == list(space.choices)
    units = {unit.name: unit for unit in space.units}
    for name, parameter in space.table.items():
        assert parameter.values == space.choices[name]
        if parameter.unit is None:
            assert name == parameter.part in ("num_layers", "hidden_size")
            continue
        assert name == f"{parameter.unit}.{parameter.role}"
        unit = units[parameter.unit]
        own = {
            "hidden_size": (unit.hidden_size,),
            "num_heads": (unit.num_heads,),
            "operation": unit.operations,
            "feed_forward_depth": (unit.feed_forward_depth,),
            "feed_forward_size": unit.feed_forward_sizes,
        }
        assert name in own[parameter.part]
    part = space.restrict({"num_layers": space.num_layers[:1]})
    assert part.table["num_layers"].values == space.num_layers[:1]
    assert [name for name in part.table if part.table[name] != space.table[name]] == ["num_layers"]


def test_a_label_stands_for_a_kind_of_operation():
    space = SearchSpace.from_dict({**PAPER, "operations": [OPERATIONS[4], OPERATIONS[5], OPERATIONS[0]]})
    labels = space.table["layer0.operation"].values
    assert [space.kind(label) for label in labels] == ["dynamic_convolution", "dynamic_convolution", "self_attention"]
    assert space.kind(4) == "4"
