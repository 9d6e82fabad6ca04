"""MLPerf's load generator against bundles, servers, and targets whose behaviour is known."""

import dataclasses
import itertools
import threading
import time

import numpy as np
import pytest

from keras_resnets.golden import Golden
from keras_resnets.serving import Engine
from keras_resnets.serving.loadgen import SCENARIOS
from keras_resnets.serving.peak import highest_rate
from keras_resnets.serving.scenarios import run_apart, run_scenario
from keras_resnets.serving.served import Settings
from keras_resnets.serving.targets import EngineTarget, GrpcTarget, HttpTarget, PooledTarget

QUICK = {"seconds": 0.3, "min_queries": 10}
STEADY = {"rate": 50, "p99_ms": 5000}  # a rate that holds on any machine


@pytest.fixture(scope="module")
def bundle(exported):
    return exported()[1]


@pytest.fixture(scope="module")
def server(serving, bundle, tmp_path_factory):
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text("secret")
    with serving(f"tiny={bundle}", "--grpc-port", 0, "--api-key-file", key) as running:
        yield running


@pytest.fixture(scope="module", params=["engine", "http", "grpc"])
def target(request, bundle):
    if request.param == "engine":
        made = EngineTarget(bundle, Settings(max_batch=4))
    else:
        server = request.getfixturevalue("server")
        kind, address = {
            "http": (HttpTarget, server.url), "grpc": (GrpcTarget, server.wait_for(r"gRPC on (\S+)").group(1)),
        }[request.param]  # fmt: skip
        made = kind(bundle, address, "tiny", api_key="secret", connections=4, rows=4)
    yield made
    made.close()


