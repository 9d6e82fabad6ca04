"""Writes a bundle's lower precisions beside its float32 graph, each through the accuracy gate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from keras_resnets.bundle import Variant

from .errors import ExportError
from .gate import Gate, Lowered, pass_gate
from .half import Float16
from .int8 import Int8
from .samples import Samples
from .verify import Prepare

# The providers that each is meant for. float16 pays on GPUs; x86 CPUs multiply unsigned by signed bytes.
PRECISIONS = {
    "float16": ("cuda", "tensorrt", "openvino"),
    "int8": ("cpu", "openvino"),
    "int8-symmetric": ("cpu", "cuda", "tensorrt"),
}


class DataFreeWarning(UserWarning):
    """A lower precision was made and judged without real images."""


def check_precisions(precisions: Sequence[str]) -> tuple[str, ...]:
    """The lower precisions asked for, each once; float32 is always there.

    Raises:
        ExportError: for an unknown one.
    """
    for name in precisions:
        if name != "float32" and name not in PRECISIONS:
            raise ExportError(f"unknown precision {name!r}; there are float32, {', '.join(PRECISIONS)}")
    return tuple(dict.fromkeys(name for name in precisions if name != "float32"))


def write_variant(
    precision: str,
    float32: Variant,
    folder: Path,
    samples: Samples,
    prepare: Prepare,
    gate: Gate,
    classes: bool,
    say: Callable[[str], None],
) -> Variant:
    """Write one lower precision of a bundle's float32 graph.

    Args:
        precision: of `PRECISIONS`.
        float32: the variant it is made of.
        folder: of the bundle's draft.
        samples: what to calibrate with, and to judge on.
        prepare: from the network's input to the graph's.
        gate: what must be kept.
        classes: whether the outputs are classes, not features.
        say: called with a line on each step.

    Returns:
        The variant; its drift is not measured yet.

    Raises:
        ExportError: when it does not pass the gate.
    """

    def batches(rows: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        return (prepare(batch) for batch in rows)

    source, file = folder / float32.file, folder / f"model.{precision}.onnx"
    if samples.images is None:
        _warn(precision)
    say(f"calibrating {precision}")
    with TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
        calibration = batches(samples.calibration())
        lowered: Lowered
        if precision == "float16":
            lowered = Float16(source, calibration)
        else:
            lowered = Int8(source, calibration, precision == "int8-symmetric", Path(scratch))
    say(f"judging {precision}")
    quality = pass_gate(lowered, file, lambda: batches(samples.judged()), samples.judged_targets, gate, classes, say)
    real = {"real_images": samples.images is not None}
    return Variant(file.name, precision, float32.opset, PRECISIONS[precision], 0.0, {**asdict(quality), **real})


def _warn(precision: str) -> None:
    warnings.warn(
        f"{precision} is calibrated and judged on synthetic images, so what it costs on yours is not known: give real "
        "ones, images= (--images)",
        DataFreeWarning,
        stacklevel=4,
    )
