"""Encoders that are not the same layer stacked twelve times, as ordinary transformers models.

Importing the package registers its classes with transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
)

from .attention_graph import GRAPHS, AttentionGraph, parse_graph
from .configuration_flexibert import FlexiBertConfig
from .convert import convert_reference_state_dict, convert_transformers_model
from .model_dict import config_from_model_dict
from .modeling_flexibert import (
    FlexiBertForMaskedLM,
    FlexiBertForMultipleChoice,
    FlexiBertForQuestionAnswering,
    FlexiBertForSequenceClassification,
    FlexiBertForTokenClassification,
    FlexiBertModel,
)
from .spec import LayerSpec, fingerprint, parse_layers
from .zoo import architecture, list_architectures, named_config


__version__ = "0.1.0"

AutoConfig.register("flexibert", FlexiBertConfig, exist_ok=True)
FlexiBertConfig.register_for_auto_class()
for auto_class, model_class in (
    (AutoModel, FlexiBertModel),
    (AutoModelForMaskedLM, FlexiBertForMaskedLM),
    (AutoModelForSequenceClassification, FlexiBertForSequenceClassification),
    (AutoModelForTokenClassification, FlexiBertForTokenClassification),
    (AutoModelForQuestionAnswering, FlexiBertForQuestionAnswering),
    (AutoModelForMultipleChoice, FlexiBertForMultipleChoice),
):
    auto_class.register(FlexiBertConfig, model_class, exist_ok=True)
    model_class.register_for_auto_class(auto_class.__name__)

# Other names for the same.
AutoModelForTextEncoding.register(FlexiBertConfig, FlexiBertModel, exist_ok=True)
AutoModelForPreTraining.register(FlexiBertConfig, FlexiBertForMaskedLM, exist_ok=True)

__all__ = [
    "GRAPHS",
    "AttentionGraph",
    "FlexiBertConfig",
    "FlexiBertForMaskedLM",
    "FlexiBertForMultipleChoice",
    "FlexiBertForQuestionAnswering",
    "FlexiBertForSequenceClassification",
    "FlexiBertForTokenClassification",
    "FlexiBertModel",
    "LayerSpec",
    "architecture",
    "config_from_model_dict",
    "convert_reference_state_dict",
    "convert_transformers_model",
    "fingerprint",
    "list_architectures",
    "named_config",
    "parse_graph",
    "parse_layers",
]
