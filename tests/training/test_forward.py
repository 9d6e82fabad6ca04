"""The training-mode forward pass against the layers' own, whole and in segments."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnets import PlainNet20, ResNet20, ResNet56
from keras_resnets.training import TrainingError
from keras_resnets.training.determinism import op_determinism
from keras_resnets.training.forward import TrainingForward
from keras_resnets.training.segments import cut
from keras_resnets.training.updates import fused_updates


@pytest.fixture
def floatx(request):
    """Keras's type of floats while a test runs."""
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


in_float64 = pytest.mark.parametrize("floatx", ["float64"], indirect=True)


def net(build=ResNet20, **options):
    """A network with scales and offsets that matter."""
    keras.utils.set_random_seed(0)
    model = build(input_shape=(8, 8, 3), classes=5, **options)
    chance = np.random.default_rng(1)
    for variable in model.weights:
        if variable.name in ("gamma", "beta"):
            variable.assign(chance.normal(1, 0.3, variable.shape))
    return model


def batch(number=12):
    chance = np.random.default_rng(0)
    return chance.normal(0.5, 1, (number, 8, 8, 3)), chance.integers(0, 5, number)


def step(call, model, jit_compile=False):
    """Loss and gradients of a batch as arrays, and the state that the pass leaves behind."""

    @tf.function(jit_compile=jit_compile)
    def run(images, labels):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, call(images)))
        return loss, tape.gradient(loss, [v.value for v in model.trainable_variables])

    images, labels = batch()
    loss, gradients = run(tf.constant(images, keras.config.floatx()), tf.constant(labels))
    return [np.asarray(loss)], [g.numpy() for g in gradients], [v.numpy() for v in model.non_trainable_variables]


def steps(model, *calls, **options):
    """`step` of several calls, each from the same state."""
    state = [v.numpy() for v in model.variables]
    results = []
    for call in calls:
        for variable, value in zip(model.variables, state, strict=True):
            variable.assign(value)
        results.append(step(call, model, **options))
    return results


def own(model):
    return lambda images: model(images, training=True)


def distance(a, b):
    """max |a − b| / max |a| over pairs of arrays, the largest."""
    return max(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30) for x, y in zip(a, b, strict=True))


def agree(one, other, tolerance):
    for kind, a, b in zip(("loss", "gradients", "state"), one, other, strict=True):
        assert distance(a, b) < tolerance, kind


@pytest.mark.parametrize("floatx, tolerance", [("float32", 2e-4), ("float64", 1e-11)], indirect=["floatx"])
def test_loss_gradients_and_statistics_are_those_of_the_model(floatx, tolerance):
    model = net()
    agree(*steps(model, own(model), TrainingForward(model)), tolerance)


def test_moving_variances_are_biased_ones():
    """As Keras's are; TensorFlow's fused operation corrects them."""
    inputs = keras.Input((1, 1, 3))
    layer = keras.layers.BatchNormalization(momentum=0.0)
    model = keras.Model(inputs, layer(inputs))
    images = np.random.default_rng(0).normal(3, 2, (4, 1, 1, 3)).astype(np.float32)
    TrainingForward(model)(tf.constant(images))
    np.testing.assert_allclose(layer.moving_variance, images.var((0, 1, 2)), rtol=1e-5)


@in_float64
@pytest.mark.parametrize("remat", [False, True])
def test_segments_with_shared_functions_compute_the_same(floatx, remat):
    model = net(ResNet56)
    forward = TrainingForward(model, remat=remat)
    # Eight blocks of a stage are equal.
    assert len(forward._segmented.calls) > len(forward._segmented.functions) > 0
    agree(*steps(model, own(model), forward), 1e-10)


def dense(**options):
    """Two dense layers of a block, which hand more channels on than they got."""
    x = inputs = keras.Input(options["input_shape"])
    for _ in range(3):
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        x = keras.layers.Concatenate()([x, keras.layers.Conv2D(4, 3, padding="same")(y)])
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(5, activation="softmax")(x))


@pytest.mark.parametrize("build", [PlainNet20, dense])
@in_float64
def test_rematerialization_cuts_networks_without_blocks(floatx, build):
    model = net(build)
    assert len(cut(model)) > 3
    agree(*steps(model, own(model), TrainingForward(model, remat=True)), 1e-10)


