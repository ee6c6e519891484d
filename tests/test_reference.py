"""FlexiBERT's and AutoBERT-Zero's public code, reproduced: on its recorded outputs, and on random encoders.

`ReferenceModel` below computes in numpy and float64 what the public code computes, head by head and tap by tap. It is
held against the recorded outputs too, and then stands in for the public code on dictionaries that were not recorded.
"""

import json
import math
import random

import numpy as np
import pytest
import scipy.fft
import scipy.special
import torch
from safetensors.torch import load_file

from flexibert import (
    GRAPHS,
    FlexiBertConfig,
    FlexiBertForMaskedLM,
    FlexiBertModel,
    convert_reference_state_dict,
)
from flexibert.modeling_flexibert import FlexiBertMixer
from flexibert.operations import MixingContext
from flexibert.zoo import unused_reference_parameters


TOLERANCE = 1e-4
INPUT_SETS = ("L17_pad", "L17_nopad", "L16_pad", "L16_nopad")
SEEDS = 20
GOLDEN_CASES = (
    "std01_sa_sdp",
    "std03_l_dft",
    "std06_c9",
    "std08_mixed",
    "std10_mini_scaled",
    "std11_absolute",
    "het01_each_kind",
    "het04_conv_linear_only",
    "het05_four_layers",
)


# --- the public code's model in numpy -----------------------------------------------------------------------------


