"""What the parent of several server processes and each of them say to each other: five bytes, and maybe a descriptor.

A channel is one end of a pair of Unix sockets. Its end says the most: to a process that its server stops, or that the
parent was killed; to the parent that the process has gone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

_FORM = struct.Struct("!cI")
_AT_ONCE = 64  # messages, between which the event loop's other work has its turn

# From the parent:
CONNECTION = b"c"  # answer the client behind this descriptor
FIGURES = b"f"  # write your figures to this descriptor
# From a process:
LISTENING = b"l"  # it takes connections, and is loading
READY = b"r"
CLOSED = b"d"  # so many of its connections have ended since it began
ASK = b"a"  # let the process of this number write its figures to this descriptor
KEEP = b"k"  # the figures of all, in the file behind this descriptor
FAILED = b"e"  # it cannot start: why is in the pipe behind this descriptor


class Message(NamedTuple):
    """What arrived; whoever takes it closes the descriptor."""

    kind: bytes
    number: int
    descriptor: int | None


class Channel:
    """One end; see the module. Neither sending nor receiving waits.

    Args:
        end: of a pair of Unix sockets.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end

    def send(self, kind: bytes, number: int = 0, descriptor: int | None = None) -> bool:
        """Send a message; returns False where the other side has gone or does not read. The descriptor stays open."""
        descriptors = [] if descriptor is None else [descriptor]
        try:
            socket.send_fds(self._end, [_FORM.pack(kind, number)], descriptors)
        except OSError:
            return False
        return True

    def messages(self) -> Iterator[Message]:
        """What has arrived.

        Raises:
            EOFError: when the other side has gone, or says no more.
        """
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._end, _FORM.size, 1)
            except BlockingIOError:
                return
            except OSError:  # the other side was killed
                data, descriptors = b"", []
            if not data:
                raise EOFError
            kind, number = _FORM.unpack(data)
            yield Message(kind, number, descriptors[0] if descriptors else None)

    def listen(self, take: Callable[[Message], None], end: Callable[[], None]) -> None:
        """Let the running event loop call `take` with each message, and `end` once when there will be no more."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                for message in islice(self.messages(), _AT_ONCE):
                    take(message)
            except EOFError:
                loop.remove_reader(self._end)
                end()

        loop.add_reader(self._end, read)

    def read_rest(self, take: Callable[[Message], None]) -> None:
        """Call `take` with each message of another side that has gone."""
        try:
            for message in self.messages():
                take(message)
        except EOFError:
            pass

    def say_no_more(self) -> None:
        """Let the other side read what was sent, and then the end."""
        with suppress(OSError):  # it has gone
            self._end.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close it; the event loop forgets it."""
        asyncio.get_running_loop().remove_reader(self._end)
        self._end.close()


def send_text(channel: Channel, kind: bytes, text: str) -> None:
    """Send a text, in a pipe that holds it; what is longer is cut."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.write(writing, text.encode()[:4096])
    os.close(writing)
    channel.send(kind, 0, reading)
    os.close(reading)


def read_text(descriptor: int) -> str:
    """What `send_text` sent."""
    with open(descriptor, encoding="utf-8", errors="replace") as pipe:
        return pipe.read()
