"""An export that is killed, whenever and wherever: a whole bundle or none, the old one untouched, nothing left over."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_resnets.bundle import Bundle

KILLING = Path(__file__).with_name("killing.py")


@pytest.fixture(scope="module")
def run():
    """Gives the exit code of an export that is killed behind a step, or after so many seconds, or not ("")."""
    command = [sys.executable, str(KILLING)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def answer(folder, how):
            print(json.dumps([str(folder), how]), file=process.stdin, flush=True)
            line = process.stdout.readline()
            assert line, "the runner ended"
            return json.loads(line)

        yield answer
        process.stdin.close()


@pytest.fixture(scope="module")
def old(run, tmp_path_factory):
    """A bundle to be replaced, and the seconds of its export."""
    folder, began = tmp_path_factory.mktemp("old") / "b", time.monotonic()
    assert run(folder, "") == 0
    return folder, time.monotonic() - began


def manifest(folder):
    return (folder / "bundle.json").read_bytes()


def steps():
    text = KILLING.read_text()
    inside = text[text.index("STEPS = {") : text.index("\n}\n")]
    return [line.split('"')[1] for line in inside.splitlines() if line.startswith('    "')]


QUICK = ("model.onnx", "the hashes", "everything but the swap", "the swap")


@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=[] if step in QUICK else [pytest.mark.slow]) for step in steps()]
)
def test_killed_behind_every_step(run, old, tmp_path, step):
    new, replaced = tmp_path / "new", tmp_path / "replaced"
    assert run(new, step) == -signal.SIGKILL
    assert new.exists() == (step == "the swap")
    shutil.copytree(old[0], replaced)
    assert run(replaced, step) == -signal.SIGKILL
    Bundle.open(replaced).check()
    assert (manifest(replaced) == manifest(old[0])) == (step != "the swap")
    for folder in (new, replaced):
        assert run(folder, "") == 0
        Bundle.open(folder).check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "replaced"]


@pytest.mark.slow
def test_killed_at_twenty_random_moments(run, old, tmp_path):
    chance, kills, folder = random.Random(0), 0, tmp_path / "b"
    shutil.copytree(old[0], folder)
    while kills < 20:
        kills += run(folder, chance.uniform(0, old[1])) == -signal.SIGKILL
        Bundle.open(folder).check()
    assert run(folder, "") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
