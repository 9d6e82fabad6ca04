"""What the argument weights=... of a constructor takes, adapts, warns of and refuses."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import pickle
import resource
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

import keras_resnets
from keras_resnets import Preprocessing, load_model, save_model, save_weights
from keras_resnets.labels import imagenet
from keras_resnets.models import conversion
from keras_resnets.models.conversion import bindings
from keras_resnets.models.files import describe
from keras_resnets.models.loading import Source, WeightsWarning, load_source
from keras_resnets.weights import WeightsError, cached, find_weights

h5py = pytest.importorskip("h5py")
safetensors = pytest.importorskip("safetensors.numpy")

spec = importlib.util.spec_from_file_location("weights_fixtures", Path(__file__).parents[1] / "weights" / "conftest.py")
weights_fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(weights_fixtures)
hub, stand_in = weights_fixtures.hub, weights_fixtures.stand_in

GOLDEN = np.load(Path(__file__).parent / "golden" / "golden.npz")
RECORD = Preprocessing.preset("torch", 32, 40)
NAMES = tuple(f"class {number}" for number in range(7))
INPUTS = (32, 32, 3)
KINDS = ("zoo.safetensors", "timm.safetensors", "torchvision.safetensors", "m.keras", "m.weights.h5")


def small(name="resnet18", **arguments):
    return keras_resnets.create_model(name, **{"input_shape": INPUTS, "classes": 7, **arguments})


def loaded_without_warning(*names, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeightsWarning)
        return small(*names, **arguments)


def predictions(model, images):
    return np.asarray(model(images, training=False))


@pytest.fixture(scope="module")
def images(seeds):
    return seeds.seeded_images(2, *INPUTS)


@pytest.fixture(scope="module")
def trained(randomize):
    """A network whose weights come with a preprocessing and class names."""
    model = randomize(small())
    describe(model, RECORD, NAMES)
    return model


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """It, in every kind of file."""
    folder = tmp_path_factory.mktemp("files")
    for naming in ("zoo", "timm", "torchvision"):
        save_weights(trained, folder / f"{naming}.safetensors", naming)
    save_model(trained, folder / "m.keras")
    trained.save_weights(folder / "m.weights.h5")
    trained.save(folder / "plain.keras")
    safetensors.save_file(safetensors.load_file(folder / "timm.safetensors"), folder / "foreign.safetensors")
    return folder


@pytest.fixture
def cifar(tmp_path, randomize):
    """The file of a network of a quarter of a million parameters."""
    return save_weights(randomize(keras_resnets.ResNet20()), tmp_path / "w.safetensors")


# What fits is loaded, from every kind of file.


@pytest.mark.parametrize("kind", [*KINDS, "plain.keras", "foreign.safetensors"])
def test_every_kind_of_file_gives_the_network_that_was_saved(kind, files, trained, images, values):
    model = loaded_without_warning(weights=files / kind)
    ours, theirs = values(model), values(trained)
    assert all(np.array_equal(ours[path], theirs[path]) for path in theirs)
    assert np.array_equal(predictions(model, images), predictions(trained, images))
    assert model.architecture == trained.architecture
    tells = kind in KINDS and not kind.endswith(".h5")
    assert model.preprocessing == (RECORD if tells else None)
    assert model.labels == (NAMES if tells else None)


def test_a_path_may_be_text(files):
    assert loaded_without_warning(weights=str(files / "zoo.safetensors")).labels == NAMES


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floating_point_numbers_are_converted(dtype, cifar, values):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    before = values(keras_resnets.ResNet20(weights=cifar))
    tensors = {key: array.astype(dtype) for key, array in foreign(keras_resnets.ResNet20(weights=cifar)).items()}
    safetensors.save_file(tensors, cifar)
    after = values(keras_resnets.ResNet20(weights=cifar))
    assert all(np.array_equal(after[path], before[path].astype(dtype).astype(np.float32)) for path in before)


def test_values_that_are_no_numbers_are_loaded_as_they_are(cifar):
    tensors = foreign(keras_resnets.ResNet20(weights=cifar))
    tensors["conv1.weight"][0, 0] = [[np.nan, np.inf, -np.inf], [1e38, -0.0, 1e-45], [0, 0, 0]]
    safetensors.save_file(tensors, cifar)
    kernel = np.array(keras_resnets.ResNet20(weights=cifar).get_layer("conv1_conv").kernel)
    assert kernel[:, :, 0, 0].tobytes() == tensors["conv1.weight"][0, 0].tobytes()


def test_position_embeddings_of_another_input_size_are_those_of_timm(
    tmp_path, torch_seeds, seeds, agreement, shapes_alone
):
    with shapes_alone():
        pairs = bindings(keras_resnets.ViT_Ti16(), "timm", "vit_ti16")
    tensors = {pair.key: torch_seeds.seeded_tensor(pair.key, pair.shape) for pair in pairs}
    safetensors.save_file(tensors, tmp_path / "w.safetensors")
    arguments = {"weights": tmp_path / "w.safetensors", "classifier_activation": None, "classes": 1000}
    model = loaded_without_warning("vit_ti16", input_shape=(160, 160, 3), **arguments)
    logits = predictions(model, seeds.seeded_images(2, 160, 160, 3))
    assert agreement(GOLDEN["vit_ti16@160"], logits[:, ::8]) < 1e-4


def test_the_file_of_a_whole_vgg_in_torchvisions_names_fits_its_convolutions(tmp_path, values):
    """Without heads both dialects have the same names; the file's own must be passed over."""
    features = small("vgg11", include_top=False)
    tensors = {pair.key: pair.read() for pair in bindings(features, "torchvision", "vgg11")}
    for number, shape in ((0, (4, 512)), (3, (4, 4)), (6, (7, 4))):
        tensors |= {
            f"classifier.{number}.weight": np.zeros(shape, "f4"),
            f"classifier.{number}.bias": np.zeros(4, "f4"),
        }
    safetensors.save_file(tensors, tmp_path / "w.safetensors")
    again = values(loaded_without_warning("vgg11", include_top=False, weights=tmp_path / "w.safetensors"))
    assert all(np.array_equal(again[path], value) for path, value in values(features).items())


