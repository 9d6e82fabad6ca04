"""Turns a missing optional dependency into the pip command that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# Import names whose absence an extra mends; anything else that is missing is a fault of its own.
_MODULES = {
    "pretrained": ("huggingface_hub", "safetensors", "pooch"),
    "tensorflow": ("tensorflow", "keras", "sklearn", "h5py", "huggingface_hub", "safetensors", "pooch"),
    "export": ("tensorflow", "keras", "tf2onnx", "onnx"),
    "serve": (
        "onnxruntime",
        "orjson",
        "prometheus_client",
        "starlette",
        "uvicorn",
        "python_multipart",
        "grpc",
        "google",
        "urllib3",
    ),
    "serve-ray": ("ray",),
    "bench": ("matplotlib", "mlperf_loadgen"),
    "study": ("matplotlib",),
}
_HINTS = {
    "serve": " (or [serve-gpu] for NVIDIA GPUs, [serve-openvino] for Intel hardware; install only one)",
}


class MissingExtraError(ImportError):
    """A part of the package needs an extra that is not installed; the message has the pip line."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Wrap the imports that the extra `name` provides.

    Raises:
        MissingExtraError: when one of them is not installed.
    """
    try:
        yield
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _MODULES[name]:
            raise
        raise MissingExtraError(
            f'{missing} is not installed. Run: pip install "keras-resnets[{name}]"{_HINTS.get(name, "")}',
            name=error.name,
        ) from error
