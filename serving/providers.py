"""Opens ONNX Runtime sessions on the execution provider that was asked for, or not at all."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from keras_resnets.bundle import PROVIDERS
from keras_resnets.extras import extra
from keras_resnets.machine import usable_cpus

with extra("serve"):
    import onnxruntime

_EXTRAS = {"cpu": "serve", "openvino": "serve-openvino", "cuda": "serve-gpu", "tensorrt": "serve-gpu"}
_CUDA_GRAPHS = {"cuda": "enable_cuda_graph", "tensorrt": "trt_cuda_graph_enable"}  # each provider's own option
# The smallest ONNX model, y = Relu(x) for x [1, 1, 1, 1]: opening a session is the only proof of a provider.
_PROBE = base64.b64decode(
    "CAg6TwoMCgF4EgF5IgRSZWx1EgVwcm9iZVobCgF4EhYKFAgBEhAKAggBCgIIAQoCCAEKAggB"
    "YhsKAXkSFgoUCAESEAoCCAEKAggBCgIIAQoCCAFCBAoAEBI="
)


class ProviderError(RuntimeError):
    """An execution provider that was asked for and is not active."""


def open_session(
    model: str | Path | bytes,
    provider: str = "cpu",
    threads: int | None = None,
    spin: bool = True,
    cuda_graphs: bool = False,
) -> Any:
    """An onnxruntime.InferenceSession that really uses `provider`.

    Args:
        model: an ONNX file, or its bytes.
        provider: "cpu", "openvino", "cuda" or "tensorrt".
        threads: threads of one operator; by default the CPUs that this process may use.
        spin: whether threads that wait keep their cores busy, which is faster where nothing else needs these.
        cuda_graphs: whether the session can capture CUDA graphs, of runs through `BoundSession`.

    Raises:
        ProviderError: for an unknown provider, one that this onnxruntime does not have, or one that it
            did not activate.
        ValueError: for a number of threads below 1, or CUDA graphs elsewhere than on an NVIDIA GPU.
    """
    if provider not in PROVIDERS:
        raise ProviderError(f"unknown provider {provider!r}; there are {', '.join(PROVIDERS)}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    if cuda_graphs:
        check_cuda_graphs(provider)
    name = PROVIDERS[provider]
    if name not in onnxruntime.get_available_providers():
        raise ProviderError(
            f"this onnxruntime {onnxruntime.__version__} has no {provider} provider. Run: "
            "pip uninstall onnxruntime onnxruntime-gpu onnxruntime-openvino && "
            f'pip install "keras-resnets[{_EXTRAS[provider]}]"'
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or usable_cpus()
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider != "cpu":
        # Without this, nodes that the provider cannot take run on the CPU unnoticed.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    source = model if isinstance(model, bytes) else str(model)
    try:
        own = {_CUDA_GRAPHS[provider]: "1"} if cuda_graphs else {}
        session = onnxruntime.InferenceSession(source, options, providers=[(name, own)])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ProviderError(f"onnxruntime cannot open the model with the {provider} provider: {error}") from error
    if session.get_providers()[0] != name:
        raise ProviderError(f"{provider} was asked for, but onnxruntime activated {session.get_providers()}")
    return session


def check_cuda_graphs(provider: str) -> None:
    """Raise ValueError unless a provider can capture CUDA graphs."""
    if provider not in _CUDA_GRAPHS:
        raise ValueError(f"CUDA graphs need the provider {' or '.join(_CUDA_GRAPHS)}, not {provider}")


def active_providers() -> dict[str, str]:
    """Every provider of this onnxruntime with "active", or why a session could not be opened on it."""
    state = {}
    for short, name in PROVIDERS.items():
        if name in onnxruntime.get_available_providers():
            try:
                open_session(_PROBE, short, threads=1)
                state[short] = "active"
            except ProviderError as error:
                state[short] = f"not active: {error}"
    return state


def run_options(graph: int | None = None) -> Any:
    """Options of a run in a session that can capture CUDA graphs: of this one, or of none."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1" if graph is None else str(graph))
    return options
