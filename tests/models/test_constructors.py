"""The arguments of the constructors, saving and loading, and clear errors."""

import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

import keras_resnets
from keras_resnets import Preprocessing, load_model, save_model, update_batch_norm
from keras_resnets.models.files import describe
from keras_resnets.weights import WeightsError

FAMILIES = ["resnet20", "plainnet20", "resnet20v2", "resnet18", "plainnet18", "resnet18v2"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(28, 28, 1), (7, 13, 2), (None, None, 3), (1, 1, 64)])
def test_any_input_size_and_channel_count(name, shape):
    model = keras_resnets.create_model(name, input_shape=shape, classes=np.int64(4))
    images = np.zeros((2, *(side or 33 for side in shape[:2]), shape[2]), np.float32)
    assert model(images).shape == (2, 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_training_step_gives_a_finite_loss_and_moves_the_weights(name):
    model = keras_resnets.create_model(name, input_shape=(16, 16, 1), classes=3)
    before = [np.array(v) for v in model.trainable_variables]
    model.compile("sgd", "sparse_categorical_crossentropy")
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 1))
    history = model.fit(images, np.array([0, 1, 2, 0]), epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert all(not np.array_equal(a, b) for a, b in zip(before, model.trainable_variables, strict=True))


def test_heads():
    shape = (32, 32, 3)
    assert keras_resnets.ResNet18(include_top=False, input_shape=shape).output_shape == (None, 1, 1, 512)
    assert keras_resnets.ResNet18(include_top=False, pooling="avg", input_shape=shape).output_shape == (None, 512)
    assert keras_resnets.ResNet18(include_top=False, pooling="max", input_shape=shape).output_shape == (None, 512)
    probabilities = keras_resnets.ResNet20()(np.ones((1, 32, 32, 3)))
    assert np.isclose(np.sum(probabilities), 1)
    logits = keras_resnets.ResNet20(classifier_activation=None)
    assert logits.layers[-1].activation is keras.activations.linear


def test_input_tensor_builds_on_what_is_there():
    inputs = keras.Input((30, 30, 3))
    scaled = keras.layers.Rescaling(1 / 255)(inputs)
    model = keras_resnets.ResNet20(input_tensor=scaled)
    alone = keras_resnets.ResNet20(input_shape=(30, 30, 3))
    alone.set_weights(model.get_weights())
    images = np.random.default_rng(0).uniform(0, 255, (2, 30, 30, 3)).astype(np.float32)
    assert model.input is inputs
    assert np.allclose(model(images), alone(images / 255), atol=1e-6)
    with pytest.raises(ValueError, match="Keras tensor"):
        keras_resnets.ResNet20(input_tensor=images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": -3}, "positive integer"),
        ({"classes": 0}, "positive integer"),
        ({"classes": 2.5}, "positive integer"),
        ({"input_shape": (32, 32)}, "height, width, channels"),
        ({"input_shape": 32}, "height, width, channels"),
        ({"input_shape": (3, 224, 224)}, "channels-first"),
        ({"input_shape": (-1, 32, 3)}, "positive"),
        ({"input_shape": (32, 32, None)}, "channels must be given"),
        ({"pooling": "mean"}, "'avg' or 'max'"),
        ({"variant": "v2"}, "'v1.5', 'paper', 'keras'"),
        ({"weights": "imagenet"}, "'imagenet' are not known of resnet20; it has fashion_mnist"),
        ({"weights": "missing.keras"}, "does not exist"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_resnets.ResNet20(**arguments)


def test_channels_first_is_refused_with_what_to_do():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="set_image_data_format"):
            keras_resnets.ResNet20()
    finally:
        keras.config.set_image_data_format("channels_last")


def test_weights_round_trip_through_a_file(tmp_path):
    first = keras_resnets.ResNet20(input_shape=(8, 8, 1))
    first.save_weights(tmp_path / "w.weights.h5")
    second = keras_resnets.ResNet20(input_shape=(8, 8, 1), weights=tmp_path / "w.weights.h5")
    for a, b in zip(first.variables, second.variables, strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(WeightsError, match="does not fit resnet32"):
        keras_resnets.ResNet32(input_shape=(8, 8, 1), weights=tmp_path / "w.weights.h5")
    (tmp_path / "bad.keras").write_bytes(b"not a zip file")
    with pytest.raises(WeightsError, match=r"bad\.keras"):
        keras_resnets.ResNet20(weights=tmp_path / "bad.keras")
    (tmp_path / "bad.weights.h5").write_bytes(b"not an h5 file")
    with pytest.raises(WeightsError, match=r"bad\.weights\.h5"):
        keras_resnets.ResNet20(weights=tmp_path / "bad.weights.h5")


def test_a_saved_model_keeps_its_preprocessing_and_labels(tmp_path):
    model = keras_resnets.ResNet20(input_shape=(8, 8, 1), classes=2)
    describe(model, Preprocessing((8, 8), 1, mean=(3,), std=(2,)), ("no", "yes"))
    save_model(model, tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras")
    assert loaded.preprocessing == model.preprocessing
    assert tuple(loaded.labels) == ("no", "yes")
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
    assert np.array_equal(model(images), loaded(images))
    assert [file.name for file in tmp_path.iterdir()] == ["m.keras"]


def test_a_saved_model_loads_where_this_package_is_not(tmp_path):
    """Decided once: a convolutional network saved here is an ordinary Keras file."""
    save_model(keras_resnets.ResNet20(shortcut="A"), tmp_path / "m.keras")
    code = (
        "import sys; sys.modules['keras_resnets'] = None; import keras; "
        f"print(keras.models.load_model({str(tmp_path / 'm.keras')!r}).count_params())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == str(keras_resnets.ResNet20().count_params())


def test_weights_of_another_variant_are_refused(tmp_path):
    save_model(keras_resnets.ResNet50(input_shape=(32, 32, 3)), tmp_path / "m.keras")
    keras_resnets.ResNet50(input_shape=(32, 32, 3), weights=tmp_path / "m.keras")
    with pytest.raises(WeightsError, match="variant='paper' was asked for"):
        keras_resnets.ResNet50(input_shape=(32, 32, 3), weights=tmp_path / "m.keras", variant="paper")


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        load_model(tmp_path / "none.keras")
    (tmp_path / "text.keras").write_text("hello")
    with pytest.raises(WeightsError, match="not a readable Keras model"):
        load_model(tmp_path / "text.keras")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w"):
        pass
    with pytest.raises(WeightsError, match="not a readable Keras model"):
        load_model(tmp_path / "empty.keras")
    save_model(keras_resnets.ResNet20(), tmp_path / "whole.keras")
    data = (tmp_path / "whole.keras").read_bytes()
    (tmp_path / "half.keras").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match="not a readable Keras model"):
        load_model(tmp_path / "half.keras")
    with pytest.raises(ValueError, match=r"ends in \.keras"):
        save_model(keras_resnets.ResNet20(), tmp_path / "m.h5")


@pytest.mark.parametrize("name", ["resnet20", "resnet20v2"])
def test_damping_scales_what_a_block_adds(name):
    model = keras_resnets.create_model(name, input_shape=(8, 8, 1))
    add = model.get_layer("conv2_block1_add" if name == "resnet20" else "conv2_block1_out")
    tap = keras.Model(model.input, add.input)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    before = [np.asarray(value) for value in tap(images)]
    assert keras_resnets.damp_residuals(model, 0.25) == 9
    after = [np.asarray(value) for value in tap(images)]
    assert np.array_equal(before[0], after[0])
    assert np.allclose(0.25 * before[1], after[1], rtol=1e-5)
    with pytest.raises(ValueError, match="no residual blocks"):
        keras_resnets.damp_residuals(keras_resnets.PlainNet20())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet1001v2", "resnet1202"])
def test_a_thousand_damped_layers_are_finite(name):
    model = keras_resnets.create_model(name)
    noise = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    assert not np.isfinite(model(noise)).all()
    keras_resnets.damp_residuals(model)
    assert np.isfinite(model(noise)).all()


def test_update_batch_norm_sets_the_statistics_of_the_data():
    model = keras_resnets.ResNet20(input_shape=(8, 8, 1))
    random = np.random.default_rng(0)
    batches = [random.normal(5, 3, (16, 8, 8, 1)).astype(np.float32) for _ in range(2)]
    assert update_batch_norm(model, batches) == 2
    stem = keras.Model(model.input, model.get_layer("conv1_conv").output)
    means = [np.asarray(stem(batch)).mean((0, 1, 2)) for batch in batches]
    norm = model.get_layer("conv1_bn")
    assert np.allclose(norm.moving_mean, np.mean(means, 0), rtol=1e-3, atol=1e-4)
    assert norm.momentum == 0.9
    model.trainable = False
    update_batch_norm(model, batches[:1])
    assert np.allclose(norm.moving_mean, means[0], rtol=1e-3, atol=1e-4)
    assert not norm.trainable
    with pytest.raises(ValueError, match="at least one batch"):
        update_batch_norm(model, [])


@pytest.mark.parametrize(
    "name",
    [
        "resnet110",
        pytest.param("resnet1001v2", marks=pytest.mark.slow),
        pytest.param("resnet1202", marks=pytest.mark.slow),
    ],
)
def test_deep_networks_build_clone_save_and_load_at_python_s_own_recursion_limit(name, tmp_path):
    """In a process of its own, where nothing has raised the limit before."""
    code = f"""
import sys
assert sys.getrecursionlimit() == 1000
import keras, keras_resnets
model = keras_resnets.create_model({name!r}, input_shape=(8, 8, 1))
assert keras.models.clone_model(model).count_params() == model.count_params()
keras_resnets.save_model(model, {str(tmp_path / "m.keras")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    code = f"import keras_resnets; print(len(keras_resnets.load_model({str(tmp_path / 'm.keras')!r}).layers))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) > 2 * int("".join(filter(str.isdigit, name.removesuffix("v2"))))
