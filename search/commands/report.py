"""Writes the report of a run again."""

from pathlib import Path

from ..artifacts.page import write_page
from ..artifacts.report import write_report, write_summary
from ..files import reported
from ..study.run_folder import RunFolder
from ..study.storage import open_run


def main(options) -> None:
    """Writes summary.json and report/ of a run again."""
    folder = RunFolder(Path(options.run_folder))
    study = open_run(folder, options.storage)
    with reported(folder.report):
        summary = write_summary(study, folder)
        paths = [*write_report(study, folder.report), write_page(study, folder.report)]
    print(summary if options.json else "\n".join(map(str, paths)))
