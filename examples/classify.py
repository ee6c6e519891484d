"""Fine-tune on your own labels with transformers' Trainer: classify.py [CHECKPOINT [FILE.csv [OUTPUT]]]

The file has the columns "text" and "label"; without one a handful of sentences is learnt by heart.
"""

import sys

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline


defaults = ["model_cards/flexibert-mini-wikipedia", "", "my_classifier"]
checkpoint, file, output = sys.argv[1:] + defaults[len(sys.argv) - 1 :]
if file:
    data = Dataset.from_csv(file)
else:
    texts = ["a fine film", "what a joy", "well told", "a dull film", "what a bore", "badly told"]
    data = Dataset.from_dict({"text": texts * 20, "label": (["good"] * 3 + ["bad"] * 3) * 20})
names = sorted(set(map(str, data["label"])))
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
data = data.map(lambda row: {**tokenizer(row["text"], truncation=True), "labels": names.index(str(row["label"]))})
data = data.remove_columns("label")
model = AutoModelForSequenceClassification.from_pretrained(
    checkpoint,
    trust_remote_code=True,
    dtype="float32",
    id2label=dict(enumerate(names)),
    label2id={name: index for index, name in enumerate(names)},
)
arguments = TrainingArguments(output, num_train_epochs=3, learning_rate=5e-4, save_strategy="no", report_to="none")
trainer = Trainer(model, arguments, train_dataset=data, processing_class=tokenizer)
trainer.train()
trainer.save_model()
classify = pipeline("text-classification", output, trust_remote_code=True)
for text in data["text"][:6]:
    print(f"{classify(text)[0]['label']:8} {text[:70]}")
