"""Turns the signals by which schedulers and people end a run into a flag that the loop reads between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

# SIGUSR1 is what `sbatch --signal=USR1@120` sends ahead of the end.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupts:
    """Inside, the first signal sets `received`; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._on_signal: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def tell(self, on_signal: Callable[[], None]) -> None:
        """Call a function with the first signal, from the main thread; now, if it has come already."""
        self._on_signal = on_signal
        if self.received is not None:
            on_signal()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = number
        if self._on_signal:
            self._on_signal()
