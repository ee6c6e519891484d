"""Searched graphs: every spelling and every mutant is legal and runs, published graphs are members, equal functions
are found, and the search space around them works with Optuna."""

import contextlib
import itertools
import random

import numpy as np
import optuna
import pytest
import torch

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM, LayerSpec
from flexibert.attention_graph import GRAPHS, INPUTS, PRIMITIVES, canonical, parse_graph
from flexibert.operations import MixingContext, SearchedAttentionOperation
from flexibert.zoo import architecture
from search.errors import UserError
from search.recipe import load_recipe
from search.space.attention_space import MAX_GROWTH, GraphSpace, growth
from search.space.functional_hash import evaluate, function_fingerprint, function_hash
from search.space.search_space import SearchSpace


PLAIN = canonical(parse_graph(GRAPHS["scaled-dot-product"]))
KERNELS = (3, 5, 7, 9, 15, 31, 65)
TINY = {
    "num_layers": [2],
    "hidden_size": [16],
    "num_heads": [2],
    "operations": [
        {"op": "attention_graph", "graph": {"mode": "free", "max_nodes": 12}},
        *({"op": "lightweight_convolution", "kernel_size": size} for size in KERNELS),
    ],
    "feed_forward_size": [24],
}


@pytest.fixture(params=["tail", "free"])
def space(request):
    return GraphSpace(request.param, 12)


def graph(*lines):
    return canonical(parse_graph(lines))


def spelled(*outputs):
    """Lines of nested expressions such as add(q, neg(k)), and the names of their values."""
    lines = []

    def make(primitive):
        def apply(*operands):
            lines.append(f"n{len(lines)} = {primitive}({', '.join(operands)})")
            return f"n{len(lines) - 1}"

        return apply

    scope = {**{name: name for name in INPUTS}, **{name: make(name) for name in PRIMITIVES}}
    return lines, [eval(output, scope) for output in outputs]


def expression(text):
    lines, _ = spelled(text)
    return graph(*lines)


def tail_graph(keys, values):
    return expression(f"matmul(softmax(scale(matmul(q, transpose({keys})))), {values})")


def assert_legal(candidate, space):
    assert parse_graph(candidate.lines) == canonical(candidate) == candidate
    assert len(candidate.nodes) <= space.max_nodes
    assert candidate.mixes_tokens()
    assert candidate in space


# --- parameters <-> graph -----------------------------------------------------------------------------------------


def test_every_spelling_is_legal_and_comes_back(space):
    rng = random.Random(0)
    graphs = [space.sample(rng) for _ in range(500)]
    for candidate in graphs:
        assert_legal(candidate, space)
        assert space.decode(space.encode(candidate)) == candidate
    assert len(set(graphs)) > 200
    assert {primitive for g in graphs for primitive in [node.primitive for node in g.nodes]} >= set(space._primitives)


def test_only_active_parameters_count(space):
    rng = random.Random(1)
    for _ in range(200):
        values = space.encode(space.sample(rng), "here.")
        active = space.active(values, "here.")
        changed = {
            name: value if name in active else rng.choice(space.choices[name.removeprefix("here.")])
            for name, value in values.items()
        }
        assert space.decode(changed, "here.") == space.decode(values, "here.")
        assert space.active(changed, "here.") == active


def test_every_graph_of_a_small_space_is_spelled_and_reached_by_mutation():
    space = GraphSpace("tail", 6)
    spellings = itertools.product(*space.choices.values())
    members = {space.decode(dict(zip(space.choices, spelling))) for spelling in spellings}
    # 16 pairs of inputs; 5 unary nodes on 4 inputs or 10 sums, read as keys, as values or as both: 30 * (4 + 4 + 1)
    assert len(members) == 16 + 30 * 9
    rng = random.Random(0)
    candidate, seen = PLAIN, set()
    for _ in range(12_000):
        candidate = space.mutate(candidate, rng)
        seen.add(candidate)
    assert seen == members


@pytest.mark.parametrize("name", GRAPHS)
def test_published_graphs_are_members(space, name):
    published = parse_graph(GRAPHS[name])
    assert published in space
    assert published in GraphSpace(space.mode, len(canonical(published).nodes))
    assert space.decode(space.encode(published)) == canonical(published)


