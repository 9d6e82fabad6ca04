"""What a server counts: for Prometheus, and as the protocol's statistics extension reports it."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from keras_resnets.extras import extra

from .batcher import Answer
from .figures import Figures, families_of, total

with extra("serve"):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.core import GaugeMetricFamily

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_STAGES = ("queue", "prepare", "compute", "total")


@dataclass
class Statistics:
    """One version of a model, as Triton counts: times in nanoseconds, `inferences` in rows, `executions` in batches."""

    inferences: int = 0
    executions: int = 0
    last: int = 0  # milliseconds since 1970
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    nanoseconds: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    batches: dict[int, tuple[int, int]] = field(default_factory=dict)  # rows to count and nanoseconds

    def add(self, stage: str, seconds: float) -> None:
        """One more of a stage: "success", "fail", "queue", …"""
        self.counts[stage] += 1
        self.nanoseconds[stage] += int(seconds * 1e9)

    def to_dict(self, name: str, version: str) -> dict[str, Any]:
        """As `GET /v2/models/NAME/stats` lists it."""
        stages = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        return {
            "name": name,
            "version": version,
            "last_inference": self.last,
            "inference_count": self.inferences,
            "execution_count": self.executions,
            "inference_stats": {
                stage: {"count": self.counts[stage], "ns": self.nanoseconds[stage]}
                for stage in (*stages, "cache_hit", "cache_miss")
            },
            "batch_stats": [
                {"batch_size": rows, "compute_infer": {"count": count, "ns": nanoseconds}}
                for rows, (count, nanoseconds) in sorted(dict(self.batches).items())
            ],
        }


class Metrics:
    """All counters of a server.

    Args:
        queues: called at each scrape: (model, version, rows that wait, rows that run) of every loaded one.

    Attributes:
        before: what a process counted in whose place this one was started.
    """

    def __init__(self, queues: Callable[[], Iterable[tuple[str, str, int, int]]]) -> None:
        self.registry = CollectorRegistry()
        self._statistics: dict[tuple[str, str], Statistics] = {}
        self._lock = threading.Lock()  # batches are counted on several threads
        self._queues = queues
        self._requests = Counter(
            "keras_resnets_requests", "Answered requests", ["model", "protocol", "status"], registry=self.registry
        )
        self._rejects = Counter(
            "keras_resnets_rejects", "Requests that were not run", ["model", "cause"], registry=self.registry
        )
        self._rows = Histogram(
            "keras_resnets_batch_rows", "Rows of a batch", ["model", "version"], buckets=_ROWS, registry=self.registry
        )
        self._seconds = Histogram(
            "keras_resnets_request_seconds", "Time of a request by stage", ["model", "stage"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._ready = Gauge("keras_resnets_ready", "1 when the server takes requests", registry=self.registry)
        self._stages: dict[str, list[Any]] = {}
        self._answers: dict[tuple[str, str, int], Any] = {}
        self.before: Figures | None = None
        self.registry.register(self)

    def statistics(self, model: str, version: str) -> Statistics:
        """Those of a version of a model."""
        return self._statistics.setdefault((model, version), Statistics())

    def batch(self, model: str, version: str, rows: int, seconds: float) -> None:
        """A batch was run; called on the batcher's threads."""
        statistics = self.statistics(model, version)
        with self._lock:
            statistics.executions += 1
            count, nanoseconds = statistics.batches.get(rows, (0, 0))
            statistics.batches[rows] = count + 1, nanoseconds + int(seconds * 1e9)
        self._rows.labels(model, version).observe(rows)

    def success(self, model: str, version: str, rows: int, answer: Answer, seconds: float) -> None:
        """A request was answered after so many seconds."""
        statistics, times = self.statistics(model, version), answer.times
        statistics.inferences += rows
        statistics.last = int(time.time() * 1000)
        rest = max(0.0, seconds - times.queue - times.prepare - times.compute)
        for stage, took in (
            ("success", seconds), ("queue", times.queue), ("compute_input", times.prepare),
            ("compute_infer", times.compute), ("compute_output", rest),
        ):  # fmt: skip
            statistics.add(stage, took)
        if model not in self._stages:
            self._stages[model] = [self._seconds.labels(model, stage) for stage in _STAGES]
        for histogram, took in zip(
            self._stages[model], (times.queue, times.prepare, times.compute, seconds), strict=True
        ):
            histogram.observe(took)

    def failure(self, model: str, version: str, cause: str, seconds: float) -> None:
        """A request of a known model was not answered with numbers."""
        self.statistics(model, version).add("fail", seconds)
        self._rejects.labels(model, cause).inc()

    def answered(self, model: str, protocol: str, status: int) -> None:
        """A response left; the model is "" where the request had none."""
        key = (model, protocol, status)
        if key not in self._answers:
            self._answers[key] = self._requests.labels(model, protocol, str(status))
        self._answers[key].inc()

    def ready(self, ready: bool) -> None:
        """Whether the server takes requests."""
        self._ready.set(ready)

    def collect(self) -> Iterable[Any]:
        """Prometheus asks for the queues here."""
        waiting = GaugeMetricFamily("keras_resnets_queue_rows", "Rows that wait", labels=["model", "version"])
        running = GaugeMetricFamily("keras_resnets_running_rows", "Rows that run", labels=["model", "version"])
        for model, version, waits, runs in self._queues():
            waiting.add_metric([model, version], waits)
            running.add_metric([model, version], runs)
        return [waiting, running]

    def text(self) -> bytes:
        """Prometheus's text format."""
        return bytes(generate_latest(self.registry))

    def figures(self) -> Figures:
        """All of it as data, with what was counted before."""
        rows = [counted.to_dict(*key) for key, counted in list(self._statistics.items())]
        own = {"pid": os.getpid(), "statistics": rows, "families": families_of(self.registry)}
        return total([own, self.before]) if self.before else own
