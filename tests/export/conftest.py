"""Models to export, small and with batch-norm statistics that make their outputs finite."""

import keras
import numpy as np
import pytest

import keras_resnets


@pytest.fixture(autouse=True)
def seeded():
    """The same initial weights in every run."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def settle():
    """Give a fresh network random statistics, so that folding them wrongly shows, and finite outputs."""

    def settle(model, seed=0):
        random = np.random.default_rng(seed)
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization) and layer.scale:
                layer.gamma.assign(random.uniform(0.5, 1.5, layer.gamma.shape))
                layer.beta.assign(random.normal(0, 0.1, layer.beta.shape))
        shape = tuple(side or 32 for side in model.input_shape[1:])
        keras_resnets.update_batch_norm(model, [random.normal(size=(4, *shape)).astype(np.float32)])
        return model

    return settle


@pytest.fixture(scope="session")
def resnet20(settle):
    """ResNet-20 for 8×8 grey images, three classes."""
    return settle(keras_resnets.ResNet20(input_shape=(8, 8, 1), classes=3))
