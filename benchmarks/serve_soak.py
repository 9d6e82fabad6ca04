"""Does `keras-resnets serve` stay as small as it begins? Hours of load, faults and reloads, with its memory watched.

    python benchmarks/serve_soak.py [--minutes 30]

wrk asks a ResNet-20 for the classes of a PNG from 16 connections all the time. Beside it every second brings a request
of each kind that goes wrong: a corrupt image, an unknown model, a tensor of a wrong shape, a body that stops in the
middle, and a client that leaves before its answer; every 20 seconds the model is loaded anew. Every 10 seconds the
server's resident memory, open descriptors and threads are noted. The result goes to benchmarks/results.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from paired import Row, cores, memory_mb, write_result
from serve import free_port, need_wrk, prepare, stopped, wait_for

PACKAGES = ("onnxruntime", "numpy", "pillow", "uvicorn", "starlette")
CLASSIFY, INFER = "/v1/classify/bundle", "/v2/models/bundle/infer"
EVERY, RELOAD = 10.0, 20.0  # seconds


def trouble(port: int, image: bytes, statuses: dict[str, int]) -> None:
    """One request of each kind that goes wrong."""
    wrong = {"inputs": [{"name": "images", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    bodies = [
        (CLASSIFY, image[:60]), ("/v1/classify/nothing", image), (INFER, json.dumps(wrong).encode()), (INFER, b"{"),
    ]  # fmt: skip
    for path, body in bodies:
        count(ask(port, path, body), statuses)
    head = f"POST {CLASSIFY} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n".encode()
    for sent in (head + image[:40], head + image):  # never whole; whole, but nobody waits
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(sent)


def ask(port: int, path: str, body: bytes) -> int:
    """The answer's status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, body)
    status = connection.getresponse().status
    connection.close()
    return status


def count(status: int, statuses: dict[str, int]) -> None:
    """Note an answer's status."""
    statuses[str(status)] = statuses.get(str(status), 0) + 1


def disturb(port: int, image: bytes, end: float, statuses: dict[str, int]) -> None:
    """Trouble every second, and a new version now and then, until the end."""
    reloaded = time.monotonic()
    while time.monotonic() < end:
        trouble(port, image, statuses)
        if time.monotonic() - reloaded > RELOAD:
            reloaded = time.monotonic()
            count(ask(port, "/v2/repository/models/bundle/load", b""), statuses)
        time.sleep(1)


def sizes(process: int) -> Row:
    """What the server holds."""
    folder = Path(f"/proc/{process}")
    return {
        "memory_mb": memory_mb("VmRSS", process),
        "descriptors": float(len(list((folder / "fd").iterdir()))),
        "threads": float(len(list((folder / "task").iterdir()))),
    }


def soak(folder: Path, minutes: float) -> tuple[list[Row], dict[str, int], dict[str, float]]:
    """The sizes, the statuses of what went wrong, and wrk's figures."""
    port, image, statuses = free_port(), (folder / "png").read_bytes(), dict[str, int]()
    repository = folder / "models"
    repository.mkdir()
    (folder / "bundle").rename(repository / "bundle")
    command = [sys.executable, "-m", "keras_resnets.cli", "serve", "--repository", str(repository), "--control"]
    with subprocess.Popen([*command, "--port", port, "--quiet"], start_new_session=True) as process, stopped(process):
        wait_for(f"http://127.0.0.1:{port}/v2/health/ready", None, "", process)
        load = ["wrk", "-t1", "-c16", f"-d{60 * minutes:g}s", "-s", str(folder / "png.lua")]
        end = time.monotonic() + 60 * minutes
        disturbing = threading.Thread(target=disturb, args=(int(port), image, end, statuses))
        disturbing.start()
        rows: list[Row] = []
        with subprocess.Popen([*load, f"http://127.0.0.1:{port}{CLASSIFY}"], stdout=subprocess.PIPE, text=True) as wrk:
            while wrk.poll() is None:
                time.sleep(EVERY)
                rows.append(sizes(process.pid))
            text = wrk.stdout.read() if wrk.stdout else ""
        disturbing.join()
    figures = {"requests": r"(\d+) requests in", "failed": r"Non-2xx or 3xx responses: (\d+)"}
    found = {name: re.search(pattern, text) for name, pattern in figures.items()}
    return rows, statuses, {name: float(match.group(1)) if match else 0.0 for name, match in found.items()}


def main() -> None:
    """Parse the options; see the module's docstring."""
    from rich.console import Console

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    need_wrk(parser)
    console = Console()
    with tempfile.TemporaryDirectory() as parent, console.status(f"soaking for {options.minutes:g} minutes"):
        prepare(Path(parent))
        rows, statuses, asked = soak(Path(parent), options.minutes)
    fifth = max(1, len(rows) // 5)
    told = {
        f"{name}_{when}": statistics.median(row[name] for row in part)
        for name in rows[0]
        for when, part in (("second_fifth", rows[fifth : 2 * fifth] or rows), ("last_fifth", rows[-fifth:]))
    }
    for name, value in {**asked, **told}.items():
        console.print(f"{name}: {value:.0f}", highlight=False)
    console.print(f"statuses of what went wrong: {statuses}", highlight=False)
    name = f"serve_soak_{options.minutes:g}min_cpu{cores()}"
    file = write_result(name, PACKAGES, {"server": rows}, told=told, asked=asked, statuses=statuses)
    console.print(f"wrote {file}")


if __name__ == "__main__":
    main()
