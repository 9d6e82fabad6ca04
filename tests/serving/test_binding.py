"""Buffers that stay where they are. On the CPU here; on GPUs only their place differs, and the graphs."""

import numpy as np
import pytest

from keras_resnets.serving import Engine
from keras_resnets.serving.binding import BoundSession
from keras_resnets.serving.providers import open_session
from keras_resnets.serving.served import Settings


def test_each_batch_size_has_buffers_of_its_own_and_no_run_sees_another_s(exported):
    engine = Engine(exported()[1])
    bound = BoundSession(engine.session, "cpu")
    chance = np.random.default_rng(0)
    kept = []
    for rows in (1, 4, 1, 2, 4):
        images = chance.normal(size=(rows, 8, 8, 1)).astype(np.float32)
        (got,) = bound.run({"images": images})
        kept.append((got, engine.run(images)))
    # An answer that was given is not overwritten by later runs of the same size.
    for got, want in kept:
        assert np.array_equal(got, want)


def test_many_threads_may_share_it(exported, at_once):
    engine = Engine(exported()[1])
    bound = BoundSession(engine.session, "cpu")
    images = np.random.default_rng(0).normal(size=(8, 1, 8, 8, 1)).astype(np.float32)
    want = [engine.run(image) for image in images]
    wrong = []

    def ask(number):
        for _ in range(50):
            if not np.array_equal(bound.run({"images": images[number]})[0], want[number]):
                wrong.append(number)

    at_once(ask, range(8))
    assert not wrong


def test_cuda_graphs_are_refused_where_there_are_none(exported):
    with pytest.raises(ValueError, match="CUDA graphs need the provider cuda or tensorrt, not cpu"):
        open_session(exported()[1] / "model.onnx", cuda_graphs=True)
    with pytest.raises(ValueError, match="CUDA graphs need the provider cuda or tensorrt, not openvino"):
        Settings(provider="openvino", cuda_graphs=True)
