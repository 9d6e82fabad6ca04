"""Ray Serve with its batching, a replica each worker.

Needs ray[serve], onnxruntime, numpy and Pillow.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
from classifier import BATCH_SECONDS, MAX_BATCH, MODEL, Classifier, options
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=200)
class Deployment:
    """One endpoint, whose requests are gathered into batches."""

    def __init__(self) -> None:
        self.classify = Classifier()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_SECONDS)
    async def batch(self, images: list[bytes]) -> Any:
        """The best classes of each."""
        return self.classify(images)

    async def __call__(self, request: Request) -> Any:
        """The best classes of the image in the body."""
        return await self.batch(await request.body())


if __name__ == "__main__":
    given = options(__doc__)
    environment = {"env_vars": {MODEL: os.environ[MODEL], "PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(num_cpus=given.workers + 1, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    serve.run(Deployment.options(num_replicas=given.workers).bind(), route_prefix="/classify")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()
