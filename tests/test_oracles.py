"""Every operation against another computation of it: transformers, torch's kernels, scipy, loops, formulas."""

import math

import pytest
import scipy.fft
import torch
import transformers
from conftest import SPECS, layer, op
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flexibert import GRAPHS, FlexiBertConfig, FlexiBertForMaskedLM, FlexiBertModel, convert_transformers_model
from flexibert.modeling_flexibert import FlexiBertMixer
from flexibert.operations import TRANSFORMS, MixingContext, ScoredAttention, convolve, drop, rotate
from flexibert.spec import OPERATIONS


TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
LENGTHS = (9, 6, 1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomized(model):
    """Gives every parameter a value that shows, also norms and biases, which start as ones and zeros."""
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm.weight" in name.lower()), std=0.2)
    return model.eval()


def padding(lengths=LENGTHS):
    """(B, L) bool, true at real tokens."""
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


# --- transformers -------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 40, "num_hidden_layers": 3, "intermediate_size": 56, "max_position_embeddings": 16}
BERT = transformers.BertConfig(hidden_size=32, num_attention_heads=4, **SIZES)
FNET = transformers.FNetConfig(hidden_size=30, **SIZES)
CONVBERT = transformers.ConvBertConfig(hidden_size=32, embedding_size=32, num_attention_heads=4, **SIZES)

CASES = {
    "bert": BERT,
    "bert-untied-relu": transformers.BertConfig(
        hidden_size=32, num_attention_heads=4, hidden_act="relu", tie_word_embeddings=False, **SIZES
    ),
    "fnet": FNET,
    "fnet-matrix": transformers.FNetConfig(
        hidden_size=30, use_tpu_fourier_optimizations=True, tpu_short_seq_length=9, **SIZES
    ),
    "convbert": CONVBERT,
    "convbert-small-embeddings": transformers.ConvBertConfig(
        hidden_size=32, embedding_size=16, num_attention_heads=4, conv_kernel_size=5, **SIZES
    ),
    "convbert-few-heads": transformers.ConvBertConfig(
        hidden_size=48, embedding_size=48, num_attention_heads=12, head_ratio=4, **SIZES
    ),
    "convbert-one-head": transformers.ConvBertConfig(
        hidden_size=32, embedding_size=32, num_attention_heads=1, conv_kernel_size=13, **SIZES
    ),
    "convbert-grouped": transformers.ConvBertConfig(
        hidden_size=32, embedding_size=16, num_attention_heads=4, num_groups=2, **SIZES
    ),
}  # fmt: skip
MODEL_CLASSES = {
    "bert": (transformers.BertModel, transformers.BertForMaskedLM),
    "fnet": (transformers.FNetModel, transformers.FNetForMaskedLM),
    "convbert": (transformers.ConvBertModel, transformers.ConvBertForMaskedLM),
}


def inputs_for(config):
    inputs = {
        "input_ids": torch.randint(config.vocab_size, (3, 9)),
        "token_type_ids": torch.randint(config.type_vocab_size, (3, 9)),
    }
    if config.model_type != "fnet":  # FNet takes no mask
        inputs["attention_mask"] = padding().long()
    return inputs


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_equal_to_transformers_base_model(case):
    config = CASES[case]
    model = randomized(MODEL_CLASSES[config.model_type][0](config))
    converted = convert_transformers_model(model)
    assert type(converted) is FlexiBertModel
    inputs = inputs_for(config)
    expected = model(**inputs, output_hidden_states=True)
    actual = converted(**inputs, output_hidden_states=True)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, **TOLERANCE)
    for ours, theirs in zip(actual.hidden_states[1:], expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
    if config.model_type == "convbert":
        assert actual.pooler_output is None
    else:
        torch.testing.assert_close(actual.pooler_output, expected.pooler_output, **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_equal_to_transformers_masked_lm(case):
    config = CASES[case]
    model = randomized(MODEL_CLASSES[config.model_type][1](config))
    model.tie_weights()
    converted = convert_transformers_model(model)
    assert type(converted) is FlexiBertForMaskedLM
    inputs = inputs_for(config)
    inputs["labels"] = torch.where(torch.rand(3, 9) < 0.5, inputs["input_ids"], -100)
    expected, actual = model(**inputs), converted(**inputs)
    torch.testing.assert_close(actual.logits, expected.logits, **TOLERANCE)
    torch.testing.assert_close(actual.loss, expected.loss, **TOLERANCE)


@pytest.mark.parametrize("config", [FNET, CONVBERT], ids=["fnet", "convbert"])
@torch.no_grad()
def test_converted_without_mixed_padding(config):
    """Each padded row comes out as transformers computes it alone, without padding."""
    model = randomized(MODEL_CLASSES[config.model_type][0](config))
    converted = convert_transformers_model(model, mix_padding=False)
    ids = torch.randint(config.vocab_size, (3, 9))
    actual = converted(ids, padding().long()).last_hidden_state
    for row, length in enumerate(LENGTHS):
        expected = model(ids[row : row + 1, :length]).last_hidden_state[0]
        torch.testing.assert_close(actual[row, :length], expected, **TOLERANCE)


# --- attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["absolute", "relative_key", "relative_key_query", "rotary"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_graph_of_plain_attention_equals_self_attention(positions, implementation):
    graph = [layer(32, op("attention_graph", 4, nodes=GRAPHS["scaled-dot-product"]))] * 2
    fields = {"vocab_size": 40, "max_position_embeddings": 16, "position_embedding_type": positions}
    plain, searched = (
        FlexiBertModel(FlexiBertConfig(layers=layers, attn_implementation=implementation, **fields))
        for layers in (SPECS["homogeneous"], graph)
    )
    searched.load_state_dict(randomized(plain).state_dict())
    inputs = {"input_ids": torch.randint(40, (3, 9)), "attention_mask": padding().long()}
    expected, actual = plain(**inputs), searched.eval()(**inputs)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, **TOLERANCE)


def mixer_without_output(layer, **fields):
    """The mixer of one layer with random weights; its output is the concatenation of the heads, (B, L, H d)."""
    config = FlexiBertConfig(layers=[layer], max_position_embeddings=16, attn_implementation="sdpa", **fields)
    mixer = randomized(FlexiBertMixer(config, config.layer_specs[0]))
    mixer.output = nn.Identity()
    return mixer


def run(mixer, x, mask=None):
    additive = None
    if mask is not None:
        additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(x.dtype).min)[:, None, None, :]
    return mixer(x, MixingContext(additive, mask, torch.arange(x.shape[1])[None]))[0]


