"""What an evaluation found: accuracies with their uncertainty, rates of each class, and confusions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_NORMAL_95 = 1.959963984540054  # 97.5% quantile of the standard normal distribution


class ClassRow(NamedTuple):
    """One class: its number of images, and its rates; NaN where nothing is divided by nothing."""

    label: str
    images: int
    precision: float
    recall: float
    f1: float


class Confusion(NamedTuple):
    """One kind of mistake: how many images of `truth` were taken for `predicted`, and which share of them."""

    truth: str
    predicted: str
    images: int
    share: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found.

    Args:
        labels: class names.
        protocol: in words.
        confusion: int64 [classes, classes]: images of each true class (row) by predicted class (column).
        top5: share of images whose class is among the five most probable (or all, where there are fewer).
        cross_entropy: mean −log(probability of the true class); None where a row of scores is no distribution
            (a sigmoid head). Probabilities count as at least float32's smallest normal number, 1.2e-38.
        seconds: that reading, preprocessing and scoring took.
        rows: int64 [images], each image's number in its split.
        truths, predictions: int64 [images].
        confidences: float64 [images], the probability of the predicted class.
    """

    labels: tuple[str, ...]
    protocol: str
    confusion: NDArray[np.int64]
    top5: float
    cross_entropy: float | None
    seconds: float
    rows: NDArray[np.int64]
    truths: NDArray[np.int64]
    predictions: NDArray[np.int64]
    confidences: NDArray[np.float64]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.rows)

    @property
    def top1(self) -> float:
        """Share of images whose most probable class is the true one."""
        return float(np.trace(self.confusion)) / self.images

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95% confidence interval of `top1` (Wilson 1927)."""
        return wilson(int(np.trace(self.confusion)), self.images)

    @property
    def images_per_second(self) -> float:
        """Images over seconds; a view is no image."""
        return self.images / self.seconds

    def class_rows(self) -> list[ClassRow]:
        """One row a class, in the classes' order."""
        hits = np.diag(self.confusion).astype(np.float64)
        truths, predicted = self.confusion.sum(1), self.confusion.sum(0)
        with np.errstate(invalid="ignore"):
            rates = np.stack([hits / predicted, hits / truths, 2 * hits / (truths + predicted)], axis=1)
        return [
            ClassRow(label, int(images), *map(float, row))
            for label, images, row in zip(self.labels, truths, rates, strict=True)
        ]

    def worst_classes(self, number: int = 5) -> list[ClassRow]:
        """The classes with images of the lowest recall, the lowest first."""
        present = [row for row in self.class_rows() if row.images]
        return sorted(present, key=lambda row: row.recall)[:number]

    def confusions(self, number: int = 5) -> list[Confusion]:
        """The most frequent mistakes, the most frequent first."""
        mistakes = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(-mistakes, axis=None, kind="stable")[:number]
        found = []
        for truth, predicted in zip(*np.unravel_index(order, mistakes.shape), strict=True):
            if images := int(mistakes[truth, predicted]):
                share = images / int(self.confusion[truth].sum())
                found.append(Confusion(self.labels[truth], self.labels[predicted], images, share))
        return found

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON types; an undefined rate is None."""
        return {
            "protocol": self.protocol,
            "images": self.images,
            "top1": self.top1,
            "top1_interval": list(self.top1_interval),
            "top5": self.top5,
            "cross_entropy": self.cross_entropy,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "classes": [{name: _defined(value) for name, value in row._asdict().items()} for row in self.class_rows()],
            "confusion": self.confusion.tolist(),
        }


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def wilson(successes: int, number: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion (Wilson 1927, JASA 22, p. 209).

    It keeps its coverage near 0 and 1, where the normal interval has none.
    """
    z2 = _NORMAL_95**2
    centre = (successes + z2 / 2) / (number + z2)
    spread = _NORMAL_95 / (number + z2) * math.sqrt(successes * (number - successes) / number + z2 / 4)
    return max(centre - spread, 0.0), min(centre + spread, 1.0)
