"""Writes the report of a run again."""

import json
from pathlib import Path

import optuna

from ..artifacts.report import summarise, write_report
from ..errors import UserError
from ..files import replace_file, reported
from ..study.storage import open_storage


def main(options) -> None:
    """Writes summary.json and report/ of a run again."""
    folder = Path(options.run_folder)
    url = options.storage or f"sqlite:///{folder / 'study.db'}"
    if options.storage is None and not (folder / "study.db").is_file():
        raise UserError(f"{folder} is no run folder: it has no study.db; for another storage give --storage")
    try:
        study = optuna.load_study(study_name=folder.resolve().name, storage=open_storage(url))
    except KeyError:
        raise UserError(f"{url} holds no study named {folder.resolve().name!r}") from None
    with reported(folder / "report"):
        replace_file(folder / "summary.json", json.dumps(summarise(study), indent=2, allow_nan=False))
        paths = write_report(study, folder / "report")
    print(*paths, sep="\n")
