"""Adapters as PEFT's users expect them: defaults, reloading, prompts; checkpoints under other names and ties."""

import warnings

import pytest
import torch
from conftest import EVERY_OPERATION, SPECS, layer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForPreTraining, AutoModelForTextEncoding

from flexibert import (
    FlexiBertConfig,
    FlexiBertForMaskedLM,
    FlexiBertForMultipleChoice,
    FlexiBertForQuestionAnswering,
    FlexiBertForSequenceClassification,
    FlexiBertForTokenClassification,
    FlexiBertModel,
    architecture,
)


peft = pytest.importorskip("peft")

ALONE = {
    f"{index}-{operation['op']}": [layer(32, {**operation, "num_heads": 2})]
    for index, operation in enumerate(operation for layer in EVERY_OPERATION for operation in layer["operations"])
}
ENCODERS = {**SPECS, **ALONE}
HEADS = {
    "SEQ_CLS": FlexiBertForSequenceClassification,
    "TOKEN_CLS": FlexiBertForTokenClassification,
    "QUESTION_ANS": FlexiBertForQuestionAnswering,
    "FEATURE_EXTRACTION": FlexiBertModel,
}


def make_config(layers, **fields):
    return FlexiBertConfig(layers=layers, vocab_size=64, max_position_embeddings=40, **fields)


def make_inputs(head=None):
    torch.manual_seed(1)
    shape = (3, 2, 11) if head is FlexiBertForMultipleChoice else (3, 11)
    ids = torch.randint(1, 64, shape)
    mask = torch.ones_like(ids)
    mask[1, ..., 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def change(model):
    """As training would: everything that is trained becomes something else."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def base(tmp_path):
    """Saves an encoder as it comes from pretraining, without pooler and classifier."""

    def save(layers, **fields):
        torch.manual_seed(0)
        FlexiBertForMaskedLM(make_config(layers, **fields)).save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return save


@pytest.mark.parametrize("layers", ENCODERS.values(), ids=ENCODERS)
def test_lora_has_default_targets_in_every_encoder(layers):
    """Also under those methods whose tables name other modules than LoRA's."""
    for config in (peft.LoraConfig(task_type="SEQ_CLS", r=2), peft.IA3Config(task_type="SEQ_CLS")):
        adapted = peft.get_peft_model(FlexiBertForSequenceClassification(make_config(layers)), config)
        names = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        assert any(".layers.0." in name for name in names), config.peft_type
        adapted(**make_inputs(), labels=torch.tensor([0, 1, 1])).loss.backward()


def test_lora_on_outputs_where_a_layer_has_no_output_projection():
    model = FlexiBertForMaskedLM(make_config(SPECS["layer_transforms"]))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["output"]))
    assert adapted(**make_inputs()).logits.shape == (3, 11, 64)


