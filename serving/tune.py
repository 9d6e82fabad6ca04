"""Finds the settings that a bundle is served best with on this machine, by measurement, and confirms them served.

The search goes from what is cheap to measure to what counts. Engines first, each in a process of its own: every
provider and precision that is allowed, with few batches; what is far behind is dropped, and the rest is measured with
more batches and other divisions of the CPUs. The best of these are then served, and asked over HTTP; what serves best
wins.
"""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keras_resnets.bundle import Bundle
from keras_resnets.machine import usable_cpus

from .benchmark import MEASURED, REFUSED, as_result, contender, once
from .conditions import conditions
from .contender import Configuration
from .providers import ON_GPU, active_providers
from .scenarios import run_apart
from .tuned import Tuned, settings_text

TARGETS = ("latency", "throughput")
SERVED = "tuned"  # what the server calls the bundle
_FEW, _MANY = (1, 8), (2, 4, 16, 32)  # batches, first and later
_BEHIND = 0.7  # of the best: what is slower in the first round does not come back
_GAIN = 1.02  # that a larger batch must bring
_FINALISTS = 3
_DELAYS_MS = (2.0, 5.0)  # queue delays that are tried beside none
_ENGINE_SECONDS, _SERVED_SECONDS = 1.0, 3.0
_START_SECONDS = 120.0
_SEARCH_SECONDS = 60.0  # for the highest rate that keeps the bound


class TuneError(ValueError):
    """Nothing may be used, or nothing does what is wanted."""


@dataclass(frozen=True)
class Goal:
    """What is wanted.

    Args:
        target: "latency", of one request alone, or "throughput", images/s.
        p99_ms: what 99 of 100 requests must not exceed, or None.
        accuracy_drop: percentage points that a lower precision may lose beside float32: of top-1 where the bundle knows
            it, otherwise of the images on which both agree, which is never less.

    Raises:
        ValueError: for another target, or a number below 0.
    """

    target: str = "throughput"
    p99_ms: float | None = None
    accuracy_drop: float = 0.5

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"the target is {' or '.join(TARGETS)}, not {self.target!r}")
        if self.p99_ms is not None and self.p99_ms <= 0:
            raise ValueError(f"the bound of the 99th percentile must be more than 0 ms, not {self.p99_ms:g}")
        if not self.accuracy_drop >= 0:  # NaN is not either
            raise ValueError(f"the accuracy drop is in percentage points from 0, not {self.accuracy_drop:g}")


@dataclass
class _Search:
    """What was measured so far."""

    bundle: Path
    goal: Goal
    say: Callable[[str], None]
    end: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    served: list[dict[str, Any]] = field(default_factory=list)

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def measure(self, what: Configuration) -> dict[str, Any] | None:
        """The row of a configuration; None where it was refused, or there is no time."""
        one = contender(what)
        for row in self.rows:
            if row["name"] == one.name:
                return row if row["state"] == MEASURED else None
        if self.left <= 0:
            self.dropped.append(f"{one.name}: no time left")
            return None
        self.say(one.name)
        row = once(one, _ENGINE_SECONDS)
        self.rows.append(row)
        if row["state"] == REFUSED:
            self.dropped.append(f"{one.name}: {row['reason']}")
            return None
        return row

    def score(self, row: Mapping[str, Any]) -> float:
        """The more the better."""
        figures = row["end_to_end"]
        return float(figures["images_per_second"] if self.goal.target == "throughput" else 1e3 / figures["p50_ms"])

    def keeps_bound(self, row: Mapping[str, Any]) -> bool:
        """Whether one batch alone may be answered in time."""
        bound = self.goal.p99_ms
        return bound is None or bool(row["end_to_end"]["p99_ms"] <= bound)


def tune(
    bundle: str | Path,
    goal: Goal,
    *,
    providers: Sequence[str] | None = None,
    budget: float = 600.0,
    say: Callable[[str], None] = lambda what: None,
) -> tuple[Tuned, dict[str, Any]]:
    """The best settings, and all that was measured, as a result of `benchmark.run` with `served` and `dropped` too.

    Args:
        bundle: its folder.
        goal: what is wanted.
        providers: that may be used; by default all that are active.
        budget: seconds. What was found until then is served and told; the last measurement may end a little later.
        say: called with what is being measured.

    Raises:
        TuneError: when nothing may be used, or nothing keeps the bound.
        BundleError: when the bundle cannot be read.
    """
    folder = Path(bundle)
    allowed, dropped = admissible(Bundle.open(folder), goal, providers)
    search = _Search(folder, goal, say, time.monotonic() + budget, dropped=dropped)
    baseline = _baseline(search)
    finalists = _engines(search, allowed)
    if not finalists:
        raise TuneError("no configuration gave figures: " + "; ".join(search.dropped))
    best = _serve_all(search, finalists)
    evidence = {**best["figures"], "onnxruntime_defaults_images_per_second": baseline}
    if baseline and "images_per_second" in evidence:
        evidence["times_the_defaults"] = evidence["images_per_second"] / baseline
    found = Tuned(best["settings"], goal.target, evidence, datetime.date.today().isoformat())
    known = conditions() | {"seconds": _ENGINE_SECONDS, "rounds": 1}
    return found, as_result(search.rows, known, served=search.served, dropped=search.dropped)


