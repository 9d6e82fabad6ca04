"""Times `keras-resnets serve` against what people would write themselves, with wrk on the same machine.

    python benchmarks/serving.py [--peer-python PEERS/bin/python] [--rounds 3] [--seconds 8]

A ResNet-20 of random weights classifies a 28×28 PNG a request. (Such weights decide by noise: the gate lets int8
through unseen, where a trained network passes it.) Each contender runs in turn with 1 and with 2 workers, in processes
of its own, of one thread a worker; wrk (one thread) asks it from 1, 8 and 64 connections after a warm-up.
The result goes to benchmarks/results. --switch-interval runs ours with Python's own interval of 5 ms between threads
too, to show what the server's choice is worth.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from paired import Row, cores, medians, write_result

CONNECTIONS = (1, 8, 64)
WORKERS = (1, 2)
PEERS = Path(__file__).with_name("serving_peers.py")
PACKAGES = ("onnxruntime", "numpy", "pillow", "uvicorn", "starlette")
SLOW_SWITCH = (
    "import keras_resnets.serving.server as s, sys; s.SWITCH_SECONDS = 0.005; from keras_resnets.cli import main"
)


def prepare(folder: Path) -> None:
    """The bundle, the image and wrk's script."""
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
Image.fromarray(noise.integers(0, 256, (28, 28), np.uint8)).save(sys.argv[1] + "/image.png")
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
    (folder / "post.lua").write_text(
        f'wrk.method = "POST"\nwrk.body = io.open("{folder}/image.png", "rb"):read("*all")\n'
        'wrk.headers["Content-Type"] = "image/png"\n'
    )


def contenders(options: argparse.Namespace, folder: Path) -> dict[str, tuple[list[str], str]]:
    """Command and path of each; PORT stands for the port."""
    found: dict[str, tuple[list[str], str]] = {}
    serve = ["serve", str(folder / "bundle"), "--port", "PORT", "--quiet", "--threads", "1", "--workers"]
    for workers in WORKERS:
        for precision in ("float32", "int8"):
            command = [sys.executable, "-m", "keras_resnets.cli", *serve, str(workers), "--precision", precision]
            found[f"keras_resnets_{precision}_{workers}"] = command, "/v1/classify/bundle"
        if options.switch_interval:
            code = f"{SLOW_SWITCH}; sys.exit(main(sys.argv[1:]))"
            command = [sys.executable, "-c", code, *serve, str(workers)]
            found[f"keras_resnets_5ms_{workers}"] = command, "/v1/classify/bundle"
        if options.peer_python:
            command = [
                str(options.peer_python), str(PEERS), "fastapi", "--model", str(folder / "bundle" / "model.onnx"),
                "--port", "PORT", "--workers", str(workers),
            ]  # fmt: skip
            found[f"fastapi_{workers}"] = command, "/classify"
    return found


@contextmanager
def running(command: list[str], path: str, image: bytes) -> Any:
    """Run a server until it classifies; gives the URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}{path}"
    with subprocess.Popen([port if word == "PORT" else word for word in command], stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 60
            while not _answers(url, image):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{' '.join(command)} does not answer")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _answers(url: str, image: bytes) -> bool:
    try:
        with urlopen(Request(url, image, {"Content-Type": "image/png"}), timeout=10) as answer:
            return bool(answer.status == 200)
    except (URLError, ConnectionError):
        return False


def ask(url: str, connections: int, seconds: float, script: Path) -> Row:
    """wrk's figures: requests/s, median and 99th percentile in milliseconds, and requests that failed."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:g}s",
        "--latency",
        "--timeout",
        "10s",
        "-s",
        str(script),
        url,
    ]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate is not None, text
    failed = sum(
        int(n)
        for n in re.findall(r"Non-2xx or 3xx responses: (\d+)|(?:connect|read|write|timeout) (\d+)", text)
        for n in n
        if n
    )
    return {
        "requests_per_second": float(rate.group(1)), "p50_ms": _percentile(text, "50"),
        "p99_ms": _percentile(text, "99"), "failed": float(failed),
    }  # fmt: skip


def _percentile(text: str, which: str) -> float:
    found = re.search(rf"\s{which}%\s+([\d.]+)(us|ms|s)", text)
    assert found is not None, text
    return float(found.group(1)) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found.group(2)]


def best(figures: dict[str, Row], name: str, connections: int) -> Row | None:
    """Of 1 and 2 workers the one that answers more."""
    rows = [
        figures[f"{name}_{workers}_c{connections}"]
        for workers in WORKERS
        if f"{name}_{workers}_c{connections}" in figures
    ]
    return max(rows, key=lambda row: row["requests_per_second"], default=None)


def main() -> None:
    """Run all contenders in turn, print the medians, write the result file."""
    from rich.console import Console

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peer-python", type=Path, help="a Python that has fastapi, uvicorn[standard], onnxruntime, Pillow"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run")
    parser.add_argument("--switch-interval", action="store_true", help="ours with Python's own 5 ms too")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is not installed (Debian: apt install wrk)")
    console = Console()
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as parent, console.status("preparing") as status:
        folder = Path(parent)
        prepare(folder)
        image = (folder / "image.png").read_bytes()
        for number in range(options.rounds):
            for name, (command, path) in contenders(options, folder).items():
                with running(command, path, image) as url:
                    ask(url, 8, 1.5, folder / "post.lua")  # warms up
                    for connections in CONNECTIONS:
                        status.update(f"round {number + 1} of {options.rounds}: {name}, {connections} connections")
                        row = ask(url, connections, options.seconds, folder / "post.lua")
                        rows.setdefault(f"{name}_c{connections}", []).append(row)
    figures = medians(rows)
    for name, row in figures.items():
        console.print(
            f"{name}: {row['requests_per_second']:.0f}/s, p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms, "
            f"failed {row['failed']:.0f}", highlight=False,
        )  # fmt: skip
    ratios = {}
    for connections in CONNECTIONS:
        peer = best(figures, "fastapi", connections)
        for precision in ("float32", "int8"):
            ours = best(figures, f"keras_resnets_{precision}", connections)
            if peer and ours:
                ratio = ours["requests_per_second"] / peer["requests_per_second"]
                ratios[f"keras_resnets_{precision}/fastapi_c{connections}"] = ratio
    for name, ratio in ratios.items():
        console.print(f"{name}: {ratio:.2f}", highlight=False)
    file = write_result(
        f"serving_resnet20_cpu{cores()}", PACKAGES, rows, ratios=ratios, seconds_of_a_run=options.seconds
    )
    console.print(f"wrote {file}")


if __name__ == "__main__":
    main()
