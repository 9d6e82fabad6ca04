"""FastAPI and uvicorn: an endpoint per image, whose work is done in FastAPI's threads.

Needs fastapi, uvicorn[standard], onnxruntime, numpy and Pillow.
"""

import os
from pathlib import Path
from typing import Any

import uvicorn
from classifier import MODEL, Classifier, options
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

if MODEL in os.environ:
    app, classify = FastAPI(), Classifier()

    @app.post("/classify")
    async def endpoint(request: Request) -> list[dict[str, Any]]:
        """The best classes of the image in the body."""
        return (await run_in_threadpool(classify, [await request.body()]))[0]


if __name__ == "__main__":
    given = options(__doc__)
    name = f"{Path(__file__).stem}:app"
    uvicorn.run(name, port=given.port, workers=given.workers, log_level="error", app_dir=str(Path(__file__).parent))
