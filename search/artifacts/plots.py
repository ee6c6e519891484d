"""The pictures of a report, as matplotlib figures of plain data.

Colours follow Okabe and Ito's palette, which colour-blind readers can tell apart (its purple is darkened, to have room
for lighter shades); markers and lightness say the same again.
Figures are made without pyplot, so nothing global changes and nothing needs a display.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from flexibert.spec import OPERATIONS, LayerSpec, OperationSpec


BLUE, ORANGE, GREEN, VERMILLION, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#A8497F", "#8A8F98"
SKY, YELLOW = "#56B4E9", "#F0E442"

FAMILY_COLORS = dict(zip(OPERATIONS, itertools.cycle((BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, YELLOW, GREY))))
"""Tag of an operation -> its hue."""

_TRIAL = {"s": 34, "color": BLUE, "edgecolor": "white", "linewidth": 0.6, "zorder": 3}

STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "font.size": 10,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5A5F66",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E6E9",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def best_so_far(numbers: Sequence[int], scores: np.ndarray, failed: Sequence[int], name: str, sign: int) -> Figure:
    """Score of each trial and the best until then.

    Args:
        numbers: The N trial numbers, ascending.
        scores: (N,)
        failed: Numbers of trials without a score, marked at the bottom.
        name: What the score is, with its unit.
        sign: 1 where more is better, -1 where less is.
    """
    best = sign * np.maximum.accumulate(sign * scores)
    first = int(np.argmax(sign * scores))
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(f"Best {_text(name)}: {scores[first]:.4g}, trial {numbers[first]}")
        last = max([*numbers, *failed])
        axes.step([*numbers, last], [*best, best[-1]], where="post", color=VERMILLION, label="best so far")
        axes.scatter(numbers, scores, label="trial", **_TRIAL)
        if failed:
            height = [0.03] * len(failed)  # of the axes, whatever the scores
            bottom = axes.get_xaxis_transform()
            axes.scatter(failed, height, s=30, marker="x", color=GREY, transform=bottom, label="failed")
        axes.set(xlabel="trial", ylabel=_text(name), xlim=(-0.6, last + 0.6))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(y=0.12)
        _legend(axes)
    return figure


def pareto(panels: Sequence[tuple[str, np.ndarray, np.ndarray]], scores, numbers: Sequence[int], name: str) -> Figure:
    """Score against each cost, one panel each, with the front of trials that no other one beats in both.

    Args:
        panels: For each cost its name, the costs (N,) with NaN where not measured, and (N,) bool: on the front.
        scores: (N,)
        numbers: The N trial numbers.
        name: What the score is, with its unit.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2 if len(panels) == 1 else 10.4, 4.4))
        for axes, (cost, costs, on_front) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels):
            axes.scatter(costs[~on_front], scores[~on_front], label="trial", **_TRIAL)
            front = np.flatnonzero(on_front)[np.argsort(costs[on_front])]
            axes.step(costs[front], scores[front], where="post", color=VERMILLION, linewidth=1.2)
            style = {**_TRIAL, "s": 52, "marker": "D", "color": VERMILLION}
            axes.scatter(costs[front], scores[front], label="Pareto front, with trial numbers", **style)
            for index in front:
                axes.annotate(
                    str(numbers[index]), (costs[index], scores[index]), xytext=(-4, 6), textcoords="offset points",
                    ha="right", fontsize=9, color="#333333",
                )  # fmt: skip
            axes.set(xlabel=_text(cost), ylabel=_text(name))
            axes.set_title(_text(f"{name[:1].upper()}{name[1:]} against {cost}"), pad=24)
            if np.nanmax(costs) >= 1e3:
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.margins(x=0.1, y=0.14)
            _legend(axes)
    return figure


def operations(encoders: Sequence[Sequence[LayerSpec]], title: str) -> Figure:
    """Share of heads by operation in each layer, over those of the encoders that have the layer."""
    depth = max(map(len, encoders))
    shares = [_shares([layers[index] for layers in encoders if len(layers) > index]) for index in range(depth)]
    colors = _operation_colors([op for layers in encoders for layer in layers for op in layer.operations])
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(title, width=max(7.2, 4.6 + 0.42 * depth))
        bottom = np.zeros(depth)
        for name, color in colors.items():
            heights = np.array([share[name] for share in shares])
            axes.bar(range(depth), heights, 0.72, bottom, color=color, edgecolor="white", linewidth=0.8, label=name)
            bottom += heights
        counts = [sum(len(layers) > index for layers in encoders) for index in range(depth)]
        axes.set_xticks(range(depth), [f"{index + 1}\nn={count}" for index, count in enumerate(counts)])
        axes.set(xlabel="layer, and how many of these encoders have it", ylabel="share of heads", ylim=(0, 1))
        axes.set_title(title, pad=10)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(False, axis="x")
        handles, names = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], names[::-1], loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    return figure


def predictions(means: np.ndarray, deviations: np.ndarray, scores: np.ndarray, name: str) -> Figure:
    """What a sampler believed before each trial against what was measured, with one standard deviation each way."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure("Predicted against measured", width=5.4, height=5.4)
        low = min((means - deviations).min(), scores.min())
        high = max((means + deviations).max(), scores.max())
        pad = 0.05 * (high - low) or 1.0
        limits = (low - pad, high + pad)
        axes.plot(limits, limits, color=GREY, linewidth=1.2, linestyle="--", label="prediction = measurement")
        axes.errorbar(
            means, scores, xerr=deviations, fmt="o", markersize=6, color=BLUE, ecolor="#8FBBDA", elinewidth=1.4,
            capsize=2.5, markeredgecolor="white", markeredgewidth=0.6, label="trial, ± 1 standard deviation",
        )  # fmt: skip
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.set(xlabel=f"predicted {_text(name)}", ylabel=f"measured {_text(name)}")
        _legend(axes)
    return figure


def _figure(title: str, width: float = 7.2, height: float = 4.4):
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.set_title(title, pad=24)
    return figure, axes


def _legend(axes) -> None:
    """Above the axes, where no data can be."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, borderaxespad=0.2, borderpad=0.0, handletextpad=0.5,
        columnspacing=1.4,
    )  # fmt: skip


def _text(name: str) -> str:
    """A name that matplotlib does not take for mathematics."""
    return name.replace("$", r"\$")


def _shares(layers: Sequence[LayerSpec]) -> dict[str, float]:
    """Operation name -> its share of all heads; every layer counts the same, however many heads it has."""
    shares: dict[str, float] = defaultdict(float)
    for layer in layers:
        for operation in layer.operations:
            shares[operation.name] += operation.num_heads / layer.num_heads / len(layers)
    return shares


def _operation_colors(operations: Sequence[OperationSpec]) -> dict[str, tuple[float, float, float]]:
    """Operation name -> colour: a hue for each family, a lightness for each member in use."""
    members: dict[str, set[tuple]] = {op: set() for op in FAMILY_COLORS}
    for operation in operations:
        size = operation.parameter if isinstance(operation.parameter, int) else 0  # of a kernel
        members[operation.op].add((size, operation.name))
    return {
        name: _lighten(FAMILY_COLORS[op], 0.65 * index / max(len(names) - 1, 1))
        for op, names in members.items()
        for index, (_, name) in enumerate(sorted(names))
    }


def _lighten(color: str, amount: float) -> tuple[float, float, float]:
    """A colour mixed with white: 0 leaves it, 1 is white."""
    red, green, blue = to_rgb(color)
    return red + amount * (1 - red), green + amount * (1 - green), blue + amount * (1 - blue)
