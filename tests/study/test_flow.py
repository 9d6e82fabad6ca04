"""The gradient at every block of a Keras model, and the networks whose gradients are compared."""

import keras
import numpy as np
import pytest

from keras_resnets import create_model
from keras_resnets.models.layers import dtype_policy
from keras_resnets.study import StudyError
from keras_resnets.study.flow import block_outputs, gradient_profile, random_inputs
from keras_resnets.study.networks import any_network, network, scale_kernels, without_batch_norm


def chain(factors, shortcut=False):
    """Layers that multiply by one number each; with a shortcut around all of them."""
    x = start = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="start")(keras.Input((1,)))
    for number, factor in enumerate(factors):
        x = keras.layers.Dense(
            1, use_bias=False, kernel_initializer=keras.initializers.Constant(factor), name=f"layer_{number}"
        )(x)
    if shortcut:
        x = keras.layers.Add()([start, x])
    return keras.Model(start._keras_history.operation.input, x)


@pytest.fixture
def double():
    with dtype_policy("float64"):
        yield


def images(number, side=12):
    return np.random.default_rng(0).normal(size=(number, side, side, 1)).astype("float32")


@pytest.mark.parametrize(("shortcut", "expected"), [(False, 0.1**9), (True, 0.1**9 + 1)])
def test_nine_factors_and_the_one_of_a_shortcut(double, shortcut, expected):
    """The document's example: nine layers of 0.1 leave 0.1⁹ of the gradient, with a shortcut 0.1⁹ + 1."""
    model = chain([0.1] * 9, shortcut)
    points = gradient_profile(model, np.ones((1, 1)))
    cotangent = abs(float(np.random.default_rng(0).normal(size=(1, 1))[0, 0]))  # of the output
    assert points[0].name == "start"
    assert points[0].gradient / cotangent == pytest.approx(expected, rel=1e-12)


def test_the_profile_is_the_product_of_what_follows(double):
    factors = np.random.default_rng(1).uniform(0.5, 1.5, 6)
    gradients = [point.gradient for point in gradient_profile(chain(factors), np.ones((4, 1)))]
    np.testing.assert_allclose(np.array(gradients) / gradients[-1], np.append(np.cumprod(factors[::-1])[::-1], 1))


def test_the_profile_against_finite_differences(double):
    """Of the mean cross-entropy, by a constant that is added to the output of one block."""
    keras.utils.set_random_seed(0)
    model = network("residual", 8, input_shape=(12, 12, 1), classes=3)
    pixels, labels = images(2), np.array([0, 2])
    points = gradient_profile(model, pixels, labels, training=False)
    name = points[1].name
    head = keras.Model(model.get_layer(name).output, model.output)
    value = keras.Model(model.input, model.get_layer(name).output)(pixels).numpy()
    direction = np.random.default_rng(0).normal(size=value.shape)

    def loss(step):
        scores = head(value + step * direction).numpy()
        return -np.log(scores[[0, 1], labels]).mean()

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    import tensorflow as tf

    with tf.GradientTape() as tape:
        h = tf.constant(value)
        tape.watch(h)
        total = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, head(h)))
    gradient = tape.gradient(total, h).numpy()
    assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-5)
    assert points[1].gradient == pytest.approx(np.linalg.norm(gradient), rel=1e-6)
    assert points[1].signal == pytest.approx(np.sqrt((value**2).mean()))


def test_the_model_is_unchanged():
    model = create_model("resnet20", input_shape=(12, 12, 1), classes=3)
    before, activation = model.get_weights(), model.layers[-1].activation
    points = gradient_profile(model, images(4), np.array([0, 1, 2, 0]))
    assert len(points) == 9 and points[0].name == "conv2_block1_out"
    assert model.layers[-1].activation is activation
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["resnet20v2", "wrn16_4", "densenetbc100_12", "seresnet18", "vit_ti16"])
def test_the_zoo_s_blocks_are_known(name):
    model = create_model(name, input_shape=(32, 32, 3), classes=3)
    names = [layer.name for layer in block_outputs(model)]
    assert len(names) >= 6 and all("block" in name for name in names)


def test_a_model_of_other_people_s_layers():
    inputs = x = keras.Input((6,))
    for _ in range(4):
        x = keras.layers.Dense(6, "relu")(x)
    x = keras.layers.LayerNormalization()(x)
    points = gradient_profile(keras.Model(inputs, x), np.ones((2, 6), "float32"))
    assert [point.name.startswith("dense") for point in points] == [True] * 4
    assert all(point.gradient > 0 for point in points)


