"""The folder of a run: which files lie where."""

import shutil
from pathlib import Path

import optuna
from filelock import FileLock

from ..files import replace_folder
from .trials import best_trial, trial_folder


def keep_best(study: optuna.Study, folder: Path) -> None:
    """Makes best/ a copy of the best trial, if that was trained here; one worker at a time looks and copies."""
    with FileLock(folder / ".best.lock"):
        source, copy = best_folder(study, folder), folder / "best"
        if source is not None and not equal_files(source / "config.json", copy / "config.json"):
            with replace_folder(copy) as aside:
                shutil.copytree(source, aside, dirs_exist_ok=True)


def best_folder(study: optuna.Study, folder: Path) -> Path | None:
    """Where the best trial's checkpoint is; None without a trial, or where it is gone or on another machine."""
    best = best_trial(study)
    place = None if best is None else trial_folder(folder, best.number, best.user_attrs["fingerprint"])
    return place if place is not None and place.is_dir() else None


def equal_files(first: Path, second: Path) -> bool:
    """Whether both exist with the same bytes. No two trials of a study have the same configuration."""
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()
