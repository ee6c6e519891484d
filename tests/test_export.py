"""Ways out of training: ONNX, int8 and LoRA, for every operation."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EVERY_OPERATION, SPECS, layer

from flexibert import (
    FlexiBertConfig,
    FlexiBertForMaskedLM,
    FlexiBertForMultipleChoice,
    FlexiBertForQuestionAnswering,
    FlexiBertForSequenceClassification,
    FlexiBertForTokenClassification,
    list_architectures,
    named_config,
)


MODEL_CARDS = Path(__file__).resolve().parent.parent / "model_cards"
RESIDENTS = sorted(path.parent for path in MODEL_CARDS.glob("*/model.safetensors"))
HEADS = [
    FlexiBertForSequenceClassification,
    FlexiBertForTokenClassification,
    FlexiBertForQuestionAnswering,
    FlexiBertForMultipleChoice,
]


def make_model(head, layers, **fields):
    torch.manual_seed(0)
    model = head(FlexiBertConfig(layers=layers, vocab_size=64, max_position_embeddings=40, **fields)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def make_inputs(batch, length):
    torch.manual_seed(length)
    ids = torch.randint(1, 64, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def alone(operation):
    """An encoder of one layer, with nothing but the operation in it."""
    return [layer(8 * operation["num_heads"], operation)]


ALONE = {
    f"{index}-{operation['op']}": alone({**operation, "num_heads": 2 * operation["num_heads"]})
    for index, operation in enumerate(operation for layer in EVERY_OPERATION for operation in layer["operations"])
}
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "layers, positions",
    [
        pytest.param(ALONE["0-self_attention"], "relative_key", id="self_attention-relative_key"),
        pytest.param(EVERY_OPERATION, "relative_key", id="every_operation-relative_key"),
        pytest.param(EVERY_OPERATION, "rotary", id="every_operation-rotary", marks=slow),
        *(
            pytest.param(layers, positions, id=f"{name}-{positions}", marks=slow)
            for name, layers in ALONE.items()
            for positions in ("absolute", "relative_key", "rotary")
            if (name, positions) != ("0-self_attention", "relative_key")
        ),
        *(pytest.param(layers, "absolute", id=name, marks=slow) for name, layers in SPECS.items()),
    ],
)
def test_onnx(layers, positions):
    check_onnx(make_model(FlexiBertForMaskedLM, layers, position_embedding_type=positions))


@slow
@pytest.mark.parametrize("name", list_architectures("*-mini*"))
def test_onnx_of_named_models(name):
    check_onnx(FlexiBertForMaskedLM(named_config(name, vocab_size=64, max_position_embeddings=40)).eval())


@slow
@pytest.mark.parametrize("folder", RESIDENTS, ids=lambda folder: folder.name)
def test_onnx_of_residents(folder):
    check_onnx(FlexiBertForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval())


@pytest.mark.parametrize("head", [HEADS[0], *(pytest.param(head, marks=slow) for head in HEADS[1:])])
def test_onnx_of_heads(head):
    """Pooling by the first real token included."""
    check_onnx(make_model(head, SPECS["fourier"][:1]))


def check_onnx(model):
    """Exported once, ONNX Runtime computes the same for any batch size, length and padding."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    names = ["start_logits", "end_logits"] if "QuestionAnswering" in type(model).__name__ else ["logits"]
    choices = (2,) if "MultipleChoice" in type(model).__name__ else ()

    def inputs_of(batch, length):
        inputs = make_inputs(batch, length)
        return {name: x[:, None].repeat(1, *choices, 1) if choices else x for name, x in inputs.items()}

    axes = {0: torch.export.Dim("batch", max=1024), 1 + len(choices): torch.export.Dim("length", min=2, max=40)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            kwargs=inputs_of(2, 16),
            dynamo=True,
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            output_names=names,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for batch, length in ((2, 16), (1, 9), (3, 40)):
        inputs = inputs_of(batch, length)
        actual = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        expected = model(**inputs)
        for name, values in zip(names, actual):
            np.testing.assert_allclose(values, expected[name].detach().numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("layers", [*SPECS.values(), EVERY_OPERATION], ids=[*SPECS, "every_operation"])
@pytest.mark.filterwarnings("ignore")
def test_int8_dynamic_quantization(layers):
    """Half the file or less, and logits that agree up to the rounding of weights and activations."""
    model, inputs = make_model(FlexiBertForMaskedLM, layers), make_inputs(3, 16)
    quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    kinds = {
        type(module) for name, module in quantized.named_modules() if name.endswith(("output", "value", "lm_head"))
    }
    assert kinds <= {torch.ao.nn.quantized.dynamic.Linear, torch.nn.Identity}
    expected, actual = model(**inputs).logits, quantized(**inputs).logits
    assert (actual - expected).norm() < 0.1 * expected.norm()

    def size(module):
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        return file.tell()

    assert size(quantized) < size(model)


@pytest.mark.parametrize("targets", [["query", "value"], "all-linear"])
def test_lora(targets, tmp_path):
    """Trains the adapters and the classifier alone; an adapter reloads, and merges into the weights."""
    peft = pytest.importorskip("peft")
    model, inputs = make_model(FlexiBertForSequenceClassification, EVERY_OPERATION), make_inputs(4, 12)
    base = {name: parameter.clone() for name, parameter in model.named_parameters()}
    labels = torch.tensor([0, 1, 0, 1])
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets))
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained and all("lora" in name or "classifier" in name for name in trained)

    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(15):
        loss = adapted(**inputs, labels=labels).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in adapted.parameters() if parameter.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]

    logits = adapted.eval()(**inputs).logits
    adapted.save_pretrained(tmp_path)
    fresh = make_model(FlexiBertForSequenceClassification, EVERY_OPERATION)
    assert all(torch.equal(parameter, base[name]) for name, parameter in fresh.named_parameters())
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.testing.assert_close(loaded(**inputs).logits, logits)
    torch.testing.assert_close(loaded.merge_and_unload()(**inputs).logits, logits, atol=1e-5, rtol=1e-4)
