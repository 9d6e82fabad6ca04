"""What this machine lets the process have: processors, and a folder for what can be made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """The folder of this package in the user's cache."""
    folders = {
        "win32": os.environ.get("LOCALAPPDATA") or "~/AppData/Local",
        "darwin": "~/Library/Caches",
    }
    usual = folders.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("KERAS_RESNETS_CACHE") or usual).expanduser() / "keras_resnets"
