"""What all peers of benchmarks/serve.py do with an image, and their command line."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

MODEL = "BENCHMARK_MODEL"
MAX_BATCH = 16
BATCH_SECONDS = 0.002  # that a first request waits for others
_SCALE, _MEAN, _STD = np.float32(1 / 255), np.float32(0.5), np.float32(0.25)  # as the bundle's preprocessing


class Classifier:
    """A session of one thread, of the file that the environment names."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ[MODEL], options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def __call__(self, images: Sequence[bytes]) -> list[list[dict[str, Any]]]:
        """The best classes of each image file."""
        return self.run([tensor(Image.open(io.BytesIO(image))) for image in images])

    def run(self, tensors: Sequence[Any]) -> list[list[dict[str, Any]]]:
        """The best classes of each tensor."""
        (scores,) = self.session.run(None, {self.name: np.stack(tensors)})
        best = (-scores).argsort(axis=1)[:, :5].tolist()
        rows = scores.tolist()
        return [[{"class": i, "score": row[i]} for i in order] for order, row in zip(best, rows, strict=True)]


def tensor(image: Image.Image) -> Any:
    """float32 [28, 28, 1] of an image."""
    return ((np.asarray(image.convert("L"), np.float32) * _SCALE - _MEAN) / _STD)[:, :, None]


def options(doc: str | None) -> argparse.Namespace:
    """The command line: port and workers; the model goes into the environment, for processes to come."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    os.environ[MODEL] = str(given.model.resolve())
    return given
