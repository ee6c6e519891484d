"""FlexiBERT encoders: a post-norm transformer whose layers are all their own thing.

Papers: FlexiBERT (arXiv 2205.11656), AutoBERT-Zero (arXiv 2107.07445). What a layer consists of is said in `spec.py`,
with a drawing; how its heads mix tokens in `operations.py`; this file is the frame around them and the task heads.

Notation: B batch, L sequence length, E embedding size, D hidden size of a layer, H heads of a layer, d head size,
V vocabulary.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from .configuration_flexibert import FlexiBertConfig
from .operations import OPERATION_CLASSES, Dropout, MixingContext, PackedContext, Packing, merge_heads
from .spec import LayerSpec


PROJECTIONS = {"q": "query", "k": "key", "v": "value", "p": "extra", "g": "gate"}
"""Input of an operation -> the linear layer that makes it. The fourth input P is AutoBERT-Zero's."""


MIXING_GROUPS = 4
"""Into how many groups of rows of similar length an unpadded batch is cut for mixing."""


class FlexiBertEmbeddings(nn.Module):
    """Word, token type and, if absolute, position embeddings, summed and normalised: (B, L, E)."""

    def __init__(self, config: FlexiBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.embedding_size)
        self.position_embeddings = None
        if config.position_embedding_type == "absolute":
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.embedding_size)
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids, position_ids, inputs_embeds):
        embeddings = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)
        embeddings = embeddings + self.token_type_embeddings(token_type_ids)
        if self.position_embeddings is not None:
            embeddings = embeddings + self.position_embeddings(position_ids)
        return self.dropout(self.norm(embeddings))


