"""The report as one page, `index.html`: everything is in the file, so it opens anywhere, also without a network."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import optuna
from markupsafe import Markup
from optuna.trial import TrialState

from flexibert.spec import Architecture, parse_layers

from ..cost import COSTS
from ..files import replace_file
from ..progress import duration
from ..samplers.trials import FINGERPRINT, LAYERS, STOPPED
from ..study.results import (
    Result,
    conditions,
    count_trials,
    environment,
    metric,
    objective_names,
    pareto_mask,
    problems,
    ranked,
    read_results,
    savings,
    score_sign,
    scores,
)
from ..study.trials import stopped
from . import charts, describe


TEMPLATE = resources.files(__package__) / "report.html"

DRAWN = 3
"""So many of the best architectures are drawn."""

ENOUGH = 8
"""So few scores say nothing about what matters."""


@dataclass(frozen=True)
class Column:
    """Of a table. `kind` is "number", "words" or "reason", which may be long."""

    title: str
    kind: str = "number"


@dataclass(frozen=True)
class Cell:
    """What a table shows, and by what it sorts."""

    text: str
    value: float | str = ""


def write_page(study: optuna.Study, folder: Path) -> Path:
    """Writes `index.html`; UserError where a completed trial holds no architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "index.html", render_page(study, read_results(study)))
    return folder / "index.html"


def render_page(study: optuna.Study, results: Sequence[Result]) -> str:
    """The page of a study."""
    order = ranked(study, results)
    counts = ", ".join(f"{count} {state}" for state, count in count_trials(study).items() if count) or "none"
    made_on = environment()
    versions = ", ".join(f"{name} {version}" for name, version in made_on["versions"].items() if version)
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    page = template.render(
        name=study.study_name,
        counts=f"Trials: {counts}.",
        facts=facts(study, order),
        panels=panels(study, results) if results else [],
        rows=order,
        tables=[table for table in tables(study, order) if table["rows"]],
        environment=f"{made_on['device']}, Python {made_on['python']}, {versions}",
    )
    return page + "\n"


# --- numbers ------------------------------------------------------------------------------------------------------


