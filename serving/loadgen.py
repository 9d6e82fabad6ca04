"""One run of MLPerf's load generator against a target: it schedules and times the queries, and each answer is checked.

Latencies count from the moment that a query was due, whether or not the target was ready for it. What a run gives is
MLPerf-style; it is not an MLPerf result.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from numpy.typing import NDArray

from keras_resnets.extras import extra
from keras_resnets.untrusted import parse_json

from .targets import Target, fault, take

with extra("bench"):
    import mlperf_loadgen as lg

NOTE = "MLPerf-style; not an MLPerf result"
_PREFIX = ":::MLLOG "
_PERCENTILES = (50, 90, 95, 99)


class Scenario(NamedTuple):
    """How queries come, and which figure is reported of it.

    Args:
        kind: what the load generator calls it.
        rows: samples of a query; 0: all are one query.
        metric: of the figures.
    """

    kind: str
    rows: int
    metric: str


SCENARIOS = {
    "single-stream": Scenario("SingleStream", 1, "p90_ms"),  # the next query when the last is answered
    "multi-stream": Scenario("MultiStream", 8, "p99_ms"),
    "server": Scenario("Server", 1, "samples_per_second"),  # a Poisson process
    "offline": Scenario("Offline", 0, "samples_per_second"),
}


@dataclass(frozen=True)
class Schedule:
    """When a run's queries come.

    Args:
        scenario: of `SCENARIOS`.
        rate: queries a second that arrive ("server"), that are at most expected (the streams), or samples a second
            that are at least expected ("offline"): the generator draws its queries beforehand, and needs enough.
        seconds: that it takes at least; "offline": at that rate.
        min_queries: that it has at least; "offline": samples.
        p99_ms: what 99% of "server"'s queries must keep to.
        seed: of arrivals and of the samples' order.
    """

    scenario: str
    rate: float
    seconds: float
    min_queries: int = 1
    p99_ms: float = 15.0
    seed: int = 0


class Outcome(NamedTuple):
    """What a run showed.

    Args:
        figures: latencies of whole queries: p50_ms, p90_ms, p95_ms, p99_ms, min_ms, mean_ms and max_ms; queries,
            samples, and samples_per_second; early_stopping: whether the generator's statistics call the latency proven.
            "server" also has target_qps and scheduled_qps: the rate asked for, and that of the queries drawn, which of
            a hundred queries is another one by about 10%.
            "offline" has samples and samples_per_second alone.
        wrong: answers with other outputs than they should have, if there are any.
        failed: requests without an answer, if there are any.
        complaint: the load generator's own, if any.
    """

    figures: dict[str, Any]
    wrong: str | None
    failed: str | None
    complaint: str | None

    @property
    def reason(self) -> str | None:
        """Why the figures are not to be used; None where they are."""
        return self.wrong or self.failed or self.complaint

    def holds(self, p99_ms: float) -> bool:
        """Whether 99% of the queries were answered rightly and in time."""
        return not self.reason and self.figures["p99_ms"] <= p99_ms


def play(target: Target, schedule: Schedule) -> Outcome:
    """Put a target under load. One run at a time in a process: the load generator keeps its state in global variables.

    Args:
        target: see there.
        schedule: see there.
    """
    answers = _Answers(target)
    count = len(target.samples)
    with TemporaryDirectory(prefix="loadgen-") as folder:
        sut = lg.ConstructSUT(answers.issue, lambda: None)
        qsl = lg.ConstructQSL(count, count, lambda rows: None, lambda rows: None)  # all are in memory anyway
        try:
            # A file audit.config in the working folder would change the settings: so none is looked for there.
            lg.StartTestWithLogSettings(
                sut, qsl, _settings(schedule), _log_settings(folder), str(Path(folder) / "no-audit.config")
            )
        finally:
            lg.DestroyQSL(qsl)
            lg.DestroySUT(sut)
        told, complaint = _read(Path(folder) / "mlperf_log_detail.txt")
    return Outcome(_figures(schedule, told, answers.rows), answers.wrong, answers.failed, complaint)


class _Answers:
    """The load generator's system under test: makes requests of queries, checks the answers, and hands them in.

    Whatever goes wrong, each sample is handed in once, or the generator would wait for ever; and no exception may
    leave `issue`, which is called from C++.
    """

    def __init__(self, target: Target) -> None:
        self.rows = 0
        self._target = target
        self._changed = threading.Condition()
        self._out = 0  # rows without an answer
        self._faults: dict[str, list[str]] = {"wrong": [], "failed": []}

    @property
    def wrong(self) -> str | None:
        """How many answers are wrong, and the first."""
        return self._told("wrong", "of {} answers are wrong")

    @property
    def failed(self) -> str | None:
        """How many requests failed, and the first."""
        return self._told("failed", "requests of {} samples failed")

    def issue(self, queries: Sequence[Any]) -> None:
        """Begin to answer queries."""
        self.rows += len(queries)
        for start in range(0, len(queries), self._target.rows):
            part = queries[start : start + self._target.rows]
            rows = [query.index for query in part]
            done = partial(self._done, [query.id for query in part], rows)
            self._wait_for_room(len(part))
            try:
                self._target.ask(take(self._target.samples, rows), done)
            except Exception as error:
                done(error)

    def _wait_for_room(self, rows: int) -> None:
        """Until the target may have more rows: the images of a whole offline query would not fit into memory."""
        with self._changed:
            self._changed.wait_for(lambda: not self._out or self._out + rows <= self._target.at_once)
            self._out += rows

    def _done(self, ids: Sequence[int], rows: Sequence[int], got: NDArray[Any] | Exception) -> None:
        kind, wrong = self._verdict(rows, got)
        with self._changed:
            self._out -= len(ids)
            if wrong:
                self._faults[kind].append(wrong)
            self._changed.notify()
        lg.QuerySamplesComplete([lg.QuerySampleResponse(number, 0, 0) for number in ids])

    def _verdict(self, rows: Sequence[int], got: NDArray[Any] | Exception) -> tuple[str, str | None]:
        if isinstance(got, Exception):
            return "failed", f"{type(got).__name__}: {got}"
        try:
            return "wrong", fault(self._target.samples, rows, got)
        except Exception as error:  # an answer that is no array of numbers
            return "wrong", f"an answer cannot be read: {error}"

    def _told(self, kind: str, what: str) -> str | None:
        faults = self._faults[kind]
        return f"{len(faults)} {what.format(self.rows)}; the first: {faults[0]}" if faults else None


def _settings(schedule: Schedule) -> Any:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, SCENARIOS[schedule.scenario].kind)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = max(1, round(1e3 * schedule.seconds))
    settings.min_query_count = schedule.min_queries
    settings.schedule_rng_seed = settings.sample_index_rng_seed = schedule.seed
    expected_ns = max(1, round(1e9 / schedule.rate))
    settings.single_stream_expected_latency_ns = settings.multi_stream_expected_latency_ns = expected_ns
    settings.multi_stream_samples_per_query = SCENARIOS["multi-stream"].rows
    settings.server_target_qps = settings.offline_expected_qps = schedule.rate
    settings.server_target_latency_ns = round(1e6 * schedule.p99_ms)
    settings.server_target_latency_percentile = 0.99
    return settings


def _log_settings(folder: str) -> Any:
    settings = lg.LogSettings()
    output = lg.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = folder, False
    settings.log_output, settings.enable_trace = output, False
    return settings


def _read(log: Path) -> tuple[dict[str, Any], str | None]:
    """The values that a detailed log names, and its first error."""
    told: dict[str, Any] = {}
    complaint = None
    for line in log.read_text(encoding="utf-8").splitlines():
        if line.startswith(_PREFIX):
            entry = parse_json(line.removeprefix(_PREFIX))
            told[entry["key"]] = entry["value"]
            if entry["metadata"]["is_error"] and complaint is None:
                complaint = f"the load generator says: {entry['value']}"
    return told, complaint


def _figures(schedule: Schedule, told: Mapping[str, Any], samples: int) -> dict[str, Any]:
    if schedule.scenario == "offline":
        return {"samples_per_second": told["result_samples_per_second"], "samples": samples}
    # Of a query of several samples there are latencies of its samples too.
    whole, query = ("per_query_", "query_") if "result_mean_query_latency_ns" in told else ("", "")
    figures = {f"p{one}_ms": told[f"result_{one}.00_percentile_{whole}latency_ns"] / 1e6 for one in _PERCENTILES}
    figures |= {f"{one}_ms": told[f"result_{one}_{query}latency_ns"] / 1e6 for one in ("min", "mean", "max")}
    rate = 1e3 * SCENARIOS[schedule.scenario].rows / figures["mean_ms"]
    if schedule.scenario == "server":
        rate = told["result_completed_samples_per_sec"]
        figures |= {"target_qps": schedule.rate, "scheduled_qps": told["result_scheduled_samples_per_sec"]}
    return figures | {
        "samples_per_second": rate, "queries": told["result_query_count"], "samples": samples,
        "early_stopping": told["early_stopping_met"],
    }  # fmt: skip
