"""model_from_weights: the network of a file, as it was."""

import keras
import numpy as np
import pytest
import safetensors.numpy

import keras_resnets
from keras_resnets import WeightsError, WeightsWarning, save_model, save_weights
from keras_resnets.models.recognize import model_from_weights


def same(a, b):
    values = {variable.path: variable for variable in b.weights}
    return all(np.array_equal(variable, values[variable.path]) for variable in a.weights)


def bare(path):
    """The file without what this package says in it."""
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)
    return path


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet20", {"input_shape": (28, 28, 1), "classes": 3, "classifier_activation": None, "shortcut": "B"}),
        ("resnet20", {"include_top": False, "pooling": "avg"}),
        ("resnet20", {"include_top": False, "variant": "keras"}),
        ("vit_ti16", {"input_shape": (32, 64, 3), "classes": 3, "drop_path_rate": 0.1}),
        ("densenetbc100_12", {"input_shape": (8, 8, 3), "dropout_rate": 0.2}),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "keras"])
@pytest.mark.parametrize("named", [True, False])
def test_a_file_of_this_package_gives_the_network_that_it_was(name, arguments, suffix, named, tmp_path):
    model = keras_resnets.create_model(name, **arguments)
    path = tmp_path / f"w.{suffix}"
    (save_model if suffix == "keras" else save_weights)(model, path)
    found = model_from_weights(path, model=name if named else None)
    assert found.architecture == model.architecture
    assert (found.input_shape, found.output_shape) == (model.input_shape, model.output_shape)
    assert same(model, found)
    images = np.ones((1, *model.input_shape[1:]), np.float32)
    assert np.array_equal(np.asarray(model(images)), np.asarray(found(images)))


@pytest.mark.parametrize("dialect", ["timm", "torchvision"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"input_shape": (224, 224, 1), "classes": 3}),
        ("resnet18", {"include_top": False}),
        ("vit_ti16", {"input_shape": (48, 48, 3), "classes": 3}),
        ("resnet18v2", {"classes": 3}),
        ("densenetbc100_12", {"classes": 3}),
    ],
)
def test_a_foreign_file_tells_classes_channels_and_size(name, arguments, dialect, tmp_path):
    model = keras_resnets.create_model(name, **arguments)
    path = bare(save_weights(model, tmp_path / "w.safetensors", dialect))
    found = model_from_weights(path, model=name)
    assert (found.input_shape, found.output_shape) == (model.input_shape, model.output_shape)
    assert same(model, found)


@pytest.mark.parametrize("classifier", ["predictions", "probs", "fc1000"])
def test_a_classifier_is_found_whatever_keras_applications_called_it(classifier, tmp_path):
    model = keras_resnets.DenseNetBC100_12(input_shape=(8, 8, 3), classes=7, variant="keras")
    renamed = keras.models.clone_model(
        model,
        clone_function=lambda layer: layer.__class__.from_config(
            {**layer.get_config(), "name": classifier if layer.name == "predictions" else layer.name}
        ),
    )
    renamed.set_weights(model.get_weights())
    renamed.save(tmp_path / "w.h5")
    found = model_from_weights(tmp_path / "w.h5", model="densenetbc100_12")
    assert found.output_shape == (None, 7)
    assert same(model, found)


def test_what_is_asked_for_wins(tmp_path):
    path = save_weights(keras_resnets.ResNet20(classes=3), tmp_path / "w.safetensors")
    assert model_from_weights(path, input_shape=(8, 8, 3)).input_shape == (None, 8, 8, 3)
    with pytest.warns(WeightsWarning, match="predictions"):
        assert model_from_weights(path, classes=5).output_shape == (None, 5)


def test_a_file_that_says_nothing_must_be_named(tmp_path):
    path = bare(save_weights(keras_resnets.ResNet20(), tmp_path / "w.safetensors"))
    with pytest.raises(WeightsError, match="does not say which network"):
        model_from_weights(path)
    with pytest.raises(ValueError, match="did you mean"):
        model_from_weights(path, model="resnet2O")


def test_a_changed_network_has_no_weights_file(tmp_path):
    model = keras_resnets.ResNet20(input_shape=(8, 8, 3))
    model.get_layer("predictions").enable_lora(2)
    with pytest.raises(WeightsError, match="merge LoRA"):
        save_weights(model, tmp_path / "w.safetensors", "timm")
    assert list(tmp_path.iterdir()) == []
