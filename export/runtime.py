"""Runs ONNX graphs while an export is made: on any provider that is active here, with any tensor as an output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.bundle import PROVIDERS
from keras_resnets.extras import extra

from .trace import INPUT

with extra("export"):
    import onnx
with extra("serve"):
    import onnxruntime

# TF32 has ten bits of mantissa: the comparison is of float32.
_OPTIONS = {"cuda": {"use_tf32": "0"}, "tensorrt": {"trt_fp16_enable": "0"}}


def open_session(file: Path, provider: str = "cpu", tensors: Sequence[str] = ()) -> Any:
    """An onnxruntime.InferenceSession on one provider, optimized at most EXTENDED as bundles are shipped.

    Args:
        file: the graph.
        provider: of `PROVIDERS`.
        tensors: further ones of its tensors that it shall give.

    Raises:
        RuntimeError: when the provider is not active.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    if provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    name = PROVIDERS[provider]
    source: str | bytes = str(file)
    if tensors:
        source = _with_outputs(file, tensors)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    session = onnxruntime.InferenceSession(source, options, providers=[(name, _OPTIONS.get(provider, {}))])
    if session.get_providers()[0] != name:
        raise RuntimeError(f"onnxruntime activated {session.get_providers()}")
    return session


def active_providers(file: Path) -> tuple[str, ...]:
    """The CPU, and what else this onnxruntime has and opens the file on, in short: "cpu", "cuda", …"""
    found = ["cpu"]  # every onnxruntime has it, and who runs the file on it learns whether that opens
    for short, name in PROVIDERS.items():
        if short != "cpu" and name in onnxruntime.get_available_providers():
            try:
                open_session(file, short)
                found.append(short)
            except Exception:  # onnxruntime's share no base but that; what is installed need not be active
                continue
    return tuple(found)


def run_tensors(file: Path, tensors: Sequence[str], images: NDArray[Any]) -> list[NDArray[Any]]:
    """The values of a graph's tensors for its input, on the CPU."""
    return open_session(file, tensors=tensors).run(list(tensors), {INPUT: images})


def _with_outputs(file: Path, tensors: Sequence[str]) -> bytes:
    proto = onnx.load(file, load_external_data=False)
    known = {item.name for item in proto.graph.output}
    more = [name for name in tensors if name not in known]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in more)
    return proto.SerializeToString()


def run_all(file: Path, batches: Iterator[NDArray[Any]]) -> NDArray[np.float32]:
    """A file's first output for batches of its input, on the CPU."""
    session = open_session(file)
    output = session.get_outputs()[0].name
    return np.concatenate([session.run([output], {INPUT: batch})[0] for batch in batches])
