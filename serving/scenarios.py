"""MLPerf-style scenarios of a target, each in a process of its own; they are not MLPerf results.

    echo '{"scenario": "offline", "target": {"kind": "engine", "bundle": "digits_bundle"}, "seconds": 2}' |
        python -m keras_resnets.serving.scenarios

MLPerf prescribes the data, the accuracy and runs of ten minutes. Here the load generator and the scenarios are the
same, but the network is any bundle, and its golden sample is asked for.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from numpy.typing import NDArray

from keras_resnets.bundle import BundleError

from .apart import NoAnswerError, answer_of
from .loadgen import NOTE, SCENARIOS, Outcome, Schedule, play
from .peak import highest_rate
from .providers import ProviderError
from .served import Settings
from .targets import EngineTarget, GrpcTarget, HttpTarget, Target, fault, take
from .timing import closed_loop

SECONDS = 3.0
P99_MS = 15.0  # MLPerf's bound for ResNet-50
MIN_QUERIES = 100  # fewer have no 99th percentile
_FEWEST = 10  # queries of a run with arrivals
_PROBE_SECONDS = 0.2
_PATIENCE = 60.0  # seconds
_TRIES = 3
_SEARCH = 20  # runs' time


class FaultyTargetError(RuntimeError):
    """A target that gives wrong answers, or none."""


def run_scenario(
    name: str,
    target: Target,
    *,
    seconds: float = SECONDS,
    p99_ms: float = P99_MS,
    rate: float | None = None,
    min_queries: int = MIN_QUERIES,
    search_seconds: float | None = None,
) -> dict[str, Any]:
    """Put a target under load in this process; `run_apart` does it in one that does nothing else.

    Args:
        name: "single-stream", "multi-stream", "server" or "offline".
        target: see there; it is not closed.
        seconds: that a run takes at least.
        p99_ms: "server": what 99% of the queries must keep to.
        rate: "server": queries a second. By default the highest that holds is looked for.
        min_queries: of a run; "offline": samples.
        search_seconds: that looking for the rate may take; by default that of twenty runs.

    Returns:
        scenario, target; valid, and the reason where it is not; metric: the name of the figure to report; figures, see
        `loadgen.Outcome`, none where answers were wrong or missing; seconds; note; loadgen: its version. Where a rate
        was looked for, search: the runs; and the figures say in `confirmed` whether that rate held twice.

    Raises:
        ValueError: for an unknown scenario, or arguments that are not above 0.
    """
    if name not in SCENARIOS:
        raise ValueError(f"there is no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    if min(seconds, p99_ms, min_queries, 1 if rate is None else rate) <= 0:
        raise ValueError("seconds, p99_ms, min_queries and rate must be above 0")
    if rate is not None and name != "server":
        raise ValueError(f"{name} has no rate of its own: queries come as they are answered")
    result = _result(name, target.name, seconds)
    try:
        quickest = _quickest(target, SCENARIOS[name].rows or target.rows)
        if name == "server" and rate is None:
            end = time.monotonic() + (search_seconds or _SEARCH * seconds)
            schedule = Schedule(name, 0.5 / quickest, seconds, max(min_queries, _FEWEST), p99_ms)
            return result | _searched(target, schedule, end)
        if name == "offline":
            outcome = _offline(target, Schedule(name, target.rows / quickest, seconds, min_queries))
        else:
            # No query is so much quicker than the quickest one that too few are drawn.
            schedule = Schedule(name, rate or 2 / quickest, seconds, min_queries, p99_ms)
            outcome = play(target, schedule)
    except FaultyTargetError as error:
        return result | {"reason": str(error)}
    return result | _told(name, outcome, p99_ms)


def _result(scenario: str, target: str | None, seconds: float, reason: str | None = None) -> dict[str, Any]:
    """A result that is not valid yet."""
    known = SCENARIOS.get(scenario)
    return {
        "scenario": scenario, "target": target, "valid": False, "reason": reason,
        "metric": known.metric if known else None, "figures": {}, "seconds": seconds, "note": NOTE,
        "loadgen": version("mlcommons-loadgen"),
    }  # fmt: skip


def _told(name: str, outcome: Outcome, p99_ms: float) -> dict[str, Any]:
    if outcome.reason:
        return {"reason": outcome.reason}
    if name == "server" and not outcome.holds(p99_ms):
        reason = f"p99 is {outcome.figures['p99_ms']:.1f} ms, above {p99_ms:g} ms"
        return {"reason": reason, "figures": outcome.figures}
    return {"valid": True, "figures": outcome.figures}


def _offline(target: Target, schedule: Schedule) -> Outcome:
    """All samples at once, of which there must be so many that they take the time."""
    for _ in range(_TRIES):
        outcome = play(target, schedule)
        rate = outcome.figures["samples_per_second"]
        if outcome.reason or outcome.figures["samples"] / rate >= schedule.seconds:
            break
        schedule = replace(schedule, rate=1.1 * rate)
    return outcome


def _searched(target: Target, schedule: Schedule, end: float) -> dict[str, Any]:
    """The highest rate that holds. The generator's own search for it must begin with one, and may take any time."""
    runs: list[dict[str, Any]] = []
    outcomes: dict[tuple[float, int], Outcome] = {}

    def holds(rate: float, again: int) -> bool:
        outcome = outcomes[rate, again] = play(target, replace(schedule, rate=rate, seed=again))  # other arrivals
        held = outcome.holds(schedule.p99_ms)
        known = {key: outcome.figures[key] for key in ("target_qps", "p99_ms", "queries")}
        runs.append(known | {"held": held, "failed": outcome.failed})
        if outcome.wrong:
            raise FaultyTargetError(outcome.wrong)
        return held

    def in_time(rate: float, tries: int) -> bool:
        return time.monotonic() + tries * max(schedule.seconds, schedule.min_queries / rate) <= end

    peak = highest_rate(holds, schedule.rate, in_time)
    if peak.rate is None:
        return {"reason": _why_none(runs, schedule.p99_ms), "search": runs}
    outcome = outcomes[peak.rate, int(peak.confirmed)]
    return {"valid": True, "figures": {**outcome.figures, "confirmed": peak.confirmed}, "search": runs}