def test_layers_in_front_of_the_network_keep_their_weights(files, trained, images):
    grey = keras.Input((32, 32, 1))
    adapter = keras.layers.Conv2D(3, 1, name="adapter", kernel_initializer="ones")
    for kind in KINDS[:2]:
        model = loaded_without_warning(input_tensor=adapter(grey), input_shape=None, weights=files / kind)
        theirs = predictions(trained, np.repeat(images[..., :1], 3, axis=3))
        assert np.allclose(predictions(model, images[..., :1]), theirs, atol=1e-6)
        assert model.preprocessing is None


# keras.applications' files.


def write_legacy(path, model, rename=lambda name: name):
    """As the published files: weights of layers "conv1/conv" are called "conv1/conv/kernel:0"."""
    with h5py.File(path, "w") as file:
        layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
        # Lists of over 64 kB are spread over several attributes; these are short ones.
        names = [rename(layer.name) for layer in layers]
        half = len(names) // 2
        file.attrs["layer_names0"] = np.array(names[:half], "S")
        file.attrs["layer_names1"] = np.array(names[half:], "S")
        for layer, name in zip(layers, names, strict=True):
            group = file.create_group(name)
            group.attrs["weight_names"] = np.array([f"{name}/{v.name}:0" for v in layer.weights], "S")
            for variable in layer.weights:
                group[f"{name}/{variable.name}:0"] = np.array(variable)


def published(name):
    """The names of layers in the files of keras.applications' DenseNets and ResNets."""
    return {"predictions": "fc1000", "conv1_conv": "conv1/conv", "conv1_bn": "conv1/bn"}.get(name, name)


@pytest.fixture(scope="module")
def theirs(randomize):
    """keras.applications' ResNet50."""
    return randomize(keras.applications.ResNet50(weights=None, input_shape=INPUTS, classes=7))


@pytest.mark.parametrize("way", ["model.save", "weights", "published"])
def test_keras_applications_files_give_its_predictions(way, theirs, images, tmp_path):
    path = tmp_path / "w.h5"
    if way == "model.save":
        theirs.save(path)
    elif way == "weights":
        with h5py.File(path, "w") as file:
            save_weights_to_hdf5_group(file, theirs)
    else:
        write_legacy(path, theirs, published)
    ours = loaded_without_warning("resnet50", weights=path)
    assert ours.architecture.options["variant"] == "keras"
    assert np.allclose(predictions(ours, images), predictions(theirs, images), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "twin", "arguments"),
    [
        ("resnet50v2", "ResNet50V2", {}),
        ("vgg16", "VGG16", {"include_top": False, "pooling": "max"}),
    ],
)
def test_the_other_families_of_keras_applications(name, twin, arguments, randomize, images, tmp_path, agreement):
    model = getattr(keras.applications, twin)(
        weights=None, input_shape=INPUTS, **(arguments or {"classes": 7, "classifier_activation": None})
    )
    write_legacy(tmp_path / "w.h5", randomize(model), lambda name: name.replace("predictions", "probs"))
    ours = loaded_without_warning(
        name, weights=tmp_path / "w.h5", **(arguments or {"classes": 7, "classifier_activation": None})
    )
    assert agreement(predictions(model, images), predictions(ours, images)) < 1e-5


def test_a_whole_file_of_keras_applications_gives_features_without_the_top(theirs, tmp_path, images):
    write_legacy(tmp_path / "w.h5", theirs, published)
    ours = loaded_without_warning("resnet50", include_top=False, pooling="avg", weights=tmp_path / "w.h5")
    features = keras.Model(theirs.input, theirs.get_layer("avg_pool").output)
    assert np.allclose(predictions(ours, images), predictions(features, images), rtol=1e-4, atol=1e-5)


# What comes along is adapted.


def test_preprocessing_and_class_names_work(files):
    model = small(weights=files / "timm.safetensors")
    picture = np.full((80, 60, 3), 255, np.uint8)
    batch = model.preprocess_input([picture])
    assert batch.shape == (1, *INPUTS)
    assert np.allclose(batch[0, 0, 0], (1 - np.array(RECORD.mean)) / np.array(RECORD.std))
    best, second = model.decode_predictions(predictions(model, batch), top=2)[0]
    assert best.label == NAMES[best.class_index]
    assert best.score >= second.score


@pytest.mark.parametrize("kind", ["torchvision.safetensors", "m.keras"])
def test_preprocessing_follows_the_input_size(kind, files):
    assert small(weights=files / kind, input_shape=(64, 64, 3)).preprocessing == Preprocessing.preset("torch", 64, 80)


