"""Configuration of FlexiBERT encoders: shared sizes, and a list of layer specs that says what each layer is.

transformers' own `per_layer_config` is not used: it stores sparse overrides of global attributes, so a layer is not
described without them, any read of an overridden global (`hidden_size`, say) raises, and the number of operations in a
layer is no attribute at all. Here each layer is its own thing, and the list is the only truth.
"""

import functools
import numbers
import sys
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from .attention_graph import show
from .spec import MAX_WIDTH, Architecture, fingerprint, layers_to_dicts, parse_layers


MAX_PARAMETERS = 10_000_000_000
"""A configuration whose model would have more is refused; assign to it to allow more. Loading an unknown checkpoint
should not end with a machine out of memory."""

# What a field may be. The bound of labels is the number of names that transformers makes for them.
LIMITS = {
    "vocab_size": (1, 1 << 24),
    "embedding_size": (1, MAX_WIDTH),
    "prediction_size": (1, MAX_WIDTH),
    "max_position_embeddings": (1, 1 << 24),
    "type_vocab_size": (1, 1 << 16),
    "num_labels": (0, 1 << 16),
}


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
            `"absolute"` adds a learned table to the embeddings. `"relative_key"` (Shaw et al. 2018),
            `"relative_key_query"` (Huang et al. 2020, method 4: of queries and keys) and `"rotary"` act
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
        pair_encoding (`str`, *optional*, defaults to `"joint"`):
            How the head for sequences sees a pair of texts. `"joint"` encodes both in one sequence, as BERT does.
            `"separate"` takes the same input apart by its token types and encodes each text alone; the head then sees
            the states u, v and |u - v|, or with one label their cosine (Sentence-BERT, arXiv 1908.10084, Section 3).
        pooler_activation (`str`, *optional*, defaults to `"tanh"`):
            What follows the pooler's linear layer: `"tanh"` in BERT and RoBERTa, `"relu"` in DistilBERT, `"gelu"` in
            ELECTRA.
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
    if TYPE_CHECKING:  # whoever reads them finds numbers
        embedding_size: int = 0
        prediction_size: int = 0
        num_labels: int = 2
    else:
        embedding_size: int | None = None
        prediction_size: int | None = None
    max_position_embeddings: int = 512
    position_embedding_type: Literal["absolute", "relative_key", "relative_key_query", "rotary"] = "absolute"
    rotary_base: float | int = 10000.0
    type_vocab_size: int = 2
    project_embeddings: bool = False
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    classifier_dropout: float | int | None = None
    classifier_pooling: Literal["cls", "mean"] = "cls"
    pooler_activation: str = "tanh"
    pair_encoding: Literal["joint", "separate"] = "joint"
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
        values = {name: kwargs.get(name) if name == "num_labels" else getattr(self, name) for name in LIMITS}
        for name, (least, most) in LIMITS.items():
            value = values[name]
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if value is not None and not (whole and least <= value <= most):
                expected = f"expected a whole number from {least} to {most}"
                raise ValueError(f"{name}: {show(value)} is not accepted, {expected}")
        for name in ("id2label", "label2id"):
            table = getattr(self, name)
            if table is not None and not (isinstance(table, dict) and len(table) <= LIMITS["num_labels"][1]):
                expected = f"expected an object of up to {LIMITS['num_labels'][1]} labels"
                raise ValueError(f"{name}: {show(table)} is not accepted, {expected}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name}: {show(getattr(self, name))} is not accepted, expected a number from 0 to 1")
        for name in ("rotary_base", "layer_norm_eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: {show(getattr(self, name))} is not accepted, expected a number above 0")
        if not 0 <= self.initializer_range < float("inf"):
            raise ValueError(f"initializer_range: {show(self.initializer_range)} is not accepted, expected at least 0")
        if self.pad_token_id is not None and not -self.vocab_size <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id: {show(self.pad_token_id)} is not accepted, expected a token of the {self.vocab_size}"
            )
        if self.unpad_inputs:
            for index, layer in enumerate(layers):
                if any(operation.mixes_padding for operation in layer.operations):
                    raise ValueError(f"unpad_inputs: true is not accepted, layers[{index}] has mix_padding")
        self.auto_map = dict(AUTO_MAP) if self.auto_map is None else self.auto_map
        super().__post_init__(**{name: value for name, value in kwargs.items() if name not in PEFT_SIZES})
        self.check_size()

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
    def num_parameters(self) -> int:
        """Parameters of the encoder with its embeddings, without pooler and heads; counted without building it."""
        embeddings = self.vocab_size + self.type_vocab_size + 2  # rows of embedding_size; the norm has two
        if self.position_embedding_type == "absolute":
            embeddings += self.max_position_embeddings
        count, width = embeddings * self.embedding_size, self.embedding_size
        for index, layer in enumerate(self.layer_specs):
            count += layer.num_parameters(self.position_embedding_type)
            if width != layer.hidden_size or (self.project_embeddings and index == 0):
                count += (width + 1) * layer.hidden_size
            scores_positions = any(operation.scores_positions for operation in layer.operations)
            if self.position_embedding_type.startswith("relative") and scores_positions:
                count += (2 * self.max_position_embeddings - 1) * layer.resolved_head_size
            width = layer.hidden_size
        return count

    def check_size(self) -> None:
        """Raises ValueError with the number if the model would have more than `MAX_PARAMETERS`."""
        decoder = 0 if self.tie_word_embeddings else self.vocab_size * self.prediction_size
        count = self.num_parameters + max(decoder, self.num_labels * self.hidden_size)
        if count > MAX_PARAMETERS:
            raise ValueError(
                f"layers: the model would have {count:,} parameters, accepted are up to {MAX_PARAMETERS:,} "
                "(flexibert.configuration_flexibert.MAX_PARAMETERS)"
            )

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


_init = FlexiBertConfig.__init__


@functools.wraps(_init)
def _init_in_one_line(self, *args, **kwargs):
    """Whatever part of transformers trips over a value, what comes is a ValueError of one line."""
    try:
        _init(self, *args, **kwargs)
    except ValueError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        text = text if isinstance(error, StrictDataclassError) else f"configuration: {text}"
        raise ValueError(text if len(text) <= 400 else f"{text[:400]} ...") from None


FlexiBertConfig.__init__ = _init_in_one_line  # type: ignore[method-assign]

__all__ = ["FlexiBertConfig"]