def test_what_is_not_a_member():
    tail, free = GraphSpace("tail", 12), GraphSpace("free", 12)
    layer_10 = parse_graph(GRAPHS["autobert-zero-layer-10"])  # 11 nodes
    assert layer_10 not in GraphSpace("tail", 10) and layer_10 not in GraphSpace("free", 10)
    linear = expression("matmul(q, matmul(transpose(k), v))")
    swapped = expression("matmul(softmax(scale(matmul(k, transpose(q)))), v)")
    for other in (linear, swapped):
        assert other in free and other not in tail
        with pytest.raises(ValueError, match="not in the space: t0 = "):
            tail.encode(other)
    assert expression("softsign(q)") not in free  # mixes nothing


def test_growth():
    assert growth(PLAIN) == 3
    assert growth(expression("matmul(q, matmul(transpose(k), v))")) == 5
    scores = "matmul(q, transpose(k))"
    tower = expression(f"matmul(matmul(matmul({scores}, {scores}), {scores}), v)")
    assert growth(tower) > MAX_GROWTH and tower not in GraphSpace("free", 12)


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "here: expected an object"),
        ({"node": 3}, "here: unknown key 'node', known: mode, max_nodes"),
        ({"mode": "tree"}, "here.mode: 'tree' is not accepted, known: tail, free"),
        ({"mode": ["tail"]}, "here.mode"),
        ({"max_nodes": 4}, "here.max_nodes: 4 is not accepted, expected a whole number from 5 to 64"),
        ({"max_nodes": 65}, "here.max_nodes"),
        ({"max_nodes": True}, "here.max_nodes"),
        ({"max_nodes": "12"}, "here.max_nodes"),
    ],
)
def test_bad_graph_spaces_are_refused_with_a_path(data, message):
    with pytest.raises(UserError) as error:
        GraphSpace.from_dict(data, "here")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


# --- mutation -----------------------------------------------------------------------------------------------------


def test_five_thousand_mutants_are_legal(space):
    rng = random.Random(2)
    candidate, seen = PLAIN, set()
    for _ in range(5_000):
        mutant = space.mutate(candidate, rng)
        assert mutant != candidate
        if mutant not in seen:
            assert_legal(mutant, space)
        seen.add(mutant)
        candidate = mutant
    assert len(seen) > 2_000
    assert {len(member.nodes) for member in seen} >= set(range(5, 13))


def test_mutation_is_a_function_of_the_seed(space):
    first, second = random.Random(3), random.Random(3)
    assert [space.mutate(PLAIN, first) for _ in range(50)] == [space.mutate(PLAIN, second) for _ in range(50)]


def test_the_chooser_is_asked_for_primitives(space):
    rng, asked = random.Random(4), []

    def choose(position, options):
        asked.append(position)
        assert position in space.choices and set(options) <= set(space.choices[position])
        return "logsigmoid" if "logsigmoid" in options else rng.choice(options)

    mutants = [space.mutate(PLAIN, rng, choose) for _ in range(200)]
    assert sum("logsigmoid" in " ".join(mutant.lines) for mutant in mutants) > 50
    assert len(asked) > 50


def test_mutating_a_stranger_is_an_error():
    with pytest.raises(ValueError, match="not in the space"):
        GraphSpace("tail", 12).mutate(expression("matmul(q, matmul(transpose(k), v))"), random.Random(0))


class Replay(random.Random):
    """Answers from a script, first options where it ends; one attempt of `mutate` and no restart."""

    class Over(Exception):
        pass

    def __init__(self, script):
        super().__init__(0)
        self.script, self.sizes, self.attempts = script, [], 0

    def random(self):
        self.attempts += 1
        if self.attempts > 1:
            raise Replay.Over
        return 1.0

    def choice(self, options):
        position = len(self.sizes)
        self.sizes.append(len(options))
        return options[self.script[position] if position < len(self.script) else 0]


def prefer(wanted):
    return lambda position, options: wanted if wanted in options else options[0]


def one_edit_away(space, start, primitives):
    """All mutants of a graph that take one edit with one of these primitives."""
    mutants = set()
    for wanted in primitives:
        script = []
        while script is not None:
            rng = Replay(script)
            with contextlib.suppress(Replay.Over):
                mutants.add(space.mutate(start, rng, prefer(wanted)))
            taken = [*script, *[0] * (len(rng.sizes) - len(script))][: len(rng.sizes)]
            while taken and taken[-1] + 1 == rng.sizes[len(taken) - 1]:
                taken.pop()
            script = [*taken[:-1], taken[-1] + 1] if taken else None
    return mutants