def _why_none(runs: Sequence[Mapping[str, Any]], p99_ms: float) -> str:
    if not runs:
        return "there was no time to look for a rate"
    lowest = min(runs, key=lambda run: run["target_qps"])
    twice = " twice" if any(run["held"] for run in runs) else ""
    failed = f"; there, {lowest['failed']}" if lowest["failed"] else ""
    return f"no rate held p99 ≤ {p99_ms:g} ms{twice}, down to {lowest['target_qps']:.3g} a second{failed}"


def _quickest(target: Target, rows: int) -> float:
    """Seconds of the quickest of some requests, one after the other; they warm the target too.

    Raises:
        FaultyTargetError: when one of them fails or is answered wrongly.
    """
    samples = [number % len(target.samples) for number in range(min(rows, target.rows))]
    tensor = take(target.samples, samples)

    def call() -> None:
        if wrong := fault(target.samples, samples, _answer(target, tensor)):
            raise FaultyTargetError(f"before any load, {wrong}")

    return float(closed_loop(call, _PROBE_SECONDS).min())


def _answer(target: Target, tensor: NDArray[Any]) -> NDArray[Any]:
    got: list[NDArray[Any] | Exception] = []
    there = threading.Event()

    def done(answer: NDArray[Any] | Exception) -> None:
        got.append(answer)
        there.set()

    target.ask(tensor, done)
    if not there.wait(_PATIENCE):
        raise FaultyTargetError(f"before any load, a request had no answer within {_PATIENCE:.0f} s")
    if isinstance(got[0], Exception):
        raise FaultyTargetError(f"before any load, a request failed: {type(got[0]).__name__}: {got[0]}")
    return got[0]


def _engine(bundle: str, **settings: Any) -> Target:
    return EngineTarget(bundle, Settings(**settings))


_TARGETS: Mapping[str, Callable[..., Target]] = {"engine": _engine, "http": HttpTarget, "grpc": GrpcTarget}


def run_apart(request: Mapping[str, Any], timeout: float = 1800.0) -> dict[str, Any]:
    """Run a scenario in a process of its own, where nothing else takes time from it.

    Args:
        request: scenario; target: its kind ("engine", "http" or "grpc") and arguments (bundle, and those of `Settings`,
            `HttpTarget` or `GrpcTarget`); and those of `run_scenario`.
        timeout: seconds that it may take.

    Returns:
        What `run_scenario` gives; without figures, and with the reason, when the process failed.
    """
    program = [sys.executable, "-m", "keras_resnets.serving.scenarios"]
    try:
        return answer_of(program, request, timeout)
    except NoAnswerError as error:
        return _refused(request, str(error))


def _refused(request: Mapping[str, Any], reason: str) -> dict[str, Any]:
    return _result(str(request.get("scenario")), None, request.get("seconds", SECONDS), reason)


def main() -> int:
    """Read a request, print what came of it; see the module's docstring."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # KeyboardInterrupt could not pass the load generator's C++
    request = json.load(sys.stdin)
    arguments = dict(request)
    try:
        name, described = arguments.pop("scenario"), dict(arguments.pop("target"))
        target = _TARGETS[described.pop("kind")](**described)
        try:
            result = run_scenario(name, target, **arguments)
        finally:
            target.close()
    except (BundleError, ProviderError, KeyError, TypeError, ValueError) as error:
        result = _refused(request, f"{type(error).__name__}: {error}")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
