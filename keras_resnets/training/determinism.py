"""Turns TensorFlow's deterministic operations on or off for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from keras_resnets.extras import extra

with extra("tensorflow"):
    import tensorflow as tf


@contextmanager
def op_determinism(on: bool) -> Iterator[None]:
    """As tf.config.experimental.enable_op_determinism, or its opposite, until the end of the block."""
    # There is no public way to ask for it, nor to turn it off.
    from tensorflow.python.framework import config

    before = config.is_op_determinism_enabled()
    _set(on)
    try:
        yield
    finally:
        _set(before)


def _set(on: bool) -> None:
    from tensorflow.python.framework import config

    if on:
        tf.config.experimental.enable_op_determinism()
    else:
        config.disable_op_determinism()
