"""Fill in masked words: fill_mask.py [CHECKPOINT [TEXT]]"""

import sys

from transformers import pipeline


checkpoint = sys.argv[1] if len(sys.argv) > 1 else "model_cards/flexibert-mini-wikipedia"
fill_mask = pipeline("fill-mask", checkpoint, trust_remote_code=True)
mask = fill_mask.tokenizer.mask_token
text = sys.argv[2] if len(sys.argv) > 2 else "He was born in the united [MASK]."
for guess in fill_mask(text.replace("[MASK]", mask)):
    print(f"{guess['score']:.3f}  {guess['sequence']}")
