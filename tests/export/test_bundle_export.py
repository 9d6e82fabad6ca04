"""to_bundle: nothing is written that is not proven."""

import gc
import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import onnx
import pytest
from PIL import Image

import keras_resnets
from keras_resnets import Preprocessing
from keras_resnets.bundle import Bundle
from keras_resnets.export import ExportError, merge, to_bundle, to_onnx, to_saved_model
from keras_resnets.export.locate import errors_by_layer, part_ways
from keras_resnets.export.verify import Form, ask, compare
from keras_resnets.models.files import describe

GREY = Preprocessing((8, 8), 1, scale=1 / 255, mean=(0.5,), std=(0.25,))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(random.integers(0, 256, (11, 9), np.uint8)).save(folder / f"{i}.png")
    return folder


def test_a_bundle_says_what_was_compared(resnet20, photos, tmp_path):
    steps = []
    bundle = to_bundle(
        resnet20, tmp_path / "b", preprocessing=GREY, labels=list("abc"), images=photos, license="MIT",
        progress=steps.append,
    )  # fmt: skip
    rows = {(r["runtime"], r["output"], r["inputs"], r["batch"]) for r in bundle.manifest.verification}
    assert rows == {
        (runtime, output, inputs, batch)
        for runtime in ("onnxruntime", "saved_model", "saved_model pixels", "saved_model encoded")
        for output in ("probabilities", "logits")
        for inputs in ("noise", "images")
        for batch in (1, 3, 17)
    }
    assert all(row["max_error"] <= 1e-4 for row in bundle.manifest.verification)
    assert all(row["allowed"] == 1e-4 for row in bundle.manifest.verification if row["output"] == "logits")
    assert len(steps) == 4
    opened = Bundle.open(tmp_path / "b")
    opened.check()
    assert opened.manifest.to_json() == bundle.manifest.to_json()
    assert json.loads((tmp_path / "b" / "bundle.json").read_text())["format_version"] == 1
    sealed = {file.relative_to(tmp_path / "b").as_posix() for file in (tmp_path / "b").rglob("*") if file.is_file()}
    assert sealed == {*opened.manifest.files, "bundle.json"}
    proto = onnx.load(tmp_path / "b" / "model.onnx")
    told = {item.key: item.value for item in proto.metadata_props}
    assert (told["model"], told["license"], json.loads(told["labels"])) == (resnet20.name, "MIT", list("abc"))
    assert Preprocessing.from_dict(json.loads(told["preprocessing"])) == GREY
    assert (proto.producer_name, proto.producer_version) == ("keras_resnets", keras_resnets.__version__)


