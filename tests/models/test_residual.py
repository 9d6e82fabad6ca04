"""The residual idea as properties of the networks."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_resnets

ORIGINAL = ["resnet20", "resnet18", "resnet50"]
PRE_ACTIVATION = ["resnet20v2", "resnet18v2", "resnet164v2"]


def blocks(model):
    """Name of each block with its convolutions' and batch norms' layer names."""
    found = {}
    for layer in model.layers:
        if "_block" in layer.name:
            found.setdefault("_".join(layer.name.split("_")[:2]), []).append(layer)
    return found


def add_of(layers):
    return next(layer for layer in layers if isinstance(layer, keras.layers.Add))


def last_norm(layers):
    """The last batch norm of the residual branch; "_0_" is the shortcut's."""
    return [x for x in layers if isinstance(x, keras.layers.BatchNormalization) and "_0_" not in x.name][-1]


def silence(layers):
    norm = last_norm(layers)
    norm.gamma.assign(np.zeros(norm.gamma.shape))
    norm.beta.assign(np.zeros(norm.beta.shape))


def build(name):
    model = keras_resnets.create_model(name, input_shape=(32, 32, 3))
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(random.normal(size=layer.moving_mean.shape))
            layer.moving_variance.assign(random.uniform(0.5, 2, layer.moving_variance.shape))
    return model


@pytest.fixture(scope="module", params=ORIGINAL + PRE_ACTIVATION)
def silenced(request):
    """A network's name, its blocks, and a sub-model to each one's shortcut and output, residual branches at zero."""
    model = build(request.param)
    names, outputs = [], []
    for block, layers in blocks(model).items():
        silence(layers)
        names.append(block)
        outputs.append((add_of(layers).input[0], model.get_layer(f"{block}_out").output))
    return request.param, names, keras.Model(model.input, outputs)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_with_the_last_gamma_at_zero_every_block_is_its_shortcut(silenced, seed, scale):
    name, names, taps = silenced
    images = np.random.default_rng(seed).normal(size=(1, 32, 32, 3)).astype(np.float32) * np.float32(scale)
    for block, (shortcut, output) in zip(names, taps(images, training=False), strict=True):
        kept = np.asarray(shortcut)
        expected = kept if name in PRE_ACTIVATION else np.maximum(kept, 0)
        assert np.array_equal(np.asarray(output), expected), block


@pytest.mark.parametrize("name", PRE_ACTIVATION)
def test_the_main_path_of_a_pre_activation_network_is_additions_alone(name):
    model = keras_resnets.create_model(name, input_shape=(32, 32, 3))
    found = blocks(model)
    same_shape = [
        (previous, layers)
        for previous, layers in zip(found, list(found.values())[1:], strict=False)
        if not any("_0_" in layer.name for layer in layers)
    ]
    assert same_shape
    for previous, layers in same_shape:
        assert add_of(layers).input[0] is model.get_layer(f"{previous}_out").output


@pytest.mark.parametrize("depth", [18, 34, 50, 20, 56])
def test_a_plain_network_is_the_residual_one_without_additions(depth):
    plain = keras_resnets.create_model(f"plainnet{depth}", input_shape=(32, 32, 3))
    residual = keras_resnets.create_model(f"resnet{depth}", input_shape=(32, 32, 3))
    assert not [layer for layer in plain.layers if isinstance(layer, keras.layers.Add)]
    convolutions = [
        [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D) and "_0_" not in layer.name]
        for model in (plain, residual)
    ]
    assert convolutions[0] == convolutions[1]


@pytest.mark.parametrize("depth", [18, 50, 20, 110])
def test_with_option_a_plain_and_residual_networks_have_the_same_parameters(depth):
    plain = keras_resnets.create_model(f"plainnet{depth}")
    residual = keras_resnets.create_model(f"resnet{depth}", shortcut="A")
    assert plain.count_params() == residual.count_params()


def test_options_b_and_c_add_projections():
    counts = [keras_resnets.ResNet20(shortcut=option).count_params() for option in "ABC"]
    assert counts[0] < counts[1] < counts[2]
    with pytest.raises(ValueError, match="'A', 'B' or 'C'"):
        keras_resnets.ResNet20(shortcut="D")
    with pytest.raises(ValueError, match="plain network has no shortcut"):
        keras_resnets.PlainNet20(shortcut="A")


def test_option_a_passes_every_second_pixel_and_adds_empty_channels():
    model = keras_resnets.ResNet20(input_shape=(9, 9, 1))
    add = model.get_layer("conv3_block1_add")
    taps = keras.Model(model.input, [model.get_layer("conv2_block3_out").output, add.input[0]])
    before, shortcut = map(np.asarray, taps(np.random.default_rng(0).normal(size=(2, 9, 9, 1)), training=False))
    assert np.array_equal(shortcut[..., :16], before[:, ::2, ::2])
    assert not shortcut[..., 16:].any()
