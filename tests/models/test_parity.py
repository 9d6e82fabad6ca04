"""Logits against independent implementations with the same weights; golden/golden.json says whose."""

import hashlib
import json
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_resnets
from keras_resnets.models.conversion import bindings

FOLDER = Path(__file__).parent / "golden"
GOLDEN = np.load(FOLDER / "golden.npz")
FACTS = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
# One small network a family in the ordinary suite; all of them in the slow one.
QUICK = [
    "resnet18", "resnet50", "resnet18v2", "resnet50v2", "resnext50_32x4d", "wrn16_8", "wideresnet50_2",
    "densenet121", "densenetbc100_12", "seresnet18", "seresnet50", "resnet50c", "resnet18d", "resnetrs50",
    "vgg11", "vit_ti16",
]  # fmt: skip
NETWORKS = [name for name in FACTS if "@" not in name]
EACH = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NETWORKS]


def dialect(name):
    return "timm" if FACTS[name]["source"].startswith("timm") else "torchvision"


@pytest.mark.parametrize("name", EACH)
def test_logits_are_those_of_an_independent_implementation(name, seeds, torch_seeds, agreement):
    side = FACTS[name]["side"]
    model = keras_resnets.create_model(name, input_shape=(side, side, 3), classifier_activation=None)
    pairs = bindings(model, dialect(name), name)
    for pair in pairs:
        pair.assign(torch_seeds.seeded_tensor(pair.key, pair.shape))
    lines = sorted(f"{pair.key} {'x'.join(map(str, pair.shape))}\n" for pair in pairs)
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == FACTS[name]["digest"]
    logits = np.asarray(model(seeds.seeded_images(2, side, side, 3), training=False))
    if logits.shape[1] == 1000:
        logits = logits[:, ::8]
    assert agreement(GOLDEN[name], logits) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_the_recorded_sizes_are_those_of_the_independent_implementation(name):
    info = keras_resnets.model_info(name)
    assert info.parameters == FACTS[name]["parameters"]
    assert FACTS[name]["multiply_adds_side"] == info.input_shape[0]
    assert info.multiply_adds == FACTS[name]["multiply_adds"]


def test_every_family_has_an_independent_implementation():
    families = {keras_resnets.model_info(name).module for name in QUICK}
    assert families == {keras_resnets.model_info(name).module for name in keras_resnets.list_models()}


@pytest.mark.parametrize(
    "name",
    [
        "ResNet50",
        "ResNet50V2",
        "DenseNet121",
        pytest.param("VGG16", marks=pytest.mark.slow),
        pytest.param("VGG19", marks=pytest.mark.slow),
        *[
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ResNet101", "ResNet152", "ResNet101V2", "ResNet152V2", "DenseNet169", "DenseNet201")
        ],
    ],
)
def test_the_keras_variant_gives_the_logits_of_keras_applications(name, seeds, agreement):
    arguments = {"input_shape": (96, 96, 3), "classifier_activation": None}
    theirs = getattr(keras.applications, name)(weights=None, **arguments)
    seeds.fill(theirs)
    if not name.startswith("VGG"):
        arguments["variant"] = "keras"
    ours = getattr(keras_resnets, name)(**arguments)
    assert ours.count_params() == theirs.count_params()
    for layer in ours.layers:
        if layer.weights:
            layer.set_weights(theirs.get_layer(layer.name).get_weights())
    images = seeds.seeded_images(2, 96, 96, 3)
    expected = np.asarray(theirs(images, training=False))
    assert agreement(expected, np.asarray(ours(images, training=False))) < 1e-5


@pytest.mark.parametrize(("name", "others"), [("resnet50", ["v1.5", "paper"]), ("resnet50v2", ["paper", "keras"])])
def test_variants_with_equal_shapes_compute_different_things(name, others, seeds, agreement):
    images = seeds.seeded_images(1, 64, 64, 3)
    outputs = []
    for variant in others:
        model = keras_resnets.create_model(name, input_shape=(64, 64, 3), classifier_activation=None, variant=variant)
        seeds.fill(model)
        outputs.append(np.asarray(model(images, training=False)))
    assert agreement(*outputs) > 0.01