@pytest.mark.parametrize(
    ("shape", "size", "resize"),
    [((None, None, 3), (32, 32), 40), ((64, 48, 3), (64, 48), 80), ((32, 96, 3), (32, 96), 120)],
)
def test_preprocessing_of_open_and_oblong_inputs(shape, size, resize, files):
    own = small(weights=files / "zoo.safetensors", input_shape=shape).preprocessing
    assert (own.size, own.resize) == (size, resize)


def test_without_a_resize_none_is_invented(cifar, tmp_path):
    model = keras_resnets.ResNet20(weights=cifar)
    describe(model, Preprocessing((32, 32)), None)
    path = save_weights(model, tmp_path / "w.safetensors")
    assert keras_resnets.ResNet20(weights=path, input_shape=(48, 48, 3)).preprocessing == Preprocessing((48, 48))


def test_without_preprocessing_the_model_says_what_to_do(cifar):
    model = keras_resnets.ResNet20(weights=cifar)
    assert model.preprocessing is None
    with pytest.raises(ValueError, match=r"set model\.preprocessing"):
        model.preprocess_input([np.zeros((32, 32, 3), np.uint8)])


# What cannot fit stays random, and is told.


def told(message, **arguments):
    """The model and that there was this warning alone, about our own line."""
    with pytest.warns(WeightsWarning) as caught:
        model = keras_resnets.ResNet18(**{"input_shape": INPUTS, "classes": 7, **arguments})
    (warning,) = [each for each in caught if each.category is WeightsWarning]
    assert str(warning.message).endswith(f"not everything fits resnet18, and stays random: {message}")
    assert warning.filename == __file__
    return model


def same_but_for(layers, model, trained, values):
    """Whether weights of all other layers were loaded, and of these layers none."""
    ours, theirs = values(model), values(trained)
    common = [path for path in theirs if path in ours]
    assert {path.partition("/")[0] for path in common if not np.array_equal(ours[path], theirs[path])} == set(layers)


@pytest.mark.parametrize("kind", ["zoo.safetensors", "torchvision.safetensors", "plain.keras"])
def test_without_the_top_nothing_is_missed(kind, files, trained, values, images):
    model = loaded_without_warning(include_top=False, pooling="avg", weights=files / kind)
    same_but_for([], model, trained, values)
    assert model.labels is None
    features = keras.Model(trained.input, trained.get_layer("avg_pool").output)
    assert np.allclose(predictions(model, images), predictions(features, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zoo.safetensors", "predictions is [512, 7] in the file, [512, 5] here"),
        ("timm.safetensors", "predictions is [7, 512] in the file, [5, 512] here"),
        ("m.keras", "predictions is [512, 7] in the file, [512, 5] here"),
    ],
)
def test_other_classes_leave_the_classifier_random(kind, message, files, trained, values):
    model = told(message, weights=files / kind, classes=5)
    loaded, fresh = values(model), values(trained)
    assert all(np.array_equal(loaded[path], fresh[path]) for path in fresh if not path.startswith("predictions"))
    assert model.labels is None
    assert model.preprocessing == RECORD


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zoo.safetensors", "conv1_conv is [7, 7, 3, 64] in the file, [7, 7, 1, 64] here"),
        ("torchvision.safetensors", "conv1_conv is [64, 3, 7, 7] in the file, [64, 1, 7, 7] here"),
    ],
)
def test_other_channels_leave_the_first_layer_random(kind, message, files, trained, values):
    model = told(message, weights=files / kind, input_shape=(32, 32, 1))
    loaded, theirs = values(model), values(trained)
    assert all(np.array_equal(loaded[path], theirs[path]) for path in theirs if not path.startswith("conv1_conv"))
    assert model.labels == NAMES
    assert model.preprocessing is None


def test_other_channels_and_classes_at_once(files):
    model = told(
        "conv1_conv is [64, 3, 7, 7] in the file, [64, 5, 7, 7] here; "
        "predictions is [7, 512] in the file, [4, 512] here",
        weights=files / "foreign.safetensors",
        input_shape=(32, 32, 5),
        classes=4,
    )
    assert model.output_shape == (None, 4)


def test_a_file_without_a_classifier_leaves_it_random(files, tmp_path, trained, values):
    save_weights(small(include_top=False, weights=files / "zoo.safetensors"), tmp_path / "w.safetensors")
    same_but_for(["predictions"], told("predictions is missing", weights=tmp_path / "w.safetensors"), trained, values)


def test_another_input_size_of_vgg_leaves_its_first_dense_layer_random(tmp_path, randomize, values):
    model = randomize(small("vgg11"))
    with pytest.warns(WeightsWarning, match=r"random: fc1 is \[512, 4096\] in the file, \[1024, 4096\] here$"):
        other = small("vgg11", input_shape=(32, 64, 3), weights=save_weights(model, tmp_path / "w.safetensors"))
    loaded, theirs = values(other), values(model)
    assert all(np.array_equal(loaded[path], theirs[path]) for path in theirs if not path.startswith("fc1"))


# What is refused.


def refused(weights, *messages, name="resnet20", **arguments):
    with pytest.raises(WeightsError) as caught:
        keras_resnets.create_model(name, weights=weights, **arguments)
    assert all(message in str(caught.value) for message in messages), caught.value
    return str(caught.value)


