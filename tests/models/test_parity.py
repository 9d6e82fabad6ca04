"""Logits against independent implementations with the same weights."""

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_resnets

GOLDEN = np.load(Path(__file__).parent / "golden" / "torchvision.npz")


@pytest.mark.parametrize("name", list(GOLDEN))
def test_v15_gives_the_logits_of_torchvision(name, seeds, agreement):
    model = keras_resnets.create_model(name, input_shape=(96, 96, 3), classifier_activation=None, variant="v1.5")
    seeds.fill(model)
    logits = np.asarray(model(seeds.seeded_images(2, 96, 96, 3), training=False))
    assert agreement(GOLDEN[name], logits) < 1e-4


@pytest.mark.parametrize("name", ["ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2"])
def test_the_keras_variant_gives_the_logits_of_keras_applications(name, seeds, agreement):
    arguments = {"input_shape": (96, 96, 3), "classifier_activation": None}
    theirs = getattr(keras.applications, name)(weights=None, **arguments)
    seeds.fill(theirs)
    ours = getattr(keras_resnets, name)(variant="keras", **arguments)
    assert ours.count_params() == theirs.count_params()
    for layer in ours.layers:
        if layer.weights:
            layer.set_weights(theirs.get_layer(layer.name).get_weights())
    images = seeds.seeded_images(2, 96, 96, 3)
    expected = np.asarray(theirs(images, training=False))
    assert agreement(expected, np.asarray(ours(images, training=False))) < 1e-5


def test_variants_with_equal_shapes_compute_different_things(seeds, agreement):
    images = seeds.seeded_images(1, 64, 64, 3)
    outputs = []
    for variant in ("v1.5", "paper"):
        model = keras_resnets.ResNet50(input_shape=(64, 64, 3), classifier_activation=None, variant=variant)
        seeds.fill(model)
        outputs.append(np.asarray(model(images, training=False)))
    assert agreement(*outputs) > 0.01