@pytest.fixture
def doubling():
    """Makes a target that doubles fifty numbers, in its own way."""
    made = []

    def make(answer=lambda tensor: None, seconds=0.0, **options):
        numbers = np.arange(50, dtype=np.float32)[:, None]

        def call(tensor):
            if seconds:
                time.sleep(seconds)
            told = answer(tensor)
            return 2 * tensor if told is None else told

        made.append(PooledTarget("doubling", Golden(numbers, 2 * numbers), call, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_of_every_target(target, name):
    told = run_scenario(name, target, **QUICK, **(STEADY if name == "server" else {}))
    assert told["valid"] and told["reason"] is None, told
    assert told["note"] == "MLPerf-style; not an MLPerf result" and told["loadgen"]
    figures = told["figures"]
    assert figures[told["metric"]] > 0 and figures["samples"] >= 10
    if name != "offline":
        assert figures["min_ms"] <= figures["p50_ms"] <= figures["p90_ms"] <= figures["p99_ms"] <= figures["max_ms"]
        assert figures["samples"] == figures["queries"] * SCENARIOS[name].rows


@pytest.mark.parametrize("form", [{"layout": "nchw"}, {"pixels": True}, {"layout": "nchw", "pixels": True}])
def test_bundles_of_other_inputs(tiny_model, tiny_preprocessing, tmp_path, form):
    from keras_resnets.export import to_bundle

    to_bundle(tiny_model(), tmp_path / "b", preprocessing=tiny_preprocessing, saved_model=False, **form)
    target = EngineTarget(tmp_path / "b")
    told = run_scenario("multi-stream", target, **QUICK)
    engine = Engine(tmp_path / "b")
    assert engine.golden.drift(engine.run(target.samples.tensor)) < 1e-5
    target.close()
    assert told["valid"], told


def test_other_outputs_than_the_golden_ones_make_no_figures(target, monkeypatch):
    samples = dataclasses.replace(target.samples, expected=np.roll(target.samples.expected, 1, axis=1))
    monkeypatch.setattr(target, "samples", samples)
    told = run_scenario("offline", target, **QUICK)
    assert not told["valid"] and told["figures"] == {} and "is off by" in told["reason"]


def test_each_query_is_timed_alone(doubling):
    told = run_scenario("single-stream", doubling(seconds=0.02), seconds=0.5, min_queries=5)
    figures = told["figures"]
    assert told["valid"] and told["metric"] == "p90_ms"
    assert 20 <= figures["min_ms"] < 40 and figures["p90_ms"] >= 20
    assert figures["samples_per_second"] <= 50


def test_eight_samples_are_one_query(doubling):
    """Of a target that takes four at a time, one request after the other."""
    told = run_scenario("multi-stream", doubling(seconds=0.01, rows=4, threads=1), seconds=0.3, min_queries=5)
    assert told["valid"] and told["figures"]["min_ms"] >= 20
    assert told["figures"]["samples_per_second"] <= 400


def test_latency_counts_from_when_a_query_was_due(doubling):
    """Twice as many come as can be answered: the last one has waited for as long as the answers are behind."""
    target = doubling(seconds=0.01, threads=1)
    told = run_scenario("server", target, rate=200, seconds=0.5, min_queries=100)
    figures = told["figures"]
    assert not told["valid"] and "above 15 ms" in told["reason"]
    behind = 10 * figures["queries"] - 1000 * figures["queries"] / figures["scheduled_qps"]
    assert figures["max_ms"] >= 0.9 * behind > 300
    assert figures["p50_ms"] > 100 and figures["samples_per_second"] <= 101


def test_waiting_for_room_is_counted_too(doubling):
    target = doubling(seconds=0.01, threads=1)
    target.at_once = 2  # so the generator itself is held up
    figures = run_scenario("server", target, rate=200, seconds=0.5, min_queries=100)["figures"]
    assert figures["max_ms"] > 300 and figures["p50_ms"] > 100


def test_the_highest_rate_is_found(doubling):
    """One answer in 5 ms: 200 a second would be the limit if they came one by one."""
    told = run_scenario(
        "server", doubling(seconds=0.005, threads=1), seconds=0.5, p99_ms=100, min_queries=20, search_seconds=6
    )
    assert told["valid"], told
    assert 20 <= told["figures"]["samples_per_second"] <= 202
    assert told["figures"]["p99_ms"] <= 100 and told["figures"]["confirmed"] in (True, False)
    assert told["figures"]["target_qps"] in [run["target_qps"] for run in told["search"] if run["held"]]
    assert not all(run["held"] for run in told["search"])


def test_a_bound_below_the_service_time_is_never_held(doubling):
    told = run_scenario("server", doubling(seconds=0.02), seconds=0.2, p99_ms=5, min_queries=10, search_seconds=5)
    assert not told["valid"] and told["figures"] == {}
    assert told["reason"].startswith("no rate held p99 ≤ 5 ms, down to")
    assert told["search"] and not any(run["held"] for run in told["search"])


def test_no_time_for_a_search(doubling):
    told = run_scenario("server", doubling(), **QUICK, search_seconds=0.1)
    assert not told["valid"] and "no time" in told["reason"] and told["search"] == []


@pytest.mark.parametrize("limit", [3, 70, 137, 4321])
def test_a_limit_is_found_from_below_and_above(limit):
    tried = []

    def holds(rate, again):
        tried.append(rate)
        return rate <= limit

    peak = highest_rate(holds, 20, lambda rate, tries: True)
    assert peak.confirmed and limit / 1.05 <= peak.rate <= limit
    assert len(tried) < 20


def test_a_rate_that_held_by_luck_is_not_reported():
    peak = highest_rate(lambda rate, again: rate <= (100 if again else 200), 10, lambda rate, tries: True)
    assert peak.confirmed and 95 <= peak.rate <= 100


@pytest.mark.parametrize(
    ("tries", "second", "want"),
    [
        (6, True, (16, True)),  # 1, 2, 4, 8, 16, and 16 once more
        (6, False, (8, False)),  # 16 did not hold again, and there is no time for 8
        (1, True, (None, False)),  # not enough for a rate and its second time
        (0, True, (None, False)),
    ],
)
def test_a_search_ends_when_the_time_is_over(tries, second, want):
    tried = []

    def holds(rate, again):
        tried.append(rate)
        return second or not again

    assert highest_rate(holds, 1, lambda rate, more: len(tried) + more <= tries) == want
    assert len(tried) <= tries


@pytest.mark.parametrize("holds", [lambda rate, again: False, lambda rate, again: rate < 9 and not again])
def test_nothing_holds_or_nothing_does_so_twice(holds):
    assert highest_rate(holds, 1, lambda rate, tries: True) == (None, False)


def wrong_for_37(tensor):
    return 2 * tensor + (tensor == 37)


def failing_for_37(tensor):
    if 37 in tensor:
        raise RuntimeError("no thirty-seven")


@pytest.mark.parametrize(
    ("name", "options"),
    [("single-stream", {}), ("multi-stream", {}), ("offline", {}), ("server", {"rate": 500}), ("server", {})],
)
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (wrong_for_37, "answers are wrong; the first: an answer for sample 37 is off by"),
        (lambda tensor: np.where(tensor == 37, np.nan, 2 * tensor), "sample 37 is off by nan"),
        (lambda tensor: (2 * tensor)[:, 0] if 37 in tensor else None, "has the shape"),
        (lambda tensor: "two" if 37 in tensor else None, "cannot be read"),
        (failing_for_37, "samples failed; the first: RuntimeError: no thirty-seven"),
    ],
)
def test_one_sample_in_fifty(doubling, name, options, answer, reason):
    """Is wrong, or fails: the run ends, and has no figures. No rate is low enough for it."""
    told = run_scenario(name, doubling(answer), seconds=0.1, min_queries=300, search_seconds=1.5, **options)
    assert not told["valid"] and reason in told["reason"]
    assert told["figures"] == {}


