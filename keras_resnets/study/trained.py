"""The trained networks that studies look at, with images that they were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets.data import load_dataset
from keras_resnets.models import create_model, model_info
from keras_resnets.models.files import load_model
from keras_resnets.study.kept import Kept
from keras_resnets.study.networks import family_of
from keras_resnets.study.outcome import StudyError
from keras_resnets.training.config import RECIPE, read_recipe
from keras_resnets.training.records import MODEL
from keras_resnets.weights import list_weights

WEIGHTS = "fashion_mnist"  # tag of the weights that the package brings
SAMPLE = "fashion_mnist_sample"  # and test images
NETWORKS = ("plainnet20", "resnet20", "plainnet56", "resnet56")  # that studies look at unless told otherwise


class Trained(NamedTuple):
    """A trained classifier and test images.

    Args:
        name: how tables call it.
        model: the Keras model.
        images: float32 [number, height, width, channels], as it takes them.
        labels: int64 [number].
    """

    name: str
    model: Any
    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    @property
    def family(self) -> str:
        """ "plain" or "residual"."""
        architecture = getattr(self.model, "architecture", None)
        name = architecture.model if architecture else self.name
        return family_of(name)

    def kept(self, folder: Path, **settings: Any) -> Kept:
        """What is measured of it with these settings, in a file of its own.

        Raises:
            StudyError: when the file is of other settings.
        """
        file = folder / f"{self.name}.json".replace(" ", "")
        return Kept(file, {"network": self.name, "images": len(self.images), **settings})


def trained_network(source: str | Path, images: int = 0, data: str | None = None) -> Trained:
    """A trained network and the test images of its data.

    Args:
        source: the folder of a training run, a .keras file, or a name of the registry that has weights of the package
            ("resnet56").
        images: test images, spread evenly over all; 0: all.
        data: name of the data set, where the source does not tell it; for the package's weights it is the 1,000 test
            images that come with them.

    Raises:
        StudyError: when there is no such network, or it does not carry its preprocessing.
        WeightsError, DataError: when weights or images cannot be had.
    """
    place = Path(source)
    recipe = read_recipe(place) if (place / RECIPE).is_file() else None
    if recipe:
        if not (place / MODEL).is_file():
            raise StudyError(
                f"the training in {place} is not finished: keras-resnets train --out {place} goes on with it"
            )
        model = load_model(place / MODEL)
    elif str(source).endswith(".keras"):
        model = load_model(place)
    else:
        model = _shipped(str(source))
    if getattr(model, "preprocessing", None) is None:
        raise StudyError(f"{source} does not carry its preprocessing: save it with keras_resnets.save_model")
    split = load_dataset(data or (recipe.data if recipe else SAMPLE)).test
    rows = np.arange(len(split)) if not images else np.linspace(0, len(split) - 1, min(images, len(split))).astype(int)
    taken = split.take(rows)
    prepared = model.preprocessing([taken.image(row) for row in range(len(taken))])
    return Trained(recipe.model if recipe else model.name, model, prepared, taken.labels)


def _shipped(source: str) -> Any:
    name = model_info(source).name
    if not any(record.source == "package" for record in list_weights(name)):
        raise StudyError(
            f"{name} has no weights in this package: train it (keras-resnets train --recipe fashion_mnist --model "
            f"{name} --out runs/{name}), and name the run's folder"
        )
    return create_model(name, weights=WEIGHTS)


def trained_networks(sources: Sequence[str | Path], images: int = 0, data: str | None = None) -> list[Trained]:
    """Several; two of one name are numbered."""
    found: list[Trained] = []
    for source in sources:
        one = trained_network(source, images, data)
        same = sum(other.name.partition(" #")[0] == one.name for other in found)
        found.append(one._replace(name=f"{one.name} #{same + 1}") if same else one)
    return found
