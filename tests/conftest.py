"""Shared fixtures: small specs that cover every operation, and the optional reference data beside the checkout."""

import os
from pathlib import Path

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared():
    """Folder with golden tensors, data sets and benchmark tables; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with reference data is not here")
    return SHARED


def layer(hidden_size, *operations, feed_forward=(48,), **fields):
    """One layer as plain data."""
    return {
        "hidden_size": hidden_size,
        "operations": list(operations),
        "feed_forward": list(feed_forward),
        **fields,
    }


def op(name, num_heads, **fields):
    """One group of heads as plain data."""
    return {"op": name, "num_heads": num_heads, **fields}


GENERAL_GRAPH = ["a = cosine_similarity(q, p)", "b = euclidean_distance(k, v)", "c = add(a, b)", "d = matmul(c, v)"]
LINEAR_ATTENTION_GRAPH = ["a = transpose(k)", "b = matmul(a, v)", "c = matmul(q, b)"]
SOFTPLUS_GRAPH = [
    "a = neg(k)", "b = logsigmoid(a)", "c = transpose(b)", "z = neg(c)", "s = matmul(q, z)",
    "t = scale(s)", "w = softmax(t)", "u = add(q, k)", "out = matmul(w, u)",
]  # fmt: skip

SPECS = {
    "homogeneous": [layer(32, op("self_attention", 4))] * 2,
    "multiplicative": [layer(32, op("self_attention", 4, similarity="weighted_multiplicative"))] * 2,
    "fourier": [layer(32, op("linear_transform", 2)), layer(32, op("linear_transform", 4, norm="backward"))],
    "cosine": [layer(32, op("linear_transform", 4, transform="cosine"))] * 2,
    "layer_transforms": [
        layer(32, op("linear_transform", 4, source="layer"), output_projection=False),
        layer(32, op("linear_transform", 4, source="layer", transform="cosine"), output_projection=False),
    ],
    "dynamic_convolution": [
        layer(32, op("dynamic_convolution", 4, kernel_size=5)),
        layer(32, op("dynamic_convolution", 4, mixed_attention=True)),
        layer(32, op("dynamic_convolution", 4, kernel_size=13, source="head")),
    ],
    "lightweight_convolution": [
        layer(32, op("lightweight_convolution", 4, kernel_size=15)),
        layer(32, op("lightweight_convolution", 2, kernel_size=65, gated=False)),
    ],
    "graph": [
        layer(32, op("attention_graph", 4, nodes=SOFTPLUS_GRAPH)),
        layer(
            32,
            op("attention_graph", 2, nodes=GENERAL_GRAPH),
            op("attention_graph", 2, nodes=LINEAR_ATTENTION_GRAPH),
        ),
    ],
    "mixed_heads": [
        layer(
            32,
            op("self_attention", 1),
            op("self_attention", 1, similarity="weighted_multiplicative"),
            op("linear_transform", 1, transform="cosine"),
            op("dynamic_convolution", 1, kernel_size=5),
            feed_forward=(64, 48, 40),
        )
    ]
    * 2,
    "widening": [
        layer(16, op("linear_transform", 2)),
        layer(32, op("dynamic_convolution", 2), op("lightweight_convolution", 2)),
        layer(48, op("self_attention", 4), feed_forward=(64, 64)),
    ],
    "narrowing": [layer(48, op("self_attention", 4)), layer(32, op("self_attention", 2), head_size=24)],
}
"""Name -> layers. Together they hold every operation, each option that changes a forward pass, changes of width."""

EVERY_OPERATION = [
    layer(
        32,
        op("self_attention", 1),
        op("self_attention", 1, similarity="weighted_multiplicative"),
        op("linear_transform", 1, relative_attention=True),
        op("linear_transform", 1, transform="cosine", norm="backward"),
        op("dynamic_convolution", 2, mixed_attention=True),
        op("dynamic_convolution", 1, kernel_size=5, source="head", relative_attention=True),
        op("lightweight_convolution", 1, kernel_size=15),
        op("lightweight_convolution", 1, kernel_size=3, gated=False),
        op("attention_graph", 1, nodes=SOFTPLUS_GRAPH),
        op("attention_graph", 1, nodes=GENERAL_GRAPH),
        op("attention_graph", 1, nodes=LINEAR_ATTENTION_GRAPH),
        head_size=8,
    ),
    layer(32, op("linear_transform", 4, source="layer"), output_projection=False),
]
"""One model with all of them, for what takes long: compiling and exporting."""


class MaskingTokenizer:
    """The part of a tokenizer that masking needs."""

    mask_token_id = 4
    pad_token_id = 0
    all_special_ids = (0, 1, 2, 3, 4)

    def __init__(self, size=60):
        self.size = size

    def __len__(self):
        return self.size

    def get_vocab(self):
        return {f"token{number}": number for number in range(self.size)}