def noisy():
    """Ten equal residual blocks with a dropout each."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    for _ in range(10):
        y = keras.layers.Dropout(0.5)(keras.layers.Dense(3, activation="tanh")(x))
        x = keras.layers.Add()([x, y])
    return keras.Model(inputs, keras.layers.Dense(5, activation="softmax")(keras.layers.Flatten()(x)))


@in_float64
def test_each_segment_draws_its_own_dropout_and_the_same_one_again(floatx):
    model = noisy()
    once, shared, again = steps(model, own(model), TrainingForward(model), TrainingForward(model, remat=True))
    assert TrainingForward(model)._segmented.functions
    agree(once, shared, 1e-12)
    agree(once, again, 1e-12)
    # Seeds have gone on: the next step is another one.
    assert distance(once[0], step(TrainingForward(model), model)[0]) > 1e-6


def every_kind(inputs):
    """Shared, nested, frozen and unknown layers, plain operations, and two branches."""

    class Unknown(keras.layers.Layer):
        def call(self, x, training=None):
            return x * (2.0 if training else 1.0)

    inner = keras.Input((8, 8, 4))
    nested = keras.Model(inner, keras.layers.BatchNormalization()(inner))
    norm, frozen = keras.layers.BatchNormalization(), keras.layers.BatchNormalization(trainable=False)
    x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    x = keras.ops.add(norm(x), norm(nested(x)))
    x = frozen(Unknown()(x)) + keras.layers.BatchNormalization(axis=1)(x)
    x = keras.layers.BatchNormalization(scale=False, center=False)(x, training=False)
    return keras.layers.Dense(5, activation="softmax")(keras.layers.Flatten()(x))


@in_float64
@pytest.mark.parametrize("remat", [False, True])
def test_any_functional_model_runs(floatx, remat):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, every_kind(inputs))
    agree(*steps(model, own(model), TrainingForward(model, remat=remat)), 1e-11)


def test_models_of_several_outputs_run():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(inputs)
    model = keras.Model(inputs, {"a": keras.layers.Flatten()(x), "b": x})
    outputs = TrainingForward(model, precision="bfloat16")(tf.constant(batch()[0], tf.float32))
    assert {name: value.dtype for name, value in outputs.items()} == {"a": tf.float32, "b": tf.float32}
    with pytest.raises(TrainingError, match="cannot be cut"):
        TrainingForward(model, remat=True)


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}, {"remat": True}])
def test_the_model_is_as_it_was(options):
    model = net()
    config = model.get_config()
    images = tf.constant(batch()[0], tf.float32)
    before = model(images)
    statistics = [v.numpy() for v in model.non_trainable_variables]
    step(TrainingForward(model, **options), model)
    for variable, value in zip(model.non_trainable_variables, statistics, strict=True):
        variable.assign(value)
    assert model.get_config() == config
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    np.testing.assert_array_equal(model(images), before)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_leaves_variables_statistics_and_the_head_float32(precision, remat):
    seen = []

    class Spy(keras.layers.Layer):
        def call(self, x):
            seen.append(x.dtype.name)
            return x

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
    x = keras.layers.ReLU()(Spy()(keras.layers.BatchNormalization()(Spy()(x))))
    x = keras.layers.Add()([x, keras.layers.Conv2D(4, 3, padding="same")(x)])
    x = keras.layers.Conv2D(5, 3, padding="same")(Spy()(x))
    x = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Activation("softmax")(x))
    forward = TrainingForward(model, precision=precision, remat=remat)

    def alone(images):
        seen.clear()
        return forward(images)

    full, mixed = steps(model, own(model), alone)
    assert set(seen) == {precision}
    assert {array.dtype.name for array in (*mixed[1], *mixed[2])} == {"float32"}
    assert forward(tf.constant(batch()[0], tf.float32)).dtype == tf.float32
    # Softmax of logits in half precision would be off by 1e-3; the sum over classes shows it.
    np.testing.assert_allclose(tf.reduce_sum(forward(tf.constant(batch()[0], tf.float32)), 1), 1, atol=1e-6)
    agree(full, mixed, 0.1)


@pytest.mark.parametrize("build", [ResNet20, ResNet56])
def test_xla_compiles_it(build):
    model = net(build)
    state = [v.numpy() for v in model.non_trainable_variables]
    plain = step(TrainingForward(model), model)
    for variable, value in zip(model.non_trainable_variables, state, strict=True):
        variable.assign(value)
    with op_determinism(True):
        agree(plain, step(TrainingForward(model, xla=True), model, jit_compile=True), 1e-3)


@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [(1, 2, "valid"), (2, 2, "valid"), (3, 2, "valid"), (3, 2, "same"), ((3, 2), (1, 3), "same"), (2, 5, "same")],
)
def test_pooling_for_xla_is_the_same_function(window, stride, padding):
    # Few different numbers, so that many windows hold their largest one several times.
    images = np.random.default_rng(0).integers(-3, 1, (2, 7, 8, 3))
    inputs = keras.Input((7, 8, 3))
    model = keras.Model(inputs, keras.layers.MaxPooling2D(window, stride, padding)(inputs))

    @tf.function
    def run(call, images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = call(images)
            weights = tf.reshape(tf.range(tf.size(outputs), dtype=tf.float32), tf.shape(outputs))
            loss = tf.reduce_sum(outputs * weights)
        return outputs, tape.gradient(loss, images)

    images = tf.constant(images, tf.float32)
    for own, theirs in zip(run(TrainingForward(model, xla=True), images), run(model, images), strict=True):
        np.testing.assert_array_equal(own, theirs)


def test_a_tape_need_not_be_told_to_watch_and_a_loop_may_run_in_the_graph():
    model = net(ResNet56)
    forward = TrainingForward(model)
    images = tf.constant(batch()[0], tf.float32)

    @tf.function(autograph=False)
    def run():
        def body(i, norm):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(forward(images) ** 2)
            gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
            return i + 1, norm + tf.linalg.global_norm(gradients)

        return tf.while_loop(lambda i, _: i < 2, body, (0, 0.0))[1]

    assert np.isfinite(run()) and run() > 0


REPLICAS = """
import sys
import keras, numpy as np, tensorflow as tf
from keras_resnets import ResNet20
from keras_resnets.training import TrainingError
from keras_resnets.training.forward import TrainingForward
sizes = [3, 2, 0, 1]
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
keras.config.set_floatx(sys.argv[1]); keras.config.set_dtype_policy(sys.argv[1])
chance = np.random.default_rng(0)
# Far from zero: E[x²] − E[x]² would lose the variance in float32.
images, labels = chance.normal(30, 1, (6, 8, 8, 3)).astype(sys.argv[1]), chance.integers(0, 5, 6)
starts = np.cumsum([0, *sizes])

