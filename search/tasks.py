import random, re
from dataclasses import dataclass
import datasets
from datasets import Dataset
from .errors import UserError


@dataclass(frozen=True)
class Task:
    name: str
    train: Dataset
    validation: dict
    text_columns: tuple
    label_column: str
    num_labels: int
    label_names: tuple
    metric: str


GLUE = {"cola": (("sentence",), 2), "mrpc": (("sentence1", "sentence2"), 2), "rte": (("sentence1", "sentence2"), 2)}
SELF_MADE_TASKS = {"word_order": "is the word order intact?", "next_sentence": "does the second follow the first?"}


def load_tasks(names, corpus, glue="nyu-mll/glue", max_train_examples=None, seed=0):
    out = []
    for n in names:
        if n in SELF_MADE_TASKS:

            def make(ds, k):
                rng = random.Random(seed)
                ex = []
                ss = [[s for s in re.split(r"(?<=[.!?])\s+", t) if 5 < len(s.split()) < 40] for t in ds["text"]]
                if n == "word_order":
                    for s in [s for d in ss for s in d][:k]:
                        w = s.split()
                        l = rng.randrange(2)
                        if not l:
                            rng.shuffle(w)
                        ex.append({"sentence": " ".join(w), "label": l})
                else:
                    pairs = [(d[i], d[i + 1]) for d in ss for i in range(len(d) - 1)][:k]
                    for a, b in pairs:
                        l = rng.randrange(2)
                        ex.append({"sentence1": a, "sentence2": b if l else rng.choice(pairs)[1], "label": l})
                return Dataset.from_list(ex)

            k = max_train_examples or 2000
            cols = ("sentence",) if n == "word_order" else ("sentence1", "sentence2")
            out.append(
                Task(
                    n,
                    make(corpus.train, k),
                    {"validation": make(corpus.validation, 500)},
                    cols,
                    "label",
                    2,
                    ("no", "yes"),
                    "classification",
                )
            )
        elif n in GLUE:
            d = datasets.load_dataset(glue, n)
            out.append(Task(n, d["train"], {"validation": d["validation"]}, GLUE[n][0], "label", 2, ("0", "1"), n))
        else:
            raise UserError(f"unknown task {n!r}")
    return out