@pytest.mark.parametrize(
    ("weights", "name", "message"),
    [
        ("nowhere.safetensors", "resnet20", "nowhere.safetensors does not exist"),
        ("folder/nowhere.h5", "resnet20", "does not exist"),
        (Path("nowhere.keras"), "resnet20", "does not exist"),
        (Path("nowhere.weights.h5"), "resnet20", "does not exist"),
        (Path("/tmp/model.onnx"), "resnet20", "a weights file ends in .safetensors, .weights.h5, .h5, .keras"),
        ("model.pth", "resnet20", "a weights file ends in .safetensors"),
        ("pytorch_model.bin", "resnet20", "a weights file ends in .safetensors"),
        ("a9_in1k", "resnet50", "'a9_in1k' are not known of resnet50; did you mean "),
        ("", "resnet50", r"weights must be None (random), a tag or the path of a file, not ''"),
        ("imagenet", "resnet32", "there are no pretrained weights of resnet32"),
        ("resnet34.a1_in1k", "resnet18", "are not known of resnet18"),
        (True, "resnet20", "weights must be None (random), a tag or the path of a file, not True"),
        (b"w.h5", "resnet20", "weights must be None (random), a tag or the path of a file"),
    ],
)
def test_weights_that_there_are_not(weights, name, message):
    refused(weights, message, name=name)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "w.safetensors").mkdir()
    refused(tmp_path / "w.safetensors", "does not exist")


class Payload:
    """What a pickle does on loading."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".safetensors", ".h5", ".weights.h5", ".keras"])
def test_damaged_files_and_disguises_are_no_weights(suffix, tmp_path):
    model = keras_resnets.ResNet20()
    path, victim = tmp_path / f"w{suffix}", tmp_path / "executed"
    save = {
        ".safetensors": save_weights,
        ".h5": write_on_path,
        ".weights.h5": lambda model, path: model.save_weights(path),
        ".keras": save_model,
    }[suffix]
    save(model, path)
    whole = path.read_bytes()
    contents = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "beginning": whole[:100],
        "end cut": whole[:-1000],
        "zeros": bytes(1000),
        "text": b"<html>404 not found</html>",
        "pickle": pickle.dumps({"conv1.weight": Payload(victim)}),
        "head garbled": bytes(reversed(whole[:64])) + whole[64:],
    }
    for content in contents.values():
        path.write_bytes(content)
        refused(path, str(path), **({"variant": "keras"} if suffix == ".h5" else {}))
    assert not victim.exists()


def write_on_path(model, path):
    write_legacy(path, model)


def test_a_pickle_is_not_executed_in_a_keras_archive(cifar, tmp_path):
    victim = tmp_path / "executed"
    save_model(keras_resnets.ResNet20(weights=cifar), tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as old, zipfile.ZipFile(tmp_path / "new.keras", "w") as new:
        for name in old.namelist():
            data = pickle.dumps(Payload(victim)) if name == "model.weights.h5" else old.read(name)
            new.writestr(name, data)
    refused(tmp_path / "new.keras", "new.keras")
    assert not victim.exists()


def h5_with(tmp_path, place):
    """A legacy file of a ResNet20, one part of which stands somewhere else."""
    model = keras_resnets.ResNet20(variant="keras")
    write_legacy(tmp_path / "secret.h5", model)
    write_legacy(tmp_path / "w.h5", model)
    kernel = "conv1_conv/conv1_conv/kernel:0"
    with h5py.File(tmp_path / "w.h5", "a") as file:
        if place == "tensor":
            del file[kernel]
            file[kernel] = h5py.ExternalLink("secret.h5", f"/{kernel}")
        elif place == "group inside":
            del file["conv1_conv/conv1_conv"]
            file["conv1_conv/conv1_conv"] = h5py.ExternalLink("secret.h5", "/conv1_conv/conv1_conv")
        elif place == "layer":
            del file["conv1_conv"]
            file["conv1_conv"] = h5py.ExternalLink("secret.h5", "/conv1_conv")
        elif place == "root":
            file["model_weights"] = h5py.ExternalLink("secret.h5", "/")
        elif place == "soft link":
            del file[kernel]
            file[kernel] = h5py.SoftLink("/conv2_block1_1_conv")
        elif place == "external tensor":
            del file[kernel]
            (tmp_path / "secret.bin").write_bytes(bytes(4 * 432))
            file.create_dataset(kernel, (3, 3, 3, 16), "f4", external=[(str(tmp_path / "secret.bin"), 0, 4 * 432)])
        elif place == "virtual tensor":
            del file[kernel]
            layout = h5py.VirtualLayout((3, 3, 3, 16), "f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), kernel, (3, 3, 3, 16))
            file.create_virtual_dataset(kernel, layout)
    return tmp_path / "w.h5"


@pytest.mark.parametrize(
    "place", ["tensor", "group inside", "layer", "root", "soft link", "external tensor", "virtual tensor"]
)
def test_an_h5_file_is_read_alone_and_no_other_file_with_it(place, tmp_path):
    path = h5_with(tmp_path, place)
    message = "is not a plain tensor" if "tensor" in place and " " in place else "a link to somewhere else"
    refused(path, str(path), message)
    for file in tmp_path.glob("secret*"):
        file.unlink()
    refused(path, message)


@pytest.mark.parametrize("place", ["tensor", "external tensor"])
def test_nor_is_a_keras_weights_file(place, tmp_path):
    keras_resnets.ResNet20().save_weights(tmp_path / "w.weights.h5")
    with h5py.File(tmp_path / "w.weights.h5", "a") as file:
        del file["layers/conv2d/vars/0"]
        if place == "tensor":
            file["layers/conv2d/vars/0"] = h5py.ExternalLink("secret.h5", "/x")
        else:
            (tmp_path / "secret.bin").write_bytes(bytes(4 * 432))
            external = [(str(tmp_path / "secret.bin"), 0, 4 * 432)]
            file.create_dataset("layers/conv2d/vars/0", (3, 3, 3, 16), "f4", external=external)
    refused(tmp_path / "w.weights.h5", "a link to somewhere else" if place == "tensor" else "is not a plain tensor")


# Weights of something else.


def foreign(model, dialect="timm"):
    return {pair.key: pair.read() for pair in bindings(model, dialect, model.architecture.model)}


def zeros(name):
    """A file's tensors that fit in everything but their values."""
    model = keras_resnets.create_model(name, input_shape=INPUTS, include_top=False)
    return {pair.key: np.zeros(pair.shape, np.uint8) for pair in bindings(model, "timm", name)}


