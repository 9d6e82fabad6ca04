"""Several processes that are one server: for networks so small that Python is what limits them, since each has a GIL.

The parent alone listens. It hands each connection to the process that has the fewest, which balances them (processes
that accept from one socket were seen to take 57 and 8 of 64), and gives none to a process that is still loading. It
starts anew what dies, and holds no request itself: all that it does is small enough for plain asyncio.
"""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .channel import ASK, CLOSED, CONNECTION, FAILED, FIGURES, KEEP, LISTENING, READY, Channel, Message, read_text
from .figures import Figures, left_behind
from .member import Job
from .ports import listeners, shared_port
from .served import Settings
from .server import ServeError, ServerOptions, in_url, make_service, url_of

_LOG = logging.getLogger(__name__)
_START = "import sys; sys.path[:] = sys.argv[2:]; from keras_resnets.serving.member import main; main()"
_STEADY = 60.0  # seconds after which a process that dies had not failed to start
_LONGEST = 30.0  # seconds between attempts to start one
_ATTEMPTS = 5  # that fail one after another, while nobody else serves, end the server
_AT_ONCE = 256  # connections
_PAUSE = 0.05  # seconds without accepting, where descriptors or room in the channels ran out
_OVERDUE = 10.0  # seconds after which a process that should have drained is killed


def serve_in_processes(
    named: Sequence[str],
    folder: Path | None,
    settings: Settings,
    options: ServerOptions,
    as_json: bool = False,
    level: int = logging.INFO,
) -> None:
    """As `serve`, in `settings.processes` processes.

    Args:
        named, folder, settings, options: see there.
        as_json, level: of the processes' logs.

    Raises:
        RepositoryError, ServeError: as there, and where models are to be loaded and unloaded by request.
    """
    if options.control:
        raise ServeError("--control would change the models of one process: it needs --processes 1")
    if not hasattr(socket, "send_fds"):
        raise ServeError("several processes need Unix, where they can hand connections over: leave --processes away")
    names = [row["name"] for row in make_service(named, folder, settings, options).repository.index()]
    if settings.asked is not None:  # workers and threads were found for one process
        settings = replace(settings, asked=settings.asked | {"workers", "threads"})
    with ExitStack() as held:
        listening = listeners(options.host, options.port)
        for one in listening:
            held.enter_context(one)
        if options.grpc_port is not None:
            port = held.enter_context(shared_port(options.host, options.grpc_port)).getsockname()[1]
            options = replace(options, grpc_port=port)
        job = Job(0, list(named), folder, settings, options, as_json, level)
        asyncio.run(_Parent(job, listening, names).run())


@dataclass(eq=False)
class _Child:
    """A process, or the place of one."""

    number: int
    process: asyncio.subprocess.Process | None = None
    channel: Channel | None = None
    listening: bool = False
    ready: bool = False
    given: int = 0  # connections since it began
    closed: int = 0
    turn: int = 0  # when it was last given one
    failures: int = 0  # one after another
    complaint: str = ""
    counted: Figures | None = None  # when it was last told, or by its predecessor

    @property
    def load(self) -> tuple[int, int]:
        """By which the next connection's place is chosen."""
        return self.given - self.closed, self.turn


