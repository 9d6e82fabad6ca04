"""What gives class scores, whatever computes them: a Keras model, a SavedModel, or another runtime's function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra
from keras_resnets.preprocessing import Preprocessing
from keras_resnets.training.config import TrainingError

KINDS = ("probabilities", "logits")
_SAME = 1e-3  # of the largest score, between a network and itself with its sides left open


@dataclass(frozen=True)
class Scorer:
    """A classifier as evaluation sees it.

    Args:
        name: for tables and messages.
        score: from float32 [batch, height, width, channels] to scores [batch, classes].
        input_shape: (height, width, channels) that it takes, None for a side of any size.
        classes: number of classes.
        kind: of its scores: "probabilities" or "logits".
        preprocessing: how an image becomes its input; None where that is not known.
        labels: class names, or None.

    Raises:
        TrainingError: when it gives no class scores, or labels and classes differ.
    """

    name: str
    score: Callable[[NDArray[np.float32]], Any]
    input_shape: tuple[int | None, ...]
    classes: int
    kind: str
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise TrainingError(f"{self.name} gives {self.kind}, not class scores: it cannot be evaluated")
        if self.labels is not None and len(self.labels) != self.classes:
            raise TrainingError(f"{self.name} has {len(self.labels)} class names for {self.classes} classes")


def keras_scorer(model: Any, *, any_size: bool = False) -> Scorer:
    """A Keras model [batch, height, width, channels] → [batch, classes] as a Scorer, in inference mode.

    Args:
        model: its `preprocessing` and `labels` are taken over where it has them (see `models.files.describe`).
        any_size: score images of any size, for which the network is built again; see `with_open_sides`.

    Raises:
        TrainingError: when it is no classifier of images, or cannot take images of any size.
    """
    with extra("tensorflow"):
        import tensorflow as tf

    from keras_resnets.models.layers import last_layer, squashes

    shapes = [tuple(tensor.shape) for tensor in (*model.inputs, *model.outputs)]
    if [len(shape) for shape in shapes] != [4, 2] or not _classifies(model):
        raise TrainingError(
            f"{model.name} maps {' to '.join(str(list(shape)) for shape in shapes)}: to be evaluated it must map "
            "images [batch, height, width, channels] to class scores [batch, classes]"
        )
    name = model.name
    if any_size:
        model = with_open_sides(model)
    # One trace for every batch size: a thousand layers take a quarter of a minute to trace.
    spec = tf.TensorSpec([None, *model.inputs[0].shape[1:]], tf.float32)
    call = tf.function(lambda images: model(images, training=False), input_signature=[spec])
    return Scorer(
        name=name,
        score=lambda images: tf.cast(call(images), tf.float32).numpy(),
        input_shape=tuple(model.inputs[0].shape[1:]),
        classes=shapes[1][-1],
        kind="probabilities" if squashes(last_layer(model)) else "logits",
        preprocessing=getattr(model, "preprocessing", None),
        labels=getattr(model, "labels", None),
    )


def saved_model_scorer(
    folder: str | Path, preprocessing: Preprocessing | None = None, labels: tuple[str, ...] | None = None
) -> Scorer:
    """A SavedModel of `keras_resnets.export` as a Scorer; Keras is not needed.

    Args:
        folder: the SavedModel's.
        preprocessing, labels: as in the bundle that it lies in; a SavedModel does not say them.

    Raises:
        TrainingError: when it cannot be loaded, or has not that export's signature.
    """
    with extra("tensorflow"):
        import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(folder))
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise TrainingError(f"{folder} is not a readable SavedModel: {error}") from error
    signature = loaded.signatures.get("serving_default")
    inputs = list(signature.structured_input_signature[1].values()) if signature else []
    outputs = dict(signature.structured_outputs) if signature else {}
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].shape.rank != 4:
        raise TrainingError(f"{folder} has no signature serving_default from images to scores: export it again")
    ((kind, scores),) = outputs.items()
    if kind not in (*KINDS, "features"):
        raise TrainingError(
            f"{folder} does not say what its output {kind!r} means: write it with keras_resnets.export.to_saved_model"
        )

    def score(images: NDArray[np.float32]) -> Any:
        # Through `loaded`: a signature does not keep alive what it belongs to.
        return loaded.signatures["serving_default"](**{inputs[0].name: tf.constant(images)})[kind].numpy()

    height, width, channels = inputs[0].shape.as_list()[1:]
    return Scorer(str(folder), score, (height, width, channels), scores.shape[-1], kind, preprocessing, labels)


def with_open_sides(model: Any) -> Any:
    """The same network for images of any size: built again with input_shape (None, None, channels), same weights.

    Its global pooling then averages whatever the last feature map is, which equals the fully convolutional form
    of He et al. 2015, Section 3.4: the classifier at every position of that map, and the logits averaged.

    Raises:
        TrainingError: when the model is not of this package, or of a family that needs a fixed input size.
    """
    if model.inputs[0].shape[1:3] == (None, None):
        return model
    own = getattr(model, "architecture", None)
    if own is None:
        raise TrainingError(
            f"{model.name} does not say which network of the registry it is, so it cannot be built for images of any "
            "size: build it with input_shape=(None, None, channels), or leave out the scales"
        )
    from keras_resnets.models import create_model

    shape = (None, None, model.inputs[0].shape[-1])
    try:
        with _dtypes_of(model):
            opened = create_model(own.model, **{**own.options, **own.face, "input_shape": shape})
    except ValueError as error:
        raise TrainingError(
            f"{own.model} cannot take images of any size ({error}): leave out the scales; ten crops (crops=10) work"
        ) from error
    try:
        opened.set_weights(model.get_weights())
        same = _agree(model, opened)
    except ValueError:
        same = False
    if not same:
        raise TrainingError(
            f"{model.name} is not the {own.model} that it says it is: it was changed after it was built, and cannot be "
            "built again for images of any size; leave out the scales"
        )
    opened.preprocessing, opened.labels = model.preprocessing, model.labels
    return opened


def _dtypes_of(model: Any) -> AbstractContextManager[None]:
    """New layers get the dtype policy that the model's first layer with weights has."""
    from keras_resnets.models.layers import dtype_policy

    own = next((layer.dtype_policy for layer in model.layers if layer.weights), None)
    return nullcontext() if own is None else dtype_policy(own)


def _agree(model: Any, other: Any) -> bool:
    shape = [side or 64 for side in model.inputs[0].shape[1:]]
    noise = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    want, got = (np.asarray(net(noise, training=False), np.float64) for net in (model, other))
    diverged = not np.isfinite(want).all()  # which evaluation then says
    return diverged or bool(np.abs(want - got).max() <= _SAME * np.abs(want).max())


def _classifies(model: Any) -> bool:
    own = getattr(model, "architecture", None)
    return own is None or bool(own.face.get("include_top", True))
