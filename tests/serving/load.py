"""Load for a server under test, cheap enough to share its cores: one fixed request, written to raw connections."""

import asyncio
import re
import time
from typing import NamedTuple

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Told(NamedTuple):
    """An answer's status, and the seconds it took; status 0 where the connection broke."""

    status: int
    seconds: float


def post(address, path, body):
    """The bytes of a POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body.encode()


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self):
        self.transport = self.answered = None
        self._got = b""

    def connection_made(self, transport):
        self.transport = transport

    def ask(self, request):
        """Send it; returns a future of the status."""
        self.answered = asyncio.get_running_loop().create_future()
        if self.transport.is_closing():
            self.answered.set_result(0)
        else:
            self.transport.write(request)
        return self.answered

    def data_received(self, data):
        self._got += data
        head, gap, rest = self._got.partition(b"\r\n\r\n")
        if gap and len(rest) >= int(_LENGTH.search(head).group(1)):
            self._got = b""
            self.answered.set_result(int(head[9:12]))

    def connection_lost(self, error):
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(0)


class Load:
    """Asks one request again and again of a server at "host:port"; connections are kept, and made when none is free."""

    def __init__(self, address, request):
        self._where, self._request = address.split(":"), request
        self._free, self.results = [], []

    async def one(self):
        """Ask once; again where a connection that was kept turns out to be closed."""
        began, status = time.monotonic(), 0
        while self._free and not status:
            connection = self._free.pop()
            status = await connection.ask(self._request)
        if not status:
            _, connection = await asyncio.get_running_loop().create_connection(_Connection, *self._where)
            status = await connection.ask(self._request)
        self.results.append(Told(status, time.monotonic() - began))
        if status:
            self._free.append(connection)

    def close(self):
        """Close the connections."""
        for connection in self._free:
            connection.transport.close()


async def closed_loop(address, request, clients, seconds):
    """So many clients, each asking again as soon as it has an answer; what they were told."""
    load, end = Load(address, request), time.monotonic() + seconds

    async def client():
        while time.monotonic() < end:
            await load.one()

    await asyncio.gather(*(client() for _ in range(clients)))
    load.close()
    return load.results


async def open_loop(address, request, rate, seconds):
    """So many requests a second, whatever becomes of them; what they were told."""
    load, tasks, began = Load(address, request), set(), time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        task = asyncio.create_task(load.one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    load.close()
    return load.results