class ReferenceModel:
    """Tensors under the public code's names -> its outputs. `ids`, `mask` and `types` are (B, L)."""

    def __init__(self, model_dict, tensors, keys=False):
        """`keys`: positions of the type "relative_key_query", which have scores of keys as well."""
        self.model_dict = model_dict
        self.keys = keys
        self.tensors = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in tensors.items()}

    def __call__(self, ids, mask, types):
        x = self["embeddings.word_embeddings.weight"][ids] + self["embeddings.token_type_embeddings.weight"][types]
        if "bert.encoder.layer.0.attention.self.distance_embedding.weight" not in self.tensors:
            x = x + self["embeddings.position_embeddings.weight"][: ids.shape[1]]
        hidden_states = [self.norm("embeddings.LayerNorm", x)]
        for index in range(self.model_dict["l"]):
            hidden_states.append(self.layer(index, hidden_states[-1], mask))
        x = hidden_states[-1]
        pooled = np.tanh(self.linear("pooler.dense", x[:, 0]))
        prediction = "cls.predictions.transform"
        x = self.norm(f"{prediction}.LayerNorm", gelu(self.linear(f"{prediction}.dense", x)))
        logits = x @ self.tensors["cls.predictions.decoder.weight"].T + self.tensors["cls.predictions.bias"]
        return hidden_states, pooled, logits

    def __getitem__(self, name):
        return self.tensors[name if name.startswith("cls.") else f"bert.{name}"]

    def linear(self, name, x):
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return x * self[f"{name}.weight"] + self[f"{name}.bias"]

    def layer(self, index, x, mask):
        path = f"encoder.layer.{index}"
        mix = self.standard_heads if "p" in self.model_dict else self.hetero_heads
        mixed = np.concatenate(mix(f"{path}.attention.self", index, x, mask), axis=-1)
        x = self.norm(f"{path}.attention.output.LayerNorm", x + self.linear(f"{path}.attention.output.dense", mixed))
        y = x
        for depth in range(len(self.model_dict["f"][index])):
            y = gelu(self.linear(f"{path}.intermediate.sequential.{2 * depth}", y))
        x = self.norm(f"{path}.output.LayerNorm", x + self.linear(f"{path}.output.dense", y))
        changes = index + 1 < self.model_dict["l"] and np.diff(self.model_dict["h"])[index]
        return self.linear(f"{path}.output.proj_head", x) if changes else x

    def standard_heads(self, path, index, x, mask):
        op, parameter, num_heads = (self.model_dict[key][index] for key in "opn")
        if op == "c":
            num_heads //= 2
        query, key, value = (
            np.split(self.linear(f"{path}.{name}", x), num_heads, axis=-1) for name in ("query", "key", "value")
        )
        heads = []
        for q, k, v in zip(query, key, value):
            scores = self.relative_scores(path, q, k)
            if op != "l":
                scores = scores + q @ (self[f"{path}.W"] if parameter == "wma" else np.eye(q.shape[-1])) @ k.swapaxes(
                    1, 2
                )
            heads.append(attend(scores, v, mask))
        if op == "l":
            return [np.concatenate(heads, axis=-1) + transform(parameter, x)]
        if op == "c":
            joined = np.concatenate(query, axis=-1)
            values = self.linear(f"{path}.conv_out_layer", x)
            heads.append(self.convolution(path, "", x, joined, values, num_heads))
        return heads

    def hetero_heads(self, path, index, x, mask):
        kinds = [head.split("_")[:2] for head in self.model_dict["o"][index]]
        query, key, value = (
            np.split(self.linear(f"{path}.{name}", x), len(kinds), axis=-1) for name in ("query", "key", "value")
        )
        heads, matrices, convolutions = [], 0, 0
        for (op, parameter), q, k, v in zip(kinds, query, key, value):
            scores = self.relative_scores(path, q, k)
            if parameter == "sdp":
                scores = scores + q @ k.swapaxes(1, 2)
            elif parameter == "wma":
                scores = scores + q @ self[f"{path}.W{matrices}"] @ k.swapaxes(1, 2)
                matrices += 1
            head = attend(scores, v, mask)
            if op == "l":
                head = head + transform(parameter, v)
            elif op == "c":
                values = self.linear(f"{path}.conv_out_layer{convolutions}", v)
                head = head + self.convolution(path, convolutions, k, q, values, 1)
                convolutions += 1
            heads.append(head)
        return heads

    def relative_scores(self, path, q, k):
        name = f"{path}.distance_embedding.weight"
        if f"bert.{name}" not in self.tensors:
            return np.zeros((*q.shape[:2], q.shape[1]))
        table = self[name]
        scores = np.empty((*q.shape[:2], q.shape[1]))
        for i in range(q.shape[1]):
            for r in range(q.shape[1]):
                scores[:, i, r] = (q[:, i] + self.keys * k[:, r]) @ table[i - r + len(table) // 2]
        return scores

    def convolution(self, path, number, x, query, values, num_heads):
        depthwise = self[f"{path}.key_conv_attn_layer{number}.depthwise.weight"][:, 0]  # (channels, taps)
        taps = depthwise.shape[-1]
        span = sum(depthwise[:, tap] * shift(x, tap - taps // 2) for tap in range(taps))
        span = span @ self[f"{path}.key_conv_attn_layer{number}.pointwise.weight"][..., 0].T
        span = span + self[f"{path}.key_conv_attn_layer{number}.bias"][:, 0]
        kernels = self.linear(f"{path}.conv_kernel_layer{number}", span * query)
        heads = []
        for kernel, v in zip(np.split(kernels, num_heads, axis=-1), np.split(values, num_heads, axis=-1)):
            kernel = scipy.special.softmax(kernel, axis=-1)
            heads.append(sum(kernel[..., tap, None] * shift(v, tap - taps // 2) for tap in range(taps)))
        return np.concatenate(heads, axis=-1)


def gelu(x):
    return 0.5 * x * (1 + scipy.special.erf(x / math.sqrt(2)))


def attend(scores, value, mask):
    scores = scores / math.sqrt(value.shape[-1]) - 10000.0 * (1 - mask[:, None, :])
    return scipy.special.softmax(scores, axis=-1) @ value


def transform(kind, x):
    return np.fft.fft2(x).real if kind == "dft" else scipy.fft.dctn(x, axes=(1, 2))


def shift(x, offset):
    """y[t] = x[t + offset] along axis 1, zeros from outside."""
    y = np.zeros_like(x)
    for t in range(max(0, -offset), min(x.shape[1], x.shape[1] - offset)):
        y[:, t] = x[:, t + offset]
    return y


def random_tensors(model_dict, relative, rng, vocab=30, positions=20, types=2):
    """Random tensors under the public code's names, for the masked language model and a pooler."""
    tensors = {}

    def tensor(name, *shape):
        prefix = "" if name.startswith("cls.") else "bert."
        tensors[prefix + name] = torch.from_numpy(rng.normal(0, 0.3, shape).astype(np.float32))

    def linear(name, size, input_size):
        tensor(f"{name}.weight", size, input_size)
        tensor(f"{name}.bias", size)

    def norm(name, size):
        linear(name, size, size)
        tensors[f"bert.{name}.weight" if name[:3] != "cls" else f"{name}.weight"] = torch.from_numpy(
            rng.normal(1, 0.1, size).astype(np.float32)
        )

    h = model_dict["h"]
    for table, rows in (("word", vocab), ("position", positions), ("token_type", types)):
        tensor(f"embeddings.{table}_embeddings.weight", rows, h[0])
    norm("embeddings.LayerNorm", h[0])
    for index in range(model_dict["l"]):
        layer, size = f"encoder.layer.{index}", h[index]
        path = f"{layer}.attention.self"
        if "p" in model_dict:
            op, parameter, heads = (model_dict[key][index] for key in "opn")
            head_size, projected = size // heads, size // 2 if op == "c" else size
            width = size
            if op == "sa":
                tensor(f"{path}.W", head_size, head_size)
            convolutions = [("", size, parameter, projected, heads // 2)] if op == "c" else []
        else:
            kinds = [head.split("_") for head in model_dict["o"][index]]
            head_size = int(kinds[0][2])
            width = projected = head_size * len(kinds)
            for i in range(sum(kind[1] == "wma" for kind in kinds)):
                tensor(f"{path}.W{i}", head_size, head_size)
            taps = [int(kind[1]) for kind in kinds if kind[0] == "c"]
            convolutions = [(i, head_size, k, head_size, 1) for i, k in enumerate(taps)]
        for name in ("query", "key", "value"):
            linear(f"{path}.{name}", projected, size)
        if relative:
            tensor(f"{path}.distance_embedding.weight", 2 * positions - 1, head_size)
        for number, channels, taps, out, heads in convolutions:
            tensor(f"{path}.key_conv_attn_layer{number}.depthwise.weight", channels, 1, taps)
            tensor(f"{path}.key_conv_attn_layer{number}.pointwise.weight", out, channels, 1)
            tensor(f"{path}.key_conv_attn_layer{number}.bias", out, 1)
            linear(f"{path}.conv_kernel_layer{number}", heads * taps, out)
            linear(f"{path}.conv_out_layer{number}", out, channels)
        linear(f"{layer}.attention.output.dense", size, width)
        norm(f"{layer}.attention.output.LayerNorm", size)
        sizes = [size, *model_dict["f"][index]]
        for depth in range(len(sizes) - 1):
            linear(f"{layer}.intermediate.sequential.{2 * depth}", sizes[depth + 1], sizes[depth])
        linear(f"{layer}.output.dense", size, sizes[-1])
        norm(f"{layer}.output.LayerNorm", size)
        if index + 1 < len(h) and h[index + 1] != size:
            linear(f"{layer}.output.proj_head", h[index + 1], size)
    linear("pooler.dense", h[-1], h[-1])
    linear("cls.predictions.transform.dense", h[-1], h[-1])
    norm("cls.predictions.transform.LayerNorm", h[-1])
    tensor("cls.predictions.decoder.weight", vocab, h[-1])
    tensor("cls.predictions.bias", vocab)
    return tensors


# --- comparisons --------------------------------------------------------------------------------------------------


def converted_models(tensors, model_dict, **fields):
    """The masked language model and the base model with pooler, from one checkpoint."""
    config, state_dict = convert_reference_state_dict(tensors, model_dict, **fields)
    masked_lm = FlexiBertForMaskedLM(config).eval()
    masked_lm.load_state_dict(state_dict)
    encoder = {name: tensor for name, tensor in tensors.items() if not name.startswith("cls.")}
    config, state_dict = convert_reference_state_dict(encoder, model_dict, **fields)
    base = FlexiBertModel(config).eval()
    base.load_state_dict(state_dict)
    return masked_lm, base


@torch.no_grad()
def outputs(masked_lm, base, ids, mask, types):
    """Hidden states as the public code numbers them (it changes the width at the end of a layer), pooler, logits."""
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    inputs = {name: torch.as_tensor(value).long() for name, value in inputs.items()}
    encoded = base(**inputs, output_hidden_states=True)
    hidden_states = [
        x if index == 0 or layer is None or layer.resize is None else layer.resize(x)
        for index, (x, layer) in enumerate(zip(encoded.hidden_states, [*base.layers, None]))
    ]
    return hidden_states, encoded.pooler_output, masked_lm(**inputs).logits


def assert_close(actual, expected):
    torch.testing.assert_close(actual, torch.as_tensor(expected).to(actual.dtype), atol=TOLERANCE, rtol=0)


@pytest.fixture(params=GOLDEN_CASES)
def golden(request, shared):
    """(case.json, weights, inputs of a set, outputs of a set) of one recorded case."""
    folder = shared / "reference" / "models" / request.param
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    recorded = "outputs_d1fix" if case["format"] == "hetero" else "outputs"
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / f"{recorded}.safetensors")

    def of_set(tensors, name):
        return {key.partition("/")[2]: value for key, value in tensors.items() if key.startswith(f"{name}/")}

    sets = {name: (of_set(inputs, name), of_set(expected, name)) for name in INPUT_SETS}
    return case, load_file(folder / "weights.safetensors"), sets


def test_recorded_outputs(golden):
    case, weights, sets = golden
    models = converted_models(weights, case["model_dict"])
    compared_logits = 0
    for inputs, expected in sets.values():
        actual = outputs(*models, inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"])
        assert len(actual[0]) == case["model_dict"]["l"] + 1
        for index, x in enumerate(actual[0]):
            assert_close(x, expected[f"hidden_states.{index}"])
        assert_close(actual[1], expected["pooler_output"])
        if "logits" in expected:
            assert_close(actual[2], expected["logits"])
            compared_logits += 1
    assert compared_logits


def test_recorded_configuration(golden):
    case, weights, _ = golden
    config, _ = convert_reference_state_dict(weights, case["model_dict"])
    for name in ("vocab_size", "max_position_embeddings", "type_vocab_size", "position_embedding_type"):
        assert getattr(config, name) == case["config"][name]
    for name in (
        "layer_norm_eps",
        "hidden_act",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "tie_word_embeddings",
    ):
        assert getattr(config, name) == case["config"][name]
    if case["format"] == "standard":
        unused = unused_reference_parameters(config)
        assert FlexiBertModel(config).num_parameters() + unused == case["parameters"]["base_with_pooler"]
        assert FlexiBertForMaskedLM(config).num_parameters() + unused == case["parameters"]["mlm_without_pooler"]


def test_numpy_model_on_recorded_outputs(golden):
    case, weights, sets = golden
    model = ReferenceModel(case["model_dict"], weights)
    inputs, expected = sets["L17_pad"]
    hidden_states, pooled, logits = model(
        inputs["input_ids"].numpy(), inputs["attention_mask"].numpy(), inputs["token_type_ids"].numpy()
    )
    for index, x in enumerate(hidden_states):
        assert_close(torch.from_numpy(x), expected[f"hidden_states.{index}"])
    assert_close(torch.from_numpy(pooled), expected["pooler_output"])
    assert_close(torch.from_numpy(logits), expected["logits"])


def random_model_dict(rng):
    """A model dictionary of either format, with kernels up to 13, odd head counts and odd head sizes."""
    depth = rng.randint(1, 4)
    feed_forward = [[rng.choice([8, 20, 33]) for _ in range(rng.randint(1, 3))] for _ in range(depth)]
    if rng.random() < 0.5:
        layers = []
        for _ in range(depth):
            op = rng.choice(["sa", "l", "c"])
            parameter = rng.choice({"sa": ["sdp", "wma"], "l": ["dft", "dct"], "c": [3, 5, 9, 13]}[op])
            heads = rng.choice([2, 4, 6] if op == "c" else [1, 2, 3, 5])
            layers.append((op, heads * rng.choice([3, 4, 7]), heads, parameter))
        o, h, n, p = (list(column) for column in zip(*layers))
        return {"l": depth, "o": o, "h": h, "n": n, "f": feed_forward, "p": p}
    kinds = ["sa_sdp", "sa_wma", "l_dft", "l_dct", "c_3", "c_5", "c_9", "c_13"]
    o = []
    for _ in range(depth):
        head_size = rng.choice([3, 4, 6])
        o.append([f"{rng.choice(kinds)}_{head_size}" for _ in range(rng.randint(1, 5))])
    return {"l": depth, "o": o, "h": [rng.choice([10, 16, 24]) for _ in range(depth)], "f": feed_forward}


@pytest.mark.parametrize("positions", ["relative_key", "relative_key_query", "absolute"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_model_dicts(seed, positions):
    model_dict = random_model_dict(random.Random(seed))
    rng = np.random.default_rng(seed)
    tensors = random_tensors(model_dict, positions != "absolute", rng)
    length = int(rng.integers(3, 20))
    ids, types = rng.integers(0, 30, (3, length)), rng.integers(0, 2, (3, length))
    mask = np.arange(length)[None] < np.array([[length], [max(1, length - 4)], [2]])
    keys = positions == "relative_key_query"  # nothing in a checkpoint tells
    expected = ReferenceModel(model_dict, tensors, keys)(ids, mask, types)
    models = converted_models(tensors, model_dict, **({"position_embedding_type": positions} if keys else {}))
    assert models[1].config.position_embedding_type == positions
    actual = outputs(*models, ids, mask, types)
    for x, wanted in zip(actual[0], expected[0], strict=True):
        assert_close(x, wanted)
    assert_close(actual[1], expected[1])
    assert_close(actual[2], expected[2])


def test_random_model_dicts_hold_every_operation():
    """Guards the test above against a generator that stopped making something."""
    seen = set()
    for seed in range(SEEDS):
        model_dict = random_model_dict(random.Random(seed))
        if "p" in model_dict:
            seen.update(zip(model_dict["o"], model_dict["p"]))
        else:
            seen.update(head.rpartition("_")[0] for heads in model_dict["o"] for head in heads)
    assert {("sa", "wma"), ("l", "dft"), ("l", "dct"), ("c", 13)} <= seen
    assert {"sa_sdp", "sa_wma", "l_dft", "l_dct", "c_5", "c_13"} <= seen


@pytest.mark.parametrize("number", [2, 4, 6, 10, 12])
@torch.no_grad()
def test_autobert_zero_attention(number, shared):
    """Context and attention probabilities of AutoBERT-Zero's five searched layers, before the output projection."""
    folder = shared / "reference" / "autobert"
    tensors = {
        name.partition("/")[2]: tensor
        for name, tensor in load_file(folder / "attention.safetensors").items()
        if name.startswith(f"L{number}/")
    }
    graph = {"op": "attention_graph", "num_heads": 4, "nodes": GRAPHS[f"autobert-zero-layer-{number}"]}
    layer = {"hidden_size": 32, "operations": [graph], "feed_forward": [8]}
    config = FlexiBertConfig(layers=[layer], attn_implementation="eager")
    mixer = FlexiBertMixer(config, config.layer_specs[0]).eval()
    projections = {name: tensor for name, tensor in tensors.items() if name.startswith(("query", "key", "value"))}
    mixer.projections.load_state_dict(projections)
    mixer.output = torch.nn.Identity()
    context, probabilities = mixer(tensors["input"], MixingContext(None, None, torch.arange(11)[None]))
    assert_close(context, tensors["context"])
    assert_close(probabilities, tensors["attention_probs"])
