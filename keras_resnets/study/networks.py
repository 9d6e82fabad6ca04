"""The networks that studies compare, built from the zoo's own table: any depth, batch norm or none, any precision."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_resnets.extras import extra
from keras_resnets.models import REGISTRY, create_model
from keras_resnets.models.files import load_model
from keras_resnets.models.layers import Face, allow_depth, variables_at_the_end
from keras_resnets.models.resnet import BASIC, CIFAR, STEM_32, Net, build
from keras_resnets.study.outcome import StudyError

with extra("tensorflow"):
    import keras

FAMILIES = {"plain": "plainnet", "residual": "resnet"}  # and how the registry's names begin
SHORTCUTS = {"plain": None, "residual": "A"}
_KERNELS = ("Conv1D", "Conv2D", "DepthwiseConv2D", "Dense", "EinsumDense")


def network(family: str, depth: int, *, input_shape: tuple[int, int, int] = (28, 28, 1), classes: int = 10) -> Any:
    """A network of He et al. 2015, Section 4.2, of any depth 6n + 2; the families differ in the shortcut alone.

    Raises:
        StudyError: for another depth.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise StudyError(f"these networks have 6n + 2 layers, 8, 14, 20 …, not {depth}")
    net = Net(BASIC, (blocks,) * 3, CIFAR, SHORTCUTS[family], STEM_32)
    face = Face(True, None, input_shape, None, classes, "softmax", f"{family}{depth}")
    with variables_at_the_end():
        return build(net, face, variant="v1.5")


def family_of(name: str) -> str:
    """The family of a network of the registry: "plain" without shortcuts, else "residual"."""
    return "plain" if name.startswith(("plain", "vgg")) else "residual"


def without_batch_norm(model: Any) -> Any:
    """The same network with the identity in the places of its batch norms, with the same kernels."""
    allow_depth(len(model.layers))

    def replace(layer: Any) -> Any:
        if isinstance(layer, keras.layers.BatchNormalization):
            return keras.layers.Identity(name=layer.name, dtype=layer.dtype_policy)
        return layer.__class__.from_config(layer.get_config())

    def call(layer: Any, *inputs: Any, mask: Any = None, **options: Any) -> Any:  # batch norm takes a mask
        return layer(*inputs, **options)

    copy = keras.models.clone_model(model, clone_function=replace, call_function=call)
    for layer in copy.layers:
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return copy


def scale_kernels(model: Any, factor: float) -> None:
    """Multiply what every convolution and dense layer multiplies by: 0.7 times He's standard deviation, say."""
    for layer in model._flatten_layers():
        if type(layer).__name__ in _KERNELS and factor != 1:
            layer.kernel.assign(layer.kernel * factor)


def any_network(source: str, arguments: dict[str, Any] | None = None) -> Any:
    """A Keras model: a name of the registry, a .keras file, or the function of a module that returns one.

    Args:
        source: "resnet56", "runs/mine/model.keras", "keras_hub.models:BertBackbone", "my_models.py:make".
        arguments: of the constructor or the function.

    Raises:
        StudyError: when it is none of these, or does not take the arguments.
    """
    arguments = arguments or {}
    if source.lower() in REGISTRY:
        return create_model(source, **arguments)
    if source.endswith(".keras"):
        if not Path(source).is_file():
            raise StudyError(f"{source} does not exist")
        return load_model(source)
    function = _function(source)
    try:
        made = function(**arguments)
    except (TypeError, ValueError) as error:
        raise StudyError(f"{source} does not take the arguments {arguments}: {error}") from error
    if not isinstance(made, keras.Model):
        raise StudyError(f"{source} returned {type(made).__name__}, not a Keras model")
    return made


def _function(source: str) -> Callable[..., Any]:
    module, colon, name = source.rpartition(":")
    if not colon:
        raise StudyError(f"{source!r} is no network of keras_resnets.list_models(), .keras file or module:function")
    try:
        home = _file(module) if module.endswith(".py") else importlib.import_module(module)
        return getattr(home, name)
    except (ImportError, OSError, AttributeError) as error:
        raise StudyError(f"{source} cannot be had: {error}") from error


def _file(path: str) -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
