"""Looks at this machine: versions, devices, execution providers, and known ways in which they go wrong."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

from keras_resnets import __version__
from keras_resnets.extras import MissingExtraError, extra
from keras_resnets.machine import usable_cpus

_PACKAGES = (
    "numpy", "pillow", "rich", "tensorflow", "keras", "jax", "scikit-learn",
    "huggingface_hub", "safetensors", "pooch", "tf2onnx", "onnx",
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "matplotlib",
)  # fmt: skip
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")
# The oldest versions that the test suite ran with.
OLDEST = {
    "python": "3.10",
    "tensorflow": "2.18",
    "keras": "3.8",
    "tf2onnx": "1.17",
    "onnx": "1.21",
    "onnxruntime": "1.20",
}


def report(console: Console | None = None) -> list[str]:
    """Print what this machine has; returns the warnings, which are printed last."""
    out = console or Console()
    found = installed()
    table = Table("package", "version", title=f"keras-resnets {__version__}", title_justify="left")
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        table.add_row(package, found.get(package, "[dim]not installed[/dim]"))
    out.print(table)
    for line in (*_devices(), *_providers()):
        out.print(line, highlight=False)
    warnings = find_faults(found)
    for warning in warnings:
        out.print(f"[bold red]warning:[/] {warning}", highlight=False)
    if not warnings:
        out.print("no faults found")
    return warnings


def installed() -> dict[str, str]:
    """The version of each distribution that matters and is installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def find_faults(found: dict[str, str]) -> list[str]:
    """What is known to go wrong with these versions; each line says what to do."""
    faults = []
    runtimes = [name for name in _RUNTIMES if name in found]
    if len(runtimes) > 1:
        faults.append(
            f"{' and '.join(runtimes)} are installed together and overwrite each other's files: "
            f"run: pip uninstall {' '.join(runtimes)}, then install the one you want again"
        )
    for package, oldest in OLDEST.items():
        have = platform.python_version() if package == "python" else found.get(package)
        if have and _numbers(have) < _numbers(oldest):
            faults.append(f"{package} {have} is older than {oldest}, the oldest that was tested")
    return faults


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _devices() -> list[str]:
    lines = [f"CPUs of this process: {usable_cpus()}"]
    try:
        with extra("tensorflow"):
            import tensorflow as tf
    except MissingExtraError as error:
        return [*lines, f"TensorFlow devices: {error}"]
    gpus = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in tf.config.list_physical_devices("GPU")]  # fmt: skip
    return [*lines, f"TensorFlow GPUs: {', '.join(gpus) or 'none'}"]


def _providers() -> list[str]:
    try:
        from keras_resnets.serving.providers import active_providers
    except MissingExtraError as error:
        return [f"ONNX Runtime: {error}"]
    except ImportError as error:
        return [f"ONNX Runtime cannot be imported: {error}"]
    return [f"ONNX Runtime provider {name}: {state}" for name, state in active_providers().items()]
