"""Converters for checkpoints of FlexiBERT's public code and for transformers' encoders with attention like BERT's,
FNet's transforms or ConvBERT's convolutions."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from .attention_graph import show
from .configuration_flexibert import FlexiBertConfig
from .model_dict import config_from_model_dict
from .modeling_flexibert import (
    PROJECTIONS,
    FlexiBertForMaskedLM,
    FlexiBertForMultipleChoice,
    FlexiBertForQuestionAnswering,
    FlexiBertForSequenceClassification,
    FlexiBertForTokenClassification,
    FlexiBertModel,
    FlexiBertPreTrainedModel,
)
from .spec import DynamicConvolution, LayerSpec, LinearTransform, SelfAttention


# --- checkpoints of the public code -------------------------------------------------------------------------------


def convert_reference_state_dict(
    state_dict: Mapping[str, torch.Tensor], model_dict: dict[str, Any], *, mix_padding: bool = True, **overrides
) -> tuple[FlexiBertConfig, dict[str, torch.Tensor]]:
    """Converts a checkpoint of FlexiBERT's public code, or of its version in transformers' pull request 20356.

    The result fits, to the last key, `FlexiBertForMaskedLM` if the checkpoint has a masked language modelling head
    (a pooler beside it is left out), `FlexiBertForSequenceClassification` with a classifier behind a pooler,
    `FlexiBertForTokenClassification` with a classifier alone, `FlexiBertForQuestionAnswering` with `qa_outputs`, and
    otherwise `FlexiBertModel`, with `add_pooling_layer=False` where the checkpoint has no pooler.

        config, tensors = convert_reference_state_dict(torch.load("pytorch_model.bin"), model_dict)
        model = FlexiBertModel(config)
        model.load_state_dict(tensors)

    In hetero layers the public code replaces the output of every sa head by zeros. The converted model computes what
    is meant, the attention output.

    Args:
        state_dict: Tensors by name, with or without the prefix "bert." or "flexibert.".
        model_dict: What the checkpoint was made from, see `config_from_model_dict`.
        mix_padding: Lets padding take part in transforms and convolutions, as in the public code. With False the
            outputs at real tokens do not depend on padding, but rows shorter than their batch are computed otherwise
            than the checkpoint was trained.
        overrides: Fields of `FlexiBertConfig`. Sizes of tables and the position type are read off the tensors; those
            of `position_embedding_type="relative_key_query"` look like "relative_key", so this has to be said.

    Raises:
        ValueError: If the dictionary is not accepted or the tensors do not fit it, with path or name.
    """
    tensors = _without_prefix(state_dict)
    distances = [tensor for name, tensor in tensors.items() if name.endswith(".distance_embedding.weight")]
    fields: dict[str, Any] = {
        "vocab_size": _rows(tensors, "embeddings.word_embeddings.weight"),
        "type_vocab_size": _rows(tensors, "embeddings.token_type_embeddings.weight"),
    }
    if distances:
        fields |= {"position_embedding_type": "relative_key", "max_position_embeddings": (len(distances[0]) + 1) // 2}
    else:
        positions = _rows(tensors, "embeddings.position_embeddings.weight")
        fields |= {"position_embedding_type": "absolute", "max_position_embeddings": positions}
    has_pooler = "pooler.dense.weight" in tensors or "classifier.dense.weight" in tensors
    classifier = next((name for name in ("classifier.weight", "classifier.out_proj.weight") if name in tensors), None)
    if classifier is not None:
        fields["num_labels"] = len(tensors[classifier])
    config = config_from_model_dict(model_dict, mix_padding=mix_padding, **{**fields, **overrides})
    with torch.device("meta"):
        if "cls.predictions.transform.dense.weight" in tensors:
            model = FlexiBertForMaskedLM(config)
        elif classifier is not None:
            model = (FlexiBertForSequenceClassification if has_pooler else FlexiBertForTokenClassification)(config)
        elif "qa_outputs.weight" in tensors:
            model = FlexiBertForQuestionAnswering(config)
        else:
            model = FlexiBertModel(config, add_pooling_layer=has_pooler)
    return config, _state_dict_for(model, tensors)


def _without_prefix(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = re.compile(r"^(bert|flexibert|fnet|convbert|roberta|distilbert|electra)\.")
    return {prefix.sub("", name): tensor for name, tensor in state_dict.items()}


def _rows(tensors: Mapping[str, torch.Tensor], name: str) -> int:
    if name not in tensors:
        raise ValueError(f"state_dict: {name} is missing")
    return len(tensors[name])


# --- names of tensors ---------------------------------------------------------------------------------------------

_WITHOUT_USE = re.compile(
    r"embeddings\.(token_type_ids|position_(ids|embeddings\.weight))|pooler\.dense\.(weight|bias)|"
    r"cls\.(predictions\.(decoder\.)?bias|seq_relationship\.(weight|bias))|"
    r"encoder\.layer\.\d+\.(attention\.self\.(W|W\.weight|key\.(weight|bias))|"
    r"intermediate\.(dense|sequential\.0)\.(weight|bias)|fourier\.self\.dft_mat_(seq|hidden))"
)
"""What a checkpoint may hold in vain: aliases, buffers, heads that are left out, and tensors that its own code never
reads (W beside scaled dot products, keys of transforms, absolute positions beside relative ones)."""


def _state_dict_for(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Finds every tensor of `model` among a checkpoint's; ValueError if one is missing, misshapen or left over."""
    source_names, source_rows = _source_names(model.config), _source_rows(model.config)
    found, result = set(), {}
    for name, target in model.state_dict().items():
        own_name = name.removeprefix("model.")
        candidates = source_names[own_name]
        source = next((candidate for candidate in candidates if candidate in tensors), None)
        if source is None:
            raise ValueError(f"state_dict: {candidates[0]} is missing")
        found.add(source)
        tensor, rows = tensors[source], source_rows.get(own_name.rpartition(".")[0])
        if rows is not None and len(rows) == len(tensor):
            tensor = tensor[rows.to(tensor.device)]
        if tensor.dim() == target.dim() + 1:  # convolutions of one tap, and their biases
            tensor = tensor.squeeze(-1)
        if tensor.shape != target.shape:
            shapes = f"{tuple(tensor.shape)} where {tuple(target.shape)} is expected"
            raise ValueError(f"state_dict: {source} gives the shape {shapes}")
        result[name] = tensor
    for name in tensors:
        if name not in found and not _WITHOUT_USE.fullmatch(name):
            raise ValueError(f"state_dict: {name} has no place in this architecture")
    return result


