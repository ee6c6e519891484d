"""Super-networks: a slice is the extracted model, gradients are sparse, what is written back comes out."""

import copy
import dataclasses
import random
from functools import lru_cache

import pytest
import torch

from flexibert.spec import layers_to_dicts
from search.cli import build_parser
from search.errors import UserError
from search.evaluation.member_sampling import MEMBER_SAMPLING, SIZES, random_member, with_parts
from search.evaluation.supernet import SuperNetwork, load_supernet, save_supernet
from search.space.search_space import SearchSpace, operation_label
from search.training.pretraining import PretrainingBudget


KERNELS = [{"op": "lightweight_convolution", "kernel_size": size} for size in (3, 9, 65)]
FREE_GRAPH = {"op": "attention_graph", "graph": {"mode": "free"}}
OPERATIONS = [
    {"op": "self_attention"},
    {"op": "self_attention", "similarity": "weighted_multiplicative"},
    {"op": "linear_transform"},
    {"op": "linear_transform", "transform": "cosine", "relative_attention": True},
    {"op": "linear_transform", "source": "layer", "norm": "backward"},
    *({"op": "dynamic_convolution", "kernel_size": size} for size in (5, 9)),
    *({"op": "dynamic_convolution", "kernel_size": size, "mixed_attention": True} for size in (3, 7)),
    *({"op": "dynamic_convolution", "kernel_size": size, "source": "head"} for size in (5, 13)),
    {"op": "lightweight_convolution", "kernel_size": 15, "gated": False},
    *KERNELS,
    FREE_GRAPH,
]
EVERYTHING = {
    "num_layers": [1, 2],
    "hidden_size": [16, 32],
    "num_heads": [2, 4],
    "operations": OPERATIONS,
    "feed_forward_size": [24, 48],
    "feed_forward_depth": [1, 3],
    "mixed_feed_forward": True,
}
AUTOBERT = {
    "num_layers": [2],
    "hidden_size": [16],
    "num_heads": [2],
    "operations": [{"op": "attention_graph", "graph": {"max_nodes": 9}}, *KERNELS],
    "feed_forward_size": [24],
}
MIXED_HEADS = [operation for operation in OPERATIONS if not operation.get("mixed_attention")][:9]
SPACES = {
    "autobert": AUTOBERT,
    "everything": EVERYTHING,
    "mixed": {**EVERYTHING, "mixed_heads": True, "operations": [o for o in MIXED_HEADS if o.get("source") != "layer"]},
    "head_size": {**AUTOBERT, "hidden_size": [16, 24], "num_heads": [2, 3], "head_size": 12},
    "stacks": {**EVERYTHING, "num_layers": [2, 4], "layers_per_stack": 2, "shared_hidden_size": True},
}
SPACES = {name: SearchSpace.from_dict(data) for name, data in SPACES.items()}
FIELDS = {"vocab_size": 50, "max_position_embeddings": 24}
MODELS = {
    "plain": {},
    "relative": {"position_embedding_type": "relative_key"},
    "relative_keys": {"position_embedding_type": "relative_key_query"},
    "untied": {"tie_word_embeddings": False},
    "embeddings": {"embedding_size": 20, "position_embedding_type": "rotary"},
    "projected": {"project_embeddings": True},
}


@lru_cache(maxsize=1)
def first_weights(name, fields):
    torch.manual_seed(0)
    return SuperNetwork(SPACES[name], {**FIELDS, **dict(fields)}).eval()


