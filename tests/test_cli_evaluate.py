"""`keras-resnets evaluate` as a user types it: one network as a run, a file, a SavedModel and a bundle."""

import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from keras_resnets import ResNet20, save_model, save_weights
from keras_resnets.cli import main
from keras_resnets.data import load_dataset
from keras_resnets.export import to_bundle, to_saved_model
from keras_resnets.models.files import describe


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").hold_out(200)


def run_folder(folder, model):
    save_model(model, folder / "model.keras")
    (folder / "recipe.json").write_text(json.dumps({"model": model.name, "data": "digits", "validation": 200}))


@pytest.fixture(scope="module")
def work(tmp_path_factory, digits):
    """A folder with a linear classifier, trained on the digits, in every form; and an untrained ResNet-20."""
    folder = tmp_path_factory.mktemp("evaluate")
    features = digits.preprocessing.normalize(digits.train.images).reshape(-1, 64)
    fit = LogisticRegression(max_iter=300).fit(features, digits.train.labels)
    images = keras.Input((8, 8, 1))
    dense = keras.layers.Dense(10, "softmax")
    model = keras.Model(images, dense(keras.layers.Flatten()(images)), name="linear")
    dense.set_weights([fit.coef_.T, fit.intercept_])
    to_saved_model(model, folder / "plain_saved_model")
    describe(model, digits.preprocessing, digits.class_names)
    run_folder(folder / "run", model)
    to_bundle(model, folder / "bundle")
    network = ResNet20(input_shape=(8, 8, 1))
    describe(network, digits.preprocessing, digits.class_names)
    run_folder(folder / "resnet", network)
    save_weights(network, folder / "resnet.safetensors")
    scores = fit.predict_proba(digits.preprocessing.normalize(digits.test.images).reshape(-1, 64))
    return folder, scores


def told(capsys, *arguments):
    """The JSON object that a command prints, and what it says on standard error."""
    status = main(["evaluate", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out), err


def test_every_form_of_a_network_has_the_same_figures(work, digits, capsys):
    folder, scores = work
    truths = digits.test.labels
    loss = -np.log(scores[np.arange(len(truths)), truths]).mean()
    for form in (
        ["run"],
        ["run", "--data", "digits", "--batch", "100"],
        ["run/model.keras"],
        ["bundle", "--data", "digits"],
        ["bundle/model.onnx", "--data", "digits"],
        ["bundle/saved_model", "--data", "digits"],
        ["plain_saved_model", "--data", "digits"],
    ):
        found, note = told(capsys, folder / form[0], *form[1:])
        assert (found["data"], found["split"], found["images"]) == ("digits", "test", 360)
        assert found["top1"] == (scores.argmax(1) == truths).mean() > 0.9
        assert found["cross_entropy"] == pytest.approx(loss, rel=1e-4)
        assert [row["label"] for row in found["classes"]] == list("0123456789")
        assert ("does not say how images become its input" in note) == form[0].startswith("plain")


def test_the_validation_split_is_the_one_that_the_run_held_out(work, digits, capsys):
    folder, _ = work
    found, _ = told(capsys, folder / "run", "--split", "validation")
    held_out = np.bincount(digits.validation.labels, minlength=10)
    assert [row["images"] for row in found["classes"]] == held_out.tolist()
    trained, _ = told(capsys, folder / "run", "--split", "train")
    assert trained["images"] == 1437 - 200
    assert trained["top1"] > found["top1"]  # the classifier was fitted on these
    assert told(capsys, folder / "bundle", "--data", "digits", "--split", "train")[0]["images"] == 1437


def test_scales_and_flip(work, capsys):
    folder, _ = work
    plain, _ = told(capsys, folder / "resnet", "--limit", 90)
    found, _ = told(capsys, folder / "resnet", "--limit", 90, "--scales", "8,12", "--flip")
    assert found["protocol"] == "whole images, shorter side 8, 12 pixels and mirrored, averaged"
    assert found["images"] == plain["images"] == 90
    assert found["cross_entropy"] != pytest.approx(plain["cross_entropy"], rel=1e-3)
    same, _ = told(capsys, folder / "resnet", "--limit", 90, "--scales", "8")
    assert same["cross_entropy"] == pytest.approx(plain["cross_entropy"], rel=1e-4)


def test_a_model_by_name_with_weights(work, capsys):
    folder, _ = work
    of_the_run, _ = told(capsys, folder / "resnet", "--limit", 90)
    for weights in ("resnet.safetensors", "resnet/model.keras"):
        found, _ = told(capsys, "ResNet20", "--weights", folder / weights, "--data", "digits", "--limit", 90)
        assert found["cross_entropy"] == pytest.approx(of_the_run["cross_entropy"], rel=1e-5)


def test_image_files_have_the_figures_of_the_same_images_in_memory(work, digits, tmp_path, capsys):
    folder, _ = work
    rows = np.arange(0, 360, 4)
    for part in ("train", "val"):
        for row in rows:
            place = tmp_path / part / str(digits.test.labels[row])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.test.images[row, :, :, 0]).save(place / f"{row}.png")
    found, _ = told(capsys, folder / "bundle", "--data", f"folder:{tmp_path}", "--batch", 7)
    same, _ = told(capsys, folder / "bundle", "--data", "digits", "--limit", len(rows))
    assert found["confusion"] == same["confusion"]
    assert found["cross_entropy"] == pytest.approx(same["cross_entropy"], rel=1e-6)
    broken = tmp_path / "val" / str(digits.test.labels[40]) / "40.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert main(["evaluate", str(folder / "bundle"), "--data", f"folder:{tmp_path}"]) == 1
    assert f"{broken.relative_to(tmp_path)}: the image cannot be decoded" in capsys.readouterr().err


