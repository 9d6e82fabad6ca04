"""The handwritten digits that scikit-learn carries: 1,797 images of 8×8 (UCI optdigits, Alpaydin and Kaynak 1998)."""

from __future__ import annotations

import numpy as np

from keras_resnets.data.dataset import Dataset, Split, normalization
from keras_resnets.extras import extra
from keras_resnets.labels import DIGITS

TEST = 360


def load_digits() -> Dataset:
    """The digits with 360 of them, the same ones every time and each class in its share, as the test split.

    Raises:
        MissingExtraError: when scikit-learn is not installed.
    """
    with extra("tensorflow"):
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split

    raw = load()
    # 17 grey levels, 0 to 16.
    images = np.rint(raw.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = raw.target.astype(np.int64)
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=TEST, random_state=0, stratify=labels)
    splits = Split(images, labels).take(np.sort(train)), Split(images, labels).take(np.sort(test))
    return Dataset("digits", *splits, DIGITS, normalization(splits[0].images))