def _source_names(config: FlexiBertConfig) -> dict[str, tuple[str, ...]]:
    """Name of a tensor here -> its possible names in a checkpoint, the first choice first."""
    names = _weight_and_bias("embeddings.norm", "embeddings.LayerNorm")
    for table in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        names |= _weight_and_bias(f"embeddings.{table}", f"embeddings.{table}")
    for index, layer in enumerate(config.layer_specs):
        names |= _layer_names(layer, f"layers.{index}", f"encoder.layer.{index}")
        # The public code changes the width at the end of the layer before.
        names |= _weight_and_bias(f"layers.{index}.resize", f"encoder.layer.{index - 1}.output.proj_head")
    names |= _weight_and_bias("layers.0.resize", "embeddings.projection", "embeddings_project")
    for pooler in ("pooler", "classifier.pooler"):
        names |= _weight_and_bias(pooler, "classifier.dense", "pooler.dense")  # the pull request's head has its own
    names |= _weight_and_bias("classifier", "classifier.out_proj", "classifier")
    names |= _weight_and_bias("qa_outputs", "qa_outputs")
    names |= _weight_and_bias(
        "prediction_head.dense", "cls.predictions.transform.dense", "generator_predictions.dense"
    )
    names |= _weight_and_bias(
        "prediction_head.norm", "cls.predictions.transform.LayerNorm", "generator_predictions.LayerNorm"
    )
    names |= _weight_and_bias("lm_head", "cls.predictions.decoder", "cls.predictions", "generator_lm_head")
    return names


