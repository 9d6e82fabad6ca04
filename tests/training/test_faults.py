"""A run that is killed, whenever and wherever, ends as one that never was: the same bits."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from keras_resnets.training import TrainingError
from keras_resnets.training.checkpoint import (
    CheckpointWarning,
    list_checkpoints,
    read_checkpoint,
    read_newest,
    write_checkpoint,
)
from keras_resnets.training.launch import launch

KILLING = Path(__file__).parent / "killing.py"


class Runner:
    """The process that starts runs and kills them."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, str(KILLING)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *command):
        print(json.dumps([str(part) if isinstance(part, Path) else part for part in command]), file=self.process.stdin)
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the runner ended"
        return json.loads(line)


@pytest.fixture(scope="module")
def runner():
    running = Runner()
    yield running
    running.process.stdin.close()
    running.process.wait(30)


@pytest.fixture(scope="module")
def unharmed(runner, tmp_path_factory):
    """A run that was never killed, and its seconds."""
    folder, began = tmp_path_factory.mktemp("runs") / "unharmed", time.monotonic()
    assert runner(folder, "") == 0
    return folder, time.monotonic() - began


def same(folder, other):
    """Weights, optimizer state, history and result are the same bits."""
    for name in ("history.json", "evaluation.json", "recipe.json", "steps.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    mine, theirs = (list_checkpoints(run)[-1] for run in (folder, other))
    assert mine.name == theirs.name
    mine, theirs = read_checkpoint(mine), read_checkpoint(theirs)
    assert mine.arrays.keys() == theirs.arrays.keys()
    assert any("momentum" in name for name in mine.arrays)
    assert any(name.startswith("average/") for name in mine.arrays)
    assert any(name.startswith("model/") and name.endswith("/state") for name in mine.arrays)  # a seed generator
    for name, array in mine.arrays.items():
        assert array.tobytes() == theirs.arrays[name].tobytes(), name
    for a, b in zip(saved_weights(folder), saved_weights(other), strict=True):
        assert a.tobytes() == b.tobytes()


def saved_weights(folder):
    with zipfile.ZipFile(folder / "model.keras") as archive, archive.open("model.weights.h5") as file:
        arrays = []
        with h5py.File(file) as stored:
            stored.visititems(lambda _, item: arrays.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    assert len(arrays) > 90
    return arrays


QUICK = (
    "in the first epoch",
    "in the evaluation of held-out images",
    "with half a checkpoint written",
    "with a checkpoint on the disk, not yet in place",
    "before the result is written",
)


def phases():
    text = KILLING.read_text()
    inside = text[text.index("PHASES = {") : text.index("\n}\n")]
    names = [line.split('"')[1] for line in inside.splitlines() if line.startswith('    "')]
    assert set(QUICK) < set(names)
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("phase", phases())
def test_killed_in_every_phase(runner, unharmed, tmp_path, phase):
    folder = tmp_path / "run"
    assert runner(folder, phase) == -signal.SIGKILL
    assert runner(folder, "") == 0
    same(folder, unharmed[0])


@pytest.mark.slow
def test_killed_at_twenty_random_moments(runner, unharmed, tmp_path):
    reference, seconds = unharmed
    chance, kills, number = random.Random(0), 0, 0
    folder = tmp_path / "0"
    while kills < 20:
        code = runner(folder, chance.uniform(0, seconds), signal.SIGKILL)
        if code == -signal.SIGKILL:
            kills += 1
            continue
        assert code == 0
        same(folder, reference)
        number += 1
        folder = tmp_path / str(number)
    if runner(folder, "") == 0:  # an error, where the last kill hit a run that had ended
        same(folder, reference)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_exits_with_the_code_to_requeue_on(runner, unharmed, tmp_path, name):
    folder = tmp_path / "run"
    assert runner(folder, -1, getattr(signal, name)) == os.EX_TEMPFAIL
    assert not (folder / "evaluation.json").exists()
    assert runner(folder, "") == 0
    same(folder, unharmed[0])


WORKER = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import keras
import killing
from keras_resnets.training import train

class Kill(keras.callbacks.Callback):
    def __init__(self, worker, batches):
        super().__init__()
        self.left = batches if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == worker else -1

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

train(killing.RECIPE, sys.argv[2], strategy="multi-worker", callbacks=[Kill(int(sys.argv[3]), int(sys.argv[4]))],
      save_steps=killing.SAVE_STEPS, log_steps=killing.LOG_STEPS, verbose=False, peer_timeout=20)
"""


def two_workers(folder, killed=-1, batches=-1):
    command = [sys.executable, "-c", WORKER, str(KILLING.parent), str(folder), str(killed), str(batches)]
    return launch(command, 2, logs=folder.with_name(f"{folder.name}-logs"))


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_end_as_if_none_was(tmp_path):
    assert two_workers(tmp_path / "unharmed") == 0
    for killed, batches in ((1, 3), (0, 12)):
        folder = tmp_path / f"killed-{killed}"
        assert two_workers(folder, killed, batches) == 128 + signal.SIGKILL
        assert not (folder / "evaluation.json").exists()
        assert two_workers(folder) == 0
        same(folder, tmp_path / "unharmed")


def position(epoch, step=0):
    return {"epoch": epoch, "step": step, "history": [{"loss": 0.25}]}


ARRAYS = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "n": np.array(7, np.int64), "e": np.zeros((0, 2))}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    write_checkpoint(tmp_path, ARRAYS, position(1, 2))
    found = read_newest(tmp_path)
    assert found.position == position(1, 2)
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert np.array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == array.dtype


def test_no_checkpoint_is_none(tmp_path):
    assert read_newest(tmp_path) is None


def test_the_newest_two_are_kept(tmp_path):
    for epoch, step in ((0, 5), (0, 10), (1, 0), (10, 0)):
        write_checkpoint(tmp_path, ARRAYS, position(epoch, step))
    assert [read_checkpoint(file).position["epoch"] for file in list_checkpoints(tmp_path)] == [1, 10]


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text", "position"])
def test_a_damaged_newest_one_gives_way_to_the_one_before(tmp_path, damage):
    for epoch in (1, 2):
        write_checkpoint(tmp_path, ARRAYS, position(epoch))
    newest = list_checkpoints(tmp_path)[-1]
    data = bytearray(newest.read_bytes())
    if damage == "bit":
        data[-5] ^= 1
    elif damage == "position":
        data = data.replace(b"0.25", b"0.75")
    else:
        data = {"cut": data[:-40], "empty": b"", "text": b"not a checkpoint, although long enough"}[damage]
    newest.write_bytes(bytes(data))
    with pytest.warns(CheckpointWarning, match=r"epoch00002.*is damaged.*the one before"):
        assert read_newest(tmp_path).position["epoch"] == 1
    list_checkpoints(tmp_path)[0].write_bytes(b"")
    with pytest.warns(CheckpointWarning), pytest.raises(TrainingError, match="--overwrite"):
        read_newest(tmp_path)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    """The limit of a file's size stands in for the disk's: the same system call fails."""
    write_checkpoint(tmp_path, ARRAYS, position(1))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(TrainingError, match=r"could not be written.*epoch00001.*Make room"):
            write_checkpoint(tmp_path, {"w": np.zeros(1_000_000)}, position(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert read_newest(tmp_path).position["epoch"] == 1
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == [list_checkpoints(tmp_path)[0].name]
