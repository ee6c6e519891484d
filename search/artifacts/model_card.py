"""Model cards: what is said about a checkpoint, written as README.md and .eval_results/ into its folder.

Metadata are Hugging Face's: `model-index` in the card and, for scores on data sets of the Hub, the newer
`.eval_results/*.yaml` (https://huggingface.co/docs/hub/eval-results).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from flexibert import FlexiBertConfig

from ..cost import count_parameters, forward_flops
from ..files import replace_file
from . import charts, describe
from .golden import golden_tolerance


TEMPLATE = resources.files(__package__) / "model_card.md"

DRAWING = "architecture.svg"


@dataclass(frozen=True)
class Score:
    """One number of a model card, and what it was measured on.

    Attributes:
        task: Name for people.
        metric: Name with the unit last, as in the metrics of a trial: "accuracy_percent", "mlm_loss_nats".
        value: In that unit; the mean where there are several seeds.
        dataset: What it was measured on, in words, samples and copies named as such.
        split: Of that data set.
        hub_dataset: Id on the Hub, only if the data came from there; `config` is the configuration of it.
        budget: What fine-tuning cost, in words.
        seeds: Of fine-tuning.
        standard_deviation: Over the seeds.
        task_type: One of the Hub's tasks.
        for_hub: Whether it is what this model has on the whole data set, of which the Hub takes one number a task; not
            where a part of the split was left out.
    """

    task: str
    metric: str
    value: float
    dataset: str
    split: str = "validation"
    hub_dataset: str | None = None
    config: str | None = None
    budget: str = ""
    seeds: tuple[int, ...] = ()
    standard_deviation: float | None = None
    task_type: str = "text-classification"
    for_hub: bool = True


@dataclass(frozen=True)
class CardFacts:
    """What a model card says besides what it reads from the checkpoint (layers, parameters, padding behaviour).

    Plain JSON through `dataclasses.asdict`, and back through `from_dict`.

    Attributes:
        name: Of the model.
        corpus: What it was pretrained on, in words; `hub_datasets` are ids on the Hub, if the text came from there.
            Empty where it was not trained.
        pretraining: Budget and cost, with units in the names: {"steps": 120, "batch_size": 32, "train_seconds": ...}.
        seeds: Of pretraining.
        scores: What was measured.
        search: How the architecture was found, as names and values; empty if no search found it.
        language: ISO 639 code of the corpus, if known.
        teacher: Name of the encoder whose states were learnt, if any.
        fills_masks: Whether masked language modelling was learnt.
        origin: Where the architecture comes from, in words.
        reported: What its authors say of it, and how far that can be trusted; one sentence or two each.
    """

    name: str
    corpus: str
    pretraining: Mapping[str, Any]
    seeds: tuple[int, ...]
    scores: tuple[Score, ...] = ()
    search: Mapping[str, Any] = field(default_factory=dict)
    hub_datasets: tuple[str, ...] = ()
    language: str | None = None
    teacher: str = ""
    fills_masks: bool = True
    origin: str = ""
    reported: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CardFacts":
        scores = tuple(Score(**{**score, "seeds": tuple(score.get("seeds", ()))}) for score in data.get("scores", ()))
        tuples = {name: tuple(data[name]) for name in ("seeds", "hub_datasets", "reported") if name in data}
        return cls(**{**data, **tuples, "scores": scores})


def write_card(folder: Path, card: CardFacts) -> None:
    """Writes the model card of a checkpoint anew, README.md, its drawing and .eval_results/, for instance once it has
    scores."""
    folder = Path(folder)
    drawing = charts.standalone(charts.encoder(FlexiBertConfig.from_pretrained(folder).layer_specs))
    replace_file(folder / DRAWING, f"{drawing}\n")
    replace_file(folder / "README.md", f"{render_card(folder, card)}\n")
    write_eval_results(folder, card.scores)


def write_eval_results(folder: Path, scores: Sequence[Score]) -> None:
    """Writes .eval_results/ anew, from the scores on data sets of the Hub."""
    for stale in folder.glob(".eval_results/*.yaml"):
        stale.unlink()
    for dataset, entries in _eval_results(scores).items():
        path = folder / ".eval_results" / f"{_slug(dataset)}.yaml"
        path.parent.mkdir(exist_ok=True)
        replace_file(path, yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False))


def render_card(folder: Path, card: CardFacts) -> ModelCard:
    """The model card of the checkpoint in a folder, which may lack the weights and hold no more than config.json."""
    config = FlexiBertConfig.from_pretrained(folder)
    layers = config.layer_specs
    results = [model_index_entry(score) for score in card.scores if math.isfinite(score.value)]
    data = ModelCardData(
        language=card.language,
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="fill-mask" if card.fills_masks else "sentence-similarity",
        tags=[
            "flexibert",
            "neural-architecture-search",
            "custom_code",
            *(["sentence-transformers"] * bool(card.teacher)),
        ],
        datasets=list(card.hub_datasets) or None,
        model_name=" ".join(card.name.split()) if results else None,
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        name=describe.escape(card.name),
        weights=any(folder.glob("model*.safetensors")),
        corpus=describe.escape(card.corpus),
        teacher=describe.escape(card.teacher),
        fills_masks=card.fills_masks,
        facts={
            "layers": config.num_hidden_layers,
            "parameters": f"{count_parameters(config):,} without the prediction head",
            "vocabulary": config.vocab_size,
            "embedding_size": config.embedding_size,
            "positions": config.position_embedding_type,
            "classifier_pooling": config.classifier_pooling,
            "maximum_length": f"{config.max_position_embeddings} tokens",
            "forward_pass": forward_pass(config),
            "fingerprint": config.fingerprint,
            "stored_as": config.dtype and str(config.dtype).removeprefix("torch."),
        },
        drawing=DRAWING,
        origin=describe.escape(card.origin),
        reported=list(map(describe.escape, card.reported)),
        layer_table=describe.layer_table(layers),
        graph_lines=describe.graph_lines(layers),
        padding=describe.padding_behaviour(layers),
        pretraining={**card.pretraining, "seeds": _join(card.seeds)},
        search=card.search,
        results=score_table(card.scores) if card.scores else "",
        fact_table=fact_table,
        tolerance=f"{golden_tolerance(config):g}",
    )


def forward_pass(config: FlexiBertConfig) -> str:
    length = min(128, config.max_position_embeddings)
    return f"{forward_flops(config, length, predictions=0) / 1e9:.3g} GFLOP on {length} tokens"


def fact_table(facts: Mapping[str, Any]) -> str:
    return describe.table(("", ""), [(describe.label(name), value) for name, value in facts.items()])


def score_table(scores: tuple[Score, ...]) -> str:
    header = ("task", "metric", "value", "measured on", "fine-tuning", "seeds")
    rows = []
    for score in scores:
        spread = "" if score.standard_deviation is None else f" ± {describe.number(score.standard_deviation)}"
        value = f"{describe.number(score.value)}{spread}"
        where = f"{score.dataset}, {score.split}"
        rows.append((score.task, describe.label(score.metric), value, where, score.budget or "–", _join(score.seeds)))
    return describe.table(header, rows)


def _join(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds)) or "–"


def model_index_entry(score: Score) -> EvalResult:
    return EvalResult(
        task_type=score.task_type,
        task_name=score.task,
        dataset_type=score.hub_dataset or _slug(score.dataset),
        dataset_name=score.dataset,
        dataset_config=score.config,
        dataset_split=score.split,
        metric_type=describe.split_unit(score.metric)[0],
        metric_name=describe.label(score.metric),
        metric_value=score.value,
    )


def _eval_results(scores: Sequence[Score]) -> dict[str, list[EvalResultEntry]]:
    """Data set on the Hub -> its scores. A task there has one value, which is the first metric given for it."""
    entries: dict[tuple[str, str], EvalResultEntry] = {}
    for score in scores:
        if score.hub_dataset is None or not score.for_hub or not math.isfinite(score.value):
            continue
        task = score.config or "default"
        notes = "; ".join(filter(None, (describe.label(score.metric), f"{score.split} split", score.budget)))
        entry = EvalResultEntry(dataset_id=score.hub_dataset, task_id=task, value=score.value, notes=notes)
        entries.setdefault((score.hub_dataset, task), entry)
    datasets: dict[str, list[EvalResultEntry]] = {}
    for (dataset, _), entry in entries.items():
        datasets.setdefault(dataset, []).append(entry)
    return datasets


def _slug(text: str) -> str:
    """A name that the Hub and every file system take."""
    return re.sub(r"[^\w.-]+", "-", text.replace("/", "--"), flags=re.ASCII).strip("-.") or "dataset"
