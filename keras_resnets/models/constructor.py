"""Makes the public constructors: the arguments of keras.applications in front of a family's builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from keras_resnets.models import REGISTRY
from keras_resnets.models.layers import Face

Net = TypeVar("Net")
Row = TypeVar("Row")
InputShape = tuple[int | None, int | None, int]

_DOC = """{title}

    {numbers}

    Args:
        include_top: with the classifier; without it the output is the last feature map, or see `pooling`.
        weights: None (random) or the path of a `.weights.h5` or `.keras` file of the same network.
        input_tensor: a Keras tensor [batch, height, width, channels] to build on.
        input_shape: (height, width, channels), None for a side of any size. Default {shape}.
        pooling: without the top: None for the feature map, "avg" or "max" for a vector [batch, features].
        classes: number of classes.
        classifier_activation: activation of the classifier; None gives logits.
        name: the model's name.
        variant: {variants}.
        shortcut: {shortcut}.

    Returns:
        A keras.Model from [batch, height, width, channels] to [batch, classes]; without the top to a feature
        map [batch, height, width, features], or pooled [batch, features].

    Raises Python's recursion limit as far as the depth needs, upward only.

    Raises:
        ValueError: when an argument cannot be meant.
        WeightsError: when `weights` is missing or does not fit.
"""


class Constructor(Protocol):
    """What ResNet50 and its siblings look like to a type checker."""

    def __call__(
        self,
        include_top: bool = ...,
        weights: str | Path | None = ...,
        input_tensor: Any = ...,
        input_shape: InputShape | None = ...,
        pooling: str | None = ...,
        classes: int = ...,
        classifier_activation: str | None = ...,
        name: str = ...,
        *,
        variant: str = ...,
        shortcut: str | None = ...,
    ) -> Any: ...


def constructor(
    model: str,
    build: Callable[[Any, Face, str, str | None], Any],
    table: Mapping[str, Any],
    default_variant: str,
) -> Constructor:
    """The public constructor of `model`, a row of a family's `table`."""
    info = REGISTRY[model]

    def create(
        include_top: bool = True,
        weights: str | Path | None = None,
        input_tensor: Any = None,
        input_shape: InputShape | None = None,
        pooling: str | None = None,
        classes: int = info.classes,
        classifier_activation: str | None = "softmax",
        name: str = model,
        *,
        variant: str = default_variant,
        shortcut: str | None = None,
    ) -> Any:
        face = Face(include_top, weights, input_tensor, input_shape, pooling, classes, classifier_activation, name)
        return build(table[model], face, variant, shortcut)

    create.__name__ = create.__qualname__ = info.constructor
    create.__module__ = info.module
    create.__doc__ = _DOC.format(
        title=f"{info.constructor}: {info.paper}.",
        numbers=f"{info.parameters:,} parameters, {info.multiply_adds / 1e9:.3g} billion multiply-adds.",
        shape=info.input_shape,
        variants=info.variants,
        shortcut=info.shortcuts,
    )
    return create


def pick_variant(variants: Mapping[str, Row], name: str) -> Row:
    """One row of a family's table of variants.

    Raises:
        ValueError: for a name that it does not have.
    """
    if name not in variants:
        raise ValueError(f"variant must be one of {', '.join(map(repr, variants))}, not {name!r}")
    return variants[name]


def shortcut_option(default: str | None, asked: str | None) -> str | None:
    """The shortcut option of a network: the one asked for, or its own.

    Raises:
        ValueError: when it is none of A, B and C, or the network is a plain one.
    """
    if asked is None:
        return default
    if default is None:
        raise ValueError(f"shortcut={asked!r}: a plain network has no shortcut")
    if asked not in ("A", "B", "C"):
        raise ValueError(f"shortcut must be 'A', 'B' or 'C', not {asked!r}")
    return asked
