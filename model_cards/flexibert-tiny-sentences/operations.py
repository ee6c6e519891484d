"""The operations that mix tokens, one module per tag of `spec.OPERATIONS`.

Sources: self-attention, linear transforms and span-based dynamic convolution as FlexiBERT combines them (arXiv
2205.11656, Section 3.1), after FNet (arXiv 2105.03824) and ConvBERT (arXiv 2008.02496); lightweight convolution (arXiv
1901.10430) and searched attention as AutoBERT-Zero uses them (arXiv 2107.07445, Section 3).

Every module has the signature

    forward(inputs, hidden_states, context) -> (output, attention weights or None)

where `inputs` holds the projections that the spec asks for, each (B, p, L, d), `hidden_states` is the layer input
(B, L, D) and the output is (B, h, L, d). Padding never reaches a real token unless the spec says `mix_padding`.

Notation: B batch, L sequence length, D hidden size, h heads in the group, p projected heads in the group, d head size,
K kernel size.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_tracing

from .attention_graph import softmax_tail
from .spec import OPERATIONS, LayerSpec


class MixingContext(NamedTuple):
    """What all layers of one forward pass share about a padded batch; made once by the base model.

    Attributes:
        attention_mask: The mask in the form that the attention backend wants, or None without padding.
        padding_mask: (B, L) bool, true at real tokens, or None without padding.
        position_ids: (1 or B, L) where tokens stand in their text, used by rotary positions.
        made: Tensors that depend on nothing but the above, kept by the first layer that makes them, see `once`.
    """

    attention_mask: torch.Tensor | None
    padding_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    made: dict | None = None

    def once(self, key: tuple, make: Callable):
        """What `make()` returns, made by the first layer that asks for `key`."""
        if self.made is None:
            return make()
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]


class Packing(NamedTuple):
    """The real tokens of padded rows (B, L, D), one after another: (1, N, D). All but mixing runs on them alone.

    Attributes:
        shape: B and L.
        indices: (N,) of the real tokens in the flattened batch.
    """

    shape: tuple[int, int]
    indices: torch.Tensor

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (1, N, D)"""
        return x.flatten(0, 1)[self.indices][None]

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """(1, N, D) -> (B, L, D) with zeros at padding."""
        padded = x.new_zeros(self.shape[0] * self.shape[1], x.shape[-1])
        return padded.index_copy(0, self.indices, x[0]).unflatten(0, self.shape)


class PackedContext(NamedTuple):
    """The same about a batch without its padding, (1, N, D), which is mixed in groups of rows of similar length.

    Attributes:
        groups: One after the other in the batch: where the tokens of the group stand in its padded rows (B, L), and
            what layers share about those.
    """

    groups: tuple[tuple[Packing, MixingContext], ...]


