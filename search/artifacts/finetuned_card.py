"""Model cards of fine-tuned checkpoints, which are about a task."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from flexibert import FlexiBertConfig

from ..files import replace_file
from . import describe
from .golden import golden_tolerance
from .model_card import Score, fact_table, model_index_entry, score_table, write_eval_results


TEMPLATE = resources.files(__package__) / "finetuned_card.md"

EXAMPLES = {
    "text-classification": '"A text."',
    "token-classification": '"A text with a name."',
}
"""One of the Hub's tasks -> what its pipeline takes. A pair of texts is `PAIR`, question answering has none."""

PAIR = '{"text": "One text.", "text_pair": "Another text."}'


@dataclass(frozen=True)
class FinetunedFacts:
    """What the card of a fine-tuned checkpoint says besides its architecture and labels.

    Attributes:
        task: Name for people; `hub_task` is one of the Hub's tasks.
        base: Name of the encoder that it began with.
        training: Budget and cost, with units in the names.
        scores: What was measured.
        is_pair: Whether the labels are of two texts.
    """

    task: str
    hub_task: str
    base: str
    training: Mapping[str, Any]
    scores: tuple[Score, ...]
    is_pair: bool = False


def write_finetuned_card(folder: Path, facts: FinetunedFacts) -> None:
    """Writes README.md and .eval_results/ of the checkpoint in a folder."""
    replace_file(folder / "README.md", f"{render_finetuned_card(folder, facts)}\n")
    write_eval_results(folder, facts.scores)


def render_finetuned_card(folder: Path, facts: FinetunedFacts) -> ModelCard:
    """The model card of the checkpoint in a folder; of its configuration it needs no more than config.json."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    own = config.get("model_type") == FlexiBertConfig.model_type
    layers = FlexiBertConfig.from_pretrained(folder).layer_specs if own else ()
    names = [str(name) for _, name in sorted(config.get("id2label", {}).items(), key=lambda item: int(item[0]))]
    has_labels = facts.hub_task != "question-answering" and len(names) > 1
    results = [model_index_entry(score) for score in facts.scores if math.isfinite(score.value)]
    name = f"{facts.base}, fine-tuned on {facts.task}"
    data = ModelCardData(
        license="apache-2.0" if own else None,
        library_name="transformers",
        pipeline_tag=facts.hub_task,
        tags=["flexibert", "custom_code"] if own else None,
        datasets=sorted({score.hub_dataset for score in facts.scores if score.hub_dataset}) or None,
        model_name=" ".join(name.split()) if results else None,
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        name=describe.escape(name),
        what=f"An encoder with a head for the task {describe.escape(facts.task)}"
        f"{', whose labels are of two texts' if facts.is_pair else ''}.",
        own_code=own,
        pipeline=facts.hub_task,
        options=", trust_remote_code=True" if own else "",
        example=PAIR if facts.is_pair else EXAMPLES.get(facts.hub_task, ""),
        labels=", ".join(map(describe.escape, names)) if has_labels else "",
        facts=fact_table(facts.training),
        results=score_table(facts.scores),
        layer_table=describe.layer_table(layers) if own else "",
        tolerance=f"{golden_tolerance(FlexiBertConfig.from_pretrained(folder)):g}" if own else "",
        licence="Apache-2.0 for the weights and the Python files that belong to them."
        if own
        else "The weights have the terms of the encoder that they began with.",
    )
