"""The protocol's messages: what clients may send, and what they must not."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_resnets.serving.protocol import (
    DATATYPES,
    ProtocolError,
    TensorSpec,
    best_classes,
    from_bytes,
    parse_request,
    response,
    to_bytes,
)

INPUTS = (TensorSpec("x", "FP32", (-1, 2)),)
OUTPUTS = (TensorSpec("y", "FP32", (-1, 3)), TensorSpec("z", "INT64", (-1,)))
X = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}


def parse(message, binary=b"", size=None, inputs=INPUTS):
    head = json.dumps(message).encode() if not isinstance(message, bytes) else message
    return parse_request(head + binary, len(head) if binary or size is not None else None, inputs, OUTPUTS)


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [1.0, 2, 3, 4e0]])
def test_json_tensors_are_flat_or_nested(data):
    request = parse({"inputs": [X | {"data": data}]})
    assert request.inputs["x"].tolist() == [[1, 2], [3, 4]] and request.inputs["x"].dtype == np.float32
    assert request.id is None and request.timeout is None
    assert [(one.name, one.binary, one.classes) for one in request.outputs] == [("y", False, 0), ("z", False, 0)]


def test_binary_tensors_follow_in_listed_order():
    inputs = (*INPUTS, TensorSpec("k", "INT8", (-1,)))
    described = [
        {"name": "k", "shape": [3], "datatype": "INT8", "parameters": {"binary_data_size": 3}},
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
    ]
    binary = np.array([-1, 2, 3], np.int8).tobytes() + np.array([5, 6], "<f4").tobytes()
    request = parse({"inputs": described}, binary, inputs=inputs)
    assert request.inputs["k"].tolist() == [-1, 2, 3] and request.inputs["x"].tolist() == [[5, 6]]


def test_options_of_a_request():
    parameters = {"binary_data_output": True, "timeout": 2_500_000}
    outputs = [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y", "parameters": {"classification": 2}}]
    request = parse({"id": "a", "inputs": [X], "outputs": outputs, "parameters": parameters})
    assert request.id == "a" and request.timeout == 2.5
    assert [tuple(one) for one in request.outputs] == [("z", False, 0), ("y", True, 2)]
    assert parse({"inputs": [X], "parameters": {"timeout": 0}}).timeout is None


BAD = {
    "no JSON": b"{",
    "a list": [],
    "deep JSON": b'{"inputs":' + b"[" * 100_000,
    "NaN": b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [NaN, 1]}]}',
    "no inputs": {},
    "inputs is no list": {"inputs": X},
    "an input is no object": {"inputs": [5]},
    "no name": {"inputs": [{"shape": [2, 2]}]},
    "a name is a number": {"inputs": [X | {"name": 5}]},
    "an input twice": {"inputs": [X, X]},
    "an unknown input": {"inputs": [X | {"name": "w"}]},
    "no shape": {"inputs": [{"name": "x", "datatype": "FP32", "data": [1]}]},
    "a negative side": {"inputs": [X | {"shape": [-2, -2]}]},
    "a huge side": {"inputs": [X | {"shape": [2**63, 2]}]},
    "an overflowing shape": {"inputs": [X | {"shape": [2**62, 2], "parameters": {"binary_data_size": 0}}]},
    "a side is true": {"inputs": [X | {"shape": [True, 2]}]},
    "a side is a fraction": {"inputs": [X | {"shape": [2.0, 2]}]},
    "another rank": {"inputs": [X | {"shape": [4]}]},
    "another size": {"inputs": [X | {"shape": [4, 1]}]},
    "another type": {"inputs": [X | {"datatype": "FP64"}]},
    "no type": {"inputs": [{"name": "x", "shape": [2, 2], "data": [1, 2, 3, 4]}]},
    "no data": {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32"}]},
    "too few data": {"inputs": [X | {"data": [1, 2, 3]}]},
    "ragged data": {"inputs": [X | {"data": [[1, 2], [3]]}]},
    "nested otherwise": {"inputs": [X | {"data": [[1, 2, 3, 4]]}]},
    "texts": {"inputs": [X | {"data": ["1", "2", "3", "4"]}]},
    "truths": {"inputs": [X | {"data": [True, False, True, True]}]},
    "nothings": {"inputs": [X | {"data": [None, 1, 2, 3]}]},
    "beyond float32": {"inputs": [X | {"data": [1e39, 1, 2, 3]}]},
    "data and binary": {"inputs": [X | {"parameters": {"binary_data_size": 16}}]},
    "parameters is a list": {"inputs": [X | {"parameters": []}]},
    "id is a number": {"inputs": [X], "id": 5},
    "timeout is negative": {"inputs": [X], "parameters": {"timeout": -1}},
    "binary_data_output is a number": {"inputs": [X], "parameters": {"binary_data_output": 1}},
    "an unknown output": {"inputs": [X], "outputs": [{"name": "w"}]},
    "an output twice": {"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]},
    "classification is negative": {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": -1}}]},
    "classification is a text": {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": "2"}}]},
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD)
def test_what_is_wrong_is_said(message):
    with pytest.raises(ProtocolError) as refused:
        parse(message)
    assert 10 < len(str(refused.value)) < 300


BINARY = {"name": "x", "shape": [2, 2], "datatype": "FP32"}


@pytest.mark.parametrize(
    ("size", "binary"), [(16, bytes(15)), (16, bytes(17)), (8, bytes(8)), (-1, b""), (2**63, b""), ("16", bytes(16))]
)
def test_sizes_that_do_not_fit(size, binary):
    with pytest.raises(ProtocolError):
        parse({"inputs": [BINARY | {"parameters": {"binary_data_size": size}}]}, binary, size=0)


@pytest.mark.parametrize("size", [-1, 10_000])
def test_a_header_length_out_of_range(size):
    with pytest.raises(ProtocolError, match="Inference-Header-Content-Length"):
        parse_request(json.dumps({"inputs": [X]}).encode(), size, INPUTS, OUTPUTS)


@given(st.binary(max_size=200), st.none() | st.integers(-5, 300))
def test_any_bytes_are_a_request_or_an_error(body, size):
    with pytest.raises(ProtocolError):
        parse_request(body, size, INPUTS, OUTPUTS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), JSON, st.binary(max_size=40))
def test_any_field_is_taken_or_refused(key, value, binary):
    try:
        request = parse({"inputs": [X | {key: value}]}, binary)
    except ProtocolError:
        return
    assert request.inputs["x"].shape[1] == 2 and request.inputs["x"].dtype == np.float32


@pytest.mark.parametrize("name", list(DATATYPES))
def test_tensors_survive_the_way_there_and_back(name):
    kind = np.dtype(DATATYPES[name][0])
    values = np.random.default_rng(0).integers(0, 2 if name == "BOOL" else 100, (3, 4)).astype(kind)
    spec = TensorSpec("x", name, (-1, 4))
    assert np.array_equal(from_bytes(to_bytes(values), spec, values.shape), values)
    message = {"inputs": [{"name": "x", "shape": [3, 4], "datatype": name, "data": values.tolist()}]}
    (got,) = parse(message, inputs=(spec,)).inputs.values()
    assert np.array_equal(got, values) and got.dtype == kind


@pytest.mark.parametrize(("name", "value"), [("UINT8", 256), ("UINT8", -1), ("INT64", 2**63), ("UINT64", 2**64)])
def test_numbers_beyond_their_type(name, value):
    message = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": name, "data": [value]}]}
    with pytest.raises(ProtocolError):
        parse(message, inputs=(TensorSpec("x", name, (-1, 1)),))


def test_answers_in_json_and_binary():
    outputs = {"y": np.array([[1, 2, 3], [6, 5, 4]], np.float32), "z": np.array([7, 8])}
    request = parse({"id": "a", "inputs": [X], "outputs": [{"name": "z"}, {"name": "y"}]})
    (body,), size = response("m", "1", request, outputs, None)
    assert size is None
    assert json.loads(body) == {
        "model_name": "m", "model_version": "1", "id": "a",
        "outputs": [
            {"name": "z", "datatype": "INT64", "shape": [2], "data": [7, 8]},
            {"name": "y", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 6, 5, 4]},
        ],
    }  # fmt: skip
    request = parse({"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}]})
    parts, size = response("m", "1", request, outputs, None)
    head, tensor = b"".join(parts)[:size], b"".join(parts)[size:]
    assert [item.get("parameters") for item in json.loads(head)["outputs"]] == [{"binary_data_size": 24}, None]
    assert np.frombuffer(tensor, "<f4").tolist() == [1, 2, 3, 6, 5, 4]


def test_the_best_classes_are_texts():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32)
    assert best_classes(scores, 2, ["a", "b:c", "d"]).tolist() == [
        [b"0.700000:1:b:c", b"0.200000:2:d"],
        [b"0.500000:0:a", b"0.250000:1:b:c"],
    ]
    assert best_classes(scores, 9, None).shape == (2, 3)
    request = parse({"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 1}}]})
    (body,), _ = response("m", "1", request, {"y": scores}, None)
    (output,) = json.loads(body)["outputs"]
    assert output == {"name": "y", "datatype": "BYTES", "shape": [2, 1], "data": ["0.700000:1", "0.500000:0"]}
    request = parse({
        "inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 1, "binary_data": True}}]
    })  # fmt: skip
    parts, _ = response("m", "1", request, {"y": scores}, None)
    assert parts[1] == b"\x0a\0\0\x000.700000:1\x0a\0\0\x000.500000:0"


def test_json_holds_no_nan():
    outputs = {"y": np.full((1, 3), np.nan, np.float32), "z": np.array([7])}
    with pytest.raises(ProtocolError, match="NaN"):
        response("m", "1", parse({"inputs": [X]}), outputs, None)
    binary = parse({"inputs": [X], "parameters": {"binary_data_output": True}})
    parts, size = response("m", "1", binary, outputs, None)
    assert len(b"".join(parts)) == size + 12 + 8
