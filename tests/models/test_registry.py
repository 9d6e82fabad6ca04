"""The registry against the networks themselves and against what was published."""

import inspect
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_resnets
from keras_resnets import create_model, list_models, model_info


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def multiply_adds(model):
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            total += int(np.prod(layer.output.shape[1:3])) * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.Dense):
            total += int(np.prod(layer.output.shape[1:-1])) * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, keras.layers.MultiHeadAttention):
            tokens, width = layer.output.shape[1:]
            # four projections; scores, and values weighed by them
            total += 4 * tokens * width**2 + 2 * tokens**2 * width
    return total


def as_published(count, published):
    """A count with the digits and the unit of a published one."""
    for unit, size in ((" G", 1e9), ("M", 1e6)):
        if published.endswith(unit):
            digits = len(published.removesuffix(unit).partition(".")[2])
            return f"{count / size:.{digits}f}{unit}"
    return f"{count:,}"


def is_large(name):
    return model_info(name).parameters > 60e6 or name in ("resnet1001v2", "resnet1202")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if is_large(name) else []) for name in list_models()]
)
def test_the_recorded_and_published_counts_are_those_of_the_network(name):
    info = model_info(name)
    model = create_model(name)
    assert info.parameters == count(model.trainable_variables)
    assert info.multiply_adds == multiply_adds(model)
    assert model.input_shape == (None, *info.input_shape)
    assert model.output_shape == (None, info.classes)
    if info.published:
        published, source = info.published
        counted = info.parameters
        if "without batch norm" in source:
            norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
            counted -= count(v for layer in norms for v in layer.trainable_variables)
        assert as_published(counted, published) == published
    if info.published_multiply_adds:
        published, _ = info.published_multiply_adds
        assert as_published(info.multiply_adds, published) == published


def test_every_constructor_is_public_and_documented():
    for name in list_models():
        info = model_info(name)
        constructor = getattr(keras_resnets, info.constructor)
        assert constructor.__name__ == info.constructor
        assert f"{info.parameters:,}" in inspect.getdoc(constructor)
        assert info.constructor in dir(keras_resnets)


def test_constructors_take_the_arguments_of_keras_applications():
    theirs = list(inspect.signature(keras.applications.ResNet50).parameters)
    for name in list_models():
        info = model_info(name)
        ours = list(inspect.signature(getattr(keras_resnets, info.constructor)).parameters)
        assert ours == [*theirs, *dict(info.options)]
    with pytest.raises(TypeError, match="ViT_Ti16 has no argument 'shortcut'"):
        keras_resnets.ViT_Ti16(shortcut="A")


def test_every_option_is_documented_with_its_default_where_it_has_one():
    for name in list_models():
        document = inspect.getdoc(getattr(keras_resnets, model_info(name).constructor))
        for option, text in model_info(name).options:
            assert f"{option}: {text}." in document


def test_list_models_filters_as_a_shell_does():
    assert list_models("resnet*v2")[:2] == ["resnet18v2", "resnet34v2"]
    assert all(re.fullmatch(r"plainnet\d+", name) for name in list_models("Plain*"))
    assert list_models("nothing") == []


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="resnet50"):
        model_info("resnet5O")
    with pytest.raises(ValueError, match="list_models"):
        create_model("zzzzzz")
    assert model_info("ResNet50") is model_info("resnet50")


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="ResNet51"):
        keras_resnets.ResNet51  # noqa: B018


def test_the_registry_loads_no_framework():
    code = (
        "import sys, keras_resnets as k; k.list_models(); k.model_info('resnet50'); "
        "print([m for m in ('keras', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