class _Parent:
    def __init__(self, job: Job, listening: Sequence[socket.socket], names: Sequence[str]) -> None:
        self._job, self._listening, self._names = job, listening, names
        self._children = [_Child(number) for number in range(job.settings.processes)]
        self._began, self._announced = time.monotonic(), False
        self._accepting, self._told, self._turns = False, False, 0
        self._waiting: socket.socket | None = None  # for a process that can take it
        self._keeping: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._failed: str | None = None

    async def run(self) -> None:
        """Until SIGTERM or Ctrl-C, or until it cannot go on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled)
        self._start(self._children[:1])  # what keeps it from being ready is told once
        await self._stopping.wait()
        await self._drain()
        if self._failed is not None:
            raise ServeError(self._failed)

    def _signalled(self) -> None:
        if self._stopping.is_set():
            _LOG.warning("stopping at once")
            self._kill()
        else:
            _LOG.info("stopping")
            self._stopping.set()

    def _fail(self, why: str) -> None:
        self._failed = self._failed or why
        self._stopping.set()

    def _start(self, children: Sequence[_Child]) -> None:
        for child in children:
            task = asyncio.get_running_loop().create_task(self._keep(child))
            task.add_done_callback(self._kept)
            self._keeping.append(task)

    def _kept(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            _LOG.error("internal error", exc_info=error)
            self._fail(str(error))

    async def _drain(self) -> None:
        """Let the processes answer what was accepted."""
        for listener in self._listening:
            if self._accepting:
                self._accept(listener)  # those who have connected by now
        self._accept_no_more()
        for listener in self._listening:
            listener.close()
        for child in self._children:
            if child.channel is not None:
                child.channel.say_no_more()
        # As long as one process takes: for its connections, and again for its batchers.
        _, late = await asyncio.wait(self._keeping, timeout=2 * self._job.options.drain + _OVERDUE)
        if late:
            _LOG.error("%d processes have not ended, and are killed", len(late))
            self._kill()
            await asyncio.wait(late)

    def _kill(self) -> None:
        for child in self._children:
            if child.process is not None and child.process.returncode is None:
                child.process.kill()

    async def _keep(self, child: _Child) -> None:
        """Run a process, and another one in its place when it ends."""
        while True:
            began = time.monotonic()
            status = await self._run(child)
            if self._stopping.is_set():
                return
            ended = f"signal {-status}" if status < 0 else f"status {status}"
            child.failures = 1 if time.monotonic() - began > _STEADY else child.failures + 1
            alone = not any(other.listening for other in self._children)
            if not self._announced or (alone and child.failures >= _ATTEMPTS):
                self._fail(child.complaint or f"process {child.number} ended with {ended}; the log may say why")
                return
            pause = 0.0 if alone or child.failures == 1 else min(_LONGEST, 2.0 ** (child.failures - 2))
            why = f": {child.complaint}" if child.complaint else ""
            _LOG.error("process %d ended with %s%s; it is started again in %g s", child.number, ended, why, pause)
            if await self._stopped_within(pause):
                return

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    async def _run(self, child: _Child) -> int:
        """A process, from its start to its end; returns its status."""
        ours, theirs = socket.socketpair()
        job = pickle.dumps(replace(self._job, number=child.number, before=child.counted))
        with theirs:
            child.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _START, str(theirs.fileno()), *sys.path,
                stdin=asyncio.subprocess.PIPE, pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in a terminal is the parent's alone
            )  # fmt: skip
        child.channel, child.given, child.closed, child.complaint = Channel(ours), 0, 0, ""
        child.channel.listen(lambda message: self._take(child, message), lambda: self._gone(child))
        if self._stopping.is_set():
            child.channel.say_no_more()
        await child.process.communicate(job)
        status = child.process.returncode
        child.channel.read_rest(lambda message: self._take(child, message))
        self._gone(child)
        child.channel.close()
        child.channel = child.process = None
        return status or 0

    def _gone(self, child: _Child) -> None:
        child.listening = child.ready = False
        if child.counted:
            child.counted = left_behind(child.counted)

    def _take(self, child: _Child, message: Message) -> None:
        if message.kind == CLOSED:
            child.closed = message.number
        elif message.kind == LISTENING:
            child.listening = True
            self._say_where()
            self._accept_again()
        elif message.kind == READY:
            child.ready = True
            self._one_is_ready()
        elif message.descriptor is not None:
            self._take_descriptor(child, message, message.descriptor)

    def _one_is_ready(self) -> None:
        if self._stopping.is_set():  # it was too late to tell that process
            return
        if len(self._keeping) == 1:
            self._first_is_ready()
        self._say_ready()

    def _first_is_ready(self) -> None:
        options = self._job.options
        if options.grpc_port is not None:
            _LOG.info("gRPC on %s:%d", in_url(options.host), options.grpc_port)
        self._start(self._children[1:])

    def _take_descriptor(self, child: _Child, message: Message, descriptor: int) -> None:
        if message.kind == FAILED:
            child.complaint = read_text(descriptor)
        elif message.kind == KEEP:
            self._remember(descriptor)
        elif message.kind == ASK:
            with socket.socket(fileno=descriptor) as asker:
                self._bring_together(self._children[message.number % len(self._children)], asker)

    def _remember(self, descriptor: int) -> None:
        with open(descriptor, "rb") as file:
            file.seek(0)
            by_process = {figures["pid"]: figures for figures in json.load(file)}
        for child in self._children:
            if child.process is not None:
                child.counted = by_process.get(child.process.pid, child.counted)

    def _bring_together(self, asked: _Child, asker: socket.socket) -> None:
        """Let a process answer another that asks for its figures; for one that is not there the parent does."""
        if asked.ready and asked.channel is not None:
            asked.channel.send(FIGURES, 0, asker.fileno())
        elif asked.counted:
            asker.setblocking(False)
            with suppress(OSError):  # it asks no more
                asker.send(json.dumps(left_behind(asked.counted)).encode())

    def _say_where(self) -> None:
        """When the first process listens."""
        if not self._told:
            self._told = True
            _LOG.info("listening on %s, loading models", self._url)

    def _say_ready(self) -> None:
        """When all processes are, for the first time."""
        if not self._announced and all(child.ready for child in self._children):
            self._announced = True
            names, seconds = ", ".join(self._names) or "nothing yet", time.monotonic() - self._began
            _LOG.info("ready after %.2f s: %s on %s, in %d processes", seconds, names, self._url, len(self._children))

    @property
    def _url(self) -> str:
        return url_of(self._job.options, self._listening[0].getsockname()[1])

    def _accept_again(self) -> None:
        if self._accepting or self._stopping.is_set():
            return
        if self._waiting is not None and not self._give(self._waiting):
            asyncio.get_running_loop().call_later(_PAUSE, self._accept_again)
            return
        self._accepting, self._waiting = True, None
        for listener in self._listening:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept_no_more(self) -> None:
        self._accepting = False
        for listener in self._listening:
            asyncio.get_running_loop().remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept whoever has connected."""
        for _ in range(_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no more descriptors, or no memory
                _LOG.error("a connection cannot be accepted: %s", error)
                self._pause()
                return
            if not self._give(connection):
                self._waiting = connection
                self._pause()
                return

    def _pause(self) -> None:
        self._accept_no_more()
        asyncio.get_running_loop().call_later(_PAUSE, self._accept_again)

    def _give(self, connection: socket.socket) -> bool:
        """Hand a connection to the process that has the fewest; returns False where none can take it now."""
        able = [child for child in self._children if child.ready] or [c for c in self._children if c.listening]
        for child in sorted(able, key=lambda child: child.load):
            if child.channel is not None and child.channel.send(CONNECTION, 0, connection.fileno()):
                self._turns += 1
                child.given, child.turn = child.given + 1, self._turns
                connection.close()
                return True
        return False
