"""The folder of a run: which files lie where."""

import filecmp
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

from ..errors import UserError
from ..files import checksums, remove_partial, replace_file, replace_folder
from ..samplers.trials import FINGERPRINT
from .trials import best_trial


CACHE = ".cache"
"""Beside runs and checkpoints: tokenizers and tokenized text that they share."""


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run are.

    Attributes:
        path: The folder itself; a new study gets its name.
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
    def latencies(self) -> Path:
        """What was measured of candidates, trained or not, a line each; see `runtimes.bench`."""
        return self.path / "latencies.jsonl"

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
        """Makes best/ a whole copy of the best trial, if that was trained here, and mends what is missing or damaged
        in it; one worker at a time looks and copies.

        Where the checksums of the summary say that best/ is whole, what differs from it is mended, the trial.
        """
        with FileLock(self.path / ".best.lock"):
            source, target = self.best_checkpoint(study), self.best
            if source is None or _equal_folders(source, target):
                return
            if self._noted_checksums(study) == checksums(self.best):
                source, target = target, source
            with replace_folder(target) as aside:
                shutil.copytree(source, aside, dirs_exist_ok=True)

    def _noted_checksums(self, study: optuna.Study) -> dict[str, str] | None:
        """What the summary says of best/; None where there is none, or it is about another trial."""
        best = best_trial(study)
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
            same = best is not None and summary["best"]["number"] == best.number
            return summary["sha256"] or None if same else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def noted_name(self) -> str:
        """The name of the study in a storage of its own, noted when the run began."""
        note = self.path / ".study"
        if not note.is_file():
            replace_file(note, self.name)
        return note.read_text(encoding="utf-8")

    def clean(self, study: optuna.Study) -> None:
        """Removes what killed workers left: folders of trials that ended without a result, and half-written ones.

        Folders of trials that the study does not know are left alone; they come from no kill.

        Raises:
            UserError: The study is empty, but there are checkpoints.
        """
        folders = {int(path.name[:4]): path for path in self.trials.glob("[0-9][0-9][0-9][0-9]*-*")}
        states = {trial.number: trial.state for trial in study.get_trials(deepcopy=False)}
        if folders and not states:
            raise UserError(
                f"{self.path} holds {len(folders)} checkpoints, but its study is empty; give the --storage that they "
                f"belong to, bring {self.study.name} back, or give another --name"
            )
        for number, folder in folders.items():
            if states.get(number) in (TrialState.FAIL, TrialState.PRUNED):
                shutil.rmtree(folder, ignore_errors=True)
        remove_partial(self.path, self.trials)


def training_folder(output: Path) -> Path:
    """Where the training of a single checkpoint or super-network `output` keeps what it resumes from."""
    return output.with_name(f"{output.name}.training")


def _equal_folders(first: Path, second: Path) -> bool:
    """Whether the second holds every file of the first with the same bytes, and no other."""
    files, others = ({path.relative_to(folder) for path in folder.rglob("*")} for folder in (first, second))
    return files == others and all(
        filecmp.cmp(first / name, second / name, shallow=False) for name in files if (first / name).is_file()
    )
