"""Runs the contenders of a benchmark in turn, each run in a process of its own, and writes the result file."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
Row = dict[str, float]


class RunError(RuntimeError):
    """Why a run gave no figures."""


class Limits(NamedTuple):
    """What a run may take, imports and preparations included."""

    seconds: float
    memory_gb: float


class Peak(NamedTuple):
    """What a call took: time, the process's highest resident size meanwhile, and by how much it grew to that, in MB."""

    seconds: float
    peak_mb: float
    added_mb: float


def in_turn(
    commands: Mapping[str, Sequence[str]],
    rounds: int,
    say: Callable[[str], None],
    limits: Limits | None = None,
    unfinished: dict[str, str] | None = None,
) -> dict[str, list[Row]]:
    """Run each contender's command, which prints a row of figures as JSON, A B A B.

    Args:
        commands: of each contender.
        rounds: runs of each.
        say: called with what is running.
        limits: of each run.
        unfinished: gets contenders that failed or went beyond a limit, and why; they are not run again.

    Returns:
        The rows of each contender that always finished.

    Raises:
        RunError: without `unfinished`, when a run fails.
    """
    rows: dict[str, list[Row]] = {name: [] for name in commands}
    for number in range(rounds):
        for name in list(rows):
            say(f"round {number + 1} of {rounds}: {name}")
            try:
                rows[name].append(run(commands[name], limits))
            except RunError as error:
                if unfinished is None:
                    raise
                unfinished[name] = str(error)
                del rows[name]
    return rows


def run(command: Sequence[str], limits: Limits | None = None) -> Row:
    """The row that a command prints in its last line.

    Raises:
        RunError: when it fails, or goes beyond a limit; it is killed then.
    """
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        while True:
            try:
                printed, complaint = child.communicate(timeout=0.1 if limits else None)
                break
            except subprocess.TimeoutExpired:
                if limits and (why := _beyond(limits, child.pid, time.monotonic() - began)):
                    child.kill()
                    raise RunError(why) from None
    if child.returncode < 0:
        raise RunError(f"killed by {signal.Signals(-child.returncode).name}")
    if child.returncode:
        raise RunError(last_words(complaint))
    return json.loads(printed.splitlines()[-1])


def last_words(complaint: str) -> str:
    """The exception's own line in what a process printed, which may go on behind it."""
    lines = [line for line in complaint.splitlines() if line.strip()] or ["failed without a message"]
    return next((line for line in reversed(lines) if re.match(r"[\w.<>]+(Error|Exception|Exit): ", line)), lines[-1])


def _beyond(limits: Limits, process: int, seconds: float) -> str:
    if seconds > limits.seconds:
        return f"killed after {limits.seconds:.0f} s"
    if memory_mb("VmRSS", process) > limits.memory_gb * 1024:
        return f"killed at {limits.memory_gb:g} GB of memory, after {seconds:.0f} s"
    return ""


def measured(call: Callable[[], object]) -> Peak:
    """Time a call and watch the memory of this process."""
    # Where a container forbids this, the highest size may date from before: what is added is then an upper bound.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before, began = memory_mb("VmRSS"), time.perf_counter()
    call()
    seconds, peak = time.perf_counter() - began, memory_mb("VmHWM")
    return Peak(seconds, peak, peak - before)


def memory_mb(what: str, process: int | str = "self") -> float:
    """A process's resident size (VmRSS) or the highest one (VmHWM), in MB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(what)), 0.0)


def medians(rows: dict[str, list[Row]]) -> dict[str, Row]:
    """The median of each figure of each contender."""
    return {name: {key: statistics.median(row[key] for row in runs) for key in runs[0]} for name, runs in rows.items()}


def cores() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def write_result(name: str, packages: Sequence[str], rows: dict[str, list[Row]], **more: Any) -> Path:
    """Write conditions, medians and runs; `name` says the conditions in short."""
    conditions = {
        "machine": f"{platform.system()} {platform.machine()}, {cores()} cores",
        "processor": processor(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "order": "in turn, each run in a process of its own",
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(
        json.dumps({"conditions": conditions, "median": medians(rows), **more, "runs": rows}, indent=2) + "\n"
    )
    return file


def processor() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
