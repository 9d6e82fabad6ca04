"""The Open Inference Protocol's messages: from the bytes of a request to checked tensors, and back.

Source: the KServe v2 protocol's REST part with Triton's binary tensor and classification extensions. A request is JSON,
then, where `Inference-Header-Content-Length` says how long that is, the raw little-endian tensors in listed order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra

with extra("serve"):
    import orjson

# The protocol's names, NumPy's and ONNX Runtime's.
DATATYPES = {
    "BOOL": ("bool", "tensor(bool)"),
    "UINT8": ("uint8", "tensor(uint8)"),
    "UINT16": ("uint16", "tensor(uint16)"),
    "UINT32": ("uint32", "tensor(uint32)"),
    "UINT64": ("uint64", "tensor(uint64)"),
    "INT8": ("int8", "tensor(int8)"),
    "INT16": ("int16", "tensor(int16)"),
    "INT32": ("int32", "tensor(int32)"),
    "INT64": ("int64", "tensor(int64)"),
    "FP16": ("float16", "tensor(float16)"),
    "FP32": ("float32", "tensor(float)"),
    "FP64": ("float64", "tensor(double)"),
}
JSON_SIZE = "Inference-Header-Content-Length"  # the header that says where the binary tensors begin
_OF_NUMPY = {numpy: name for name, (numpy, _) in DATATYPES.items()}
_MOST_ELEMENTS = 2**31


class ProtocolError(ValueError):
    """A request that the protocol or the model does not allow."""


class TensorSpec(NamedTuple):
    """A model's input or output: its shape has -1 where any size fits."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class RequestedOutput(NamedTuple):
    """What a client wants of an output: the tensor itself, or its best classes as texts."""

    name: str
    binary: bool
    classes: int  # 0: the tensor


class InferRequest(NamedTuple):
    """A request whose tensors fit the model."""

    id: str | None
    inputs: dict[str, NDArray[Any]]
    outputs: tuple[RequestedOutput, ...]
    timeout: float | None  # seconds


