"""Writes the report of a run again."""

import json
from pathlib import Path

import optuna

from ..artifacts.report import summarise, write_report
from ..errors import UserError
from ..files import replace_file, reported
from ..study.run_folder import RunFolder
from ..study.storage import open_storage


def main(options) -> None:
    """Writes summary.json and report/ of a run again."""
    folder = RunFolder(Path(options.run_folder).resolve())
    url = options.storage or folder.storage
    if options.storage is None and not folder.study.is_file():
        raise UserError(
            f"{options.run_folder} is no run folder: it has no study.db; for another storage give --storage"
        )
    try:
        study = optuna.load_study(study_name=folder.name, storage=open_storage(url))
    except KeyError:
        raise UserError(f"{url} holds no study named {folder.name!r}") from None
    with reported(folder.report):
        replace_file(folder.summary, json.dumps(summarise(study), indent=2, allow_nan=False))
        paths = write_report(study, folder.report)
    print(*paths, sep="\n")
