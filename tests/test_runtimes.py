"""What encoders run on: every runtime computes the same, and latency and energy are measured in a real process."""

import json
import os
import sys
import threading
import time
import types

import numpy as np
import pytest
import torch
from conftest import SPECS, layer, op

from flexibert import FlexiBertConfig, FlexiBertModel
from search.cli import main
from search.errors import UserError
from search.runtimes import bench as bench_module
from search.runtimes.bench import Bench
from search.runtimes.conditions import Conditions, pinned_cores, usable_cores
from search.runtimes.energy import RaplZone, counters, difference, joules_of, rapl_zones
from search.runtimes.files import random_inputs
from search.runtimes.predictor import CLEARLY, ENOUGH, LatencyPredictor, Sample, features
from search.runtimes.table import RUNTIMES, check_installed
from search.runtimes.timing import interleaved


LAYERS = [layer(32, op("self_attention", 2), op("dynamic_convolution", 2, kernel_size=5)), *SPECS["cosine"][:1]]


def config_of(layers=LAYERS, **fields):
    return FlexiBertConfig(layers=layers, vocab_size=50, max_position_embeddings=24, **fields)


# --- the table ----------------------------------------------------------------------------------------------------


QUICK = ("torch", "onnx-int8")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNTIMES]
)
def test_every_runtime_computes_the_same(name):
    try:
        check_installed(name, RUNTIMES[name].packages)
    except UserError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    model = FlexiBertModel(config_of(LAYERS[:1]), add_pooling_layer=False).eval()
    batch = {key: tensor.numpy() for key, tensor in random_inputs(model, 2, 12).items()}
    with torch.no_grad():
        expected = model(**{key: torch.from_numpy(ids) for key, ids in batch.items()}).last_hidden_state.numpy()
    (actual,) = RUNTIMES[name](model, threads=1)(batch)
    real = batch["attention_mask"] == 1
    tolerance = 0.3 if "int8" in name else 1e-4
    np.testing.assert_allclose(actual[real], expected[real], atol=tolerance)
    assert RUNTIMES[name].text