PATHS = {
    "autobert-zero-layer-2": [
        ("neg(k)", "v"),
        ("logsigmoid(neg(k))", "v"),
        ("neg(logsigmoid(neg(k)))", "v"),
        ("neg(logsigmoid(neg(k)))", "k"),
        ("neg(logsigmoid(neg(k)))", "add(q, k)"),
    ],
    "autobert-zero-layer-4": [
        ("add(q, k)", "v"),
        ("add(q, add(q, k))", "v"),
        ("add(logsigmoid(q), add(q, k))", "v"),
        ("logsigmoid(add(logsigmoid(q), add(q, k)))", "v"),
        ("neg(logsigmoid(add(logsigmoid(q), add(q, k))))", "v"),
        ("neg(logsigmoid(add(logsigmoid(q), add(q, k))))", "q"),
    ],
    "autobert-zero-layer-6": [("logsigmoid(k)", "v"), ("neg(logsigmoid(k))", "v"), ("neg(logsigmoid(k))", "q")],
    "autobert-zero-layer-10": [
        ("softsign(k)", "v"),
        ("scale(softsign(k))", "v"),
        ("softsign(scale(softsign(k)))", "v"),
        ("add(softsign(scale(softsign(k))), v)", "v"),
        ("add(k, add(softsign(scale(softsign(k))), v))", "v"),
        ("add(scale(k), add(softsign(scale(softsign(k))), v))", "v"),
    ],
    "autobert-zero-layer-12": [("scale(k)", "v"), ("add(scale(k), v)", "v")],
}
"""Keys and values after each edit on the way from scaled dot product attention to a published graph."""

BERT_TO_AUTOBERT_ZERO = 31
"""Single mutations from plain BERT to the published network: 6 layers become convolutions in one step each, the
attention layers 2, 4, 6, 8, 10 and 12 take 5, 6, 3, 3, 6 and 2 edits."""


@pytest.mark.parametrize("name", PATHS)
def test_published_graphs_are_reached_edit_by_edit(name):
    space = GraphSpace("tail", 12)
    current = PLAIN
    for keys, values in PATHS[name]:
        following = tail_graph(keys, values)
        added = {node.primitive for node in following.nodes}
        assert following in one_edit_away(space, current, sorted(added & set(space._primitives))), following.lines
        current = following
    assert current == canonical(parse_graph(GRAPHS[name]))


def test_the_published_network_is_reached_from_bert():
    space = load_recipe("autobert_zero_base").space
    target = architecture("autobert-zero-base")
    assert target in space
    plain = {"hidden_size": 768, "operations": [{"op": "attention_graph", "num_heads": 12, "nodes": PLAIN.lines}]}
    values = space.parameters([LayerSpec.from_dict({**plain, "feed_forward": [3072]})] * 12)
    rng, steps = random.Random(0), 0
    paths = {canonical(parse_graph(GRAPHS[name])).lines: path for name, path in PATHS.items()}
    for index, layer in enumerate(target):
        [operation] = layer.operations
        if operation.op == "lightweight_convolution":
            label = next(x for x in space.choices[f"layer{index}.operation"] if x in labels(operation))
            values = space.change(values, f"layer{index}.operation", label, rng)
            steps += 1
        else:
            for keys, outputs in paths[operation.nodes]:
                values.update(space.graph_space.encode(tail_graph(keys, outputs), f"layer{index}.graph."))
                assert space.build(values) in space
                steps += 1
    assert space.build(values) == target
    assert steps == BERT_TO_AUTOBERT_ZERO


def labels(operation):
    name, size = operation.op, operation.kernel_size
    return {f"{name}(kernel_size={size})"} if size != 9 else {name}


# --- functions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one, other",
    [
        ("add(add(q, k), v)", "add(q, add(k, v))"),
        ("neg(add(neg(q), neg(k)))", "add(q, k)"),
        ("scale(add(q, k))", "add(scale(q), scale(k))"),
        ("softmax(softmax(q))", "softmax(neg(neg(softmax(q))))"),
        ("softsign(neg(q))", "neg(softsign(q))"),
    ],
)
def test_equal_functions_in_different_forms(one, other):
    assert function_hash(tail_graph(one, "v")) == function_hash(tail_graph(other, "v"))
    assert function_hash(tail_graph("k", one)) == function_hash(tail_graph("k", other))


def test_names_of_projections_do_not_matter_but_their_use_does():
    assert function_hash(tail_graph("p", "k")) == function_hash(PLAIN)
    assert function_hash(tail_graph("k", "k")) != function_hash(PLAIN)
    assert function_hash(tail_graph("k", "q")) != function_hash(tail_graph("k", "k"))