def other_weights(tmp_path, name, way, **options):
    """A file of another network."""
    model = keras_resnets.create_model(name, input_shape=INPUTS, include_top=False, **options)
    path = tmp_path / {"keras": "w.keras", "plain keras": "w.keras", "h5": "w.weights.h5"}.get(way, "w.safetensors")
    if way == "zoo":
        save_weights(model, path)
    elif way == "foreign":
        safetensors.save_file(foreign(model), path)
    elif way == "keras":
        save_model(model, path)
    elif way == "plain keras":
        model.save(path)
    else:
        model.save_weights(path)
    return path


@pytest.mark.parametrize(
    ("other", "name", "way", "message"),
    [
        ("resnet34", "resnet18", "zoo", "are weights of resnet34, not of resnet18"),
        ("resnet34", "resnet18", "foreign", "layer1.2.bn1.bias has no place; "),
        ("resnet32", "resnet20", "keras", "are weights of resnet32, not of resnet20"),
        ("resnet32", "resnet20", "plain keras", "conv2_block4_1_bn/beta has no place"),
        ("resnet32", "resnet20", "h5", "does not fit resnet20"),
        ("resnet20", "resnet32", "h5", "does not fit resnet32"),
        ("resnet101", "resnet50", "foreign", "layer3.10.bn1.bias has no place"),
        ("resnet50", "resnet101", "foreign", "layer3.6.conv1.weight is missing"),
        ("seresnet18", "resnet18", "foreign", "layer1.0.se.fc1.bias has no place"),
        ("resnet18", "seresnet18", "foreign", "layer1.0.se.fc1.weight is missing"),
        ("resnet18", "resnet18d", "foreign", "conv1.0.weight is missing"),
        ("resnet50", "resnet50d", "foreign", "conv1.0.weight is missing"),
        ("resnet50c", "resnet50d", "zoo", "are weights of resnet50c, not of resnet50d"),
        ("plainnet20", "resnet20", "zoo", "are weights of plainnet20, not of resnet20"),
        ("plainnet20", "resnet20", "plain keras", "its conv2_block1_add is missing, not Add"),
        ("resnet20", "plainnet20", "plain keras", "its conv2_block1_add is Add"),
        ("plainnet18", "resnet18", "foreign", "layer2.0.downsample.0.weight is missing"),
        ("resnet18v2", "resnet18", "foreign", "are not weights of this resnet18"),
    ],
)
def test_weights_of_another_network(other, name, way, message, tmp_path, shapes_alone):
    if way == "foreign":
        path = tmp_path / "w.safetensors"
        with shapes_alone():
            safetensors.save_file(zeros(other), path)
    else:
        path = other_weights(tmp_path, other, way)
    refused(path, message, name=name, input_shape=INPUTS, include_top=False)


@pytest.mark.parametrize("way", ["zoo", "foreign", "keras"])
def test_weights_of_another_variant_than_was_asked_for(way, tmp_path):
    path = other_weights(tmp_path, "resnet50", way)
    arguments = {"name": "resnet50", "include_top": False, "input_shape": INPUTS}
    refused(path, "weights of the variant 'v1.5', and variant='paper' was asked for", variant="paper", **arguments)


def test_in_blocks_of_two_convolutions_two_variants_are_one(tmp_path):
    path = other_weights(tmp_path, "resnet18", "zoo")
    keras_resnets.ResNet18(include_top=False, input_shape=INPUTS, weights=path, variant="paper")
    paper = keras_resnets.ResNet18(include_top=False, input_shape=INPUTS, variant="paper")
    keras_resnets.save_weights(paper, tmp_path / "timm.safetensors", "timm")


def test_a_file_that_cannot_say_its_variant_is_warned_of(tmp_path):
    model = keras_resnets.ResNet50(include_top=False, input_shape=INPUTS, variant="paper")
    model.save_weights(tmp_path / "w.weights.h5")
    arguments = {"include_top": False, "input_shape": INPUTS, "weights": tmp_path / "w.weights.h5"}
    with pytest.warns(WeightsWarning, match=r"does not say its variant of resnet50: taken as 'v1\.5'"):
        keras_resnets.ResNet50(**arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeightsWarning)
        keras_resnets.ResNet50(variant="paper", **arguments)


