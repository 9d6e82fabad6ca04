"""Times calls, one after the other or on a schedule, and says what the times show, and what memory they took.

It stands alone: a Python without this package loads it by its path.

In a closed loop the next call waits for the last answer, so a slow call delays others that nobody counts. On a schedule
each call counts from the moment that it was due: one that had to wait for a slow call before it says so (Tene, "How NOT
to Measure Latency", calls the mistake coordinated omission).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]
PERCENTILES = (50, 90, 95, 99)
_LEAST = 5  # calls, however long they take
_QUANTILES = 101
_YARDSTICK = 384  # rows and columns of the matrices


def closed_loop(
    call: Callable[[], object], seconds: float, clock: Callable[[], float] = time.perf_counter, least: int = _LEAST
) -> Seconds:
    """The time of each call, one after the other for so many seconds, and `least` calls."""
    times: list[float] = []
    end = clock() + seconds
    while True:
        began = clock()
        call()
        ended = clock()
        times.append(ended - began)
        if ended >= end and len(times) >= least:
            return np.array(times)


def at_once(calls: Sequence[Callable[[], object]], seconds: float) -> tuple[Seconds, float]:
    """Closed loops on threads of their own: the times of all calls, and the calls a second while all were running.

    Raises:
        Exception: what one of the calls raised.
    """
    if len(calls) == 1:
        times = closed_loop(calls[0], seconds)
        return times, len(times) / float(times.sum())
    spans: list[list[tuple[float, float]]] = [[] for _ in calls]
    errors: list[Exception] = []
    start = threading.Barrier(len(calls))

    def work(number: int) -> None:
        try:
            start.wait()
            end = time.perf_counter() + seconds
            while (began := time.perf_counter()) < end or len(spans[number]) < _LEAST:
                calls[number]()
                spans[number].append((began, time.perf_counter()))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    # Before the last thread began and after the first one ended, fewer calls share the machine.
    first, last = max(span[0][0] for span in spans), min(span[-1][1] for span in spans)
    inside = [(max(began, first), min(ended, last), ended - began) for span in spans for began, ended in span]
    done = sum(max(0.0, ended - began) / full for began, ended, full in inside)
    return np.array([full for *_, full in inside]), done / (last - first)


def on_schedule(
    call: Callable[[], object],
    due: Sequence[float],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Seconds:
    """The seconds from when each call was due, by its schedule, to its answer; calls are one at a time.

    Args:
        call: what is timed.
        due: seconds from now, ascending; see `poisson`.
        clock, sleep: of time.
    """
    began = clock()
    latencies = []
    for moment in due:
        if (wait := began + moment - clock()) > 0:
            sleep(wait)
        call()
        latencies.append(clock() - began - moment)
    return np.array(latencies)


def poisson(rate: float, seconds: float, seed: int = 0) -> Seconds:
    """Moments of a Poisson process of so many a second."""
    chance = np.random.default_rng(seed)
    gaps = chance.exponential(1 / rate, max(16, int(rate * seconds * 1.5) + 64))
    moments = np.cumsum(gaps)
    return moments[moments < seconds]


def summary(times: Seconds, batch: int, calls_per_second: float | None = None) -> dict[str, Any]:
    """Percentiles in ms (the value that so many per cent of calls do not exceed), and images/s.

    Args:
        times: seconds of each call.
        batch: images of a call.
        calls_per_second: where calls ran at once; by default as if one followed the other.
    """
    ms = 1e3 * times
    row: dict[str, Any] = {
        f"p{percent}_ms": float(np.percentile(ms, percent, method="inverted_cdf")) for percent in PERCENTILES
    }
    rate = len(times) / float(times.sum()) if calls_per_second is None else calls_per_second
    return row | {"mean_ms": float(ms.mean()), "images_per_second": batch * rate, "calls": len(times)}


def quantiles_ms(times: Seconds) -> list[float]:
    """The 0th, 1st, … 100th percentile in ms: enough to draw the distribution."""
    return [round(float(value), 5) for value in np.quantile(1e3 * times, np.linspace(0, 1, _QUANTILES))]


def yardstick_ms() -> float:
    """ms of a fixed product of matrices: by it one tells whether the machine itself was slower."""
    matrix = np.random.default_rng(0).normal(size=(_YARDSTICK, _YARDSTICK)).astype(np.float32)
    return float(1e3 * np.median(closed_loop(lambda: matrix @ matrix, 0.05)))


def memory_mb(what: str = "VmHWM") -> float:
    """This process's highest resident size, or the present one (VmRSS), in MB; 0 where Linux does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) / 1024
    return 0.0