def test_a_target_that_cannot_be_asked(doubling):
    target = doubling()
    asked = itertools.count()
    begin = target.ask

    def ask(tensor, done):
        if tensor[0] == 37 and next(asked) >= 0:
            raise OSError("no way there")
        begin(tensor, done)

    target.ask = ask
    told = run_scenario("single-stream", target, seconds=0.1, min_queries=300)
    assert not told["valid"] and "OSError: no way there" in told["reason"] and told["figures"] == {}


def test_nobody_listens(bundle):
    for kind, address in ((HttpTarget, "http://127.0.0.1:1"), (GrpcTarget, "127.0.0.1:1")):
        target = kind(bundle, address, "tiny", timeout=2.0)
        told = run_scenario("single-stream", target, **QUICK)
        target.close()
        assert not told["valid"] and told["reason"].startswith("before any load, a request failed"), told


def test_a_refusal_is_said(server, bundle):
    told = {}
    for kind, address in ((HttpTarget, server.url), (GrpcTarget, server.wait_for(r"gRPC on (\S+)").group(1))):
        target = kind(bundle, address, "tiny", api_key="other")
        told[kind] = run_scenario("offline", target, **QUICK)["reason"]
        target.close()
    assert "API key" in told[HttpTarget] and "UNAUTHENTICATED" in told[GrpcTarget]


def test_an_offline_query_does_not_fill_the_memory(doubling):
    rows, most = [0], [0]
    lock = threading.Lock()
    target = doubling(seconds=0.001, threads=2, rows=8)
    begin = target.ask

    def ask(tensor, done):
        with lock:
            rows[0] += len(tensor)
            most[0] = max(most[0], rows[0])

        def counted(got):
            with lock:
                rows[0] -= len(tensor)
            done(got)

        begin(tensor, counted)

    target.ask = ask
    told = run_scenario("offline", target, seconds=0.2, min_queries=1000)
    assert told["valid"] and told["figures"]["samples"] >= 1000
    assert 8 < most[0] <= target.at_once == 32


def test_in_a_process_of_its_own(bundle, server):
    engine = {"kind": "engine", "bundle": str(bundle), "max_batch": 8}
    told = run_apart({"scenario": "offline", "target": engine, **QUICK})
    assert told["valid"] and told["figures"]["samples_per_second"] > 0, told
    http = {"kind": "http", "bundle": str(bundle), "url": server.url, "model": "tiny", "api_key": "secret"}
    told = run_apart({"scenario": "single-stream", "target": http, **QUICK})
    assert told["valid"] and told["metric"] == "p90_ms" and told["target"] == f"tiny at {server.url}", told


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scenario": "batch"}, "there is no scenario 'batch'"),
        ({"seconds": 0}, "must be above 0"),
        ({"target": {"kind": "engine", "bundle": "nowhere"}}, "nowhere"),
        ({"speed": 1}, "speed"),
        ({"rate": 5}, "no rate of its own"),
        ({"target": {"kind": "carrier pigeon"}}, "carrier pigeon"),
    ],
)
def test_a_request_that_cannot_be_met(bundle, change, reason):
    told = run_apart({"scenario": "offline", "target": {"kind": "engine", "bundle": str(bundle)}} | change)
    assert not told["valid"] and reason in told["reason"] and told["figures"] == {}
    assert told["note"] == "MLPerf-style; not an MLPerf result"


def test_a_process_that_takes_too_long(bundle):
    engine = {"kind": "engine", "bundle": str(bundle)}
    told = run_apart({"scenario": "offline", "target": engine, "seconds": 60}, timeout=0.5)
    assert not told["valid"] and "no figures within" in told["reason"]
