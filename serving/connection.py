"""Connections with limits, which uvicorn's HTTP protocol has not: for clients that dribble, or never read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from keras_resnets.extras import extra

with extra("serve"):
    import orjson
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MUCH = 64 * 1024  # bytes that are not worth copying
_WHOLE = 4 * 2**20  # bytes of a body that the application gets at once


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection, and all of them, may take.

    Args:
        connections: at once; further ones get 503.
        header_seconds: from a connection's or a request's first byte to the end of its headers.
        body_seconds: from there to the end of its body.
        write_seconds: that a client may leave a response unread.
        header_bytes: of a request line and its headers.
    """

    connections: int = 1024
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    write_seconds: float = 60.0
    header_bytes: int = 64 * 1024


def limited(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with these limits."""
    return type("LimitedProtocol", (_LimitedProtocol,), {"limits": limits})


class _JoiningTransport:
    """A transport that sends in one packet what is written in one turn of the event loop: an answer's head and body.

    benchmarks/serve.py shows what that is worth: the client is woken once, not twice.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self.is_closing = transport.is_closing  # asked for every request, for which __getattr__ is slow
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send at the end of this turn; much at once, with what waits in front of it."""
        if len(data) > _MUCH:
            self.flush()
            self._transport.write(data)
            return
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held += data

    def close(self) -> None:
        """Close when all is sent."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Send what waits."""
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)


class _LimitedProtocol(HttpToolsProtocol):
    limits: ConnectionLimits

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._in_headers, self._header_bytes = True, 0
        self._untimed: tuple[float, str] | None = None  # what the client has begun, and no timer knows of yet
        self._parts: list[bytes] | None = None  # of a body that is gathered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._joining = _JoiningTransport(transport, self.loop)
        super().connection_made(self._joining)  # type: ignore[arg-type]
        if len(self.connections) > self.limits.connections:
            self._refuse(503, "too many connections")
        else:
            self._within(self.limits.header_seconds, "the request's headers took too long")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._untimed is not None:  # most requests are here whole by now, and need no timer
            self._within(*self._untimed)
        # What came with the end of the headers is the body's.
        if self._in_headers and self._header_bytes > self.limits.header_bytes and not self.transport.is_closing():
            self._refuse(431, f"the request's headers are larger than {self.limits.header_bytes} bytes")

    def on_message_begin(self) -> None:
        self._in_headers, self._header_bytes = True, 0
        self._untimed = self.limits.header_seconds, "the request's headers took too long"
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._untimed = self.limits.body_seconds, "the request's body took too long"
        length = dict(self.headers).get(b"content-length")
        self._parts = [] if length is not None and int(length) <= _WHOLE else None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Gather a body whose size is known: the application is woken once, and reading never pauses for it."""
        if self._parts is None:
            super().on_body(body)
        elif not self.cycle.response_complete:  # else nobody wants it any more
            self._parts.append(body)

    def on_message_complete(self) -> None:
        self._stop_timer()
        if self._parts:
            self.cycle.body = b"".join(self._parts)  # type: ignore[assignment]
            self._parts = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Send it now, not at the end of this turn of the event loop."""
        self._joining.flush()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not read what it asked for."""
        super().pause_writing()
        self._stop_write_timer()
        self._write_timer = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        self._stop_write_timer()
        super().resume_writing()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed is no request that the application could answer."""
        self._refuse(400, "this is not a valid HTTP request")

    def _within(self, seconds: float, complaint: str) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._refuse, 408, complaint)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._untimed = None

    def _refuse(self, status: int, message: str) -> None:
        """Answer in the application's stead, where it has not begun to, and hang up."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = orjson.dumps({"error": message})
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
