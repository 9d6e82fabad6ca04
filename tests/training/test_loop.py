"""The training loop against independent arithmetic, and the same result however the batch is spread."""

import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnets import ResNet20
from keras_resnets.training import Recipe, TrainingError
from keras_resnets.training.loop import Loop, make_optimizer
from keras_resnets.training.strategy import check_batch_size, make_strategy

RECIPE = Recipe(model="resnet20", data="digits", epochs=2, batch_size=8, learning_rate=0.1)


def tiny(activation="softmax"):
    """Without batch norm, so that gradients of single images add up."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(3, 3, activation="tanh")(inputs)
    return keras.Model(inputs, keras.layers.Dense(5, activation=activation)(keras.layers.Flatten()(x)))


def batch(number, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(number, 4, 4, 1)).astype(np.float32), random.integers(0, 5, number)


def dataset(images, labels, size):
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(size)


def one_step(model, recipe, images, labels):
    optimizer = keras.optimizers.SGD(recipe.learning_rate)
    return Loop(model, optimizer, recipe, make_strategy("single")).train_epoch(dataset(images, labels, len(images)))


@pytest.mark.parametrize("activation", ["softmax", "linear"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_accuracy_are_those_of_the_definition(activation, smoothing):
    model, (images, labels) = tiny(activation), batch(8)
    out = np.asarray(model(images), np.float64)
    logs = np.log(out) if activation == "softmax" else out - np.log(np.exp(out).sum(1, keepdims=True))
    targets = np.eye(5)[labels] * (1 - smoothing) + smoothing / 5
    result = one_step(model, replace(RECIPE, label_smoothing=smoothing), images, labels)
    assert result["loss"] == pytest.approx(-(targets * logs).sum(1).mean(), rel=1e-5)
    assert result["accuracy"] == (out.argmax(1) == labels).mean()


def test_a_saturated_softmax_still_has_a_loss_and_a_gradient():
    """The loss is computed from the logits under the softmax, or it would be clipped at 16."""
    model, (images, labels) = tiny(), batch(8)
    model.layers[-1].kernel.assign(model.layers[-1].kernel * 1000)
    logits = np.asarray(keras.Model(model.input, model.layers[-2].output)(images)) @ np.asarray(model.layers[-1].kernel)
    expected = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - logits[range(8), labels]
    assert one_step(model, replace(RECIPE, weight_decay=0.0), images, labels)["loss"] == pytest.approx(
        expected.mean(), rel=1e-4
    )
    assert expected.mean() > 100


def test_logits_of_a_nested_model_are_known_as_such():
    model, (images, labels) = tiny("linear"), batch(8)
    nested = keras.Model(model.input, keras.Model(model.input, model.output)(model.input))
    loops = [Loop(net, None, RECIPE, make_strategy("single")) for net in (model, nested)]
    results = [loop.evaluate(dataset(images, labels, 8))["loss"] for loop in loops]
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_no_images_are_an_error():
    with pytest.raises(TrainingError, match="no images"):
        Loop(tiny(), None, RECIPE, make_strategy("single")).evaluate(dataset(*batch(0), 4))


def test_weight_decay_pulls_kernels_and_spares_the_rest():
    (images, labels), decay = batch(8), 0.05
    with_decay, without = tiny(), tiny()
    before = [np.array(v) for v in with_decay.trainable_variables]
    one_step(with_decay, replace(RECIPE, weight_decay=decay), images, labels)
    one_step(without, replace(RECIPE, weight_decay=0.0), images, labels)
    for v, a, b in zip(before, with_decay.trainable_variables, without.trainable_variables, strict=True):
        pulled = RECIPE.learning_rate * decay * v if a.name == "kernel" else 0.0
        assert np.allclose(np.asarray(b) - np.asarray(a), pulled, atol=1e-6)


def test_evaluation_counts_a_smaller_last_batch():
    model, (images, labels) = tiny(), batch(11)
    loop = Loop(model, None, RECIPE, make_strategy("single"))
    result = loop.evaluate(dataset(images, labels, 4))
    guesses = np.asarray(model(images)).argmax(1)
    assert result["accuracy"] == pytest.approx((guesses == labels).mean())
    assert result["loss"] == pytest.approx(loop.evaluate(dataset(images, labels, 11))["loss"], rel=1e-5)


def test_a_diverging_loss_is_an_error():
    model, (images, labels) = tiny(), batch(8)
    model.layers[1].kernel.assign(np.full(model.layers[1].kernel.shape, np.nan))
    with pytest.raises(TrainingError, match="lower learning_rate"):
        one_step(model, RECIPE, images, labels)


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_schedules(schedule):
    rate = make_optimizer(replace(RECIPE, schedule=schedule, epochs=20, warmup_epochs=2), 10)._learning_rate
    values = [float(rate(step)) for step in range(200)]
    assert max(values) == pytest.approx(0.1, rel=1e-5)
    assert values[0] < 0.02
    assert np.all(np.diff(values[:19]) > 0)
    if schedule == "step":
        assert [values[s] for s in (99, 100, 149, 150, 199)] == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001])
    else:
        assert values[110] == pytest.approx(0.05, rel=0.01)
        assert values[199] < 1e-4


def test_strategy_names_and_batches():
    with pytest.raises(TrainingError, match="auto, single, mirrored"):
        make_strategy("tpu")
    assert make_strategy("auto").num_replicas_in_sync == 1

    class Three:
        num_replicas_in_sync = 3

    check_batch_size(9, Three())
    with pytest.raises(TrainingError, match="9 does"):
        check_batch_size(10, Three())


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0}, {"learning_rate": float("nan")}, {"momentum": 1},
        {"schedule": "linear"}, {"pad": -1}, {"label_smoothing": 1.5}, {"warmup_epochs": 5}, {"validation": -1},
        {"weight_decay": -1e-4},
    ],
)  # fmt: skip
def test_recipes_refuse_what_cannot_be_meant(wrong):
    with pytest.raises(TrainingError, match=next(iter(wrong))):
        replace(RECIPE, **wrong)


SPREAD = """
import sys, numpy as np, tensorflow as tf
replicas = int(sys.argv[1])
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
import keras
keras.config.set_floatx("float64")
from keras_resnets import ResNet20
from keras_resnets.data import load_dataset
from keras_resnets.data.pipeline import evaluation_batches
from keras_resnets.training import Recipe
from keras_resnets.training.loop import Loop, make_optimizer
from keras_resnets.training.run import _build
from keras_resnets.training.strategy import make_strategy

