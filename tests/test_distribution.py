"""The built wheel, installed as a user would: outside the checkout, and with the serve extra alone."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from keras_resnets import Preprocessing, ResNet20
from keras_resnets.export import to_bundle

ROOT = Path(__file__).parent.parent


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT), cwd=out)
    return next(out.glob("*.whl"))


def test_a_serving_machine_needs_the_serve_extra_alone(wheel, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    model = ResNet20(input_shape=(8, 8, 1), classes=3)
    preprocessing = Preprocessing((8, 8), 1, mean=(9,), std=(50,))
    to_bundle(model, tmp_path / "b", preprocessing=preprocessing, saved_model=False)
    np.save(tmp_path / "images.npy", images)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), f"{wheel}[serve]", cwd=tmp_path)
    code = """
import importlib.util, json, numpy as np
from keras_resnets.serving import Engine
scores = Engine("b").predict_scores(np.load("images.npy"))
heavy = [name for name in ("keras", "tensorflow", "tf2onnx", "onnx", "sklearn") if importlib.util.find_spec(name)]
print(json.dumps([heavy, scores.tolist()]))
"""
    heavy, scores = json.loads(run(python, "-c", code, cwd=tmp_path))
    assert heavy == []
    expected = np.asarray(model(preprocessing(images), training=False))
    assert np.allclose(scores, expected, atol=1e-5)
    command = str(tmp_path / "env" / "bin" / "keras-resnets")
    assert "ONNX Runtime provider cpu: active" in run(command, "doctor", cwd=tmp_path)
    done = subprocess.run([command, "train"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert 'pip install "keras-resnets[tensorflow]"' in done.stderr


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel unpacked as pip does, away from the checkout."""
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), str(wheel), cwd=folder)
    return folder


def test_the_wheel_holds_the_packages_and_nothing_else(site):
    top = {item.name for item in site.iterdir() if not item.name.endswith(".dist-info")}
    assert top <= {"keras_resnets", "bin"}
    installed = {file.relative_to(site / "keras_resnets") for file in site.rglob("*.py")}
    for source, target in (("keras_resnets", "."), ("export", "export"), ("serving", "serving")):
        for file in (ROOT / source).rglob("*.py"):
            assert Path(target) / file.relative_to(ROOT / source) in installed


def test_the_installed_package_passes_mypy(site, tmp_path):
    """In the checkout the type checker sees export/ and serving/ under other names than users do."""
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path)]
    run(sys.executable, "-m", "mypy", *options, "keras_resnets", cwd=site)
