"""A configuration that is not what it is called, or computes something else, gives no figures."""

import json
import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest

from keras_resnets.bundle import BundleError
from keras_resnets.machine import usable_cpus
from keras_resnets.serving import benchmark, contender
from keras_resnets.serving.contender import Configuration, RefusedError, measure
from keras_resnets.serving.providers import ProviderError, open_session

cpus = pytest.mark.skipif(usable_cpus() < 2, reason="needs two CPUs")


def test_a_bundle_s_figures(exported):
    figures = measure(Configuration(str(exported()[1]), batch=4), 0.1)
    for kind in ("end_to_end", "device_bound"):
        row = figures[kind]
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] and row["calls"] >= 5
        assert row["images_per_second"] == pytest.approx(4e3 / row["mean_ms"], rel=1e-6)
    assert figures["golden_drift"] < 1e-5 and figures["settings"]["provider"] == "CPUExecutionProvider"
    assert figures["settings"]["threads"] == usable_cpus() and figures["memory_mb"] > 20
    assert figures["first_run_s"] > 0 and figures["open_s"] > 0 and figures["yardstick_ms"] > 0


def test_a_plain_file_is_measured_on_noise(exported):
    figures = measure(Configuration(str(exported()[1] / "model.onnx"), batch=3), 0.05)
    assert figures["end_to_end"]["calls"] >= 5 and figures["golden_drift"] is None


def test_a_plain_file_of_another_batch_is_refused(exported, tmp_path):
    """Its calls would be counted as so many images."""
    model = onnx.load(exported()[1] / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "two.onnx")
    assert measure(Configuration(str(tmp_path / "two.onnx"), batch=2), 0.05)["end_to_end"]["calls"]
    with pytest.raises(RefusedError, match="takes 2 images a call, not 8"):
        measure(Configuration(str(tmp_path / "two.onnx"), batch=8), 0.05)


@cpus
def test_calls_at_once(exported):
    figures = measure(Configuration(str(exported()[1]), threads=1, workers=2), 0.2)
    assert figures["settings"]["threads"] == 1 and figures["end_to_end"]["calls"] >= 10


class Planted:
    """A session that is not what it seems."""

    def __init__(self, session, outputs=None, providers=None):
        self._session, self._outputs, self._providers = session, outputs, providers

    def __getattr__(self, name):
        return getattr(self._session, name)

    def get_providers(self):
        return self._providers or self._session.get_providers()

    def run(self, names, feeds, options=None):
        outputs = self._session.run(names, feeds, options)
        return [self._outputs(values) for values in outputs] if self._outputs else outputs


def plant(monkeypatch, make):
    """Let engines and contenders open what `make` gives for the real session's arguments."""
    for module in ("contender", "engine"):
        monkeypatch.setattr(f"keras_resnets.serving.{module}.open_session", make)


def test_a_fast_wrong_answer_is_refused(exported, monkeypatch):
    """Right for the golden sample when it was opened, wrong in the batches that are timed."""

    def wrong_in_batches(values):
        return values if len(values) != 5 else values + 0.01

    plant(monkeypatch, lambda *arguments, **named: Planted(open_session(*arguments, **named), wrong_in_batches))
    with pytest.raises(BundleError, match="golden sample differs"):
        measure(Configuration(str(exported()[1]), batch=5), 0.05)
    assert measure(Configuration(str(exported()[1]), batch=4), 0.05)


def test_a_plain_file_whose_outputs_are_not_finite_is_refused(exported, monkeypatch):
    plant(monkeypatch, lambda *arguments, **named: Planted(open_session(*arguments, **named), lambda v: v * np.nan))
    with pytest.raises(RefusedError, match="not finite"):
        measure(Configuration(str(exported()[1] / "model.onnx")), 0.05)


def test_a_provider_that_falls_back_silently_is_refused(exported, monkeypatch):
    def falls_back(model, provider, *rest, **named):
        return open_session(model, "cpu", 1)

    plant(monkeypatch, falls_back)
    with pytest.raises(RefusedError, match="cuda was asked for, and the session runs on"):
        measure(Configuration(str(exported()[1]), provider="cuda"), 0.05)
    with pytest.raises(ProviderError, match="no cuda provider"):
        monkeypatch.undo()
        measure(Configuration(str(exported()[1]), provider="cuda"), 0.05)