def test_tables_and_report(work, tmp_path, capsys):
    folder, _ = work
    out = tmp_path / "report"
    assert main(["evaluate", str(folder / "run"), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "linear on digits, test images: whole images at 8×8" in said.out
    for heading in ("top-1", "95% interval", "top-5", "cross-entropy", "lowest recall", "confusions", "images/s"):
        assert heading in said.out
    assert "wrote per_class.csv, confusion.png, errors.png, evaluation.json into" in said.err
    stored = json.loads((out / "evaluation.json").read_text())
    assert (stored["model"], stored["data"], stored["split"]) == (str(folder / "run"), "digits", "test")
    assert f"{stored['top1']:.2%}" in said.out
    assert main(["evaluate", str(folder / "run"), "--out", str(out)]) == 1
    assert "already holds an evaluation" in capsys.readouterr().err
    assert main(["evaluate", str(folder / "run"), "--out", str(out), "--overwrite", "--limit", "20"]) == 0
    assert json.loads((out / "evaluation.json").read_text())["images"] == 20


def test_neither_help_nor_a_bundle_loads_tensorflow(work):
    folder, _ = work
    for arguments, absent in (
        (["evaluate", "--help"], ("keras", "tensorflow", "numpy", "rich", "onnxruntime")),
        (["evaluate", str(folder / "bundle"), "--data", "digits"], ("keras", "tensorflow")),
    ):
        code = (
            "import sys; from keras_resnets.cli import main\n"
            f"try: assert main({arguments!r}) == 0\n"
            "except SystemExit as stop: assert not stop.code\n"
            f"print([m for m in {absent!r} if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"
    assert "95% interval" in done.stdout


def test_classes_in_another_order_are_refused_and_other_names_told(digits, tmp_path, capsys):
    network = ResNet20(input_shape=(8, 8, 1))
    describe(network, digits.preprocessing, digits.class_names[::-1])
    save_model(network, tmp_path / "reversed.keras")
    assert main(["evaluate", str(tmp_path / "reversed.keras"), "--data", "digits"]) == 1
    assert "has the classes of digits in another order, from '9'" in capsys.readouterr().err
    describe(network, digits.preprocessing, tuple("abcdefghij"))
    save_model(network, tmp_path / "letters.keras")
    found, note = told(capsys, tmp_path / "letters.keras", "--data", "digits", "--limit", 20)
    assert "digits calls its classes 0, …, the network a, …" in note
    assert found["classes"][0]["label"] == "a"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet21", "--data", "digits"], "unknown model 'resnet21': did you mean resnet"),
        (["resnet20", "--data", "digits"], "resnet20 alone has random weights: give --weights"),
        (["{work}/run", "--weights", "imagenet"], "--weights goes with a model by name"),
        (["{work}/nowhere", "--data", "digits"], "nowhere does not exist"),
        (["{work}/nowhere.keras", "--data", "digits"], "nowhere.keras does not exist"),
        (["{work}", "--data", "digits"], "is no run, bundle or SavedModel"),
        (["{work}/run/recipe.json", "--data", "digits"], "recipe.json is no .keras file"),
        (["{work}/bundle"], "does not say what it was trained on: give --data"),
        (["{work}/run", "--data", "digit"], "unknown data set 'digit'"),
        (["{work}/run", "--split", "dev"], "--split must be test, validation or train, not 'dev'"),
        (["{work}/bundle", "--data", "digits", "--split", "validation"], "digits has no validation images"),
        (["{work}/bundle", "--data", "digits", "--scales", "8,12"], "8×8 pixels alone"),
        (["{work}/bundle", "--data", "digits", "--provider", "abacus"], "unknown provider 'abacus'"),
        (["{work}/run", "--scales", "8,12"], "does not say which network of the registry it is"),
        (["{work}/run", "--scales", "8,big"], "--scales are lengths in pixels"),
        (["{work}/run", "--scales", ""], "--scales are lengths in pixels"),
        (["{work}/run", "--crops", "5"], "crops must be 1 (the centre) or 10"),
        (["{work}/run", "--crops", "10"], "ten crops need images larger than the input"),
        (["{work}/run", "--crops", "10", "--scales", "8"], "two protocols"),
        (["{work}/run", "--batch", "0"], "batch_size must be at least 1"),
        (["{work}/run", "--limit", "-3"], "limit must be at least 1"),
        (["{work}/run", "--out", "{work}/resnet"], "is the folder of a training run"),
        (["{work}/run", "--out", "{work}/bundle", "--overwrite"], "is the folder of a bundle"),
        (["{work}/run", "--out", "{work}/run/model.keras"], "is a file, not a folder"),
        (["{work}/bundle/golden.npz", "--data", "digits"], "golden.npz is no .keras file"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(work, arguments, message, capsys):
    folder, _ = work
    assert main(["evaluate", *(argument.format(work=folder) for argument in arguments)]) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert not said.out


def test_damaged_files_say_what_is_wrong(work, tmp_path, capsys):
    folder, _ = work
    run, bundle = shutil.copytree(folder / "run", tmp_path / "run"), shutil.copytree(folder / "bundle", tmp_path / "b")
    (run / "recipe.json").write_text('{"data": ')
    (bundle / "stray.onnx").write_bytes(b"")
    (bundle / "saved_model" / "saved_model.pb").write_bytes(b"no protocol buffer")
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:-1])
    for arguments, message in (
        ([run], "recipe.json is corrupt"),
        ([bundle / "stray.onnx", "--data", "digits"], "stray.onnx is no file of the bundle"),
        ([bundle / "saved_model", "--data", "digits"], "saved_model.pb is corrupt"),
        ([bundle, "--data", "digits"], "model.onnx is corrupt"),
        ([folder / "bundle", "--data", "fashion_mnist_of_two"], "unknown data set"),
    ):
        assert main(["evaluate", *map(str, arguments)]) == 1
        assert message in capsys.readouterr().err


def test_data_of_other_classes_are_refused(digits, tmp_path, capsys):
    network = ResNet20(input_shape=(8, 8, 1), classes=7)
    describe(network, digits.preprocessing, None)
    save_model(network, tmp_path / "seven.keras")
    assert main(["evaluate", str(tmp_path / "seven.keras"), "--data", "digits"]) == 1
    assert "resnet20 has 7 classes, and digits has 10" in capsys.readouterr().err
