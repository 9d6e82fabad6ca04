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
