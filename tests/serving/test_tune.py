"""The search: what it may use, what it drops, and that it finds the best of what was measured."""

import pytest

from keras_resnets.bundle import Bundle, BundleError
from keras_resnets.export import Gate, to_bundle
from keras_resnets.serving import tune as search
from keras_resnets.serving.tune import Goal, TuneError, admissible, points_lost, tune


@pytest.fixture(scope="module")
def two_precisions(tiny_model, tiny_preprocessing, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "bundle"
    with pytest.warns(UserWarning):
        to_bundle(
            tiny_model(), folder, preprocessing=tiny_preprocessing, saved_model=False,
            precisions=["int8"], gate=Gate(0.0, 1.0),
        )  # fmt: skip
    return folder


def figures(images_per_second, p50_ms, p99_ms=None):
    return {
        "images_per_second": images_per_second, "p50_ms": p50_ms, "p99_ms": p99_ms or p50_ms, "mean_ms": p50_ms,
        "calls": 9,
    }  # fmt: skip


class Machine:
    """Stands for what is measured: engines and servers whose speed is a formula of their settings."""

    def __init__(self, monkeypatch, rate, served=0.9):
        self.engines, self.servers, self.rate, self.share = [], [], rate, served
        monkeypatch.setattr(search, "once", self.once)
        monkeypatch.setattr(search, "serving", self.serving)
        monkeypatch.setattr(search, "run_apart", self.ask)
        for module in ("tune", "contender", "benchmark"):
            monkeypatch.setattr(f"keras_resnets.serving.{module}.usable_cpus", lambda: 4)

    def once(self, one, seconds):
        labels = one.labels
        self.engines.append(one.name)
        rate = self.rate(labels)
        row = {"name": one.name, **labels, "state": "refused", "reason": "planted"}
        if rate:
            ms = 1e3 * labels["batch"] * labels["workers"] / rate
            row |= {"state": "measured", "reason": None, "end_to_end": figures(rate, ms)}
        return row

    def serving(self, bundle, settings):
        self.servers.append(settings)
        return self

    def __enter__(self):
        return "http://nowhere"

    def __exit__(self, *error):
        return False

    def ask(self, request):
        settings = self.servers[-1]
        rate = self.share * self.rate({**settings, "batch": settings["max_batch"]}) * (1 - settings["queue_delay"])
        told = figures(rate, 1e3 / rate, 1e3 * settings["max_batch"] / rate)
        told["samples_per_second"] = told.pop("images_per_second")
        return {"valid": True, "reason": "", "figures": told}


def rate(labels):
    """Best: int8, four workers of one thread, batches of 8; small batches and one worker are slower."""
    speed = {"float32": 100, "int8": 300}[labels["precision"]]
    return speed * (1 + 0.1 * min(labels["batch"], 8)) * (1.2 if labels["workers"] == 4 else 1.0)


def test_the_fastest_is_found_served_and_told(two_precisions, monkeypatch):
    machine = Machine(monkeypatch, rate)
    found, result = tune(two_precisions, Goal("throughput", accuracy_drop=100))
    assert found.settings == {
        "provider": "cpu", "precision": "int8", "workers": 4, "threads": 1, "max_batch": 8, "queue_delay": 0.0,
        "cuda_graphs": False,
    }  # fmt: skip
    assert found.evidence["times_the_defaults"] == pytest.approx(0.9 * 300 * 1.8 * 1.2 / (100 * 1.8))
    assert any("float32 on cpu: 33% of the best" in why for why in result["dropped"])
    # What was far behind was not looked at again: no other division of the CPUs, no larger batch.
    assert not [name for name in machine.engines if "float32" in name and ("workers" in name or "batch 32" in name)]
    assert len(machine.engines) == len(set(machine.engines))


def test_for_latency_one_image_at_a_time_is_measured(two_precisions, monkeypatch):
    machine = Machine(monkeypatch, rate)
    found, _ = tune(two_precisions, Goal("latency", accuracy_drop=100))
    assert found.settings["max_batch"] == 1 and found.settings["workers"] == 1 and found.settings["precision"] == "int8"
    assert {settings["max_batch"] for settings in machine.servers} == {1}


def test_the_bound_of_the_99th_percentile_is_kept(two_precisions, monkeypatch):
    Machine(monkeypatch, rate)
    loose, _ = tune(two_precisions, Goal("throughput", p99_ms=1000, accuracy_drop=100))
    tight, _ = tune(two_precisions, Goal("throughput", p99_ms=8, accuracy_drop=100))
    assert loose.settings["max_batch"] == 8 and tight.settings["max_batch"] < 8 and tight.evidence["p99_ms"] <= 8
    with pytest.raises(TuneError, match="no configuration gave figures"):
        tune(two_precisions, Goal("throughput", p99_ms=0.1, accuracy_drop=100))


def test_what_is_refused_takes_no_part(two_precisions, monkeypatch):
    Machine(monkeypatch, lambda labels: 0 if labels["precision"] == "int8" else rate(labels))
    found, result = tune(two_precisions, Goal(accuracy_drop=100))
    assert found.settings["precision"] == "float32" and any("planted" in why for why in result["dropped"])


def test_out_of_time_what_was_found_is_told(two_precisions, monkeypatch):
    machine = Machine(monkeypatch, rate)
    moments = iter(range(10**6))
    monkeypatch.setattr(search.time, "monotonic", lambda: float(next(moments)))
    found, result = tune(two_precisions, Goal(accuracy_drop=100), budget=12)
    assert found.settings and any("no time left" in why for why in result["dropped"]) and len(machine.engines) < 12


def test_accuracy_bounds_the_choice(two_precisions):
    bundle = Bundle.open(two_precisions)
    lost = points_lost(bundle.variant("int8").quality)
    assert lost == pytest.approx(100 * (1 - bundle.variant("int8").quality["agreement"]))
    pairs, _ = admissible(bundle, Goal(accuracy_drop=lost), ["cpu"])
    assert pairs == [("cpu", "float32"), ("cpu", "int8")]
    known = {"images": 100, "agreement": 0.5, "top1": 0.90, "top1_float32": 0.912}
    assert points_lost(known) == pytest.approx(1.2) and points_lost(None) == 0
    assert points_lost({**known, "top1": 0.95}) == 0


def test_wrong_wishes_are_told(two_precisions, tmp_path):
    for wrong, message in (
        ({"target": "speed"}, "latency or throughput, not 'speed'"),
        ({"p99_ms": 0}, "more than 0 ms"),
        ({"accuracy_drop": -1}, "from 0, not -1"),
    ):
        with pytest.raises(ValueError, match=message):
            Goal(**wrong)
    with pytest.raises(TuneError, match="the cuda provider is not in this onnxruntime"):
        tune(two_precisions, Goal(), providers=["cuda"])
    with pytest.raises(BundleError):
        tune(tmp_path / "nothing", Goal())


def test_a_server_that_does_not_start_is_told(two_precisions):
    settings = {
        "provider": "cpu", "precision": "int4", "workers": 1, "threads": 1, "max_batch": 1, "queue_delay": 0.0,
        "cuda_graphs": False,
    }  # fmt: skip
    with (
        pytest.raises(TuneError, match=r"did not start: .*has no int4 variant"),
        search.serving(two_precisions, settings),
    ):
        pass
