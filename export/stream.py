"""Keeps large weights beside an ONNX message and writes them straight into its file: protobuf would copy them thrice.

In the message such an initializer says that its data are external, at an index of the list of large arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.atomic import atomic_file
from keras_resnets.extras import extra

with extra("export"):
    import onnx
    from onnx import numpy_helper

Large = list[NDArray[Any]]

LARGE = 2**16  # bytes; below, the message is as good
MAX_BYTES = 2**31 - 2**20  # a protobuf message cannot be larger than 2 GiB; the rest is for names
_BLOCK = 4096  # where external data begin, so that they can be mapped into memory
_WITH_LENGTH = 2  # protobuf's kind of field that says how many bytes follow


def tensor_of(array: NDArray[Any], name: str, large: Large) -> Any:
    """The TensorProto of an array; where it is large, the list gets its data."""
    if array.nbytes < LARGE:
        return numpy_helper.from_array(np.ascontiguousarray(array), name)
    tensor = _head(name, array)
    _point(tensor, location=str(len(large)))
    large.append(np.ascontiguousarray(array))
    return tensor


def array_of(tensor: Any, large: Large) -> NDArray[Any]:
    """The array of a TensorProto that `tensor_of` made."""
    return large[_index(tensor)] if _is_large(tensor) else numpy_helper.to_array(tensor)


def write(model: Any, large: Large, file: Path, data: Path) -> None:
    """Write an ONNX model, which is given up; weights beyond 2 GiB go into a second file, in place before the first is.

    Args:
        model: a ModelProto whose tensors are of `tensor_of`.
        large: the large ones' arrays; each leaves the list when it is written.
        file: to write.
        data: the second file, which the first one calls by its name. It appears whole or not at all.
    """
    apart = [i for i, item in enumerate(model.graph.initializer) if _is_large(item)]
    weights = sum(large[_index(model.graph.initializer[i])].nbytes for i in apart)
    if model.ByteSize() + weights <= MAX_BYTES:
        _write_one(model, large, file, apart)
    else:
        _write_two(model, large, file, data, apart)


def _write_one(model: Any, large: Large, file: Path, apart: Sequence[int]) -> None:
    """The message as protobuf writes it, but that the graph's large tensors follow behind its nodes."""
    tensors = []
    for i in reversed(apart):
        item = model.graph.initializer.pop(i)
        array = large[_index(item)]
        raw = _head(item.name, array).SerializeToString() + _field(onnx.TensorProto, "raw_data", array.nbytes)
        start = _field(onnx.GraphProto, "initializer", len(raw) + array.nbytes) + raw
        tensors.append((start, array))
    large.clear()
    nodes = model.graph.SerializeToString()
    length = len(nodes) + sum(len(start) + array.nbytes for start, array in tensors)
    model.ClearField("graph")
    with file.open("wb") as stream:
        stream.write(model.SerializeToString() + _field(onnx.ModelProto, "graph", length) + nodes)
        while tensors:
            start, array = tensors.pop()
            stream.write(start)
            stream.write(_bytes(array))


def _write_two(model: Any, large: Large, file: Path, data: Path, apart: Sequence[int]) -> None:
    with atomic_file(data) as draft, draft.open("wb") as stream:
        for item in (model.graph.initializer[i] for i in apart):
            index = _index(item)
            stream.seek(-(-stream.tell() // _BLOCK) * _BLOCK)
            _point(item, location=data.name, offset=str(stream.tell()), length=str(large[index].nbytes))
            stream.write(_bytes(large[index]))
            large[index] = np.empty(0)
    large.clear()
    file.write_bytes(model.SerializeToString())


def _head(name: str, array: NDArray[Any]) -> Any:
    """A TensorProto without data."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.TensorProto(name=name, data_type=kind, dims=array.shape)


def _point(tensor: Any, **where: str) -> None:
    """Say where a tensor's data are."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in where.items())


def _is_large(tensor: Any) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _index(tensor: Any) -> int:
    return int(tensor.external_data[0].value)


def _bytes(array: NDArray[Any]) -> memoryview:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)  # as ONNX wants them
    return memoryview(little.reshape(-1)).cast("B")


def _field(message: Any, name: str, length: int) -> bytes:
    """How protobuf begins a field of so many bytes: its number, its kind and the length, seven bits a byte."""
    number = message.DESCRIPTOR.fields_by_name[name].number
    return _varint(number << 3 | _WITH_LENGTH) + _varint(length)


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
