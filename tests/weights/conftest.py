"""A hub on this machine, caches of the test's own, and no waiting between attempts."""

import dataclasses
import hashlib
import time

import numpy as np
import pytest

from keras_resnets.weights import find_weights


@pytest.fixture(scope="session")
def stand_in(neighbour):
    """The module hub.py."""
    return neighbour("weights/hub.py")


@pytest.fixture(scope="session")
def tensors(tmp_path_factory):
    """The bytes of a safetensors file of some 400 kB."""
    numpy = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    return numpy.save({"conv1.weight": rng.standard_normal((100, 1000), np.float32)})


@pytest.fixture
def hub(stand_in, tmp_path, monkeypatch):
    """The running stand-in, which the environment names as both hosts."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("KERAS_RESNETS_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
    monkeypatch.setattr("keras_resnets.weights.fetch._TIMEOUT", 0.2)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    with stand_in.Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("KERAS_RESNETS_KERAS_URL", f"{running.url}/keras")
        yield running


@pytest.fixture
def torch_weights(hub, tensors):
    """A record of the hub, whose file is there, that states neither commit nor hash."""
    record = dataclasses.replace(find_weights("resnet18", "a1_in1k"), revision=None, hash=None)
    hub.files[f"{record.repository}/{record.file}"] = tensors
    return record


@pytest.fixture
def keras_weights(hub):
    """A record of keras.applications, whose file is there."""
    data = b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 1200
    record = find_weights("resnet50", "keras_in1k")
    hub.files[f"keras/{record.repository}/{record.file}"] = data
    return dataclasses.replace(record, hash=f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}")


@pytest.fixture(params=["torch", "keras"])
def weights(request):
    """Both, in turn."""
    return request.getfixturevalue(f"{request.param}_weights")
