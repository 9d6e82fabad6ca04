"""BentoML with its adaptive batching.

Needs bentoml, onnxruntime, numpy and Pillow.
"""

import os
import sys
from pathlib import Path

import bentoml
from classifier import MAX_BATCH, MODEL, Classifier, options, tensor
from PIL.Image import Image

_WORKERS = "BENCHMARK_WORKERS"

if MODEL in os.environ:

    @bentoml.service(
        workers=int(os.environ[_WORKERS]),
        traffic={"timeout": 60, "max_concurrency": 1000},
        logging={"access": {"enabled": False}},
    )
    class Service:
        """One endpoint, whose requests are gathered into batches."""

        def __init__(self) -> None:
            self.session = Classifier()

        @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=1000)
        def classify(self, images: list[Image]) -> list[list[dict]]:
            """The best classes of each."""
            return self.session.run([tensor(image) for image in images])


if __name__ == "__main__":
    given = options(__doc__)
    os.environ |= {_WORKERS: str(given.workers), "BENTOML_DO_NOT_TRACK": "True"}
    os.chdir(Path(__file__).parent)
    program = str(Path(sys.executable).with_name("bentoml"))
    arguments = ["serve", f"{Path(__file__).stem}:Service", "--host", "127.0.0.1", "--port", str(given.port)]
    os.execv(program, [program, *arguments])