def by_heads(x, num_heads):
    """(B, L, h d) -> (B, h, L, d)"""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


@pytest.mark.parametrize("positions", ["absolute", "relative_key", "relative_key_query"])
@pytest.mark.parametrize("similarity", ["scaled_dot_product", "weighted_multiplicative"])
@torch.no_grad()
def test_self_attention_equals_torch_kernel(similarity, positions):
    """Scores q W k^T + q R^T by explicit loops, as a bias of torch's fused attention over zero queries."""
    mixer = mixer_without_output(
        layer(32, op("self_attention", 4, similarity=similarity)), position_embedding_type=positions
    )
    x, mask = torch.randn(3, 9, 32), padding()
    q, k, v = (by_heads(mixer.projections[name](x), 4) for name in ("query", "key", "value"))
    matrix = torch.eye(8) if similarity == "scaled_dot_product" else mixer.operations[0].weight
    scores = torch.einsum("bhid,de,bhre->bhir", q, matrix, k)
    if positions != "absolute":
        for i in range(9):
            for r in range(9):
                scores[:, :, i, r] += q[:, :, i] @ mixer.distance_embedding.weight[i - r + 15]
                if positions == "relative_key_query":
                    scores[:, :, i, r] += k[:, :, r] @ mixer.distance_embedding.weight[i - r + 15]
    bias = (scores / math.sqrt(8)).masked_fill(~mask[:, None, None, :], -torch.inf)
    expected = nn.functional.scaled_dot_product_attention(torch.zeros_like(q), k, v, attn_mask=bias)
    actual = by_heads(run(mixer, x, mask), 4)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("size", [6, 7])
