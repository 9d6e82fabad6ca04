"""Fixtures that several folders share: importlib mode does not let tests import each other."""

import os

# Before anything loads TensorFlow.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import importlib.util
import shutil
from pathlib import Path

import pytest

from keras_resnets import Preprocessing
from keras_resnets.data.fashion_mnist import _SYSTEM

COLOURS = ("red", "green", "blue")


def pytest_runtest_setup(item):
    """Tests of all images of Fashion-MNIST are marked, and skipped where Debian's package of them is absent."""
    if item.get_closest_marker("fashion_mnist") and not _SYSTEM.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")


@pytest.fixture(scope="session")
def neighbour():
    """Gives a module of the tests by its path in this folder."""

    def load(file):
        path = Path(__file__).parent / file
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def tiny_preprocessing():
    """8×8 grey pixels to -2…2."""
    return Preprocessing((8, 8), 1, scale=1 / 255, mean=(0.5,), std=(0.25,))


@pytest.fixture(scope="session")
def tiny_model():
    """Makes the smallest network of each kind of output: a convolution, global pooling, three classes."""

    def build(output="probabilities"):
        import keras

        images = keras.Input((8, 8, 1))
        # He initialisation keeps the scores of different images well apart.
        x = keras.layers.Conv2D(4, 3, activation="relu", kernel_initializer=keras.initializers.HeNormal(1))(images)
        x = keras.layers.GlobalAveragePooling2D()(x)
        if output != "features":
            activation = "softmax" if output == "probabilities" else None
            x = keras.layers.Dense(3, activation, kernel_initializer=keras.initializers.HeNormal(2))(x)
        return keras.Model(images, x, name=f"tiny_{output}")

    return build


@pytest.fixture(scope="session")
def exported(tiny_model, tiny_preprocessing, tmp_path_factory):
    """Gives (Keras model, bundle folder) of one kind of output, exported once; copy the folder to change it."""
    from keras_resnets.export import to_bundle

    done = {}

    def export(output="probabilities", *, preprocessed=True):
        key = output, preprocessed
        if key not in done:
            model = tiny_model(output)
            folder = tmp_path_factory.mktemp("exported") / output
            to_bundle(
                model,
                folder,
                preprocessing=tiny_preprocessing if preprocessed else None,
                labels=None if output == "features" else COLOURS,
                saved_model=False,
            )
            done[key] = model, folder
        return done[key]

    return export


@pytest.fixture
def bundle_copy(exported, tmp_path):
    """A bundle of this test's own, to damage."""
    return shutil.copytree(exported()[1], tmp_path / "bundle")
