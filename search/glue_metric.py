"""The GLUE metrics as a module of Hugging Face `evaluate` that needs no network.

    metric = evaluate.load("search/glue_metric.py", "cola")
    metric.compute(predictions=[0, 1, 1], references=[0, 1, 0])

takes the place of `evaluate.load("glue", "cola")`, which fetches a script from the Hub, and gives the same values
under the same names. Besides the GLUE tasks there are "classification" (accuracy, macro F1) and "regression"
(correlations).
"""

import datasets
import evaluate

from .errors import UserError
from .metrics import METRICS, OF_LISTS, compute


CONFIGURATIONS = tuple(name for name in METRICS if name not in (*OF_LISTS, "multi_label"))

DESCRIPTION = "The metrics of GLUE, the General Language Understanding Evaluation benchmark, computed locally."

INPUTS = """
Args:
    predictions: Class indices, or numbers for "stsb" and "regression".
    references: Labels of the same kind.
Returns:
    "accuracy", "f1", "matthews_correlation", "pearson" and "spearmanr", those that belong to the configuration.
"""

CITATION = """@inproceedings{wang2019glue,
  title = {{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author = {Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and Bowman, Samuel R.},
  booktitle = {International Conference on Learning Representations},
  year = {2019},
}"""


class Glue(evaluate.Metric):
    """The configuration names the task, see `search.metrics.METRICS`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in CONFIGURATIONS:
            raise UserError(f"unknown configuration {self.config_name!r}, accepted are {', '.join(CONFIGURATIONS)}")
        kind = datasets.Value("float32" if self.config_name in ("stsb", "regression") else "int64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": kind, "references": kind}),
            reference_urls=["https://gluebenchmark.com"],
            format="numpy",
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return compute(self.config_name, predictions, references)
