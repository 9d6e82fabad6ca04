"""Class names, and what a row of scores says in words."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FEW = 2048  # scores
DIGITS = tuple("0123456789")
FASHION_MNIST = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@functools.cache
def imagenet() -> tuple[str, ...]:
    """Names of ImageNet-1k's 1000 classes in the order of their synsets: each one's first lemma in WordNet."""
    lines = resources.files("keras_resnets").joinpath("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.partition("\t")[2] for line in lines)


def of(labels: str) -> tuple[str, ...]:
    """The class names that weights of the ledger call by "imagenet" or "fashion_mnist"."""
    return imagenet() if labels == "imagenet" else {"fashion_mnist": FASHION_MNIST}[labels]


class Prediction(NamedTuple):
    """One class of a top-k list: its name, its index in the output and its probability."""

    label: str
    class_index: int
    score: float


def decode_predictions(scores: ArrayLike, labels: Sequence[str] | None = None, top: int = 5) -> list[list[Prediction]]:
    """The `top` most probable classes of each row, best first.

    Args:
        scores: [batch, classes] probabilities.
        labels: one name a class; without them a class is called "class 7".
        top: how many; more than there are classes gives all of them.

    Raises:
        ValueError: when the shape is not [batch, classes], `top` < 1, or labels and classes differ.
    """
    rows = np.asarray(scores)
    if rows.ndim != 2:
        raise ValueError(f"scores must have shape [batch, classes], not {list(rows.shape)}")
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    if labels is not None and len(labels) != rows.shape[1]:
        raise ValueError(f"{len(labels)} labels for {rows.shape[1]} classes")
    return [
        [Prediction(labels[i] if labels is not None else f"class {i}", i, float(row[i])) for i in best]
        for row, best in zip(rows, _best(rows, top), strict=True)
    ]


def _best(rows: NDArray[Any], top: int) -> list[list[int]]:
    """The columns of the highest values of each row, best first; of equals the first."""
    if rows.size > _FEW:
        order: list[list[int]] = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :top].tolist()
        return order
    # NumPy sorts without Python's lock: a server's event loop would wait for it in every request.
    return [heapq.nlargest(top, range(len(row)), key=row.__getitem__) for row in rows.tolist()]
