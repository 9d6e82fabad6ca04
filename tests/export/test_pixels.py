"""Graphs that take uint8 pixels: the same numbers, with the normalisation in the first convolution."""

from collections import Counter

import keras
import numpy as np
import onnx
import pytest

import keras_resnets
from keras_resnets import Preprocessing
from keras_resnets.bundle import Bundle
from keras_resnets.cli import main
from keras_resnets.export import ExportError, to_bundle, to_onnx
from keras_resnets.serving import Engine

PRESETS = ("torch", "caffe", "tf")


def convolution_first(**options):
    images = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, kernel_initializer=keras.initializers.HeNormal(0), **options)(images)
    return keras.Model(images, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))))


def rescaled_first():
    images = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3)(keras.layers.Rescaling(2.0, offset=-1)(images))
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


def read_twice():
    images = keras.Input((32, 32, 3))
    both = [keras.layers.Conv2D(4, 3, padding="same")(images), keras.layers.Conv2D(4, 1)(images)]
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(keras.layers.Add()(both)))


MODELS = {
    "resnet20": lambda: keras_resnets.ResNet20(input_shape=(32, 32, 3), classes=5),
    "resnet18": lambda: keras_resnets.ResNet18(input_shape=(32, 32, 3), classes=5),
    "vgg11": lambda: keras_resnets.VGG11(input_shape=(32, 32, 3), classes=5),
    "asymmetric": lambda: convolution_first(padding="same", strides=2),
    "unpadded": convolution_first,
    "unpadded, no bias": lambda: convolution_first(use_bias=False),
    "rescaled": rescaled_first,
    "read twice": read_twice,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_pixels_give_what_keras_gives(name, preset, settle, tmp_path):
    model, how = settle(MODELS[name]()), Preprocessing.preset(preset, 32)
    bundle = to_bundle(model, tmp_path / "b", preprocessing=how, pixels=True, saved_model=False)  # proves it
    graph = onnx.load(bundle.path / "model.onnx").graph
    nodes = Counter(node.op_type for node in graph.node)
    plain = Counter(node.op_type for node in onnx.load(to_onnx(model, tmp_path / "plain.onnx")).graph.node)
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    folds = name not in ("rescaled", "read twice")
    expected = {"Cast": 1}
    if not folds:
        expected |= {"Sub": 1, "Mul": 1, **({"Gather": 1} if preset == "caffe" else {})}
    elif not name.startswith("unpadded"):
        expected |= {"Sub": 1}
    assert nodes - plain == expected
    # By a second way, from the pixels on.
    pixels = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    expected = np.asarray(model(how.normalize(pixels)))
    np.testing.assert_allclose(Engine(bundle).run(pixels), expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_without_a_mean_nothing_is_subtracted(resnet20, tmp_path):
    how = Preprocessing((8, 8), 1, scale=1 / 255, mean=(0.0,), std=(0.3,))
    to_onnx(resnet20, tmp_path / "m.onnx", preprocessing=how, pixels=True)
    nodes = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert nodes[0] == "Cast"
    assert not {"Sub", "Mul"} & set(nodes)


def test_the_engine_and_the_command_line_take_such_a_bundle(exported, tiny_preprocessing, tmp_path, capsys):
    model, plain = exported()
    labels = Bundle.open(plain).manifest.labels
    bundle = to_bundle(
        model, tmp_path / "b", preprocessing=tiny_preprocessing, labels=labels, pixels=True, saved_model=False
    )
    assert bundle.manifest.input_type == Bundle.open(bundle.path).manifest.input_type == "uint8"
    images = list(np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), np.uint8))
    np.testing.assert_allclose(
        Engine(bundle).predict_scores(images), Engine(plain).predict_scores(images), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(ValueError, match="takes uint8"):
        Engine(bundle).run(np.zeros((1, 8, 8, 1), np.float32))
    assert main(["verify", str(bundle.path)]) == 0
    assert "uint8" in (bundle.path / "report.md").read_text()


def test_it_cannot_be_without_a_preprocessing_that_fits(resnet20, tmp_path):
    for how in (None, Preprocessing((8, 8), 3)):
        with pytest.raises(ExportError, match="preprocessing"):
            to_onnx(resnet20, tmp_path / "m.onnx", preprocessing=how, pixels=True)
        with pytest.raises(ExportError, match="preprocessing"):
            to_bundle(resnet20, tmp_path / "b", preprocessing=how, pixels=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", PRESETS)
def test_every_pixel_comes_back(preset):
    how = Preprocessing.preset(preset, 16)
    pixels = np.stack([np.roll(np.arange(256, dtype=np.uint8), i) for i in (0, 50, 99)], -1).reshape(1, 16, 16, 3)
    assert np.array_equal(how.denormalize(how.normalize(pixels)), pixels)
