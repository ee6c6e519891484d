"""Configuration of FlexiBERT encoders: shared sizes, and a list of layer specs that says what each layer is.

transformers' own `per_layer_config` is not used: it stores sparse overrides of global attributes, so a layer is not
described without them, any read of an overridden global (`hidden_size`, say) raises, and the number of operations in a
layer is no attribute at all. Here each layer is its own thing, and the list is the only truth.
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .spec import Architecture, fingerprint, layers_to_dicts, parse_layers


# A checkpoint opens with every head, also where this package is not installed.
AUTO_MAP = {
    "AutoConfig": "configuration_flexibert.FlexiBertConfig",
    "AutoModel": "modeling_flexibert.FlexiBertModel",
    "AutoModelForMaskedLM": "modeling_flexibert.FlexiBertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_flexibert.FlexiBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_flexibert.FlexiBertForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_flexibert.FlexiBertForQuestionAnswering",
    "AutoModelForMultipleChoice": "modeling_flexibert.FlexiBertForMultipleChoice",
}

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
        for name in ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size"):
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
        self.auto_map = {**AUTO_MAP, **(self.auto_map or {})}
        super().__post_init__(**kwargs)

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


__all__ = ["FlexiBertConfig"]