data = load_dataset("digits")
recipe = Recipe(model="resnet20", data="digits", epochs=1, batch_size=32, learning_rate=0.05)
strategy = make_strategy("mirrored" if replicas > 1 else "single")
assert strategy.num_replicas_in_sync == replicas
keras.utils.set_random_seed(0)
with strategy.scope():
    loop = Loop(_build(recipe, data, replicas), make_optimizer(recipe, 5), recipe, strategy)
images = data.preprocessing.normalize(data.train.images[:160]).astype("float64")
batches = tf.data.Dataset.from_tensor_slices((images, data.train.labels[:160])).batch(32)
trained = loop.train_epoch(batches)
tested = loop.evaluate(batches.unbatch().take(75).batch(32))
weights = {v.path.replace("/", "_"): v for v in loop.model.variables}
np.savez(sys.argv[2], loss=trained["loss"], test=tested["loss"], **weights)
"""


def test_two_replicas_train_as_one_does(tmp_path):
    """In float64 with synchronized batch norm; processes of their own, as logical devices are set once."""
    results = []
    for replicas in (1, 2):
        file = tmp_path / f"{replicas}.npz"
        subprocess.run([sys.executable, "-c", SPREAD, str(replicas), str(file)], check=True, capture_output=True)
        results.append(np.load(file))
    one, two = results
    assert len(one.files) == len(ResNet20().variables) + 2
    for name in one.files:
        assert np.allclose(one[name], two[name], rtol=1e-9, atol=1e-11), name
