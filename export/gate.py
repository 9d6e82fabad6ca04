"""The accuracy gate: a lower precision is written only if it decides as float32 does, and is repaired until it does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import ExportError
from .runtime import run_all


@dataclass(frozen=True)
class Gate:
    """What a lower precision must keep.

    Args:
        agreement: least share of the images to which it gives the same class as float32; of a network that gives
            features, the least mean cosine similarity of these.
        top1_loss: how much of the top-1 accuracy it may lose, where the classes are known: 0.005 is half a
            percentage point.

    Raises:
        ValueError: when one is outside [0, 1].
    """

    agreement: float = 0.98
    top1_loss: float = 0.005

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"the gate's {name} must be in [0, 1], not {value!r}")


@dataclass(frozen=True)
class Quality:
    """How a lower precision decides, beside float32.

    Args:
        images: how many it was judged on.
        agreement: see `Gate`.
        top1, top1_float32: accuracy of both, or None where the classes are not known.
        float_layers: layers that were returned to float32 until it passed.
    """

    images: int
    agreement: float
    top1: float | None
    top1_float32: float | None
    float_layers: tuple[str, ...] = ()

    def passes(self, gate: Gate) -> bool:
        """Whether the gate lets it through."""
        lost = 0.0 if self.top1 is None or self.top1_float32 is None else self.top1_float32 - self.top1
        return self.agreement >= gate.agreement and lost <= gate.top1_loss

    def __str__(self) -> str:
        return quality_text(asdict(self))


def quality_text(quality: Mapping[str, Any]) -> str:
    """A `Quality`, as it is stored in a bundle, for people."""
    text = f"agrees with float32 on {quality['agreement']:.2%} of {quality['images']} images"
    if quality["top1"] is not None:
        text += f", top-1 {quality['top1']:.2%} (float32: {quality['top1_float32']:.2%})"
    if quality["float_layers"]:
        text += f"; in float32 stay {', '.join(quality['float_layers'])}"
    return text


@dataclass
class Panel:
    """Images, and what float32 answers to them: who judges lower precisions.

    Args:
        source: the float32 ONNX file.
        batches: gives batches for the graph's input.
        targets: the class of each image, or None.
        classes: whether the outputs are classes, not features.
    """

    source: Path
    batches: Callable[[], Iterator[NDArray[Any]]]
    targets: NDArray[np.int64] | None
    classes: bool

    @cached_property
    def reference(self) -> NDArray[np.float32]:
        """What float32 answers, asked once for all precisions."""
        return run_all(self.source, self.batches())

    def judge(self, file: Path, layers: tuple[str, ...]) -> Quality:
        """How a file decides, in which these layers stayed in float32."""
        expected, got = self.reference, run_all(file, self.batches())
        if not self.classes:
            own, other = (values.reshape(len(values), -1).astype(np.float64) for values in (expected, got))
            scale = np.linalg.norm(own, axis=1) * np.linalg.norm(other, axis=1)
            cosine = np.divide((own * other).sum(1), scale, out=np.zeros(len(own)), where=scale > 0)
            return Quality(len(own), float(np.nan_to_num(cosine).mean()), None, None, layers)
        if not np.isfinite(got).all():
            return Quality(len(expected), 0.0, None, None, layers)
        own, other = expected.argmax(-1), got.argmax(-1)
        agreement = _share(own == other)
        if self.targets is None:
            return Quality(len(own), agreement, None, None, layers)
        return Quality(len(own), agreement, _share(other == self.targets), _share(own == self.targets), layers)


class Lowered(Protocol):
    """A lower precision of a float32 ONNX file: `Int8` or `Float16`."""

    kept: frozenset[str]  # nodes that it cannot take

    def write(self, file: Path, kept: Collection[str]) -> None:
        """Write the file with some nodes in float32."""

    def rank(self, tensor: NDArray[Any]) -> list[tuple[str, ...]]:
        """Groups of nodes, the most sensitive first."""


def pass_gate(lowered: Lowered, file: Path, panel: Panel, gate: Gate, say: Callable[[str], None]) -> Quality:
    """Write a lower precision, returning its most sensitive layers to float32 one by one until the gate opens.

    Args:
        lowered: the lower precision.
        file: to write.
        panel: judges it.
        gate: what must be kept.
        say: called with a line on each repair.

    Returns:
        What was measured of the file as it was written.

    Raises:
        ExportError: when it does not pass with all layers in float32.
    """
    kept = lowered.kept

    def judge() -> Quality:
        lowered.write(file, kept)
        layers = tuple(dict.fromkeys(name.split("/")[0] for name in sorted(kept)))
        return panel.judge(file, layers)

    quality = judge()
    if quality.passes(gate):
        return quality
    for unit in lowered.rank(next(panel.batches())):
        if kept.issuperset(unit):
            continue
        say(f"{quality_text(asdict(replace(quality, float_layers=())))}: returning {', '.join(unit)} to float32")
        kept = kept.union(unit)
        quality = judge()
        if quality.passes(gate):
            return quality
    raise ExportError(
        f"{file.name} {quality}, and the gate wants {gate.agreement:.2%} and at most {gate.top1_loss:.2%} of top-1 "
        "lost: give more images, or another gate= (--agreement, --top1-loss)"
    )


def _share(true: NDArray[np.bool_]) -> float:
    return float(true.mean())