def test_a_model_saved_as_h5_is_not_taken_for_one_of_keras_applications(tmp_path):
    model = keras_resnets.ResNet20(input_shape=(8, 8, 3), variant="v1.5")
    model.save(tmp_path / "own.h5")
    loaded = keras_resnets.ResNet20(input_shape=(8, 8, 3), weights=tmp_path / "own.h5")
    assert loaded.architecture.options["variant"] == "v1.5"
    assert all(np.array_equal(a, b) for a, b in zip(model.weights, loaded.weights, strict=True))


def test_a_warning_points_at_the_callers_line(tmp_path):
    path = keras_resnets.save_weights(keras_resnets.ResNet20(classes=3), tmp_path / "w.safetensors")
    for build in (keras_resnets.ResNet20, functools.partial(keras_resnets.create_model, "resnet20")):
        with pytest.warns(WeightsWarning, match="predictions") as caught:
            build(weights=path)
        assert caught[0].filename == __file__


def test_a_home_folder_and_a_record_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    keras_resnets.save_weights(keras_resnets.ResNet20(), tmp_path / "w.safetensors")
    keras_resnets.ResNet20(weights="~/w.safetensors")
    record = keras_resnets.list_weights("resnet18")[0]
    with pytest.raises(WeightsError, match="are not known of resnet20; it has fashion_mnist"):
        keras_resnets.ResNet20(weights=record)


def test_position_embeddings_of_oblong_images_are_interpolated_too(tmp_path):
    """As many patches in another arrangement are another grid."""
    wide = keras_resnets.ViT_Ti16(input_shape=(32, 128, 3), classes=3)
    path = keras_resnets.save_weights(wide, tmp_path / "w.safetensors")
    stored = np.array(wide.get_layer("tokens").position_embedding)
    for shape, grid in (((64, 64, 3), (4, 4)), ((128, 32, 3), (8, 2)), ((32, 128, 3), (2, 8))):
        loaded = keras_resnets.ViT_Ti16(input_shape=shape, classes=3, weights=path)
        expected = conversion.resize_positions(stored, grid, (2, 8))
        assert np.allclose(loaded.get_layer("tokens").position_embedding, expected, atol=1e-6)
        assert np.array_equal(expected, stored) == (grid == (2, 8))


def test_the_variant_is_that_of_the_weights(tmp_path):
    path = other_weights(tmp_path, "resnet20", "zoo", variant="keras")
    assert keras_resnets.ResNet20(include_top=False, weights=path).architecture.options["variant"] == "keras"
    refused(path, "weights of the variant 'keras'", include_top=False, variant="v1.5")


def test_a_plain_keras_file_of_another_variant(tmp_path):
    """It does not say its variant, but has its strides."""
    path = other_weights(tmp_path, "resnet50", "plain keras", variant="paper")
    arguments = {"input_shape": INPUTS, "include_top": False, "name": "resnet50"}
    refused(path, "of another network or variant than resnet50: its conv3_block1_1_conv", **arguments)


def test_another_shortcut_has_other_weights(cifar):
    refused(cifar, "conv3_block1_0_conv/kernel is missing", shortcut="B")


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (
            "layer2.1.conv1.weight",
            (32, 32, 3, 1),
            "layer2.1.conv1.weight is [32, 32, 3, 1] in the file, [32, 32, 3, 3] here",
        ),
        ("layer2.1.bn1.weight", (31,), "is [31] in the file, [32] here"),
        ("layer2.1.bn1.weight", (), "is [] in the file, [32] here"),
        ("conv1.weight", (16, 3, 7, 7), "conv1.weight is [16, 3, 7, 7] in the file, [16, 3, 3, 3] here"),
        ("conv1.weight", (8, 3, 3, 3), "conv1.weight is [8, 3, 3, 3] in the file, [16, 3, 3, 3] here"),
        ("fc.weight", (10, 64, 1, 1), "fc.weight is [10, 64, 1, 1] in the file, [10, 64] here"),
    ],
)
def test_a_wrong_shape(key, shape, message, cifar):
    tensors = foreign(keras_resnets.ResNet20(weights=cifar))
    safetensors.save_file({**tensors, key: np.zeros(shape, np.float32)}, cifar)
    assert refused(cifar, message).count(";") == 0


def test_many_faults_are_told_in_short(cifar):
    tensors = foreign(keras_resnets.ResNet20(weights=cifar))
    renamed = {f"module.{key}": array for key, array in tensors.items()}
    safetensors.save_file(renamed, cifar)
    message = refused(cifar, "more")
    assert len(message) < 300 + len(str(cifar))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_tensors_that_hold_no_floating_point_numbers(dtype, cifar):
    tensors = foreign(keras_resnets.ResNet20(weights=cifar))
    tensors["layer1.0.conv1.weight"] = tensors["layer1.0.conv1.weight"].real.astype(dtype)
    safetensors.save_file(tensors, cifar)
    refused(cifar, "layer1.0.conv1.weight holds", "not floating-point numbers")


