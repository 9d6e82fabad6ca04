"""Chooses the tf.distribute strategy."""

from __future__ import annotations

from typing import Any

from keras_resnets.extras import extra
from keras_resnets.training.config import TrainingError

with extra("tensorflow"):
    import tensorflow as tf

STRATEGIES = ("auto", "single", "mirrored")


def make_strategy(name: str = "auto") -> Any:
    """The strategy called `name`: "single" device, "mirrored" over all GPUs of this machine (or its logical
    CPUs where it has none), or "auto": mirrored when there are several GPUs.

    Raises:
        TrainingError: for another name.
    """
    if name not in STRATEGIES:
        raise TrainingError(f"strategy must be one of {', '.join(STRATEGIES)}, not {name!r}")
    gpus = tf.config.list_logical_devices("GPU")
    if name == "single" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in gpus or tf.config.list_logical_devices("CPU")])


def check_batch_size(batch_size: int, strategy: Any) -> None:
    """Raise TrainingError when the replicas cannot share the global batch equally."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        near = max(batch_size // replicas, 1) * replicas
        raise TrainingError(f"batch_size {batch_size} does not divide by {replicas} replicas; {near} does")