class FlexiBertMixer(nn.Module):
    """Token mixing of one layer: groups of heads, each with its operation, concatenated and projected."""

    def __init__(self, config: FlexiBertConfig, spec: LayerSpec):
        super().__init__()
        self.head_size = spec.resolved_head_size
        heads = dict.fromkeys(PROJECTIONS, 0)
        # For each group, the heads of every projection that belong to it.
        self.group_heads: list[dict[str, slice]] = []
        for operation in spec.operations:
            start = {name: heads[name] for name in operation.reads(config.position_embedding_type)}
            for name in start:
                heads[name] += operation.projected_heads
            self.group_heads.append({name: slice(first, heads[name]) for name, first in start.items()})
        self.projections = nn.ModuleDict(
            {PROJECTIONS[name]: nn.Linear(spec.hidden_size, n * self.head_size) for name, n in heads.items() if n}
        )
        self.operations = nn.ModuleList(
            OPERATION_CLASSES[operation.op](config, spec, operation) for operation in spec.operations
        )
        self.distance_embedding = None
        scores_positions = any(operation.scores_positions for operation in spec.operations)
        if config.position_embedding_type.startswith("relative") and scores_positions:
            self.distance_embedding = nn.Embedding(2 * config.max_position_embeddings - 1, self.head_size)
        # Not nn.Identity: adapters take "output" for a linear layer wherever there is one.
        self.output = nn.Linear(spec.mixing_size, spec.hidden_size) if spec.output_projection else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: MixingContext | PackedContext,
        output_indices: torch.Tensor | None = None,
    ):
        """hidden_states (B, L, D) -> (B, L, D) and the weights of all attention heads (B, h, L, L), or None.

        With `output_indices` (N,) into the flattened batch, the first of them is given there only: (N, D). In a packed
        batch B is 1 and L the number of real tokens; the operations see it as padded groups of rows.
        """
        inputs = {
            name: self.projections[module](hidden_states)
            for name, module in PROJECTIONS.items()
            if module in self.projections
        }
        if isinstance(context, PackedContext):
            mixed, attentions = self.mix_packed(inputs, hidden_states, context), None
        else:
            mixed, attentions = self.mix(inputs, hidden_states, context)
        if output_indices is not None:
            mixed = mixed.flatten(0, 1)[output_indices]
        return mixed if self.output is None else self.output(mixed), attentions

    def mix_packed(
        self, inputs: dict[str, torch.Tensor], hidden_states: torch.Tensor, context: PackedContext
    ) -> torch.Tensor:
        """As `mix` for the rows of a packed batch, group by group, without attention weights."""
        outputs, start = [], 0
        for packing, group in context.groups:
            tokens = slice(start, start + len(packing.indices))
            padded = {name: packing.unpack(x[:, tokens]) for name, x in inputs.items()}
            mixed, _ = self.mix(padded, packing.unpack(hidden_states[:, tokens]), group)
            outputs.append(packing.pack(mixed))
            start = tokens.stop
        return torch.cat(outputs, dim=1)

    def mix(self, inputs: dict[str, torch.Tensor], hidden_states: torch.Tensor, context: MixingContext):
        """Projections (B, L, heads * d) and layer input (B, L, D) -> all heads (B, L, H * d), attention weights."""
        distances = self.embed_distances(hidden_states)
        inputs = {name: x.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for name, x in inputs.items()}
        outputs, weights = [], []
        for operation, heads in zip(self.operations, self.group_heads, strict=True):
            group = {name: inputs[name][:, own] for name, own in heads.items()}  # each (B, p, L, d)
            output, attention = operation(group, hidden_states, context, distance_embedding=distances)
            outputs.append(output)
            if attention is not None:
                weights.append(attention)
        mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)  # (B, H, L, d)
        attentions = torch.cat(weights, dim=1) if len(weights) > 1 else next(iter(weights), None)
        return merge_heads(mixed), attentions

    def embed_distances(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Rows of the table of relative positions from distance L - 1 to 1 - L, (2L - 1, d); None without a table."""
        if self.distance_embedding is None:
            return None
        length, zero = hidden_states.shape[1], self.distance_embedding.num_embeddings // 2
        return self.distance_embedding(zero - torch.arange(1 - length, length, device=hidden_states.device))


class FlexiBertFeedForward(nn.Module):
    """One perceptron of any depth: D -> f1 -> f2 -> ... -> D with the activation after each hidden layer."""

    def __init__(self, config: FlexiBertConfig, spec: LayerSpec):
        super().__init__()
        sizes = (spec.hidden_size, *spec.feed_forward)
        self.hidden = nn.ModuleList(nn.Linear(size, next_size) for size, next_size in zip(sizes, sizes[1:]))
        self.output = nn.Linear(sizes[-1], spec.hidden_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for linear in self.hidden:
            hidden_states = self.activation(linear(hidden_states))
        return self.output(hidden_states)


class FlexiBertLayer(GradientCheckpointingLayer):
    """(B, L, input_size) -> (B, L, D): resize, mix tokens, transform tokens; add and norm after the last two."""

    def __init__(self, config: FlexiBertConfig, spec: LayerSpec, input_size: int, always_resize: bool = False):
        super().__init__()
        self.resize = None
        if always_resize or input_size != spec.hidden_size:
            self.resize = nn.Linear(input_size, spec.hidden_size)
        self.mixer = FlexiBertMixer(config, spec)
        self.mixer_norm = nn.LayerNorm(spec.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FlexiBertFeedForward(config, spec)
        self.feed_forward_norm = nn.LayerNorm(spec.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        context: MixingContext | PackedContext,
        output_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`output_indices` (N,) into the flattened batch say where the output is wanted, (N, D), if not everywhere."""
        if self.resize is not None:
            hidden_states = self.resize(hidden_states)
        mixed, _ = self.mixer(hidden_states, context, output_indices)
        if output_indices is not None:
            hidden_states = hidden_states.flatten(0, 1)[output_indices]
        hidden_states = self.mixer_norm(hidden_states + self.dropout(mixed))
        transformed = self.feed_forward(hidden_states)
        return self.feed_forward_norm(hidden_states + self.dropout(transformed))


@auto_docstring
class FlexiBertPreTrainedModel(PreTrainedModel):
    config: FlexiBertConfig
    base_model_prefix = "model"
    _input_embed_layer = "word_embeddings"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["FlexiBertEmbeddings", "FlexiBertLayer"]
    _can_record_outputs = {
        "hidden_states": FlexiBertLayer,
        "attentions": FlexiBertMixer,
    }
    # Names of tensors in other checkpoints, as regular expressions -> their names here.
    _renamed_weights: dict[str, str] = {}

    def __init__(self, config: FlexiBertConfig, *args, **kwargs):
        config.check_size()  # layers may have been changed since
        for name in ("hidden_act", "pooler_activation"):
            if getattr(config, name) not in ACT2FN:
                raise ValueError(f"{name}: {getattr(config, name)!r} is not accepted, known: {', '.join(ACT2FN)}")
        self._masks_pairs = softmax_attention_only(config)
        # Flash and flex attention take no score bias, and nothing but softmax attention knows their masks.
        self._supports_flash_attn = self._masks_pairs and not config.position_embedding_type.startswith("relative")
        self._supports_flex_attn = self._supports_flash_attn
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, *args, key_mapping=None, output_loading_info: bool = False, **kwargs):
        model, report = super().from_pretrained(
            *args, key_mapping={**cls._renamed_weights, **(key_mapping or {})}, output_loading_info=True, **kwargs
        )
        # Else transformers (5.23) would save the model under the old names.
        model._weight_conversions = [
            conversion
            for conversion in getattr(model, "_weight_conversions", None) or ()
            if not set(conversion.source_patterns) & cls._renamed_weights.keys()
        ]
        model.untie(report["missing_keys"])
        return (model, report) if output_loading_info else model

    def untie(self, missing: set[str]) -> None:
        """Fills what a checkpoint of a model with tied weights does not hold for one without; some heads can."""

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if type(module) in OPERATION_CLASSES.values() and hasattr(module, "init_parameters"):
            module.init_parameters()
        elif isinstance(module, nn.Conv1d):
            init.normal_(module.weight, std=self.config.initializer_range)