def test_rotary_positions_turn_pairs_of_features(size):
    """Feature pairs (e, e + d // 2) as complex numbers, times exp(i position base^(-2 e / d))."""
    x, positions = torch.randn(2, 3, 9, size), torch.randperm(9)
    angles = positions[:, None] * 100.0 ** (-torch.arange(3) / 3)
    turned = torch.complex(x[..., :3], x[..., 3:6]) * torch.polar(torch.ones(9, 3), angles)
    expected = torch.cat([turned.real, turned.imag, x[..., 6:]], dim=-1)
    torch.testing.assert_close(rotate(x, positions[None], 100.0), expected, **TOLERANCE)


@torch.no_grad()
def test_rotary_positions_are_relative():
    """Scores depend on the distance of positions only: moving all of them changes nothing."""
    mixer = mixer_without_output(layer(32, op("self_attention", 4)), position_embedding_type="rotary")
    x = torch.randn(2, 9, 32)
    here, there, stretched = (
        mixer(x, MixingContext(None, None, (torch.arange(9) * factor + start)[None]))[0]
        for factor, start in ((1, 0), (1, 100), (2, 0))
    )
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    assert (here - stretched).abs().max() > 1e-2


@torch.no_grad()
def test_graph_without_softmax_tail():
    """All primitives in one graph, by torch's functions of other names on each row without padding."""
    nodes = [
        "a = logsigmoid(q)",
        "b = softsign(k)",
        "c = cosine_similarity(a, b)",
        "d = euclidean_distance(p, v)",
        "e = neg(d)",
        "f = add(c, e)",
        "g = scale(f)",
        "h = softmax(g)",
        "i = add(h, c)",
        "j = transpose(v)",
        "k2 = transpose(j)",
        "out = matmul(i, k2)",
    ]
    mixer = mixer_without_output(layer(32, op("attention_graph", 4, nodes=nodes)))
    x, mask = torch.randn(3, 9, 32), padding()
    actual = by_heads(run(mixer, x, mask), 4)
    for row, length in enumerate(LENGTHS):
        q, k, v, p = (
            by_heads(mixer.projections[name](x[row : row + 1, :length]), 4)
            for name in ("query", "key", "value", "extra")
        )
        a, b = nn.functional.logsigmoid(q), k / (1 + k.abs())
        cosine = nn.functional.cosine_similarity(a[:, :, :, None], b[:, :, None], dim=-1)
        weights = ((cosine - torch.cdist(p, v)) / math.sqrt(8)).softmax(-1)
        torch.testing.assert_close(actual[row, :, :length], ((weights + cosine) @ v)[0], **TOLERANCE)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(p, dtype):
    x = torch.ones(1000, 1001, dtype=dtype, requires_grad=True)
    dropped = drop(x, p, training=True)
    dropped.sum().backward()
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=2e-3)
    assert dropped.float().mean().item() == pytest.approx(1, abs=1e-2)
    assert torch.equal(x.grad, dropped.detach())  # of a one, both are 0 or the same factor
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1 / (1 - p)], dtype=dtype), rtol=5e-3, atol=0)
    # Neighbours are cut from the same random number, and are independent all the same.
    kept = (dropped.detach() != 0).float()
    assert torch.corrcoef(torch.stack([kept[:, :-1].flatten(), kept[:, 1:].flatten()]))[0, 1].abs() < 5e-3


def test_dropout_follows_the_seed_and_the_mode():
    x = torch.ones(7, 5)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(drop(x, 0.5, training=True))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(drop(x, 0.5, training=False), x) and torch.equal(drop(x, 0.0, training=True), x)
    assert not drop(x, 1.0, training=True).any()


def test_dropout_draws_where_its_input_is():
    """Not on the default device."""
    x = torch.ones(7, 5)
    with torch.device("meta"):
        dropped = drop(x, 0.5, training=True)
    assert dropped.device == x.device


def test_a_backend_of_ones_own_attends_in_training_too(monkeypatch):
    def zeros(module, query, key, value, attention_mask, **kwargs):
        return torch.zeros_like(value).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "zeros", zeros)
    config = FlexiBertConfig(attention_probs_dropout_prob=0.5)
    config._attn_implementation = "zeros"
    query, key, value = torch.randn(3, 2, 4, 9, 8)
    output, _ = ScoredAttention(config, 8).train()(query, key, value, MixingContext(None, None, None))
    assert output.shape == value.shape and not output.any()