def build(name, **fields):
    """A super-network whose every number is random: ones and zeros would hide what is not copied."""
    network = copy.deepcopy(first_weights(name, tuple(fields.items())))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def batch():
    """Token ids (3, 20) and a mask with padding."""
    ids = torch.randint(1, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 12:] = mask[2, 1:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def difference(network, layers, model):
    """Largest difference between a member within the super-network and a model."""
    with torch.no_grad():
        return (network(layers, **batch()).logits - model.eval()(**batch()).logits).abs().max().item()


def members(space, count=4):
    return [space.sample(random.Random(seed)) for seed in range(count)]


@pytest.mark.parametrize("operation", OPERATIONS, ids=operation_label)
def test_a_slice_is_the_extracted_model_for_every_operation(operation):
    space = SPACES["everything"]
    restricted = space.restrict({f"layer{i}.operation": [operation_label(operation)] for i in range(2)})
    network = build("everything", position_embedding_type="relative_key")
    for layers in members(restricted, 1):
        assert {group.op for layer in layers for group in layer.operations} == {operation["op"]}
        model = network.extract(layers)
        assert difference(network, layers, model) <= 1e-6
        assert model.config.layer_specs == layers
        shared = {parameter.data_ptr() for parameter in network.parameters()}
        assert not shared & {parameter.data_ptr() for parameter in model.parameters()}


@pytest.mark.parametrize(
    "name, fields", [*((name, "plain") for name in SPACES), *(("mixed", x) for x in list(MODELS)[1:])]
)
def test_a_slice_is_the_extracted_model_in_every_space(name, fields):
    network = build(name, **MODELS[fields])
    for layers in members(SPACES[name], 2):
        assert difference(network, layers, network.extract(layers)) <= 1e-6


def test_a_changed_model_has_other_outputs():
    """What the comparison above rests on: it sees a change of any single parameter."""
    network, layers = build("autobert"), members(SPACES["autobert"], 1)[0]
    model = network.extract(layers)
    for name, parameter in model.named_parameters():
        if name.endswith("key.bias"):
            continue  # a softmax does not see what is added to all of its scores
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
            assert difference(network, layers, model) > 1e-6, name
            parameter.copy_(before)


def test_smaller_kernels_are_the_middle_of_the_largest():
    """With the matrices that training starts from."""
    network = SuperNetwork(SPACES["autobert"], FIELDS)
    labels = [operation_label(operation) for operation in (KERNELS[2], KERNELS[0])]
    large, small = (
        network.extract(members(SPACES["autobert"].restrict({f"layer{i}.operation": [label] for i in range(2)}), 1)[0])
        for label in labels
    )
    for wide, narrow in zip(large.model.layers, small.model.layers):
        wide, narrow = (layer.mixer.operations[0].weight for layer in (wide, narrow))
        assert wide.shape == (2, 65) and torch.equal(narrow, wide[:, 31:34])


def test_the_branches_are_those_of_the_paper():
    network = SuperNetwork(SPACES["autobert"], FIELDS)
    held = {
        name.split("/", 2)[2]: tuple(p.shape) for name, p in network.shared.items() if name.startswith("layers/0/")
    }
    projections = {f"attention_graph/mixer/projections/{name}/weight" for name in ("query", "key", "value", "extra")}
    assert projections <= held.keys()
    assert held["lightweight_convolution/mixer/operations/weight"] == (2, 65)
    matrices = {name: shape for name, shape in held.items() if "transformation" in name}
    assert sorted(matrices.values()) == [(3, 3), (9, 9)]
    branches = {name.split("/")[0] for name in held}
    assert branches == {"attention_graph", "lightweight_convolution"}


@pytest.mark.parametrize("name", SPACES)
def test_what_is_written_back_comes_out_again(name):
    network, other = build(name), build(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    for key in other.shared:  # well-conditioned, as trained ones are
        if "transformation" in key:
            other.shared[key].data = network.shared[key].data = torch.eye(len(other.shared[key])) + 0.01
    for layers in members(SPACES[name], 3):
        model = network.extract(layers)
        before = {key: value.clone() for key, value in other.shared.items()}
        other.write_back(layers, model)
        torch.testing.assert_close(dict(other.extract(layers).named_parameters()), dict(model.named_parameters()))
        used = {piece for piece in before if not torch.equal(before[piece], other.shared[piece])}
        assert not any("transformation" in key for key in used)
        assert not any(key.startswith(f"layers/{len(layers)}/") for key in used)


def test_gradients_reach_what_a_member_uses_and_nothing_else():
    network = build("autobert").train()
    narrow = {"layer0.operation": ["lightweight_convolution(kernel_size=3)"]}
    layers = random_member(SPACES["autobert"].restrict(narrow), 0, 0)
    inputs = batch()
    network(layers, **inputs, labels=inputs["input_ids"]).loss.backward()
    touched = {key for key, parameter in network.shared.items() if parameter.grad is not None}
    first = {key for key in touched if key.startswith("layers/0/")}
    assert first and all("lightweight_convolution" in key for key in first)
    assert "layers/0/lightweight_convolution/mixer/operations/transformation_3" in first
    kernel = network.shared["layers/0/lightweight_convolution/mixer/operations/weight"].grad
    assert kernel[:, 31:34].any() and not kernel[:, :31].any() and not kernel[:, 34:].any()


def test_an_architecture_of_another_space_is_refused():
    network = SuperNetwork(SPACES["autobert"], FIELDS)
    layers = members(SPACES["autobert"], 1)[0]
    with pytest.raises(ValueError, match="not in the space"):
        network.extract([dataclasses.replace(layer, hidden_size=18) for layer in layers])


class Tokenizer:
    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")


def test_saved_and_loaded_networks_are_equal(tmp_path):
    network = build("everything", hidden_dropout_prob=0.0)
    save_supernet(network, Tokenizer(), tmp_path / "net", {"steps": 3})
    loaded, description = load_supernet(tmp_path / "net")
    assert description.training == {"steps": 3} and loaded.fields == network.fields and loaded.space == network.space
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())
    layers = members(SPACES["everything"], 1)[0]
    assert difference(loaded.eval(), layers, network.extract(layers)) == 0


def test_a_folder_without_a_network_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no super-network"):
        load_supernet(tmp_path / "nothing")
    save_supernet(build("autobert"), Tokenizer(), tmp_path / "net", {})
    (tmp_path / "net" / "supernet.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="supernet.safetensors is damaged"):
        load_supernet(tmp_path / "net")


def test_paths_depend_on_seed_and_step_only():
    space = SPACES["autobert"]
    paths = [layers_to_dicts(random_member(space, 0, step)) for step in range(40)]
    assert paths == [layers_to_dicts(random_member(space, 0, step)) for step in range(40)]
    assert paths[0] != paths[1] and paths[:5] != [layers_to_dicts(random_member(space, 1, step)) for step in range(5)]
    kinds = [layer["operations"][0]["op"] for path in paths for layer in path]
    assert 25 <= kinds.count("attention_graph") <= 55  # kinds are drawn before kernel sizes


# --- which members are trained ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", MEMBER_SAMPLING)
@pytest.mark.parametrize("name", SPACES)
def test_members_of_a_step_are_a_function_of_seed_step_and_part(name, rule):
    space, member = SPACES[name], MEMBER_SAMPLING[rule]
    paths = [member(space, 0, step, part) for step in range(6) for part in range(4)]
    assert paths == [member(space, 0, step, part) for step in range(6) for part in range(4)]
    assert all(layers in space for layers in paths)
    assert paths[:4] != [member(space, 1, 0, part) for part in range(4)]


def test_fair_sampling_trains_every_operation_equally_often():
    space = SPACES["everything"]
    count = len(space.operations)
    for first in (0, 3 * count):
        members = [MEMBER_SAMPLING["fair"](space, 5, first + step, 0) for step in range(count)]
        assert len({len(layers) for layers in members}) == 1
        for place in zip(*members):
            labels = [space.parameters((layer,) * len(members[0]))["layer0.operation"] for layer in place]
            assert sorted(labels) == sorted(map(operation_label, space.operations))
    drawn = [space.parameters(MEMBER_SAMPLING["random"](space, 5, step, 0)) for step in range(count)]
    assert len({values["layer0.operation"] for values in drawn}) < count


def test_the_sandwich_has_the_largest_member_on_top_and_the_smallest_below():
    space = SPACES["everything"]
    for step in range(5):
        largest, smallest, *others = (MEMBER_SAMPLING["sandwich"](space, 0, step, part) for part in range(4))
        for layers, extreme in ((largest, max), (smallest, min)):
            values = space.parameters(layers)
            for name in space.active(values):
                parameter = space.table[name]
                assert parameter.part not in SIZES or values[name] == extreme(parameter.values), name
        assert others[0] != others[1]


def test_the_sandwich_takes_parts():
    budget = PretrainingBudget(batch_size=8)
    assert with_parts(budget, "fair", 2) is budget
    assert with_parts(budget, "sandwich", 1).micro_batches == 4
    assert with_parts(dataclasses.replace(budget, micro_batches=8), "sandwich", 1).micro_batches == 8
    assert with_parts(budget, "sandwich", 4) is budget
    for processes, micro_batches in ((2, 1), (4, 2)):
        with pytest.raises(UserError, match="--sampling sandwich"):
            with_parts(dataclasses.replace(budget, micro_batches=micro_batches), "sandwich", processes)
    for name in MEMBER_SAMPLING:
        options = build_parser().parse_args(["supernet", "--recipe", "r", "--output", "o", "--sampling", name])
        assert options.sampling == name
