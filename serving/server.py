"""Runs the application on uvicorn: loads while it listens, and on SIGTERM answers what it accepted before it goes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from keras_resnets.extras import extra

from .app import App
from .connection import ConnectionLimits, limited
from .metrics import Metrics
from .repository import Repository
from .served import Settings
from .service import Limits, Service

with extra("serve"):
    import uvicorn

_GRACE = 0.1  # seconds that the request of a connection which was just accepted may take to arrive
_LOG = logging.getLogger(__name__)
_FIELDS = ("request_id", "model", "status")
# Python lets a busy thread run for 5 ms before another gets its turn: the batcher's threads would wait that long for
# the event loop after every batch. benchmarks/serve.py shows what it costs.
SWITCH_SECONDS = 0.0002
BACKLOG = 2048  # connections that wait to be accepted


@dataclass(frozen=True)
class ServerOptions:
    """Where and for whom a server listens; see the command line's options.

    Args:
        host, port: to listen on; port 0 is any that is free.
        grpc_port: for gRPC, on the same host; None: no gRPC.
        api_key: that clients must send.
        control: whether models may be loaded and unloaded by request.
        certificate, private_key: files for TLS.
        drain: seconds that accepted requests may still take after SIGTERM.
        limits, connections: see there.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    api_key: str | None = None
    control: bool = False
    certificate: Path | None = None
    private_key: Path | None = None
    drain: float = 30.0
    limits: Limits = field(default_factory=Limits)
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)


class ServeError(RuntimeError):
    """The server could not start."""


def make_service(named: Sequence[str], folder: Path | None, settings: Settings, options: ServerOptions) -> Service:
    """What answers, with nothing loaded yet.

    Args:
        named, folder: see `Repository`.
        settings: how models are run.
        options: see there.

    Raises:
        RepositoryError: when something named does not exist.
    """

    def queues() -> list[tuple[str, str, int, int]]:
        return [
            (model.name, model.version, model.batcher.waiting, model.batcher.running) for model in repository.models()
        ]

    metrics = Metrics(queues)
    repository = Repository(named, folder, settings, metrics.batch)
    return Service(repository, metrics, options.limits, options.control)