def test_training_with_dropout_attends_as_without_it_on_either_backend():
    """With dropout CPUs take the eager way in place of sdpa, whose mask it has to understand."""
    ids, mask = torch.randint(5, 100, (3, 9)), padding().long()
    outputs = []
    for implementation in ("eager", "sdpa"):
        config = FlexiBertConfig(
            vocab_size=100,
            layers=[layer(32, op("self_attention", 4))],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=1e-5,  # above 0, and nothing is dropped under this seed
        )
        torch.manual_seed(0)
        model = FlexiBertModel._from_config(config, attn_implementation=implementation)
        trained, evaluated = (model.train(mode)(ids, mask).last_hidden_state[padding()] for mode in (True, False))
        torch.testing.assert_close(trained, evaluated, atol=1e-4, rtol=0)
        outputs.append(evaluated)
    torch.testing.assert_close(*outputs, **TOLERANCE)


# --- linear transforms --------------------------------------------------------------------------------------------


def scipy_transform(name, x, norm):
    x = x.double().numpy()
    if name == "fourier":
        return torch.from_numpy(scipy.fft.fft2(x, norm=norm).real)
    return torch.from_numpy(scipy.fft.dctn(x, type=2, axes=(-2, -1), norm=norm))


def assert_close_transforms(actual, expected):
    """Unnormalised transforms add up hundreds of numbers, so the error is measured by the largest value."""
    scale = expected.abs().max().clamp(min=1)
    torch.testing.assert_close(actual.double() / scale, expected / scale, atol=3e-6, rtol=0)


def transformed(name, x, padding_mask, norm):
    transform, matrices = TRANSFORMS[name]
    return transform(x, *matrices(x, padding_mask, norm == "ortho"))


@pytest.mark.parametrize("size", [1, 2, 7, 8])
@pytest.mark.parametrize("length", [1, 2, 12, 13])
@pytest.mark.parametrize("norm", ["ortho", "backward"])
@pytest.mark.parametrize("name", ["fourier", "cosine"])
def test_transforms_equal_scipy(name, norm, length, size):
    x = torch.randn(2, 3, length, size)
    actual = transformed(name, x, None, norm)
    assert_close_transforms(actual, scipy_transform(name, x, norm))


@pytest.mark.parametrize("norm", ["ortho", "backward"])
@pytest.mark.parametrize("name", ["fourier", "cosine"])
def test_transforms_of_padded_rows_equal_scipy_on_each_row(name, norm):
    x, mask = torch.randn(4, 3, 13, 8), padding((13, 12, 5, 1))
    mask[1] = mask[1].flip(0)  # padding on the left
    actual = transformed(name, x, mask, norm)
    for row in range(4):
        expected = scipy_transform(name, x[row, :, mask[row]], norm)
        assert_close_transforms(actual[row, :, mask[row]], expected)
        assert not actual[row, :, ~mask[row]].any()


def test_fourier_transform_of_long_sequences_stays_exact():
    """Angles of thousands of whole turns must not lose their fraction in float32."""
    x = torch.randn(1, 1, 2053, 4)
    actual = transformed("fourier", x, None, "ortho")
    assert_close_transforms(actual, scipy_transform("fourier", x, "ortho"))


@pytest.mark.parametrize("positions", ["absolute", "relative_key"])
@torch.no_grad()
def test_transform_beside_relative_attention(positions):
    """FlexiBERT's layer: attention that scores by position alone, plus the transform of the whole layer input."""
    mixer = mixer_without_output(
        layer(
            32,
            op("linear_transform", 4, transform="cosine", source="layer", norm="backward", relative_attention=True),
        ),
        position_embedding_type=positions,
    )
    x, mask = torch.randn(3, 9, 32), padding()
    q, v = (by_heads(mixer.projections[name](x), 4) for name in ("query", "value"))
    actual = run(mixer, x, mask)
    for row, length in enumerate(LENGTHS):
        scores = torch.zeros(4, length, length)
        if positions == "relative_key":
            for i in range(length):
                for r in range(length):
                    scores[:, i, r] = q[row, :, i] @ mixer.distance_embedding.weight[i - r + 15] / math.sqrt(8)
        attended = scores.softmax(-1) @ v[row, :, :length]
        expected = attended.transpose(0, 1).flatten(1) + scipy_transform("cosine", x[row, :length], "backward")
        assert_close_transforms(actual[row, :length], expected)


