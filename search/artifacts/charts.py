"""The pictures of `index.html` as inline SVG: they follow the page's colours, light or dark, and need no network.

Colours are names (`--trial`, `--best`, ...) that the page's style sheet fills in, from Okabe and Ito's palette; shapes
say the same again. A picture is about as wide as a phone's screen, so that its text is never scaled down much.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import groupby

import numpy as np

from flexibert.spec import OPERATIONS, LayerSpec

from . import describe


WIDTH, HEIGHT = 400, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 42

HUES = {op: f"var(--hue{index % 8})" for index, op in enumerate(OPERATIONS)}
"""Tag of an operation -> its colour."""


def element(name: str, content: str = "", **attributes) -> str:
    """An element of SVG; `content` is markup, attributes are escaped, `_` in their names is `-`."""
    shown = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    inside = "".join(
        f' {key}="{value:.5g}"' if isinstance(value, float) else f' {key}="{escape(str(value))}"'
        for key, value in shown.items()
    )
    return f"<{name}{inside}>{content}</{name}>"


def text(words: object, x: float, y: float, **attributes) -> str:
    """A piece of text at a point."""
    return element("text", escape(str(words)), x=float(x), y=float(y), **attributes)


def picture(title: str, parts: Iterable[str], width: float = WIDTH, height: float = HEIGHT) -> str:
    """A whole picture; `title` says to those who do not see it what it shows."""
    content = element("title", escape(title)) + "".join(parts)
    return element("svg", content, viewBox=f"0 0 {width:g} {height:g}", role="img")


def standalone(svg: str) -> str:
    """A picture as a file of its own: with a namespace and the rules of the page's style sheet that it needs."""
    page = (resources.files(__package__) / "report.html").read_text(encoding="utf-8")
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0]
    rules = re.findall(
        r":root \{.*?\n\}|@media \(prefers.*?\n\}|svg text \{[^}]*\}|rect\.group \{[^}]*\}", style, re.DOTALL
    )
    rules.append("svg { background: var(--back); font-family: system-ui, sans-serif; }")
    body = svg if "xmlns" in svg else svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" width="480"', 1)
    return re.sub(r"(<svg[^>]*>)", lambda opening: f"{opening[1]}<style>{' '.join(rules)}</style>", body, count=1)


Numbers = Sequence[float] | np.ndarray


class Axes:
    """A plane with ticks.

    Args:
        x, y: Finite values that have to fit, in any number.
        x_label, y_label: What they are.
        whole: Whether x counts something.
    """

    def __init__(self, x: Numbers, y: Numbers, x_label: str, y_label: str, whole: bool = False):
        self.x_ticks, self.x_range = ticks(x, whole)
        self.y_ticks, self.y_range = ticks(y)
        self.labels = x_label, y_label

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is in the picture."""
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        return (
            LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM),
        )

    def frame(self) -> list[str]:
        """Grid, ticks and labels."""
        parts = []
        for value in self.y_ticks:
            _, y = self.at(self.x_range[0], value)
            parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
            parts.append(text(short(value), LEFT - 6, y + 4, text_anchor="end"))
        for value in self.x_ticks:
            x, _ = self.at(value, self.y_range[0])
            parts.append(text(short(value), x, HEIGHT - BOTTOM + 16, text_anchor="middle"))
        parts.append(text(self.labels[0], (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, text_anchor="middle"))
        middle = (TOP + HEIGHT - BOTTOM) / 2
        turned = f"rotate(-90 12 {middle:g})"
        parts.append(text(self.labels[1], 12, middle, text_anchor="middle", transform=turned))
        return parts

    def dots(self, points: Iterable[tuple[float, float, str]], kind: str) -> list[str]:
        """Marks with what they say when they are pointed at; `kind` is a class of the style sheet."""
        parts = []
        for x, y, note in points:
            left, top = self.at(x, y)
            parts.append(element("g", element("title", escape(note)) + mark(kind, left, top), class_=kind))
        return parts

    def steps(self, points: Sequence[tuple[float, float]], kind: str) -> str:
        """A line that changes its height only at the points."""
        places = [self.at(x, y) for x, y in points]
        path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
        path += "".join(f"H{x:.1f}V{y:.1f}" for x, y in places[1:])
        return element("path", d=path, class_=kind)

    def lines(self, segments: Iterable[tuple[float, float, float, float]], kind: str) -> list[str]:
        """Straight lines."""
        parts = []
        for x1, y1, x2, y2 in segments:
            (a, b), (c, d) = self.at(x1, y1), self.at(x2, y2)
            parts.append(element("line", x1=a, y1=b, x2=c, y2=d, class_=kind))
        return parts


def mark(kind: str, x: float, y: float) -> str:
    """A circle; the front is of diamonds, what failed of crosses, what was stopped of short bars."""
    if kind == "front":
        return element("path", d=f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z")
    if kind == "failed":
        return element("path", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8")
    if kind == "stopped":
        return element("path", d=f"M{x - 4:.1f} {y:.1f}h8")
    return element("circle", cx=x, cy=y, r=4)


def ticks(values: Numbers, whole: bool = False) -> tuple[list[float], tuple[float, float]]:
    """Round numbers over the range of some values, and a range somewhat wider than theirs."""
    low, high = float(np.min(values)), float(np.max(values))
    margin = 0.06 * (high - low) or (0.5 if whole else 0.05 * abs(high) or 1.0)
    low, high = low - margin, high + margin
    size = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(size * factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= 5)
    if whole:
        step = max(1, round(step))
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 1)], (low, high)


def short(value: float) -> str:
    """A number for a tick: 1200000 is 1.2M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{suffix}"
    return f"{value:.4g}"


