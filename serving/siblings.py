"""What the processes of one server ask each other: their figures, so that each can tell those of the whole server."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import tempfile
from typing import IO

from keras_resnets.extras import extra

from .channel import ASK, KEEP, Channel
from .figures import GONE, Figures, total

with extra("serve"):
    import orjson

_LOG = logging.getLogger(__name__)
PATIENCE = 1.0  # seconds that a process may take to tell its figures


class Siblings:
    """The other processes, as one of them sees them.

    Args:
        channel: to the parent, which brings the processes together.
        own: the number of this process.
        count: of all, which are numbered from 0.
    """

    def __init__(self, channel: Channel, own: int, count: int) -> None:
        self._channel, self._others = channel, [number for number in range(count) if number != own]

    async def whole(self, own: Figures) -> tuple[Figures, dict[str, int]]:
        """The sums over all processes that answer in time; how many these are, and how many others.

        Args:
            own: of this process.
        """
        told = await asyncio.gather(*(self._ask(number) for number in self._others))
        figures = [own, *(one for one in told if one is not None)]
        self._keep(figures)
        running = sum(one["pid"] != GONE for one in figures)
        return total(figures), {"counted": running, "silent": len(told) + 1 - running}

    async def _ask(self, number: int) -> Figures | None:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                asked = self._channel.send(ASK, number, theirs.fileno())
            try:
                data = await asyncio.wait_for(_read(ours), PATIENCE) if asked else b""
            except asyncio.TimeoutError:
                data = b""
        try:
            figures: Figures = orjson.loads(data)
        except orjson.JSONDecodeError:
            _LOG.warning("process %d does not tell what it counted: it is missing from metrics and statistics", number)
            return None
        return figures

    def _keep(self, figures: list[Figures]) -> None:
        """The parent keeps what was told: whoever is started in place of one that died goes on from there."""
        with _memory_file() as file:
            file.write(orjson.dumps(figures))
            file.flush()
            self._channel.send(KEEP, 0, file.fileno())


def _memory_file() -> IO[bytes]:
    if sys.platform == "linux":  # where a container may have no folder to write to
        return open(os.memfd_create("figures"), "w+b")  # noqa: PTH123
    return tempfile.TemporaryFile()


async def tell(figures: Figures, descriptor: int) -> None:
    """Answer a sibling that asks behind this descriptor."""
    with socket.socket(fileno=descriptor) as asker:
        asker.setblocking(False)
        try:
            sending = asyncio.get_running_loop().sock_sendall(asker, orjson.dumps(figures))
            await asyncio.wait_for(sending, PATIENCE)
        except (OSError, asyncio.TimeoutError):
            pass  # it asks no more


async def _read(end: socket.socket) -> bytes:
    end.setblocking(False)
    parts = []
    while part := await asyncio.get_running_loop().sock_recv(end, 2**16):
        parts.append(part)
    return b"".join(parts)