# --- convolutions -------------------------------------------------------------------------------------------------


def naive_convolution(value, kernels):
    """out[b, h, t] = sum_j kernels[b, h, t, j] value[b, h, t + j - K // 2], zeros from outside."""
    output = torch.zeros_like(value)
    length, taps = kernels.shape[-2:]
    for t in range(length):
        for j in range(taps):
            if 0 <= t + j - taps // 2 < length:
                output[:, :, t] += kernels[:, :, t, j, None] * value[:, :, t + j - taps // 2]
    return output


@pytest.mark.parametrize("taps", [1, 3, 9, 65])
@pytest.mark.parametrize("length", [1, 4, 20])
def test_convolve_equals_loop(length, taps):
    value, kernels = torch.randn(2, 3, length, 5), torch.randn(2, 3, length, taps)
    torch.testing.assert_close(convolve(value, kernels), naive_convolution(value, kernels), **TOLERANCE)


@pytest.mark.parametrize("source", ["layer", "head"])
@pytest.mark.parametrize("kernel_size", [3, 13])
@torch.no_grad()
def test_dynamic_convolution_equals_loop(kernel_size, source):
    """Span, kernel generator, softmax over taps and weighted sum of ConvBERT, on each row without padding."""
    mixer = mixer_without_output(layer(32, op("dynamic_convolution", 4, kernel_size=kernel_size, source=source)))
    operation = mixer.operations[0]
    x, mask = torch.randn(3, 9, 32), padding()
    actual = by_heads(run(mixer, x, mask), 4)
    for row, length in enumerate(LENGTHS):
        tokens = x[row, :length]
        query, value = mixer.projections["query"](tokens), mixer.projections["value"](tokens)
        span_of = tokens
        if source == "head":
            span_of, value = mixer.projections["key"](tokens), operation.value(value)
        depthwise = torch.zeros_like(span_of)
        for t in range(length):
            for j in range(kernel_size):
                if 0 <= t + j - kernel_size // 2 < length:
                    depthwise[t] += operation.depthwise.weight[:, 0, j] * span_of[t + j - kernel_size // 2]
        generated = operation.kernel(operation.pointwise(depthwise) * query)
        kernels = by_heads(generated[None], 4).softmax(-1)
        expected = naive_convolution(by_heads(value[None], 4), kernels)[0]
        torch.testing.assert_close(actual[row, :, :length], expected, **TOLERANCE)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("kernel_size", [3, 15, 65])
@torch.no_grad()
def test_lightweight_convolution_equals_formula(kernel_size, gated):
    """Wu et al.: a gated linear unit, then out[t, c] = sum_j softmax(w[h])[j] x[t + j - K // 2, c] for c in head h."""
    mixer = mixer_without_output(layer(32, op("lightweight_convolution", 4, kernel_size=kernel_size, gated=gated)))
    x, mask = torch.randn(3, 9, 32), padding()
    actual = by_heads(run(mixer, x, mask), 4)
    taps = mixer.operations[0].weight
    weights = taps.exp() / taps.exp().sum(-1, keepdim=True)  # (h, K)
    for row, length in enumerate(LENGTHS):
        value = mixer.projections["value"](x[row : row + 1, :length])
        if gated:
            value = value / (1 + (-mixer.projections["gate"](x[row : row + 1, :length])).exp())
        expected = naive_convolution(by_heads(value, 4), weights[None, :, None].expand(1, 4, length, kernel_size))
        torch.testing.assert_close(actual[row, :, :length], expected[0], **TOLERANCE)


# --- completeness -------------------------------------------------------------------------------------------------

ORACLES = {
    "self_attention": (test_equal_to_transformers_base_model, test_self_attention_equals_torch_kernel),
    "linear_transform": (test_equal_to_transformers_base_model, test_transforms_equal_scipy),
    "dynamic_convolution": (test_equal_to_transformers_base_model, test_dynamic_convolution_equals_loop),
    "lightweight_convolution": (test_lightweight_convolution_equals_formula,),
    "attention_graph": (test_graph_of_plain_attention_equals_self_attention, test_graph_without_softmax_tail),
}
"""Operation -> tests above that compute it in another way."""


def test_every_operation_has_an_oracle():
    assert ORACLES.keys() == OPERATIONS.keys()
    assert all(ORACLES.values())