def admissible(bundle: Bundle, goal: Goal, asked: Sequence[str] | None) -> tuple[list[tuple[str, str]], list[str]]:
    """The pairs of provider and precision that may be used, and why others may not.

    Raises:
        TuneError: when none may.
    """
    state = active_providers()
    pairs, dropped = [], []
    for provider in asked or [name for name, told in state.items() if told == "active"]:
        if state.get(provider) != "active":
            raise TuneError(f"the {provider} provider is {state.get(provider, 'not in this onnxruntime')}")
        for variant in bundle.manifest.variants:
            lost = points_lost(variant.quality)
            if provider not in variant.providers:
                dropped.append(f"{variant.precision} on {provider}: not meant for it")
            elif lost > goal.accuracy_drop:
                dropped.append(
                    f"{variant.precision}: loses up to {lost:.2g} points, and {goal.accuracy_drop:g} may be lost"
                )
            else:
                pairs.append((provider, variant.precision))
    if not pairs:
        raise TuneError("nothing may be used: " + "; ".join(dropped))
    return pairs, dropped


def points_lost(quality: Mapping[str, Any] | None) -> float:
    """Percentage points that a precision loses at most beside float32; see `Goal`."""
    if quality is None:
        return 0.0
    if quality.get("top1") is not None and quality.get("top1_float32") is not None:
        return max(0.0, 100 * (float(quality["top1_float32"]) - float(quality["top1"])))
    return 100 * (1 - float(quality["agreement"]))


def _baseline(search: _Search) -> float | None:
    """Images/s of float32 in a session as onnxruntime opens it, of the better batch."""
    source = str(search.bundle)
    rows = [search.measure(Configuration(source, "float32", batch=batch)) for batch in _FEW]
    rates = [row["end_to_end"]["images_per_second"] for row in rows if row]
    return max(rates, default=None)