@pytest.mark.parametrize(
    "task, head, targets",
    # "all-linear" takes the classifier of tokens for an inner layer, whatever the model.
    [*((task, head, None) for task, head in HEADS.items()), ("SEQ_CLS", HEADS["SEQ_CLS"], "all-linear")],
)
def test_an_adapter_carries_all_that_was_trained(task, head, targets, base, tmp_path):
    """On a base without a head, whose head is drawn anew whenever it is loaded."""
    folder = base(SPECS["widening"])
    torch.manual_seed(1)
    model = change(
        peft.get_peft_model(head.from_pretrained(folder), peft.LoraConfig(task_type=task, r=2, target_modules=targets))
    )
    expected = model(**make_inputs()).to_tuple()[0]
    model.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(2)
    loaded = peft.PeftModel.from_pretrained(head.from_pretrained(folder), tmp_path / "adapter").eval()
    actual = loaded(**make_inputs()).to_tuple()[0]
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(**make_inputs()).to_tuple()[0], expected, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    reloaded = head.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(reloaded(**make_inputs()).to_tuple()[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [SPECS["widening"], architecture("flexibert-mini")], ids=["widening", "mini"])
@pytest.mark.parametrize("method", ["PromptTuningConfig", "PromptEncoderConfig"])
def test_prompts_know_the_size_of_the_embeddings(layers, method):
    config = getattr(peft, method)(task_type="SEQ_CLS", num_virtual_tokens=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(FlexiBertForSequenceClassification(make_config(layers)), config)
    loss = adapted(**make_inputs(), labels=torch.tensor([0, 1, 1])).loss
    loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert any("prompt_encoder" in name for name in trained)
    assert all(parameter.grad is not None for parameter in adapted.parameters() if parameter.requires_grad)


def test_what_is_told_to_peft_is_not_saved():
    config = make_config(SPECS["widening"])
    assert (config.to_dict()["n_embd"], config.to_dict()["n_head"]) == (16, 4)
    assert not {"n_embd", "n_head"} & set(config.to_diff_dict())
    assert FlexiBertConfig(**config.to_dict()).to_dict() == config.to_dict()


# --- tied and untied ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["homogeneous", "widening", "narrowing"])
def test_a_tied_checkpoint_loads_untied(spec, base, tmp_path):
    folder = base(SPECS[spec], embedding_size=24)
    tied = FlexiBertForMaskedLM.from_pretrained(folder)
    untied = FlexiBertForMaskedLM.from_pretrained(folder, tie_word_embeddings=False)
    table = untied.model.embeddings.word_embeddings.weight
    assert torch.equal(untied.lm_head.weight, table) and untied.lm_head.weight is not table
    assert torch.equal(untied(**make_inputs()).logits, tied(**make_inputs()).logits)
    change(untied).save_pretrained(tmp_path / "untied")
    again = FlexiBertForMaskedLM.from_pretrained(tmp_path / "untied")
    assert torch.equal(again(**make_inputs()).logits, untied(**make_inputs()).logits)


def test_a_merged_adapter_of_tied_embeddings_loads(base, tmp_path):
    """PEFT unties what it has changed on one side only, and says so in the configuration."""
    model = FlexiBertForMaskedLM.from_pretrained(base(SPECS["widening"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=2, modules_to_save=["lm_head"])
        merged = change(peft.get_peft_model(model, config)).merge_and_unload()
    assert not merged.config.tie_word_embeddings
    merged.save_pretrained(tmp_path / "merged")
    loaded = FlexiBertForMaskedLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(loaded(**make_inputs()).logits, merged(**make_inputs()).logits)


def test_an_untied_head_is_as_wide_as_the_last_layer():
    head = FlexiBertForMaskedLM(make_config(SPECS["widening"], tie_word_embeddings=False)).prediction_head
    assert head.dense.out_features == 48
    head = FlexiBertForMaskedLM(make_config(SPECS["widening"], tie_word_embeddings=False, prediction_size=20))
    assert head.lm_head.in_features == 20


# --- names of version 0.1 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [FlexiBertForSequenceClassification, FlexiBertForMultipleChoice])
def test_heads_of_version_01_open(head, tmp_path):
    """Their pooler was a part of the encoder. What is saved again has today's names."""
    torch.manual_seed(0)
    model = change(head(make_config(SPECS["widening"])))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    assert tensors.keys() == model.state_dict().keys()
    old = {name.replace("classifier.pooler.", "model.pooler."): tensor for name, tensor in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, file, metadata={"format": "pt"})
    loaded, report = head.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = make_inputs(head)
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / file.name).keys() == tensors.keys()


def test_the_pooler_goes_with_the_encoder(tmp_path):
    torch.manual_seed(0)
    encoder = change(FlexiBertModel(make_config(SPECS["widening"])))
    encoder.save_pretrained(tmp_path / "encoder")
    classifier = FlexiBertForSequenceClassification.from_pretrained(tmp_path / "encoder").eval()
    assert torch.equal(classifier.classifier.pooler.weight, encoder.pooler.weight)
    classifier.save_pretrained(tmp_path / "classifier")
    back = FlexiBertModel.from_pretrained(tmp_path / "classifier")
    assert torch.equal(back(**make_inputs()).pooler_output, encoder(**make_inputs()).pooler_output)


def test_other_names_of_the_auto_classes():
    config = make_config(SPECS["widening"])
    assert type(AutoModelForPreTraining.from_config(config)) is FlexiBertForMaskedLM
    assert type(AutoModelForTextEncoding.from_config(config)) is FlexiBertModel
