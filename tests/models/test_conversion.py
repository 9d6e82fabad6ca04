"""Weights in the names and layouts of timm and torchvision, back and forth."""

import hashlib
import json
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_resnets
from keras_resnets import Preprocessing, save_model, save_weights
from keras_resnets.models import loading
from keras_resnets.models.conversion import bindings, is_square_grid, resize_positions
from keras_resnets.models.files import describe
from keras_resnets.weights import WeightsError

safetensors = pytest.importorskip("safetensors.numpy")

GOLDEN = json.loads((Path(__file__).parent / "golden" / "golden.json").read_text(encoding="utf-8"))
DEEP = {"resnet101", "resnetrs101", "resnet101v2", "seresnet101", "resnet101d", "densenet169", "densenet201"} | {
    "resnext101_32x8d",
    "resnetrs200",
    "resnetrs152",
    "resnet152",
    "resnet152v2",
    "seresnet152",
    "resnet152d",
    "densenet264",
}
NAMINGS = ("zoo", "timm", "torchvision")

# A small network of every family, and each way in which one names its layers.
SMALL = {
    "resnet18": {},
    "resnet20": {"shortcut": "B"},
    "resnet18v2": {},
    "resnet20v2": {},
    "wrn16_8": {},
    "resnext50_32x4d": {"include_top": False},
    "seresnet18": {},
    "resnet50c": {"include_top": False},
    "resnet18d": {},
    "resnetrs50": {"include_top": False},
    "densenetbc100_12": {},
    "vgg11": {"include_top": False},
    "vit_ti16": {},
}
TWO_DIALECTS = ("resnet18", "vgg11", "vit_ti16")
WRITTEN = (*TWO_DIALECTS, "wrn16_8", "resnet18v2")  # as files, too


def small(name, **arguments):
    given = {"input_shape": (32, 32, 3), "classes": 7, **SMALL.get(name, {}), **arguments}
    return keras_resnets.create_model(name, **given)


def equal(first, second):
    return first.keys() == second.keys() and all(
        np.array_equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first
    )


def digest(pairs):
    lines = sorted(f"{pair.key} {'x'.join(map(str, pair.shape))}\n" for pair in pairs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# Every tensor, exactly.


@pytest.mark.parametrize("name", SMALL)
def test_every_variable_has_one_stored_form_and_comes_back_from_it(name, randomize, values):
    model = randomize(small(name))
    before = values(model)
    for naming in NAMINGS:
        pairs = bindings(model, naming, name)
        stored = {pair.key: pair.read() for pair in pairs}
        assert {pair.key: pair.shape for pair in pairs} == {key: array.shape for key, array in stored.items()}
        assert all(array.flags.c_contiguous for array in stored.values())  # safetensors would write others wrongly
        for variable in model.weights:
            variable.assign(np.full(variable.shape, np.nan, np.float32))
        for pair in pairs:
            pair.assign(stored[pair.key])
        assert equal(before, values(model))


@pytest.mark.filterwarnings("error::keras_resnets.models.loading.WeightsWarning")
@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_back_and_forth_is_exact_to_the_bit(name, tmp_path, randomize, values):
    model = randomize(small(name))
    for naming in NAMINGS if name in TWO_DIALECTS else NAMINGS[:2]:
        path = tmp_path / "w.safetensors"
        written = safetensors.load_file(save_weights(model, path, naming))
        again = small(name, weights=path)
        assert equal(values(model), values(again))
        assert equal(written, safetensors.load_file(save_weights(again, path, naming)))


@pytest.mark.filterwarnings("error::keras_resnets.models.loading.WeightsWarning")
@pytest.mark.parametrize("dialect", ["timm", "torchvision"])
@pytest.mark.parametrize("name", TWO_DIALECTS)
def test_a_file_of_others_comes_back_as_it_was(name, dialect, tmp_path):
    """Without our metadata, and with the counters that PyTorch keeps."""
    random = np.random.default_rng(0)
    theirs = {
        pair.key: random.standard_normal(pair.shape).astype(np.float32) for pair in bindings(small(name), dialect, name)
    }
    counters = {"bn1.num_batches_tracked": np.array(7), "layer1.0.bn1.num_batches_tracked": np.array(7)}
    safetensors.save_file({**theirs, **counters}, tmp_path / "theirs.safetensors", {"format": "pt"})
    model = small(name, weights=tmp_path / "theirs.safetensors")
    assert equal(theirs, safetensors.load_file(save_weights(model, tmp_path / "back.safetensors", dialect)))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in DEEP else name for name in GOLDEN]
)
def test_keys_and_shapes_are_those_of_the_independent_implementation(name, shapes_alone):
    facts, name = GOLDEN[name], name.partition("@")[0]
    with shapes_alone():
        model = keras_resnets.create_model(name)
        timm, torchvision = (digest(bindings(model, dialect, name)) for dialect in ("timm", "torchvision"))
    assert facts["digest"] == (timm if facts["source"].startswith("timm") else torchvision)
    assert facts.get("digest_timm", timm) == timm


