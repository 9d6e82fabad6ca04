"""The gRPC side of the server: the Open Inference Protocol for Triton's and KServe's clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra

from .describe import config_of, metadata_of
from .messages import DATA_TYPES, KINDS, MESSAGES, METHODS, SERVICE
from .protocol import (
    InferRequest,
    ProtocolError,
    RequestedOutput,
    TensorSpec,
    best_classes,
    check_tensor,
    datatype,
    from_bytes,
    from_numbers,
    to_bytes,
)
from .service import EXTENSIONS, VERSION, Asked, RequestError, Service, holds_key

with extra("serve"):
    import grpc
    import grpc.aio

_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_OPEN = ("ServerLive", "ServerReady")  # without a key
# Where InferTensorContents holds each type.
_CONTENTS = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip
Answer = Callable[[Asked, Any, Any], Awaitable[Any]]


class GrpcServer:
    """Answers on a port of its own; made and used on one event loop.

    Args:
        service: what answers.
        api_key: what clients must send as metadata `authorization: Bearer KEY` or `x-api-key: KEY`, if anything.
        shared: whether other processes of this server listen on the same port.
    """

    def __init__(self, service: Service, api_key: str | None = None, shared: bool = False) -> None:
        self.service, self._key = service, api_key
        body = service.limits.body
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", body),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(shared)),  # else a port that is taken is an error
            ],
            maximum_concurrent_rpcs=service.limits.concurrency,
        )
        handlers = {
            method: grpc.unary_unary_rpc_method_handler(
                self._guarded(method, getattr(self, f"_{_snake(method)}")),
                MESSAGES[f"{method}Request"].FromString,
                lambda message: message.SerializeToString(),
            )
            for method in METHODS
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def start(self, address: str, certificate: bytes | None = None, private_key: bytes | None = None) -> int:
        """Listen; returns the port.

        Raises:
            RuntimeError: when the port is taken.
        """
        if certificate is None:
            port = self._server.add_insecure_port(address)
        else:
            pair = (private_key or certificate, certificate)
            port = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        await self._server.start()
        return int(port)

    async def stop(self, seconds: float) -> None:
        """Answer what was accepted, for so long at most."""
        await self._server.stop(seconds)

    def _guarded(self, method: str, answer: Answer) -> Callable[[Any, Any], Awaitable[Any]]:
        """A handler whose errors become gRPC's."""

        async def handle(request: Any, context: Any) -> Any:
            given = dict(context.invocation_metadata() or ())
            asked = Asked("grpc", str(given.get("x-request-id", "")))
            self.service.active += 1
            status = 200
            try:
                if self._key is not None and method not in _OPEN and not holds_key(given, self._key):
                    raise RequestError(401, "an API key is needed: metadata authorization: Bearer KEY")
                return await answer(asked, request, context)
            except Exception as error:
                verdict = self.service.refused(asked, error)
                status = verdict.status
                await context.abort(
                    _STATUS.get(status, grpc.StatusCode.INTERNAL), verdict.message, tuple(verdict.headers.items())
                )
            finally:
                self.service.active -= 1
                self.service.metrics.answered(asked.model, "grpc", status)

        return handle

    async def _server_live(self, asked: Asked, request: Any, context: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _server_ready(self, asked: Asked, request: Any, context: Any) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self.service.ready)

    async def _server_metadata(self, asked: Asked, request: Any, context: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](name="keras_resnets", version=VERSION, extensions=EXTENSIONS)

    async def _model_ready(self, asked: Asked, request: Any, context: Any) -> Any:
        self.service.repository.get(request.name, request.version or None)
        return MESSAGES["ModelReadyResponse"](ready=not self.service.draining)

    async def _model_metadata(self, asked: Asked, request: Any, context: Any) -> Any:
        model = self.service.repository.get(request.name, request.version or None)
        return MESSAGES["ModelMetadataResponse"](**metadata_of(model, self.service.repository.versions(model.name)))

    async def _model_config(self, asked: Asked, request: Any, context: Any) -> Any:
        config = config_of(self.service.repository.get(request.name, request.version or None))
        for tensor in (*config["input"], *config["output"]):
            tensor["data_type"] = DATA_TYPES[tensor["data_type"].removeprefix("TYPE_")]
        for group in config["instance_group"]:
            group["kind"] = KINDS[group["kind"]]
        return MESSAGES["ModelConfigResponse"](config=config)

    async def _model_statistics(self, asked: Asked, request: Any, context: Any) -> Any:
        rows = await self.service.statistics(request.name or None, request.version or None)
        return MESSAGES["ModelStatisticsResponse"](model_stats=rows)

    async def _repository_index(self, asked: Asked, request: Any, context: Any) -> Any:
        return MESSAGES["RepositoryIndexResponse"](models=self.service.repository.index(request.ready))

    async def _repository_model_load(self, asked: Asked, request: Any, context: Any) -> Any:
        await self.service.load(request.model_name, {item.key: None for item in request.parameters})
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def _repository_model_unload(self, asked: Asked, request: Any, context: Any) -> Any:
        await self.service.unload(request.model_name, {item.key: None for item in request.parameters})
        return MESSAGES["RepositoryModelUnloadResponse"]()

    async def _model_infer(self, asked: Asked, request: Any, context: Any) -> Any:
        left = context.time_remaining()
        model, deadline = self.service.admit(asked, request.model_name, request.model_version, left)
        parsed = parse_message(request, model.inputs, model.outputs)
        if parsed.timeout is not None:
            deadline = min(deadline, asked.began + parsed.timeout)
        answer = await model.infer(parsed.inputs, deadline)  # grpc.aio cancels this when the client does
        message = MESSAGES["ModelInferResponse"](model_name=model.name, model_version=model.version, id=parsed.id or "")
        for wanted in parsed.outputs:
            values = answer.outputs[wanted.name]
            if wanted.classes:
                values = best_classes(values, wanted.classes, model.labels)
            message.outputs.add(name=wanted.name, datatype=datatype(values), shape=values.shape)
            message.raw_output_contents.append(bytes(to_bytes(values)))
        self.service.succeeded(asked, model, answer)
        return message


