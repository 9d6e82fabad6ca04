"""A client for the server, and others of its protocol: retries what may be retried, within a deadline."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keras_resnets.extras import extra
from keras_resnets.labels import Prediction
from keras_resnets.preprocessing import ImageError, ImageLike

from .protocol import DATATYPES, JSON_SIZE, datatype, to_bytes

with extra("serve"):
    import urllib3

_AGAIN = (429, 503)  # the server did not run the request
_PAUSE = 0.1  # seconds before the second attempt, doubled for each further one


class ServerError(RuntimeError):
    """A server that does not answer, or refuses; `status` is HTTP's, 0 where there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Asks a server; may be used by several threads.

    Args:
        url: of the server, as "http://127.0.0.1:8000".
        api_key: that it wants.
        timeout: seconds that a call may take, all its attempts together.
        retries: further attempts where the server was not reached, was overloaded or not ready.

    Raises:
        ValueError: for a URL that is none.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 30.0, retries: int = 4) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the server's URL must begin with http:// or https://, not {url!r}")
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self._headers = {"X-API-Key": api_key} if api_key else {}
        self._pool = urllib3.PoolManager(maxsize=32, retries=False)

    def ready(self) -> bool:
        """Whether the server takes requests."""
        try:
            return self._once("GET", "/v2/health/ready", b"", {}, self.timeout).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def models(self) -> list[dict[str, Any]]:
        """The cards of the models that it serves.

        Raises:
            ServerError: see there.
        """
        cards: list[dict[str, Any]] = json.loads(self._ask("GET", "/v1/models").data)["models"]
        return cards

    def classify(self, model: str, images: ImageLike | Sequence[ImageLike], top: int = 5) -> list[list[Prediction]]:
        """The `top` most probable classes of each image, best first.

        Args:
            model: its name on the server.
            images: one image or several: file paths, a file's bytes, Pillow images, uint8 arrays [height, width] or
                [height, width, channels].
            top: how many classes an image.

        Raises:
            ServerError: see there.
            ImageError: when a file cannot be read.
        """
        several = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
        many: Sequence[ImageLike] = images if several else [images]  # type: ignore[assignment,list-item]
        if not many:
            return []
        fields = [("image", (f"{number}", _file(image))) for number, image in enumerate(many)]
        body, kind = urllib3.encode_multipart_formdata(fields)
        path = f"/v1/classify/{quote(model, safe='')}"
        told = json.loads(self._ask("POST", path, body, {"Content-Type": kind}, {"top": top}).data)
        return [[Prediction(one["label"], one["class"], one["score"]) for one in row] for row in told["predictions"]]

    def infer(self, model: str, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """A model's outputs for its inputs, by name.

        Raises:
            ServerError: see there.
            ValueError: for a type that the protocol has not.
        """
        inputs, raw = [], []
        for name, array in tensors.items():
            tensor = np.asarray(array)
            if tensor.dtype.name not in {kind for kind, _ in DATATYPES.values()}:
                raise ValueError(f"{name} is of {tensor.dtype}, which the protocol has not")
            raw.append(to_bytes(tensor))
            inputs.append({
                "name": name, "shape": list(tensor.shape), "datatype": datatype(tensor),
                "parameters": {"binary_data_size": len(raw[-1])},
            })  # fmt: skip
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        answer = self._ask(
            "POST", f"/v2/models/{quote(model, safe='')}/infer", b"".join([head, *raw]), {JSON_SIZE: str(len(head))}
        )
        return _outputs(answer.data, int(answer.headers.get(JSON_SIZE, len(answer.data))))

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> Any:
        """An answer of status 200, within the deadline."""
        end, pause = time.monotonic() + self.timeout, _PAUSE
        for attempt in range(self.retries + 1):
            left = end - time.monotonic()
            where = f"{path}?{urlencode({**(query or {}), 'timeout': round(left, 3)})}" if query is not None else path
            try:
                answer = self._once(method, where, body, headers or {}, left)
                if answer.status == 200:
                    return answer
                error = ServerError(f"{self.url}: {_message(answer)}", answer.status)
                wait = max(pause, _seconds(answer.headers.get("Retry-After")))
            except urllib3.exceptions.HTTPError as failure:
                error, wait = ServerError(f"{self.url} does not answer: {failure}"), pause
            if error.status not in (0, *_AGAIN) or attempt == self.retries or time.monotonic() + wait >= end:
                raise error
            time.sleep(wait)
            pause *= 2
        raise AssertionError("unreachable")

    def _once(self, method: str, path: str, body: bytes, headers: Mapping[str, str], seconds: float) -> Any:
        return self._pool.request(
            method, self.url + path, body=body or None, headers={**self._headers, **headers},
            timeout=urllib3.Timeout(total=max(seconds, 0.001)),
        )  # fmt: skip


def _file(image: ImageLike) -> bytes:
    """An image file's bytes: files as they are, others as PNG."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise ImageError(f"{image} cannot be read: {error.strerror}") from None
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.squeeze(np.asarray(image)))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _outputs(body: bytes, json_size: int) -> dict[str, NDArray[Any]]:
    outputs, first = {}, json_size
    for item in json.loads(body[:json_size])["outputs"]:
        kind = np.dtype(DATATYPES[item["datatype"]][0]).newbyteorder("<")
        size = item.get("parameters", {}).get("binary_data_size")
        if size is None:
            outputs[item["name"]] = np.array(item["data"], kind).reshape(item["shape"])
            continue
        outputs[item["name"]] = np.frombuffer(body[first : first + size], kind).reshape(item["shape"])
        first += size
    return outputs


def _message(answer: Any) -> str:
    try:
        return str(json.loads(answer.data)["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {answer.status}"


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isdecimal() else 0.0
