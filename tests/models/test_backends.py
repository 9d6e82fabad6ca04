"""The same networks on Keras's JAX backend, in a process of its own. Run by `make test-jax`, which installs JAX."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import keras_resnets

pytestmark = [
    pytest.mark.jax,
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="make test-jax installs JAX"),
]
# Reads a line of JSON a network, {"name", "side", "file"}; writes its logits to the file, and answers a line.
WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import keras, numpy as np
import keras_resnets
from seeded import fill, seeded_images
assert keras.backend.backend() == "jax"
for line in sys.stdin:
    job = json.loads(line)
    model = keras_resnets.create_model(job["name"], input_shape=(job["side"],) * 2 + (3,), classifier_activation=None)
    fill(model)
    np.save(job["file"], np.asarray(model(seeded_images(2, job["side"], job["side"], 3), training=False)))
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def jax():
    """Computes a network's logits on JAX."""
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    ) as worker:

        def logits(name, side, file):
            worker.stdin.write(json.dumps({"name": name, "side": side, "file": str(file)}) + "\n")
            worker.stdin.flush()
            assert worker.stdout.readline().strip() == "done"
            return np.load(file)

        yield logits
        worker.stdin.close()


@pytest.mark.parametrize("name", keras_resnets.list_models())
def test_jax_and_tensorflow_give_the_same_logits(name, jax, seeds, agreement, tmp_path):
    side = 32 if keras_resnets.model_info(name).classes == 10 else 64
    model = keras_resnets.create_model(name, input_shape=(side, side, 3), classifier_activation=None)
    seeds.fill(model)
    expected = np.asarray(model(seeds.seeded_images(2, side, side, 3), training=False))
    assert np.isfinite(expected).all()
    found = jax(name, side, tmp_path / "logits.npy")
    assert agreement(expected, found) < 1e-4


def test_weights_and_models_save_and_load_on_jax(tmp_path):
    code = """
import sys, numpy as np, keras, keras_resnets as k
assert keras.backend.backend() == "jax"
for name, shape in (("resnet18", (32, 32, 3)), ("vit_ti16", (32, 32, 3))):
    model = k.create_model(name, input_shape=shape, classes=3)
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    expected = np.asarray(model(images))
    k.save_model(model, f"{sys.argv[1]}/{name}.keras")
    assert np.array_equal(np.asarray(k.load_model(f"{sys.argv[1]}/{name}.keras")(images)), expected)
    for naming in ("zoo", "timm", "torchvision"):
        file = k.save_weights(model, f"{sys.argv[1]}/{name}_{naming}.safetensors", naming)
        again = k.create_model(name, input_shape=shape, classes=3, weights=file)
        assert np.array_equal(np.asarray(again(images)), expected), naming
larger = k.ViT_Ti16(input_shape=(64, 64, 3), classes=3, weights=f"{sys.argv[1]}/vit_ti16_timm.safetensors")
assert larger.get_layer("tokens").position_embedding.shape == (1, 17, 192)
"""
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