def test_keys_and_shapes_of_torchvisions_vision_transformer(shapes_alone):
    """Its state dict's digest, as in golden.json, by torchvision 0.28.0: vit_b_16."""
    with shapes_alone():
        pairs = bindings(keras_resnets.ViT_B16(), "torchvision", "vit_b16")
    assert digest(pairs) == "f6aadcbccfc8452172fe95a66b25713a0c94f35a7880ca6379d0dc928fe4ef7a"


@pytest.mark.parametrize(
    "name", ["plainnet18", "plainnet20", "plainnet50", "resnet20", "resnet20v2", "resnet164v2", "densenetbc100_12"]
)
def test_networks_that_others_do_not_have_are_named_without_gaps_or_doubles(name, shapes_alone):
    with shapes_alone():
        model = keras_resnets.create_model(name)
        for naming in NAMINGS:
            pairs = bindings(model, naming, name)
            assert len({pair.key for pair in pairs}) == len(pairs)
            assert sum(len(pair.variables) for pair in pairs) == len(model.weights)


# Layouts that are more than a transposition.


def stored(model, naming):
    return {pair.key: pair.read() for pair in bindings(model, naming, model.architecture.model)}


def test_vgg_flattens_channels_first_there():
    model = small("vgg11", include_top=True, input_shape=(64, 96, 3))  # 2×3×512 in front of fc1
    ours, theirs, timms = np.array(model.get_layer("fc1").kernel), stored(model, "torchvision"), stored(model, "timm")
    unit, channel, row, column = 1234, 77, 1, 2
    expected = ours[(row * 3 + column) * 512 + channel, unit]
    assert theirs["classifier.0.weight"][unit, (channel * 2 + row) * 3 + column] == expected
    assert timms["pre_logits.fc1.weight"][unit, channel, row, column] == expected
    assert timms["pre_logits.fc2.weight"].shape == (4096, 4096, 1, 1)
    assert timms["head.fc.weight"].shape == (7, 4096)


@pytest.mark.parametrize(
    ("naming", "joined", "bias", "out"),
    [
        ("timm", "blocks.2.attn.qkv.weight", "blocks.2.attn.qkv.bias", "blocks.2.attn.proj.weight"),
        (
            "torchvision",
            "encoder.layers.encoder_layer_2.self_attention.in_proj_weight",
            "encoder.layers.encoder_layer_2.self_attention.in_proj_bias",
            "encoder.layers.encoder_layer_2.self_attention.out_proj.weight",
        ),
    ],
)
def test_queries_keys_and_values_are_one_matrix_there(naming, joined, bias, out, randomize):
    model = randomize(small("vit_ti16"))
    tensors = stored(model, naming)
    ours = {
        "/".join(v.path.split("/")[-2:]): np.array(v)
        for v in model.get_layer("block3_attention").weights  # kernels [width, heads, 64]
    }
    for third, part in enumerate(("query", "key", "value")):
        row, head, channel, column = 192 * third + 64 * 2 + 5, 2, 5, 100
        assert tensors[joined][row, column] == ours[f"{part}/kernel"][column, head, channel]
        assert tensors[bias][row] == ours[f"{part}/bias"][head, channel]
    assert tensors[out][100, 64 * 2 + 5] == ours["attention_output/kernel"][2, 5, 100]


def test_the_classifier_of_timms_preactivated_network_is_a_convolution():
    model = small("resnet18v2")
    theirs, ours = stored(model, "timm")["head.fc.weight"], np.array(model.get_layer("predictions").kernel)
    assert theirs.shape == (7, 512, 1, 1)
    assert np.array_equal(theirs[:, :, 0, 0], ours.T)


