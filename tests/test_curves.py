"""Trackers get a run of its own for every trial of a search, and it ends with the trial, however that ends."""

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from search.evaluation.curves import curves


class Recorder(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "recorder"
    requires_logging_directory = False
    runs: dict[str, list] = {}

    def __init__(self, run_name, **options):
        super().__init__()
        self.told = self.runs.setdefault(run_name, [])

    @property
    def tracker(self):
        return self.told

    def store_init_configuration(self, values):
        self.told.append(("config", values))

    def log(self, values, step=None, **options):
        self.told.append((step, values))

    def finish(self):
        self.told.append("finished")


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    monkeypatch.setattr(Recorder, "runs", {})
    accelerator = Accelerator(cpu=True)
    accelerator.log_with = ["recorder"]
    return accelerator


def test_one_curve_a_trial(accelerator):
    for name, loss in (("0000-ab", 5.0), ("0001-cd", 4.0)):
        with curves(accelerator, name, {"parameters": 3}) as log:
            log({"loss": loss}, 10)
            log({"score_percent": 60.0}, 20)
    assert Recorder.runs == {
        name: [("config", {"parameters": 3}), (10, {"loss": loss}), (20, {"score_percent": 60.0}), "finished"]
        for name, loss in (("0000-ab", 5.0), ("0001-cd", 4.0))
    }


def test_a_trial_that_fails_ends_its_curve(accelerator):
    with pytest.raises(RuntimeError), curves(accelerator, "0002-ef", {}):
        raise RuntimeError("out of memory")
    assert Recorder.runs["0002-ef"][-1] == "finished" and accelerator.trackers == []


def test_without_trackers_nothing_happens():
    with curves(Accelerator(cpu=True), "0003-gh", {}) as log:
        log({"loss": 1.0}, 1)
