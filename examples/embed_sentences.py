"""Compare sentences by the mean of their tokens' last states: embed_sentences.py [CHECKPOINT]

Where sentence-transformers is installed, `SentenceTransformer(CHECKPOINT, trust_remote_code=True)` does the same.
"""

import sys

import torch
from transformers import AutoModel, AutoTokenizer


checkpoint = sys.argv[1] if len(sys.argv) > 1 else "model_cards/flexibert-mini-sentences"
sentences = ["A man is playing a guitar.", "Somebody plays the guitar.", "The stock market fell on Monday."]
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True).eval()
batch = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    states = model(**batch).last_hidden_state.float()  # (B, L, D)
mask = batch["attention_mask"][..., None]
vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)  # (B, D)
for sentence, row in zip(sentences, vectors @ vectors.T):
    print("  ".join(f"{cosine:5.2f}" for cosine in row), "", sentence)
