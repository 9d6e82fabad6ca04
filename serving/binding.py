"""Runs a session on buffers that stay where they are: one set for each batch size, filled and read in place.

On an NVIDIA GPU that saves allocations, and lets a CUDA graph replay a whole network as one launch, since no address
ever changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
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
        with self._lock:
            bound = self._filled(feeds)
            self._go(bound)
            outputs: list[NDArray[Any]] = bound.binding.copy_outputs_to_cpu()
            return outputs

    def in_place(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], None]:
        """A call that runs again and again on these inputs, which lie in the buffers already, and leaves the outputs
        there: what the device takes, without copies. No other run may come between."""
        bound = self._filled(feeds)
        return lambda: self._go(bound)

    def _go(self, bound: _Bound) -> None:
        self._session.run_with_iobinding(bound.binding, bound.options)
        bound.binding.synchronize_outputs()

    def _filled(self, feeds: Mapping[str, NDArray[Any]]) -> _Bound:
        """The buffers for these shapes, with these inputs in them."""
        key = tuple((name, feeds[name].shape) for name in sorted(feeds))
        bound = self._bound.get(key) or self._bind(key, feeds)
        for name, value in bound.inputs.items():
            value.update_inplace(np.ascontiguousarray(feeds[name]))
        bound.binding.synchronize_inputs()
        return bound

    def _bind(self, key: tuple[Any, ...], feeds: Mapping[str, NDArray[Any]]) -> _Bound:
        """New buffers; what the outputs' shapes are, a run tells."""
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