# --- pictures -----------------------------------------------------------------------------------------------------


def progress(
    numbers: Sequence[int], scores: np.ndarray, failed: Sequence[int], stopped: Sequence[int], name: str, sign: int
) -> str:
    """Score of each trial and the best until then; trials without a score are marked at the bottom."""
    last = max([*numbers, *failed, *stopped])
    axes = Axes([*numbers, *failed, *stopped], scores, "trial", name, whole=True)
    best = sign * np.maximum.accumulate(sign * scores)
    bottom = axes.y_range[0] + 0.03 * (axes.y_range[1] - axes.y_range[0])
    return picture(
        f"{name} of each trial, and the best so far",
        [
            *axes.frame(),
            axes.steps([*zip(numbers, best), (last, best[-1])], "best"),
            *axes.dots(((n, s, f"trial {n}: {s:.4g}") for n, s in zip(numbers, scores)), "trial"),
            *axes.dots(((n, bottom, f"trial {n} failed") for n in failed), "failed"),
            *axes.dots(((n, bottom, f"trial {n} was stopped") for n in stopped), "stopped"),
        ],
    )


def pareto(costs: np.ndarray, scores: np.ndarray, on_front: np.ndarray, numbers, cost: str, name: str) -> str:
    """Score against a cost, with the front of trials that no other one beats in both; costs may be NaN."""
    known = np.flatnonzero(np.isfinite(costs))
    axes = Axes(costs[known], scores[known], cost, name)
    front = sorted((index for index in known if on_front[index]), key=lambda index: costs[index])

    def dots(indices):
        return ((costs[i], scores[i], f"trial {numbers[i]}: {scores[i]:.4g} at {costs[i]:,.4g}") for i in indices)

    return picture(
        f"{name} against {cost}",
        [
            *axes.frame(),
            *axes.dots(dots(index for index in known if not on_front[index]), "trial"),
            axes.steps([(costs[index], scores[index]) for index in front], "best thin"),
            *axes.dots(dots(front), "front"),
        ],
    )


def beliefs(means: np.ndarray, deviations: np.ndarray, scores: np.ndarray, numbers: Sequence[int], name: str) -> str:
    """What the sampler believed before each trial against what was measured, with one standard deviation each way."""
    values = np.concatenate([means - deviations, means + deviations, scores])
    axes = Axes(values, values, f"believed: {name}", f"measured: {name}")
    (low, high) = axes.x_range
    spread = [(mean - dev, score, mean + dev, score) for mean, dev, score in zip(means, deviations, scores)]
    notes = (f"trial {n}: believed {m:.4g} ± {d:.2g}, measured {s:.4g}" for n, m, d, s in
             zip(numbers, means, deviations, scores))  # fmt: skip
    return picture(
        "What was believed against what was measured",
        [
            *axes.frame(),
            *axes.lines([(low, low, high, high)], "equal"),
            *axes.lines(spread, "spread"),
            *axes.dots(zip(means, scores, notes), "trial"),
        ],
    )


def importance(table: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """Shares of variance (0 to 1): a row for every part of an encoder, a column for every layer."""
    left, top, height = 88, 22, 30
    width = (WIDTH - left - RIGHT) / len(columns)
    parts = [text(c, left + (i + 0.5) * width, 14, text_anchor="middle") for i, c in enumerate(columns)]
    for row, (name, shares) in enumerate(table.items()):
        y = top + row * height
        parts.append(text(name, left - 8, y + height / 2 + 4, text_anchor="end"))
        for index, column in enumerate(columns):
            if column not in shares:
                continue
            share, x = shares[column], left + index * width
            note = element("title", f"{escape(name)}, {escape(column)}: {share:.0%} of the variance")
            cell = element(
                "rect", x=x + 1, y=float(y + 1), width=width - 2, height=height - 2, rx=3, class_="cell",
                fill_opacity=0.06 + 0.94 * share,
            )  # fmt: skip
            label = text(
                f"{share:.0%}", x + width / 2, y + height / 2 + 4, text_anchor="middle",
                class_="on" if share > 0.5 else None,
            )  # fmt: skip
            parts.append(element("g", note + cell + label * (width > 26)))
    return picture("Share of the variance of the score", parts, height=top + height * len(table) + 8)


def encoder(layers: Sequence[LayerSpec]) -> str:
    """An encoder, input at the top: a bar for each run of equal layers, as wide as the layer, cut into head groups."""
    widest = max(layer.hidden_size for layer in layers)
    room, y, parts, first = WIDTH - 16, 4.0, [], 1
    for layer, run in groupby(layers):
        count = len(list(run))
        width = max(24.0, room * layer.hidden_size / widest)
        x = 8 + (room - width) / 2
        for operation in layer.operations:
            share = width * operation.num_heads / layer.num_heads
            note = element("title", escape(describe.head_group(operation)))
            box = element("rect", x=x, y=y, width=share, height=18, rx=3, style=f"fill:{HUES[operation.op]}",
                          class_="group")  # fmt: skip
            parts.append(element("g", note + box))
            x += share
        numbers = f"{first} to {first + count - 1}" if count > 1 else f"{first}"
        first += count
        words = [
            f"Layer {numbers}: width {layer.hidden_size}, feed-forward {' → '.join(map(str, layer.feed_forward))}",
            *(f"{describe.head_group(operation)}" for operation in layer.operations),
        ]
        y += 34
        for line in words:
            parts.append(text(line, WIDTH / 2, y, text_anchor="middle"))
            y += 16
        y += 6
    return picture(f"Encoder of {len(layers)} layers", parts, height=y - 8)