@pytest.mark.parametrize(
    ("shape", "square"),
    [
        ((1, 197, 192), True),
        ((1, 2, 192), True),
        ((1, 1, 192), False),
        ((1, 0, 192), False),
        ((1, 198, 192), False),
        ((2, 197, 192), False),
        ((197, 192), False),
        ((), False),
        ((1, 1 + 10**12, 192), False),  # no image has so many
    ],
)
def test_what_counts_as_a_square_grid_of_patches(shape, square):
    assert is_square_grid(shape) is square


def test_positions_of_the_same_grid_stay_and_those_of_another_keep_the_token():
    stored = np.random.default_rng(0).standard_normal((1, 17, 8)).astype(np.float32)
    assert np.allclose(resize_positions(stored, (4, 4)), stored, atol=1e-6)
    other = resize_positions(stored, (3, 6))
    assert other.shape == (1, 19, 8)
    assert np.array_equal(other[:, 0], stored[:, 0])


# What cannot be written.


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {"variant": "keras"}, "'keras' of resnet18"),
        ("resnet50", {"variant": "paper"}, "'paper' of resnet50"),
        ("resnet18v2", {"variant": "keras"}, "only 'paper'"),
        ("densenetbc100_12", {"variant": "keras"}, "only 'paper'"),
        ("resnet18", {"shortcut": "A"}, "shortcut='A'"),
        ("resnet18", {"shortcut": "C"}, "shortcut='C'"),
    ],
)
def test_what_timm_and_torchvision_do_not_compute_has_no_form_there(name, options, message, tmp_path, shapes_alone):
    with shapes_alone():
        model = small(name, **options)
    for naming in ("timm", "torchvision"):
        with pytest.raises(WeightsError, match=message):
            save_weights(model, tmp_path / "w.safetensors", naming)
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_cannot_be_meant(tmp_path):
    model = small("resnet20")
    with pytest.raises(ValueError, match="zoo, timm, torchvision"):
        save_weights(model, tmp_path / "w.safetensors", "keras")
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        save_weights(model, tmp_path / "w.h5")
    stranger = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(WeightsError, match="does not say which network it is"):
        save_weights(stranger, tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("naming", NAMINGS)
def test_layers_in_front_of_the_network_have_no_name(naming, tmp_path):
    grey = keras.Input((32, 32, 1))
    colour = keras.layers.Conv2D(3, 1, name="adapter")(grey)
    with pytest.raises(WeightsError, match="adapter in resnet20 is no layer of resnet20"):
        save_weights(small("resnet20", input_tensor=colour, input_shape=None), tmp_path / "w.safetensors", naming)


def test_a_write_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    model = small("resnet20")

    def fail(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    path = tmp_path / "w.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(loading, "write_safetensors", fail)
        with pytest.raises(OSError, match="No space"):
            save_weights(model, path)
        assert list(tmp_path.iterdir()) == []
    save_weights(model, path)
    before = path.read_bytes()
    monkeypatch.setattr(loading, "write_safetensors", fail)
    with pytest.raises(OSError, match="No space"):
        save_weights(model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# What goes with the tensors.


def test_a_weights_file_says_what_it_is(tmp_path):
    model = small("resnet18", classes=2, variant="v1.5")
    describe(model, Preprocessing((32, 32)), ("no", "yes"))
    path = save_weights(model, str(tmp_path / "new folder" / "w.safetensors"), "timm")
    assert path == tmp_path / "new folder" / "w.safetensors"
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"  # without it, timm and transformers refuse the file
    told = json.loads(metadata["keras_resnets"])
    assert told["naming"] == "timm"
    assert told["labels"] == ["no", "yes"]
    assert told["preprocessing"]["size"] == [32, 32]
    assert told["architecture"]["model"] == "resnet18"
    assert told["architecture"]["options"]["variant"] == "v1.5"


def test_a_loaded_model_is_written_as_the_built_one(tmp_path, randomize):
    model = randomize(small("vit_ti16"))
    save_model(model, tmp_path / "m.keras")
    loaded = keras_resnets.load_model(tmp_path / "m.keras")
    for naming in NAMINGS:
        one, two = (
            safetensors.load_file(save_weights(each, tmp_path / f"{i}.safetensors", naming))
            for i, each in enumerate((model, loaded))
        )
        assert equal(one, two)


def test_scopes_around_the_building_leave_the_names_alone(tmp_path, values):
    with keras.name_scope("outer"):
        scoped = small("resnet20")
    again = small("resnet20", weights=save_weights(scoped, tmp_path / "w.safetensors"))
    assert equal({path.partition("/")[2]: value for path, value in values(scoped).items()}, values(again))
