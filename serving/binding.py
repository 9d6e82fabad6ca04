"""Runs a session on buffers that stay where they are: one set for each batch size, filled and read in place.

On an NVIDIA GPU that saves allocations, and lets a CUDA graph replay a whole network as one launch, since no address
ever changes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra

from .providers import run_options

with extra("serve"):
    import onnxruntime


class _Bound(NamedTuple):
    binding: Any
    inputs: dict[str, Any]  # OrtValues by name
    options: Any


class BoundSession:
    """A session of fixed sizes but for its batch.

    Args:
        session: an onnxruntime.InferenceSession.
        device: where its tensors live, as onnxruntime calls it: "cuda", or "cpu".
        graphs: whether each batch size is captured as a CUDA graph; the session must have been opened for that.
    """

    def __init__(self, session: Any, device: str, graphs: bool = False) -> None:
        self._session, self._device, self._graphs = session, device, graphs
        self._bound: dict[tuple[Any, ...], _Bound] = {}
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The session's outputs. One run at a time: the buffers are the session's."""
        key = tuple((name, feeds[name].shape) for name in sorted(feeds))
        with self._lock:
            bound = self._bound.get(key) or self._bind(key, feeds)
            for name, value in bound.inputs.items():
                value.update_inplace(np.ascontiguousarray(feeds[name]))
            bound.binding.synchronize_inputs()
            self._session.run_with_iobinding(bound.binding, bound.options)
            bound.binding.synchronize_outputs()
            outputs: list[NDArray[Any]] = bound.binding.copy_outputs_to_cpu()
            return outputs

    def _bind(self, key: tuple[Any, ...], feeds: Mapping[str, NDArray[Any]]) -> _Bound:
        """Buffers for these shapes; what the outputs' are, a run tells."""
        outputs = self._session.run(None, dict(feeds), run_options() if self._graphs else None)
        binding = self._session.io_binding()
        inputs = {name: self._buffer(array) for name, array in feeds.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for argument, array in zip(self._session.get_outputs(), outputs, strict=True):
            binding.bind_ortvalue_output(argument.name, self._buffer(array))
        options = run_options(len(self._bound) + 1) if self._graphs else None
        bound = self._bound[key] = _Bound(binding, inputs, options)
        return bound

    def _buffer(self, like: NDArray[Any]) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(like.shape, like.dtype.type, self._device, 0)
