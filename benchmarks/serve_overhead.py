"""What `keras-resnets serve` costs beside the engine: ResNet-50 in int8, batches to 16, tensors as input.

    python benchmarks/serve_overhead.py [--rounds 5] [--seconds 6]

The engine: a bare onnxruntime process with the session as the server opens it, warmed with the same batch sizes; its
memory then, its median time of one row, and the most rows/s of all batch sizes. The server: seconds from its start
until it is ready, its memory then, and what wrk (one thread) sees from 1 and from 16 connections, each request with one
row, float32 [1, 224, 224, 3] as the protocol's binary tensor. In turn, each in processes of its own; the result goes to
benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paired import Row, cores, medians, memory_mb, run, write_result
from serve import free_port, need_wrk, stopped, wait_for, wrk

MAX_BATCH = 16
CONNECTIONS = (1, 16)
PACKAGES = ("onnxruntime", "numpy", "uvicorn", "starlette")
PATH = "/v2/models/bundle/infer"


def prepare(folder: Path) -> None:
    """The bundle, and a request."""
    code = """
import sys, numpy as np, keras, keras_resnets
from keras_resnets.export import Gate, to_bundle
keras.utils.set_random_seed(0)
noise = np.random.default_rng(0)
model = keras_resnets.ResNet50(classifier_activation=None)
keras_resnets.update_batch_norm(model, [noise.normal(size=(8, 224, 224, 3)).astype("float32")])
to_bundle(model, sys.argv[1] + "/bundle", saved_model=False, precisions=["int8"], gate=Gate(0.0, 1.0))
noise.normal(size=(1, 224, 224, 3)).astype("float32").tofile(sys.argv[1] + "/tensor")
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True)
    tensor = (folder / "tensor").read_bytes()
    binary = {"binary_data_size": len(tensor)}
    item = {"name": "images", "shape": [1, 224, 224, 3], "datatype": "FP32", "parameters": binary}
    head = json.dumps({"inputs": [item], "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}).encode()
    (folder / "request").write_bytes(head + tensor)
    (folder / "request.lua").write_text(
        f'wrk.method = "POST"\nwrk.body = io.open("{folder / "request"}", "rb"):read("*all")\n'
        f'wrk.headers["Inference-Header-Content-Length"] = "{len(head)}"\n'
    )


def measure_engine(file: Path, seconds: float) -> None:
    """Print the engine's figures as JSON; runs in a process of its own, with nothing in it but onnxruntime."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    sizes = [2**power for power in range(MAX_BATCH.bit_length())]
    for rows in sizes:
        session.run(None, {"images": np.zeros((rows, 224, 224, 3), np.float32)})
    figures: dict[str, Any] = {"memory_mb": memory_mb("VmRSS")}
    images = np.random.default_rng(0).normal(size=(MAX_BATCH, 224, 224, 3)).astype(np.float32)
    for rows in sizes:
        times: list[float] = []
        while sum(times) < seconds / len(sizes) or len(times) < 5:
            began = time.perf_counter()
            session.run(None, {"images": images[:rows]})
            times.append(time.perf_counter() - began)
        figures["p50_ms"] = figures.get("p50_ms") or 1e3 * statistics.median(times)
        figures["rows_per_second"] = max(figures.get("rows_per_second", 0.0), rows * len(times) / sum(times))
    print(json.dumps(figures))


def measure_server(folder: Path, seconds: float) -> Row:
    """The server's figures."""
    port = free_port()
    command = [sys.executable, "-m", "keras_resnets.cli", "serve", str(folder / "bundle"), "--precision", "int8"]
    command += ["--max-batch", str(MAX_BATCH), "--port", port, "--quiet"]
    began = time.perf_counter()
    with subprocess.Popen(command, start_new_session=True) as process, stopped(process):
        wait_for(f"http://127.0.0.1:{port}/v2/health/ready", None, "", process)
        row = {"ready_s": time.perf_counter() - began, "memory_mb": memory_mb("VmRSS", process.pid)}
        for connections in CONNECTIONS:
            told = wrk(f"http://127.0.0.1:{port}{PATH}", connections, seconds, folder / "request.lua")
            row |= {f"{key}_c{connections}": value for key, value in told.items()}
    return row


def take_turns(options: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> dict[str, list[Row]]:
    """The rows of both."""
    engine = [sys.executable, __file__, "--engine", str(folder / "bundle" / "model.int8.onnx")]
    engine += ["--seconds", str(2 * options.seconds)]
    rows: dict[str, list[Row]] = {"engine": [], "server": []}
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}: engine")
        rows["engine"].append(run(engine))
        say(f"round {number + 1} of {options.rounds}: server")
        rows["server"].append(measure_server(folder, options.seconds))
    return rows


def main() -> None:
    """Parse the options; see the module's docstring."""
    from rich.console import Console

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each run")
    parser.add_argument("--engine", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        measure_engine(options.engine, options.seconds)
        return
    need_wrk(parser)
    console = Console()
    with tempfile.TemporaryDirectory() as parent, console.status("preparing") as status:
        prepare(Path(parent))
        rows = take_turns(options, Path(parent), status.update)
    engine, server = medians(rows)["engine"], medians(rows)["server"]
    told = {
        "served_over_engine_rows_per_second": server["requests_per_second_c16"] / engine["rows_per_second"],
        "added_p50_ms_at_1_connection": server["p50_ms_c1"] - engine["p50_ms"],
        "added_memory_mb": server["memory_mb"] - engine["memory_mb"],
        "ready_s": server["ready_s"],
    }
    for name, value in told.items():
        console.print(f"{name}: {value:.2f}", highlight=False)
    file = write_result(f"serve_overhead_resnet50_int8_cpu{cores()}", PACKAGES, rows, told=told)
    console.print(f"wrote {file}")


if __name__ == "__main__":
    main()
