"""The training loop against independent arithmetic, and the same result however the batch is spread."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnets.training import Recipe, TrainingError
from keras_resnets.training.config import RECIPE as RECIPE_FILE
from keras_resnets.training.config import read_recipe
from keras_resnets.training.loop import Loop
from keras_resnets.training.optimizers import LARS, decays, make_optimizer
from keras_resnets.training.recipes import RECIPES
from keras_resnets.training.schedule import Rate, plateau_factor
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


def loop(model, recipe, optimizer=None, metrics=()):
    if optimizer is None:
        optimizer = keras.optimizers.SGD(recipe.learning_rate, momentum=recipe.momentum)
    optimizer.build(model.trainable_variables)
    return Loop(model, recipe, make_strategy("single"), optimizer=optimizer, metrics=metrics)


def one_step(model, recipe, images, labels, **more):
    own = loop(model, replace(recipe, batch_size=len(images)), **more)
    return own.result(own.train(iter(dataset(images, labels, len(images))), 1))


def evaluated(model, images, labels, size=8, **more):
    return Loop(model, RECIPE, make_strategy("single"), **more).evaluate(dataset(images, labels, size))


def moved(before, model):
    return [np.asarray(v) - old for v, old in zip(model.trainable_variables, before, strict=True)]


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
    results = [evaluated(net, images, labels)["loss"] for net in (model, nested)]
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_no_images_are_an_error():
    with pytest.raises(TrainingError, match="no images"):
        evaluated(tiny(), *batch(0))


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
    result = evaluated(model, images, labels, 4)
    guesses = np.asarray(model(images)).argmax(1)
    assert result["accuracy"] == pytest.approx((guesses == labels).mean())
    assert result["loss"] == pytest.approx(evaluated(model, images, labels, 11)["loss"], rel=1e-5)


def test_a_diverging_loss_is_an_error():
    model, (images, labels) = tiny(), batch(8)
    model.layers[1].kernel.assign(np.full(model.layers[1].kernel.shape, np.nan))
    with pytest.raises(TrainingError, match="lower learning_rate"):
        one_step(model, RECIPE, images, labels)


def rates(**fields):
    recipe = replace(RECIPE, epochs=20, **fields)
    rate = Rate(recipe, 10)
    return np.array([float(rate(step)) for step in range(200)])


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_schedules(schedule):
    values = rates(schedule=schedule, warmup_epochs=2)
    assert values.max() == pytest.approx(0.1, rel=1e-5)
    assert values[0] < 0.02
    assert np.all(np.diff(values[:19]) > 0)
    if schedule == "step":
        assert [values[s] for s in (99, 100, 149, 150, 199)] == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001])
    else:
        assert values[110] == pytest.approx(0.05, rel=0.01)
        assert values[199] < 1e-4


def test_the_schedules_of_papers():
    he110 = rates(schedule="step", warmup_epochs=1, warmup_rate=0.01, warmup_constant=True)
    assert he110[:11] == pytest.approx([0.01] * 10 + [0.1])
    wide = rates(schedule="step", milestones=(0.3, 0.6, 0.8), rate_drop=0.2)
    assert [wide[s] for s in (59, 60, 119, 120, 160)] == pytest.approx([0.1, 0.02, 0.02, 0.004, 0.0008])
    assert rates(schedule="constant") == pytest.approx(0.1)
    scaled = Rate(replace(RECIPE, schedule="constant", batch_size=1024, rate_batch=256), 10)
    assert float(scaled(0)) == pytest.approx(0.4)


def test_a_plateau_lowers_the_rate():
    rows = [{"loss": loss} for loss in (5, 4, 4, 4, 3, 3, 3, 3)]
    assert [plateau_factor(rows[:n], 2, 0.5) for n in range(9)] == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert plateau_factor([{"loss": 9 - n, "val_loss": 1} for n in range(3)], 2, 0.5) == 0.5
    rate = Rate(replace(RECIPE, schedule="plateau", patience=2), 10)
    rate.follow(rows[:4])
    assert float(rate(35)) == pytest.approx(0.01)


def test_the_parts_of_a_batch_have_the_gradients_of_the_whole():
    (images, labels), models = batch(8), (tiny(), tiny())
    before = [np.array(v) for v in models[0].trainable_variables]
    rows = [
        one_step(model, replace(RECIPE, accumulate=n), images, labels) for model, n in zip(models, (1, 3), strict=True)
    ]
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
    for a, b in zip(moved(before, models[0]), moved(before, models[1]), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-7)


def test_gradients_are_clipped_together():
    images, labels = batch(8)
    free, clipped = tiny(), tiny()
    before = [np.array(v) for v in free.trainable_variables]
    recipe = replace(RECIPE, weight_decay=0.0, momentum=0.0)
    one_step(free, recipe, images, labels)
    one_step(clipped, replace(recipe, clip_norm=0.01), images, labels)
    steps = [np.concatenate([step.ravel() for step in moved(before, model)]) for model in (free, clipped)]
    assert np.linalg.norm(steps[0]) > 0.1 * 0.02
    assert np.linalg.norm(steps[1]) == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert np.dot(*steps) == pytest.approx(np.linalg.norm(steps[0]) * np.linalg.norm(steps[1]), rel=1e-4)


def test_binary_loss_is_a_sigmoid_for_each_class():
    model, (images, labels) = tiny("linear"), batch(8)
    logits, targets = np.asarray(model(images), np.float64), np.eye(5)[labels]
    expected = np.logaddexp(0, logits) - targets * logits
    assert one_step(model, replace(RECIPE, loss="binary"), images, labels)["loss"] == pytest.approx(
        expected.mean(), rel=1e-5
    )


def test_mixed_targets_train_as_the_mean_of_their_losses():
    model, (images, labels) = tiny(), batch(8)
    targets = (0.7 * np.eye(5)[labels] + 0.3 * np.eye(5)[(labels + 1) % 5]).astype(np.float32)
    expected = -(targets * np.log(np.asarray(model(images)))).sum(1).mean()
    row = one_step(model, RECIPE, images, targets)
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_last_smaller_batch_is_the_mean_of_its_images():
    model, other, (images, labels) = tiny(), tiny(), batch(11)
    recipe = replace(RECIPE, drop_last=False, weight_decay=0.0)
    own = loop(model, recipe)
    own.train(iter(dataset(images, labels, 8)), 2)
    optimizer = keras.optimizers.SGD(RECIPE.learning_rate, momentum=0.9)
    for part in (slice(0, 8), slice(8, 11)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels[part], other(images[part])))
        optimizer.apply(tape.gradient(loss, [v.value for v in other.trainable_variables]), other.trainable_variables)
    for a, b in zip(model.trainable_variables, other.trainable_variables, strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_several_steps_at_once_are_the_same_steps():
    (images, labels), models = batch(40), (tiny(), tiny())
    seen = []
    for model, at_once in zip(models, (1, 3), strict=True):
        own = loop(model, replace(RECIPE, steps_per_execution=at_once))
        own.train(iter(dataset(images, labels, 8)), 5, on_steps=lambda done, sums: seen.append(done))
    assert seen == [1, 2, 3, 4, 5, 3, 5]
    for a, b in zip(models[0].variables, models[1].variables, strict=True):
        assert np.array_equal(a, b)


def test_the_average_is_of_the_weights_after_each_step():
    model, (images, labels) = tiny(), batch(24)
    own = loop(model, replace(RECIPE, ema=0.5))
    average = [np.array(v) for v in model.variables]
    batches = iter(dataset(images, labels, 8))
    for step in range(3):
        own.train(batches, 1)
        keep = min(0.5, (2 + step) / (11 + step))
        average = [keep * a + (1 - keep) * np.asarray(v) for a, v in zip(average, model.variables, strict=True)]
    last = [np.array(v) for v in model.variables]
    with own.averaged():
        for v, expected in zip(model.variables, average, strict=True):
            assert np.allclose(v, expected, rtol=1e-5, atol=1e-7)
    assert all(np.array_equal(v, old) for v, old in zip(model.variables, last, strict=True))


def test_keras_metrics_count_every_image():
    model, (images, labels) = tiny(), batch(11)
    metrics = [
        keras.metrics.TopKCategoricalAccuracy(2, name="top2"),
        keras.metrics.SparseCategoricalAccuracy(name="top1"),
    ]
    row = evaluated(model, images, labels, 4, metrics=metrics)
    out = np.asarray(model(images))
    assert row["top2"] == pytest.approx(np.mean([y in np.argsort(o)[-2:] for y, o in zip(labels, out, strict=True)]))
    assert row["top1"] == pytest.approx(row["accuracy"])
    trained = one_step(tiny(), RECIPE, images, labels, metrics=metrics)
    assert trained["top2"] == pytest.approx(row["top2"])
    with pytest.raises(TrainingError, match="Keras metrics"):
        evaluated(model, images, labels, metrics=["accuracy"])


def test_xla_computes_the_same():
    (images, labels), models = batch(8), (tiny(), tiny())
    rows = [
        one_step(model, replace(RECIPE, xla=xla), images, labels)
        for model, xla in zip(models, (False, True), strict=True)
    ]
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
    for a, b in zip(models[0].variables, models[1].variables, strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_float16_step_that_overflows_is_left_out_and_halves_the_scale():
    model, (images, labels) = tiny(), batch(8)
    own = loop(model, replace(RECIPE, precision="float16"))
    assert float(own.scale.scale) == 2.0**15
    before = [np.array(v) for v in model.trainable_variables]
    own.train(iter(dataset(images, labels, 8)), 1)
    assert all(np.isfinite(step).all() and step.any() for step in moved(before, model))
    assert [float(v) for v in own.scale.variables] == [2.0**15, 1]
    own.scale.scale.assign(1e38)
    before = [np.array(v) for v in model.trainable_variables]
    own.train(iter(dataset(images, labels, 8)), 1)
    assert not any(step.any() for step in moved(before, model))
    assert [float(v) for v in own.scale.variables] == [pytest.approx(5e37), 0]


def test_state_goes_into_another_loop_and_no_wrong_one():
    (images, labels), metrics = batch(8), [keras.metrics.CategoricalAccuracy()]
    own = loop(tiny(), replace(RECIPE, ema=0.9), metrics=metrics)
    sums = own.train(iter(dataset(images, labels, 8)), 1)
    state = own.state(sums)
    other = loop(tiny(), replace(RECIPE, ema=0.9), metrics=metrics)
    assert other.result(other.restore(state)) == own.result(sums)
    for name, array in other.state(other.restore(state)).items():
        assert np.array_equal(array, state[name]), name
    with pytest.raises(TrainingError, match="another network"):
        loop(tiny(), RECIPE, metrics=metrics).restore(state)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lars"])
def test_optimizers_learn_and_decay_kernels_alone(name):
    model, (images, labels) = tiny(), batch(64)
    labels = images.reshape(64, -1).argmax(1) % 5
    recipe = replace(RECIPE, optimizer=name, learning_rate=0.5 if name == "lars" else 0.05, epochs=1, batch_size=64)
    own = loop(model, recipe, make_optimizer(recipe, Rate(recipe, 40), model.trainable_variables))
    rows = dataset(images, labels, 64).repeat()
    first = own.result(own.train(iter(rows), 1))["loss"]
    own.train(iter(rows), 38)
    assert own.result(own.train(iter(rows), 1))["loss"] < 0.95 * first
    assert [decays(v) for v in model.trainable_variables] == [True, False, True, False]


def test_lars_is_the_papers_rule():
    kernel, bias = (
        keras.Variable(np.full((2, 2), 3.0, np.float32), name="kernel"),
        keras.Variable(np.zeros(2, np.float32), name="bias"),
    )
    optimizer = LARS(0.5, momentum=0.9, decay=0.1, trust=0.01)
    optimizer.build([kernel, bias])
    weights, velocity, slope = np.full((2, 2), 3.0), np.zeros((2, 2)), np.array([[1.0, 2.0], [-1.0, 0.5]])
    for _ in range(3):
        optimizer.apply([tf.constant(slope, tf.float32), tf.constant([1.0, -1.0])])
        trust = 0.01 * np.linalg.norm(weights) / (np.linalg.norm(slope) + 0.1 * np.linalg.norm(weights))
        velocity = 0.9 * velocity + 0.5 * trust * (slope + 0.1 * weights)
        weights = weights - velocity
    assert np.allclose(kernel, weights, rtol=1e-5)
    assert np.allclose(bias, [-(0.5 + 0.95 + 1.355), 0.5 + 0.95 + 1.355], rtol=1e-5)
    zero = keras.Variable(np.zeros((2, 2), np.float32), name="kernel")
    optimizer = LARS(0.5)
    optimizer.build([zero])
    optimizer.apply([tf.ones((2, 2))])
    assert np.allclose(zero, -0.5)


def test_strategy_names_and_batches():
    with pytest.raises(TrainingError, match="auto, single, mirrored"):
        make_strategy("tpu")
    assert make_strategy("auto").num_replicas_in_sync == 1

    class Three:
        num_replicas_in_sync = 3

    check_batch_size(10, Three())
    with pytest.raises(TrainingError, match="3 replicas"):
        check_batch_size(2, Three())


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0}, {"learning_rate": float("nan")}, {"momentum": 1},
        {"schedule": "linear"}, {"pad": -1}, {"label_smoothing": 1.5}, {"warmup_epochs": 5}, {"validation": -1},
        {"weight_decay": -1e-4}, {"optimizer": "adam"}, {"precision": "int8"}, {"loss": "mse"}, {"crop": "centre"},
        {"milestones": (0.5, 0.2)}, {"rate_drop": 1}, {"warmup_rate": -1}, {"accumulate": 0}, {"ema": 1},
        {"min_area": 0}, {"dropout_rate": -0.5}, {"clip_norm": float("inf")}, {"steps_per_execution": 0},
        {"rand_augment_magnitude": -1}, {"on_corrupt": "ignore"}, {"mixup": float("nan")},
    ],
)  # fmt: skip
def test_recipes_refuse_what_cannot_be_meant(wrong):
    with pytest.raises(TrainingError, match=next(iter(wrong))):
        replace(RECIPE, **wrong)


def test_a_constant_warm_up_at_zero_is_refused():
    with pytest.raises(TrainingError, match="warmup_rate"):
        replace(RECIPE, warmup_constant=True, warmup_epochs=1)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_come_back_from_json(tmp_path, name):
    (tmp_path / RECIPE_FILE).write_text(json.dumps(RECIPES[name]().to_dict()))
    assert read_recipe(tmp_path) == RECIPES[name]()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ('{"model": "resnet20", "data": "digits", "epochs": 1, "batchsize": 3}', "did you mean batch_size"),
        ('{"model": "resnet20", "data": "digits"}', "not complete"),
        ('{"model": "resnet20", "data": "digits", "epochs": "1"}', "epochs must be int"),
        ('{"model": "resnet20", "data": "digits", "epochs": true}', "epochs must be int"),
        ("[]", "no JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_a_damaged_recipe_says_what_is_wrong(tmp_path, stored, message):
    (tmp_path / RECIPE_FILE).write_text(stored)
    with pytest.raises(TrainingError, match=message):
        read_recipe(tmp_path)
