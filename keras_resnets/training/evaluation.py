"""Evaluates a classifier by the protocols of He et al. 2015 (arXiv:1512.03385): centre crop, ten crops, whole images
at several scales.

Loads neither Keras nor TensorFlow unless the model does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets.data.dataset import DataError, Samples
from keras_resnets.machine import usable_cpus
from keras_resnets.preprocessing import ImageError, ImageLike, Preprocessing
from keras_resnets.training.config import TrainingError
from keras_resnets.training.figures import Evaluation
from keras_resnets.training.scorers import Scorer, keras_scorer

_TOP = 5
_SUM = 0.02  # how far the probabilities of a bfloat16 network may be from summing to 1


@dataclass(frozen=True)
class Protocol:
    """Which views of an image a network sees; the probabilities that it gives for them are averaged.

    Args:
        crops: 1: the centre crop. 10: the four corners and the centre of the resized image, and their mirror
            images (Krizhevsky et al. 2012, Section 4.1; He et al. 2015, Table 3).
        scales: the whole image, uncropped, resized so that its shorter side has each of these lengths in pixels
            (He et al. 2015, Section 3.4 and Table 4: 224, 256, 384, 480, 640). Empty: crops.
        flip: each view's mirror image too.

    Raises:
        TrainingError: when a value is out of range, or two contradict each other.
    """

    crops: int = 1
    scales: tuple[int, ...] = ()
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crops not in (1, 10):
            raise TrainingError(f"crops must be 1 (the centre) or 10 (corners, centre, mirrored), not {self.crops}")
        if self.scales and self.crops != 1:
            raise TrainingError("crops=10 and scales are two protocols: choose one")
        if self.crops == 10 and self.flip:
            raise TrainingError("crops=10 has the mirror images already: leave out flip")
        if any(scale < 1 for scale in self.scales) or len(set(self.scales)) < len(self.scales):
            raise TrainingError(f"scales must be different positive lengths in pixels, not {list(self.scales)}")

    def describe(self, preprocessing: Preprocessing) -> str:
        """The protocol in words, for a network with this preprocessing."""
        height, width = preprocessing.size
        mirrored = " and mirrored" if self.flip else ""
        if self.scales:
            return f"whole images, shorter side {', '.join(map(str, self.scales))} pixels{mirrored}, averaged"
        if preprocessing.resize is None:
            return f"whole images at {height}×{width}{mirrored}"
        views = "10 crops" if self.crops == 10 else "centre crop"
        return f"{views} of {height}×{width}{mirrored}, shorter side {preprocessing.resize}"

    def views(self, preprocessing: Preprocessing, image: ImageLike) -> list[NDArray[np.uint8]]:
        """The views of one image, uint8 [height, width, channels] each.

        Raises:
            ImageError: when it cannot be read as an image.
        """
        if self.scales:
            views = [preprocessing.uncropped(image, scale) for scale in self.scales]
        elif self.crops == 10:
            views = _corners_and_centre(preprocessing, image)
        else:
            views = [preprocessing.pixels(image)]
        return [*views, *(view[:, ::-1] for view in views)] if self.flip or self.crops == 10 else views


def _corners_and_centre(preprocessing: Preprocessing, image: ImageLike) -> list[NDArray[np.uint8]]:
    whole = preprocessing.uncropped(image)
    height, width = preprocessing.size
    below, right = whole.shape[0] - height, whole.shape[1] - width
    origins = ((0, 0), (0, right), (below, 0), (below, right), (round(below / 2), round(right / 2)))
    return [whole[top : top + height, left : left + width] for top, left in origins]


def evaluate(
    model: Any,
    split: Samples,
    preprocessing: Preprocessing | None = None,
    *,
    crops: int = 1,
    scales: Sequence[int] = (),
    flip: bool = False,
    batch_size: int = 64,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a classifier on images whose classes are known.

    Each view of an image (see `Protocol`) goes through the network by itself. Its scores become probabilities
    (softmax, where the network gives logits), those of an image's views are averaged with equal weights, and
    everything is measured on that average, in float64. With `scales`, the network's own global pooling averages
    over the positions of its last feature map, that is, before softmax; over scales and mirror images the
    probabilities are averaged, behind softmax.

    Args:
        model: a Keras model, or a Scorer. With `scales` a Keras model of this package is built again for images of
            any size, with the same weights.
        split: images and labels.
        preprocessing: by default the model's own.
        crops, scales, flip: see `Protocol`.
        batch_size: images of the network's input size that are scored at once; larger ones are taken in smaller
            groups. As many images are decoded ahead.
        limit: evaluate this many images, spread evenly over the split.
        progress: called with the number of images done, and of all.

    Returns:
        The Evaluation.

    Raises:
        TrainingError: when model, protocol and images do not fit each other, or scores are not finite.
        DataError: naming the image that cannot be read.
    """
    protocol = Protocol(crops, tuple(scales), flip)
    rows = _rows(split, batch_size, limit)
    scorer = model if isinstance(model, Scorer) else keras_scorer(model, any_size=bool(scales))
    transform = preprocessing or scorer.preprocessing
    if transform is None:
        raise TrainingError(f"{scorer.name} does not say how images become its input: pass preprocessing=")
    _check_fit(scorer, transform, protocol)
    truths = _labels(split, rows, scorer)
    began = time.perf_counter()
    found = []
    area = batch_size * transform.size[0] * transform.size[1]
    for done, images in _decoded(split, rows, transform, protocol, batch_size):
        found.append(_Scores.of(_average(scorer, transform, images, area), truths[done : done + len(images)]))
        if progress:
            progress(done + len(images), len(rows))
    seconds = time.perf_counter() - began
    scores = _Scores(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    size = scorer.classes
    return Evaluation(
        labels=scorer.labels or tuple(f"class {number}" for number in range(size)),
        protocol=protocol.describe(transform),
        confusion=np.bincount(truths * size + scores.predictions, minlength=size * size).reshape(size, size),
        top5=float((scores.ranks < _TOP).mean()),
        cross_entropy=float(scores.losses.mean()) if np.isfinite(scores.losses).all() else None,
        seconds=seconds,
        rows=rows,
        truths=truths,
        predictions=scores.predictions,
        confidences=scores.confidences,
    )


class _Scores(NamedTuple):
    """What is kept of each image: predicted class, its probability, the true class's rank from 0, and its loss."""

    predictions: NDArray[np.int64]
    confidences: NDArray[np.float64]
    ranks: NDArray[np.int64]
    losses: NDArray[np.float64]

    @classmethod
    def of(cls, probabilities: NDArray[np.float64], truths: NDArray[np.int64]) -> _Scores:
        """From probabilities [images, classes]; of equal ones the first class counts as the greater."""
        each = np.arange(len(truths))
        own = probabilities[each, truths]
        before = np.arange(probabilities.shape[1]) < truths[:, np.newaxis]
        greater = probabilities > own[:, np.newaxis]
        equal = (probabilities == own[:, np.newaxis]) & before
        predictions = probabilities.argmax(1)
        losses = -np.log(np.maximum(own, np.finfo(np.float32).tiny))
        losses[np.abs(probabilities.sum(1) - 1) > _SUM] = np.nan  # no distribution over the classes
        return cls(predictions, probabilities[each, predictions], (greater | equal).sum(1), losses)


def _rows(split: Samples, batch_size: int, limit: int | None) -> NDArray[np.int64]:
    if batch_size < 1:
        raise TrainingError(f"batch_size must be at least 1, not {batch_size}")
    if limit is not None and limit < 1:
        raise TrainingError(f"limit must be at least 1, not {limit}")
    if not len(split):
        raise TrainingError("there are no images to evaluate on")
    number = min(limit or len(split), len(split))
    return np.arange(number, dtype=np.int64) * len(split) // number


def _labels(split: Samples, rows: NDArray[np.int64], scorer: Scorer) -> NDArray[np.int64]:
    truths: NDArray[np.int64] = np.asarray(split.labels)[rows].astype(np.int64)
    if truths.min() < 0 or truths.max() >= scorer.classes:
        wrong = truths.min() if truths.min() < 0 else truths.max()
        raise TrainingError(
            f"{scorer.name} has {scorer.classes} classes, numbered from 0, but an image's label is {wrong}: "
            "it was made for other data"
        )
    return truths


def _check_fit(scorer: Scorer, preprocessing: Preprocessing, protocol: Protocol) -> None:
    makes = (*preprocessing.size, preprocessing.channels)
    if any(want not in (None, have) for want, have in zip(scorer.input_shape, makes, strict=True)):
        raise TrainingError(f"the preprocessing makes {makes}, but {scorer.name} takes {scorer.input_shape}")
    if protocol.scales and scorer.input_shape[:2] != (None, None):
        raise TrainingError(
            f"{scorer.name} takes {scorer.input_shape[0]}×{scorer.input_shape[1]} pixels alone, and scales need a "
            "network for images of any size: evaluate the .keras model, or export one built with "
            "input_shape=(None, None, channels)"
        )
    if protocol.crops == 10 and preprocessing.resize is None:
        raise TrainingError(
            f"ten crops need images larger than the input, but the preprocessing of {scorer.name} resizes straight to "
            f"{preprocessing.size[0]}×{preprocessing.size[1]}: average over mirror images (flip) or scales, or pass a "
            "preprocessing with resize="
        )


def _decoded(
    split: Samples, rows: NDArray[np.int64], preprocessing: Preprocessing, protocol: Protocol, batch_size: int
) -> Iterator[tuple[int, list[list[NDArray[np.uint8]]]]]:
    """The views of each image, a batch at a time, and how many images came before.

    The next batch is decoded by threads while the caller scores one; no more than these two are in memory.
    """

    def read(row: int) -> list[NDArray[np.uint8]]:
        try:
            return protocol.views(preprocessing, split.image(row))
        except ImageError as error:
            raise DataError(f"{split.name(row)} cannot be evaluated: {error}") from error

    pool = ThreadPoolExecutor(usable_cpus(), "decode")
    ahead: deque[tuple[int, list[Future[list[NDArray[np.uint8]]]]]] = deque()
    try:
        for start in range(0, len(rows), batch_size):
            ahead.append((start, [pool.submit(read, int(row)) for row in rows[start : start + batch_size]]))
            if len(ahead) == 2:
                done, batch = ahead.popleft()
                yield done, [image.result() for image in batch]
        done, batch = ahead.popleft()
        yield done, [image.result() for image in batch]
    finally:
        pool.shutdown(cancel_futures=True)


def _average(
    scorer: Scorer, preprocessing: Preprocessing, images: list[list[NDArray[np.uint8]]], area: int
) -> NDArray[np.float64]:
    """Mean probabilities [images, classes] over each image's views; views of one size go together.

    Args:
        scorer: the network.
        preprocessing: normalises the views.
        images: the views of each image, the same number each.
        area: pixels that are scored at once.
    """
    sums = np.zeros((len(images), scorer.classes))
    groups: dict[tuple[int, ...], list[tuple[int, NDArray[np.uint8]]]] = {}
    for number, views in enumerate(images):
        for view in views:
            groups.setdefault(view.shape, []).append((number, view))
    for (height, width, _), members in groups.items():
        step = max(area // (height * width), 1)
        for start in range(0, len(members), step):
            part = members[start : start + step]
            tensor = preprocessing.normalize(np.stack([view for _, view in part]))
            np.add.at(sums, [number for number, _ in part], _probabilities(scorer, tensor))
    return sums / len(images[0])


def _probabilities(scorer: Scorer, tensor: NDArray[np.float32]) -> NDArray[np.float64]:
    try:
        scores: NDArray[np.float64] = np.asarray(scorer.score(tensor), np.float64)
    except Exception as error:  # the runtimes' exceptions share no other base
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise TrainingError(
            f"{scorer.name} cannot score {len(tensor)} images of {tensor.shape[1]}×{tensor.shape[2]} ({what}): they "
            "may be too small for it, or too many for the memory (batch_size)"
        ) from error
    if scores.shape != (len(tensor), scorer.classes):
        raise TrainingError(
            f"{scorer.name} gives scores {list(scores.shape)} for {len(tensor)} images and {scorer.classes} classes"
        )
    if not np.isfinite(scores).all():
        raise TrainingError(
            f"{scorer.name} gives scores that are not finite for images of {tensor.shape[1]}×{tensor.shape[2]}: its "
            "weights diverged, or the images are too small for it"
        )
    if scorer.kind == "probabilities":
        return scores
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)
