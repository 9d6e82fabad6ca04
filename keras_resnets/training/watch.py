"""Workers notice when one of them does not live any more, whatever the others are doing.

TensorFlow 2.21 alone (measured on CPUs; docs/distributed.md has the table): a worker killed in a collective
operation ends the others' at once, with an error about a closed socket; killed at another moment it is noticed in
the next collective, however long that takes; one that never starts is waited for without end, or for an hour.

Here the chief hears from every other worker over one connection each, and tells all when one is lost. A thread
sends and reads signs of life, so that long compilations and evaluations raise no alarm, and ends the process even
while its main thread is stuck.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NoReturn

from keras_resnets.training.cluster import Cluster
from keras_resnets.training.config import TrainingError, TrainingStopped

PEER_TIMEOUT = 120.0  # seconds
_LONGEST_INTERVAL = 5.0  # seconds between signs of life, at most
_START_TIMEOUTS = 5  # workers may start that many timeouts apart: pods and nodes take their time
_GRACE = 2.0  # seconds in which an error that all workers meet is reported by each of them as its own
_FAULT_TOLD = 10.0  # seconds in which workers that come late hear what is wrong
_REMINDER = 60.0  # seconds between messages about who is missing
_LONGEST_MESSAGE = 65_536  # bytes
_RESTART = "this worker stops; start all workers again to go on from the last checkpoint"
# What TensorFlow's collective operations raise when a peer is gone: CANCELLED, DEADLINE_EXCEEDED, ABORTED, UNAVAILABLE.
_GONE = (1, 4, 10, 14)


class PeerError(TrainingError):
    """Another worker does not start, or is gone; starting all of them again helps."""

    exit_status = os.EX_TEMPFAIL if hasattr(os, "EX_TEMPFAIL") else 75


class Peers:
    """The other workers, and a watch over them.

    `meet` waits until all are there. From then on this process ends with status 75 (EX_TEMPFAIL) and a message when
    another one dies (at once: its connection closes), is silent for `timeout` seconds (stopped, or its machine is
    gone), or fails with an error. As a context manager it tells the others how this worker leaves: by itself or by
    a signal that all obey, after which nobody waits for it any more, or with an error.

    Args:
        cluster: who they are.
        replicas: that this process has; all workers must have as many.
        timeout: seconds without a sign of life after which a worker is given up.
    """

    def __init__(self, cluster: Cluster, replicas: int = 1, timeout: float = PEER_TIMEOUT) -> None:
        if not timeout > 0:
            raise TrainingError(f"peer_timeout must be positive, not {timeout}")
        self.cluster, self.replicas, self.timeout = cluster, replicas, timeout
        self._links: dict[int, _Link] = {}
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None

    def meet(self) -> None:
        """Wait for the others, and start the watch.

        Raises:
            PeerError: when one does not come within five timeouts.
            TrainingError: when the workers were given different clusters, or have different numbers of replicas.
        """
        if len(self.cluster.workers) == 1:
            return
        seconds = _START_TIMEOUTS * self.timeout
        if self.cluster.index == 0:
            self._links = _Reception(self.cluster, self.replicas).receive(_Patience(seconds))
        else:  # a little more patient than the chief, who knows whom to blame
            self._links = {0: _join(self.cluster, self.replicas, _Patience(seconds + self.timeout))}
        self._thread = threading.Thread(target=self._watch, name="keras_resnets peers", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        # A signal stops all workers after the same step.
        if error is None or isinstance(error, TrainingStopped | KeyboardInterrupt | SystemExit):
            self._end("bye", "")
            return
        code = getattr(error, "error_code", None) if type(error).__module__.startswith("tensorflow") else None
        if self._thread and code is not None:
            # Probably the consequence of another worker's end, which the watch reports better, ending the process.
            self._thread.join(self.timeout + 2 * self._interval() if code in _GONE else _GRACE)
        self._end("failed", _summary(error))
        if code in _GONE:
            raise PeerError(f"another worker has left, or cannot be reached ({_summary(error)}); {_RESTART}") from error

    def _at_exit(self) -> None:
        """For a strategy that was used without the watch: not every end is an error."""
        error = getattr(sys, "last_value", None)  # what ended the program
        self._end(*(("failed", _summary(error)) if isinstance(error, Exception) else ("bye", "")))

    def _end(self, kind: str, text: str) -> None:
        """Stop the watch, and say why."""
        atexit.unregister(self._at_exit)
        self._leaving.set()
        if self._thread:
            self._thread.join()
            _part(self._links.values(), kind, text)
        self._links, self._thread = {}, None

    def _interval(self) -> float:
        return min(self.timeout / 6, _LONGEST_INTERVAL)

    def _watch(self) -> None:
        before = sent = time.monotonic()
        while self._links and not self._leaving.is_set():
            for index in _readable(self._links, min(self._interval(), 0.2)):
                if index in self._links:
                    self._hear(index)
            now = time.monotonic()
            if now - before > self.timeout / 2:  # this process itself was suspended, and accuses nobody
                for link in self._links.values():
                    link.heard = now
            before = now
            if now - sent > self._interval():
                sent = now
                for link in self._links.values():
                    link.send("beat")
            for index, link in list(self._links.items()):
                if now - link.heard > self.timeout:
                    self._alarm(index, f"has not answered for {self.timeout:.0f} s")

    def _hear(self, index: int) -> None:
        try:
            messages = self._links[index].receive()
        except ConnectionError:
            self._alarm(index, "is gone")
            return
        for kind, text in messages:
            if kind == "bye":
                self._links.pop(index).close()
                return
            if kind == "failed":
                self._alarm(index, f"failed ({text})", _GRACE)
            if kind == "stop":
                self._stop(text)
            if kind == "failing":
                self._stop(text, _GRACE)

    def _alarm(self, index: int, what: str, grace: float = 0.0) -> None:
        """Tell the others, if this is the chief, and end the process."""
        message = f"{self.cluster.name(index)} {what}; {_RESTART}"
        others = [link for other, link in self._links.items() if other != index]
        _part(others, "failing" if grace else "stop", message)
        self._links = {}
        self._stop(message, grace)

    def _stop(self, message: str, grace: float = 0.0) -> None:
        if not self._leaving.wait(grace):
            _exit(message)


class _Link:
    """A connection that carries lines of (kind, text)."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket, self.heard, self._buffer = connection, time.monotonic(), b""

    def send(self, kind: str, text: str = "") -> None:
        # A full buffer belongs to a peer that is silent, a closed one to a peer that is gone: reading tells.
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps([kind, text]).encode() + b"\n")

    def receive(self) -> list[tuple[str, str]]:
        """What has arrived.

        Raises:
            ConnectionError: when the other side is gone, or is none of ours.
        """
        try:
            data = self.socket.recv(_LONGEST_MESSAGE)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ConnectionError(str(error)) from error
        if not data:
            raise ConnectionError("closed")
        self.heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            if len(self._buffer) > _LONGEST_MESSAGE:
                raise ValueError("endless")
            return [(str(kind), str(text)) for kind, text in map(json.loads, lines)]
        except (ValueError, TypeError, RecursionError) as error:
            raise ConnectionError(f"not understood: {error}") from error

    def close(self) -> None:
        self.socket.close()


