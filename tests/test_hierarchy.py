"""Levels of the hierarchy, and what lies between architectures."""

import random

import optuna
import pytest

from search.errors import UserError
from search.samplers.hierarchical import best_architectures
from search.space.hierarchy import interpolate, levels
from search.space.search_space import SearchSpace


OPERATIONS = (
    {"op": "self_attention"},
    {"op": "linear_transform", "transform": "fourier"},
    {"op": "dynamic_convolution", "kernel_size": 5},
)
SPACE = SearchSpace(
    (2, 3, 4), (32, 64), (2, 4), OPERATIONS, (64, 128), (1, 3), mixed_feed_forward=True, mixed_heads=True
)


def test_levels_grow_from_paired_homogeneous_layers_to_the_space_itself():
    spaces = levels(SPACE)
    assert [(s.layers_per_stack, s.mixed_feed_forward, s.mixed_heads) for s in spaces] == [
        (2, False, False),
        (1, False, False),
        (1, True, False),
        (1, True, True),
    ]
    assert spaces[0].num_layers == (2, 4)
    assert spaces[-1] == SPACE
    sizes = [space.size() for space in spaces]
    assert sizes == sorted(set(sizes))
    rng = random.Random(0)
    for coarse, fine in zip(spaces, spaces[1:]):
        assert all(coarse.sample(rng) in fine for _ in range(20))


def test_first_level_of_the_paper_has_its_published_size():
    operations = (
        *({"op": "self_attention", "similarity": s} for s in ("scaled_dot_product", "weighted_multiplicative")),
        *({"op": "linear_transform", "transform": t} for t in ("fourier", "cosine")),
        *({"op": "dynamic_convolution", "kernel_size": k} for k in (5, 9)),
    )
    space = SearchSpace((2, 4), (128, 256), (2, 4), operations, (512, 1024), (1, 3), mixed_feed_forward=True)
    assert [s.size() for s in levels(space)][0] == 9312
    assert len(levels(space)) == 3


def test_interpolation_allows_at_a_place_what_was_there_and_nothing_else():
    coarse, fine = levels(SPACE)[:2]
    rng = random.Random(1)
    parents = [coarse.sample(rng) for _ in range(3)]
    between = interpolate(fine, parents)
    assert all(parent in between for parent in parents)
    assert between.size() < fine.size()
    for _ in range(50):
        child = between.sample(rng)
        assert len(child) in {len(parent) for parent in parents}
        for place, layer in enumerate(child):
            there = [parent[place] for parent in parents if len(parent) > place]
            assert layer.hidden_size in {other.hidden_size for other in there}
            assert layer.operations[0].op in {other.operations[0].op for other in there}
            assert layer.num_heads in {other.num_heads for other in there}
            assert len(layer.feed_forward) in {len(other.feed_forward) for other in there}
            assert set(layer.feed_forward) <= {size for other in there for size in other.feed_forward}


def test_mixed_parts_of_a_layer_share_what_the_parents_have_there():
    fine = levels(SPACE)[-1]
    coarse = levels(SPACE)[1]
    rng = random.Random(2)
    base = {name: values[0] for name, values in coarse.choices.items()}
    first = coarse.build({**base, "num_layers": 2, "layer0.num_heads": 2, "layer0.feed_forward_depth": 3})
    second = coarse.build(
        {**base, "num_layers": 2, "layer0.operation": "dynamic_convolution(kernel_size=5)", "layer0.num_heads": 4}
    )
    between = interpolate(fine, [first, second])
    children = [between.sample(rng) for _ in range(60)]
    assert any(len(child[0].operations) == 2 for child in children)
    assert {group.op for child in children for group in child[0].operations} == {
        "self_attention",
        "dynamic_convolution",
    }
    assert all(group.op == "self_attention" for child in children for group in child[1].operations)


def test_a_study_climbs_the_levels():
    def score(layers):
        return sum(layer.hidden_size for layer in layers) + (layers[0].num_heads != layers[1].num_heads)

    spaces = levels(SPACE)
    space, best = spaces[0], []
    for finer in [*spaces[1:], None]:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
        study.optimize(lambda trial: score(space.suggest(trial)), n_trials=15)  # noqa: B023
        best.append(study.best_value)
        top = best_architectures(study.trials, space, study.direction)
        assert score(top[0]) == study.best_value
        assert len(set(top)) == len(top) <= 5
        if finer is not None:
            space = interpolate(finer, top)
    assert best[-1] > best[0]  # layers of a pair differ from the second level on only


def test_best_architectures_respect_the_direction():
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: len(SPACE.suggest(trial)), n_trials=10)
    assert len(best_architectures(study.trials, SPACE, study.direction)[0]) == min(
        trial.value for trial in study.trials
    )


def test_bad_input_is_named():
    with pytest.raises(UserError, match="no finished architecture"):
        interpolate(SPACE, [])
    with pytest.raises(UserError, match="not in the space"):
        interpolate(levels(SPACE)[0], [random_three_layers()])
    with pytest.raises(UserError, match="no depth of .3. is even"):
        levels(SearchSpace((3,), (32,), (2,), OPERATIONS, (64,)))
    with pytest.raises(UserError, match="restrictions"):
        levels(SPACE.restrict({"num_layers": [2]}))


def random_three_layers():
    return SPACE.restrict({"num_layers": [3]}).sample(random.Random(0))
