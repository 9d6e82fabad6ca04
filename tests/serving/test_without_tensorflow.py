"""A machine that only serves has no TensorFlow, Keras, tf2onnx or onnx."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHECKOUT = Path(__file__).parents[2]


def run(code, *arguments, cwd):
    """Run code in a process of its own, away from the checkout, and return what it printed as JSON."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_serving_needs_no_training_framework(exported, tmp_path):
    model, folder = exported()
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    code = """
import sys
for name in ("tensorflow", "keras", "tf2onnx", "onnx"):
    sys.modules[name] = None
import importlib, importlib.util, json, pkgutil
import keras_resnets.serving
from keras_resnets.serving import Engine
modules = [m.name for m in pkgutil.walk_packages(keras_resnets.serving.__path__, "keras_resnets.serving.")]
for name in modules:
    if not name.endswith(".ray_app") or importlib.util.find_spec("ray"):  # which is an extra of its own
        importlib.import_module(name)
row = Engine(sys.argv[1]).predict(sys.argv[2])[0]
print(json.dumps({"modules": modules, "scores": {p.class_index: p.score for p in row}}))
"""
    told = run(code, folder, tmp_path / "image.png", cwd=tmp_path)
    assert {"keras_resnets.serving.engine", "keras_resnets.serving.providers"} <= set(told["modules"])
    want = np.asarray(model(((image[None, ..., None] / 255 - 0.5) / 0.25).astype(np.float32)))[0]
    np.testing.assert_allclose([told["scores"][str(i)] for i in range(3)], want, atol=1e-5)


def test_the_package_alone_loads_no_framework(tmp_path):
    code = """
import json, sys
import keras_resnets
names = dir(keras_resnets)
keras_resnets.Preprocessing, keras_resnets.decode_predictions
print(json.dumps({"names": names, "loaded": [m for m in ("keras", "tensorflow", "onnxruntime") if m in sys.modules]}))
"""
    told = run(code, cwd=tmp_path)
    assert told["loaded"] == []
    assert {"ResNet50", "Preprocessing", "load_model", "serving"} <= set(told["names"])


@pytest.mark.parametrize("name", ["export", "serving"])
def test_the_folders_of_the_checkout_are_no_packages(tmp_path, name):
    """Under its bare name the code would exist twice, with two classes of each error."""
    code = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
try:
    importlib.import_module(sys.argv[2])
except ImportError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
    kind, message = run(code, CHECKOUT, name, cwd=tmp_path)
    # ModuleNotFoundError would mean that the folder was not even found.
    assert kind == "ImportError"
    assert f"import keras_resnets.{name}" in message