@cpus
def test_a_session_of_fewer_threads_is_refused(exported, monkeypatch):
    def with_one(model, provider, threads, *rest, **named):
        return open_session(model, provider, 1)

    plant(monkeypatch, with_one)
    with pytest.raises(RefusedError, match="2 threads were asked for, and the session has 1"):
        measure(Configuration(str(exported()[1]), threads=2), 0.05)


def test_more_threads_than_cpus_are_refused(exported):
    with pytest.raises(RefusedError, match="threads were asked for, and this process may use"):
        Configuration("bundle", threads=usable_cpus() + 1)
    with pytest.raises(RefusedError, match="threads were asked for"):
        Configuration("bundle", threads=1, workers=usable_cpus() + 1)
    with pytest.raises(ValueError, match="batch must be at least 1, not 0"):
        Configuration("bundle", batch=0)


def test_the_process_tells_refusals_from_figures(exported):
    def ask(**request):
        command = [sys.executable, "-m", "keras_resnets.serving.contender"]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    assert ask(source=str(exported()[1]), seconds=0.05)["end_to_end"]["calls"] >= 5
    assert "no cuda provider" in ask(source=str(exported()[1]), provider="cuda")["refused"]
    assert "no int8 variant" in ask(source=str(exported()[1]), precision="int8")["refused"]


def test_rounds_are_in_turn_and_their_medians_are_told(exported):
    said = []
    chosen = benchmark.sweep([exported()[1]], batches=(1, 2))
    result = benchmark.run(chosen, rounds=2, seconds=0.05, say=lambda name, done, all_: said.append((name, done, all_)))
    names = [row["name"] for row in result["rows"]]
    assert said == [(names[i % 2], i, 4) for i in range(4)]
    for row in result["rows"]:
        rates = [figures["end_to_end"]["images_per_second"] for figures in row["rounds"]]
        assert row["end_to_end"]["images_per_second"] == np.median(rates) and len(rates) == 2
        assert len(row["quantiles_ms"]) == 101 and row["state"] == "measured" and row["bundle"]
    assert result["conditions"]["usable_cpus"] == usable_cpus() and result["conditions"]["onnxruntime"]


def test_one_that_fails_is_told_and_not_run_again(exported, tmp_path):
    good = benchmark.contender(Configuration(str(exported()[1])))
    crash = good._replace(name="crash", program=[sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"])
    silent = good._replace(name="silent", program=[sys.executable, "-c", "raise SystemExit('no luck')"])
    hangs = good._replace(name="hangs", program=[sys.executable, "-c", "import time; time.sleep(60)"])
    said = []
    result = benchmark.run(
        [crash, silent, hangs, good], rounds=2, seconds=0.05, timeout=5.0, say=lambda name, *_: said.append(name)
    )
    reasons = {row["name"]: row["reason"] for row in result["rows"]}
    assert reasons["crash"] == "the process was killed by SIGSEGV" and "no luck" in reasons["silent"]
    assert "within 5 s" in reasons["hangs"] and reasons[good.name] is None
    assert said.count("crash") == 1 and said.count(good.name) == 2
    benchmark.save(result, tmp_path / "bench.json")
    assert benchmark.load(tmp_path / "bench.json") == json.loads(json.dumps(result))


def test_what_cannot_be_measured_is_said(exported, tmp_path):
    with pytest.raises(benchmark.BenchmarkError, match="neither a bundle nor an ONNX file"):
        benchmark.sweep([tmp_path / "nothing.onnx"])
    with pytest.raises(benchmark.BenchmarkError, match="no configuration is left"):
        benchmark.sweep([exported()[1]], threads=[usable_cpus() + 1])
    with pytest.raises(BundleError, match="has no int8 variant"):
        benchmark.sweep([exported()[1]], precisions=["int8"])
    with pytest.raises(benchmark.BenchmarkError, match="rounds must be at least 1"):
        benchmark.run(benchmark.sweep([exported()[1]]), rounds=0)
    (tmp_path / "other.json").write_text('{"format": "something"}')
    for file in ("other.json", "missing.json"):
        with pytest.raises(benchmark.BenchmarkError, match=file):
            benchmark.load(tmp_path / file)


def test_nothing_of_a_run_is_left(exported):
    before = threading.active_count()
    measure(Configuration(str(exported()[1]), workers=1), 0.05)
    assert threading.active_count() == before and contender.memory_mb("VmRSS") > 0
