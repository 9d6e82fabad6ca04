"""The command `keras-resnets serve`: parse, call the library."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

API_KEY = "KERAS_RESNETS_API_KEY"


def add_serve(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `serve` to the program's commands."""
    parser = command(
        commands, "serve", _serve, "answer requests over HTTP with bundles and ONNX files",
        "  keras-resnets serve digits                        on http://127.0.0.1:8000\n"
        "  curl --data-binary @photo.png http://127.0.0.1:8000/v1/classify/digits\n"
        "  keras-resnets serve cats=bundles/cats other.onnx --precision int8 --host 0.0.0.0 --port 80\n"
        "  keras-resnets serve --repository models --control --workers 2 --max-batch 32 --queue-delay 2\n"
        "  keras-resnets serve digits --processes 2          more requests of a small network",
    )  # fmt: skip
    parser.add_argument("models", nargs="*", metavar="[NAME=]BUNDLE", help="bundles and ONNX files")
    parser.add_argument(
        "--repository", type=Path, metavar="FOLDER", help="serve FOLDER/NAME and FOLDER/NAME/VERSION too"
    )
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (default: %(default)s, this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: %(default)s)")
    parser.add_argument("--grpc-port", type=int, metavar="PORT", help="answer gRPC too, usually on 8001 (default: no)")
    _add_running(parser)
    _add_limits(parser)
    parser.add_argument("--control", action="store_true", help="let requests load and unload models")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help=f"clients must send this key (or {API_KEY})")
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key, where that is another file")
    parser.add_argument("--log-format", choices=["text", "json"], default="text")
    parser.add_argument("--quiet", action="store_true", help="log errors only")


def _add_running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "how models are run",
        "What is not given here is as `keras-resnets tune` found it for a bundle on this machine, or else the default.",
    )
    group.add_argument("--no-tuned", action="store_true", help="the defaults, whatever was found")
    group.add_argument("--provider", choices=["cpu", "openvino", "cuda", "tensorrt"], help="default: cpu")
    group.add_argument("--precision", help="of the bundles (default: each one's first)")
    group.add_argument(
        "--cuda-graphs", action="store_true", default=None, help="replay each batch size as one launch (NVIDIA GPUs)"
    )
    group.add_argument("--workers", type=int, help="batches that run at once (default: 1)")
    group.add_argument(
        "--processes", type=int, default=1, metavar="N",
        help="that share the port, each with the models and workers of its own: for networks that are small "
        "(default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--threads", type=int, help="of one batch (default: the CPUs, divided among all workers)")
    group.add_argument("--max-batch", type=int, metavar="ROWS", help="default: 16")
    group.add_argument(
        "--queue-delay", type=float, metavar="MS",
        help="milliseconds that a free worker waits for a fuller batch (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--max-queue", type=int, default=256, metavar="ROWS", help="that may wait (default: %(default)s)"
    )
    group.add_argument(
        "--deadline", type=float, default=10.0, metavar="S", help="seconds of a request (default: %(default)g)"
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument("--max-body", type=float, default=64, metavar="MB", help="of a request (default: %(default)g)")
    group.add_argument("--max-concurrency", type=int, default=1000, metavar="N", help="requests (default: %(default)s)")
    group.add_argument("--max-connections", type=int, default=1024, metavar="N", help="default: %(default)s")
    group.add_argument("--header-timeout", type=float, default=10, metavar="S", help="default: %(default)g s")
    group.add_argument("--body-timeout", type=float, default=60, metavar="S", help="default: %(default)g s")
    group.add_argument(
        "--drain",
        type=float,
        default=30,
        metavar="S",
        help="for accepted requests after SIGTERM (default: %(default)g)",
    )


def _serve(options: argparse.Namespace) -> int:
    from keras_resnets.serving.connection import ConnectionLimits
    from keras_resnets.serving.served import Settings
    from keras_resnets.serving.server import ServerOptions, log_to_stderr, serve
    from keras_resnets.serving.service import Limits

    delay = options.queue_delay / 1000 if options.queue_delay is not None else None
    asked = {
        "provider": options.provider, "precision": options.precision, "threads": options.threads,
        "workers": options.workers, "cuda_graphs": options.cuda_graphs, "max_batch": options.max_batch,
        "queue_delay": delay,
    }  # fmt: skip
    asked = {name: value for name, value in asked.items() if value is not None}
    settings = Settings(
        **asked, max_queue=options.max_queue, deadline=options.deadline, processes=options.processes,
        asked=None if options.no_tuned else frozenset(asked),
    )  # fmt: skip
    log = options.log_format == "json", 40 if options.quiet else 20
    log_to_stderr(*log)
    connections = ConnectionLimits(
        connections=options.max_connections, header_seconds=options.header_timeout, body_seconds=options.body_timeout
    )
    server = ServerOptions(
        host=options.host, port=options.port, grpc_port=options.grpc_port, api_key=_key(options.api_key_file),
        control=options.control, certificate=options.tls_certificate, private_key=options.tls_key, drain=options.drain,
        limits=Limits(body=int(options.max_body * 2**20), concurrency=options.max_concurrency), connections=connections,
    )  # fmt: skip
    if settings.processes == 1:
        serve(options.models, options.repository, settings, server)
    else:
        from keras_resnets.serving.processes import serve_in_processes

        serve_in_processes(options.models, options.repository, settings, server, *log)
    return 0


def _key(file: Path | None) -> str | None:
    """A key on the command line could be read by everybody on the machine."""
    key = file.read_text(encoding="utf-8").strip() if file else os.environ.get(API_KEY)
    if file and not key:
        raise ValueError(f"{file} holds no key")
    return key or None
