"""What answers a scenario's requests: a bundle in this process, or a server over HTTP or gRPC."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from keras_resnets.bundle import Bundle
from keras_resnets.extras import extra
from keras_resnets.golden import Golden

from .client import Client, ServerError
from .messages import MESSAGES, SERVICE
from .protocol import DATATYPES, datatype, to_bytes
from .served import ServedModel, Settings

with extra("serve"):
    import grpc

Done = Callable[[NDArray[Any] | Exception], None]
_BATCHES = 3  # that wait for workers: fewer would leave these idle, more would only fill memory
_CONNECTIONS = 32  # the client keeps no more
_ROWS = 16


def take(samples: Golden, rows: Sequence[int]) -> NDArray[Any]:
    """The tensor of some samples; of one alone it is no copy."""
    return samples.tensor[rows[0] : rows[0] + 1] if len(rows) == 1 else samples.tensor[list(rows)]


def fault(samples: Golden, rows: Sequence[int], got: NDArray[Any]) -> str | None:
    """What is wrong with an answer for these samples, if anything."""
    want = samples.expected[list(rows)]
    if got.shape != want.shape:
        return f"an answer has the shape {list(got.shape)} instead of {list(want.shape)}"
    apart = np.abs(got - want).reshape(len(rows), -1).max(axis=1) / samples.scale
    worst = int(apart.argmax())  # NaN, where there is one
    if apart[worst] <= samples.tolerance:
        return None
    return f"an answer for sample {rows[worst]} is off by {apart[worst]:.2e} of the largest output"


class Target(Protocol):
    """What scenarios put under load.

    Attributes:
        name: for people.
        samples: see there.
        rows: of a request at most.
        at_once: rows of all the requests that have no answer yet, at most.
    """

    name: str
    samples: Golden
    rows: int
    at_once: int

    def ask(self, tensor: NDArray[Any], done: Done) -> None:
        """Begin a request; `done` is called once, on any thread, with its output or with what went wrong."""

    def close(self) -> None:
        """Answer what was asked, and stop."""


class PooledTarget:
    """A function that takes a tensor and returns the output, on a few threads.

    Args:
        name, samples, rows: see `Target`.
        answer: the function; what it raises makes its request a failed one.
        threads: calls at once.
    """

    def __init__(
        self,
        name: str,
        samples: Golden,
        answer: Callable[[NDArray[Any]], NDArray[Any]],
        *,
        threads: int = _CONNECTIONS,
        rows: int = _ROWS,
    ) -> None:
        self.name, self.samples, self.rows = name, samples, rows
        self.at_once = max((1 + _BATCHES) * rows, threads)
        self._answer = answer
        self._pool = ThreadPoolExecutor(threads)

    def ask(self, tensor: NDArray[Any], done: Done) -> None:
        """See `Target`."""
        self._pool.submit(self._work, tensor, done)

    def close(self) -> None:
        """See `Target`."""
        self._pool.shutdown()

    def _work(self, tensor: NDArray[Any], done: Done) -> None:
        try:
            got: NDArray[Any] | Exception = self._answer(tensor)
        except Exception as error:
            got = error
        done(got)


class EngineTarget:
    """A bundle in this process, behind the server's batcher: what the server does, without its protocols.

    Args:
        bundle: its folder.
        settings: see there; its queue and deadline are not used, so what waits is counted and not refused.

    Raises:
        BundleError, ProviderError: see `ServedModel`.
    """

    def __init__(self, bundle: str | Path, settings: Settings | None = None) -> None:
        settings = replace(settings or Settings(), max_queue=2**31)
        self._model = ServedModel("model", "1", Path(bundle), settings)
        if self._model.engine is None:
            raise ValueError(f"{bundle} is not a bundle: only these say what the right answers are")
        engine = self._model.engine
        manifest = engine.bundle.manifest
        self._input, self._output = manifest.input_name, manifest.output_name
        self.name = f"{Path(bundle).name}, {engine.variant.precision}, {settings.provider}"
        self.samples = engine.golden
        self.rows = settings.max_batch
        self.at_once = (settings.workers + _BATCHES) * settings.max_batch
        self._loop = asyncio.new_event_loop()
        self._asked: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine-target", daemon=True)
        self._thread.start()

    def ask(self, tensor: NDArray[Any], done: Done) -> None:
        """See `Target`."""
        self._loop.call_soon_threadsafe(self._begin, tensor, done)

    def close(self) -> None:
        """See `Target`."""
        self._model.close()  # its answers are on the loop before it ends
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _begin(self, tensor: NDArray[Any], done: Done) -> None:
        task = self._loop.create_task(self._answer(tensor, done))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _answer(self, tensor: NDArray[Any], done: Done) -> None:
        try:
            answer = await self._model.infer({self._input: tensor}, deadline=math.inf)
            got: NDArray[Any] | Exception = answer.outputs[self._output]
        except Exception as error:
            got = error
        done(got)


class HttpTarget(PooledTarget):
    """A server of the Open Inference Protocol, over HTTP with binary tensors.

    Args:
        bundle: of what it serves; the golden sample is asked for.
        url, model: the server's, and what the bundle is called there.
        precision: that it serves: the tolerance is of that one.
        connections: requests at once.
        rows: of a request at most; as many as the server takes into one batch.
        api_key: that the server wants.
        timeout: seconds after which a request has failed.

    Raises:
        BundleError: see `Golden.of`.
    """

    def __init__(
        self,
        bundle: str | Path,
        url: str,
        model: str,
        *,
        precision: str | None = None,
        connections: int = _CONNECTIONS,
        rows: int = _ROWS,
        api_key: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        opened = Bundle.open(bundle)
        manifest = opened.manifest
        # A second attempt would hide that the server refused the first one.
        client = Client(url, api_key=api_key, timeout=timeout, retries=0)

        def answer(tensor: NDArray[Any]) -> NDArray[Any]:
            return client.infer(model, {manifest.input_name: tensor})[manifest.output_name]

        name = f"{model} at {client.url}"
        super().__init__(name, Golden.of(opened, opened.variant(precision)), answer, threads=connections, rows=rows)


class GrpcTarget(PooledTarget):
    """A server of the Open Inference Protocol, over gRPC; the arguments are `HttpTarget`'s but `address`, host:port."""

    def __init__(
        self,
        bundle: str | Path,
        address: str,
        model: str,
        *,
        precision: str | None = None,
        connections: int = _CONNECTIONS,
        rows: int = _ROWS,
        api_key: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        opened = Bundle.open(bundle)
        self._manifest, self._model, self._address, self._timeout = opened.manifest, model, address, timeout
        self._key = (("x-api-key", api_key),) if api_key else None
        self._channel = grpc.insecure_channel(
            address, [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        )
        self._call = self._channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            lambda message: message.SerializeToString(),
            MESSAGES["ModelInferResponse"].FromString,
        )
        name, samples = f"{model} at gRPC {address}", Golden.of(opened, opened.variant(precision))
        super().__init__(name, samples, self._infer, threads=connections, rows=rows)

    def close(self) -> None:
        """See `Target`."""
        super().close()
        self._channel.close()

    def _infer(self, tensor: NDArray[Any]) -> NDArray[Any]:
        message = MESSAGES["ModelInferRequest"](
            model_name=self._model, raw_input_contents=[bytes(to_bytes(tensor))]
        )  # fmt: skip
        message.inputs.add(name=self._manifest.input_name, datatype=datatype(tensor), shape=tensor.shape)
        try:
            answer = self._call(message, timeout=self._timeout, metadata=self._key)
        except grpc.RpcError as error:
            raise ServerError(f"{self._address}: {error.code().name}: {error.details()}") from None
        names = [item.name for item in answer.outputs]
        number = names.index(self._manifest.output_name)
        item = answer.outputs[number]
        kind = np.dtype(DATATYPES[item.datatype][0]).newbyteorder("<")
        return np.frombuffer(answer.raw_output_contents[number], kind).reshape(item.shape)