@auto_docstring
class FlexiBertModel(FlexiBertPreTrainedModel):
    _renamed_weights = {r"^classifier\.pooler\.": "pooler."}

    def __init__(self, config: FlexiBertConfig, add_pooling_layer: bool = True):
        r"""
        add_pooling_layer (`bool`, *optional*, defaults to `True`):
            Whether to put a linear layer with an activation on the state that sequence heads see, see
            `config.classifier_pooling`.
        """
        super().__init__(config)
        specs = config.layer_specs
        input_sizes = (config.embedding_size, *(spec.hidden_size for spec in specs))
        self.embeddings = FlexiBertEmbeddings(config)
        self.layers = nn.ModuleList(
            FlexiBertLayer(config, spec, input_size, always_resize=config.project_embeddings and index == 0)
            for index, (spec, input_size) in enumerate(zip(specs, input_sizes))
        )
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if add_pooling_layer else None
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        output_positions (`torch.LongTensor` of shape `(num_outputs,)`, *optional*):
            Indices into the flattened batch. The last hidden state is given there only, `(num_outputs, hidden_size)`,
            which spares the last layer its output projection and feed-forward network elsewhere.

        A packed batch, several sequences one after the other in one row `(1, num_tokens)` without padding, is one with
        `cu_seq_lens_q` (where they begin and the last one ends), or with `position_ids` that start again from 0 and no
        mask. Sequences do not see each other, whatever the backend, and each has a pooled state of its own.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        shape, device = given.shape[:2], given.device
        if attention_mask is not None and attention_mask.dim() not in ((2, 4) if self._masks_pairs else (2,)):
            also = (
                " or (batch, 1, length, length)" if self._masks_pairs else ", a layer has more than softmax attention"
            )
            raise ValueError(f"attention_mask: (batch, length) is expected{also}")
        bounds = packed_bounds(shape, attention_mask, position_ids, kwargs)
        self.check_length(shape[1] if bounds is None else int(bounds.diff().max()), position_ids)
        if position_ids is None:
            position_ids = torch.arange(shape[1], device=device)[None]
            if bounds is not None:
                position_ids = position_ids - bounds[:-1].repeat_interleave(bounds.diff())

        hidden_states = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (B, L, E)
        mask = padding_mask(attention_mask, device)
        recording = any(
            kwargs.get(name, getattr(self.config, name)) for name in ("output_hidden_states", "output_attentions")
        )
        if bounds is not None:
            if recording:
                raise ValueError("output_hidden_states, output_attentions: not with a packed batch")
            hidden_states = self.encode_packed(hidden_states, bounds, position_ids)
        elif self.config.unpad_inputs and mask is not None and not recording and not is_tracing(mask):
            hidden_states = self.encode_unpadded(hidden_states, mask, position_ids)
        else:
            # The pooler's token may not be among them.
            early = output_positions if self.pooler is None else None
            context = self.mixing_context(hidden_states, attention_mask, mask, position_ids)
            hidden_states = self.encode(hidden_states, context, early)
        pooled = None
        if self.pooler is not None:
            state = self.pool(hidden_states, attention_mask, bounds)
            pooled = ACT2FN[self.config.pooler_activation](self.pooler(state))
        if output_positions is not None and hidden_states.dim() == 3:
            hidden_states = hidden_states.flatten(0, 1)[output_positions]
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def check_length(self, length: int, position_ids: torch.Tensor | None) -> None:
        """Raises ValueError if a sequence is too long for the table of positions and does not say where to look."""
        longest = self.config.max_position_embeddings
        if length <= longest or self.config.position_embedding_type == "rotary":
            return
        looks_up = self.config.position_embedding_type == "absolute"
        if position_ids is None or not (looks_up and not is_tracing(position_ids) and position_ids.max() < longest):
            raise ValueError(f"sequence length {length} exceeds max_position_embeddings {longest}")

    def pool(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        bounds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, L, D) -> (B, D): the first real token of each row, or the mean over all of them.

        With the S + 1 `bounds` of a packed batch (1, N, D) the same of its sequences: (S, D).
        """
        mask = padding_mask(attention_mask, hidden_states.device)
        if self.config.classifier_pooling == "cls":
            if bounds is not None:
                return hidden_states[0, bounds[:-1]]
            if mask is None:
                return hidden_states[:, 0]
            first = mask.int().argmax(dim=1)[:, None, None]  # not 0 where rows are padded on the left
            return hidden_states.gather(1, first.expand(-1, 1, hidden_states.shape[-1])).squeeze(1)
        if bounds is not None:
            lengths = bounds.diff()
            rows = torch.arange(len(lengths), device=bounds.device).repeat_interleave(lengths)
            sums = hidden_states.new_zeros(len(lengths), hidden_states.shape[-1]).index_add(0, rows, hidden_states[0])
            return sums / lengths[:, None]
        if mask is None:
            return hidden_states.mean(1)
        return (hidden_states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    def encode(
        self,
        hidden_states: torch.Tensor,
        context: MixingContext | PackedContext,
        output_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, L, E) -> (B, L, D), or (N, D) where it is wanted, through all layers."""
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, context)
        return self.layers[-1](hidden_states, context, output_indices)

    def mixing_context(self, hidden_states, attention_mask, mask, position_ids) -> MixingContext:
        """What layers have to know; `mask` (B, L) is true at real tokens, or None."""
        attention_mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        return MixingContext(attention_mask, mask, position_ids, made={})

    def encode_unpadded(
        self, hidden_states: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """The same without the padding of rows (B, L, E)."""
        batch, length = mask.shape
        cells = torch.arange(batch * length, device=mask.device).view(batch, length)
        return self.encode_cells(hidden_states, mask, cells, position_ids)

    def encode_packed(
        self, hidden_states: torch.Tensor, bounds: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """The same for sequences that stand one after the other in one row (1, N, E)."""
        for index, layer in enumerate(self.config.layer_specs):
            if any(operation.mixes_padding for operation in layer.operations):
                raise ValueError(f"a packed batch has no padding to mix, but layers[{index}] has mix_padding")
        lengths = bounds.diff()
        places = torch.arange(int(lengths.max()), device=bounds.device)
        cells = (bounds[:-1, None] + places).clamp(max=hidden_states.shape[1] - 1)  # (S, longest)
        return self.encode_cells(hidden_states, places < lengths[:, None], cells, position_ids)

    def encode_cells(
        self, hidden_states: torch.Tensor, mask: torch.Tensor, cells: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Encodes the real tokens of a batch alone, in groups of sequences of similar length, each cut to its longest.

        Args:
            hidden_states: (B, L, E)
            mask: (S, l), true at the real tokens of each of S sequences.
            cells: (S, l) where those stand in the flattened batch.
            position_ids: (1 or B, L)
        """
        lengths = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=-1)
        position_ids = position_ids.expand(hidden_states.shape[:2]).flatten()
        groups, indices = [], []
        for rows in lengths.argsort().chunk(MIXING_GROUPS):
            cut = rows, slice(max(1, int(lengths[rows].max())))  # a row may be all padding
            group_mask = mask[cut]
            packing = Packing((group_mask.shape[0], group_mask.shape[1]), group_mask.flatten().nonzero().flatten())
            indices.append(cells[cut][group_mask])
            padded = hidden_states.new_empty(*group_mask.shape, 0)  # shape, type and device of what is mixed
            real = None if group_mask.all() else group_mask
            groups.append((packing, self.mixing_context(padded, real, real, position_ids[cells[cut]])))
        whole = Packing((hidden_states.shape[0], hidden_states.shape[1]), torch.cat(indices))
        return whole.unpack(self.encode(whole.pack(hidden_states), PackedContext(tuple(groups))))


def packed_bounds(shape, attention_mask, position_ids, kwargs) -> torch.Tensor | None:
    """Where the S sequences of a packed batch begin and the last one ends, (S + 1,); None for any other batch.

    Raises:
        ValueError: If `cu_seq_lens_q` among the keyword arguments does not fit the batch.
    """
    given = kwargs.get("cu_seq_lens_q", kwargs.get("cu_seq_lens_k"))
    if given is None:
        if position_ids is None or attention_mask is not None or is_tracing(position_ids):
            return None
        if shape[0] != 1 or position_ids.shape[0] != 1:
            return None
        row = position_ids[0]
        starts = row == 0
        # Positions of one sequence may be anything; those of several start again from 0 and count up.
        if not starts[0] or starts.sum() < 2 or not ((row.diff() == 1) | starts[1:]).all():
            return None
        return nn.functional.pad(starts.nonzero().flatten(), (0, 1), value=len(row))
    if is_tracing(given):
        raise ValueError("cu_seq_lens_q: a packed batch cannot be traced or compiled as a whole")
    bounds = given.flatten().long()
    fits = len(bounds) > 1 and bounds[0] == 0 and bounds[-1] == shape[1] and (bounds.diff() > 0).all()
    if shape[0] != 1 or not fits:
        raise ValueError(
            f"cu_seq_lens_q: from 0 to the {shape[1]} tokens of one row are expected, each more than the last"
        )
    if attention_mask is not None and (attention_mask.dim() != 2 or not attention_mask.bool().all()):
        raise ValueError("attention_mask: none is expected beside cu_seq_lens_q, a packed batch has no padding")
    return bounds


def softmax_attention_only(config: FlexiBertConfig) -> bool:
    """Whether every operation is a softmax over keys, which any mask of pairs of tokens can be applied to."""
    return all(operation.is_softmax_attention for layer in config.layer_specs for operation in layer.operations)


def padding_mask(attention_mask: torch.Tensor | None, device) -> torch.Tensor | None:
    """(B, L) bool, true at real tokens; None where nothing is padded, which saves all masking."""
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    mask = attention_mask.to(device=device, dtype=torch.bool)
    if not is_tracing(mask) and mask.all():
        return None
    return mask


class FlexiBertPredictionHead(nn.Module):
    """(..., D) -> (..., E) of the last layer; E is `config.prediction_size`, of tied embeddings their width."""

    def __init__(self, config: FlexiBertConfig):
        super().__init__()
        size = config.embedding_size if config.tie_word_embeddings else config.prediction_size
        self.dense = nn.Linear(config.hidden_size, size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.activation(self.dense(hidden_states)))


@auto_docstring
class FlexiBertForMaskedLM(FlexiBertPreTrainedModel):
    _tied_weights_keys = {"lm_head.weight": "model.embeddings.word_embeddings.weight"}

    def __init__(self, config: FlexiBertConfig):
        super().__init__(config)
        self.model = FlexiBertModel(config, add_pooling_layer=False)
        # Not "head": device_map="auto" of transformers 5.23 looks for names of modules inside "lm_head.".
        self.prediction_head = FlexiBertPredictionHead(config)
        self.lm_head = nn.Linear(self.prediction_head.dense.out_features, config.vocab_size)
        self.post_init()

    @torch.no_grad()
    def untie(self, missing: set[str]) -> None:
        table = self.model.embeddings.word_embeddings.weight
        known = "model.embeddings.word_embeddings.weight" not in missing and not table.is_meta
        if known and "lm_head.weight" in missing and self.lm_head.weight.shape == table.shape:
            self.lm_head.weight.copy_(table)
            missing.discard("lm_head.weight")

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        prediction_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Token ids to predict, -100 where nothing is predicted. With `config.sparse_prediction` the logits are
            `(number of labelled tokens, vocab_size)`, in the order of the batch.
        prediction_positions (`torch.LongTensor` of shape `(num_predictions,)`, *optional*):
            Indices into the flattened batch. Logits are computed there only, `(num_predictions, vocab_size)`, and
            labels, if any, are `(num_predictions,)`. Unlike `config.sparse_prediction` this keeps shapes static.
        """
        if prediction_positions is None and self.config.sparse_prediction and labels is not None:
            prediction_positions = (labels.flatten() != -100).nonzero().flatten()
            labels = labels.flatten()[prediction_positions]
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, prediction_positions)
        outputs = self.model(*inputs, **kwargs)
        logits = self.lm_head(self.prediction_head(outputs.last_hidden_state))  # (B, L, V) or (N, V)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def classifier_dropout(config: FlexiBertConfig) -> Dropout:
    dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
    return Dropout(dropout)


class FlexiBertClassifier(nn.Linear):
    """The last linear layer of a head that sees a sequence as one state, behind BERT's pooler and dropout: (B, D) ->
    (B, logits).

    The pooler is a part of it, not of the encoder, because it is trained with it: so PEFT, which saves what is called
    "classifier" beside an adapter, saves both.
    """

    def __init__(self, config: FlexiBertConfig, num_logits: int):
        super().__init__(config.hidden_size, num_logits)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.pooler_activation]
        self.dropout = classifier_dropout(config)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return super().forward(self.dropout(self.activation(self.pooler(state))))


class FlexiBertPairClassifier(nn.Linear):
    """The last linear layer of a head that sees two texts as a state each, u and v: (B, D) twice -> (B, labels).

    Its input is u, v and |u - v|, or for a single number the cosine of u and v.
    """

    def __init__(self, config: FlexiBertConfig):
        super().__init__(1 if config.num_labels == 1 else 3 * config.hidden_size, config.num_labels)
        self.dropout = classifier_dropout(config)

    def forward(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if self.in_features == 1:
            return super().forward(nn.functional.cosine_similarity(u, v)[:, None])
        return super().forward(self.dropout(torch.cat([u, v, (u - v).abs()], dim=-1)))


def split_pairs(inputs: torch.Tensor, attention_mask: torch.Tensor | None, token_type_ids: torch.Tensor | None, pad):
    """Pairs "[CLS] a [SEP] b [SEP]", whose second text has token type 1, as texts alone.

    Args:
        inputs: (B, L) token ids or (B, L, E) embeddings.
        pad: What stands at padding.

    Returns:
        (2B, L') or (2B, L', E), first every "[CLS] a [SEP]", then every "[CLS] b [SEP]", and their mask (2B, L').

    Raises:
        ValueError: There are no token types, or only one of them.
    """
    if token_type_ids is None or (not is_tracing(token_type_ids) and not token_type_ids.any()):
        raise ValueError("token_type_ids: pair_encoding 'separate' needs them to tell two texts apart")
    real = torch.ones_like(token_type_ids) if attention_mask is None else attention_mask
    first_token = real.to(torch.int).argmax(dim=-1, keepdim=True)  # under left padding not the first of its row
    second = (token_type_ids.eq(1) & real.bool()).scatter(1, first_token, True)
    chosen = torch.cat([token_type_ids.eq(0) & real.bool(), second])
    order = chosen.to(torch.int).argsort(dim=-1, descending=True, stable=True)
    if not is_tracing(chosen):
        order = order[:, : int(chosen.sum(-1).max())]
    mask = chosen.gather(1, order)
    index = order if inputs.dim() == 2 else order[..., None].expand(-1, -1, inputs.shape[-1])
    texts = torch.cat([inputs, inputs]).gather(1, index)
    return texts.masked_fill(~mask if inputs.dim() == 2 else ~mask[..., None], pad), mask.to(real.dtype)


@auto_docstring
class FlexiBertForSequenceClassification(FlexiBertPreTrainedModel):
    _renamed_weights = {r"^(model\.)?pooler\.": "classifier.pooler."}

    def __init__(self, config: FlexiBertConfig):
        super().__init__(config)
        self.model = FlexiBertModel(config, add_pooling_layer=False)
        self.classifier: nn.Module
        if config.pair_encoding == "separate":
            self.classifier = FlexiBertPairClassifier(config)
        else:
            self.classifier = FlexiBertClassifier(config, config.num_labels)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        labels (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            Class indices, or numbers where `config.num_labels` is 1 (mean squared error).
        """
        if self.config.pair_encoding == "separate":
            if position_ids is not None or kwargs.get("cu_seq_lens_q") is not None:
                raise ValueError("position_ids: not accepted with pair_encoding 'separate', each text has its own")
            if input_ids is not None:
                input_ids, attention_mask = split_pairs(
                    input_ids, attention_mask, token_type_ids, self.config.pad_token_id or 0
                )
            elif inputs_embeds is not None:
                inputs_embeds, attention_mask = split_pairs(inputs_embeds, attention_mask, token_type_ids, 0.0)
            token_type_ids = None
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        bounds = packed_bounds(outputs.last_hidden_state.shape, attention_mask, position_ids, kwargs)
        states = self.model.pool(outputs.last_hidden_state, attention_mask, bounds)  # (B, D), (2B, D) of texts alone
        logits = self.classifier(*states.chunk(2) if self.config.pair_encoding == "separate" else (states,))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
            items = kwargs.get("num_items_in_batch")
            if items is not None and self.config.problem_type != "single_label_classification":
                # Here transformers (5.23) takes the mean over this batch, whatever the items of the others.
                loss = loss * (labels.numel() / items)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring
class FlexiBertForTokenClassification(FlexiBertPreTrainedModel):
    def __init__(self, config: FlexiBertConfig):
        super().__init__(config)
        self.model = FlexiBertModel(config, add_pooling_layer=False)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Class indices, -100 where a token has none.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))  # (B, L, labels)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring
class FlexiBertForQuestionAnswering(FlexiBertPreTrainedModel):
    def __init__(self, config: FlexiBertConfig):
        super().__init__(config)
        self.model = FlexiBertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.qa_outputs(outputs.last_hidden_state)  # (B, L, 2)
        start_logits, end_logits = (part.squeeze(-1).contiguous() for part in logits.split(1, dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@auto_docstring
class FlexiBertForMultipleChoice(FlexiBertPreTrainedModel):
    _renamed_weights = {r"^(model\.)?pooler\.": "classifier.pooler."}

    def __init__(self, config: FlexiBertConfig):
        super().__init__(config)
        self.model = FlexiBertModel(config, add_pooling_layer=False)
        self.classifier = FlexiBertClassifier(config, 1)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, num_choices, sequence_length)`):
            Token ids of every choice; the other inputs have the same leading dimensions.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Index of the right choice.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        choices = given.shape[1]
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        input_ids, attention_mask, *rest = (None if x is None else x.flatten(0, 1) for x in inputs)
        outputs = self.model(input_ids, attention_mask, *rest, **kwargs)
        pooled = self.model.pool(outputs.last_hidden_state, attention_mask)
        logits = self.classifier(pooled).view(-1, choices)  # (B, choices)
        loss = None
        if labels is not None:
            items = kwargs.get("num_items_in_batch")  # of all batches whose gradients are accumulated
            loss = nn.functional.cross_entropy(logits, labels, reduction="mean" if items is None else "sum")
            loss = loss if items is None else loss / items
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "FlexiBertForMaskedLM",
    "FlexiBertForMultipleChoice",
    "FlexiBertForQuestionAnswering",
    "FlexiBertForSequenceClassification",
    "FlexiBertForTokenClassification",
    "FlexiBertModel",
    "FlexiBertPreTrainedModel",
]
