"""Architectures and numbers in words, as model cards, reports and pictures print them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from flexibert.spec import LayerSpec, OperationSpec

from ..cost import COSTS


UNITS = {"percent": "%", "nats": "nats", "ms": "ms", "seconds": "s", "tokens": "tokens", "mib": "MiB"}
"""Last word of a metric's name -> its unit."""


def split_unit(name: str) -> tuple[str, str]:
    """A metric's name without its unit, and the unit: "mlm_loss_nats" -> ("mlm_loss", "nats")."""
    quantity, _, last = name.rpartition("_")
    units = {**UNITS, last: COSTS[name].unit} if name in COSTS and COSTS[name].unit else UNITS
    return (quantity, units[last]) if quantity and last in units else (name, "")


def label(name: str) -> str:
    """The name of a metric for people: "mlm_loss_nats" -> "mlm loss (nats)"."""
    quantity, unit = split_unit(name)
    return quantity.replace("_per_second", "/s").replace("_", " ") + (f" ({unit})" if unit else "")


def number(value) -> str:
    """A value for a table: whole numbers in full, others with at least four digits, a dash for none and NaN."""
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def head_group(operation: OperationSpec) -> str:
    """A group of heads with all options that are not the default: "2 × cosine transform, source layer"."""
    said = {"op", "num_heads", operation.searched}
    options = [f"{key} {value}".lower() for key, value in operation.to_dict().items() if key not in said]
    return ", ".join([f"{operation.num_heads} × {operation.name}", *(o.replace("_", " ") for o in options)])


def widths(layers: Sequence[LayerSpec]) -> str:
    """Hidden sizes from first to last layer, runs shortened: "2 × 128, 256"."""
    runs = [(size, len(list(run))) for size, run in groupby(layer.hidden_size for layer in layers)]
    return ", ".join(f"{count} × {size}" if count > 1 else f"{size}" for size, count in runs)


def layer_table(layers: Sequence[LayerSpec]) -> str:
    """Markdown table of an encoder, one row for a run of equal layers."""
    rows = [
        (
            span,
            layer.hidden_size,
            "; ".join(map(head_group, layer.operations)),
            layer.resolved_head_size,
            " → ".join(map(str, layer.feed_forward)),
        )
        for span, layer in _spans(layers)
    ]
    return table(("layer", "width", "heads", "head size", "feed-forward"), rows)


def graph_lines(layers: Sequence[LayerSpec]) -> str:
    """Markdown with the searched attention of an encoder, one block of code for each graph; empty without any."""
    blocks = [
        f"Layer {span}, {operation.num_heads} heads:\n\n```text\n" + "\n".join(operation.graph.lines) + "\n```"
        for span, layer in _spans(layers)
        for operation in layer.operations
        if operation.graph is not None
    ]
    return "\n\n".join(blocks)


def padding_behaviour(layers: Sequence[LayerSpec]) -> str:
    """What padding does to the output of an encoder, in a sentence."""
    spans = [span for span, layer in _spans(layers) if any(operation.mixes_padding for operation in layer.operations)]
    if not spans:
        return "No operation mixes padding: what a token gets does not depend on how far its row is padded."
    return (
        f"Layer {', '.join(spans)} mixes padding into the tokens, as the original code of its operations does: the "
        "output depends on the padded length, so always pad to the length of training."
    )


def conditions(entry: Mapping[str, Any]) -> str:
    """How latency and energy were measured, in a sentence or two, out of an entry of `study.results.conditions`."""
    versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items())
    place = entry["processor"] if entry["device"] == "cpu" else entry["device"]
    low, high = entry["reference_ms"]
    words = (
        f"{entry['runtime']} ({versions}), {entry['batch']} × {entry['length']} tokens, {entry['threads']} "
        f"thread{'s' * (entry['threads'] > 1)}, {place}; median of {entry['repetitions']} repetitions. In "
        f"{entry['trials']} trial{'s' * (entry['trials'] > 1)} a reference model, timed in between, took {low:.3g} to "
        f"{high:.3g} ms: the machine changed by up to {100 * (high / low - 1):.0f} %."
    )
    if entry.get("counters"):
        words += f" Energy is that of {', '.join(entry['counters'])}."
    predictor = entry.get("predictor")
    if predictor is not None:
        words += (
            f" Of encoders that were not measured it was predicted from {predictor['samples']} that were, with a mean "
            f"error of {predictor['error_percent']:.1f} % in cross-validation."
        )
    return words


def table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A markdown table; cells may hold any text or number."""
    lines = [list(header), ["---"] * len(header), *(list(map(number, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(map(escape, line))} |" for line in lines)


def escape(text: str) -> str:
    """Any text on one line of markdown, where it can end neither a table cell nor start a tag."""
    line = " ".join(text.split())
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _spans(layers: Sequence[LayerSpec]) -> list[tuple[str, LayerSpec]]:
    """Runs of equal layers, counted from 1: [("1 to 3", layer), ("4", layer)]."""
    spans, first = [], 1
    for layer, run in groupby(layers):
        last = first + len(list(run)) - 1
        spans.append((f"{first} to {last}" if last > first else f"{first}", layer))
        first = last + 1
    return spans
