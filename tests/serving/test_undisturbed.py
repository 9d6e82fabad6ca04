"""The harness adds nothing, and nobody disturbs it: figures beside those of a raw loop, on a quiet machine.

Times are compared here, as ratios in one run, in turn: `make test-timing`, with nothing else running.
"""

import json
import statistics
import subprocess
import sys

import pytest

from keras_resnets import Preprocessing, ResNet20
from keras_resnets.export import to_bundle
from keras_resnets.machine import usable_cpus
from keras_resnets.serving.benchmark import contender, run
from keras_resnets.serving.contender import Configuration

pytestmark = [
    pytest.mark.timing,
    pytest.mark.skipif(usable_cpus() < 2, reason="one CPU has no other to be taken from"),
]
ROUNDS, SECONDS = 9, 0.7
# What anybody would write: the session as the harness opens it, a clock around its call. With a second session in the
# process, that one runs before each call, and its threads wait with their cores busy.
RAW = """
import json, statistics, sys, time
import numpy as np, onnxruntime
file, batch, threads, disturbed, seconds = sys.argv[1], *map(float, sys.argv[2:])

def opened():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

session, other = opened(), opened() if disturbed else None
images = session.get_inputs()[0]
feed = {images.name: np.random.default_rng(0).normal(size=(int(batch), *images.shape[1:])).astype(np.float32)}
for duration in (0.5, seconds):  # the first warms up
    times, end = [], time.perf_counter() + duration
    while time.perf_counter() < end:
        if other:
            other.run(None, feed)
        began = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - began)
print(json.dumps(1e3 * statistics.median(times)))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timing") / "bundle"
    how = Preprocessing((32, 32), 3, scale=1 / 255)
    return to_bundle(ResNet20(), folder, preprocessing=how, saved_model=False).path


def raw(bundle, batch, disturbed=False):
    """Median ms of a call, of a process of its own."""
    arguments = [str(bundle / "model.onnx"), batch, usable_cpus(), int(disturbed), SECONDS]
    done = subprocess.run([sys.executable, "-c", RAW, *map(str, arguments)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def harness(bundle, batch):
    result = run([contender(Configuration(str(bundle), batch=batch))], rounds=1, seconds=SECONDS)
    return result["rows"][0]["end_to_end"]["p50_ms"]


@pytest.mark.parametrize("batch", [1, 8])
def test_the_harness_agrees_with_a_raw_loop(bundle, batch):
    pairs = [(harness(bundle, batch), raw(bundle, batch)) for _ in range(ROUNDS)]
    # The best round of each: what the machine adds to the others, the harness has no part in.
    ours, theirs = (min(column) for column in zip(*pairs, strict=True))
    print(f"batch {batch}: harness {ours:.4f} ms, raw loop {theirs:.4f} ms, {ours / theirs:.4f}")
    assert ours / theirs == pytest.approx(1, abs=0.03)


def test_a_second_runtime_would_have_changed_the_figure(bundle):
    rows = [(harness(bundle, 1), raw(bundle, 1), raw(bundle, 1, disturbed=True)) for _ in range(ROUNDS)]
    ours, alone, disturbed = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"harness {ours:.4f} ms, alone {alone:.4f} ms, beside another {disturbed:.4f} ms")
    assert disturbed > 1.1 * alone
    assert ours - alone < 0.2 * (disturbed - alone)
