"""A bundle's golden sample: what its graph takes for it, what Keras answered, and how far others may be from that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.bundle import Bundle, BundleError, Variant

TOLERANCE = 1e-3  # of the largest output: other CPUs and providers round differently
TF32_TOLERANCE = 3e-2  # where its ten bits were asked for


@dataclass(frozen=True)
class Golden:
    """See the module.

    Args:
        tensor: as the network takes it, [samples, …].
        expected: Keras's outputs, [samples, …].
        tolerance: how far outputs may be from these, over their largest value.
        bundle: whose it is, for errors.
    """

    tensor: NDArray[Any]
    expected: NDArray[np.float32]
    tolerance: float = TOLERANCE
    bundle: str = ""

    @classmethod
    def of(cls, bundle: Bundle, variant: Variant, *, channels_last: bool = False, tf32: bool = False) -> Golden:
        """The sample of a bundle for one of its variants.

        Args:
            bundle: its golden file is compared with its hash.
            variant: a lower precision may be three times as far from Keras as it was where it was made.
            channels_last: as the SavedModel takes it, whatever the ONNX graph's layout.
            tf32: whether tensor cores may shorten float32.

        Raises:
            BundleError: when it is missing or corrupt.
        """
        manifest = bundle.manifest
        bundle.check([manifest.golden])
        tensor, expected = bundle.golden()
        if manifest.preprocessing and manifest.input_type != "uint8":
            tensor = manifest.preprocessing.normalize(tensor)
        if manifest.input_layout == "nchw" and not channels_last:
            tensor = tensor.transpose(0, 3, 1, 2)
        tolerance = max(TOLERANCE, 3 * variant.drift, TF32_TOLERANCE if tf32 else 0.0)
        return cls(np.ascontiguousarray(tensor), expected, tolerance, str(bundle.path))

    @property
    def scale(self) -> float:
        """The largest of Keras's outputs, or 1 where all are 0."""
        return float(np.abs(self.expected).max(initial=0.0)) or 1.0

    def __len__(self) -> int:
        return len(self.tensor)

    def rows(self, start: int, batch: int) -> NDArray[np.intp]:
        """Which samples are in a batch of any size from one on: they come again and again."""
        return np.arange(start, start + batch) % len(self)

    def drift(self, got: NDArray[Any], rows: Any = slice(None)) -> float:
        """The largest difference of outputs for some samples to Keras's, over the largest of Keras's.

        Raises:
            BundleError: when shapes differ, or it exceeds the tolerance.
        """
        expected = self.expected[rows]
        if got.shape != expected.shape or not got.size:
            shapes = f"{list(got.shape)} instead of {list(expected.shape)}"
            raise BundleError(f"{self.bundle}: the golden sample gives {shapes} here")
        drift = float(np.abs(got - expected).max()) / self.scale
        if not drift <= self.tolerance:  # NaN is not either
            raise BundleError(f"{self.bundle}: the golden sample differs by {drift:.2e} of its largest output here")
        return drift

    def drift_in_batches(self, run: Callable[[NDArray[Any]], NDArray[Any]], batch: int) -> float:
        """The largest drift of all samples, run in batches of this size.

        Raises:
            BundleError: see `drift`.
        """
        starts = range(0, len(self), batch)
        batches = [self.rows(start, batch) for start in starts]
        return max(self.drift(run(np.ascontiguousarray(self.tensor[rows])), rows) for rows in batches)
