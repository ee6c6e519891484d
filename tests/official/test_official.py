"""transformers' common model tests on our models: `make official`.

A homogeneous spec passes them as they are. The others override three at most, those in which the test itself takes
every layer to have the same attention heads.
"""

import sys
import unittest
from unittest.mock import patch

import fetch
import pytest
import torch
from conftest import SPECS, layer, op
from transformers.models.auto import modeling_auto

import flexibert
from flexibert import FlexiBertConfig


if not fetch.fetched():
    pytest.skip("run python tests/official/fetch.py first", allow_module_level=True)
sys.path.append(str(fetch.FOLDER))

from transformers_tests.test_configuration_common import ConfigTester  # noqa: E402
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask  # noqa: E402


pytestmark = pytest.mark.official

# Our classes, each with the table in which the common tests look up what labels a head takes.
TABLES = {
    "FlexiBertModel": "MODEL_MAPPING_NAMES",
    "FlexiBertForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "FlexiBertForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "FlexiBertForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "FlexiBertForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "FlexiBertForMultipleChoice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
}


class FlexiBertModelTester:
    """What the common tests ask for: a small configuration, inputs, and the sizes that they compare with."""

    batch_size, seq_length, num_choices, is_training = 13, 7, 4, True

    def __init__(self, layers, **overrides):
        self.arguments = {"layers": layers, "vocab_size": 99, "max_position_embeddings": 64, **overrides}
        config = self.get_config()
        self.num_hidden_layers = config.num_hidden_layers
        self.hidden_size = config.embedding_size
        self.num_attention_heads = config.num_attention_heads

    def get_config(self) -> FlexiBertConfig:
        return FlexiBertConfig(**self.arguments)

    def prepare_config_and_inputs_for_common(self):
        config, shape = self.get_config(), (self.batch_size, self.seq_length)
        inputs = {
            "input_ids": ids_tensor(shape, config.vocab_size),
            "token_type_ids": ids_tensor(shape, config.type_vocab_size),
            "attention_mask": random_attention_mask(shape),
        }
        return config, inputs


class CommonTests(ModelTesterMixin):
    """The tests of one spec. `layers` is a list of layer specs, `overrides` further arguments of the configuration."""

    all_model_classes = tuple(getattr(flexibert, name) for name in TABLES)
    test_can_init_all_missing_weights_before_2023 = True  # else skipped: our files carry no year
    layers: list
    overrides = {}

    def setUp(self):
        self.model_tester = FlexiBertModelTester(self.layers, **self.overrides)
        for name, table in TABLES.items():
            patcher = patch.dict(getattr(modeling_auto, table), flexibert=name)
            patcher.start()
            self.addCleanup(patcher.stop)

    def test_config(self):
        layers = self.model_tester.get_config().layers
        ConfigTester(self, config_class=FlexiBertConfig, layers=layers, **self.overrides).run_common_tests()


class HeterogeneousTests(CommonTests):
    """The tests that take all layers to be alike, with what holds layer by layer instead."""

    def test_hidden_states_output(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        widths = [config.embedding_size, *(spec.hidden_size for spec in config.layer_specs)]
        for model_class in self.all_model_classes:
            with torch.no_grad():
                outputs = self.build(model_class, config)(
                    **self._prepare_for_class(inputs, model_class), output_hidden_states=True
                )
            self.assertEqual([states.shape[-1] for states in outputs.hidden_states], widths)

    def test_attention_outputs(self):
        """One tensor a layer that has attention, with the heads that attend."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        heads = [sum(map(attention_heads, spec.operations)) for spec in config.layer_specs]
        length = self.model_tester.seq_length
        for model_class in self.all_model_classes:
            with torch.no_grad():
                outputs = self.build(model_class, config)(
                    **self._prepare_for_class(inputs, model_class), output_attentions=True
                )
            shapes = [tuple(weights.shape[-3:]) for weights in outputs.attentions]
            self.assertEqual(shapes, [(count, length, length) for count in heads if count])

    def test_retain_grad_hidden_states_attentions(self):
        """Hidden states keep gradients; the weights of several groups are copies that nothing is computed from."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        outputs = self.build(flexibert.FlexiBertModel, config)(**inputs, output_hidden_states=True)
        outputs.hidden_states[0].retain_grad()
        outputs.last_hidden_state.flatten()[0].backward()
        self.assertIsNotNone(outputs.hidden_states[0].grad)

    def build(self, model_class, config):
        return model_class._from_config(config, attn_implementation="eager").eval()


def attention_heads(operation) -> int:
    """How many heads of a group give attention weights."""
    if operation.op == "dynamic_convolution":
        return operation.projected_heads if operation.mixed_attention else 0
    return operation.num_heads if operation.op != "linear_transform" and operation.scores_positions else 0


class HomogeneousTest(CommonTests, unittest.TestCase):
    layers = SPECS["homogeneous"]


class RelativeKeyTest(CommonTests, unittest.TestCase):
    layers = SPECS["multiplicative"]
    overrides = {"position_embedding_type": "relative_key"}


class FourierTest(CommonTests, unittest.TestCase):
    layers = SPECS["fourier"]
    has_attentions = False


class ConvolutionTest(CommonTests, unittest.TestCase):
    layers = [
        layer(32, op("dynamic_convolution", 4, kernel_size=5)),
        layer(32, op("lightweight_convolution", 2), op("dynamic_convolution", 2, kernel_size=13, source="head")),
    ]
    has_attentions = False


class GraphTest(HeterogeneousTests, unittest.TestCase):
    layers = SPECS["graph"]
    overrides = {"position_embedding_type": "rotary"}


class MixedTest(HeterogeneousTests, unittest.TestCase):
    layers = SPECS["mixed_heads"][:1] + SPECS["narrowing"][:1]
