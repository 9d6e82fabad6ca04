"""Images that cannot be read: an error that names them, or a count of those left out."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

from keras_resnets.data.dataset import DataError, Samples

ON_CORRUPT = ("error", "skip")
MARK = "keras_resnets: unreadable sample"
_PATTERN = re.compile(rf"{MARK}\W+(\d+)")


class CorruptSamples:
    """The samples that `training_batches(on_corrupt="skip")` replaced; several threads add to it.

    A sample counts once in each epoch that met it, in the process that feeds its replica: the sum over processes
    is that of one process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, None] = {}
        self._count = 0

    def add(self, name: str) -> None:
        """Count one."""
        with self._lock:
            self._names[name] = None
            self._count += 1

    @property
    def count(self) -> int:
        """How many times a sample was replaced."""
        return self._count

    @property
    def names(self) -> Sequence[str]:
        """Each one once, in the order in which they were met."""
        with self._lock:
            return list(self._names)


def explain(error: BaseException, split: Samples) -> DataError | None:
    """The DataError behind an error that came out of the batches of `split`; None when it has another cause.

    TensorFlow passes an exception through tf.data and tf.distribute as text only, so the number of the sample
    travels in it.
    """
    found = _PATTERN.search(str(error))
    if not found:
        return None
    row = int(found.group(1))
    try:
        split.image(row)
    except DataError as cause:
        return cause
    return DataError(f"{split.name(row)} cannot be decoded by TensorFlow")
