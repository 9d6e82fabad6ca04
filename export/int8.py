"""int8: quantizes a float32 ONNX graph with the ranges that its activations have on sample images."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra
from keras_resnets.quiet import quiet

from .errors import ExportError
from .graph import sort_nodes
from .sensitivity import rank_units
from .trace import INPUT

with extra("export"):
    import onnx
with extra("serve"):
    from onnxruntime import quantization

# Relu is rounded as part of what it follows, and Add so that a residual block stays in int8 from end to end.
_CONVOLUTIONAL = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "Concat")
# Transformers add and normalise in float32: their residual sums have outliers that eight bits cannot hold.
_TRANSFORMER = ("Conv", "Gemm", "MatMul")


class Calibration(NamedTuple):
    """What int8 needs to know of a float32 graph: which operators are rounded, and the ranges of their tensors."""

    operators: tuple[str, ...]
    ranges: Any  # onnxruntime's TensorsData: the least and largest value of each tensor


def calibrate(source: Path, batches: Iterator[NDArray[Any]]) -> Calibration:
    """Run a float32 ONNX file on batches of its input."""
    found = {node.op_type for node in onnx.load(source, load_external_data=False).graph.node}
    operators = _TRANSFORMER if found & {"LayerNormalization", "Erf", "Gelu"} else _CONVOLUTIONAL
    with TemporaryDirectory(prefix=".writing-", dir=source.parent) as scratch, _without_advice():
        calibrator = quantization.create_calibrator(
            source, list(operators), augmented_model_path=str(Path(scratch) / "calibration.onnx")
        )
        calibrator.collect_data(_Reader(batches))
        return Calibration(operators, calibrator.compute_data())


class Int8:
    """A float32 ONNX file as int8: quantized and dequantized (QDQ) tensors, weights with a scale for each channel.

    Args:
        source: the float32 file.
        calibration: of that file.
        symmetric: activations are signed with zero-point 0, as GPUs, TensorRT and ARM CPUs want them; otherwise
            unsigned with a zero-point, as x86 CPUs do. Without VNNI those saturate: check with `keras-resnets verify`.
    """

    def __init__(self, source: Path, calibration: Calibration, symmetric: bool) -> None:
        self.source, self.symmetric = source, symmetric
        self.operators, self.ranges = calibration
        self.kept: frozenset[str] = frozenset()

    def write(self, file: Path, kept: Collection[str]) -> None:
        """Write the quantized graph, with the nodes called `kept` in float32."""
        proto = onnx.shape_inference.infer_shapes(onnx.load(self.source))
        with _without_advice():
            quantizer = quantization.QDQQuantizer(
                proto,
                per_channel=True,
                reduce_range=False,
                weight_qType=quantization.QuantType.QInt8,
                activation_qType=quantization.QuantType.QInt8 if self.symmetric else quantization.QuantType.QUInt8,
                tensors_range=self.ranges,
                nodes_to_quantize=[],
                nodes_to_exclude=list(kept),
                op_types_to_quantize=list(self.operators),
                # Eight bits of a logit would make ties of near classes.
                extra_options={
                    "ActivationSymmetric": self.symmetric,
                    "OpTypesToExcludeOutputQuantization": ["Gemm"],
                    "MatMulConstBOnly": True,
                },
            )
            try:
                quantizer.quantize_model()
            except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
                raise ExportError(f"onnxruntime cannot quantize {proto.graph.name}: {error}") from error
        quantized = quantizer.model.model
        sort_nodes(quantized.graph)
        onnx.checker.check_model(quantized)
        file.write_bytes(quantized.SerializeToString())

    def rank(self, tensor: NDArray[Any]) -> list[tuple[str, ...]]:
        """Groups of nodes to return to float32 together, the most sensitive first."""
        return rank_units(self.source, tensor, self.operators, self._rounded, _rounded_weight)

    def _rounded(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        if name not in self.ranges.data:
            return values
        low, high = (float(np.min(side)) for side in self.ranges.data[name].range_value)
        low, high = min(low, 0.0), max(high, 0.0)
        if self.symmetric:
            low, high = -max(-low, high), max(-low, high)
        scale = (high - low) / 255 or 1.0
        return np.round((values.clip(low, high) - low) / scale) * scale + low


def _rounded_weight(name: str, weight: NDArray[Any]) -> NDArray[Any]:
    others = tuple(range(1, weight.ndim)) if weight.ndim == 4 else (0,)
    scale = np.abs(weight).max(others, keepdims=True) / 127
    scale[scale == 0] = 1.0
    return np.round(weight / scale) * scale


class _Reader(quantization.CalibrationDataReader):
    def __init__(self, batches: Iterator[NDArray[Any]]) -> None:
        self.batches = batches

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def _without_advice() -> AbstractContextManager[None]:
    """Without what onnxruntime tells those who call its quantizer by hand."""
    return quiet(logging.getLogger(), logging.ERROR)
