"""What people would write themselves to serve the same file: contenders of benchmarks/serving.py.

    PEERS/bin/python benchmarks/serving_peers.py fastapi --model model.onnx --port 8001 --workers 2

fastapi: an endpoint per image on FastAPI's thread pool, one ONNX Runtime session of one thread a process. Needs
fastapi, uvicorn[standard], onnxruntime, numpy and Pillow.
"""

from __future__ import annotations

import argparse
import io
import os
from typing import Any

MODEL, SCALE, MEAN, STD = "BENCHMARK_MODEL", 1 / 255, 0.5, 0.25  # as benchmarks/serving.py makes the bundle


def fastapi_app() -> Any:
    """One image a request, as FastAPI's documentation has it for work that blocks: a plain function, in its threads."""
    import numpy as np
    import onnxruntime
    from fastapi import FastAPI, Request
    from PIL import Image

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.environ[MODEL], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    app = FastAPI()

    def classify(body: bytes) -> list[dict[str, Any]]:
        image = np.asarray(Image.open(io.BytesIO(body)).convert("L"), np.float32)
        tensor = (image * SCALE - MEAN) / STD
        (scores,) = session.run(None, {name: tensor[None, :, :, None]})
        best = np.argsort(-scores[0])[:5]
        return [{"class": int(i), "score": float(scores[0, i])} for i in best]

    @app.post("/classify")
    async def endpoint(request: Request) -> list[dict[str, Any]]:
        from starlette.concurrency import run_in_threadpool

        return await run_in_threadpool(classify, await request.body())

    return app


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peer", choices=["fastapi"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    os.environ[MODEL] = options.model
    import uvicorn

    uvicorn.run(
        "serving_peers:fastapi_app", factory=True, port=options.port, workers=options.workers, log_level="error",
        app_dir=os.path.dirname(os.path.abspath(__file__)),  # noqa: PTH100, PTH120 (uvicorn wants a text)
    )  # fmt: skip


if __name__ == "__main__":
    main()
