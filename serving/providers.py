"""Opens ONNX Runtime sessions on the execution provider that was asked for, or not at all."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from keras_resnets.bundle import PROVIDERS
from keras_resnets.extras import extra
from keras_resnets.machine import cache_folder, usable_cpus

with extra("serve"):
    import onnxruntime

_EXTRAS = {"cpu": "serve", "openvino": "serve-openvino", "cuda": "serve-gpu", "tensorrt": "serve-gpu"}
_CUDA_GRAPHS = {"cuda": "enable_cuda_graph", "tensorrt": "trt_cuda_graph_enable"}  # each provider's own option
ON_GPU = tuple(_CUDA_GRAPHS)
_TENSORRT_CACHE = "tensorrt"  # below this package's folder in the user's cache
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
    provider_options: Mapping[str, str] | None = None,
) -> Any:
    """An onnxruntime.InferenceSession that really uses `provider`.

    Args:
        model: an ONNX file, or its bytes.
        provider: "cpu", "openvino", "cuda" or "tensorrt".
        threads: threads of one operator; by default the CPUs that this process may use.
        spin: whether threads that wait keep their cores busy, which is faster where nothing else needs these.
        cuda_graphs: whether the session can capture CUDA graphs, of runs through `BoundSession`.
        provider_options: the provider's own, by ONNX Runtime's names, over those of `options_of`.

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
    if provider in ON_GPU and hasattr(onnxruntime, "preload_dlls"):
        # NVIDIA's libraries from pip's packages, which lie on no path of the system. It prints what it misses; whether
        # that matters, the session tells.
        with redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    source = model if isinstance(model, bytes) else str(model)
    try:
        own = options_of(provider, options.intra_op_num_threads, cuda_graphs) | dict(provider_options or {})
        # Where a provider fails, it prints that, tries the CPU alone, and is refused: the error says it all.
        with redirect_stdout(io.StringIO()) if provider != "cpu" else nullcontext():
            session = onnxruntime.InferenceSession(source, options, providers=[(name, own)])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ProviderError(f"onnxruntime cannot open the model with the {provider} provider: {error}") from error
    if session.get_providers()[0] != name:
        raise ProviderError(f"{provider} was asked for, but onnxruntime activated {session.get_providers()}")
    return session


def options_of(provider: str, threads: int, cuda_graphs: bool = False) -> dict[str, str]:
    """The options that a provider gets here where nobody says otherwise.

    Args:
        provider: "cpu", "openvino", "cuda" or "tensorrt".
        threads: of one operator.
        cuda_graphs: see `open_session`.
    """
    own = {_CUDA_GRAPHS[provider]: "1"} if cuda_graphs else {}
    if provider == "openvino":
        own["num_of_threads"] = str(threads)  # it does not follow the session's
    if provider == "cuda":
        # Tensor cores want channels last; and TF32 has the ten bits of float16, which float32 must not mean unasked.
        own |= {"prefer_nhwc": "1", "use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
    if provider == "tensorrt":
        folder = cache_folder() / _TENSORRT_CACHE
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # what lies there is executed
        own |= {
            "trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1", "trt_timing_cache_path": str(folder),
        }  # fmt: skip
    return own


def tensorrt_options(name: str, sides: Sequence[int | None], most: int, precision: str) -> dict[str, str]:
    """What TensorRT must know of a network before it builds an engine.

    Args:
        name: of the input.
        sides: of the input, but the batch's; without an explicit profile where one is None.
        most: images of a batch: the engine takes 1 to so many, and is best at `most`.
        precision: of the graph; TensorRT takes 16 and 8 bits only where it is let.
    """
    own = {"trt_fp16_enable": "1"} if precision == "float16" else {}
    own |= {"trt_int8_enable": "1"} if precision.startswith("int8") else {}
    if None not in sides:
        for which, batch in (("min", 1), ("opt", most), ("max", most)):
            own[f"trt_profile_{which}_shapes"] = f"{name}:{'x'.join(map(str, (batch, *sides)))}"
    return own


def check_cuda_graphs(provider: str) -> None:
    """Raise ValueError unless a provider can capture CUDA graphs."""
    if provider not in ON_GPU:
        raise ValueError(f"CUDA graphs need the provider {' or '.join(ON_GPU)}, not {provider}")


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
