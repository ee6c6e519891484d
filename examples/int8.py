"""Run an encoder in int8 on a CPU: int8.py [CHECKPOINT]"""

import io
import sys
import warnings

import torch
from transformers import AutoModelForMaskedLM


def megabytes(model: torch.nn.Module) -> float:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell() / 1e6


warnings.simplefilter("ignore", DeprecationWarning)
checkpoint = sys.argv[1] if len(sys.argv) > 1 else "model_cards/flexibert-mini-wikipedia"
model = AutoModelForMaskedLM.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.float32).eval()
quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
ids = torch.randint(1, model.config.vocab_size, (2, 16))
with torch.no_grad():
    whole, small = model(ids).logits, quantized(ids).logits
error = (whole - small).norm() / whole.norm()
print(f"{megabytes(model):.2f} MB -> {megabytes(quantized):.2f} MB, logits differ by {error:.1%}")
