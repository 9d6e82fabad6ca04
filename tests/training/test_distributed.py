"""The same global batches give the same training on one replica, on several, and in several processes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from keras_resnets.training.launch import launch

SCRIPT = Path(__file__).parent / "exactness.py"
SPREADS = [("mirrored", 2), ("multi-worker", 2), ("mirrored", 4), ("multi-worker", 4)]


def run(strategy, replicas, dtype, folder):
    command = [sys.executable, str(SCRIPT), strategy, str(replicas), dtype, str(folder)]
    if strategy == "multi-worker":
        assert launch(command, replicas, logs=folder.with_name(f"{folder.name}-logs")) == 0
    else:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "result.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Gives the result of a spread, which is computed once."""
    folder, results = tmp_path_factory.mktemp("spreads"), {}

    def result(strategy, replicas, dtype):
        key = f"{strategy}-{replicas}-{dtype}"
        if key not in results:
            results[key] = run(strategy, replicas, dtype, folder / key)
        return results[key]

    yield result
    if results:
        Console(width=120).print(table(results))


def difference(one, other, start):
    """Largest max|a - b| / max|a| of the arrays whose names start so."""
    names = [name for name in one if name.startswith(start)]
    assert names
    assert one.keys() == other.keys()
    scales = {name: float(np.abs(one[name]).max()) for name in names}
    return max(float(np.abs(one[name] - other[name]).max()) / (scales[name] or 1.0) for name in names)


def table(results):
    """What the README shows."""
    rows = Table("strategy", "replicas", "type", "first loss", "first gradients", "20 losses", "weights after 20 steps")
    for key, result in results.items():
        strategy, replicas, dtype = key.rsplit("-", 2)
        one = results[f"single-1-{dtype}"]
        first = abs(result["losses"][0] / one["losses"][0] - 1)
        figures = [first, *(difference(one, result, start) for start in ("gradient", "losses", "weight"))]
        rows.add_row(strategy, replicas, dtype, *(f"{figure:.1e}" for figure in figures))
    return rows


def slow_beyond_two(spreads):
    return [pytest.param(*spread, marks=[pytest.mark.slow] if spread[1] > 2 else []) for spread in spreads]


@pytest.mark.parametrize(("strategy", "replicas"), slow_beyond_two(SPREADS))
def test_in_float64_twenty_steps_agree(trained, strategy, replicas):
    one, many = trained("single", 1, "float64"), trained(strategy, replicas, "float64")
    assert one["weight 0"].dtype == np.float64
    assert len(one["losses"]) == 20
    assert difference(one, many, "losses") < 1e-9
    assert difference(one, many, "weight") < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "replicas"), SPREADS)
def test_in_float32_the_first_step_agrees(trained, strategy, replicas):
    one, many = trained("single", 1, "float32"), trained(strategy, replicas, "float32")
    assert one["weight 0"].dtype == np.float32
    assert abs(many["losses"][0] / one["losses"][0] - 1) < 1e-5
    assert difference(one, many, "gradient") < 1e-5


LOCAL = """
import sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from keras_resnets.training import Recipe, train
recipe = Recipe(model="resnet20", data="digits", epochs=1, batch_size=128, learning_rate=0.05, sync_batch_norm=False)
model = train(recipe, sys.argv[1], strategy="mirrored", verbose=False)
for variable in model.variables:
    one, other = variable.value.values
    assert np.array_equal(one, other), variable.path
"""


def test_with_local_batch_norm_replicas_keep_the_same_variables(tmp_path):
    """Their batches differ, and so would their moving statistics: then each would evaluate another network."""
    command = [sys.executable, "-c", LOCAL, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
