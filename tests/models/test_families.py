"""What each family does, beyond the logits that test_parity compares."""

import gc
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnets
from keras_resnets import create_model, list_models, load_model, model_info, save_model
from keras_resnets.models.conversion import resize_positions
from keras_resnets.models.layers import drop_path, variables_at_the_end
from keras_resnets.models.resnet_v2 import _max_pool_signed

# One small network a family; the slow suite has all.
SMALL = ["vgg11", "resnet18", "plainnet20", "resnet20v2", "wrn16_8", "wideresnet50_2", "resnext50_32x4d",
         "densenetbc100_12", "seresnet18", "resnet18d", "resnetrs50", "vit_ti16"]  # fmt: skip
ALL = [pytest.param(name, marks=[] if name in SMALL else pytest.mark.slow) for name in list_models()]


def small_shape(name):
    return (32, 32, 3) if name.startswith(("vgg", "vit")) or model_info(name).classes == 1000 else (16, 16, 3)


@pytest.mark.parametrize("name", ALL)
def test_a_model_trains_a_step_saves_and_loads(name, tmp_path):
    shape = small_shape(name)
    model = create_model(name, input_shape=shape, classes=3)
    images = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    before = [np.array(v) for v in model.trainable_variables]
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    assert np.isfinite(model.train_on_batch(images, np.array([0, 1, 2, 0])))
    moved = [not np.array_equal(a, b) for a, b in zip(before, model.trainable_variables, strict=True)]
    assert all(moved)
    save_model(model, tmp_path / "m.keras")
    again = load_model(tmp_path / "m.keras")
    assert again.architecture == model.architecture
    expected = np.asarray(model(images, training=False))
    assert expected.shape == (4, 3)
    assert np.array_equal(np.asarray(again(images, training=False)), expected, equal_nan=True)


@pytest.mark.parametrize("name", SMALL)
def test_heads(name):
    shape = small_shape(name)
    features = create_model(name, include_top=False, input_shape=shape)
    pooled = create_model(name, include_top=False, pooling="avg", input_shape=shape)
    largest = create_model(name, include_top=False, pooling="max", input_shape=shape)
    assert features.output_shape[-1:] == pooled.output_shape[1:] == largest.output_shape[1:]
    assert len(features.output_shape) == (3 if name.startswith("vit") else 4)
    logits = create_model(name, classifier_activation=None, classes=7, input_shape=shape)
    assert logits.output_shape == (None, 7)


@pytest.mark.parametrize("name", [name for name in SMALL if "drop_path_rate" in dict(model_info(name).options)])
def test_stochastic_depth_grows_to_the_last_block_and_ends_with_training(name):
    shape = small_shape(name)
    model = create_model(name, input_shape=shape, drop_path_rate=0.4)
    rates = [layer.rate for layer in model.layers if layer.name.endswith("_drop")]
    # A block of a Vision Transformer has two residual branches.
    rates = rates[:: 2 if name.startswith("vit") else 1]
    assert np.allclose(rates, 0.4 * np.arange(1, len(rates) + 1) / len(rates))
    without = create_model(name, input_shape=shape)
    values = {variable.path: variable for variable in model.weights}
    for variable in without.weights:
        variable.assign(values[variable.path])
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    assert np.array_equal(np.asarray(model(images)), np.asarray(without(images)), equal_nan=True)


def test_a_dropped_residual_is_dropped_for_whole_images_and_kept_in_the_mean():
    inputs = keras.Input((2, 2, 3))
    model = keras.Model(inputs, drop_path(inputs, 0.3, "block"))
    kept = np.asarray(model(np.ones((4000, 2, 2, 3), np.float32), training=True)).reshape(4000, -1)
    assert (kept == kept[:, :1]).all()
    assert set(np.round(np.unique(kept), 5)) == {0.0, np.float32(np.round(1 / 0.7, 5))}
    assert abs(kept.mean() - 1) < 0.05


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, "half", None, True])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("resnet20", "drop_path_rate"),
        ("resnet20", "dropout_rate"),
        ("wrn16_8", "dropout_rate"),
        ("vgg11", "dropout_rate"),
        ("densenetbc100_12", "dropout_rate"),
        ("vit_ti16", "drop_path_rate"),
        ("vit_ti16", "dropout_rate"),
    ],
)
def test_rates_that_are_no_probabilities_are_refused(name, option, rate):
    with pytest.raises(ValueError, match=rf"{option} must be a number in \[0, 1\)"):
        create_model(name, input_shape=(32, 32, 3), **{option: rate})


