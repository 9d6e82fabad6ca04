"""Times `keras-resnets serve` against what people use instead, with wrk on the same machine.

    python benchmarks/serve.py [--peer-python PEERS/bin/python] [--rounds 3] [--seconds 6]

A ResNet-20 of random weights classifies a 28×28 PNG a request. (Such weights decide by noise: the gate lets int8
through unseen, where a trained network passes it.) All serve the same float32 file, ours its int8 variant too. Each
runs in turn with 1 and with 2 workers, the peers as serve_peers/ has them: a process of one session of one thread a
worker. Ours is one process, whose session has a thread a CPU with 1 worker, and one with 2; and in a third form (2p)
two processes of one worker and one thread. wrk (one thread) asks from 8 and from 64 connections after a warm-up. Of
each the form that answers most counts.

The result goes to benchmarks/results. --switch-interval runs ours with Python's own interval of 5 ms between threads
too, to show what the server's choice is worth.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import Request, urlopen

from paired import Row, cores, medians, write_result

CONNECTIONS = (8, 64)
WORKERS = (1, 2)
FORMS = (*map(str, WORKERS), "2p")  # the last is ours alone
OURS = ("keras_resnets_float32", "keras_resnets_int8")
PEERS = ("fastapi", "litserve", "bentoml", "ray")
TYPES = {"png": "image/png", "json": "application/json", "form": "multipart/form-data; boundary=part"}
BODIES = {"litserve": "json", "bentoml": "form"}  # the others take the PNG
FOLDER = Path(__file__).parent / "serve_peers"
PACKAGES = ("onnxruntime", "numpy", "pillow", "uvicorn", "starlette")
PEER_PACKAGES = ("fastapi", "litserve", "bentoml", "ray", *PACKAGES)
SLOW_SWITCH = (
    "import keras_resnets.serving.server as s, sys; s.SWITCH_SECONDS = 0.005; from keras_resnets.cli import main; "
    "sys.exit(main(sys.argv[1:]))"
)


class Contender(NamedTuple):
    """A server's command, in which PORT stands for the port; its path, and which body it takes."""

    command: list[str]
    path: str
    body: str


def prepare(folder: Path) -> None:
    """The bundle, and the image as the contenders take it."""
    code = """
import sys, numpy as np, keras, keras_resnets
from PIL import Image
from keras_resnets import Preprocessing
from keras_resnets.export import Gate, to_bundle
keras.utils.set_random_seed(0)
noise = np.random.default_rng(0)
model = keras_resnets.ResNet20(input_shape=(28, 28, 1))
keras_resnets.update_batch_norm(model, [noise.normal(size=(16, 28, 28, 1)).astype("float32")])
how = Preprocessing((28, 28), 1, scale=1 / 255, mean=(0.5,), std=(0.25,))
gate = Gate(0.0, 1.0)
to_bundle(model, sys.argv[1] + "/bundle", preprocessing=how, saved_model=False, precisions=["int8"], gate=gate)
Image.fromarray(noise.integers(0, 256, (28, 28), np.uint8)).save(sys.argv[1] + "/png", "PNG")
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
    png = (folder / "png").read_bytes()
    (folder / "json").write_text(json.dumps({"image": base64.b64encode(png).decode()}))
    head = (
        b'--part\r\ncontent-disposition: form-data; name="images"; filename="a.png"\r\ncontent-type: image/png\r\n\r\n'
    )
    (folder / "form").write_bytes(head + png + b"\r\n--part--\r\n")
    for body, kind in TYPES.items():
        (folder / f"{body}.lua").write_text(
            f'wrk.method = "POST"\nwrk.body = io.open("{folder / body}", "rb"):read("*all")\n'
            f'wrk.headers["Content-Type"] = "{kind}"\n'
        )


def contenders(options: argparse.Namespace, folder: Path) -> dict[str, Contender]:
    """By name and workers, or processes."""
    found: dict[str, Contender] = {}
    serve = ["serve", str(folder / "bundle"), "--port", "PORT", "--quiet", "--workers"]
    ours = [sys.executable, "-m", "keras_resnets.cli", *serve]
    for workers in map(str, WORKERS):
        for name in OURS:
            command = [*ours, workers, "--precision", name.split("_")[-1]]
            found[f"{name}_{workers}"] = Contender(command, "/v1/classify/bundle", "png")
        if options.switch_interval:
            command = [sys.executable, "-c", SLOW_SWITCH, *serve, workers]
            found[f"keras_resnets_5ms_{workers}"] = Contender(command, "/v1/classify/bundle", "png")
        for peer in options.peers if options.peer_python else ():
            script, model = FOLDER / f"{peer}_peer.py", folder / "bundle" / "model.onnx"
            command = [str(options.peer_python), str(script), "--model", str(model), "--port", "PORT", "--workers"]
            found[f"{peer}_{workers}"] = Contender([*command, workers], "/classify", BODIES.get(peer, "png"))
    for name in OURS:
        command = [*ours, "1", "--processes", "2", "--precision", name.split("_")[-1]]
        found[f"{name}_2p"] = Contender(command, "/v1/classify/bundle", "png")
    return found


@contextmanager
def running(contender: Contender, folder: Path) -> Iterator[str]:
    """Run a server until it classifies; gives the URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}{contender.path}"
    command = [port if word == "PORT" else word for word in contender.command]
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=nowhere, stderr=nowhere, start_new_session=True) as process, stopped(process):
        wait_for(url, (folder / contender.body).read_bytes(), TYPES[contender.body], process)
        yield url