def parse_message(message: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> InferRequest:
    """Read and check a ModelInferRequest.

    Raises:
        ProtocolError: when a tensor is not what the model takes.
    """
    specs = {spec.name: spec for spec in inputs}
    tensors: dict[str, NDArray[Any]] = {}
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise ProtocolError(f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs")
    for number, item in enumerate(message.inputs):
        spec = specs.get(item.name)
        if spec is None:
            raise ProtocolError(f"the model has no input {item.name}; it has {', '.join(specs)}")
        if item.name in tensors:
            raise ProtocolError(f"inputs name {item.name} more than once")
        shape = list(item.shape)
        if min(shape, default=0) < 0:
            raise ProtocolError(f"input {item.name} needs a shape of whole numbers from 0")
        check_tensor(spec, item.datatype, shape)
        if raw and item.HasField("contents"):
            raise ProtocolError(f"input {item.name} has contents and raw_input_contents")
        tensors[item.name] = from_bytes(raw[number], spec, shape) if raw else _of_contents(item.contents, spec, shape)
    if missing := [name for name in specs if name not in tensors]:
        raise ProtocolError(f"the model's input {', '.join(missing)} is missing")
    timeout = _parameter(message.parameters, "timeout", 0)
    if timeout < 0:
        raise ProtocolError("timeout must be a whole number of microseconds")
    return InferRequest(message.id or None, tensors, _outputs(message, outputs), timeout / 1e6 or None)


def _of_contents(contents: Any, spec: TensorSpec, shape: Sequence[int]) -> NDArray[Any]:
    if spec.datatype not in _CONTENTS:
        raise ProtocolError(f"input {spec.name}: {spec.datatype} comes in raw_input_contents alone")
    return from_numbers(np.array(getattr(contents, _CONTENTS[spec.datatype])), spec, shape)


def _outputs(message: Any, specs: Sequence[TensorSpec]) -> tuple[RequestedOutput, ...]:
    known = [spec.name for spec in specs]
    wanted: list[RequestedOutput] = []
    for item in message.outputs:
        if item.name not in known:
            raise ProtocolError(f"the model has no output {item.name}; it has {', '.join(known)}")
        if item.name in [one.name for one in wanted]:
            raise ProtocolError(f"outputs name {item.name} more than once")
        classes = _parameter(item.parameters, "classification", 0)
        if classes < 0:
            raise ProtocolError("classification must be a whole number from 0")
        wanted.append(RequestedOutput(item.name, True, classes))
    return tuple(wanted) or tuple(RequestedOutput(name, True, 0) for name in known)


def _parameter(parameters: Any, key: str, default: int) -> int:
    for item in parameters:
        if item.key == key:
            choice = item.value.WhichOneof("parameter_choice")
            if choice not in ("int64_param", "uint64_param"):
                raise ProtocolError(f"{key} must be a whole number")
            return int(getattr(item.value, choice))
    return default


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
