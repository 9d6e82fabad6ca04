"""HTTP requests as a server may meet them: bodies with limits, compressed or not, and clients that go away."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from keras_resnets.extras import extra

from .service import RequestError

with extra("serve"):
    from starlette.datastructures import Headers
    from starlette.types import Receive

T = TypeVar("T")

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_SMALL = 128 * 1024  # bytes
_PATIENCE = 0.1  # seconds before a client is watched: most answers are faster, and watching costs


class ClientGoneError(RequestError):
    """Nobody waits for the answer any more; the status is what nginx calls that."""

    def __init__(self) -> None:
        super().__init__(499, "the client has gone")
        self.cause = "disconnected"


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body, decompressed.

    Raises:
        RequestError: 413 when it has more bytes than the limit, before or after decompression; 400 when it is
            corrupt; 415 for another compression than gzip and deflate.
        ClientGoneError: when the client left before its end.
    """
    length = headers.get("content-length")
    if length is not None and length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        if not message.get("more_body", False):
            break
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding in ("identity", ""):
        return bytes(body)
    if coding not in ("gzip", "deflate"):
        raise RequestError(415, f"the Content-Encoding {coding} is not known; there are gzip and deflate")
    return await off_the_loop(len(body), _decompressed, body, limit)


def _decompressed(body: bytes, limit: int) -> bytes:
    """At most so many bytes, however many a few would become."""
    decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        whole = decompressor.decompress(body, limit + 1)
    except zlib.error as error:
        raise RequestError(400, f"the body cannot be decompressed: {error}") from None
    if len(whole) > limit:
        raise _too_large(limit)
    if not decompressor.eof or decompressor.unused_data:
        raise RequestError(400, "the compressed body is truncated, or more follows it")
    return whole


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the body is larger than {limit} bytes", connection="close")


async def off_the_loop(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """Do work that takes time with the bytes it is about: where they are many, on a thread, while others are served."""
    if size <= _SMALL:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Await work that is cancelled when the client disconnects; the body must have been read.

    Raises:
        ClientGoneError: when it does.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    watcher: asyncio.Task[None] | None = None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(_PATIENCE, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if gone:
            raise ClientGoneError from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
