"""One of several processes of a server: it answers the connections that the parent hands to it.

It is told how by what its parent writes to its standard input, and where the parent is by its one argument, the
descriptor of a channel. Where the channel ends it drains and exits; signals are the parent's to judge.
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from .channel import CLOSED, CONNECTION, FAILED, FIGURES, LISTENING, READY, Channel, Message, send_text
from .figures import Figures
from .served import Settings
from .server import ServeError, Server, ServerOptions, configured, log_to_stderr, make_service, run
from .siblings import Siblings, tell

_AGAIN = 0.1  # seconds until what did not fit into the channel is tried again


@dataclass(frozen=True)
class Job:
    """What a process does.

    Args:
        number: of the process, from 0.
        named, folder, settings, options: see `serve`.
        as_json, level: of the log.
        before: what the process counted that had the number before.
    """

    number: int
    named: Sequence[str]
    folder: Path | None
    settings: Settings
    options: ServerOptions
    as_json: bool = False
    level: int = 20
    before: Figures | None = None


class Member(Server):
    """A server that is given its connections; see the module.

    Args:
        job, channel: see there.
    """

    def __init__(self, job: Job, channel: Channel) -> None:
        service = make_service(job.named, job.folder, job.settings, job.options)
        service.siblings = Siblings(channel, job.number, job.settings.processes)
        service.metrics.before = job.before
        config = configured(service, job.options)
        super().__init__(config, service, job.options)
        self.protocol = _telling(config.http_protocol_class, self.connection_lost)
        self._channel, self._closed, self._telling = channel, 0, False

    async def startup(self, sockets: Any = None) -> None:
        self.servers, self.started = [], True
        self._channel.listen(self._take, self._end)
        self._channel.send(LISTENING)
        self._loading = asyncio.get_running_loop().create_task(self._load())

    async def _load(self) -> None:
        try:
            await self.service.repository.load_all()
            await self._start_grpc(shared=True)  # it has no way to refuse for now
        except Exception as error:
            self.failed, self.should_exit = error, True
            return
        self._channel.send(READY)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The parent has the signal too, or should have had it."""

    def _take(self, message: Message) -> None:
        if message.descriptor is None:  # there are no more to be had
            if message.kind == CONNECTION:
                self.connection_lost()
        elif message.kind == CONNECTION:
            self.take_in(socket.socket(fileno=message.descriptor))
        elif message.kind == FIGURES:
            self.do(tell(self.service.metrics.figures(), message.descriptor))

    def _end(self) -> None:
        """The server stops, or the parent has gone."""
        super().handle_exit(signal.SIGTERM, None)

    def connection_lost(self) -> None:
        """One is closed, or never was one: the parent counts them."""
        self._closed += 1
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell_closed)

    def _tell_closed(self) -> None:
        self._telling = not self._channel.send(CLOSED, self._closed % 2**32)
        if self._telling and not self.service.draining:
            asyncio.get_running_loop().call_later(_AGAIN, self._tell_closed)


def _telling(protocol: Any, closed: Any) -> Any:
    """A protocol that says when its connection ended."""

    class Telling(protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            closed()

    return Telling


def main() -> None:
    """Serve, as the parent says."""
    end = socket.socket(fileno=int(sys.argv[1]))
    end.set_inheritable(False)
    channel = Channel(end)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    job: Job = pickle.load(sys.stdin.buffer)
    log_to_stderr(job.as_json, job.level, job.number)
    try:
        run(Member(job, channel))
    except (ServeError, ValueError) as error:
        send_text(channel, FAILED, str(error))
        sys.exit(1)
