"""Compile an encoder into one graph: compile_model.py [CHECKPOINT [BACKEND]]"""

import sys

import torch
from transformers import AutoModelForMaskedLM


checkpoint = sys.argv[1] if len(sys.argv) > 1 else "model_cards/flexibert-mini-wikipedia"
backend = sys.argv[2] if len(sys.argv) > 2 else "inductor"
model = AutoModelForMaskedLM.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.float32).eval()
compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
for size, length in ((2, 16), (3, 24)):  # another shape is no other graph
    ids = torch.randint(1, model.config.vocab_size, (size, length))
    mask = torch.ones_like(ids)
    mask[0, -4:] = 0
    with torch.no_grad():
        difference = (compiled(ids, mask).logits - model(ids, mask).logits).abs().max().item()
    print(f"{size} x {length} tokens: largest difference {difference:.1e}")