def need_wrk(parser: argparse.ArgumentParser) -> None:
    """Say what is missing."""
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed (Debian: apt install wrk)")


def free_port() -> str:
    """One that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop a server that leads its session at the end, and by force what it leaves: some peers' workers poll on."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(url: str, body: bytes | None, kind: str, process: subprocess.Popen[bytes]) -> None:
    """Until the server answers with 200."""
    end = time.monotonic() + 90
    while True:
        try:
            with urlopen(Request(url, body, {"Content-Type": kind} if body else {}), timeout=10) as answer:
                if answer.status == 200:
                    return
        except (URLError, ConnectionError, TimeoutError):
            pass
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{process.args} does not answer")
        time.sleep(0.02)


def wrk(url: str, connections: int, seconds: float, script: Path) -> Row:
    """Requests/s, median and 99th percentile in milliseconds, and requests that failed."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "--timeout", "10s", "-s", str(script)]
    text = subprocess.run([*command, url], check=True, capture_output=True, text=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate is not None, text
    failed = re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", text)
    return {
        "requests_per_second": float(rate.group(1)), "p50_ms": _percentile(text, "50"),
        "p99_ms": _percentile(text, "99"), "failed": float(sum(map(int, failed))),
    }  # fmt: skip


def _percentile(text: str, which: str) -> float:
    found = re.search(rf"\s{which}%\s+([\d.]+)(us|ms|s)", text)
    assert found is not None, text
    return float(found.group(1)) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found.group(2)]


def take_turns(options: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> dict[str, list[Row]]:
    """The rows of each contender and number of connections."""
    rows: dict[str, list[Row]] = {}
    for number in range(options.rounds):
        for name, contender in contenders(options, folder).items():
            script = folder / f"{contender.body}.lua"
            with running(contender, folder) as url:
                wrk(url, 8, 2.0, script)  # warms up
                for connections in CONNECTIONS:
                    say(f"round {number + 1} of {options.rounds}: {name}, {connections} connections")
                    row = wrk(url, connections, options.seconds, script)
                    rows.setdefault(f"{name}_c{connections}", []).append(row)
    return rows


def best(figures: dict[str, Row], name: str, connections: int) -> Row | None:
    """Of its forms the one that answers most."""
    rows = [figures[key] for form in FORMS if (key := f"{name}_{form}_c{connections}") in figures]
    return max(rows, key=lambda row: row["requests_per_second"], default=None)


def ratios(figures: dict[str, Row]) -> dict[str, float]:
    """Ours over the best peer's: requests/s at 64 connections; median and 99th percentile at 8."""
    told: dict[str, float] = {}
    peers = {
        connections: [row for name in PEERS if (row := best(figures, name, connections))] for connections in (8, 64)
    }
    for name in OURS:
        few, many = best(figures, name, 8), best(figures, name, 64)
        if few and many and peers[8]:
            most = max(row["requests_per_second"] for row in peers[64])
            told[f"{name}/best_peer requests_per_second_c64"] = many["requests_per_second"] / most
            fastest = min(peers[8], key=lambda row: row["p50_ms"])
            for key in ("p50_ms", "p99_ms"):
                told[f"{name}/best_peer {key}_c8"] = few[key] / fastest[key]
    return told


def packages_of(python: Path | None) -> dict[str, str] | None:
    """Their versions in the peers' Python."""
    code = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    if python is None:
        return None
    done = subprocess.run([python, "-c", code, *PEER_PACKAGES], check=True, stdout=subprocess.PIPE, text=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def main() -> None:
    """Run all contenders in turn, print the medians, write the result file."""
    from rich.console import Console

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peer-python", type=Path,
        help="a Python with fastapi, uvicorn[standard], litserve, bentoml, ray[serve], onnxruntime, numpy and Pillow",
    )  # fmt: skip
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each run")
    parser.add_argument("--switch-interval", action="store_true", help="ours with Python's own 5 ms too")
    options = parser.parse_args()
    need_wrk(parser)
    console = Console()
    with tempfile.TemporaryDirectory() as parent, console.status("preparing") as status:
        prepare(Path(parent))
        rows = take_turns(options, Path(parent), status.update)
    figures = medians(rows)
    for name, row in figures.items():
        console.print(
            f"{name}: {row['requests_per_second']:.0f}/s, p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms, "
            f"failed {row['failed']:.0f}", highlight=False,
        )  # fmt: skip
    for name, ratio in ratios(figures).items():
        console.print(f"{name}: {ratio:.2f}", highlight=False)
    file = write_result(
        f"serve_resnet20_cpu{cores()}", PACKAGES, rows, ratios=ratios(figures), seconds_of_a_run=options.seconds,
        peers=packages_of(options.peer_python),
    )  # fmt: skip
    console.print(f"wrote {file}")


if __name__ == "__main__":
    main()
