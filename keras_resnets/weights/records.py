"""What the ledger knows of pretrained weights, how they are chosen, and the error when they do not fit."""

from __future__ import annotations

import difflib
import fnmatch
from dataclasses import dataclass

from keras_resnets.preprocessing import Preprocessing

IMAGENET = "imagenet"
FASHION_MNIST = "fashion_mnist"
DEFAULT_RESOLUTION = 224  # that of `Weights.preprocessing`


class WeightsError(ValueError):
    """Weights that are missing, of another network, or unreadable."""


@dataclass(frozen=True)
class Result:
    """One published measurement: on ImageNet's 50,000 validation images, or the 10,000 test images of Fashion-MNIST.

    Args:
        top1, top5: accuracy in percent; None where it was not published.
        resolution: height and width of the input, in pixels.
        crop: the input's share of the resized image's shorter side; None where it was not published.
    """

    top1: float
    top5: float | None
    resolution: int
    crop: float | None


@dataclass(frozen=True)
class Weights:
    """One file of pretrained weights: where it is, what it belongs to and what it can do.

    Args:
        model: the model's name in the registry.
        tag: tells the weights of one model apart.
        source: "hub" (the Hugging Face hub), "keras" (the storage of keras.applications) or "package" (this package).
        repository: its repository on the hub, its folder in that storage, or in the package.
        file: its name there.
        revision: the commit; None takes the hub's main branch.
        hash: "sha256:…" or "md5:…"; None takes the SHA-256 that the hub announces.
        variant: the variant of the model that the weights were trained in; None where there is one alone.
        naming: "torch" (timm's names of the tensors), "keras" (those of keras.applications) or "zoo" (our own).
        license: SPDX identifier.
        results: published measurements.
        recipe: how it was trained.
        preprocessing: the transform of its training; for ImageNet at 224 pixels.
        page: where the results stand.
        classes, labels: how many classes, and which: "imagenet" or "fashion_mnist".
    """

    model: str
    tag: str
    source: str
    repository: str
    file: str
    revision: str | None
    hash: str | None
    variant: str | None
    naming: str
    license: str
    results: tuple[Result, ...]
    recipe: str
    preprocessing: Preprocessing
    page: str
    classes: int = 1000
    labels: str = "imagenet"

    @property
    def name(self) -> str:
        """Model and tag, as in "resnet50.a1_in1k"."""
        return f"{self.model}.{self.tag}"

    def top1_at(self, resolution: int) -> float | None:
        """Published top-1 accuracy in percent at an input size; None when it was not measured there."""
        return next((result.top1 for result in self.results if result.resolution == resolution), None)


def list_weights(model: str = "*") -> list[Weights]:
    """The records of the models that a name or shell pattern fits.

    The best of a model comes first: by top-1 at 224 pixels, or its highest where that was not measured.
    """
    from keras_resnets.weights.ledger import LEDGER

    chosen = [record for record in LEDGER if fnmatch.fnmatchcase(record.model, model.lower())]
    order = {name: index for index, name in enumerate(dict.fromkeys(record.model for record in chosen))}
    return sorted(chosen, key=lambda record: (order[record.model], -_figure(record)))


def find_weights(model: str, tag: str | None = None) -> Weights:
    """The record of one model's weights.

    Args:
        model: name in the registry.
        tag: None for the best there is, "imagenet" for the best of these, a tag, or model and tag as in
            "resnet50.a1_in1k".

    Raises:
        WeightsError: when the model has no such weights; the message names those that it has.
    """
    name = model.lower()
    records = [record for record in list_weights() if record.model == name]
    if not records:
        models = sorted({record.model for record in list_weights()})
        raise WeightsError(f"there are no pretrained weights of {model}" + _close(name, models))
    if tag is None or (tag == IMAGENET and records[0].labels == IMAGENET):
        return records[0]
    wanted = tag.removeprefix(f"{name}.")
    for record in records:
        if record.tag == wanted:
            return record
    tags = [record.tag for record in records]
    best = f'"{IMAGENET}" (the best of them) and ' if records[0].labels == IMAGENET else ""
    raise WeightsError(f"weights={tag!r} are not known of {name}{_close(wanted, tags)}; it has {best}{', '.join(tags)}")


def _figure(record: Weights) -> float:
    """The accuracy by which the weights of one model are ranked."""
    at_default = record.top1_at(DEFAULT_RESOLUTION)
    return at_default if at_default is not None else max((result.top1 for result in record.results), default=0.0)


def _close(wanted: str, names: list[str]) -> str:
    near = difflib.get_close_matches(wanted, names, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


# Loading a file.
