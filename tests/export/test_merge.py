"""Nodes that are merged once the weights are known: gone where that is exact, and only there."""

import collections

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers

from keras_resnets.export import to_onnx


def export(model, tmp_path):
    """The operators of a model's ONNX file, after comparing its values with Keras's at three batch sizes."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        signs = 1 if "variance" in variable.name else random.choice([-1, 1], variable.shape)
        variable.assign(random.uniform(0.5, 1.5, variable.shape) * signs)
    file = to_onnx(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    images = random.normal(size=(17, *model.input_shape[1:])).astype(np.float32)
    for batch in (1, 3, 17):
        expected = np.asarray(model(images[:batch], training=False))
        found = session.run(None, {"images": images[:batch]})[0]
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    return collections.Counter(node.op_type for node in onnx.load(file).graph.node)


def chain(*parts, shape=(9, 9, 4)):
    x = image = keras.Input(shape)
    for part in parts:
        x = part(x)
    return keras.Model(image, x)


def pad():
    return layers.ZeroPadding2D(((1, 0), (1, 1)))


@pytest.mark.parametrize(
    ("parts", "pads"),
    [
        # A maximum of what has no negative values.
        ((layers.Conv2D(3, 3, activation="relu"), pad(), layers.MaxPooling2D(3, 2)), 0),
        ((layers.Conv2D(3, 3), layers.ReLU(6), pad(), layers.MaxPooling2D(2)), 0),
        ((layers.Conv2D(3, 3, activation="sigmoid"), layers.MaxPooling2D(2), pad(), layers.MaxPooling2D(3)), 0),
        # Of what may have some, or by more than the window's size, where it would be minus infinity.
        ((layers.Conv2D(3, 3), pad(), layers.MaxPooling2D(3, 2)), 1),
        ((layers.Conv2D(3, 3), layers.LeakyReLU(), pad(), layers.MaxPooling2D(3, 2)), 1),
        ((layers.Conv2D(3, 3, activation="relu"), layers.ZeroPadding2D(3), layers.MaxPooling2D(2, 1)), 1),
        # A mean counts its padding, here.
        ((layers.Conv2D(3, 3), pad(), layers.AveragePooling2D(3, 2)), 0),
        ((layers.Conv2D(3, 3), pad(), layers.AveragePooling2D(3, 2, "same")), 1),
        # A convolution pads with zeros.
        ((layers.Conv2D(3, 3), pad(), layers.Conv2D(3, 3)), 0),
        ((layers.Conv2D(3, 3), pad(), layers.Conv2D(3, 3, padding="same")), 0),
        ((layers.Conv2D(3, 3), pad(), layers.DepthwiseConv2D(3, 2)), 0),
    ],
)
def test_padding_with_zeros_becomes_the_pooling_s_own(parts, pads, tmp_path):
    assert export(chain(*parts), tmp_path)["Pad"] == pads


@pytest.mark.parametrize(
    ("parts", "operators"),
    [
        ((layers.Dense(3), layers.Rescaling([2.0, -1.0, 0.5])), {"MatMul": 1, "Add": 1}),
        ((layers.Dense(3), layers.Rescaling([2.0, -1.0, 0.5], [1.0, 2.0, 3.0])), {"MatMul": 1, "Add": 1}),
        ((layers.Dense(3, use_bias=False), layers.Rescaling(2.0)), {"MatMul": 1}),
        ((layers.Dense(3, use_bias=False), layers.Rescaling(2.0, 1.0)), {"MatMul": 1, "Add": 1}),
        ((layers.Conv2D(3, 3), layers.Rescaling([2.0, -1.0, 0.5]), layers.Conv2D(2, 1)), {"Conv": 2, "Transpose": 2}),
        ((layers.Conv2D(3, 3), layers.Rescaling(2.0, 1.0), layers.Conv2D(2, 1)), {"Conv": 2, "Transpose": 2}),
        ((layers.Conv2D(3, 3, use_bias=False), layers.BatchNormalization()), {"Conv": 1, "Transpose": 2}),
        ((layers.Flatten(), layers.Dense(3), layers.BatchNormalization()), {"Reshape": 1, "Gemm": 1}),
        # Behind an activation there is nothing to merge.
        ((layers.Dense(3, "relu"), layers.Rescaling(2.0)), {"MatMul": 1, "Add": 1, "Relu": 1, "Mul": 1}),
    ],
)
def test_factors_and_shifts_go_into_the_weights(parts, operators, tmp_path):
    assert export(chain(*parts), tmp_path) == operators


def test_padding_that_a_pooling_and_a_convolution_read_stays(tmp_path):
    image = keras.Input((9, 9, 4))
    padded = pad()(layers.ReLU()(image))
    pooled, convolved = layers.MaxPooling2D(3)(padded), layers.Conv2D(4, 3, 3)(padded)
    assert export(keras.Model(image, pooled + convolved), tmp_path)["Pad"] == 1


def test_factors_that_change_the_shape_stay(tmp_path):
    """One value for each row is none for each channel, though they are as many."""
    row = np.arange(1, 4, dtype=np.float32).reshape(3, 1)
    image = keras.Input((5, 3, 4))
    model = keras.Model(image, layers.Dense(3)(image) * row)
    assert export(model, tmp_path)["Mul"] == 1


def test_weights_that_others_read_stay(tmp_path):
    """One layer at two places, of which one is scaled; and a sum of which another layer reads a part."""
    image = keras.Input((5, 3, 4))
    shared, conv = layers.Dense(4), layers.Conv2D(4, 1)
    inner = conv(layers.Rescaling(3.0)(shared(layers.ReLU()(shared(image)))))
    model = keras.Model(image, layers.Add()([inner, layers.BatchNormalization()(inner), conv(image)]))
    found = export(model, tmp_path)
    assert found["BatchNormalization"] == found["Mul"] == 1


def test_an_image_is_flattened_as_it_lies(tmp_path):
    """The kernel's rows are put in its order, so that no transpose but the first is left."""
    found = export(
        chain(layers.Conv2D(6, 3, activation="relu"), layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(5)),
        tmp_path,
    )
    assert found["Transpose"] == found["Reshape"] == found["Gemm"] == 1


def test_an_image_that_is_flattened_for_two_is_transposed(tmp_path):
    image = keras.Input((9, 9, 4))
    flat = layers.Flatten()(layers.Conv2D(6, 3)(image))
    model = keras.Model(image, layers.Concatenate()([layers.Dense(5)(flat), layers.Dense(2)(flat)]))
    assert export(model, tmp_path)["Transpose"] == 2


def test_squeeze_and_excitation_has_no_reshape(tmp_path):
    image = keras.Input((9, 9, 4))
    x = layers.Conv2D(6, 3)(image)
    weight = layers.Reshape((1, 1, 6))(layers.GlobalAveragePooling2D()(x))
    weight = layers.Conv2D(6, 1, activation="sigmoid")(layers.Conv2D(2, 1, activation="relu")(weight))
    found = export(keras.Model(image, layers.GlobalAveragePooling2D()(x * weight)), tmp_path)
    assert found == {"Transpose": 1, "Conv": 3, "ReduceMean": 2, "Relu": 1, "Sigmoid": 1, "Mul": 1}
