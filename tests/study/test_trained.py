"""Lesions, identity and landscape of networks that were trained."""

from itertools import combinations

import keras
import numpy as np
import pytest

from keras_resnets import create_model
from keras_resnets.study import StudyError, identity, landscape, lesion, of_landscape
from keras_resnets.study.blocks import Blocks
from keras_resnets.study.of_identity import deepened, layer_responses
from keras_resnets.study.of_landscape import Surface, filter_normalised
from keras_resnets.study.of_lesion import PathGradients, kendall, path_weights
from keras_resnets.study.trained import NETWORKS, trained_network, trained_networks


@pytest.fixture(scope="module")
def nets(runs):
    """Both networks with 100 test images; do not change them."""
    return {family: trained_network(folder, images=100) for family, folder in runs.items()}


def silenced(model, name):
    """The network with a residual branch that gives zeros."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    last = copy.get_layer(f"{name}_2_bn")
    last.gamma.assign(0 * last.gamma)
    last.beta.assign(0 * last.beta)
    return copy


def test_a_trained_network_comes_with_its_images(nets, runs):
    one = nets["residual"]
    assert (one.name, one.family, one.images.shape, one.images.dtype) == (
        "resnet20",
        "residual",
        (100, 8, 8, 1),
        "float32",
    )
    assert (one.model.predict(one.images, verbose=0).argmax(1) == one.labels).mean() > 0.8
    assert nets["plain"].family == "plain"
    every = trained_network(runs["plain"])
    assert len(every.images) == 360
    names = [one.name for one in trained_networks([runs["plain"], runs["plain"], runs["plain"]], images=2)]
    assert names == ["plainnet20", "plainnet20 #2", "plainnet20 #3"]


def test_networks_without_what_is_needed(tmp_path, runs):
    create_model("resnet20").save(tmp_path / "bare.keras")
    with pytest.raises(StudyError, match="does not carry its preprocessing"):
        trained_network(tmp_path / "bare.keras")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "recipe.json").write_bytes((runs["plain"] / "recipe.json").read_bytes())
    with pytest.raises(StudyError, match="not finished"):
        trained_network(tmp_path / "half")
    with pytest.raises(ValueError, match="unknown model 'resnet57': did you mean"):
        trained_network("resnet57")


# Blocks.


@pytest.mark.parametrize("family", ["plain", "residual"])
def test_the_blocks_in_their_order_are_the_network(nets, family):
    one = nets[family]
    blocks = Blocks(one.model)
    values = blocks.before_each(one.images)
    assert [block.name for block in blocks.blocks] == [f"conv{s}_block{n}" for s in (2, 3, 4) for n in (1, 2, 3)]
    assert blocks.removable == [0, 1, 2, 4, 5, 7, 8]
    whole = one.model.predict(one.images, verbose=0)
    for first in range(10):
        np.testing.assert_allclose(blocks.from_block(values[first], range(first, 9)), whole, atol=1e-5)


def test_a_residual_block_that_is_left_out_is_one_whose_branch_is_zero(nets):
    one = nets["residual"]
    blocks = Blocks(one.model)
    for gone in (0, 4, 8):
        order = [number for number in range(9) if number != gone]
        scores = blocks.from_block(blocks.before_each(one.images)[0], order)
        other = silenced(one.model, blocks.blocks[gone].name).predict(one.images, verbose=0)
        np.testing.assert_allclose(scores, other, atol=1e-5)
        assert blocks.correct(one.images, one.labels, [order])[0] == (other.argmax(1) == one.labels).sum()


def test_correct_counts_any_order(nets):
    one = nets["plain"]
    blocks = Blocks(one.model)
    orders = [list(range(9)), [1, 0, *range(2, 9)], [0, *range(2, 9)], list(range(8))]
    start = blocks.before_each(one.images)[0]
    want = [(blocks.from_block(start, order).argmax(1) == one.labels).sum() for order in orders]
    np.testing.assert_array_equal(blocks.correct(one.images, one.labels, orders), want)


def test_a_network_without_blocks(nets):
    with pytest.raises(StudyError, match="no network of this zoo"):
        Blocks(create_model("vgg11", input_shape=(32, 32, 3), classes=3))
    with pytest.raises(StudyError, match="has no shortcut"):
        Blocks(nets["plain"].model).blocks[0].apart()


def test_blocks_of_a_pre_activation_network_with_projections():
    model = create_model("resnet18v2", input_shape=(32, 32, 3), classes=3)
    pixels = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    blocks = Blocks(model)
    values = blocks.before_each(pixels)
    np.testing.assert_allclose(blocks.from_block(values[3], range(3, 8)), model(pixels), atol=1e-5)
    shortcut, residual = blocks.blocks[2].apart()[0](values[2])
    np.testing.assert_allclose(shortcut + residual, values[3], rtol=1e-5, atol=1e-5)


# Lesion.


def test_all_paths_together_are_the_gradient(nets):
    """The backward pass multiplies sums of two ways: multiplied out, it is the sum over all 2⁹ paths."""
    import tensorflow as tf

    one = nets["residual"]
    blocks = Blocks(one.model)
    ways = PathGradients(blocks, one.images[:2], one.labels[:2])
    paths = [ways.gradient(chosen) for count in range(10) for chosen in combinations(range(9), count)]
    assert len(paths) == 2**9
    start = blocks.stem(one.images[:2])
    with tf.GradientTape() as tape:
        tape.watch(start)
        x = start
        for block in blocks.blocks:
            x = block.whole(x)
        loss = tf.reduce_sum(keras.losses.sparse_categorical_crossentropy(one.labels[:2], blocks.head(x)))
    want = tape.gradient(loss, start).numpy()
    np.testing.assert_allclose(np.sum(paths, 0), want, atol=1e-4 * abs(want).max())


def test_shares_of_paths():
    equal = path_weights([1.0] * 4)
    np.testing.assert_allclose(equal, np.array([4, 6, 4, 1]) / 15)
    assert path_weights([1.0, 0.0, 0.0]) == [1.0, 0.0, 0.0]
    assert sum(path_weights([1e-300, 1e-200, 1e-310])) == pytest.approx(1)


@pytest.mark.parametrize(("order", "tau"), [([0, 1, 2, 3], 1.0), ([3, 2, 1, 0], -1.0), ([1, 0, 2, 3], 4 / 6)])
def test_kendall_s_tau(order, tau):
    assert kendall(order) == pytest.approx(tau)


def test_lesion(runs, tmp_path, is_picture):
    settings = {"images": 60, "draws": 2, "counts": (1, 3), "path_images": 4, "path_draws": 1, "verbose": False}
    outcome = lesion(tmp_path, networks=[runs["plain"], runs["residual"]], **settings)
    plain, residual = outcome.details["networks"]
    assert len(plain["without_one"]) == 7 and plain["removable"] == residual["removable"]
    one = trained_network(runs["residual"], images=60)
    scores = silenced(one.model, "conv3_block3").predict(one.images, verbose=0)
    at = residual["removable"].index(5)
    assert residual["without_one"][at] == pytest.approx(100 * (scores.argmax(1) == one.labels).mean())
    assert not plain["paths"] and len(residual["paths"]) == 9
    assert np.median(residual["without_one"]) > np.median(plain["without_one"])
    assert is_picture(tmp_path / "lesion.png") and (tmp_path / "lesion.md").stat().st_size > 200
    written = (tmp_path / "resnet20.json").read_bytes()
    assert lesion(tmp_path, networks=[runs["plain"], runs["residual"]], **settings).rows == outcome.rows
    assert (tmp_path / "resnet20.json").read_bytes() == written
    with pytest.raises(StudyError, match="images 60 \\(now 50\\)"):
        lesion(tmp_path, networks=[runs["residual"]], **{**settings, "images": 50})


# Identity.


def test_a_deeper_network_that_is_no_worse(nets):
    one = nets["residual"]
    deep = deepened(one.model, "resnet56")
    assert len([layer for layer in deep.layers if isinstance(layer, keras.layers.Add)]) == 27
    np.testing.assert_allclose(deep(one.images), one.model(one.images), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_zero_branches_are_the_identity_in_any_network(seed):
    """Whatever the weights, moving statistics and images are."""
    keras.utils.set_random_seed(seed)
    model = create_model("resnet20", input_shape=(9, 7, 2), classes=4)
    random = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(variable + 0.3 * random.normal(size=variable.shape) ** 2)
    pixels = random.normal(0, 10, (5, 9, 7, 2)).astype("float32")
    ours, deeper = model(pixels).numpy(), deepened(model, "resnet44")(pixels).numpy()
    np.testing.assert_allclose(deeper, ours, atol=1e-5)


@pytest.mark.parametrize(
    ("deeper", "fault"),
    [("resnet20v2", "does not hold"), ("resnet18", "does not hold"), ("plainnet56", "without a shortcut")],
)
def test_networks_that_cannot_be_deepened_so(nets, deeper, fault):
    with pytest.raises(StudyError, match=fault):
        deepened(nets["residual"].model, deeper)


def test_layer_responses(nets):
    one = nets["plain"]
    found = {layer["layer"]: layer["std"] for layer in layer_responses(one.model, one.images)}
    assert len(found) == 18
    value = keras.Model(one.model.input, one.model.get_layer("conv3_block2_1_bn").output)(one.images)
    assert found["conv3_block2_1_bn"] == pytest.approx(np.std(value), rel=1e-4)
    with pytest.raises(StudyError, match="Figure 7"):
        layer_responses(create_model("resnet20v2", input_shape=(8, 8, 1)), one.images)


def test_identity(runs, tmp_path, is_picture):
    outcome = identity(
        tmp_path, networks=[runs["plain"], runs["residual"]], images=60, deeper="resnet32", verbose=False
    )
    plain, residual = outcome.details["networks"]
    assert plain["blocks"] is None and plain["deeper"] is None and len(residual["blocks"]) == 7
    assert (
        residual["deeper"]["accuracy"] == residual["deeper"]["deeper_accuracy"]
        and residual["deeper"]["difference"] < 1e-5
    )
    assert any("resnet20 as resnet32" in finding for finding in outcome.findings)
    assert is_picture(tmp_path / "identity.png")


# Landscape.


def test_directions_are_as_long_as_the_filters():
    value = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype("float32")
    value[..., 2] = 0
    direction = filter_normalised(value, np.random.default_rng(1))
    np.testing.assert_allclose(
        np.sqrt((direction**2).sum((0, 1, 2))), np.sqrt((value**2).sum((0, 1, 2))), rtol=1e-5, atol=1e-12
    )
    assert not filter_normalised(np.ones(4, "float32"), np.random.default_rng(1)).any()


def test_the_surface_in_the_middle_is_the_network(nets):
    from keras_resnets.models.layers import linear_head

    one = nets["residual"]
    before = one.model.get_weights()
    scores = one.model.predict(one.images, verbose=0)
    want = -np.log(scores[np.arange(100), one.labels]).mean()
    with linear_head(one.model):
        surface = Surface(one, seed=0)
        assert surface.loss(0.0, 0.0) == pytest.approx(want, rel=1e-4)
        assert surface.loss(2.0, 0.0) > 2 * want
        assert surface.loss(1e20, 0.0) <= 1e6
        surface.restore()
    for ours, theirs in zip(before, one.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_landscape(runs, tmp_path, is_picture):
    networks, settings = [runs["plain"], runs["residual"]], {"images": 20, "points": 3, "verbose": False}
    outcome = landscape(tmp_path, networks=networks, **settings)
    assert [np.shape(one["loss"]) for one in outcome.details["networks"]] == [(3, 3)] * 2
    assert is_picture(tmp_path / "landscape.png")
    assert landscape(tmp_path, networks=networks, **settings).details == outcome.details
    for points, radius in ((4, 1.0), (1, 1.0), (3, 0.0)):
        with pytest.raises(StudyError, match="points must be odd"):
            landscape(tmp_path, networks=networks, points=points, radius=radius)


# Without a word: what the package brings.


@pytest.mark.parametrize(
    ("study", "networks"), [("lesion", NETWORKS), ("identity", NETWORKS), ("landscape", of_landscape.NETWORKS)]
)
def test_the_help_names_the_networks(study, networks, capsys):
    from keras_resnets.cli import main

    with pytest.raises(SystemExit):
        main(["study", study, "--help"])
    assert f"(default:{','.join(networks)})" in "".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("study", ["identity", "lesion", "landscape"])
def test_the_quick_studies_need_nothing_but_the_package(study, tmp_path, monkeypatch, capsys, is_picture):
    from keras_resnets.cli import main

    monkeypatch.setenv("KERAS_RESNETS_FASHION_MNIST", str(tmp_path))  # where no data set is
    assert main(["study", study, "--quick", "--quiet", "--images", "40", "--out", str(tmp_path / "out")]) == 0
    assert "resnet56" in capsys.readouterr().out
    assert is_picture(tmp_path / "out" / f"{study}.png")
