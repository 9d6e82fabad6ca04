"""What training images may go through, and the random numbers that decide it.

Everything random depends on (seed, epoch, sample) alone: not on batch size, replicas, workers or threads, nor on
where a run was resumed. The numbers of an epoch are drawn at its start, a row a sample, only for what is on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.data.dataset import DataError

CROPS = ("none", "random_resized", "shorter_side")
SHORTER_SIDE = (256, 480)  # of He et al. 2015, section 3.4
ASPECT = (3 / 4, 4 / 3)  # of random_resized: Szegedy et al. 2014, section 6
ERASED_AREA, ERASED_ASPECT = (0.02, 0.33), (0.3, 10 / 3)  # Zhong et al. 2017, section 4.2 (their r1 = 0.3)
TRIES = 10  # at a box that fits the image, as torchvision
OPERATIONS = 14  # of RandAugment


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images; all are off by default.

    They follow each other as crop, pad, flip, rand_augment, (normalisation,) random_erasing, mixup or cutmix.

    Args:
        pad: zeros put around the image before a random crop of its own size, in pixels.
        flip: mirror every second image left to right.
        crop: how a picture becomes as large as the network's input. "none": as in evaluation.
            "random_resized": a random part of at least `min_area` and of aspect 3/4 to 4/3, resized (Szegedy et
            al. 2014, section 6). "shorter_side": resized so that the shorter side is 256 to 480 pixels for an input
            of 224 (in proportion for others), then a random crop (He et al. 2015, section 3.4). JPEGs are resized
            bilinearly without antialiasing, after libjpeg decoded them at 1/2, 1/4 or 1/8 where the part is that
            much larger than the input: less than twofold remains.
        min_area: smallest share of the picture's area that "random_resized" takes.
        rand_augment: (operations, magnitude 0…10) of RandAugment (Cubuk et al. 2019): so many of its 14
            operations, one after the other; strengths grow with the magnitude (see `randaugment`).
        random_erasing: probability of setting a random rectangle to zero after normalisation (Zhong et al. 2017).
        mixup: α of the Beta(α, α) share in which two neighbours of a batch are mixed (Zhang et al. 2017); 0: off.
        cutmix: α of the Beta(α, α) share of the area that two neighbours exchange (Yun et al. 2019); 0: off. With
            `mixup` on too, each pair goes through one of the two with probability one half.

    Raises:
        DataError: when a value is out of range.
    """

    pad: int = 0
    flip: bool = False
    crop: str = "none"
    min_area: float = 0.08
    rand_augment: tuple[int, float] | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise DataError(f"pad must be at least 0, not {self.pad}")
        if self.crop not in CROPS:
            raise DataError(f"crop must be one of {', '.join(CROPS)}, not {self.crop!r}")
        if not 0 < self.min_area <= 1:
            raise DataError(f"min_area must be in (0, 1], not {self.min_area}")
        if not 0 <= self.random_erasing <= 1:
            raise DataError(f"random_erasing must be a probability, not {self.random_erasing}")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise DataError(f"{name} must be at least 0 and finite, not {getattr(self, name)}")
        if self.rand_augment is not None:
            operations, magnitude = self.rand_augment
            if operations < 1 or not 0 <= magnitude <= 10:
                raise DataError(f"rand_augment must be (operations ≥ 1, magnitude 0…10), not {self.rand_augment}")

    @property
    def mixes(self) -> bool:
        """Whether batches carry float targets [batch, classes] instead of labels."""
        return bool(self.mixup or self.cutmix)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one epoch, a row a sample; None for what is off.

    Args:
        crop_seed: of the crops, which are drawn when the picture's size is known.
        offsets: int32 [number, 2], top and left of the crop from the padded image.
        flips: bool [number].
        operations: int32 [number, operations] of RandAugment.
        signs: float32 [number, operations], -1 or 1.
        erased: int32 [number, 4] boxes (top, left, height, width); of no size when nothing is erased.
        shares: float32 [number], λ that the first of a pair keeps, by its row.
        exchanged: float32 [number, 2], centre of CutMix's box in shares of the sides; -1 for pairs under mixup.
    """

    crop_seed: int
    offsets: Any = None
    flips: Any = None
    operations: Any = None
    signs: Any = None
    erased: Any = None
    shares: Any = None
    exchanged: Any = None

    def mapped(self, function: Callable[[Any], Any]) -> Draws:
        """The same with each array replaced by `function` of it."""
        columns = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "crop_seed"}
        made = {name: None if column is None else function(column) for name, column in columns.items()}
        return Draws(self.crop_seed, **made)


def draw(augmentation: Augmentation, number: int, size: tuple[int, int], seed: int, epoch: int) -> Draws:
    """The numbers for `number` samples of (height, width) `size` in an epoch."""
    chance = np.random.default_rng([seed, epoch, 1])
    offsets = chance.integers(0, 2 * augmentation.pad, (number, 2), endpoint=True).astype(np.int32)
    flips = chance.integers(0, 2, number) == 1
    operations, signs = _operations(augmentation, number, np.random.default_rng([seed, epoch, 4]))
    shares, exchanged = _mixing(augmentation, number, np.random.default_rng([seed, epoch, 5]))
    return Draws(
        offsets=offsets if augmentation.pad else None,
        flips=flips if augmentation.flip else None,
        operations=operations,
        signs=signs,
        erased=_erased(augmentation.random_erasing, number, size, np.random.default_rng([seed, epoch, 3])),
        shares=shares,
        exchanged=exchanged,
        crop_seed=int(np.random.SeedSequence([seed, epoch, 2]).generate_state(1, np.uint64)[0] >> 1),
    )


def _operations(
    augmentation: Augmentation, number: int, chance: np.random.Generator
) -> tuple[NDArray[np.int32] | None, NDArray[np.float32] | None]:
    if augmentation.rand_augment is None:
        return None, None
    shape = number, augmentation.rand_augment[0]
    operations = chance.integers(0, OPERATIONS, shape, np.int32)
    return operations, chance.choice(np.array([-1, 1], np.float32), shape)


def _erased(
    probability: float, number: int, size: tuple[int, int], chance: np.random.Generator
) -> NDArray[np.int32] | None:
    if not probability:
        return None
    boxes = np.zeros((number, 4), np.int32)
    chosen = np.flatnonzero(chance.random(number) < probability)
    tries = chance.random((len(chosen), TRIES, 2))
    area = (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * tries[..., 0]) * (size[0] * size[1])
    low, high = np.log(ERASED_ASPECT)
    aspect = np.exp(low + (high - low) * tries[..., 1])
    sides = np.rint(np.sqrt(np.stack([area * aspect, area / aspect], -1))).astype(np.int32)
    fits = (sides < size).all(-1)
    first = sides[np.arange(len(chosen)), fits.argmax(1)] * fits.any(1, keepdims=True)
    corners = chance.random((len(chosen), 2)) * (size - first + 1)
    boxes[chosen] = np.concatenate([corners.astype(np.int32), first], 1)
    return boxes


def _mixing(
    augmentation: Augmentation, number: int, chance: np.random.Generator
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    if not augmentation.mixes:
        return None, None
    cut = chance.random(number) < 0.5
    if not (augmentation.mixup and augmentation.cutmix):
        cut[:] = bool(augmentation.cutmix)
    alphas = np.where(cut, augmentation.cutmix, augmentation.mixup)
    shares = chance.beta(alphas, alphas)
    centres = np.where(cut[:, np.newaxis], chance.random((number, 2)), -1.0)
    return shares.astype(np.float32), centres.astype(np.float32)