def _layer_names(layer: LayerSpec, ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    attention = f"{theirs}.attention.self"
    names: dict[str, tuple[str, ...]] = {
        f"{ours}.mixer.distance_embedding.weight": (f"{attention}.distance_embedding.weight",)
    }
    for projection in PROJECTIONS.values():
        names |= _weight_and_bias(f"{ours}.mixer.projections.{projection}", f"{attention}.{projection}")
    matrices, convolutions = itertools.count(), itertools.count()
    for index, operation in enumerate(layer.operations):
        module = f"{ours}.mixer.operations.{index}"
        if isinstance(operation, SelfAttention):
            if operation.similarity == "weighted_multiplicative":  # W for a layer, W0, W1, .. for heads
                matrix = f"{attention}.W"
                names[f"{module}.weight"] = (matrix, f"{matrix}.weight", f"{matrix}{next(matrices)}")
        elif isinstance(operation, DynamicConvolution):
            number = next(convolutions) if operation.source == "head" else ""
            separable = f"{attention}.key_conv_attn_layer{number}"
            names[f"{module}.depthwise.weight"] = (f"{separable}.depthwise.weight",)
            names[f"{module}.pointwise.weight"] = (f"{separable}.pointwise.weight",)
            names[f"{module}.pointwise.bias"] = (f"{separable}.bias",)
            names |= _weight_and_bias(f"{module}.kernel", f"{attention}.conv_kernel_layer{number}")
            names |= _weight_and_bias(f"{module}.value", f"{attention}.conv_out_layer{number}")
    names |= _weight_and_bias(f"{ours}.mixer.output", f"{theirs}.attention.output.dense")
    norms = (f"{theirs}.attention.output.LayerNorm", f"{theirs}.fourier.output.LayerNorm")
    names |= _weight_and_bias(f"{ours}.mixer_norm", *norms)
    for index in range(len(layer.feed_forward)):
        hidden = f"{theirs}.intermediate.sequential.{2 * index}"  # activations are the odd ones
        alias = [f"{theirs}.intermediate.dense"] if index == 0 else []
        names |= _weight_and_bias(f"{ours}.feed_forward.hidden.{index}", hidden, *alias)
    names |= _weight_and_bias(f"{ours}.feed_forward.output", f"{theirs}.output.dense")
    names |= _weight_and_bias(f"{ours}.feed_forward_norm", f"{theirs}.output.LayerNorm")
    return names


def _weight_and_bias(ours: str, *theirs: str) -> dict[str, tuple[str, ...]]:
    return {f"{ours}.{leaf}": tuple(f"{name}.{leaf}" for name in theirs) for leaf in ("weight", "bias")}


def _source_rows(config: FlexiBertConfig) -> dict[str, torch.Tensor]:
    """Projection here -> which rows of the checkpoint's it keeps: those of the heads that read it."""
    rows = {}
    for index, layer in enumerate(config.layer_specs):
        for name, module in PROJECTIONS.items():
            reads = [
                name in operation.reads(config.position_embedding_type)
                for operation in layer.operations
                for _ in range(operation.projected_heads)
            ]
            mask = torch.tensor(reads).repeat_interleave(layer.resolved_head_size)
            rows[f"layers.{index}.mixer.projections.{module}"] = mask
    return rows


# --- transformers' models -----------------------------------------------------------------------------------------

FAMILIES = (("Bert", "FNet", "ConvBert"), ("Roberta", "XLMRoberta", "DistilBert", "Electra"))
HEADS = {
    "Model": FlexiBertModel,
    "ForMaskedLM": FlexiBertForMaskedLM,
    "ForSequenceClassification": FlexiBertForSequenceClassification,
    "ForTokenClassification": FlexiBertForTokenClassification,
    "ForQuestionAnswering": FlexiBertForQuestionAnswering,
    "ForMultipleChoice": FlexiBertForMultipleChoice,
}
CONVERTIBLE: dict[type[PreTrainedModel], type[FlexiBertPreTrainedModel]] = {
    getattr(transformers, family + head): ours
    for families in FAMILIES
    for head, ours in HEADS.items()
    for family in families
}
"""Class of transformers -> what it becomes."""

# Field here -> its names in the configurations of transformers.
_FIELDS = {
    name: (name,)
    for name in (
        "vocab_size",
        "embedding_size",
        "type_vocab_size",
        "classifier_dropout",
        "initializer_range",
        "layer_norm_eps",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "tie_word_embeddings",
        "id2label",
        "label2id",
        "problem_type",
    )
} | {
    "hidden_act": ("hidden_act", "activation"),
    "hidden_dropout_prob": ("hidden_dropout_prob", "dropout"),
    "attention_probs_dropout_prob": ("attention_probs_dropout_prob", "attention_dropout"),
}

# Names of modules in the style of BERT's, where a family has its own.
_SEQUENCE_SUMMARY = [(r"^sequence_summary\.summary\.", "pooler.dense.")]
_LM_HEAD = [
    (r"^lm_head\.dense\.", "cls.predictions.transform.dense."),
    (r"^lm_head\.layer_norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^lm_head\.(decoder\.|bias$)", r"cls.predictions.\1"),
]
_MODULES = {
    "convbert": _SEQUENCE_SUMMARY,
    "electra": _SEQUENCE_SUMMARY,
    "roberta": _LM_HEAD,
    "xlm-roberta": _LM_HEAD,
    "distilbert": [
        (r"^transformer\.layer\.", "encoder.layer."),
        (r"\.attention\.out_lin\.", ".attention.output.dense."),
        (r"\.attention\.q_lin\.", ".attention.self.query."),
        (r"\.attention\.k_lin\.", ".attention.self.key."),
        (r"\.attention\.v_lin\.", ".attention.self.value."),
        (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
        (r"\.ffn\.lin1\.", ".intermediate.dense."),
        (r"\.ffn\.lin2\.", ".output.dense."),
        (r"\.output_layer_norm\.", ".output.LayerNorm."),
        (r"^vocab_transform\.", "cls.predictions.transform.dense."),
        (r"^vocab_layer_norm\.", "cls.predictions.transform.LayerNorm."),
        (r"^vocab_projector\.", "cls.predictions.decoder."),
        (r"^pre_classifier\.", "pooler.dense."),
    ],
}


def convert_transformers_model(model: PreTrainedModel, *, mix_padding: bool = True) -> FlexiBertPreTrainedModel:
    """Converts an encoder of transformers to one with equal outputs at real tokens, in evaluation mode.

    Accepted are BERT (MiniLM and other sentence encoders of its kind included), RoBERTa, XLM-RoBERTa, DistilBERT,
    ELECTRA, FNet and ConvBERT: the bare model, or the one for masked language modelling, for classification of
    sequences or tokens, for question answering or for multiple choice.

    What may differ: `hidden_states[0]` where a linear layer follows the embeddings (FNet, small ConvBERTs and
    ELECTRAs), which is the first layer's `resize` here; and, under left padding, positions of RoBERTa, which counts
    real tokens only (give `position_ids` then). In training the heads of some families have one dropout more.

    Args:
        model: A model of one of those classes, as `from_pretrained` returns it.
        mix_padding: Lets padding take part in Fourier transforms and convolutions, as it does in transformers. With
            False the outputs at real tokens do not depend on padding; those of unpadded rows stay equal.

    Returns:
        The model here for the same task with copied weights, in the dtype, on the device and in the mode (training or
        evaluation) of `model`.

    Raises:
        ValueError: If the model is another one, or one that has no equal here (a decoder, an activation of its own).
    """
    ours = next((ours for theirs, ours in CONVERTIBLE.items() if isinstance(model, theirs)), None)
    if ours is None:
        known = ", ".join(cls.__name__ for cls in CONVERTIBLE)
        raise ValueError(f"model: {type(model).__name__} is not accepted, known: {known}")
    source = model.config
    if getattr(source, "is_decoder", False):
        raise ValueError("model.config.is_decoder: True is not accepted, encoders see both sides")
    fixed_gelu = source.model_type in ("convbert", "electra", "roberta", "xlm-roberta")
    if ours is FlexiBertForMaskedLM and fixed_gelu and source.hidden_act != "gelu":
        raise ValueError(f"model.config.hidden_act: {show(source.hidden_act)}, but the prediction head has 'gelu'")
    tensors = _in_berts_names(source, _without_prefix(model.state_dict()))
    fields = {
        name: getattr(source, theirs) for name, names in _FIELDS.items() for theirs in names if hasattr(source, theirs)
    }
    fields["type_vocab_size"] = _rows(tensors, "embeddings.token_type_embeddings.weight")
    fields["max_position_embeddings"] = _rows(tensors, "embeddings.position_embeddings.weight")
    config = FlexiBertConfig(
        **{**fields, **_head_fields(source, ours)},
        layers=[_transformers_layer(source, mix_padding)] * source.num_hidden_layers,
        project_embeddings=source.model_type == "fnet",
        prediction_size=fields.get("embedding_size", source.hidden_size),
    )
    if ours is FlexiBertModel:
        converted = FlexiBertModel(config, add_pooling_layer="pooler.dense.weight" in tensors)
    else:
        converted = ours(config)
    converted.load_state_dict(_state_dict_for(converted, tensors))
    converted.to(device=model.device, dtype=model.dtype)  # type: ignore[call-arg]  # transformers decorates it
    return converted.train(model.training)


def _in_berts_names(source, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors under the names, and in the shapes, that those of BERT have."""
    tensors = _with_dense_matrices(tensors)
    for pattern, name in _MODULES.get(source.model_type, ()):
        tensors = {re.sub(pattern, name, old): tensor for old, tensor in tensors.items()}
    table = "embeddings.position_embeddings.weight"
    if source.model_type in ("roberta", "xlm-roberta"):
        tensors[table] = tensors[table][source.pad_token_id + 1 :]  # the first positions are those of padding
    if source.model_type == "distilbert":
        tensors["embeddings.token_type_embeddings.weight"] = tensors[table].new_zeros(1, source.hidden_size)
    return tensors


def _head_fields(source, ours: type[FlexiBertPreTrainedModel]) -> dict[str, Any]:
    """What a family has of its own in the heads that see a sequence as one state."""
    sequence = ours in (FlexiBertForSequenceClassification, FlexiBertForMultipleChoice)
    if source.model_type == "distilbert":
        own = {FlexiBertForTokenClassification: "dropout", FlexiBertForQuestionAnswering: "qa_dropout"}
        dropout = getattr(source, own.get(ours, "seq_classif_dropout"))
        return {"layer_norm_eps": 1e-12, "pooler_activation": "relu", "classifier_dropout": dropout}
    if source.model_type not in ("electra", "convbert") or not sequence:
        return {}
    if ours is FlexiBertForMultipleChoice:
        kind = getattr(source, "summary_type", "last")
        if kind != "first" or not source.summary_use_proj or getattr(source, "summary_proj_to_labels", False):
            expected = "expected 'first' and a projection of full width"
            raise ValueError(f"model.config.summary_type: {show(kind)} is not accepted, {expected}")
        return {
            "pooler_activation": source.summary_activation or "linear",
            "classifier_dropout": source.summary_last_dropout,
        }
    return {"pooler_activation": "gelu" if source.model_type == "electra" else source.hidden_act}


def _transformers_layer(config, mix_padding: bool) -> LayerSpec:
    inner = config.hidden_dim if config.model_type == "distilbert" else config.intermediate_size
    hidden_size, feed_forward = config.hidden_size, (inner,)
    if config.model_type == "fnet":
        transform = LinearTransform(1, "fourier", source="layer", norm="backward", mix_padding=mix_padding)
        return LayerSpec(hidden_size, (transform,), feed_forward, output_projection=False)
    if config.model_type == "convbert":
        # Attention and convolution have num_heads // head_ratio heads each, which together fill the hidden size.
        heads = 2 * max(config.num_attention_heads // config.head_ratio, 1)
        convolution = DynamicConvolution(heads, config.conv_kernel_size, mixed_attention=True, mix_padding=mix_padding)
        return LayerSpec(hidden_size, (convolution,), feed_forward)
    return LayerSpec(hidden_size, (SelfAttention(config.num_attention_heads),), feed_forward)


def _with_dense_matrices(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Writes ConvBERT's grouped linear layers, (groups, in, out), as block-diagonal matrices."""
    return {
        name: torch.block_diag(*tensor.mT) if tensor.dim() == 3 and name.endswith("dense.weight") else tensor
        for name, tensor in tensors.items()
    }
