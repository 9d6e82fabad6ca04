"""A recipe: everything that decides what a training run computes. Loads no TensorFlow."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

RECIPE = "recipe.json"  # in a run's folder
SCHEDULES = ("cosine", "step", "plateau", "constant")
OPTIMIZERS = ("sgd", "adamw", "lamb", "lars")
PRECISIONS = ("float32", "bfloat16", "float16")
LOSSES = ("cross_entropy", "binary")
CROPS = ("none", "random_resized", "shorter_side")
ON_CORRUPT = ("error", "skip")


class TrainingError(RuntimeError):
    """Training that cannot start or go on; the message says what to change."""


class TrainingStopped(RuntimeError):  # noqa: N818 (no error: the run goes on)
    """A signal ended the run after its state was saved; the same call goes on from there.

    Args:
        message: for the person.
        signal: number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


@dataclass(frozen=True)
class Recipe:
    """What a training run computes.

    Args:
        model: name of a model of the registry.
        data: name of a data set, see `keras_resnets.data.load_dataset`.
        epochs: passes over the training images.
        batch_size: images a step over all replicas (the global batch).
        drop_last: leave out the images that do not fill an epoch's last batch.
        image_size: side of the network's input in pixels; 0: the data set's own.
        variant, shortcut: of the network, see `keras-resnets info`; empty: its default.
        drop_path_rate: stochastic depth, of networks that have it.
        dropout_rate: dropout, where a network has it; -1: its default.
        optimizer: sgd, adamw, lamb, or lars.
        learning_rate: highest rate of the schedule.
        rate_batch: number of images a step that `learning_rate` is for; the rate is scaled linearly to `batch_size`.
            0: it is for `batch_size` itself.
        schedule: "cosine" to zero; "step": times `rate_drop` at each milestone; "plateau": times `rate_drop` when the
            loss of the held-out images (or else of training) has not fallen for `patience` epochs; "constant".
        milestones: shares of the run at which "step" lowers the rate.
        rate_drop: factor of "step" and "plateau".
        patience: epochs, of "plateau".
        warmup_epochs: epochs at the start in which the rate rises linearly from `warmup_rate`.
        warmup_rate: where the warm-up starts.
        warmup_constant: stay at `warmup_rate` for the warm-up instead of rising.
        momentum: of SGD and LARS; β1 of Adam and LAMB.
        beta_2: of Adam and LAMB.
        nesterov: Nesterov's momentum.
        weight_decay: pull of kernels to zero; batch norm, biases and embeddings are spared. An L2 penalty
            0.5 · decay · Σw² for sgd and lars, decoupled (times the rate) for adamw and lamb.
        clip_norm: largest norm of all gradients together; 0: not clipped.
        accumulate: parts that a replica's share of a batch is computed in, one after the other, to save memory.
        ema: decay of the moving average of the weights, which is then evaluated and saved; 0: none.
        loss: "cross_entropy", or "binary": one sigmoid a class (Wightman et al. 2021, arXiv:2110.00476).
        label_smoothing: share of the target spread over all classes.
        precision: of convolutions and activations in training: float32, bfloat16, or float16 with loss scaling.
            Variables and the saved model stay float32.
        pad: zeros around an image before a random crop, in pixels.
        flip: mirror every second image.
        crop: of larger images: "random_resized" (Szegedy et al. 2015), "shorter_side" (He et al. 2015: random in
            [256, 480] for a crop of 224), "none" (as in evaluation).
        min_area: smallest share of the image that "random_resized" takes.
        rand_augment: operations an image (Cubuk et al. 2019, arXiv:1909.13719); 0: none.
        rand_augment_magnitude: of these, 0 to 10.
        random_erasing: how often a rectangle is erased (Zhong et al. 2017, arXiv:1708.04896).
        mixup, cutmix: α of the Beta distribution of the mixing weight; 0: off. Both: each for every second pair.
        on_corrupt: what an unreadable training image does: "error", or "skip": another takes its place, and it counts.
        validation: training images held out to choose by; they are not trained on.
        train_images: how many of the other training images to use, the same ones every time; 0: all.
        sync_batch_norm: batch statistics over all replicas instead of each one's share.
        deterministic: the same bits every time, on the same machine.
        remat: compute activations again in the backward pass instead of keeping them.
        xla: compile the step.
        steps_per_execution: steps between returns to Python.
        seed: of initialisation, order and augmentation.

    Raises:
        TrainingError: when a value is out of range.
    """

    model: str
    data: str
    epochs: int
    batch_size: int = 128
    drop_last: bool = True
    image_size: int = 0
    variant: str = ""
    shortcut: str = ""
    drop_path_rate: float = 0.0
    dropout_rate: float = -1.0
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    rate_batch: int = 0
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    rate_drop: float = 0.1
    patience: int = 10
    warmup_epochs: float = 0.0
    warmup_rate: float = 0.0
    warmup_constant: bool = False
    momentum: float = 0.9
    beta_2: float = 0.999
    nesterov: bool = False
    weight_decay: float = 1e-4
    clip_norm: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    precision: str = "float32"
    pad: int = 0
    flip: bool = False
    crop: str = "none"
    min_area: float = 0.08
    rand_augment: int = 0
    rand_augment_magnitude: float = 7.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    on_corrupt: str = "error"
    validation: int = 0
    train_images: int = 0
    sync_batch_norm: bool = True
    deterministic: bool = True
    remat: bool = False
    xla: bool = False
    steps_per_execution: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name, low in _LOWEST.items():
            if not low <= getattr(self, name) < math.inf:
                raise TrainingError(f"{name} must be at least {low}, not {getattr(self, name)}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise TrainingError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        self._check_rates()

    def _check_rates(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning_rate must be positive and finite, not {self.learning_rate}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise TrainingError(f"warmup_epochs must be in [0, {self.epochs}), not {self.warmup_epochs}")
        if not 0 < self.rate_drop < 1:
            raise TrainingError(f"rate_drop must be between 0 and 1, not {self.rate_drop}")
        if not all(0 < share < 1 for share in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise TrainingError(f"milestones must rise, between 0 and 1, not {self.milestones}")
        if self.warmup_constant and not self.warmup_rate:
            raise TrainingError("warmup_rate must be positive for a constant warm-up, or nothing is learnt in it")
        if not 0 < self.min_area <= 1:
            raise TrainingError(f"min_area must be in (0, 1], not {self.min_area}")
        if not (self.dropout_rate == -1 or 0 <= self.dropout_rate < 1):
            raise TrainingError(f"dropout_rate must be in [0, 1), or -1 for the network's own, not {self.dropout_rate}")

    @property
    def peak_rate(self) -> float:
        """The highest learning rate at this batch size."""
        return self.learning_rate * (self.batch_size / self.rate_batch if self.rate_batch else 1.0)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_dict` wrote; fields that an older version did not know have their defaults.

        Raises:
            TrainingError: for a field that there is not, or a value of the wrong type.
        """
        known = {field.name: field for field in fields(cls)}
        for name, value in stored.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise TrainingError(f"a recipe has no field {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
            _check_type(name, value, known[name].type)
        try:
            return cls(**stored)
        except TypeError as error:  # model, data or epochs are missing
            raise TrainingError(f"the recipe is not complete: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {**asdict(self), "milestones": list(self.milestones)}


_LOWEST = {
    "epochs": 1, "batch_size": 1, "image_size": 0, "pad": 0, "validation": 0, "train_images": 0, "seed": 0,
    "rate_batch": 0,
    "patience": 1, "accumulate": 1, "steps_per_execution": 1, "rand_augment": 0, "rand_augment_magnitude": 0,
    "clip_norm": 0, "mixup": 0, "cutmix": 0, "warmup_rate": 0,
}  # fmt: skip
_SHARES = ("momentum", "beta_2", "label_smoothing", "weight_decay", "ema", "drop_path_rate", "random_erasing")
_CHOICES = {
    "schedule": SCHEDULES, "optimizer": OPTIMIZERS, "precision": PRECISIONS, "loss": LOSSES, "crop": CROPS,
    "on_corrupt": ON_CORRUPT,
}  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "tuple[float, ...]": (list, tuple),
}  # fmt: skip


def _check_type(name: str, value: Any, declared: Any) -> None:
    wanted = _TYPES[str(declared)]
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise TrainingError(f"{name} must be {declared}, not {value!r}")


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """ "epochs 15 (now 20), seed 0 (now 1)": how stored settings differ from those of now; empty if they do not."""
    different = [name for name in ours if theirs.get(name) != ours[name]]
    return ", ".join(f"{name} {theirs.get(name)!r} (now {ours[name]!r})" for name in different)


def read_recipe(folder: Path) -> Recipe:
    """The recipe of the run in a folder.

    Raises:
        TrainingError: when it cannot be read.
    """
    try:
        stored = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("it is no JSON object")
        return Recipe.from_dict(stored)
    except (OSError, ValueError, TrainingError) as error:
        raise TrainingError(f"{folder / RECIPE} cannot be read: {error}") from error
