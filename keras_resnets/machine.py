"""What this machine lets the process have: processors, and a folder for what can be made again."""

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