def parse_request(
    body: bytes, json_size: int | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> InferRequest:
    """Read and check the body of an inference request.

    Args:
        body: whole, decompressed.
        json_size: what `Inference-Header-Content-Length` says; None where there is no such header.
        inputs, outputs: the model's.

    Raises:
        ProtocolError: when the message or a tensor is not what it must be.
    """
    if json_size is not None and not 0 <= json_size <= len(body):
        raise ProtocolError(f"Inference-Header-Content-Length is {json_size}, but the body has {len(body)} bytes")
    size = len(body) if json_size is None else json_size
    message = _json(body[:size])
    parameters = _parameters(message, "the request")
    identity = message.get("id")
    if identity is not None and not isinstance(identity, str):
        raise ProtocolError("id must be a string")
    tensors, used = _inputs(message, memoryview(body)[size:], {spec.name: spec for spec in inputs})
    if used != len(body) - size:
        raise ProtocolError(f"{len(body) - size - used} bytes are left behind the tensors that the request lists")
    binary = _flag(parameters, "binary_data_output", False)
    return InferRequest(identity, tensors, _outputs(message, outputs, binary), _timeout(parameters))


def response(
    model: str, version: str, request: InferRequest, outputs: Mapping[str, NDArray[Any]], labels: Sequence[str] | None
) -> tuple[list[bytes | memoryview], int | None]:
    """The body of an answer, in parts, and the length of its JSON where tensors follow that.

    Raises:
        ProtocolError: when an output holds NaN or infinity and shall be JSON, which has neither.
    """
    listed, tensors = [], []
    for wanted in request.outputs:
        described, data = _output(wanted, outputs[wanted.name], labels)
        listed.append(described)
        if data is not None:
            tensors.append(data)
    message: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": listed}
    if request.id is not None:
        message["id"] = request.id
    head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    return [head, *tensors], len(head) if tensors else None


def datatype(array: NDArray[Any]) -> str:
    """The protocol's name of an array's type."""
    return "BYTES" if array.dtype == object else _OF_NUMPY[array.dtype.name]


def check_tensor(spec: TensorSpec, given: str, shape: Sequence[int]) -> None:
    """Raise unless a tensor's type and shape are the model's.

    Raises:
        ProtocolError: when they are not.
    """
    if given != spec.datatype:
        raise ProtocolError(f"input {spec.name} has the datatype {given}, but the model takes {spec.datatype}")
    fits = len(shape) == len(spec.shape) and all(
        want in (-1, have) for want, have in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise ProtocolError(f"input {spec.name} has the shape {list(shape)}, but the model takes {list(spec.shape)}")
    if math.prod(shape) > _MOST_ELEMENTS:
        raise ProtocolError(f"input {spec.name} has more than 2^31 elements")


def best_classes(scores: NDArray[Any], count: int, labels: Sequence[str] | None) -> NDArray[Any]:
    """The best classes of each row [..., classes] as texts "score:class[:label]", [..., count]."""
    rows = scores.reshape(-1, scores.shape[-1])
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    names = [f":{label}" for label in labels] if labels and len(labels) == rows.shape[1] else [""] * rows.shape[1]
    texts = np.empty(order.shape, object)
    for row, best in enumerate(order):
        texts[row] = [f"{rows[row, i]:f}:{i}{names[i]}".encode() for i in best]
    return texts.reshape(*scores.shape[:-1], order.shape[1])


def to_bytes(array: NDArray[Any]) -> bytes | memoryview:
    """A tensor as the binary extension and gRPC carry it."""
    if array.dtype == object:
        return b"".join(len(text).to_bytes(4, "little") + text for text in array.reshape(-1))
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
    return memoryview(flat.view(np.uint8))


def from_bytes(data: bytes | memoryview, spec: TensorSpec, shape: Sequence[int]) -> NDArray[Any]:
    """A tensor of checked shape from its raw bytes.

    Raises:
        ProtocolError: when they are too many or too few.
    """
    kind = np.dtype(DATATYPES[spec.datatype][0]).newbyteorder("<")
    if len(data) != math.prod(shape) * kind.itemsize:
        expected = f"{list(shape)} of {spec.datatype} has {math.prod(shape) * kind.itemsize}"
        raise ProtocolError(f"input {spec.name} has {len(data)} bytes, but {expected}")
    if kind.kind == "b" and len(data) and max(data) > 1:
        raise ProtocolError(f"input {spec.name} has values other than 0 and 1 for BOOL")
    return np.frombuffer(data, kind).reshape(shape)


def from_numbers(values: NDArray[Any], spec: TensorSpec, shape: Sequence[int]) -> NDArray[Any]:
    """A tensor of checked shape from as many numbers, of any type that holds the model's.

    Raises:
        ProtocolError: when they are too many or too few, of another kind, or beyond the model's type.
    """
    if values.size != math.prod(shape):
        raise ProtocolError(f"input {spec.name} has {values.size} values, but {list(shape)} has {math.prod(shape)}")
    kind = np.dtype(DATATYPES[spec.datatype][0])
    allowed = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[kind.kind]
    if values.size and values.dtype.kind not in allowed:
        raise ProtocolError(f"the data of input {spec.name} are not all of {spec.datatype}")
    if kind.kind in "iu" and values.size:
        limits = np.iinfo(kind)
        if values.min() < limits.min or values.max() > limits.max:
            raise ProtocolError(f"the data of input {spec.name} go beyond {spec.datatype}")
    with np.errstate(over="ignore"):
        array = values.astype(kind).reshape(shape)
    if kind.kind == "f" and not np.isfinite(array).all() and np.isfinite(values).all():
        raise ProtocolError(f"the data of input {spec.name} go beyond {spec.datatype}")
    return array


def _json(text: bytes) -> dict[str, Any]:
    try:
        message = orjson.loads(text)  # it bounds the depth itself, and takes no NaN
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the request is not valid JSON: {error}") from None
    if not isinstance(message, dict):
        raise ProtocolError("the request must be a JSON object")
    return message


def _objects(message: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = message.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ProtocolError(f"{key} must be a list of objects")
    names = [item.get("name") for item in found]
    if not all(isinstance(name, str) for name in names):
        raise ProtocolError(f"each of {key} needs a name")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ProtocolError(f"{key} name {', '.join(twice)} more than once")
    return found


def _parameters(item: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = item.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise ProtocolError(f"the parameters of {what} must be an object")
    return parameters or {}


def _flag(parameters: Mapping[str, Any], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise ProtocolError(f"{key} must be true or false")
    return value


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """Triton's parameter, in microseconds; 0 is none."""
    value = parameters.get("timeout")
    if value is None:
        return None
    if not _is_size(value):
        raise ProtocolError("timeout must be a whole number of microseconds")
    return value / 1e6 or None


def _inputs(
    message: Mapping[str, Any], rest: memoryview, specs: Mapping[str, TensorSpec]
) -> tuple[dict[str, NDArray[Any]], int]:
    """The tensors, and how many bytes of `rest` they took."""
    tensors, used = {}, 0
    for item in _objects(message, "inputs"):
        spec = specs.get(item["name"])
        if spec is None:
            raise ProtocolError(f"the model has no input {item['name']}; it has {', '.join(specs)}")
        shape = item.get("shape")
        if not isinstance(shape, list) or not all(_is_size(side) for side in shape):
            raise ProtocolError(f"input {spec.name} needs a shape of whole numbers from 0")
        check_tensor(spec, str(item.get("datatype")), shape)
        size = _parameters(item, f"input {spec.name}").get("binary_data_size")
        if size is None:
            tensors[spec.name] = _from_json(item.get("data"), spec, shape)
            continue
        if "data" in item:
            raise ProtocolError(f"input {spec.name} has both data and binary_data_size")
        if not _is_size(size) or used + size > len(rest):
            raise ProtocolError(f"input {spec.name}: binary_data_size {size} goes beyond the body")
        tensors[spec.name] = from_bytes(rest[used : used + size], spec, shape)
        used += size
    if missing := [name for name in specs if name not in tensors]:
        raise ProtocolError(f"the model's input {', '.join(missing)} is missing")
    return tensors, used


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _from_json(data: Any, spec: TensorSpec, shape: Sequence[int]) -> NDArray[Any]:
    """A tensor from a list of its values, flat or nested."""
    if not isinstance(data, list):
        raise ProtocolError(f"input {spec.name} needs data, a list, or binary_data_size")
    try:
        values = np.asarray(data)
    except ValueError:
        raise ProtocolError(f"the data of input {spec.name} are no regular array") from None
    if values.ndim > 1 and values.shape != tuple(shape):
        raise ProtocolError(f"the data of input {spec.name} are nested as {list(values.shape)}, not as {list(shape)}")
    return from_numbers(values, spec, shape)


def _outputs(
    message: Mapping[str, Any], specs: Sequence[TensorSpec], binary_by_default: bool
) -> tuple[RequestedOutput, ...]:
    known = [spec.name for spec in specs]
    items = _objects(message, "outputs")
    if not items:
        return tuple(RequestedOutput(name, binary_by_default, 0) for name in known)
    wanted = []
    for item in items:
        if item["name"] not in known:
            raise ProtocolError(f"the model has no output {item['name']}; it has {', '.join(known)}")
        parameters = _parameters(item, f"output {item['name']}")
        classes = parameters.get("classification", 0)
        if not _is_size(classes):
            raise ProtocolError("classification must be a whole number from 0")
        wanted.append(RequestedOutput(item["name"], _flag(parameters, "binary_data", binary_by_default), classes))
    return tuple(wanted)


def _output(
    wanted: RequestedOutput, values: NDArray[Any], labels: Sequence[str] | None
) -> tuple[dict[str, Any], bytes | memoryview | None]:
    if wanted.classes:
        values = best_classes(values, wanted.classes, labels)
    described: dict[str, Any] = {"name": wanted.name, "datatype": datatype(values), "shape": list(values.shape)}
    if wanted.binary:
        data = to_bytes(values)
        described["parameters"] = {"binary_data_size": len(data)}
        return described, data
    if values.dtype == object:
        described["data"] = [text.decode() for text in values.reshape(-1)]
    else:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ProtocolError(f"output {wanted.name} holds NaN or infinity, which JSON cannot: ask for binary_data")
        flat = np.ascontiguousarray(values).reshape(-1)
        described["data"] = flat.tolist() if values.dtype == np.float16 else flat
    return described, None