@pytest.mark.parametrize(
    "card",
    [
        "[1]",
        "5",
        "{",
        "[" * 100_000,
        '{"architecture": "resnet20"}',
        '{"architecture": {"model": "resnet20"}}',
        '{"architecture": {"model": 5, "options": {}}}',
        '{"architecture": {"model": "resnet20", "options": []}}',
        '{"architecture": {"model": "resnet20", "options": {"variant": ["v1.5"]}}}',
        '{"labels": 5}',
        '{"labels": [1, 2]}',
        '{"preprocessing": 5}',
        '{"preprocessing": {"size": [32]}}',
    ],
)
def test_what_a_file_says_of_itself_may_be_nonsense(card, cifar, tmp_path):
    safetensors.save_file(safetensors.load_file(cifar), tmp_path / "w.safetensors", {"keras_resnets": card})
    refused(tmp_path / "w.safetensors", "what it says of itself is not readable")


@pytest.mark.parametrize("shape", [[10**9, 10**9], [2**63, 2], [10**12], [-1, 16]])
def test_an_absurd_shape_costs_no_memory(shape, tmp_path):
    header = json.dumps({"conv1.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 64]}}).encode()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    refused(tmp_path / "w.safetensors", "not a readable safetensors file")
    (tmp_path / "w.safetensors").write_bytes((10**15).to_bytes(8, "little") + header)
    refused(tmp_path / "w.safetensors", "not a readable safetensors file")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize("layer", ["patch_embed", "tokens", "block1_mlp1", "predictions"])
def test_nor_does_an_h5_file_that_claims_to_be_huge(layer, tmp_path):
    model = keras_resnets.ViT_Ti16(input_shape=INPUTS, classes=7)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        names = [each.name for each in model.layers]
        file.attrs["layer_names"] = np.array(names, "S")
        for each in model.layers:
            group = file.create_group(each.name)
            group.attrs["weight_names"] = np.array([str(i) for i in range(len(each.weights))], "S")
            for i, variable in enumerate(each.weights):
                shape = tuple(variable.shape)
                chunks = None
                if each.name == layer and i == (layer == "tokens"):
                    shape = (1, 10**12 + 1, 192) if layer == "tokens" else (10**12, *shape[1:])
                    chunks = (1,) * len(shape)
                group.create_dataset(str(i), shape, "f4", chunks=chunks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arguments = {"name": "vit_ti16", "input_shape": INPUTS, "classes": 7}
    if layer == "predictions":
        with pytest.warns(WeightsWarning, match="predictions is"):
            keras_resnets.create_model(weights=tmp_path / "w.h5", **arguments)
    else:
        refused(tmp_path / "w.h5", str(10**12)[:6], **arguments)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


# A load that fails changes nothing.


def damaged(kind, tmp_path):
    """Files whose fault shows late."""
    model = keras_resnets.ResNet20(variant="keras")
    path = tmp_path / f"w{kind}"
    if kind == ".h5":
        write_legacy(path, model)
        with h5py.File(path, "a") as file:
            name = "predictions/predictions/kernel:0"
            values = file[name][()]
            del file[name]
            file.create_dataset(name, data=values, chunks=values.shape, fletcher32=True)
            at = file[name].id.get_chunk_info(0).byte_offset
        data = bytearray(path.read_bytes())
        data[at + 5] ^= 1  # the checksum of the last tensor does not hold any longer
        path.write_bytes(data)
    elif kind == ".weights.h5":
        model.save_weights(path)
        with h5py.File(path, "a") as file:
            del file["layers/dense/vars/0"]
            file["layers/dense/vars/0"] = np.zeros((3, 3), np.float32)
    elif kind == ".safetensors":
        tensors = {pair.key: pair.read() for pair in bindings(model, "zoo", "resnet20")}
        tensors["predictions/bias"] = tensors["predictions/bias"].astype(np.int32)
        safetensors.save_file(tensors, path, {"keras_resnets": '{"naming": "zoo"}'})
    else:
        save_model(keras_resnets.ResNet32(variant="keras"), path)
    return path


@pytest.mark.parametrize("kind", [".safetensors", ".h5", ".weights.h5", ".keras"])
def test_after_a_failed_load_the_model_is_what_it_was(kind, tmp_path, values, randomize):
    model = randomize(keras_resnets.ResNet20(variant="keras"), seed=3)
    describe(model, RECORD, tuple("0123456789"))
    before = values(model)
    with pytest.raises(WeightsError):
        load_source(model, Source(damaged(kind, tmp_path), "keras", None))
    after = values(model)
    assert all(np.array_equal(after[path], before[path]) for path in before)
    assert model.preprocessing == RECORD
    assert model.labels == tuple("0123456789")


# From the hub to the network.


@pytest.fixture(scope="module")
def timms(randomize, tmp_path_factory):
    """A ResNet18 of 1000 classes, and its file as timm's."""
    pytest.importorskip("huggingface_hub")
    model = randomize(small(classes=1000))
    path = save_weights(model, tmp_path_factory.mktemp("timm") / "w.safetensors", "timm")
    return model, safetensors.save(safetensors.load_file(path), {"format": "pt"})


@pytest.fixture
def offered(hub, timms, monkeypatch):
    """The hub, which has that file of resnet18.a1_in1k."""
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", 5)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 20)
    offer(hub, monkeypatch, timms[1])
    return hub


def offer(hub, monkeypatch, data, **changes):
    """Put bytes in the place of resnet18.a1_in1k's, as a ledger would that had been written for them."""
    sha256 = f"sha256:{hashlib.sha256(data).hexdigest()}"
    records = [dataclasses.replace(find_weights("resnet18", tag), revision=None) for tag in ("tv_in1k", "a1_in1k")]
    ledger = (records[0], dataclasses.replace(records[1], **{"hash": sha256, **changes}))
    monkeypatch.setattr("keras_resnets.weights.ledger.LEDGER", ledger)
    hub.files[f"{ledger[1].repository}/{ledger[1].file}"] = data


@pytest.mark.parametrize("tag", ["imagenet", "resnet18.a1_in1k"])
def test_a_tag_brings_verified_weights_and_what_belongs_to_them(tag, offered, timms, images):
    arguments = {"weights": tag, "classes": 1000}
    model = loaded_without_warning(**arguments)
    assert np.array_equal(predictions(model, images), predictions(timms[0], images))
    assert model.architecture.options["variant"] == "v1.5"
    assert model.labels == imagenet()
    record = find_weights("resnet18", "a1_in1k").preprocessing
    assert model.preprocessing == dataclasses.replace(record, size=(32, 32), resize=round(record.resize * 32 / 224))
    assert model.decode_predictions(predictions(model, images), top=1)[0][0].label in imagenet()

    asked = len(offered.requests)
    offered.mode = 503
    again = loaded_without_warning(**arguments)
    assert np.array_equal(predictions(again, images), predictions(model, images))
    assert len(offered.requests) == asked


def test_at_its_own_size_the_preprocessing_is_the_ledgers(offered):
    model = keras_resnets.ResNet18(weights="a1_in1k")
    assert model.preprocessing == find_weights("resnet18", "a1_in1k").preprocessing


def test_a_tag_without_the_top(offered, timms, images):
    model = loaded_without_warning(weights="a1_in1k", include_top=False, pooling="avg")
    features = keras.Model(timms[0].input, timms[0].get_layer("avg_pool").output)
    assert np.allclose(predictions(model, images), predictions(features, images), rtol=1e-5, atol=1e-5)
    assert model.labels is None
    assert model.preprocessing.size == (32, 32)


def test_a_tag_with_other_classes(offered):
    model = told("predictions is [1000, 512] in the file, [7, 512] here", weights="a1_in1k")
    assert model.labels is None


def test_another_variant_than_the_ledgers_is_refused_before_the_download(offered):
    refused("a1_in1k", "resnet18.a1_in1k are weights of the variant 'v1.5'", name="resnet18", variant="keras")
    assert offered.requests == []


@pytest.mark.parametrize("mode", ["truncated", "corrupted", 404, 429, 500])
def test_a_host_that_fails_leaves_nothing(mode, offered, tmp_path):
    offered.mode = mode
    refused("a1_in1k", "resnet18.a1_in1k", name="resnet18", input_shape=INPUTS)
    assert cached(find_weights("resnet18", "a1_in1k")) is None
    assert [file for file in tmp_path.rglob("*.safetensors") if file.exists()] == []


def test_a_connection_that_breaks_once_is_taken_up_again(offered, timms, images):
    offered.mode = "gone once"
    model = loaded_without_warning(weights="a1_in1k", classes=1000)
    assert np.array_equal(predictions(model, images), predictions(timms[0], images))


def test_a_verified_file_that_is_no_network_of_ours_is_refused(hub, monkeypatch):
    offer(hub, monkeypatch, b"verified, and no safetensors file")
    refused("a1_in1k", "not a readable safetensors file", name="resnet18", input_shape=INPUTS)
    model = keras_resnets.ResNet20()
    offer(hub, monkeypatch, safetensors.save(foreign(model)))
    message = "resnet18.a1_in1k are not weights of this resnet18: conv1.weight is [16, 3, 3, 3]"
    refused("a1_in1k", message, name="resnet18", input_shape=INPUTS)


def test_the_storage_of_keras_applications(hub, randomize, images, tmp_path, monkeypatch):
    theirs = randomize(keras.applications.DenseNet121(weights=None, input_shape=INPUTS))
    write_legacy(tmp_path / "w.h5", theirs, published)
    data = (tmp_path / "w.h5").read_bytes()
    record = find_weights("densenet121", "keras_in1k")
    md5 = f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}"
    monkeypatch.setattr("keras_resnets.weights.ledger.LEDGER", (dataclasses.replace(record, hash=md5),))
    monkeypatch.setattr("keras_resnets.weights.fetch._TIMEOUT", 5)
    hub.files[f"keras/{record.repository}/{record.file}"] = data
    model = loaded_without_warning("densenet121", weights="imagenet", classes=1000)
    assert model.architecture.options["variant"] == "keras"
    assert np.allclose(predictions(model, images), predictions(theirs, images), atol=1e-6)
    assert model.preprocessing.size == (32, 32)
    assert model.labels == imagenet()


def test_a_loaded_model_saved_whole_is_loaded_with_all_that_belongs_to_it(files, tmp_path, images):
    model = small(weights=files / "timm.safetensors")
    save_model(model, tmp_path / "m.keras")
    again = load_model(tmp_path / "m.keras")
    assert np.array_equal(predictions(again, images), predictions(model, images))
    assert (again.preprocessing, again.labels, again.architecture) == (RECORD, NAMES, model.architecture)