def facts(study: optuna.Study, order: Sequence[Result]) -> list[tuple[str, str]]:
    """What was found and what was spent."""
    name = objective_names(study)[0]
    found = [(f"best {describe.label(name)}", describe.number(order[0].score))] if order else []
    if order and "parameters" in order[0].metrics:
        found.append(("its parameters", describe.number(order[0].metrics["parameters"])))
    times = [trial.duration for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    found.append(("time of all trials", duration(sum(time.total_seconds() for time in times if time is not None))))
    for phase in ("pretraining_seconds", "finetuning_seconds"):
        seconds = np.nansum(metric(order, phase)) if order else 0.0
        if seconds:
            found.append((phase.partition("_")[0].replace("finetuning", "fine-tuning"), duration(float(seconds))))
    tokens = _tokens(study, order)
    if tokens:
        found.append(("pretraining tokens", charts.short(tokens)))
    saved = savings(study)
    if saved is not None:
        found.append(
            ("tokens saved by stopping", f"{charts.short(saved['tokens_saved'])}, {saved['saved_percent']:.0f}%")
        )
    return found


def _tokens(study: optuna.Study, order: Sequence[Result]) -> float:
    saved = savings(study)
    if saved is not None:
        return saved["tokens_trained"]
    budget = study.user_attrs.get("identity", {}).get("pretraining", {})
    return len(order) * math.prod(budget.get(name, 0) for name in ("steps", "batch_size", "sequence_length"))


def variance_shares(encoders: Sequence[Architecture], values: np.ndarray) -> dict[str, dict[str, float]]:
    """What share of the variance of the score goes with each choice, 0 to 1: part of an encoder -> layer -> share.

    Epsilon squared of a one-way analysis of variance (Kelley 1935), which is 0 on average where a choice does not
    matter: (between - (groups - 1) * error) / total, with `error` the mean square within groups. A layer is looked at
    in the encoders that have it. Choices are taken one at a time, so what two do only together is not seen.

    Args:
        encoders: N of them.
        values: (N,) their scores.
    """
    looks = {
        "operations": lambda layer: layer.operations,
        "width": lambda layer: layer.hidden_size,
        "heads": lambda layer: layer.num_heads,
        "feed-forward": lambda layer: layer.feed_forward,
    }
    table: dict[str, dict[str, float]] = {name: {} for name in looks}
    for index in range(max(map(len, encoders))):
        having = [row for row, layers in enumerate(encoders) if len(layers) > index]
        for name, look in looks.items():
            share = epsilon_squared([look(encoders[row][index]) for row in having], values[having])
            if share is not None:
                table[name][str(index + 1)] = share
    depth = epsilon_squared(list(map(len, encoders)), values)
    if depth is not None:
        table["depth"] = {"1": depth}
    return {name: shares for name, shares in table.items() if shares}


def epsilon_squared(choices: Sequence[Any], values: np.ndarray) -> float | None:
    """Share of the variance of values (N,) that goes with their choices; None where nothing can be said."""
    groups: dict[Any, list[float]] = {}
    for choice, value in zip(choices, values):
        groups.setdefault(choice, []).append(value)
    total = float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0
    free = len(values) - len(groups)
    if len(groups) < 2 or len(values) < ENOUGH or free < 1 or not total > 0:
        return None
    within = sum(float(((np.array(group) - np.mean(group)) ** 2).sum()) for group in groups.values())
    return float(np.clip((total - within - (len(groups) - 1) * within / free) / total, 0, 1))


# --- pictures -----------------------------------------------------------------------------------------------------


def panels(study: optuna.Study, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Titles, pictures and keys, at least one result given."""
    name, sign = describe.label(objective_names(study)[0]), score_sign(study)
    numbers, measured = [result.number for result in results], scores(results)
    failed = [trial.number for trial in study.get_trials(deepcopy=False, states=[TrialState.FAIL])]
    ended = [trial.number for trial in stopped(study)]
    key = [_key("trial", "trial"), _line("best", "best so far")]
    key += [_key("failed", "failed")] * bool(failed) + [_key("stopped", "stopped early")] * bool(ended)
    made = [_panel("Best score so far", charts.progress(numbers, measured, failed, ended, name, sign), key)]
    for cost in COSTS:
        costs = metric(results, cost)
        if np.isfinite(costs).any():
            label = describe.label(cost)
            chart = charts.pareto(costs, measured, pareto_mask(sign * measured, costs), numbers, label, name)
            key = [_key("trial", "trial"), _key("front", "on the Pareto front")]
            made.append(_panel(f"Score against {label}", chart, key))
    shares = variance_shares([result.layers for result in results], measured)
    if shares:
        columns = [str(index + 1) for index in range(max(len(result.layers) for result in results))]
        words = (
            "Share of the variance of the score that goes with each choice alone (epsilon squared), by layer; "
            "the depth of the encoder stands under 1."
        )
        made.append(_panel("What matters, by layer", charts.importance(shares, columns), words=words))
    predicted = [result for result in results if result.prediction is not None]
    if predicted:
        means, deviations = (
            np.array([r.prediction[key] for r in predicted if r.prediction is not None])
            for key in ("mean", "standard_deviation")
        )
        chart = charts.beliefs(means, deviations, scores(predicted), [r.number for r in predicted], name)
        key = [_key("trial", "trial, with one standard deviation"), _line("equal", "believed = measured")]
        made.append(_panel("Believed against measured", chart, key))
    for place, result in enumerate(ranked(study, results)[:DRAWN], start=1):
        title = f"Number {place}: trial {result.number}, {describe.number(result.score)}"
        made.append(_panel(title, charts.encoder(result.layers), words=f"Fingerprint {result.fingerprint}"))
    return made


def _panel(title: str, picture: str, key: Iterable = (), words: str = "") -> dict[str, Any]:
    return {"title": title, "picture": Markup(picture), "key": list(key), "words": words}


def _key(kind: str, words: str) -> tuple[Markup, str]:
    sign = charts.element("g", charts.mark(kind, 8, 8), class_=kind)
    return Markup(charts.element("svg", sign, viewBox="0 0 16 16", aria_hidden="true")), words


def _line(kind: str, words: str) -> tuple[Markup, str]:
    name = "path" if kind == "best" else "line"
    place = {"d": "M1 8H15"} if kind == "best" else {"x1": 1, "x2": 15, "y1": 8, "y2": 8}
    sign = charts.element(name, **place, class_=kind)
    return Markup(charts.element("svg", sign, viewBox="0 0 16 16", aria_hidden="true")), words


# --- tables -------------------------------------------------------------------------------------------------------


def tables(study: optuna.Study, order: Sequence[Result]) -> list[dict[str, Any]]:
    """All trials, best first; those that were stopped, and those that do not count, with the reason."""
    objectives = objective_names(study)
    names = list(dict.fromkeys([*objectives, *(name for result in order for name in result.metrics)]))
    trials = [
        {
            "rank": rank,
            "trial": result.number,
            **{describe.label(name): _value(result, name, objectives) for name in names},
            "layer widths": describe.widths(result.layers),
            "fingerprint": result.fingerprint,
        }
        for rank, result in enumerate(order, start=1)
    ]
    ended = []
    for trial in stopped(study):
        stop, layers = trial.user_attrs[STOPPED], parse_layers(trial.user_attrs[LAYERS])
        ended.append(
            {
                "trial": trial.number,
                "step": stop.get("step"),
                "of": stop.get("of"),
                "validation loss": stop["loss"],
                "layer widths": describe.widths(layers),
                "fingerprint": trial.user_attrs[FINGERPRINT],
            }
        )
    reasons = [{"trial": number, "why": reason} for number, reason in problems(study)]
    words = "Looked hopeless beside the others before their training was done."
    how = [{"trials": entry["trials"], "how": describe.conditions(entry)} for entry in conditions(order)]
    return [
        _table("All trials, best first", "A click on a column sorts by it.", trials),
        _table("How latency was measured", "", how),
        _table("Stopped early", words, ended),
        _table("Trials that do not count", "", reasons),
    ]


def _value(result: Result, name: str, objectives: Sequence[str]) -> float | None:
    return result.values[objectives.index(name)] if name in objectives else result.metrics.get(name)


def _table(title: str, words: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A table of rows with the same columns; columns of text are those that hold any."""
    header = []
    for name in rows[0] if rows else ():
        texts = any(isinstance(row[name], str) for row in rows)
        header.append(Column(name, "reason" if name in ("why", "how") else "words" if texts else "number"))
    cells = [[(column, _cell(row[column.title])) for column in header] for row in rows]
    return {"title": title, "words": words, "header": header, "rows": cells}


def _cell(value: Any) -> Cell:
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return Cell(describe.number(value), repr(float(value)) if known else "")