def drop(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """`nn.functional.dropout`, on CPUs with a quarter of its random numbers.

    Those come one after the other from a single generator, and torch draws 64 bits to decide about each number. Here
    16 bits do, so p is rounded to a multiple of 2^-16.
    """
    threshold = round(p * 2**16)
    if not (training and 0 < threshold < 2**16 and x.device.type == "cpu") or is_tracing(x):
        return nn.functional.dropout(x, p, training)
    draws = torch.empty(x.numel() // 4 + 1, dtype=torch.int64, device=x.device)
    draws = draws.random_(-(2**63), None).view(torch.int16)
    keep = draws[: x.numel()].view(x.shape) >= threshold - 2**15
    return x * keep.to(x.dtype).mul_(2**16 / (2**16 - threshold))


class Dropout(nn.Dropout):
    """`drop` as a module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return drop(x, self.p, self.training)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention that also returns its weights; `attention_mask` is as in `add_to_mask`."""
    weights = add_to_mask(torch.matmul(query, key.transpose(2, 3)) * scaling, attention_mask)  # (B, h, L, L)
    precise = torch.promote_types(query.dtype, torch.float32)
    weights = nn.functional.softmax(weights, dim=-1, dtype=precise).to(query.dtype)
    weights = drop(weights, dropout, module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights  # (B, L, h, d)


class ScoredAttention(nn.Module):
    """softmax(queries keys^T * scaling + positions) values on the attention backend of the configuration.

    Shared by all operations that end in a softmax over keys. `relative_key` adds q_i . R[i - r] to the unscaled score
    of query i and key r (Shaw et al. 2018), `relative_key_query` also k_r . R[i - r] (Huang et al. 2020, method 4);
    the rows of R belong to the layer and are handed in.
    """

    is_causal = False

    def __init__(self, config, head_size: int):
        super().__init__()
        self.config = config
        self.scaling = head_size**-0.5
        self.dropout = config.attention_probs_dropout_prob

    def forward(
        self, query, key, value, context: MixingContext, distance_embedding=None, scaling=None, position_key=None
    ):
        """All (B, h, L, d), `distance_embedding` (2L - 1, d) or None; returns (B, h, L, d), (B, h, L, L) or None.

        `position_key` is the key whose position is scored, where it is another one.
        """
        scaling = self.scaling if scaling is None else scaling
        if self.config.position_embedding_type == "rotary":
            base = self.config.rotary_base
            positions = context.position_ids
            assert positions is not None  # the model gives them to rotary positions
            query, key = (rotate(x, positions, base, context.once) for x in (query, key))
        mask = context.attention_mask
        if distance_embedding is not None:
            scores = relative_scores(query, distance_embedding)
            if self.config.position_embedding_type == "relative_key_query":
                scores = scores + relative_key_scores(
                    key if position_key is None else position_key, distance_embedding
                )
            mask = add_to_mask(scores * scaling, mask)
        dropout = self.dropout if self.training else 0.0
        backend = self.config._attn_implementation
        if "flash" in backend and query.dtype == torch.float32 and not torch.is_autocast_enabled(query.device.type):
            raise ValueError(
                f"attn_implementation: {backend} does not compute in float32; load the model with "
                "dtype=torch.bfloat16, or train it under autocast"
            )
        # With dropout torch has no fused kernel on CPUs: sdpa takes the same way as eager attention, but slower.
        unfused = backend == "sdpa" and dropout > 0 and query.device.type == "cpu"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface("eager" if unfused else backend, eager_attention_forward)
        output, weights = attend(self, query, key, value, mask, scaling=scaling, dropout=dropout)
        return output.transpose(1, 2), None if unfused else weights


def rotate(
    x: torch.Tensor, position_ids: torch.Tensor, base: float, once: Callable = lambda key, make: make()
) -> torch.Tensor:
    """Rotary positions (arXiv 2104.09864) on x (B, h, L, d); an odd last feature is left alone.

    `once` keeps the angles, which are the same for all layers with heads of a size, see `MixingContext.once`.
    """
    half = x.shape[-1] // 2
    key = ("rotary", half, x.dtype, x.device)
    cos, sin = once(key, lambda: rotary_angles(position_ids.to(x.device), half, base, x.dtype))
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def rotary_angles(position_ids: torch.Tensor, half: int, base: float, dtype: torch.dtype):
    """Cosines and sines of the angles by which positions (1 or B, L) turn d / 2 pairs: (1 or B, 1, L, d / 2)."""
    frequencies = base ** (-torch.arange(half, device=position_ids.device, dtype=torch.float32) / half)
    angles = position_ids[:, None, :, None].float() * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def relative_scores(query: torch.Tensor, distance_embedding: torch.Tensor) -> torch.Tensor:
    """q_i . R[i - r] for all pairs: query (B, h, L, d), R (2L - 1, d) from distance L - 1 to 1 - L -> (B, h, L, L)."""
    return _unskew(torch.matmul(query, distance_embedding.to(query.dtype).T))


def relative_key_scores(key: torch.Tensor, distance_embedding: torch.Tensor) -> torch.Tensor:
    """k_r . R[i - r] for all pairs, shapes as in `relative_scores`: seen from the keys distances run the other way."""
    return _unskew(torch.matmul(key, distance_embedding.to(key.dtype).T).flip(-1)).transpose(-1, -2)


def _unskew(x: torch.Tensor) -> torch.Tensor:
    """(..., L, 2 L - 1) -> (..., L, L) with y[i, r] = x[i, L - 1 - i + r]; row i is shifted left by L - 1 - i."""
    length = x.shape[-2]
    flat = nn.functional.pad(x, (0, 1)).flatten(-2)  # rows of 2 L
    return flat[..., length - 1 : length - 1 + length * (2 * length - 1)].unflatten(-1, (length, -1))[..., :length]


def add_to_mask(bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Adds a score bias (B, h, L, L) to a backend's mask, which is None, additive or bool (true where visible)."""
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
    return bias + mask


class SelfAttentionOperation(nn.Module):
    """Softmax attention; the weighted multiplicative kind scores q W k^T with one W (d, d) for the group."""

    def __init__(self, config, layer: LayerSpec, spec):
        super().__init__()
        self.attention = ScoredAttention(config, layer.resolved_head_size)
        self.weight = None
        if spec.similarity == "weighted_multiplicative":
            self.weight = nn.Parameter(torch.empty(layer.resolved_head_size, layer.resolved_head_size))

    def init_parameters(self):
        if self.weight is not None:
            init.uniform_(self.weight, -0.1, 0.1)

    def forward(self, inputs, hidden_states, context, distance_embedding=None):
        query, key = inputs["q"], inputs["k"]
        if self.weight is None:
            return self.attention(query, key, inputs["v"], context, distance_embedding)
        # Position scores belong to query and key themselves, so W goes to the key that meets the query.
        weighted = torch.matmul(key, self.weight.T)
        return self.attention(query, weighted, inputs["v"], context, distance_embedding, position_key=key)


class RelativeAttention(nn.Module):
    """Attention that scores by relative position alone, softmax(q_i . R[i - r] / sqrt(d)) v.

    FlexiBERT's public code puts it beside every transform and, in FlexiBERT 2, beside every convolution. Without a
    table R (positions that are not relative) it is the mean of the values over real tokens.
    """

    def __init__(self, config, head_size: int):
        super().__init__()
        self.scaling = head_size**-0.5
        self.scores_keys = config.position_embedding_type == "relative_key_query"
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    def forward(self, inputs, context: MixingContext, distance_embedding):
        """Projections q, v and, if their positions are scored, k, each (B, h, L, d) -> (B, h, L, d)."""
        query, value = inputs["q"], inputs["v"]
        if distance_embedding is None:
            # A product, so that the query has a gradient, if only 0: data parallel training waits for all of them.
            scores = torch.matmul(query, query.new_zeros(query.shape[-1], query.shape[-2]))
        else:
            scores = relative_scores(query, distance_embedding)
            if self.scores_keys:
                scores = scores + relative_key_scores(inputs["k"], distance_embedding)
            scores = scores * self.scaling
        if context.padding_mask is not None:
            scores = scores.masked_fill(~context.padding_mask[:, None, None, :], torch.finfo(scores.dtype).min)
        return torch.matmul(self.dropout(scores.softmax(dim=-1)), value)


class LinearTransformOperation(nn.Module):
    """Real part of the two-dimensional DFT, or the DCT-II, over sequence and features, as products with matrices.

    Matrix products run in every dtype, export everywhere, and let each row be transformed over its own length: the
    matrix of a padded row has the entries of the shorter transform, and zeros at padding.
    """

    def __init__(self, config, layer: LayerSpec, spec):
        super().__init__()
        self.spec = spec
        self.relative = RelativeAttention(config, layer.resolved_head_size) if spec.relative_attention else None

    def forward(self, inputs, hidden_states, context, distance_embedding=None):
        layer_input = self.spec.source == "layer"
        x = hidden_states[:, None] if layer_input else inputs["v"]  # (B, 1, L, D) or (B, h, L, d)
        mask = None if self.spec.mix_padding else context.padding_mask
        transform, matrices = TRANSFORMS[self.spec.transform]
        ortho = self.spec.norm == "ortho"
        key = (self.spec.transform, ortho, mask is None, x.shape[-1], x.dtype, x.device)
        output = transform(x, *context.once(key, lambda: matrices(x, mask, ortho)))
        if layer_input:
            output = output[:, 0].unflatten(-1, (self.spec.num_heads, -1)).transpose(1, 2)  # (B, h, L, d)
        if self.relative is not None:
            output = output + self.relative(inputs, context, distance_embedding)
        return output, None


def fourier_transform(x: torch.Tensor, features: tuple, sequence: tuple) -> torch.Tensor:
    """The real part of the two-dimensional DFT of x (B, h, L, d), each row over its real tokens:

        y[k, e] = sum over n, f of x[n, f] cos(2 pi (k n / L + e f / d)), which is C_L x C_d - S_L x S_d

    with matrices of cosines C_m[i, j] = cos(2 pi i j / m) and sines S_m, divided by sqrt(L d) for norm "ortho".

    `fourier_matrices` gives half of the features' part. Cosines are the same at f and d - f, sines negative, in rows
    and columns alike: so sums of such features need d // 2 + 1 cosines and differences the other sines, and what comes
    out is column e as their difference and column d - e as their sum.
    """
    sums, differences = _fold(x, alone=1)
    cosines = torch.matmul(sequence[0], torch.matmul(sums, features[0]))
    sines = torch.matmul(sequence[1], torch.matmul(differences, features[1]))
    first, paired, middle = cosines.split([1, sines.shape[-1], cosines.shape[-1] - sines.shape[-1] - 1], dim=-1)
    return torch.cat([first, paired - sines, middle, (paired + sines).flip(-1)], dim=-1)


def fourier_matrices(x: torch.Tensor, padding_mask: torch.Tensor | None, ortho: bool) -> tuple[tuple, tuple]:
    """Cosine and sine matrices over the folded features of x (B, h, L, d) and over its sequence.

    The latter are (L, L), or (B, 1, L, L) with zeros at padding.
    """
    size = x.shape[-1]
    index = torch.arange(size // 2 + 1, device=x.device)
    cos, sin = _cos_sin(index[:, None] * index, size)
    pairs = slice(1, (size + 1) // 2)
    scale = size**-0.5 if ortho else 1.0
    features = (cos * scale).to(x.dtype), (sin[pairs, pairs] * scale).to(x.dtype)
    places, lengths, mask = _rows(x, padding_mask)
    scale = lengths**-0.5 if ortho else 1.0
    scale = scale if mask is None else scale * mask
    cos, sin = _cos_sin(places[..., :, None] * places[..., None, :], lengths)
    return features, ((cos * scale).to(x.dtype), (sin * scale).to(x.dtype))


def _fold(x: torch.Tensor, alone: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums and differences of features that mirror each other in x[..., alone:].

    Those that come alone stand among the sums: the first ones, and the one in the centre if there is one.
    """
    pairs = (x.shape[-1] - alone) // 2
    first, low, centre, high = x.split([alone, pairs, x.shape[-1] - alone - 2 * pairs, pairs], dim=-1)
    high = high.flip(-1)
    return torch.cat([first, low + high, centre], dim=-1), low - high


def _cos_sin(products: torch.Tensor, period) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of 2 pi n / period for whole n, which are reduced first to keep float32 exact at any length."""
    angles = (products % period).float() * (2 * torch.pi / period)
    return angles.cos(), angles.sin()


def cosine_transform(x: torch.Tensor, features: tuple, sequence: torch.Tensor) -> torch.Tensor:
    """The two-dimensional DCT-II of x (B, h, L, d), each row over its real tokens:

        y[k, e] = 4 sum over n, f of x[n, f] cos(pi k (2 n + 1) / (2 L)) cos(pi e (2 f + 1) / (2 d))

    in scipy's convention; rows of both matrices are made orthonormal for norm "ortho".

    `cosine_matrices` gives half of the features' part. Cosines of even frequency e are the same at f and d - 1 - f,
    those of odd frequency negative: sums of such features give the even columns and differences the odd ones.
    """
    even, odd = (torch.matmul(part, matrix) for part, matrix in zip(_fold(x, alone=0), features))
    even, last = even.split([odd.shape[-1], even.shape[-1] - odd.shape[-1]], dim=-1)
    return torch.matmul(sequence, torch.cat([torch.stack([even, odd], dim=-1).flatten(-2), last], dim=-1))


def cosine_matrices(x: torch.Tensor, padding_mask: torch.Tensor | None, ortho: bool) -> tuple[tuple, torch.Tensor]:
    """DCT-II over the folded features of x (B, h, L, d), of even and odd frequency, and over its sequence.

    The latter is (L, L), or (B, 1, L, L) with zeros at padding.
    """
    size = x.shape[-1]
    index = torch.arange(size, device=x.device)
    folded = (index[: (size + 1) // 2], index[: size // 2])
    features = tuple(_cosines(index[odd::2], half, size, ortho).T.to(x.dtype) for odd, half in enumerate(folded))
    places, lengths, mask = _rows(x, padding_mask)
    matrix = _cosines(places, places, lengths, ortho)
    return features, (matrix if mask is None else matrix * mask).to(x.dtype)


def _cosines(k: torch.Tensor, n: torch.Tensor, length, ortho: bool) -> torch.Tensor:
    """2 cos(pi k (2 n + 1) / (2 N)) for all k, n in scipy's convention: (..., k, n); orthonormal rows on request."""
    products = k[..., :, None] * (2 * n[..., None, :] + 1)
    matrix = 2 * ((products % (4 * length)).float() * (torch.pi / (2 * length))).cos()
    if not ortho:
        return matrix
    first = (k == 0)[..., :, None]
    return matrix * torch.where(first, 0.5 / length**0.5, (0.5 / length) ** 0.5)


def _rows(x, padding_mask):
    """Places of tokens among the real ones of their row, row lengths, and the mask of pairs of real tokens, shaped for
    (B, h, L, L)."""
    if padding_mask is None:
        return torch.arange(x.shape[-2], device=x.device), torch.tensor(x.shape[-2], device=x.device), None
    places = (padding_mask.cumsum(-1) - 1).clamp(min=0)[:, None]  # (B, 1, L)
    lengths = padding_mask.sum(-1).clamp(min=1)[:, None, None, None]  # (B, 1, 1, 1)
    return places, lengths, (padding_mask[:, None, :, None] & padding_mask[:, None, None, :])


TRANSFORMS = {"fourier": (fourier_transform, fourier_matrices), "cosine": (cosine_transform, cosine_matrices)}
"""Name -> the transform, and what makes its matrices, which are the same in all layers of a width."""


class DynamicConvolutionOperation(nn.Module):
    """Span-based dynamic convolution (ConvBERT, Section 3.2): kernels = softmax(W (q * separable_conv(x))).

    Every token has one kernel of K taps per head, made from its query and the span around it, and applied to the
    values. Kernels of all heads in the group come out of one linear layer.
    """

    def __init__(self, config, layer: LayerSpec, spec):
        super().__init__()
        self.spec = spec
        self.heads = spec.projected_heads
        width = self.heads * layer.resolved_head_size
        channels = layer.hidden_size if spec.source == "layer" else width
        self.depthwise = nn.Conv1d(
            channels, channels, spec.kernel_size, padding=spec.kernel_size // 2, groups=channels, bias=False
        )
        self.pointwise = nn.Linear(channels, width)
        self.kernel = nn.Linear(width, self.heads * spec.kernel_size)
        self.value = None
        if spec.mixed_attention:
            self.value = nn.Linear(layer.hidden_size, width)
        elif spec.source == "head":
            self.value = nn.Linear(width, width)
        self.attention = ScoredAttention(config, layer.resolved_head_size) if spec.mixed_attention else None
        self.relative = RelativeAttention(config, layer.resolved_head_size) if spec.relative_attention else None

    def forward(self, inputs, hidden_states, context, distance_embedding=None):
        query = merge_heads(inputs["q"])  # (B, L, p d)
        source = hidden_states if self.spec.source == "layer" else merge_heads(inputs["k"])
        if self.value is None:
            value = inputs["v"]
        else:
            value = self.value(hidden_states if self.spec.mixed_attention else merge_heads(inputs["v"]))
            value = value.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if context.padding_mask is not None and not self.spec.mix_padding:
            source = source * context.padding_mask[..., None]
            value = value * context.padding_mask[:, None, :, None]
        span = self.pointwise(self.depthwise(source.transpose(1, 2)).transpose(1, 2))  # (B, L, p d)
        kernels = self.kernel(span * query).unflatten(-1, (self.heads, -1)).softmax(dim=-1)  # (B, L, p, K)
        output = convolve(value, kernels.transpose(1, 2))
        if self.relative is not None:
            output = output + self.relative(inputs, context, distance_embedding)
        if self.attention is None:
            return output, None
        attended, weights = self.attention(inputs["q"], inputs["k"], inputs["v"], context, distance_embedding)
        return torch.cat([attended, output], dim=1), weights


def merge_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, h, L, d) -> (B, L, h d)"""
    merged = x.transpose(1, 2)
    if is_tracing(x):
        # What is a view of a fused attention kernel's output is none once an exporter has taken the kernel apart.
        merged = merged.clone(memory_format=torch.contiguous_format)
    return merged.flatten(2)


def convolve(value: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """out[t] = sum_j kernels[t, j] value[t + j - K // 2] with zeros outside the sequence.

    The kernels become the band of a (L, L) matrix by writing each row one place further right than the last.

    Args:
        value: (B, h, L, d).
        kernels: (B or 1, h, L, K), one kernel per token.
    """
    length, taps = kernels.shape[-2:]
    flat = nn.functional.pad(kernels, (0, length)).flatten(-2)[..., : length * (length + taps - 1)]
    band = flat.unflatten(-1, (length, length + taps - 1))[..., taps // 2 : taps // 2 + length]  # (B, h, L, L)
    return torch.matmul(band, value)


class LightweightConvolutionOperation(nn.Module):
    """Depthwise convolution with one softmax-normalised kernel (K taps) per head, behind a gated linear unit."""

    def __init__(self, config, layer: LayerSpec, spec):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(spec.num_heads, spec.kernel_size))
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    def init_parameters(self):
        init.normal_(self.weight, std=0.02)

    def forward(self, inputs, hidden_states, context, distance_embedding=None):
        value = inputs["v"] * inputs["g"].sigmoid() if "g" in inputs else inputs["v"]
        if context.padding_mask is not None:
            value = value * context.padding_mask[:, None, :, None]
        kernel = self.dropout(self.weight.softmax(dim=-1))  # (h, K)
        batch, heads, length, size = value.shape
        # A product with the whole band wastes most of it and is still several times faster where the band is wide.
        if not is_tracing(value) and length <= 16 * kernel.shape[-1]:
            return convolve(value, kernel[None, :, None, :].expand(1, -1, length, -1)), None
        x = value.transpose(2, 3).reshape(batch, heads * size, length)  # (B, h d, L)
        kernel = kernel[:, None, :].repeat_interleave(size, dim=0)  # (h d, 1, K)
        x = nn.functional.conv1d(x, kernel, padding=kernel.shape[-1] // 2, groups=heads * size)
        return x.reshape(batch, heads, size, length).transpose(2, 3), None


class SearchedAttentionOperation(nn.Module):
    """Attention as a graph of primitives. A graph that ends in softmax attention runs on the attention backend."""

    def __init__(self, config, layer: LayerSpec, spec):
        super().__init__()
        graph = spec.graph
        self.tail = softmax_tail(graph)
        self.nodes = self.tail.prefix if self.tail is not None else graph.nodes
        self.shapes = graph.shapes()
        self.head_size = layer.resolved_head_size
        self.attention = ScoredAttention(config, self.head_size) if self.tail is not None else None

    def forward(self, inputs, hidden_states, context, distance_embedding=None):
        values = dict(inputs)
        for node in self.nodes:
            operands = [values[operand] for operand in node.operands]
            values[node.name] = self.evaluate(node, operands, context.padding_mask)
        if self.tail is None:
            return values[self.nodes[-1].name], None
        query, key, value = values[self.tail.queries], values[self.tail.keys], values[self.tail.values]
        scaling = self.head_size ** (-self.tail.scalings / 2)
        return self.attention(query, key, value, context, distance_embedding, scaling=scaling)

    def evaluate(self, node, operands, padding_mask):
        """One primitive on operands (B, h, rows, columns). Padding leaves every sum over the sequence here."""
        x = operands[0]
        sums_over_tokens = self.shapes[node.operands[0]][1] == "L" and padding_mask is not None
        if node.primitive == "softmax":
            if sums_over_tokens:
                x = x.masked_fill(~padding_mask[:, None, None, :], torch.finfo(x.dtype).min)
            return x.softmax(dim=-1)
        if node.primitive == "matmul":
            if sums_over_tokens:
                x = x * padding_mask[:, None, None, :]
            return torch.matmul(x, operands[1])
        if node.primitive == "scale":
            return x * self.head_size**-0.5
        return PRIMITIVE_FUNCTIONS[node.primitive](*operands)


def euclidean_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distances between all rows of x and y, (B, h, L, d) each -> (B, h, L, L); smooth where rows are equal."""
    squared = (x * x).sum(-1)[..., :, None] + (y * y).sum(-1)[..., None, :] - 2 * torch.matmul(x, y.transpose(-1, -2))
    return (squared.clamp(min=0) + 1e-6).sqrt()


def cosine_similarity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cosines between all rows of x and y, (B, h, L, d) each -> (B, h, L, L)."""
    x, y = (nn.functional.normalize(rows, dim=-1, eps=1e-6) for rows in (x, y))
    return torch.matmul(x, y.transpose(-1, -2))


PRIMITIVE_FUNCTIONS = {
    "neg": torch.neg,
    "transpose": lambda x: x.transpose(-1, -2),
    "logsigmoid": nn.functional.logsigmoid,
    "softsign": nn.functional.softsign,
    "add": torch.add,
    "cosine_similarity": cosine_similarity,
    "euclidean_distance": euclidean_distance,
}

OPERATION_CLASSES = {
    "self_attention": SelfAttentionOperation,
    "linear_transform": LinearTransformOperation,
    "dynamic_convolution": DynamicConvolutionOperation,
    "lightweight_convolution": LightweightConvolutionOperation,
    "attention_graph": SearchedAttentionOperation,
}
assert OPERATION_CLASSES.keys() == OPERATIONS.keys()
