"""Writes a bundle's lower precisions beside its float32 graph, each through the accuracy gate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from keras_resnets.bundle import Variant

from .errors import ExportError
from .gate import Gate, Lowered, Panel, pass_gate
from .half import Float16
from .int8 import Int8, calibrate
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


def write_variants(
    precisions: Sequence[str],
    float32: Variant,
    folder: Path,
    samples: Samples,
    prepare: Prepare,
    gate: Gate,
    classes: bool,
    say: Callable[[str], None],
) -> list[Variant]:
    """Write lower precisions of a bundle's float32 graph.

    Args:
        precisions: of `PRECISIONS`.
        float32: the variant they are made of.
        folder: of the bundle's draft.
        samples: what to calibrate with, and to judge on.
        prepare: from the network's input to the graph's.
        gate: what must be kept.
        classes: whether the outputs are classes, not features.
        say: called with a line on each step.

    Returns:
        The variants; their drift is not measured yet.

    Raises:
        ExportError: when one does not pass the gate.
    """
    if not precisions:
        return []

    def batches(rows: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        return (prepare(batch) for batch in rows)

    source = folder / float32.file
    panel = Panel(source, lambda: batches(samples.judged()), samples.judged_targets, classes)
    calibration = cache(lambda: calibrate(source, batches(samples.calibration())))  # both kinds of int8 have the same
    variants = []
    for precision in precisions:
        if samples.images is None:
            _warn(precision)
        say(f"calibrating {precision}")
        lowered: Lowered
        if precision == "float16":
            lowered = Float16(source, batches(samples.calibration()))
        else:
            lowered = Int8(source, calibration(), precision == "int8-symmetric")
        say(f"judging {precision}")
        file = folder / f"model.{precision}.onnx"
        quality = {**asdict(pass_gate(lowered, file, panel, gate, say)), "real_images": samples.images is not None}
        variants.append(Variant(file.name, precision, float32.opset, PRECISIONS[precision], 0.0, quality))
    return variants


def _warn(precision: str) -> None:
    warnings.warn(
        f"{precision} is calibrated and judged on synthetic images, so what it costs on yours is not known: give real "
        "ones, images= (--images)",
        DataFreeWarning,
        stacklevel=4,
    )
