"""What a figure was measured on: processor and its limits, GPU, versions; and whether two machines are one."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from keras_resnets.machine import usable_cpus

# Of these depends which kernels run.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")
_SAME = (
    "processor",
    "flags",
    "usable_cpus",
    "gpu",
    "driver",
    "onnxruntime",
    "distribution",
)  # what makes two machines one
_EVERY = 0.1  # seconds between looks at the GPU


def conditions() -> dict[str, Any]:
    """Everything here that figures depend on and that does not change while they are taken."""
    info = _cpuinfo()
    listed = next((info[key].split() for key in ("flags", "Features") if key in info), [])
    gpu = _gpu()
    return {
        "system": f"{platform.system()} {platform.release().partition('-')[0]}, {platform.machine()}",
        "processor": info.get("model name", platform.processor() or "unknown"),
        "sockets": int(info["sockets"]),
        "cores": int(info["cores"]),
        "logical_cpus": os.cpu_count(),
        "usable_cpus": usable_cpus(),  # by affinity and the container's quota
        "flags": [flag for flag in _FLAGS if flag in listed],
        "memory_gb": round(_memory_gb(), 1),
        "governor": _line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **_runtime(),
        "numpy": version("numpy"),
        "keras_resnets": version("keras-resnets"),
        **(gpu or {"gpu": None, "driver": None}),
    }


def fingerprint(known: dict[str, Any]) -> str:
    """A name for a machine on which figures would be the same, from its `conditions`."""
    text = json.dumps({name: known.get(name) for name in _SAME}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What makes figures of two `conditions` not comparable, for people."""
    return [f"{name}: {one.get(name)} and {other.get(name)}" for name in _SAME if one.get(name) != other.get(name)]


@contextmanager
def watched_gpu() -> Iterator[dict[str, float]]:
    """Yields a dictionary that, afterwards, holds what NVML saw of the first GPU meanwhile, if there is one."""
    seen: dict[str, float] = {}
    nvml = _nvml()
    if nvml is None:
        yield seen
        return
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    samples: list[tuple[float, float, float, float]] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_EVERY):
            with suppress(nvml.NVMLError):
                samples.append((
                    nvml.nvmlDeviceGetPowerUsage(device) / 1e3,
                    float(nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM)),
                    float(nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU)),
                    nvml.nvmlDeviceGetMemoryInfo(device).used / 2**20,
                ))  # fmt: skip

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()
        nvml.nvmlShutdown()
        if samples:
            power, clock, heat, memory = zip(*samples, strict=True)
            seen |= {
                "power_w": sum(power) / len(power),
                "sm_clock_mhz": sum(clock) / len(clock),
                "temperature_c": max(heat),
                "gpu_memory_mb": max(memory),
            }


def _nvml() -> Any:
    """NVIDIA's management library, started; None where it, its Python package or a GPU is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml if pynvml.nvmlDeviceGetCount() else None
    except Exception:  # its errors are its own, and only tell that there is nothing to watch
        return None


def _gpu() -> dict[str, Any] | None:
    nvml = _nvml()
    if nvml is None:
        return None
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    known = {
        "gpu": _text(nvml.nvmlDeviceGetName(device)),
        "gpus": nvml.nvmlDeviceGetCount(),
        "driver": _text(nvml.nvmlSystemGetDriverVersion()),
        "gpu_memory_gb": round(nvml.nvmlDeviceGetMemoryInfo(device).total / 2**30, 1),
    }
    with suppress(nvml.NVMLError):
        known["power_limit_w"] = nvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1e3
    nvml.nvmlShutdown()
    return known


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _runtime() -> dict[str, Any]:
    """onnxruntime's version and which distribution it is: three share one import name."""
    try:
        import onnxruntime
    except ImportError:
        return {"onnxruntime": None, "distribution": None}
    folder = Path(onnxruntime.__file__).parent.parent.resolve()
    names = (item.name for item in distributions(path=[str(folder)]) if item.name.startswith("onnxruntime"))
    return {"onnxruntime": onnxruntime.__version__, "distribution": ", ".join(sorted(set(names)))}


def _cpuinfo() -> dict[str, str]:
    """Linux's words for the first CPU, with how many sockets and cores there are."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {"sockets": "1", "cores": str(os.cpu_count() or 1)}
    blocks = [dict(_field(line) for line in block.splitlines() if ":" in line) for block in text.split("\n\n")]
    blocks = [block for block in blocks if block]
    sockets = {block.get("physical id", "0") for block in blocks}
    cores = {(block.get("physical id", "0"), block.get("core id", str(i))) for i, block in enumerate(blocks)}
    return {**blocks[0], "sockets": str(len(sockets)), "cores": str(len(cores))}


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _memory_gb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return 0.0


def _line(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None


def busy() -> float:
    """The share of the machine's CPU time that somebody used in the last half second: 0 on a quiet machine."""
    before = _cpu_times()
    time.sleep(0.5)
    after = _cpu_times()
    spent = sum(after) - sum(before)
    # The fourth and fifth columns of /proc/stat are idle, and idle while waiting for a disk.
    return 1 - (sum(after[3:5]) - sum(before[3:5])) / spent if spent else 0.0


def _cpu_times() -> list[int]:
    try:
        return [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return []
