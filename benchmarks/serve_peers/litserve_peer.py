"""LitServe with its batching. It takes no raw bodies: the image comes as base64 in JSON.

Needs litserve, onnxruntime, numpy and Pillow.
"""

import base64
import io
from typing import Any

import litserve
from classifier import BATCH_SECONDS, MAX_BATCH, Classifier, options, tensor
from PIL import Image


class Api(litserve.LitAPI):
    """LitServe's stages of a request."""

    def setup(self, device: str) -> None:
        """Open the session."""
        self.classify = Classifier()

    def decode_request(self, request: dict[str, str]) -> Any:
        """The tensor."""
        return tensor(Image.open(io.BytesIO(base64.b64decode(request["image"]))))

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Left to `predict`."""
        return inputs

    def predict(self, tensors: list[Any]) -> Any:
        """The best classes."""
        return self.classify.run(tensors)

    def unbatch(self, output: Any) -> Any:
        """A list already."""
        return output

    def encode_response(self, output: Any) -> Any:
        """JSON already."""
        return output


if __name__ == "__main__":
    given = options(__doc__)
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=BATCH_SECONDS, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=given.workers)
    server.run(host="127.0.0.1", port=given.port, log_level="error", generate_client_file=False)
