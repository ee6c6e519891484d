"""Export an encoder to ONNX and compare ONNX Runtime with PyTorch: export_onnx.py [CHECKPOINT] [FILE]

Without a checkpoint this takes a small encoder with random weights. The exported file takes any batch size, any length
up to the maximum, and any padding.
"""

import sys

import onnxruntime
import torch
from transformers import AutoModelForMaskedLM

from flexibert import FlexiBertConfig, FlexiBertForMaskedLM


LAYERS = [
    {"hidden_size": 64, "operations": [{"op": "linear_transform", "num_heads": 2}], "feed_forward": [128]},
    {
        "hidden_size": 64,
        "operations": [
            {"op": "self_attention", "num_heads": 1},
            {"op": "lightweight_convolution", "num_heads": 1, "kernel_size": 9},
        ],
        "feed_forward": [128],
    },
]


def example(vocab_size: int, size: int, length: int) -> dict[str, torch.Tensor]:
    """Random token ids; the last quarter of the first row is padding."""
    attention_mask = torch.ones(size, length, dtype=torch.long)
    attention_mask[0, -(length // 4) :] = 0
    return {"input_ids": torch.randint(1, vocab_size, (size, length)), "attention_mask": attention_mask}


file = sys.argv[2] if len(sys.argv) > 2 else "model.onnx"
torch.manual_seed(0)
if len(sys.argv) > 1:
    # ONNX Runtime has few kernels for the bfloat16 that checkpoints may be stored in.
    model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32).eval()
else:
    model = FlexiBertForMaskedLM(FlexiBertConfig(layers=LAYERS, vocab_size=200, max_position_embeddings=64)).eval()

vocab_size, length = model.config.vocab_size, model.config.max_position_embeddings
axes = {0: torch.export.Dim("batch", max=1024), 1: torch.export.Dim("length", min=2, max=length)}
program = torch.onnx.export(
    model,
    kwargs=example(vocab_size, 2, 16),
    dynamo=True,
    dynamic_shapes={"input_ids": axes, "attention_mask": axes},
    output_names=["logits"],
    verbose=False,
)
program.save(file)

session = onnxruntime.InferenceSession(file)
for size, tokens in ((1, 8), (2, 16), (4, length)):
    inputs = example(vocab_size, size, tokens)
    (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.no_grad():
        difference = (torch.from_numpy(logits) - model(**inputs).logits).abs().max().item()
    print(f"{size} x {tokens} tokens: largest difference {difference:.1e}")
print(f"written to {file}")
