"""Makes the public constructors: the arguments of keras.applications in front of a family's builder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from keras_resnets.models import REGISTRY, ModelInfo
from keras_resnets.models.files import Architecture, describe
from keras_resnets.models.layers import Face, variables_at_the_end
from keras_resnets.models.loading import find_source, load_source, warn_of_unknown_variant

Row = TypeVar("Row")
InputShape = tuple[int | None, int | None, int]

_DOC = """{title}

    {numbers}

    Args:
        include_top: with the classifier; without it the output is the last feature map, or see `pooling`.
        weights: None (random), a record or tag of `keras_resnets.list_weights({name!r})`{best}, or the path of a
            `.safetensors`, `.weights.h5`, `.h5` or `.keras` file of the same network. They bring the model's
            `preprocessing` and `labels` along. What cannot fit (another number of classes, channels or pixels) stays
            random, and a WeightsWarning says so.
        input_tensor: a Keras tensor [batch, height, width, channels] to build on.
        input_shape: (height, width, channels), None for a side of any size. Default {shape}, or that of `weights`.
        pooling: without the top: None for the {features}, "avg" or "max" for a vector [batch, features]{of}.
        classes: number of classes.
        classifier_activation: activation of the classifier; None gives logits.
        name: the model's name.
{options}

    Returns:
        A keras.Model from [batch, height, width, channels] to [batch, classes]; without the top to
        {features_shape}, or pooled [batch, features].

    Raises Python's recursion limit as far as the depth needs, upward only.

    Raises:
        ValueError: when an argument cannot be meant.
        WeightsError: when `weights` cannot be had, or are of another network or variant.
"""


class Constructor(Protocol):
    """What ResNet50 and its siblings look like to a type checker; a family takes the options it documents."""

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
        variant: str | None = ...,
        shortcut: str | None = ...,
        drop_path_rate: float = ...,
        dropout_rate: float = ...,
    ) -> Any: ...


def constructor(
    model: str, build: Callable[..., Any], table: Mapping[str, Any], options: Mapping[str, Any]
) -> Constructor:
    """The public constructor of a model.

    Args:
        model: its name: a row of the registry and of `table`.
        build: called with the row, the Face, and the options by name.
        table: the family's.
        options: the family's own arguments and their defaults; that of "variant" holds where the weights have none.
    """
    info = REGISTRY[model]
    own = {**options, "variant": None} if "variant" in options else options

    def create(
        include_top: bool = True,
        weights: str | Path | None = None,
        input_tensor: Any = None,
        input_shape: InputShape | None = None,
        pooling: str | None = None,
        classes: int = info.classes,
        classifier_activation: str | None = "softmax",
        name: str = model,
        **given: Any,
    ) -> Any:
        if unknown := sorted(set(given) - set(own)):
            raise TypeError(
                f"{info.constructor} has no argument {unknown[0]!r}; see help(keras_resnets.{info.constructor})"
            )
        chosen = {**own, **given}
        source = find_source(model, weights, chosen.get("variant"))
        if source and source.variant is None and own.get("variant", "") is None and chosen["variant"] is None:
            warn_of_unknown_variant(source, model, options["variant"])
        if "variant" in chosen and chosen["variant"] is None:
            chosen["variant"] = (source and source.variant) or options["variant"]
        if source and source.record and input_shape is None and input_tensor is None:
            seen = source.record.preprocessing
            input_shape = (*seen.size, seen.channels)
        face = Face(include_top, input_tensor, input_shape, pooling, classes, classifier_activation, name)
        with variables_at_the_end():
            made = build(table[model], face, **chosen)
        describe(made, None, None, Architecture(model, chosen, _plain_face(face, made)))
        if source:
            load_source(made, source)
        if input_tensor is not None and all(input_tensor is not tensor for tensor in made.inputs):
            made.preprocessing = None  # layers of the caller's stand in front: what they take is theirs to know
        return made

    create.__name__ = create.__qualname__ = info.constructor
    create.__module__ = info.module
    create.__doc__ = _document(info)
    create.__signature__ = _signature(create, own)  # type: ignore[attr-defined]
    return create


def _plain_face(face: Face, model: Any) -> dict[str, Any]:
    """The shared arguments as JSON types, to build the same network again."""
    activation = face.classifier_activation
    return {
        "include_top": bool(face.include_top),
        "input_shape": tuple(model.inputs[0].shape[1:]),
        "pooling": face.pooling,
        "classes": int(face.classes),
        "classifier_activation": activation if isinstance(activation, (str, type(None))) else "softmax",
    }


def _signature(create: Callable[..., Any], options: Mapping[str, Any]) -> inspect.Signature:
    """The signature with the family's options by name, for help() and editors."""
    shared = [p for p in inspect.signature(create).parameters.values() if p.kind is not p.VAR_KEYWORD]
    named = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value) for key, value in options.items()]
    return inspect.Signature([*shared, *named], return_annotation=Any)


def _document(info: ModelInfo) -> str:
    tokens = info.module.endswith(".vit")
    return _DOC.format(
        title=f"{info.constructor}: {info.paper}.",
        name=info.name,
        best=' ("imagenet" is the best one)' if info.classes == 1000 else "",
        numbers=f"{info.parameters:,} parameters, {info.multiply_adds / 1e9:.3g} billion multiply-adds.",
        shape=info.input_shape,
        options="\n".join(f"        {key}: {text}." for key, text in info.options),
        features="class token and patches" if tokens else "feature map",
        of=" of the patches" if tokens else "",
        features_shape="[batch, 1 + patches, features]" if tokens else "a feature map [batch, height, width, features]",
    )


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