def test_a_plain_network_has_nothing_to_drop_a_residual_from():
    with pytest.raises(TypeError, match="drop_path_rate"):
        keras_resnets.PlainNet20(drop_path_rate=0.1)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("wrn16_8", 6), ("densenetbc100_12", 48), ("vgg11", 2), ("vit_ti16", 1 + 3 * 12), ("resnetrs50", 1)],
)
def test_dropout_stands_where_the_paper_has_it(name, layers):
    model = create_model(name, input_shape=(32, 32, 3), dropout_rate=0.25)
    found = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert len(found) == layers
    assert {layer.rate for layer in found} == {0.25}


def test_vgg_has_the_papers_dropout_unless_told_otherwise():
    assert [layer.rate for layer in keras_resnets.VGG11(input_shape=(32, 32, 3)).layers if "dropout" in layer.name] == [
        0.5,
        0.5,
    ]
    bare = keras_resnets.VGG11(input_shape=(32, 32, 3), dropout_rate=0)
    assert not [layer for layer in bare.layers if isinstance(layer, keras.layers.Dropout)]


def test_squeeze_and_excitation_weighs_channels_by_the_whole_image():
    model = keras_resnets.SEResNet18(input_shape=(32, 32, 3))
    for layer in model.layers:
        if layer.name.endswith(("_se_reduce", "_se_expand")):
            layer.set_weights([np.zeros(v.shape) for v in layer.weights])
    scale = model.get_layer("conv2_block1_se_scale")
    taps = keras.Model(model.input, [scale.input[0], scale.output])
    before, after = taps(np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32))
    assert np.allclose(np.asarray(after), 0.5 * np.asarray(before))


@pytest.mark.parametrize("side", [7, 8])
def test_resnet_d_averages_before_it_projects(side):
    model = keras_resnets.ResNet18D(input_shape=(8 * side, 8 * side, 3))
    pool = model.get_layer("conv3_block1_0_pool")
    taps = keras.Model(model.input, [pool.input, pool.output])
    before, after = map(np.asarray, taps(np.random.default_rng(0).normal(size=(1, 8 * side, 8 * side, 3))))
    assert np.allclose(after[0, 0, 0], before[0, :2, :2].mean((0, 1)), atol=1e-6)
    assert model.get_layer("conv3_block1_0_conv").strides == (1, 1)


def test_a_resnet_c_has_the_parameters_of_its_d_form():
    c, d = (create_model(name, input_shape=(32, 32, 3)).count_params() for name in ("resnet50c", "resnet50d"))
    assert c == d


@pytest.mark.parametrize("side", [1, 2, 7, 8])
def test_the_pre_activation_stem_pools_as_if_nothing_surrounded_the_image(side):
    inputs = keras.Input((side, side, 2))
    images = -np.random.default_rng(0).uniform(1, 2, (3, side, side, 2)).astype(np.float32)
    expected = tf.nn.max_pool2d(images, 3, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])
    assert np.array_equal(np.asarray(keras.Model(inputs, _max_pool_signed(inputs))(images)), expected)


def test_a_dense_layer_appends_to_all_that_was_before():
    model = keras_resnets.DenseNetBC100_12(input_shape=(8, 8, 3))
    joins = [layer for layer in model.layers if layer.name.startswith("conv2") and layer.name.endswith("concat")]
    taps = keras.Model(model.input, [joins[0].input[0], *(join.output for join in joins)])
    maps = [np.asarray(x) for x in taps(np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32))]
    assert [x.shape[-1] for x in maps] == [24 + 12 * i for i in range(17)]
    for before, after in itertools.pairwise(maps):
        assert np.array_equal(after[..., : before.shape[-1]], before)


def test_a_vision_transformer_reads_the_order_of_its_patches():
    model = keras_resnets.ViT_Ti16(input_shape=(32, 32, 3), classifier_activation=None)
    tokens = model.get_layer("tokens")
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    swapped = np.concatenate([images[:, 16:], images[:, :16]], axis=1)
    tokens.position_embedding.assign(np.zeros(tokens.position_embedding.shape))
    assert np.allclose(np.asarray(model(images)), np.asarray(model(swapped)), atol=1e-5)
    tokens.position_embedding.assign(np.random.default_rng(1).normal(size=tokens.position_embedding.shape))
    assert not np.allclose(np.asarray(model(images)), np.asarray(model(swapped)), atol=1e-2)