def run(strategy, sizes, **options):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = ResNet20(input_shape=(8, 8, 3), classes=5)
        forward = TrainingForward(model, **options)
    def share(array):
        if len(sizes) == 1:
            return tf.constant(array)
        return strategy.experimental_distribute_values_from_function(
            lambda c: tf.constant(array[starts[(i := c.replica_id_in_sync_group)] : starts[i + 1]]))
    def replica(images, labels):
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(labels, forward(images))
            loss = tf.reduce_sum(losses) / 6
        found = [loss, *tape.gradient(loss, [v.value for v in model.trainable_variables])]
        return tf.distribute.get_replica_context().all_reduce("sum", found)
    found = tf.function(lambda *batch: strategy.run(replica, args=batch), autograph=False)(share(images), share(labels))
    found = [strategy.experimental_local_results(value)[0].numpy() for value in found]
    return [*found, *(v.numpy() for v in model.non_trainable_variables)]

mirrored = tf.distribute.MirroredStrategy([d.name for d in tf.config.list_logical_devices("CPU")])
one, many = run(tf.distribute.get_strategy(), [6]), run(mirrored, sizes)
print(max(np.abs(a - b).max() / np.abs(a).max() for a, b in zip(one, many)))
run(mirrored, sizes, sync_batch_norm=False)
try:
    run(mirrored, sizes, remat=True)
except TrainingError as error:
    print(error)
"""


@pytest.mark.parametrize("kind, tolerance", [pytest.param("float64", 1e-11, marks=pytest.mark.slow), ("float32", 1e-4)])
def test_replicas_with_uneven_and_empty_batches_agree_with_one(kind, tolerance):
    command = [sys.executable, "-c", REPLICAS, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    far, error = done.stdout.splitlines()[-2:]
    assert float(far) < tolerance
    assert error.startswith("remat works on one replica alone")


def test_unknown_precisions_are_refused():
    with pytest.raises(TrainingError, match="precision must be one of float32, bfloat16, float16"):
        TrainingForward(net(), precision="fp8")


@in_float64
def test_mixed_precision_needs_a_float32_model(floatx):
    with pytest.raises(TrainingError, match="needs float32 variables, and resnet20 has float64 ones"):
        TrainingForward(net(), precision="bfloat16")


@in_float64
@pytest.mark.parametrize(
    "options", [{}, {"nesterov": True}, {"clipnorm": 0.5, "weight_decay": 0.01}, {"momentum": 0.0}], ids=str
)
def test_fused_updates_are_those_of_the_optimizer(floatx, options):
    results = []
    for fused in (False, True):
        chance = np.random.default_rng(0)
        variables = [keras.Variable(chance.normal(size=shape)) for shape in ((3, 4), (5,))]
        rate = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
        optimizer = keras.optimizers.SGD(rate, **{"momentum": 0.9, **options})
        optimizer.build(variables)
        for _ in range(3):
            gradients = [tf.constant(chance.normal(size=v.shape)) for v in variables]
            if fused:
                with fused_updates(optimizer):
                    optimizer.apply_gradients(zip(gradients, variables, strict=True))
            else:
                optimizer.apply_gradients(zip(gradients, variables, strict=True))
        results.append([v.numpy() for v in (*variables, *optimizer.variables)])
        assert "update_step" not in vars(optimizer)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14, atol=1e-15)