class _Patience:
    """A deadline, and reminders on standard error of what is waited for."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._next = time.monotonic() + _REMINDER / 6

    def left(self) -> bool:
        return time.monotonic() < self._end

    def shorten(self, seconds: float) -> None:
        self._end = min(self._end, time.monotonic() + seconds)

    def remind(self, missing: str) -> None:
        if time.monotonic() > self._next:
            self._next = time.monotonic() + _REMINDER
            print(f"waiting for {missing}", file=sys.stderr, flush=True)


class _Reception:
    """The chief's: takes the other workers' connections in, until all are there."""

    def __init__(self, cluster: Cluster, replicas: int) -> None:
        self.cluster, self.replicas = cluster, replicas
        self._links: dict[int, _Link] = {}
        self._strangers: dict[int, _Link] = {}  # have not said who they are; numbered as they came
        self._came = 0
        self._refused: list[_Link] = []
        self._faults: list[str] = []

    def receive(self, patience: _Patience) -> dict[int, _Link]:
        with _listen(self.cluster, patience) as server:
            self._wait(server, patience)
        if self._faults:
            kind, error = ("unfit", TrainingError) if self._refused else ("late", PeerError)
            _part([*self._links.values(), *self._refused, *self._strangers.values()], kind, self._faults[0])
            raise error(self._faults[0])
        for link in self._links.values():
            link.heard = time.monotonic()
            link.send("go")
        for stranger in self._strangers.values():
            stranger.close()
        return self._links

    def _wait(self, server: socket.socket, patience: _Patience) -> None:
        while len(missing := self._missing()) > len(self._refused):
            names = ", ".join(self.cluster.name(index) for index in missing)
            if self._refused:  # the others get a moment to come and hear of it
                patience.shorten(_FAULT_TOLD)
            if not patience.left():
                self._faults.append(f"{names} did not start within {patience.seconds:.0f} s")
                return
            patience.remind(names)
            self._accept(server)
            newcomers = _readable(self._strangers, 0.1)
            # One that is gone again is waited for anew. Before the newcomers, among whom it is if it was restarted:
            # it went before it came back, so that whoever has read its second hello can see that the first is gone.
            for index in _readable(self._links, 0.0):
                self._check(index)
            for number in newcomers:
                self._introduce(number)

    def _missing(self) -> list[int]:
        return [index for index in range(1, len(self.cluster.workers)) if index not in self._links]

    def _accept(self, server: socket.socket) -> None:
        server.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            self._strangers[self._came] = _Link(server.accept()[0])
            self._came += 1

    def _check(self, index: int) -> None:
        try:
            self._links[index].receive()
        except ConnectionError:
            self._links.pop(index).close()

    def _introduce(self, number: int) -> None:
        link = self._strangers.pop(number)
        try:
            [[kind, text]] = link.receive()
            hello = json.loads(text) if kind == "hello" else {}
            index = int(hello["index"])
            fault = self._fault(index, hello)
        except (ConnectionError, ValueError, KeyError, TypeError, RecursionError):
            link.close()  # no worker: anyone may knock at a port
            return
        if fault:
            self._faults.append(fault)
            self._refused.append(link)
        else:
            self._links[index] = link

    def _fault(self, index: int, hello: dict[str, Any]) -> str | None:
        if hello["digest"] != self.cluster.digest:
            return f"the process that calls itself worker {index} was given another list of workers than worker 0"
        if index not in self._missing():
            return f"two processes call themselves worker {index}: each needs an index of its own"
        if hello["replicas"] != self.replicas:
            return (
                f"{self.cluster.name(index)} has {hello['replicas']} replicas and {self.cluster.name(0)} "
                f"{self.replicas}: all workers need equally many GPUs"
            )
        return None


def _join(cluster: Cluster, replicas: int, patience: _Patience) -> _Link:
    """The connection to the chief, once it says that all workers are there."""
    host, port = cluster.watch_address
    hello = {"index": cluster.index, "digest": cluster.digest, "replicas": replicas}
    while patience.left():
        patience.remind(f"{cluster.name(0)} at port {port}")
        try:
            link = _Link(socket.create_connection((host, port), timeout=5.0))
        except OSError:  # not there yet, or its name is not known yet
            time.sleep(0.2)
            continue
        link.send("hello", json.dumps(hello))
        if _admitted(link, patience):
            return link
        link.close()
        time.sleep(0.2)
    raise PeerError(
        f"{cluster.name(0)} did not let worker {cluster.index} begin within {patience.seconds:.0f} s: it or "
        f"another one did not start, was given another list of workers, or cannot be reached at its port {port}"
    )


def _admitted(link: _Link, patience: _Patience) -> bool:
    """Whether the chief says that it begins; False when it is gone before it says anything."""
    while patience.left():
        try:
            messages = link.receive() if _readable({0: link}, 0.5) else []
        except ConnectionError:
            return False
        patience.remind("other workers")
        for kind, text in messages:
            if kind in ("late", "unfit"):
                raise (PeerError if kind == "late" else TrainingError)(text)
            if kind == "go":
                return True
    return False


def _listen(cluster: Cluster, patience: _Patience) -> socket.socket:
    host, port = cluster.watch_address
    local = host == "localhost" or host.startswith("127.")
    # Its own name may mean something else to a machine than to its peers: hence all interfaces.
    dual = not local and socket.has_dualstack_ipv6()
    while True:
        try:
            return socket.create_server(
                ("127.0.0.1" if local else "", port),
                family=socket.AF_INET6 if dual else socket.AF_INET,
                dualstack_ipv6=dual,
            )
        except OSError as error:
            # Perhaps the process of a run before this one, which is just ending.
            if not patience.left():
                raise PeerError(f"port {port}, at which worker 0 hears from the others, is taken: {error}") from error
        patience.remind(f"port {port}, which another process has")
        time.sleep(0.2)


def _readable(links: dict[int, _Link], seconds: float) -> list[int]:
    """Numbers of the links at which something has arrived, at the latest after `seconds`."""
    if not links:
        return []
    with selectors.DefaultSelector() as selector:
        for index, link in links.items():
            selector.register(link.socket, selectors.EVENT_READ, index)
        return [key.data for key, _ in selector.select(seconds)]


def _part(links: Iterable[_Link], kind: str, text: str = "") -> None:
    """Say a last word, and close when it was heard: closing with words unread would unsay one's own."""
    open_links = dict(enumerate(links))
    for link in open_links.values():
        link.send(kind, text)
        with contextlib.suppress(OSError):
            link.socket.shutdown(socket.SHUT_WR)
    end = time.monotonic() + 1.0
    while open_links and time.monotonic() < end:
        for number in _readable(open_links, 0.1):
            try:
                open_links[number].receive()
            except ConnectionError:
                open_links.pop(number).close()
    for link in open_links.values():
        link.close()


def _summary(error: BaseException) -> str:
    """One line: TensorFlow's messages hold whole tracebacks."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first[:300]}"


def _exit(message: str) -> NoReturn:
    """End the process now, whatever its main thread is doing."""
    show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # the progress bar hides it
    with contextlib.suppress(OSError):
        os.write(2, f"{show_cursor}\nkeras-resnets: {message}\n".encode())
    # The main thread may hold the stream's lock for ever.
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(1.0)
    os._exit(PeerError.exit_status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
