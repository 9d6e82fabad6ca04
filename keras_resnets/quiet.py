"""Lowers the voice of a library's logger for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(logger: logging.Logger, level: int) -> Iterator[None]:
    """Let a logger pass only what is at least as grave as `level`; afterwards it is as it was."""
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
