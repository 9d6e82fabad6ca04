"""benchmarks/train_jax.py computes what `keras-resnets train` does. Run by `make test-jax`, which installs JAX."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import pytest

from keras_resnets import save_weights
from keras_resnets.data import load_dataset
from keras_resnets.training import RECIPES, train
from keras_resnets.training.run import build_model

pytestmark = [
    pytest.mark.jax,
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="make test-jax installs JAX"),
]
ROOT = Path(__file__).parents[2]

CODE = """
import json, sys
from pathlib import Path
from benchmarks import train_jax
from keras_resnets.data import load_dataset

recipe = train_jax.recipe_named(sys.argv[1])
trainer = train_jax.Trainer(recipe, load_dataset(recipe.data), curve=40)
rows = list(trainer.run(recipe.seed, start=Path(sys.argv[2])))
print(json.dumps([rows, trainer.test()]))
"""


@pytest.mark.parametrize("nesterov", [False, True])
def test_losses_are_those_of_train(tmp_path, nesterov):
    recipe = replace(
        RECIPES["digits"](), epochs=2, warmup_epochs=1, train_images=300, flip=True, nesterov=nesterov,
        weight_decay=0.3, learning_rate=0.02, seed=3,
    )  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    keras.utils.set_random_seed(recipe.seed)
    start = save_weights(build_model(recipe, load_dataset("digits")), tmp_path / "start.safetensors")
    train(recipe, tmp_path / "run", verbose=False)
    theirs = json.loads((tmp_path / "run" / "history.json").read_text())
    test = json.loads((tmp_path / "run" / "evaluation.json").read_text())["test"]

    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "recipe.json"), str(start)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows, found = json.loads(done.stdout.splitlines()[-1])
    # Rounding grows with every step; what a missing penalty or another momentum changes is more than this at once.
    for row, other, agreement in zip(rows, theirs, (1e-4, 1e-2), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=agreement)
        assert row["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-5)
    assert found["loss"] == pytest.approx(test["loss"], rel=2e-2)