def test_what_is_not_installed_is_one_line():
    with pytest.raises(
        UserError, match="--latency-runtime openvino: not installed here is a_runtime; pip install has it"
    ):
        check_installed("--latency-runtime openvino", ["json", "a_runtime"])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"runtime": "tensorrt"}, "--latency-runtime: 'tensorrt' is not accepted, known: torch, torch-compile, onnx"),
        ({"threads": usable_cores() + 1}, f"this process has {usable_cores()} cores"),
        ({"threads": -1}, "--latency-threads: -1 is not accepted"),
        ({"batch": 0}, "--latency-batch: 0 is not accepted, expected at least 1"),
        ({"length": 0}, "--latency-length: 0 is not accepted"),
        ({"repetitions": 0}, "--latency-repetitions: 0 is not accepted"),
        ({"length": 25}, "--latency-length: 25 is beyond the 24 positions of the encoders"),
        ({"length": 1, "runtime": "onnx"}, "--latency-length: onnx takes at least 2 tokens"),
    ],
)
def test_conditions_that_cannot_be(fields, message):
    with pytest.raises(UserError) as error:
        Conditions(**{"length": 8} | fields).check(positions=24)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--latency-runtime", "tensorrt"], "argument --latency-runtime: invalid choice: 'tensorrt'"),
        (["--latency-repetitions", "0"], "'0' is not accepted, expected a whole number of at least 1"),
        (["--latency-batch", "0"], "'0' is not accepted"),
        (["--latency-threads", "4096"], "--latency-threads: 4096 is not accepted, this process has"),
        (["--latency-length", "100000"], "--latency-length: 100000 is beyond the"),
        (["--max-energy-mj", "5"], "energy"),
    ],
)
def test_the_command_says_so_before_anything_else(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_module, "POWERCAP", tmp_path / "none")
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_idle_cores_of_their_own_come_first(tmp_path, monkeypatch):
    from search.runtimes import conditions

    for core, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        (tmp_path / f"cpu{core}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "topology" / "thread_siblings_list").write_text(siblings, encoding="ascii")
    monkeypatch.setattr(conditions, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(conditions.psutil, "cpu_percent", lambda **options: [90.0, 5.0, 20.0, 40.0])
    assert pinned_cores(2) == [1, 2] and pinned_cores(3) == [1, 2, 3] and pinned_cores(4) == [1, 2, 3, 0]


# --- timing -------------------------------------------------------------------------------------------------------


def test_functions_take_turns(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def function(name, seconds):
        def run():
            calls.append(name)
            clock[0] += seconds

        return run

    times = interleaved([function("fast", 0.001), function("slow", 0.02)], repetitions=3)
    assert np.allclose(times, [[0.001] * 3, [0.02] * 3])
    counted = "".join(name[0] for name in calls[10:])  # after five of each to warm up
    assert counted == ("f" * 5 + "s") * 3  # a repetition takes at least 5 ms


# --- the bench ----------------------------------------------------------------------------------------------------


@pytest.fixture
def powercap(tmp_path):
    """A package of one joule's range that counts in real time, its memory, its cores, and the whole platform."""
    zones = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "psys",
        "intel-rapl": "",
    }
    for folder, name in zones.items():
        (tmp_path / "powercap" / folder).mkdir(parents=True)
        for file, content in {"name": name, "energy_uj": "999000", "max_energy_range_uj": "1000000"}.items():
            (tmp_path / "powercap" / folder / file).write_text(f"{content}\n", encoding="ascii")
    return tmp_path / "powercap"


def test_a_real_process_measures(tmp_path, powercap):
    """One process: latency, energy, a second encoder that it cannot run, and a journal for the next start."""
    stop = threading.Event()

    def count():
        energy = powercap / "intel-rapl:0" / "energy_uj"
        for joules in range(10**9):
            replacement = energy.with_name("new")
            replacement.write_text(str(joules * 100 % 1_000_000), encoding="ascii")
            os.replace(replacement, energy)
            if stop.wait(0.002):
                return

    thread = threading.Thread(target=count)
    thread.start()
    conditions = Conditions(length=8, repetitions=3)
    journal, said = tmp_path / "latencies.jsonl", []
    bench = Bench(conditions, journal, energy=True, say=said.append, powercap=powercap)
    try:
        first = bench.measure(config_of())
        assert bench.measure(config_of()) is first
        assert 0 < first.low <= first.ms <= first.high and first.energy_mj > 0 and first.drift_percent == 0
        assert first.conditions["threads"] == usable_cores() and first.conditions["counters"] == [
            "RAPL package-0",
            "RAPL dram",
        ]
        with pytest.raises(UserError, match="--latency-runtime torch: .*bad_activation"):
            bench.measure(config_of(SPECS["fourier"], hidden_act="bad_activation"))
        os.kill(bench._process.pid, 9)
        with pytest.raises(UserError, match="the process that measures latency has ended with status -9"):
            bench.measure(config_of(SPECS["homogeneous"]))
    finally:
        stop.set()
        thread.join()
        bench.close()
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"fingerprint": "cut off')
    again = Bench(conditions, journal, energy=True, powercap=powercap)
    assert again.measure(config_of()) == first and again._process is None
    assert again.notes(config_of())["ms"] == first.ms and again.notes(config_of(SPECS["cosine"])) == {}
    assert Bench(Conditions(length=16, repetitions=3), journal).known == {}


def test_a_machine_that_changed_is_measured_again_and_told_once(monkeypatch):
    reference = iter([1.0, 1.5, 1.05, 2.0, 2.0, 1.9, 3.0, 3.0, 3.0])
    asked, said = [], []

    def ask(self, config):
        asked.append(config.fingerprint)
        return {"ms": [1.0, 3.0, 2.0], "reference_ms": [next(reference)]}

    monkeypatch.setattr(Bench, "_ask", ask)
    bench = Bench(Conditions(length=8), say=said.append)
    measured = [bench.measure(config_of(SPECS[name])) for name in ("homogeneous", "fourier", "cosine", "graph")]
    assert [m.drift_percent for m in measured] == pytest.approx([0, 5, 90, 200]) and len(asked) == 1 + 2 + 3 + 3
    assert measured[0].ms == 2.0 and (measured[0].low, measured[0].high) == (1.5, 2.5)
    (line,) = said
    assert "this machine is 90 % slower" in line and "\n" not in line


# --- the predictor ------------------------------------------------------------------------------------------------


KINDS = [op("self_attention", 2), op("linear_transform", 4), op("dynamic_convolution", 2, kernel_size=5)]


def encoders(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield config_of(
            [
                layer(int(width := rng.choice([32, 64, 128])), KINDS[rng.integers(3)], feed_forward=[4 * int(width)])
                for _ in range(rng.integers(1, 4))
            ]
        )


def additive(config):
    """Milliseconds that really are a sum over parts."""
    total = 0.3
    for spec in config.layer_specs:
        kind = {"self_attention": 0.4, "linear_transform": 0.1, "dynamic_convolution": 0.7}[spec.operations[0].op]
        total += 0.05 + kind + 1e-3 * spec.hidden_size + 1e-6 * spec.hidden_size * spec.feed_forward[0]
    return total


def test_an_additive_latency_is_predicted():
    rng = np.random.default_rng(1)
    samples = [Sample(features(config), additive(config) * rng.normal(1, 0.01)) for config in encoders(60)]
    predictor = LatencyPredictor(samples)
    assert predictor.is_good and 0.003 < predictor.mean_error < 0.02
    unseen = [(predictor.predict(config), additive(config)) for config in encoders(200, seed=2)]
    errors = [abs(predicted / actual - 1) for predicted, actual in unseen]
    assert np.mean(errors) < 1.5 * predictor.mean_error  # what it says of itself holds for others
    assert "fitted on 60 encoders, mean error" in predictor.text
    for config in encoders(200, seed=3):
        limit = 2.0
        verdict = predictor.judge(config, limit)
        if verdict is not None:
            assert verdict == (additive(config) <= limit)
        else:
            assert additive(config) == pytest.approx(limit, rel=3 * CLEARLY * predictor.standard_error)


def test_a_predictor_knows_what_it_does_not_know():
    samples = [Sample(features(config), additive(config)) for config in encoders(40)]
    predictor = LatencyPredictor(samples)
    stranger = config_of([layer(32, op("lightweight_convolution", 2, kernel_size=9))])
    assert predictor.predict(stranger) is None and predictor.judge(stranger, 1.0) is None
    assert not LatencyPredictor(samples[: ENOUGH - 1]).is_good and not LatencyPredictor([]).is_good
    rng = np.random.default_rng(0)
    noise = [Sample(sample.features, float(rng.lognormal(0, 2))) for sample in samples]
    assert not LatencyPredictor(noise).is_good


@pytest.mark.parametrize("name", SPECS)
def test_features_are_of_all_kinds(name):
    """Each operation of a space has parts of its own; twice the encoder has twice of everything but the rest."""
    once, twice = (features(config_of(SPECS[name] * times)) for times in (1, 2))
    assert all(twice[part] >= 2 * once[part] for part in once if part not in ("encoder", "changes of width"))
    assert set(once) == set(twice) or SPECS[name][0]["hidden_size"] != SPECS[name][-1]["hidden_size"]
    operations = {operation["op"] for spec in SPECS[name] for operation in spec["operations"]}
    assert all(any(part.startswith(operation) for part in once) for operation in operations)


# --- energy -------------------------------------------------------------------------------------------------------


def test_zones_of_a_machine(powercap):
    assert [zone.name for zone in rapl_zones(powercap)] == ["RAPL package-0", "RAPL dram"]
    assert [counter.name for counter in counters("cpu", powercap)] == ["RAPL package-0", "RAPL dram"]


def test_a_counter_begins_again_from_zero(powercap):
    """The package goes around once and the memory does not: (1.0 - 0.999 + 0.25) + (0.9995 - 0.999) J."""

    def run():
        (powercap / "intel-rapl:0" / "energy_uj").write_text("250000", encoding="ascii")
        (powercap / "intel-rapl:0:1" / "energy_uj").write_text("999500", encoding="ascii")

    assert joules_of(run, counters("cpu", powercap)) == pytest.approx(0.251 + 0.0005)
    zone = RaplZone(powercap / "intel-rapl:0")
    assert difference(zone, 0.25) == 0.0 and difference(zone, 0.2) == pytest.approx(0.05)


@pytest.mark.parametrize("what", ["no folder", "no zone", "no permission"])
def test_counters_that_are_not_there_are_one_line(what, tmp_path, powercap):
    if what == "no permission":
        os.remove(powercap / "intel-rapl:0" / "energy_uj")
        (powercap / "intel-rapl:0" / "energy_uj").mkdir()  # cannot be read, whoever runs the tests
    place = {"no folder": tmp_path / "none", "no zone": tmp_path, "no permission": powercap}[what]
    with pytest.raises(UserError, match="^energy: .*") as error:
        Bench(Conditions(length=8), energy=True, powercap=place)
    assert str(place) in str(error.value) and "\n" not in str(error.value)


def test_an_accelerator_tells_millijoules(monkeypatch):
    shown = iter([0, 5_000, 7_500])
    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetName=lambda handle: f"card {handle}",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(shown),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1"))
    from search.runtimes.energy import NvmlDevice

    device = NvmlDevice("cuda")
    assert device.name == "NVML card GPU-1" and joules_of(lambda: None, [device]) == 2.5
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UserError, match="pip install nvidia-ml-py"):
        counters("cuda")


def test_a_journal_is_plain_json(tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "_ask", lambda self, config: {"ms": [1.0], "reference_ms": [1.0]})
    bench = Bench(Conditions(length=8), tmp_path / "journal")
    for config in encoders(5):
        bench.measure(config)
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text(encoding="utf-8").splitlines()]
    assert {line["fingerprint"] for line in lines} == set(bench.known)
    assert len(Bench(Conditions(length=8), tmp_path / "journal").samples) == len(lines)