def test_close_functions_differ():
    forms = ["k", "neg(k)", "scale(k)", "add(k, k)", "softsign(k)", "logsigmoid(k)", "softmax(k)", "add(k, scale(k))"]
    assert len({function_hash(tail_graph(form, "v")) for form in forms}) == len(forms)
    assert len({function_hash(tail_graph("k", form)) for form in forms}) == len(forms)
    zero = expression("matmul(softmax(matmul(q, transpose(k))), add(v, neg(v)))")
    also_zero = expression("matmul(matmul(q, transpose(k)), add(v, neg(v)))")
    assert function_hash(zero) == function_hash(also_zero) != function_hash(PLAIN)


def test_equal_hashes_are_equal_functions(space):
    """On numbers that the hash has not seen, for some order of the inputs."""
    rng, numbers = random.Random(5), np.random.default_rng(0)
    inputs = dict(zip(INPUTS, numbers.normal(size=(4, 7, 3))))
    groups = {}
    for _ in range(1_500):
        member = space.sample(rng)
        groups.setdefault(function_hash(member), set()).add(member)
    pairs = [list(group)[:2] for group in groups.values() if len(group) > 1]
    assert len(pairs) > 50
    for one, other in pairs:
        expected = evaluate(one, inputs)
        orders = (dict(zip(INPUTS, values)) for values in itertools.permutations(inputs.values()))
        assert any(np.allclose(expected, evaluate(other, order), rtol=1e-5) for order in orders), (
            one.lines,
            other.lines,
        )


def test_numpy_and_torch_agree(space):
    rng, numbers = random.Random(6), np.random.default_rng(1)
    for _ in range(100):
        member = space.sample(rng)
        data = {"op": "attention_graph", "num_heads": 2, "nodes": member.lines}
        layer = {"hidden_size": 6, "operations": [data], "feed_forward": [4]}
        config = FlexiBertConfig(layers=[layer], attn_implementation="eager")
        [spec] = config.layer_specs[0].operations
        module = SearchedAttentionOperation(config, config.layer_specs[0], spec).eval()
        inputs = dict(zip(INPUTS, numbers.normal(size=(4, 1, 2, 5, 3))))
        tensors = {name: torch.tensor(inputs[name], dtype=torch.float32) for name in spec.inputs}
        output, _ = module(tensors, None, MixingContext(None, None, torch.arange(5)[None]))
        expected = evaluate(member, inputs)
        np.testing.assert_allclose(output.numpy(), expected, rtol=1e-3, atol=1e-4 * max(1, np.abs(expected).max()))


def test_function_fingerprint():
    def layers(keys):
        data = {"op": "attention_graph", "num_heads": 2, "nodes": tail_graph(keys, "v").lines}
        return FlexiBertConfig(layers=[{"hidden_size": 8, "operations": [data], "feed_forward": [4]}]).layer_specs

    one, same, other = layers("softsign(neg(k))"), layers("neg(softsign(k))"), layers("softsign(k)")
    assert one != same
    assert function_fingerprint(one) == function_fingerprint(same) != function_fingerprint(other)


# --- the search space around --------------------------------------------------------------------------------------

SPACES = {
    "free": TINY,
    "tail": {**TINY, "operations": [{"op": "attention_graph", "graph": {}}, *TINY["operations"][1:3]]},
    "stacks": {**TINY, "num_layers": [2, 4], "layers_per_stack": 2, "shared_hidden_size": True},
    "mixed heads": {**TINY, "mixed_heads": True, "operations": [*TINY["operations"][:3], {"op": "self_attention"}]},
}


@pytest.fixture(params=SPACES)
def architectures(request):
    return SearchSpace.from_dict(SPACES[request.param])


def test_search_space_round_trips(architectures):
    assert SearchSpace.from_dict(architectures.to_dict()) == architectures
    assert architectures.size() is None
    rng = random.Random(7)
    for _ in range(30):
        values = architectures.sample_values(rng)
        layers = architectures.build(values)
        assert layers in architectures
        normal = architectures.parameters(layers)
        assert normal == architectures.normalize(values) == architectures.normalize(normal)
        assert architectures.build(normal) == layers


