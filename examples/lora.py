"""Adapt an encoder with LoRA, keep the adapter, load it again: lora.py [CHECKPOINT [STEPS]]

The task is made up so that nothing is downloaded: is the first token one of the lower half of the vocabulary?
"""

import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification


checkpoint = sys.argv[1] if len(sys.argv) > 1 else "model_cards/flexibert-mini-wikipedia"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 100
torch.manual_seed(0)


def load():
    auto = AutoModelForSequenceClassification
    return auto.from_pretrained(checkpoint, num_labels=2, trust_remote_code=True, dtype=torch.float32)


def batch(size: int = 32) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, model.config.vocab_size, (size, 24))
    return {"input_ids": ids, "labels": (ids[:, 0] < model.config.vocab_size // 2).long()}


model = get_peft_model(load(), LoraConfig(task_type="SEQ_CLS", r=8))  # the model says which layers are adapted
model.print_trainable_parameters()
optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=5e-3)
for _ in range(steps):
    loss = model(**batch()).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.eval().save_pretrained("my_adapter")
again, test = PeftModel.from_pretrained(load(), "my_adapter").eval(), batch()
difference = (model(**test).logits - again(**test).logits).abs().max().item()
print(f"loss {loss.item():.2f}; reloaded, logits differ by {difference:.1e}")
