"""The folder of a run: which files lie where."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial

from ..files import replace_folder
from ..samplers.trials import FINGERPRINT
from .trials import best_trial


CACHE = ".cache"
"""Beside runs and checkpoints: tokenizers and tokenized text that they share."""


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run are.

    Attributes:
        path: The folder itself; its name is the name of the study.
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.name or self.path.resolve().name

    @property
    def study(self) -> Path:
        """The study's SQLite file, where no other storage was given."""
        return self.path / "study.db"

    @property
    def storage(self) -> str:
        """The same as a storage URL."""
        return f"sqlite:///{self.study}"

    @property
    def trials(self) -> Path:
        """Of the checkpoints of trials."""
        return self.path / "trials"

    @property
    def best(self) -> Path:
        """A copy of the best trial's checkpoint."""
        return self.path / "best"

    @property
    def report(self) -> Path:
        """Tables and pictures."""
        return self.path / "report"

    @property
    def summary(self) -> Path:
        """What came out, as JSON."""
        return self.path / "summary.json"

    @property
    def supernet(self) -> Path:
        """The run's own copy of a super-network, with what trials have written back."""
        return self.path / "supernet"

    @property
    def cache(self) -> Path:
        """What all runs beside this one share."""
        return self.path.parent / CACHE

    def trial(self, number: int, fingerprint: str) -> Path:
        """The checkpoint of a trial with this architecture."""
        return self.trials / f"{number:04d}-{fingerprint}"

    def checkpoint(self, trial: FrozenTrial) -> Path | None:
        """The checkpoint of a trial; None where it is gone or on another machine."""
        folder = self.trial(trial.number, trial.user_attrs[FINGERPRINT])
        return folder if folder.is_dir() else None

    def best_checkpoint(self, study: optuna.Study) -> Path | None:
        """The checkpoint of the best trial; None without a trial, or where it is gone or on another machine."""
        best = best_trial(study)
        return None if best is None else self.checkpoint(best)

    def keep_best(self, study: optuna.Study) -> None:
        """Makes best/ a copy of the best trial, if that was trained here; one worker at a time looks and copies."""
        with FileLock(self.path / ".best.lock"):
            source = self.best_checkpoint(study)
            if source is not None and not _equal_files(source / "config.json", self.best / "config.json"):
                with replace_folder(self.best) as aside:
                    shutil.copytree(source, aside, dirs_exist_ok=True)


def training_folder(output: Path) -> Path:
    """Where the training of a single checkpoint or super-network `output` keeps what it resumes from."""
    return output.with_name(f"{output.name}.training")


def _equal_files(first: Path, second: Path) -> bool:
    """Whether both exist with the same bytes. No two trials of a study have the same configuration."""
    return first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes()
