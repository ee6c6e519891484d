"""Configuration of FlexiBERT encoders: shared sizes, and a list of layer specs that says what each layer is.

transformers' own `per_layer_config` is not used: it stores sparse overrides of global attributes, so a layer is not
described without them, any read of an overridden global (`hidden_size`, say) raises, and the number of operations in a
layer is no attribute at all. Here each layer is its own thing, and the list is the only truth.
"""

import sys
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .spec import Architecture, fingerprint, layers_to_dicts, parse_layers


# A checkpoint opens with every head, also where this package is not installed.
AUTO_MAP = {
    "AutoConfig": "configuration_flexibert.FlexiBertConfig",
    "AutoModel": "modeling_flexibert.FlexiBertModel",
    "AutoModelForTextEncoding": "modeling_flexibert.FlexiBertModel",
    "AutoModelForPreTraining": "modeling_flexibert.FlexiBertForMaskedLM",
    "AutoModelForMaskedLM": "modeling_flexibert.FlexiBertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_flexibert.FlexiBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_flexibert.FlexiBertForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_flexibert.FlexiBertForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_flexibert.FlexiBertForMultipleChoice",
}

PEFT_SIZES = {"n_embd": "embedding_size", "n_head": "num_attention_heads"}
"""Sizes that PEFT needs for prompts, under the only names by which it looks for a width that is the embeddings'."""

PEFT_TARGETS = {
    "query": "query",
    "key": "key",
    "value": "value",
    "output.dense": "output",
    "attention.output.dense": "output",
    "LayerNorm": "norm",
}
"""Name of a module in PEFT's defaults for BERT -> ours. Every layer has an "output", at least of its feed-forward."""

BERT_MINI_LAYER = {
    "hidden_size": 256,
    "operations": [{"op": "self_attention", "num_heads": 4}],
    "feed_forward": [1024],
}


@strict
class FlexiBertConfig(PreTrainedConfig):
    r"""
    Configuration of a heterogeneous encoder. The defaults give the shape of BERT-Mini.

    Args:
        layers (`list[dict]`, *optional*):
            One layer spec per layer, see `flexibert.spec.LayerSpec`; `LayerSpec` objects are accepted too. A value
            that is not a list of layers raises `ValueError` with the path of the offending part.
        embedding_size (`int`, *optional*, defaults to the width of the first layer):
            Width of the embeddings. With tied embeddings it is also the width of the masked language modelling head.
        prediction_size (`int`, *optional*):
            Width of the masked language modelling head where its decoder is not tied to the embeddings. The default
            is the width of the last layer; or of the embeddings, for a head that was tied when it was made.
        position_embedding_type (`str`, *optional*, defaults to `"absolute"`):
            `"absolute"` adds a learned table to the embeddings. `"relative_key"` (Shaw et al. 2018) and `"rotary"` act
            on the scores of self-attention and of attention graphs that end in a softmax over the keys.
        rotary_base (`float`, *optional*, defaults to 10000.0):
            Wavelength base of rotary positions.
        project_embeddings (`bool`, *optional*, defaults to `False`):
            Puts a linear layer behind the embeddings even where widths agree, as FNet does.
        classifier_pooling (`str`, *optional*, defaults to `"cls"`):
            What the pooler sees, and with it the heads for sequences and multiple choice: `"cls"` is the last state of
            the first token that is not padding, as in BERT, `"mean"` the mean over all of those (under a 4-D mask,
            which does not tell padding, the first token of all, and the mean over all). Layers of local operations
            bring little of the sequence to its first token.
        unpad_inputs (`bool`, *optional*, defaults to `False`):
            Everything but the mixing of tokens runs on the real tokens of a padded batch alone. That saves up to half
            of the time where lengths vary and changes no result, because padding does not; states at padding are 0.
            It needs layers without `mix_padding`. Not under tracing, compilation or when states are recorded.
        sparse_prediction (`bool`, *optional*, defaults to `False`):
            With labels, the masked language modelling head computes logits at labelled positions only.
    """

    model_type = "flexibert"
    base_model_fsdp_plan = {"embeddings": "free_full_weight", "layers.*": "free_full_weight"}

    vocab_size: int = 30522
    layers: Any = None
    embedding_size: int | None = None
    prediction_size: int | None = None
    max_position_embeddings: int = 512
    position_embedding_type: Literal["absolute", "relative_key", "rotary"] = "absolute"
    rotary_base: float | int = 10000.0
    type_vocab_size: int = 2
    project_embeddings: bool = False
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    classifier_dropout: float | int | None = None
    classifier_pooling: Literal["cls", "mean"] = "cls"
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-12
    unpad_inputs: bool = False
    sparse_prediction: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True
    auto_map: dict | None = None

    def __post_init__(self, **kwargs):
        layers = parse_layers([BERT_MINI_LAYER] * 4 if self.layers is None else self.layers)
        self.layers = layers_to_dicts(layers)
        if self.embedding_size is None:
            self.embedding_size = layers[0].hidden_size
        if self.prediction_size is None:
            self.prediction_size = self.embedding_size if self.tie_word_embeddings else layers[-1].hidden_size
        for name in ("vocab_size", "embedding_size", "prediction_size", "max_position_embeddings", "type_vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not accepted, expected a whole number from 1")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not accepted, expected a number from 0 to 1")
        if not self.rotary_base > 0:
            raise ValueError(f"rotary_base: {self.rotary_base} is not accepted, expected a number above 0")
        if self.unpad_inputs:
            for index, layer in enumerate(layers):
                if any(operation.mixes_padding for operation in layer.operations):
                    raise ValueError(f"unpad_inputs: true is not accepted, layers[{index}] has mix_padding")
        self.auto_map = dict(AUTO_MAP) if self.auto_map is None else self.auto_map
        super().__post_init__(**{name: value for name, value in kwargs.items() if name not in PEFT_SIZES})

    def to_dict(self) -> dict[str, Any]:
        """Plain data. PEFT asks for it and then looks up what it adapts by default, so this is where it is told."""
        tell_peft(self.model_type)
        return {**super().to_dict(), **{name: getattr(self, source) for name, source in PEFT_SIZES.items()}}

    def to_diff_dict(self) -> dict[str, Any]:
        """What is saved."""
        return {name: value for name, value in super().to_diff_dict().items() if name not in PEFT_SIZES}

    def validate_layers(self):
        parse_layers(self.layers)

    @property
    def layer_specs(self) -> Architecture:
        """The layers as immutable values, parsed once for each content."""
        return parse_layers(self.layers)

    @property
    def fingerprint(self) -> str:
        """Identity of the architecture, see `flexibert.spec.fingerprint`."""
        return fingerprint(self.layer_specs)

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the last layer, which is what heads and sentence embeddings see."""
        return self.layer_specs[-1].hidden_size

    @property
    def num_attention_heads(self) -> int:
        """Heads of the last layer."""
        return self.layer_specs[-1].num_heads

    @property
    def intermediate_size(self) -> int:
        """Width of the last layer's first feed-forward layer."""
        return self.layer_specs[-1].feed_forward[0]


def tell_peft(model_type: str) -> None:
    """Enters our modules into PEFT's tables of default targets, if PEFT is in use: as BERT's, and outputs."""
    constants = sys.modules.get("peft.utils.constants")
    for name, table in vars(constants).items() if constants is not None else ():
        if name.endswith("_MODULES_MAPPING") and isinstance(table, dict) and "bert" in table:
            targets = [PEFT_TARGETS.get(target, target) for target in table["bert"]]
            table.setdefault(model_type, list(dict.fromkeys([*targets, "output"])))


__all__ = ["FlexiBertConfig"]
