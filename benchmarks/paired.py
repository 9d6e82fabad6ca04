"""Runs the contenders of a benchmark in turn, each run in a process of its own, and writes the result file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, float]


def in_turn(
    script: str, contenders: Sequence[str], arguments: Sequence[str], rounds: int, say: Callable[[str], None]
) -> dict[str, list[Row]]:
    """Call `script --measure CONTENDER arguments`, which prints a row of figures as JSON, A B A B.

    Args:
        script: path of the benchmark.
        contenders: what is compared.
        arguments: further ones of the script.
        rounds: runs of each.
        say: called with what is running.
    """
    rows: dict[str, list[Row]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in contenders:
            say(f"round {number + 1} of {rounds}: {name}")
            command = [sys.executable, script, "--measure", name, *arguments]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            rows[name].append(json.loads(done.stdout.splitlines()[-1]))
    return rows


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
