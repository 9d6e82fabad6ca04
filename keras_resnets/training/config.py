"""A recipe: everything that decides what a training run computes."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEDULES = ("cosine", "step")


class TrainingError(RuntimeError):
    """Training that cannot start or go on; the message says what to change."""


@dataclass(frozen=True)
class Recipe:
    """What a training run computes.

    Args:
        model: name of a model of the registry.
        data: name of a data set.
        epochs: passes over the training images.
        batch_size: images a step over all replicas (the global batch).
        learning_rate: highest rate of the schedule, for this batch size.
        schedule: "cosine" to zero, or "step": a tenth after half and after three quarters of the epochs.
        warmup_epochs: epochs in which the rate rises linearly from zero.
        momentum: of SGD.
        nesterov: Nesterov's momentum.
        weight_decay: L2 penalty on kernels, in the loss as 0.5 · decay · Σw²; batch norm and biases are spared.
        label_smoothing: share of the target spread over all classes.
        pad: zeros around an image before a random crop, in pixels.
        flip: mirror every second image.
        validation: training images held out to choose by; they are not trained on.
        sync_batch_norm: batch statistics over all replicas instead of each one's share.
        seed: of initialisation, order and augmentation.

    Raises:
        TrainingError: when a value is out of range.
    """

    model: str
    data: str
    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    pad: int = 0
    flip: bool = False
    validation: int = 0
    sync_batch_norm: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("pad", 0), ("validation", 0), ("seed", 0)):
            if getattr(self, name) < low:
                raise TrainingError(f"{name} must be at least {low}, not {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning_rate must be positive and finite, not {self.learning_rate}")
        for name in ("momentum", "label_smoothing", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise TrainingError(f"warmup_epochs must be in [0, {self.epochs}), not {self.warmup_epochs}")
        if self.schedule not in SCHEDULES:
            raise TrainingError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