def test_position_embeddings_are_interpolated():
    stored = np.random.default_rng(0).normal(size=(1, 1 + 9, 4)).astype(np.float32)
    assert np.allclose(resize_positions(stored, (3, 3)), stored, atol=1e-6)
    larger = resize_positions(stored, (4, 6))
    assert larger.shape == (1, 1 + 24, 4)
    assert np.array_equal(larger[:, 0], stored[:, 0])
    flat = np.concatenate([stored[:, :1], np.full((1, 9, 4), 2.5, np.float32)], axis=1)
    assert np.allclose(resize_positions(flat, (5, 2))[:, 1:], 2.5, atol=1e-5)


@pytest.mark.parametrize("shape", [(None, None, 3), (33, 32, 3), (32, 8, 3)])
def test_a_vision_transformer_needs_whole_patches(shape):
    with pytest.raises(ValueError, match="multiples of its patches' 16 pixels"):
        keras_resnets.ViT_Ti16(input_shape=shape)


def test_vgg_says_which_inputs_it_cannot_take():
    with pytest.raises(ValueError, match="must be 32 or more"):
        keras_resnets.VGG11(input_shape=(31, 64, 3))
    with pytest.raises(ValueError, match="include_top=False"):
        keras_resnets.VGG11(input_shape=(None, None, 3))
    assert keras_resnets.VGG11(include_top=False, input_shape=(None, None, 3)).output_shape == (None, None, None, 512)


def test_a_dense_network_says_how_small_its_images_may_be():
    with pytest.raises(ValueError, match="sides of 29 or more"):
        keras_resnets.DenseNet121(input_shape=(28, 64, 3))
    with pytest.raises(ValueError, match="sides of 4 or more"):
        keras_resnets.DenseNetBC100_12(input_shape=(8, 3, 3))
    assert keras_resnets.DenseNetBC100_12(include_top=False, input_shape=(4, 4, 3)).output_shape[1:3] == (1, 1)
    assert keras_resnets.DenseNet121(include_top=False, input_shape=(29, 29, 3)).output_shape[1:3] == (1, 1)


def test_an_input_shape_beside_an_input_tensor_must_be_its_own():
    images = keras.Input((32, 32, 3))
    keras_resnets.ResNet20(input_tensor=images, input_shape=(32, 32, 3))
    with pytest.raises(ValueError, match="contradicts input_tensor"):
        keras_resnets.ResNet20(input_tensor=images, input_shape=(64, 64, 3))


@pytest.mark.parametrize(("name", "branches"), [("seresnet18", 8), ("vit_ti16", 24), ("wrn16_8", 6)])
def test_damping_reaches_the_last_weights_of_a_branch(name, branches):
    model = create_model(name, input_shape=(32, 32, 3), drop_path_rate=0.1)
    add = next(layer for layer in model.layers if isinstance(layer, keras.layers.Add))
    tap = keras.Model(model.input, add.input)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    before = [np.asarray(value) for value in tap(images)]
    assert keras_resnets.damp_residuals(model, 0.25) == branches
    after = [np.asarray(value) for value in tap(images)]
    assert np.array_equal(before[0], after[0])
    # What squeeze-and-excitation multiplies by depends on what is damped, so it is less exact there.
    ratio = np.linalg.norm(after[1]) / np.linalg.norm(before[1])
    assert ratio == pytest.approx(0.25, rel=0.2 if name.startswith("se") else 1e-4)


def test_weights_follow_the_seed():
    """Variables are made at the end of a network's construction; their values must not depend on that."""
    made = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        made.append(keras_resnets.ResNet20(input_shape=(8, 8, 1)))
    assert all(np.array_equal(a, b) for a, b in zip(made[0].weights, made[1].weights, strict=True))
    kernels = [layer.kernel for layer in made[0].layers if isinstance(layer, keras.layers.Conv2D)]
    assert not np.array_equal(kernels[1], kernels[2])


def test_the_garbage_collector_is_left_as_it_was():
    assert gc.isenabled()
    with pytest.raises(RuntimeError), variables_at_the_end():
        assert not gc.isenabled()
        raise RuntimeError
    assert gc.isenabled()
    gc.disable()
    try:
        keras_resnets.ResNet20(input_shape=(8, 8, 1))
        assert not gc.isenabled()
    finally:
        gc.enable()
