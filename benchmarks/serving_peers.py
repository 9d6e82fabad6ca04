"""What people use to serve the same file: contenders of benchmarks/serving.py, each as its documentation has it.

    PEERS/bin/python benchmarks/serving_peers.py fastapi --model model.onnx --port 8001 --workers 2

fastapi: an endpoint per image on FastAPI's thread pool. litserve, bentoml and ray: the same with their batching. Each
worker is a process with one ONNX Runtime session of one thread. Needs fastapi, uvicorn[standard], onnxruntime, numpy
and Pillow, and litserve, bentoml or ray[serve]. An image comes as the body: a PNG, but for LitServe, which takes no
such bodies, and gets it as base64 in JSON.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL = "BENCHMARK_MODEL"
SCALE, MEAN, STD = 1 / 255, 0.5, 0.25  # as benchmarks/serving.py makes the bundle
MAX_BATCH = 16
BATCH_SECONDS = 0.002  # that a first request waits for others
MODULE = Path(__file__).stem


class Classifier:
    """The model's file, with the work that all contenders do: decode, normalize, run, and the best five."""

    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ[MODEL], options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def __call__(self, bodies: Sequence[bytes]) -> list[list[dict[str, Any]]]:
        """The best classes of each image file."""
        import numpy as np

        return self.run(np.stack([self.decode(body) for body in bodies]))

    @staticmethod
    def decode(body: bytes) -> Any:
        """An image's tensor."""
        import numpy as np
        from PIL import Image

        image = np.asarray(Image.open(io.BytesIO(body)).convert("L"), np.float32)
        return ((image * np.float32(SCALE) - np.float32(MEAN)) / np.float32(STD))[:, :, None]

    def run(self, tensors: Any) -> list[list[dict[str, Any]]]:
        """The best classes of each tensor."""
        (scores,) = self.session.run(None, {self.name: tensors})
        best = (-scores).argsort(axis=1)[:, :5].tolist()
        rows = scores.tolist()
        return [[{"class": i, "score": row[i]} for i in order] for order, row in zip(best, rows, strict=True)]


def fastapi_app() -> Any:
    """One image a request, as FastAPI's documentation has it for work that blocks: in its threads."""
    from fastapi import FastAPI, Request
    from starlette.concurrency import run_in_threadpool

    app, classify = FastAPI(), Classifier()

    @app.post("/classify")
    async def endpoint(request: Request) -> list[dict[str, Any]]:
        return (await run_in_threadpool(classify, [await request.body()]))[0]

    return app


def serve_fastapi(port: int, workers: int) -> None:
    """Run it."""
    import uvicorn

    folder = str(Path(__file__).parent)
    uvicorn.run(
        f"{MODULE}:fastapi_app", factory=True, port=port, workers=workers, log_level="error", app_dir=folder,
    )  # fmt: skip


def serve_litserve(port: int, workers: int) -> None:
    """LitServe with its batching."""
    import litserve

    class Api(litserve.LitAPI):
        def setup(self, device: Any) -> None:
            self.classify = Classifier()

        def decode_request(self, request: Any) -> Any:
            return Classifier.decode(base64.b64decode(request["image"]))

        def predict(self, tensors: Any) -> Any:
            return self.classify.run(tensors)

        def unbatch(self, output: Any) -> Any:
            return output

        def encode_response(self, output: Any) -> Any:
            return output

    api = Api(max_batch_size=MAX_BATCH, batch_timeout=BATCH_SECONDS, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)


def bentoml_service(workers: int) -> Any:
    """BentoML's service with adaptive batching: its workers share the batches that one of them gathers."""
    import bentoml
    import numpy as np
    from PIL.Image import Image

    @bentoml.service(workers=workers, traffic={"timeout": 60, "max_concurrency": 1000})
    class Service:
        def __init__(self) -> None:
            self.classify = Classifier()

        @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=1000, route="/classify")
        def classify_images(self, images: list[Image], /) -> list[list[dict]]:
            def tensor(image: Image) -> Any:
                pixels = np.asarray(image.convert("L"), np.float32)
                return ((pixels * np.float32(SCALE) - np.float32(MEAN)) / np.float32(STD))[:, :, None]

            return self.classify.run(np.stack([tensor(image) for image in images]))

    return Service


def serve_bentoml(port: int, workers: int) -> None:
    """BentoML's own server, which imports the service from this file."""
    command = [str(Path(sys.executable).with_name("bentoml")), "serve", f"{MODULE}:bento", "--port", str(port)]
    command += ["--host", "127.0.0.1"]
    environment = {**os.environ, "BENTO_WORKERS": str(workers), "BENTOML_DO_NOT_TRACK": "1"}
    _stay(subprocess.Popen(command, cwd=Path(__file__).parent, env=environment))


def serve_ray(port: int, workers: int) -> None:
    """Ray Serve with its batching, a replica each worker."""
    import ray
    from ray import serve
    from starlette.requests import Request

    @serve.deployment(num_replicas=workers, max_ongoing_requests=200, ray_actor_options={"num_cpus": 1})
    class Deployment:
        def __init__(self) -> None:
            self.classify = Classifier()

        @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_SECONDS)
        async def batch(self, bodies: list[bytes]) -> Any:
            return self.classify(bodies)

        async def __call__(self, request: Request) -> Any:
            return await self.batch(await request.body())

    environment = {"env_vars": {MODEL: os.environ[MODEL]}}
    ray.init(num_cpus=workers + 1, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Deployment.bind(), route_prefix="/classify")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


def _stay(process: subprocess.Popen[bytes]) -> None:
    """Wait for a server, and let SIGTERM through to it."""
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    process.wait()


SERVERS = {"fastapi": serve_fastapi, "litserve": serve_litserve, "bentoml": serve_bentoml, "ray": serve_ray}
if "BENTO_WORKERS" in os.environ:
    bento = bentoml_service(int(os.environ["BENTO_WORKERS"]))


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peer", choices=list(SERVERS))
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    os.environ[MODEL] = str(Path(options.model).resolve())
    SERVERS[options.peer](options.port, options.workers)


def as_json(image: bytes) -> bytes:
    """What LitServe is asked with."""
    return json.dumps({"image": base64.b64encode(image).decode()}).encode()


if __name__ == "__main__":
    main()