def _engines(search: _Search, allowed: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The best rows, the best first."""
    batches = _FEW if search.goal.target == "throughput" else (1,)
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in allowed:
        rows = [row for batch in batches if (row := _measured(search, pair, batch)) and search.keeps_bound(row)]
        if rows:
            first[pair] = max(rows, key=search.score)
    best = max(map(search.score, first.values()), default=0.0)
    found = []
    # The best pair first, in case time runs out.
    for pair, row in sorted(first.items(), key=lambda item: search.score(item[1]), reverse=True):
        if search.score(row) < _BEHIND * best:
            search.dropped.append(
                f"{pair[1]} on {pair[0]}: {search.score(row) / best:.0%} of the best after two batches"
            )
            continue
        found += [row, *_more(search, pair, row)]
    kept = {row["name"]: row for row in found if search.keeps_bound(row)}
    return sorted(kept.values(), key=search.score, reverse=True)[:_FINALISTS]


def _measured(
    search: _Search,
    pair: tuple[str, str],
    batch: int,
    workers: int = 1,
    threads: int | None = None,
    graphs: bool = False,
) -> dict[str, Any] | None:
    provider, precision = pair
    # The server's threads do not spin.
    what = Configuration(
        str(search.bundle), precision, provider, batch, threads, workers, spin=False, cuda_graphs=graphs
    )
    return search.measure(what)


def _more(search: _Search, pair: tuple[str, str], best: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Other batches, divisions of the CPUs, and CUDA graphs of a pair."""
    cpus, on_gpu = usable_cpus(), pair[0] in ON_GPU
    if search.goal.target == "latency":
        for threads in [] if on_gpu else sorted({max(1, cpus // 2)} - {cpus}):
            if row := _measured(search, pair, 1, threads=threads):
                yield row
        if on_gpu and (row := _measured(search, pair, 1, graphs=True)):
            yield row
        return
    for workers, each in [(1, cpus)] if on_gpu else _divisions(cpus):
        last = 0.0
        for batch in sorted({*_FEW, *_MANY}):
            row = _measured(search, pair, batch, workers, each, graphs=on_gpu)
            if row is None or not search.keeps_bound(row):
                break
            yield row
            if batch >= best["batch"] and search.score(row) < _GAIN * last:
                break
            last = max(last, search.score(row))


def _divisions(cpus: int) -> list[tuple[int, int]]:
    """Workers and threads of each: all CPUs for one batch, a CPU for each, and between."""
    return sorted({(1, cpus), (cpus, 1), *([(2, cpus // 2)] if cpus >= 4 else [])})


def _serve_all(search: _Search, finalists: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best of the finalists as they are served.

    Raises:
        TuneError: when none keeps the bound.
    """
    for row in finalists:
        _serve(search, {
            "provider": row["provider"], "precision": row["precision"], "workers": row["workers"],
            "threads": row["threads"], "max_batch": row["batch"],
            "queue_delay": 0.0, "cuda_graphs": row["cuda_graphs"],
        })  # fmt: skip
    best = _best_served(search)
    if best and search.goal.target == "throughput" and best["settings"]["max_batch"] > 1:
        for delay in _DELAYS_MS:
            _serve(search, {**best["settings"], "queue_delay": delay / 1e3})
    best = _best_served(search)
    if best is None:
        reasons = "; ".join(str(row["reason"]) for row in search.served)
        raise TuneError(f"nothing that was served does what is wanted: {reasons}")
    return best


def _best_served(search: _Search) -> dict[str, Any] | None:
    """The best; of those that hardly differ, the one that was tried first: the best engine, and no delay."""
    best: dict[str, Any] | None = None
    for row in search.served:
        if row["valid"] and (best is None or _served_score(search, row) > _GAIN * _served_score(search, best)):
            best = row
    return best


def _served_score(search: _Search, row: Mapping[str, Any]) -> float:
    figures = row["figures"]
    throughput = search.goal.target == "throughput"
    return float(figures["images_per_second"] if throughput else 1e3 / figures["p50_ms"])


def _serve(search: _Search, settings: dict[str, Any]) -> None:
    """Serve the bundle, and ask it over HTTP as the goal wants."""
    if search.left <= 0 and any(row["valid"] for row in search.served):
        search.dropped.append(f"served with {settings_text(settings)}: no time left")
        return
    goal = search.goal
    name = "single-stream" if goal.target == "latency" else "offline" if goal.p99_ms is None else "server"
    search.say(f"served: {settings_text(settings)}")
    request: dict[str, Any] = {"scenario": name, "seconds": _SERVED_SECONDS}
    if goal.p99_ms is not None:
        request |= {"p99_ms": goal.p99_ms, "search_seconds": max(15.0, min(_SEARCH_SECONDS, search.left))}
    try:
        with serving(search.bundle, settings) as url:
            kind = {"kind": "http", "bundle": str(search.bundle), "precision": settings["precision"], "url": url}
            told = run_apart({**request, "target": {**kind, "model": SERVED}})
    except TuneError as error:
        told = {"valid": False, "reason": str(error), "figures": {}}
    figures = {key: value for key, value in told["figures"].items() if isinstance(value, float | int)}
    if "samples_per_second" in figures:
        figures["images_per_second"] = figures.pop("samples_per_second")
    valid, reason = bool(told["valid"]), told["reason"]
    if valid and goal.p99_ms is not None and figures.get("p99_ms", 0.0) > goal.p99_ms:
        valid, reason = False, f"its 99th percentile is {figures['p99_ms']:.3g} ms, and the bound {goal.p99_ms:g}"
    search.served.append({
        "scenario": name, "settings": settings, "valid": valid, "reason": reason, "figures": figures
    })  # fmt: skip


@contextmanager
def serving(bundle: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """The server with these settings, in a process of its own; gives its URL once it is ready. The bundle is called
    `SERVED` there.

    Raises:
        TuneError: when it does not start.
    """
    options = {
        "provider": settings["provider"], "precision": settings["precision"], "workers": settings["workers"],
        "threads": settings["threads"], "max-batch": settings["max_batch"], "port": 0,
        "queue-delay": 1e3 * settings["queue_delay"],
    }  # fmt: skip
    command = [sys.executable, "-m", "keras_resnets.cli", "serve", f"{SERVED}={bundle.resolve()}", "--no-tuned"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command += ["--cuda-graphs"] * bool(settings["cuda_graphs"])
    with tempfile.NamedTemporaryFile() as file:
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        with subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
            try:
                log = Path(file.name)
                url = _awaited(log, process, r"listening on (\S+),")
                _awaited(log, process, r"(ready after)")
                yield url
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()


def _awaited(log: Path, process: subprocess.Popen[bytes], pattern: str) -> str:
    """What a pattern finds in a server's log, once it is there."""
    end = time.monotonic() + _START_SECONDS
    while not (match := re.search(pattern, log.read_text(errors="replace"))):
        if process.poll() is not None or time.monotonic() > end:
            lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise TuneError(f"the server did not start: {lines[-1]}")
        time.sleep(0.05)
    return match.group(1)