def test_search_space_mutants_are_different_members(architectures):
    rng = random.Random(8)
    layers = architectures.sample(rng)
    operations = set()
    for _ in range(100):
        mutant = architectures.mutate(layers, rng)
        assert mutant in architectures and mutant != layers
        layers = mutant
        operations |= {group.op for layer in layers for group in layer.operations}
    assert operations == {operation["op"] for operation in architectures.operations}


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler, optuna.samplers.TPESampler])
def test_optuna_drives_the_space(architectures, sampler):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler(seed=0))
    for value in range(12):
        trial = study.ask()
        assert architectures.suggest(trial) in architectures
        study.tell(trial, value)
    study.enqueue_trial(architectures.parameters(architectures.sample(random.Random(9))))
    assert architectures.suggest(study.ask()) == architectures.sample(random.Random(9))


def test_graph_parameters_cannot_be_restricted():
    space = SearchSpace.from_dict(TINY)
    with pytest.raises(ValueError, match="layer0.graph.result"):
        space.restrict({"layer0.graph.result": ["node0"]})
    part = space.restrict({"layer0.operation": ["attention_graph"], "layer1.operation": ["lightweight_convolution"]})
    layers = part.sample(random.Random(0))
    assert [layer.operations[0].op for layer in layers] == ["attention_graph", "lightweight_convolution"]


FIXED = {"op": "attention_graph", "nodes": list(GRAPHS["autobert-zero-layer-4"])}


def test_fixed_graphs_are_choices_too():
    space = SearchSpace.from_dict({**TINY, "operations": [FIXED, {"op": "self_attention"}]})
    layers = space.sample(random.Random(0))
    assert layers in space and space.size() == 4
    assert {space.sample(random.Random(seed))[0].operations[0].op for seed in range(9)} == {
        FIXED["op"],
        "self_attention",
    }


@pytest.mark.parametrize(
    "operations, message",
    [
        (
            [{"op": "attention_graph", "graph": {"mode": "x"}}],
            r"space.operations\[0\].graph.mode: 'x' is not accepted",
        ),
        ([{"op": "attention_graph", "graph": {}, "nodes": []}], r"space.operations\[0\]: unknown key 'nodes'"),
        ([{"op": "attention_graph", "graph": {}}] * 2, "space.operations: a searched graph beside another"),
        ([{"op": "attention_graph", "graph": {}}, FIXED], "space.operations: a searched graph beside another"),
        ([{"op": "self_attention", "graph": {}}], r"space.operations\[0\]: unknown key 'graph'"),
    ],
)
def test_bad_searched_operations_are_refused_with_a_path(operations, message):
    with pytest.raises(UserError, match=message):
        SearchSpace.from_dict({**TINY, "operations": operations})


# --- models -------------------------------------------------------------------------------------------------------


def assert_trains(layers, seed):
    """A forward and a backward pass on a padded batch: finite, and blind to what stands at padding."""
    torch.manual_seed(seed)
    config = FlexiBertConfig(layers=list(layers), vocab_size=40, max_position_embeddings=24, hidden_dropout_prob=0.0,
                             attention_probs_dropout_prob=0.0)  # fmt: skip
    model = FlexiBertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # weights as large as training could make them
            parameter.mul_(1 + 4 * torch.rand(()))
    ids = torch.randint(1, 40, (3, 20))
    mask = torch.ones_like(ids)
    mask[1, 13:] = mask[2, 1:] = 0
    labels = ids.masked_fill((mask == 0) | (torch.rand(ids.shape) > 0.5), -100)
    labels[:, 0] = ids[:, 0]
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    output.loss.backward()
    assert output.logits.isfinite().all() and output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        other = model(input_ids=torch.where(mask == 1, ids, 7), attention_mask=mask).logits
    real = mask == 1
    torch.testing.assert_close(other[real], output.logits[real], rtol=1e-3, atol=1e-3)


def mutants(count, seed):
    """Every 25th step of a random walk from plain BERT through a space with free graphs."""
    space = SearchSpace.from_dict(TINY)
    rng = random.Random(seed)
    plain = {"hidden_size": 16, "operations": [{"op": "attention_graph", "num_heads": 2, "nodes": PLAIN.lines}]}
    values = space.parameters([LayerSpec.from_dict({**plain, "feed_forward": [24]})] * 2)
    for _ in range(count):
        for _ in range(25):
            values = space.mutate_values(values, rng)
        yield space.build(values)


def test_mutants_train():
    for seed, layers in enumerate(mutants(40, seed=0)):
        assert_trains(layers, seed)


@pytest.mark.slow
def test_two_thousand_mutants_train():
    for seed, layers in enumerate(mutants(2_000, seed=1)):
        assert_trains(layers, seed)