def test_the_report_says_what_the_manifest_says(resnet20, photos, tmp_path):
    bundle = to_bundle(resnet20, tmp_path / "b", preprocessing=GREY, labels=list("abc"), images=photos)
    text = (bundle.path / "report.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(("| onnx", "| saved"))]
    told = [(row[0], *row[2:5], int(row[5]), pytest.approx(float(row[6]), rel=0.05)) for row in rows]
    names = ("runtime", "precision", "output", "inputs", "batch", "max_error")
    assert [tuple(row[name] for name in names) for row in bundle.manifest.verification] == told
    with Image.open(bundle.path / "errors.png") as picture:
        red = np.asarray(picture.convert("RGB")).astype(int) @ [1, -1, 0] > 100
    assert red.any()
    assert "![error by layer](errors.png)" in text
    assert {"report.md", "errors.png"} < set(bundle.manifest.files)


def test_a_model_carries_its_own_description(settle, tmp_path):
    model = settle(keras_resnets.ResNet20(input_shape=(8, 8, 1), classes=2))
    describe(model, GREY, ("no", "yes"))
    bundle = to_bundle(model, tmp_path / "b", saved_model=False)
    assert bundle.manifest.preprocessing == GREY
    assert bundle.manifest.labels == ("no", "yes")
    assert bundle.manifest.saved_model is None


def test_drift_is_an_error_that_leaves_nothing(resnet20, tmp_path, monkeypatch):
    """The planted fault: a batch norm folded with another epsilon."""
    affine = merge._affine

    def wrong(node, linear, values):
        for item in node.attribute:
            if item.name == "epsilon":
                item.f = 0.1
        return affine(node, linear, values)

    monkeypatch.setattr(merge, "_affine", wrong)
    with pytest.raises(ExportError, match="onnxruntime cpu float32 drifts from Keras"):
        to_bundle(resnet20, tmp_path / "b", preprocessing=GREY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["A", "B"])
def test_the_first_layer_that_drifts_is_named(option, settle, tmp_path, monkeypatch):
    model, affine = settle(keras_resnets.ResNet20(input_shape=(8, 8, 1), classes=3, shortcut=option)), merge._affine

    def wrong(node, linear, values):
        found = affine(node, linear, values)
        return (found[0] * 1.01, found[1]) if found and "conv3_block2_1" in node.name else found

    monkeypatch.setattr(merge, "_affine", wrong)
    with pytest.raises(ExportError, match=r"part ways in layer 'conv3_block2_1_relu' \('conv3_block1_out' before it"):
        to_bundle(model, tmp_path / "b", preprocessing=GREY)
    monkeypatch.setattr(merge, "_affine", affine)
    errors = errors_by_layer(model, to_onnx(model, tmp_path / "m.onnx"), np.ones((2, 8, 8, 1), np.float32))
    assert {"conv1_relu", "conv2_block1_out", "conv4_block3_out", "avg_pool", "predictions"} <= set(errors)
    assert max(errors.values()) < 1e-5
    assert part_ways(errors, 1e-5) == ""


def with_head(head):
    base = keras_resnets.ResNet20(input_shape=(8, 8, 1), include_top=False, pooling="avg")
    if head in ("softmax", "sigmoid"):
        return keras.Model(base.input, keras.layers.Dense(3, activation=head)(base.output))
    logits = keras.layers.Dense(3)(base.output)
    return keras.Model(base.input, keras.layers.Softmax()(logits) if head == "layer" else head(logits))


@pytest.mark.parametrize("head", ["softmax", "sigmoid", "layer", keras.layers.Activation("softmax")])
def test_drift_behind_a_saturated_head_is_found(head, settle, tmp_path, monkeypatch):
    """Probabilities of exactly 0 and 1 hide a fault that the logits show."""
    model = settle(with_head(head))
    dense = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dense))
    dense.kernel.assign(dense.kernel * 1e4)
    affine = merge._affine

    def wrong(node, linear, values):
        found = affine(node, linear, values)
        return found and (found[0], found[1] * 1.001)

    to_bundle(model, tmp_path / "right", preprocessing=GREY)
    monkeypatch.setattr(merge, "_affine", wrong)
    with pytest.raises(ExportError, match="in logits"):
        to_bundle(model, tmp_path / "wrong", preprocessing=GREY)


def test_probabilities_alone_are_held_to_the_tolerance():
    """Without logits to vouch for them, probabilities get no allowance."""
    logits = np.array([[9.0, 0.0]])
    right, wrong = np.array([[0.9, 0.1]]), np.array([[0.9005, 0.0995]])

    def reference(tensor):
        return {"probabilities": right.repeat(len(tensor), 0), "logits": logits.repeat(len(tensor), 0)}

    def form(tensor):
        return {"probabilities": wrong.repeat(len(tensor), 0)}

    cases = ask(reference, {"noise": np.ones((1, 2, 2, 1), np.float32)})
    with pytest.raises(ExportError, match=r"drifts from Keras by 5\.56e-04"):
        compare(reference, {Form("form"): form}, cases, 1e-4)


def test_a_network_that_amplifies_rounding_is_told_from_a_wrong_export(tmp_path):
    """A plain network of 152 layers whose batch norms normalise noise: chaotic, as long as it is not trained."""
    model = keras_resnets.PlainNet152(input_shape=(32, 32, 3), classes=5)
    noise = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    keras_resnets.update_batch_norm(model, [noise])
    with pytest.raises(ExportError, match="amplifies rounding"):
        to_bundle(model, tmp_path / "b", saved_model=False)


def test_a_failed_replacement_keeps_the_old_bundle(resnet20, tmp_path, monkeypatch):
    old = to_bundle(resnet20, tmp_path / "b", preprocessing=GREY)
    with pytest.raises(ExportError, match="already exists"):
        to_bundle(resnet20, tmp_path / "b", preprocessing=GREY)
    with pytest.raises(ExportError, match="drifts"):
        to_bundle(resnet20, tmp_path / "b", preprocessing=GREY, overwrite=True, tolerance=0.0)
    old.check()
    to_bundle(resnet20, tmp_path / "b", preprocessing=GREY, labels=list("xyz"), overwrite=True)
    assert Bundle.open(tmp_path / "b").manifest.labels == ("x", "y", "z")
    assert [item.name for item in tmp_path.iterdir()] == ["b"]


