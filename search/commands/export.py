"""Exports a checkpoint to a runtime without PyTorch."""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import transformers

from ..artifacts import describe
from ..artifacts.export import MANIFEST, check_request, export
from ..data.corpus import documents, load_corpus
from ..data.sources import quiet
from ..data.tasks import Task, load_tasks
from ..errors import UserError
from ..evaluation.exported_scores import check_fits, score, tasks_of
from .common import own_data


def main(options) -> None:
    """Writes the files and says how large each is, how far from PyTorch, and what that costs in score."""
    transformers.logging.disable_progress_bar()
    texts = ["-"] if options.corpus else []  # a wrong option shall not wait for the data
    check_request(options.precision, options.runtime, texts)
    if options.corpus:
        corpus = load_corpus(options.corpus, options.corpus_config, options.text_column)
        texts = list(islice(documents(corpus.train), options.calibration_texts))
    tasks = load_validation(options)
    folder = Path(options.output or Path(options.folder) / options.runtime)

    def score_all(model, tokenizer, run) -> dict[str, float]:
        found: dict[str, float] = {}
        for task in tasks:
            check_fits(model, task)
            found |= score(model, tokenizer, run, task)
        return found

    files = export(
        options.folder,
        folder,
        options.precision,
        options.runtime,
        options.encoder,
        texts,
        score_all if tasks else None,
    )
    scores = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["scores"]
    for file in files:
        print(
            f"{folder / file.file}: {file.precision}, {file.bytes / 1e6:.1f} MB, "
            f"largest difference from PyTorch {file.difference:.1e} ({100 * file.relative_error:.2g} %)"
            + loss(scores, file.scores)
        )


def load_validation(options) -> list[Task]:
    """The tasks that were asked for, or else those of GLUE that the checkpoint's own card has scores of."""
    if options.tasks:
        return load_tasks(options.tasks, None, options.glue, options=own_data(options))
    named = tasks_of(options.folder) if not options.encoder else []
    try:
        with quiet():
            return load_tasks(named, None, options.glue)
    except UserError as error:
        print(f"scores are not compared on {', '.join(named)}, which the card names: {error}; see --tasks and --glue")
        return []


def loss(model: Mapping[str, float], file: Mapping[str, float]) -> str:
    """What a file loses against PyTorch: "; mrpc f1 (%) 88.10, 0.12 less"."""
    parts: Sequence[str] = [
        f"{describe.label(name)} {file[name]:.2f}, {_change(file[name] - value)}" for name, value in model.items()
    ]
    return "".join(f"; {part}" for part in parts)


def _change(difference: float) -> str:
    if abs(difference) < 0.005:
        return "as in PyTorch"
    return f"{abs(difference):.2f} {'more' if difference > 0 else 'less'} than in PyTorch"