def serve(named: Sequence[str], folder: Path | None, settings: Settings, options: ServerOptions) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        RepositoryError: when something named does not exist.
        ServeError: when a model cannot be loaded, the port is taken, or a certificate cannot be used.
    """
    service = make_service(named, folder, settings, options)
    run(Server(configured(service, options), service, options))


def configured(service: Service, options: ServerOptions) -> uvicorn.Config:
    """uvicorn's configuration.

    Raises:
        ServeError: when a certificate cannot be used.
    """
    tls: dict[str, Any] = {}
    if options.certificate:
        tls = {"ssl_certfile": str(options.certificate), "ssl_keyfile": options.private_key}
    config = uvicorn.Config(
        App(service, options.api_key), host=options.host, port=options.port, http=limited(options.connections),
        ws="none", lifespan="off", log_config=None, access_log=False, server_header=False, proxy_headers=False,
        backlog=BACKLOG, timeout_graceful_shutdown=int(options.drain) or 1, **tls,
    )  # fmt: skip
    try:
        config.load()
    except OSError as error:
        raise ServeError(f"TLS with {options.certificate} and {options.private_key or 'its key'}: {error}") from error
    return config


def run(server: Server) -> None:
    """Run it until it is told to stop, and answer what it accepted.

    Raises:
        ServeError: when a model cannot be loaded, or a port is taken.
    """
    options = server.options
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        server.run()
    except SystemExit as error:  # uvicorn's word for a port that is taken
        raise ServeError(cannot_listen(options.host, options.port)) from error
    finally:
        server.service.repository.close(options.drain)
    if server.failed:
        raise ServeError(str(server.failed)) from server.failed


def cannot_listen(host: str, port: int) -> str:
    """What is said where a port cannot be had."""
    return f"cannot listen on {host}:{port}: is something else running there?"


class Server(uvicorn.Server):
    """Loads the models while it listens.

    Args:
        config, service, options: see there.

    Attributes:
        failed: why it could not start.
    """

    def __init__(self, config: uvicorn.Config, service: Service, options: ServerOptions) -> None:
        super().__init__(config)
        self.service, self.options, self.began = service, options, time.monotonic()
        self.failed: Exception | None = None
        self._loading: asyncio.Task[None] | None = None
        self._grpc: Any = None
        self.protocol: Any = config.http_protocol_class
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        try:
            await self._start_grpc()
        except Exception as error:
            self.failed, self.should_exit = error, True
            return
        self._loading = asyncio.get_running_loop().create_task(self._load())

    async def shutdown(self, sockets: Any = None) -> None:
        self._take_in_the_last()
        await asyncio.sleep(_GRACE)
        if self._grpc is not None:
            await asyncio.gather(super().shutdown(sockets), self._grpc.stop(self.options.drain))
        else:
            await super().shutdown(sockets)

    def _take_in_the_last(self) -> None:
        """Listen no more, but take in who has connected by now: to them a closed socket would be a reset."""
        for server in self.servers:
            listeners = [socket.socket(fileno=os.dup(own.fileno())) for own in server.sockets]
            server.close()
            for listener in listeners:
                with listener:
                    listener.setblocking(False)
                    with suppress(OSError):  # no more wait
                        while True:
                            self.take_in(listener.accept()[0])

    def take_in(self, connection: socket.socket) -> None:
        """Answer a connection that somebody else has accepted."""
        self.do(self._answer(connection))

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside everything else; asyncio itself keeps none alive."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(self._speaker, connection, ssl=self.config.ssl)
        except Exception:  # the client has gone, or does not speak TLS
            connection.close()
            self.connection_lost()

    def connection_lost(self) -> None:
        """Called when a connection that was taken in turns out to be none."""

    def _speaker(self) -> asyncio.Protocol:
        speaker: asyncio.Protocol = self.protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return speaker

    async def _start_grpc(self, shared: bool = False) -> None:
        options = self.options
        if options.grpc_port is None:
            return
        from .grpc_server import GrpcServer  # grpcio is large: who does not ask for it need not load it

        self._grpc = GrpcServer(self.service, options.api_key, shared)
        certificate, key = (file.read_bytes() if file else None for file in (options.certificate, options.private_key))
        host = in_url(options.host)
        port = await self._grpc.start(f"{host}:{options.grpc_port}", certificate, key)
        if not shared:
            _LOG.info("gRPC on %s:%d", host, port)

    async def _load(self) -> None:
        port = self.servers[0].sockets[0].getsockname()[1]
        url = url_of(self.options, port)
        _LOG.info("listening on %s, loading models", url)
        try:
            await self.service.repository.load_all()
        except Exception as error:
            self.failed, self.should_exit = error, True
            return
        names = ", ".join(model.name for model in self.service.repository.models()) or "nothing yet"
        _LOG.info("ready after %.2f s: %s on %s", time.monotonic() - self.began, names, url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would raise the signal again at the end, and the exit status could not say that all went well.
        _LOG.info("stopping: %d requests are being answered", self.service.active)
        self.force_exit = self.should_exit
        self.should_exit = self.service.draining = True


def in_url(host: str) -> str:
    """A host as URLs have it."""
    return f"[{host}]" if ":" in host else host


def url_of(options: ServerOptions, port: int) -> str:
    """Where clients find the server."""
    return f"{'https' if options.certificate else 'http'}://{in_url(options.host)}:{port}"


def log_to_stderr(as_json: bool, level: int = logging.INFO, process: int | None = None) -> None:
    """Let this package and uvicorn log to standard error, for people or as a JSON object a line.

    Args:
        as_json, level: how, and what.
        process: its number, where a server has several.
    """
    handler = logging.StreamHandler(sys.stderr)
    who = "" if process is None else f"process {process}: "
    text = logging.Formatter(f"%(asctime)s %(levelname)s {who}%(message)s")
    handler.setFormatter(_JsonLines(process) if as_json else text)
    for name in ("keras_resnets", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    logging.getLogger("keras_resnets").setLevel(level)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


class _JsonLines(logging.Formatter):
    def __init__(self, process: int | None) -> None:
        super().__init__()
        self._process = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
        }
        entry |= {key: getattr(record, key) for key in _FIELDS if hasattr(record, key)}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)
