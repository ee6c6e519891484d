"""Adapt an encoder with LoRA, then run it in int8 on a CPU: int8_and_lora.py [CHECKPOINT]

Without a checkpoint this takes a small encoder with random weights. The task is made up so that nothing is downloaded:
is the first token of the text one of the lower half of the vocabulary?
"""

import io
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from flexibert import FlexiBertConfig, FlexiBertForSequenceClassification


LAYER = {
    "hidden_size": 64,
    "operations": [
        {"op": "self_attention", "num_heads": 2},
        {"op": "linear_transform", "num_heads": 1, "transform": "cosine"},
        {"op": "dynamic_convolution", "num_heads": 1, "kernel_size": 5},
    ],
    "feed_forward": [128, 128],
}


def batch(vocab_size: int, size: int = 32, length: int = 24) -> dict[str, torch.Tensor]:
    input_ids = torch.randint(1, vocab_size, (size, length))
    return {"input_ids": input_ids, "labels": (input_ids[:, 0] < vocab_size // 2).long()}


@torch.no_grad()
def accuracy(model, data) -> float:
    return (model.eval()(**data).logits.argmax(-1) == data["labels"]).float().mean().item()


def megabytes(model) -> float:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell() / 1e6


torch.manual_seed(0)
if len(sys.argv) > 1:
    model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=2, trust_remote_code=True)
else:
    model = FlexiBertForSequenceClassification(FlexiBertConfig(layers=[LAYER] * 2, vocab_size=50))
test = batch(model.config.vocab_size, size=500)
print(f"accuracy with a classifier at random: {accuracy(model, test):.2f}")

# "all-linear" fits every architecture; ["query", "value"] is the usual choice where all layers have attention.
model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear"))
model.print_trainable_parameters()
optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=5e-3)
model.train()
for _ in range(150):
    model(**batch(model.config.vocab_size)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(f"accuracy with LoRA: {accuracy(model, test):.2f}")

model = model.merge_and_unload()
quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
print(f"accuracy in int8: {accuracy(quantized, test):.2f}, {megabytes(model):.2f} MB -> {megabytes(quantized):.2f} MB")
