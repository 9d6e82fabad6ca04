"""Weights that never were in the ONNX message: the file is the one that protobuf would have written."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import keras_resnets
from keras_resnets import Preprocessing
from keras_resnets.export import stream, to_onnx

SIZES = (1, 31, 32, 4_000, 4_096, 2**19, 2**19 + 1)  # about where a length takes one byte more


def test_a_streamed_file_is_what_protobuf_would_have_written(tmp_path, monkeypatch):
    model = keras_resnets.ResNet20(input_shape=(16, 16, 3), classes=5)
    options = {"pixels": True, "preprocessing": Preprocessing((16, 16), 3, scale=1 / 255, mean=(0.5, 0.4, 0.3))}
    files = []
    for largest in (1, 10_000, 2**40):
        monkeypatch.setattr(stream, "LARGE", largest)
        files.append(onnx.load(to_onnx(model, tmp_path / f"{largest}.onnx", **options)))
    for proto in files:
        onnx.checker.check_model(proto)
        tensors = sorted(proto.graph.initializer, key=lambda item: item.name)
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(tensors)
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("kind", ["float32", "float16", "int64"])
def test_arrays_come_back(kind, beyond, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "LARGE", 100)
    if beyond:
        monkeypatch.setattr(stream, "MAX_BYTES", 1000)
    arrays = {f"w{size}": np.random.default_rng(size).integers(0, 99, (size, 1)).astype(kind) for size in SIZES}
    large = []
    model = onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], []), producer_name="test")
    model.graph.initializer.extend(stream.tensor_of(array, name, large) for name, array in arrays.items())
    expected = [item.nbytes >= 100 for item in arrays.values()]
    assert [bool(item.external_data) for item in model.graph.initializer] == expected
    assert all(np.array_equal(stream.array_of(item, large), arrays[item.name]) for item in model.graph.initializer)
    stream.write(model, large, tmp_path / "m.onnx", tmp_path / "m.onnx.data")
    assert not large
    assert (tmp_path / "m.onnx.data").exists() == beyond
    loaded = onnx.load(tmp_path / "m.onnx")
    assert loaded.producer_name == "test"
    got = {item.name: numpy_helper.to_array(item) for item in loaded.graph.initializer}
    assert got.keys() == arrays.keys()
    assert all(np.array_equal(got[name], array) and got[name].dtype == array.dtype for name, array in arrays.items())