def test_overwriting_replaces_bundles_alone(resnet20, photos, tmp_path):
    with pytest.raises(ExportError, match="not replaced"):
        to_bundle(resnet20, photos, preprocessing=GREY, overwrite=True)
    with pytest.raises(ExportError, match="not replaced"):
        to_saved_model(resnet20, photos, overwrite=True)
    assert len(list(photos.iterdir())) == 3


def test_a_network_whose_own_outputs_are_not_finite(tmp_path):
    model = keras_resnets.ResNet20(input_shape=(8, 8, 1))
    model.get_layer("conv1_bn").gamma.assign(np.full(16, np.nan))
    with pytest.raises(ExportError, match="damp_residuals"):
        to_bundle(model, tmp_path / "new" / "b", preprocessing=GREY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["one"]}, "1 labels for the 3 outputs"),
        ({"preprocessing": Preprocessing.preset("torch", 224)}, "takes"),
        ({"images": "no_such_folder"}, "does not exist"),
    ],
)
def test_descriptions_that_do_not_fit(resnet20, tmp_path, arguments, message):
    with pytest.raises(ExportError, match=message):
        to_bundle(resnet20, tmp_path / "b", **{"preprocessing": GREY, **arguments})
    assert not (tmp_path / "b").exists()


def test_images_that_cannot_be_used(resnet20, photos, tmp_path):
    with pytest.raises(ExportError, match="needs preprocessing="):
        to_bundle(resnet20, tmp_path / "b", images=photos)
    (photos / "0.png").write_text("not an image")
    with pytest.raises(ExportError, match=r"0\.png"):
        to_bundle(resnet20, tmp_path / "b", preprocessing=GREY, images=photos)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match="no images to verify with"):
        to_bundle(resnet20, tmp_path / "b", preprocessing=GREY, images=tmp_path / "empty")


@pytest.mark.skipif(os.name != "posix", reason="devices are files on POSIX only")
def test_an_unwritable_output(resnet20):
    with pytest.raises(ExportError, match="cannot write"):
        to_bundle(resnet20, "/dev/null/b", preprocessing=GREY)


def test_a_model_that_is_not_of_the_zoo(tmp_path):
    model = keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), classes=7)
    bundle = to_bundle(model, tmp_path / "b", preprocessing=Preprocessing.preset("tf", 32))
    assert bundle.manifest.output_kind == "probabilities"


def test_a_saved_model_runs_where_only_tensorflow_is(resnet20, tmp_path):
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    to_saved_model(resnet20, tmp_path / "s")
    np.save(tmp_path / "images.npy", images)
    code = f"""
import sys
sys.modules["keras"] = sys.modules["keras_resnets"] = None
import numpy as np, tensorflow as tf
model = tf.saved_model.load({str(tmp_path / "s")!r})
out = model.signatures["serving_default"](tf.constant(np.load({str(tmp_path / "images.npy")!r})))
np.save({str(tmp_path / "out.npy")!r}, out["probabilities"])
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert np.allclose(np.load(tmp_path / "out.npy"), resnet20(images, training=False), atol=1e-6)
    with pytest.raises(ExportError, match="already exists"):
        to_saved_model(resnet20, tmp_path / "s")


@pytest.mark.slow
@pytest.mark.parametrize("name", keras_resnets.list_models())
def test_the_whole_registry_exports_with_parity(name, tmp_path):
    # Less than 224 pixels, since what is compared does not depend on them; odd sides come up on the way down.
    side = 96 if keras_resnets.model_info(name).classes == 1000 else 32
    model = keras_resnets.create_model(name, input_shape=(side, side, 3))
    if any(isinstance(layer, keras.layers.Add) for layer in model.layers):
        # Statistics of data make folding matter. A network without damped residual branches becomes chaotic
        # with them when it is deep: the last bit of its input then moves its output by a percent.
        keras_resnets.damp_residuals(model)
        if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
            noise = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype(np.float32)
            keras_resnets.update_batch_norm(model, [noise])
    size = model.input_shape[1:3]
    bundle = to_bundle(model, tmp_path / "b", preprocessing=Preprocessing.preset("torch", size))
    bundle.check()
    shutil.rmtree(tmp_path / "b")  # all of them are 15 GB
    del model
    gc.collect()
