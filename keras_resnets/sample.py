"""What lets a new machine classify and serve at once: a bundle and pictures that come with the package.

The bundle was written by

    keras-resnets export resnet56 sample_bundle --weights fashion_mnist --images fashion_mnist --precision int8 \
        --no-saved-model --license "Apache-2.0; trained on Fashion-MNIST (MIT)"
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from keras_resnets.atomic import atomic_folder

BUNDLE = Path(__file__).parent / "sample_bundle"
# Top-1 of its precisions on the 10,000 test images of Fashion-MNIST, in percent.
TOP1 = {"float32": 94.13, "int8": 94.14}
CLOTHES, IMAGES = "clothes", "images"


def write_sample(folder: str | Path) -> tuple[Path, Path]:
    """Write a bundle and a picture of each of its classes into a folder, without TensorFlow or a download.

    The bundle is ResNet-56, trained on Fashion-MNIST, in float32 and in int8; the pictures are test images, 28×28, and
    called as their classes.

    Args:
        folder: which must not exist.

    Returns:
        The bundle's folder ("clothes") and that of the pictures ("images").

    Raises:
        FileExistsError: when the folder exists.
    """
    import numpy as np
    from PIL import Image

    from keras_resnets.data import load_dataset

    data = load_dataset("fashion_mnist_sample")
    with atomic_folder(folder) as draft:
        shutil.copytree(BUNDLE, draft / CLOTHES)
        (draft / IMAGES).mkdir()
        for number, name in enumerate(data.class_names):
            first = int((data.test.labels == number).argmax())
            picture = Image.fromarray(np.asarray(data.test.image(first))[..., 0])
            picture.save(draft / IMAGES / f"{picture_name(name)}.png")
    return Path(folder) / CLOTHES, Path(folder) / IMAGES


def picture_name(label: str) -> str:
    """ "T-shirt/top" as a file's name: "t_shirt_top"."""
    return re.sub(r"\W+", "_", label.lower())