@pytest.mark.parametrize("model", [keras.Sequential([keras.layers.Dense(2)]), "no model", None])
def test_what_has_no_layers_to_look_at(model):
    with pytest.raises(StudyError, match="functional"):
        gradient_profile(model, np.ones((1, 2)))


def test_a_gradient_that_is_not_finite():
    with pytest.raises(StudyError, match="not finite"):
        gradient_profile(chain([1e30] * 4), np.ones((1, 1), "float32"))


# The networks that are compared.


@pytest.mark.parametrize(("family", "name"), [("plain", "plainnet20"), ("residual", "resnet20")])
def test_a_network_of_the_registry_s_depth_is_the_registry_s(family, name):
    ours, theirs = network(family, 20), create_model(name, input_shape=(28, 28, 1))
    assert [layer.name for layer in ours.layers[1:]] == [layer.name for layer in theirs.layers[1:]]
    ours.set_weights(theirs.get_weights())
    pixels = images(2, 28)
    np.testing.assert_array_equal(ours(pixels), theirs(pixels))


def test_the_families_differ_in_the_shortcut_alone():
    plain, residual = (network(family, 14) for family in ("plain", "residual"))
    more = {layer.name for layer in residual.layers[1:]} - {layer.name for layer in plain.layers[1:]}
    assert {name.split("_")[-1] for name in more} == {"add", "subsample", "channels"}
    assert plain.count_params() == residual.count_params()


@pytest.mark.parametrize("depth", [2, 0, 21, -4])
def test_a_depth_that_there_is_not(depth):
    with pytest.raises(StudyError, match="6n \\+ 2"):
        network("plain", depth)


def test_without_batch_norm():
    """What batch norm does with its initial statistics: nothing but a division by √(1 + ε)."""
    keras.utils.set_random_seed(0)
    model = network("plain", 8, input_shape=(12, 12, 1), classes=3)
    bare = without_batch_norm(model)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in bare.layers)
    np.testing.assert_allclose(bare(images(3)), model(images(3)), atol=1e-4)
    np.testing.assert_array_equal(bare.get_layer("conv1_conv").kernel, model.get_layer("conv1_conv").kernel)


def test_scaled_kernels():
    model = network("plain", 8)
    before = [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]
    scale_kernels(model, 0.7)
    after = [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, np.float32(0.7) * one)


def test_a_policy_ends_with_the_block():
    with dtype_policy("float64"):
        assert network("plain", 8).layers[-1].compute_dtype == "float64"
    assert network("plain", 8).layers[-1].compute_dtype == "float32"


def test_any_network(tmp_path):
    assert any_network("ResNet20", {"classes": 3}).output_shape == (None, 3)
    any_network("resnet20").save(tmp_path / "a.keras")
    assert any_network(str(tmp_path / "a.keras")).name == "resnet20"
    (tmp_path / "mine.py").write_text(
        "import keras\ndef make(units=2):\n"
        "    x = keras.Input((3,))\n    return keras.Model(x, keras.layers.Dense(units)(x))\n"
        "def wrong():\n    return 1\n"
    )
    assert any_network(f"{tmp_path / 'mine.py'}:make", {"units": 5}).output_shape == (None, 5)
    with pytest.raises(StudyError, match="returned int"):
        any_network(f"{tmp_path / 'mine.py'}:wrong")


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("resnet57", "no network of"),
        ("missing.keras", "does not exist"),
        ("no_such_module:make", "cannot be had"),
        ("json:no_such_name", "cannot be had"),
        ("missing.py:make", "cannot be had"),
    ],
)
def test_networks_that_there_are_not(source, fault):
    with pytest.raises(StudyError, match=fault):
        any_network(source)


def test_random_inputs_fit_what_a_model_takes():
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    mask = keras.Input((None,), dtype="int32", name="padding_mask")
    x = keras.layers.Embedding(100, 4)(tokens) * keras.ops.cast(mask[..., None], "float32")
    made = random_inputs(keras.Model([tokens, mask], x), batch=3, length=5)
    assert made["token_ids"].shape == made["padding_mask"].shape == (3, 5)
    assert made["padding_mask"].min() == 1 and len(np.unique(made["token_ids"])) > 5
