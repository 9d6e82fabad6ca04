"""The bundle and the pictures that come with the package."""

import json
import subprocess
import sys

import numpy as np
import pytest

from keras_resnets.bundle import Bundle
from keras_resnets.cli import main
from keras_resnets.data import load_dataset
from keras_resnets.sample import BUNDLE, TOP1, picture_name, write_sample
from keras_resnets.serving import Engine
from keras_resnets.weights import find_weights


def test_pictures_are_classified_without_a_training_framework(tmp_path):
    code = """
import sys
for name in ("tensorflow", "keras", "sklearn", "matplotlib", "onnx"):
    sys.modules[name] = None
from keras_resnets.cli import main
sys.exit(main(["sample", "here"]) or main(["verify", "here/clothes"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "here" / "images").iterdir())
    for precision in TOP1:
        engine = Engine(tmp_path / "here" / "clothes", precision=precision)
        best = [picture_name(rows[0].label) for rows in engine.predict(files, top=1)]
        right = sum(name == file.stem for name, file in zip(best, files, strict=True))
        assert len(files) == 10 and right >= 9, best


def test_what_is_there_is_not_touched(tmp_path, capsys):
    write_sample(tmp_path / "sample")
    (tmp_path / "sample" / "mine.txt").write_text("mine")
    assert main(["sample", str(tmp_path / "sample")]) == 1
    assert "exists: choose another folder" in capsys.readouterr().err
    assert (tmp_path / "sample" / "mine.txt").read_text() == "mine"
    with pytest.raises(FileExistsError):
        write_sample(tmp_path / "sample")


def test_the_bundle_is_sealed_and_of_the_package_s_weights():
    import keras_resnets

    bundle = Bundle.open(BUNDLE)
    bundle.check()
    record = find_weights(bundle.manifest.model, "fashion_mnist")
    assert TOP1["float32"] == record.results[0].top1 and set(TOP1) == {
        row.precision for row in bundle.manifest.variants
    }
    assert bundle.manifest.preprocessing == record.preprocessing
    model = keras_resnets.create_model(bundle.manifest.model, weights="fashion_mnist")
    images = load_dataset("fashion_mnist_sample").test.images[:50]
    expected = model.predict(model.preprocess_input(images), verbose=0)
    np.testing.assert_allclose(Engine(bundle).predict_scores(images), expected, atol=1e-5)


@pytest.mark.fashion_mnist
def test_the_record_of_int8_is_what_the_test_images_give(capsys):
    file = BUNDLE / Bundle.open(BUNDLE).variant("int8").file
    assert main(["evaluate", str(file), "--data", "fashion_mnist", "--json"]) == 0
    assert round(100 * json.loads(capsys.readouterr().out)["top1"], 2) == TOP1["int8"]
