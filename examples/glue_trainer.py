"""Fine-tune a FlexiBERT checkpoint on a GLUE task in plain transformers: glue_trainer.py MODEL TASK [GLUE_FOLDER]"""

import sys

from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments


def accuracy(output):
    return {"accuracy": float((output.predictions.argmax(-1) == output.label_ids).mean())}


checkpoint, task, glue = (*sys.argv[1:], "nyu-mll/glue")[:3]
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
data = load_dataset(glue, task)
texts = [name for name in data["train"].column_names if name not in ("label", "idx")]
data = data.map(lambda rows: tokenizer(*(rows[name] for name in texts), truncation=True, max_length=128), batched=True)
labels = 1 if task == "stsb" else len(set(data["train"]["label"]))
model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=labels, trust_remote_code=True)
trainer = Trainer(
    model=model,
    args=TrainingArguments(f"{task}-model", per_device_train_batch_size=32, learning_rate=1e-4, save_strategy="no"),
    train_dataset=data["train"],
    eval_dataset=data["validation_matched" if task == "mnli" else "validation"],
    processing_class=tokenizer,
    compute_metrics=None if task == "stsb" else accuracy,
)
trainer.train()
print(trainer.evaluate())
trainer.save_model()
