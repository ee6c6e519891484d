"""A report about a study for people: pictures, and `report.md` with tables."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.trial import TrialState
from scipy.stats import spearmanr

from flexibert.spec import parse_layers

from ..cost import COSTS
from ..files import checksums, replace_file
from ..samplers.trials import FINGERPRINT, LAYERS, STOPPED
from ..study.results import (
    Result,
    conditions,
    count_trials,
    front,
    metric,
    objective_names,
    pareto_mask,
    problems,
    ranked,
    read_results,
    savings,
    score_sign,
    scores,
    summarise,
)
from ..study.run_folder import RunFolder
from ..study.trials import stopped
from . import describe, plots


__all__ = ["summarise", "write_report", "write_summary"]

CAPTIONS = {
    "best_so_far": "Best score so far",
    "pareto": "Score against cost",
    "operations": "Operations by layer",
    "predictions": "Predicted against measured score",
}
"""File name of a picture without its ending -> caption, in the order of the report."""

COLUMNS = (*COSTS, "mlm_loss_nats", "pretraining_seconds", "finetuning_seconds")
"""Metrics in the tables of trials, where they were measured."""


def write_summary(study: optuna.Study, folder: RunFolder) -> str:
    """Writes `summary.json`: the summary of a study, and the checksums of what is in best/; returns what it holds."""
    summary = json.dumps({**summarise(study), "sha256": checksums(folder.best)}, indent=2, allow_nan=False)
    replace_file(folder.summary, summary)
    return summary


def write_report(study: optuna.Study, folder: Path) -> list[Path]:
    """Writes `report.md` and its pictures; `page.write_page` puts the same and more on one page.

    A picture that has nothing to show is not written, and removed if an earlier report left it: without a completed
    trial there is none, without predictions of the sampler no `predictions.png`.

    Returns:
        The files written.

    Raises:
        UserError: If a completed trial does not hold an architecture, so that the study is none of this package's.
    """
    folder = Path(folder)
    results = read_results(study)
    figures = _figures(study, results) if results else {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in CAPTIONS:
        path = folder / f"{name}.png"
        if name in figures:
            buffer = io.BytesIO()
            figures[name].savefig(buffer, format="png")
            replace_file(path, buffer.getvalue())
        else:
            path.unlink(missing_ok=True)
    replace_file(folder / "report.md", _markdown(study, results, list(figures)))
    return [folder / "report.md", *(folder / f"{name}.png" for name in figures)]


def _figures(study: optuna.Study, results: Sequence[Result]) -> dict[str, Figure]:
    """File name without its ending -> picture, at least one result given."""
    name, sign = describe.label(objective_names(study)[0]), score_sign(study)
    numbers, measured = [result.number for result in results], scores(results)
    failed = [trial.number for trial in study.get_trials(deepcopy=False, states=[TrialState.FAIL])]
    figures = {"best_so_far": plots.best_so_far(numbers, measured, failed, name, sign)}
    costs = {cost: metric(results, cost) for cost in COSTS}
    panels = [
        (describe.label(cost), values, pareto_mask(sign * measured, values))
        for cost, values in costs.items()
        if np.isfinite(values).any()
    ]
    if panels:
        figures["pareto"] = plots.pareto(panels, measured, numbers, name)
    top = ranked(study, results)[: math.ceil(len(results) / 4)]
    title = f"Operations by layer in the best {len(top)} of {len(results)} trials"
    figures["operations"] = plots.operations([result.layers for result in top], title)
    if predicted := _predicted(results):
        figures["predictions"] = plots.predictions(*_beliefs(predicted), scores(predicted), name)
    return figures


def _predicted(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result.prediction is not None]


def _beliefs(predicted: Sequence[Result]) -> tuple[np.ndarray, np.ndarray]:
    """Predicted means and standard deviations, (N,) each."""
    means, deviations = (
        np.array([r.prediction[key] for r in predicted if r.prediction is not None])
        for key in ("mean", "standard_deviation")
    )
    return means, deviations


# --- text ---------------------------------------------------------------------------------------------------------


def _markdown(study: optuna.Study, results: Sequence[Result], pictures: Sequence[str]) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in count_trials(study).items() if count) or "none"
    sections = [f"# Search report: {describe.escape(study.study_name)}", f"Trials: {counts}."]
    if results:
        sections += _best_section(ranked(study, results)[0])
        sections += [f"![{CAPTIONS[name]}]({name}.png)" for name in pictures]
        sections += _front_section(study, results)
        sections += _level_section(study, results)
        sections += _conditions_section(results)
        sections += ["## All trials, best first", _result_table(study, ranked(study, results))]
    else:
        sections.append("No trial has completed with a score, so there is nothing to rank yet.")
    if predicted := _predicted(results):
        sections += ["## What the sampler believed", _belief_text(predicted)]
    sections += _savings_section(study)
    if problem_rows := problems(study):
        sections += ["## Trials that do not count", describe.table(("trial", "why"), problem_rows)]
    return "\n\n".join(filter(None, sections)) + "\n"


def _best_section(best: Result) -> list[str]:
    return [
        f"## Best architecture: trial {best.number}, `{best.fingerprint}`",
        describe.layer_table(best.layers),
        describe.graph_lines(best.layers),
        describe.table(("metric", "value"), [(describe.label(name), value) for name, value in best.metrics.items()]),
    ]


def _front_section(study: optuna.Study, results: Sequence[Result]) -> list[str]:
    objectives = objective_names(study)
    names = ", ".join(map(describe.label, objectives if len(objectives) > 1 else [*objectives, "parameters"]))
    members = front(study, results)
    if not members:
        return ["## Pareto front", f"No trial has what the front needs: {names}."]
    text = f"No other trial is at least as good in each of these and better in one: {names}."
    return ["## Pareto front", text, _result_table(study, members)]


def _level_section(study: optuna.Study, results: Sequence[Result]) -> list[str]:
    """What each level of a hierarchical search found; nothing for others."""
    rows = []
    for level in sorted({result.level for result in results if result.level is not None}):
        members = ranked(study, [result for result in results if result.level == level])
        rows.append((level, len(members), members[0].score, members[0].number))
    header = ("level", "trials", f"best {describe.label(objective_names(study)[0])}", "in trial")
    return ["## Levels", describe.table(header, rows)] if rows else []


def _conditions_section(results: Sequence[Result]) -> list[str]:
    """How latency and energy were measured; nothing where they were not."""
    lines = [describe.escape(describe.conditions(entry)) for entry in conditions(results)]
    return ["## How latency was measured", *lines] if lines else []


def _savings_section(study: optuna.Study) -> list[str]:
    """What a pruner stopped, and what that saved; nothing where it stopped none."""
    saved = savings(study)
    if saved is None:
        return []
    text = (
        f"{saved['stopped']} candidates looked hopeless and were stopped. That saved {saved['tokens_saved']:,} tokens "
        f"of pretraining, {saved['saved_percent']:.0f}% of the tokens that all candidates would have taken, and "
        f"{saved['finetunings_saved']} fine-tunings."
    )
    rows = []
    for trial in stopped(study):
        stop, layers = trial.user_attrs[STOPPED], parse_layers(trial.user_attrs[LAYERS])
        place = f"{stop['step']} of {stop['of']} steps" if "step" in stop else "all steps"
        rows.append((trial.number, place, stop["loss"], describe.widths(layers), f"`{trial.user_attrs[FINGERPRINT]}`"))
    header = ("trial", "stopped after", "validation loss", "layer widths", "fingerprint")
    return ["## Stopped early", text, describe.table(header, rows)]


def _result_table(study: optuna.Study, results: Sequence[Result]) -> str:
    objectives = objective_names(study)
    columns = [
        name for name in COLUMNS if name not in objectives and any(name in result.metrics for result in results)
    ]
    rows = [
        (
            rank,
            result.number,
            *result.values,
            *(result.metrics.get(name) for name in columns),
            describe.widths(result.layers),
            f"`{result.fingerprint}`",
        )
        for rank, result in enumerate(results, start=1)
    ]
    header = ("rank", "trial", *map(describe.label, [*objectives, *columns]), "layer widths", "fingerprint")
    return describe.table(header, rows)


def _belief_text(predicted: Sequence[Result]) -> str:
    (means, deviations), measured = _beliefs(predicted), scores(predicted)
    errors = np.abs(measured - means)
    within = [f"{(errors <= count * deviations).mean():.0%}" for count in (1, 2)]
    sentences = [
        f"The sampler predicted {len(predicted)} scores before their trials, with a mean absolute error of "
        f"{errors.mean():.3g}.",
        f"{within[0]} of them lay within one standard deviation and {within[1]} within two (calibrated: 68% and 95%).",
    ]
    if np.ptp(means) > 0 and np.ptp(measured) > 0:
        sentences.append(f"Rank correlation (Spearman): {spearmanr(means, measured).statistic:.2f}.")
    return "\n".join(sentences)
