"""What this machine lets a process have: processors, memory, and a folder for what can be made again."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that this process may run on, and that its container has time of."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cpus, _cpu_quota(cgroup))))


def _cpu_quota(cgroup: Path) -> float:
    """The CPUs' worth of time that Linux's control group grants, in its second or first version."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return math.inf
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (ValueError, ZeroDivisionError):  # "max"
        return math.inf


def cache_folder() -> Path:
    """The folder of this package in the user's cache."""
    folders = {
        "win32": os.environ.get("LOCALAPPDATA") or "~/AppData/Local",
        "darwin": "~/Library/Caches",
    }
    usual = folders.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("KERAS_RESNETS_CACHE") or usual).expanduser() / "keras_resnets"


def memory_mb(what: str = "VmHWM", process: int | str = "self") -> float:
    """A process's highest resident size, or the present one (VmRSS), in MB; 0 when it has ended or Linux is not there.

    Not getrusage's, which a process takes over from the one that starts it. (serving/timing.py, which must stand
    alone, has its own.)
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:")), 0.0)
