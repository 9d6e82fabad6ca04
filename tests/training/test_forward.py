"""The training-mode forward pass against the layers' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnets import ResNet20
from keras_resnets.training import TrainingError
from keras_resnets.training.forward import TrainingForward


@pytest.fixture
def floatx(request):
    """Keras's type of floats while a test runs."""
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def net(size=8, **options):
    keras.utils.set_random_seed(0)
    model = ResNet20(input_shape=(size, size, 3), classes=5, **options)
    for variable in model.weights:
        if variable.name in ("gamma", "beta"):
            variable.assign(np.random.default_rng(1).normal(1, 0.3, variable.shape))
    return model


def batch(number=12, size=8):
    random = np.random.default_rng(0)
    return random.normal(0.5, 1, (number, size, size, 3)), random.integers(0, 5, number)


def gradients_of(call, model, images, labels):
    """Loss and gradients as arrays, and the state after the step."""

    @tf.function
    def step(images, labels):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, call(images)))
        return loss, tape.gradient(loss, [v.value for v in model.trainable_variables])

    loss, gradients = step(tf.constant(images, keras.config.floatx()), tf.constant(labels))
    return float(loss), [g.numpy() for g in gradients], [v.numpy() for v in model.non_trainable_variables]


def both(model, images, labels, **options):
    """The result of the model's own call and of TrainingForward, from the same weights."""
    weights = model.get_weights()
    own = gradients_of(lambda x: model(x, training=True), model, images, labels)
    model.set_weights(weights)
    return own, gradients_of(TrainingForward(model, **options), model, images, labels)


def distance(a, b):
    """max |a − b| / max |a| of each pair of arrays, the largest."""
    return max(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("floatx, tolerance", [("float32", 2e-4), ("float64", 1e-12)], indirect=["floatx"])
def test_loss_gradients_and_statistics_are_those_of_the_model(floatx, tolerance):
    own, ours = both(net(), *batch())
    assert ours[0] == pytest.approx(own[0], rel=min(tolerance, 1e-5))
    assert distance(own[1], ours[1]) < tolerance
    assert distance(own[2], ours[2]) < min(tolerance, 1e-5)


def test_the_model_is_as_it_was():
    model, (images, labels) = net(), batch()
    config = model.get_config()
    before = [{**vars(layer)} for layer in model.layers]
    gradients_of(TrainingForward(model, precision="bfloat16"), model, images, labels)
    assert model.get_config() == config
    assert all(vars(layer).get("call") is None for layer in model.layers)
    assert [layer.dtype_policy.name for layer in model.layers] == ["float32"] * len(before)


def test_unknown_precisions_are_refused():
    with pytest.raises(TrainingError, match="precision must be one of float32, bfloat16, float16"):
        TrainingForward(net(), precision="fp8")


@pytest.mark.parametrize("floatx", ["float64"], indirect=True)
def test_mixed_precision_needs_a_float32_model(floatx):
    with pytest.raises(TrainingError, match="needs float32 variables, and resnet20 has float64 ones"):
        TrainingForward(net(), precision="bfloat16")
