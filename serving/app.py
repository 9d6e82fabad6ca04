"""The HTTP side of the server: the Open Inference Protocol, classification of image files, health and metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_resnets import __version__
from keras_resnets.bundle import BundleError
from keras_resnets.extras import extra
from keras_resnets.preprocessing import ImageError

from .batcher import Answer, ClosedError, DeadlineError, OverloadError
from .describe import card_of, config_of, metadata_of
from .metrics import Metrics
from .protocol import ProtocolError, parse_request, response
from .repository import NotReadyError, Repository, UnknownModelError
from .served import ServedModel
from .web import ClientGoneError, HttpError, read_body, while_connected

with extra("serve"):
    import orjson
    from prometheus_client import CONTENT_TYPE_LATEST
    from starlette.datastructures import Headers, UploadFile
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route, Router
    from starlette.types import Message, Receive, Scope, Send

_LOG = logging.getLogger(__name__)
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_EXTENSIONS = ["binary_tensor_data", "classification", "statistics", "model_repository"]
_JSON_SIZE = "Inference-Header-Content-Length"
_PAGE = Path(__file__).with_name("page.html")
# The page needs nothing from elsewhere, and lets nothing in.
_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_OPEN = (
    "/v2/health/live",
    "/v2/health/ready",
    "/metrics",
    "/",
)  # without a key: probes, scrapers, and who will give it


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them, may take.

    Args:
        body: bytes of a request, before and after decompression.
        images: image files of a request to classify.
        concurrency: requests that are worked on at once; others are refused.
    """

    body: int = 64 * 2**20
    images: int = 64
    concurrency: int = 1000


class _Asked:
    """What is known of a request on its way."""

    def __init__(self, headers: Headers) -> None:
        given = headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self.model = self.version = ""
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began


class App:
    """An ASGI application; see the module.

    Args:
        repository: the models.
        metrics: counts what happens.
        limits: see there.
        api_key: what clients must send as `Authorization: Bearer KEY` or `X-API-Key: KEY`, if anything.
        control: whether models may be loaded and unloaded by request.

    Attributes:
        draining: set this to refuse what comes from now on.
        active: requests that are worked on.
    """

    def __init__(
        self,
        repository: Repository,
        metrics: Metrics,
        limits: Limits | None = None,
        api_key: str | None = None,
        control: bool = False,
    ) -> None:
        self.repository, self.metrics, self.limits = repository, metrics, limits or Limits()
        self.draining, self.active = False, 0
        self._key, self._control = api_key, control
        self._router = Router([Route(path, handler, methods=[method]) for method, path, handler in self._handlers()])

    @property
    def ready(self) -> bool:
        """Whether requests are taken: every model is warm, and nothing is being shut down."""
        return not self.draining and self.repository.ready

    def _handlers(self) -> list[tuple[str, str, Any]]:
        """Method, path and handler."""
        of_a_model = [
            ("POST", "/infer", self._infer),
            ("GET", "/ready", self._model_ready),
            ("GET", "/config", self._config),
            ("GET", "/stats", self._statistics),
            ("GET", "", self._metadata),
        ]
        starts = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
        return [
            ("POST", "/v1/classify/{name}", self._classify),
            ("GET", "/v1/models", self._models),
            ("GET", "/v2/health/live", self._live),
            ("GET", "/v2/health/ready", self._is_ready),
            ("GET", "/v2/models/stats", self._statistics),
            *((method, start + end, handler) for start in starts for method, end, handler in of_a_model),
            ("GET", "/v2", self._server),
            ("GET", "/v2/", self._server),
            ("POST", "/v2/repository/index", self._index),
            ("POST", "/v2/repository/models/{name}/load", self._load),
            ("POST", "/v2/repository/models/{name}/unload", self._unload),
            ("GET", "/metrics", self._metrics),
            ("GET", "/", self._page),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served, not {scope['type']}")
        headers = Headers(scope=scope)
        asked = _Asked(headers)
        scope.update(app=self, state={"asked": asked})
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", asked.id.encode())]
            await send(message)

        self.active += 1
        try:
            if self._key is not None and scope["path"] not in _OPEN:
                self._check_key(headers)
            await self._router(scope, receive, send_with_id)
        except ClientGoneError:
            status = 499  # as nginx calls it
            self._refused(asked, status, "disconnected")
        except Exception as error:
            if status:
                raise  # half an answer is sent: the server closes the connection
            await self._refusal(asked, error)(scope, receive, send_with_id)
        finally:
            self.active -= 1
        self.metrics.answered(asked.model, "http", status)

    def _check_key(self, headers: Headers) -> None:
        given = headers.get("x-api-key", "")
        bearer, space, token = headers.get("authorization", "").partition(" ")
        if space and bearer.lower() == "bearer":
            given = token
        assert self._key is not None
        if not hmac.compare_digest(given.encode(), self._key.encode()):
            raise HttpError(401, "an API key is needed: Authorization: Bearer KEY", **{"www-authenticate": "Bearer"})

    def _refusal(self, asked: _Asked, error: Exception) -> Response:
        """The response to a request that failed; what a client may not know goes to the log alone."""
        status, cause, headers = _judged(error)
        message = str(error)
        if status == 500:
            _LOG.error("request failed", exc_info=error, extra={"request_id": asked.id, "model": asked.model})
            message = f"internal error; the server's log says more of request {asked.id}"
        elif isinstance(error, HTTPException):
            message = f"{error.detail}; GET /openapi.json says what there is"
        self._refused(asked, status, cause)
        return _json({"error": message}, status, headers)

    def _refused(self, asked: _Asked, status: int, cause: str) -> None:
        if asked.model:
            self.metrics.failure(asked.model, asked.version, cause, asked.seconds)
        _LOG.info("refused: %s", cause, extra={"request_id": asked.id, "model": asked.model, "status": status})

    def _admitted(self, request: Request, timeout: float | None = None) -> tuple[ServedModel, float]:
        """The model and the deadline, before the body is read: refusing costs little then."""
        if self.draining:
            raise ClosedError("the server is shutting down")
        version = request.path_params.get("version") or request.query_params.get("version")
        model = self.repository.get(request.path_params["name"], version)
        asked = _asked(request)
        asked.model, asked.version = model.name, model.version
        if self.active > self.limits.concurrency:
            raise OverloadError(f"{self.active} requests are being worked on", model.batcher.expected_wait())
        deadline = asked.began + (timeout or model.settings.deadline)
        model.batcher.admit(1, deadline)
        return model, deadline

    async def _infer(self, request: Request) -> Response:
        model, deadline = self._admitted(request)
        json_size = _json_size(request.headers)
        body = await read_body(request.headers, request.receive, self.limits.body)
        message = parse_request(body, json_size, model.inputs, model.outputs)
        if message.timeout is not None:
            deadline = min(deadline, _asked(request).began + message.timeout)
        answer = await while_connected(request.receive, model.infer(message.inputs, deadline))
        parts, json_size = response(model.name, model.version, message, answer.outputs, model.labels)
        self._succeeded(request, model, answer)
        if json_size is None:
            return Response(parts[0], media_type="application/json")
        return Response(b"".join(parts), headers={_JSON_SIZE: str(json_size)}, media_type="application/octet-stream")

    async def _classify(self, request: Request) -> Response:
        top = _top(request)
        model, deadline = self._admitted(request, _timeout(request))
        images = await self._images(request)
        predictions, answer = await while_connected(request.receive, model.classify(images, top, deadline))
        self._succeeded(request, model, answer)
        rows = [
            [{"label": one.label, "class": one.class_index, "score": one.score} for one in row] for row in predictions
        ]
        seconds = {"queue": answer.times.queue, "decode": answer.times.prepare, "compute": answer.times.compute}
        seconds["total"] = _asked(request).seconds
        return _json(
            {
                "model_name": model.name,
                "model_version": model.version,
                "predictions": rows,
                "milliseconds": {stage: round(1e3 * took, 3) for stage, took in seconds.items()},
            }
        )

    async def _images(self, request: Request) -> list[bytes]:
        """The image files of a body: one as it is, or several as multipart/form-data."""
        body = await read_body(request.headers, request.receive, self.limits.body)
        images = [body]
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            images = await _files(request.scope, body, self.limits.images)
        if not all(images):
            raise ImageError("the body is empty: send a JPEG, PNG or WebP file")
        return images

    def _succeeded(self, request: Request, model: ServedModel, answer: Answer) -> None:
        rows = len(next(iter(answer.outputs.values()))) if model.batched else 1
        self.metrics.success(model.name, model.version, rows, answer, _asked(request).seconds)

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _is_ready(self, request: Request) -> Response:
        return _json({"ready": self.ready}, 200 if self.ready else 503)

    async def _server(self, request: Request) -> Response:
        return _json({"name": "keras_resnets", "version": __version__, "extensions": _EXTENSIONS})

    def _model(self, request: Request) -> ServedModel:
        return self.repository.get(request.path_params["name"], request.path_params.get("version"))

    async def _model_ready(self, request: Request) -> Response:
        model = self._model(request)
        return _json({"name": model.name, "ready": not self.draining}, 503 if self.draining else 200)

    async def _metadata(self, request: Request) -> Response:
        model = self._model(request)
        return _json(metadata_of(model, self.repository.versions(model.name)))

    async def _config(self, request: Request) -> Response:
        return _json(config_of(self._model(request)))

    async def _statistics(self, request: Request) -> Response:
        models = [self._model(request)] if request.path_params else self.repository.models()
        known = self.metrics.statistics
        return _json({"model_stats": [known[one.name, one.version].to_dict(one.name, one.version) for one in models]})

    async def _models(self, request: Request) -> Response:
        return _json({"models": [card_of(model) for model in self.repository.models()]})

    async def _index(self, request: Request) -> Response:
        ready = (await self._object(request)).get("ready", False)
        if not isinstance(ready, bool):
            raise ProtocolError("ready must be true or false")
        return _json([row for row in self.repository.index() if not ready or row["state"] == "READY"])

    async def _load(self, request: Request) -> Response:
        await self._check_control(request)
        name = request.path_params["name"]
        try:
            await self.repository.load(name)
        except UnknownModelError:
            raise
        except Exception as error:
            raise HttpError(400, f"model {name} cannot be loaded; what served before serves on: {error}") from error
        return _json({})

    async def _unload(self, request: Request) -> Response:
        await self._check_control(request)
        await self.repository.unload(request.path_params["name"])
        return _json({})

    async def _check_control(self, request: Request) -> None:
        if not self._control:
            raise HttpError(403, "models are loaded and unloaded only where the server was started with --control")
        parameters = (await self._object(request)).get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise ProtocolError("parameters must be an object")
        if refused := sorted(set(parameters) - {"unload_dependents"}):
            raise ProtocolError(f"{', '.join(refused)} is not taken: models come from the repository as it is on disk")

    async def _object(self, request: Request) -> dict[str, Any]:
        """The body's JSON object; an empty body is an empty one."""
        body = await read_body(request.headers, request.receive, self.limits.body)
        try:
            message = orjson.loads(body) if body.strip() else {}
        except orjson.JSONDecodeError as error:
            raise ProtocolError(f"the body is not valid JSON: {error}") from None
        if not isinstance(message, dict):
            raise ProtocolError("the body must be a JSON object")
        return message

    async def _page(self, request: Request) -> Response:
        headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
        return Response(_PAGE.read_bytes(), headers=headers, media_type="text/html")

    async def _metrics(self, request: Request) -> Response:
        self.metrics.ready(self.ready)
        return Response(await asyncio.to_thread(self.metrics.text), headers={"content-type": CONTENT_TYPE_LATEST})


def _judged(error: Exception) -> tuple[int, str, Mapping[str, str]]:
    """The status of an error, its name in the metrics, and headers."""
    if isinstance(error, HttpError):
        return error.status, f"http_{error.status}", error.headers
    if isinstance(error, HTTPException):
        return error.status_code, f"http_{error.status_code}", error.headers or {}
    if isinstance(error, OverloadError):
        return 429, "overload", {"retry-after": str(max(1, math.ceil(min(error.retry_after, 60.0))))}
    if isinstance(error, ClosedError):
        return 503, "closed", {"retry-after": "1"}
    known: list[tuple[type[Exception], int, str]] = [
        (UnknownModelError, 404, "unknown_model"),
        (NotReadyError, 503, "not_ready"),
        (DeadlineError, 504, "deadline"),
        (ImageError, 400, "image"),
        (ProtocolError, 400, "protocol"),
        (BundleError, 400, "not_a_classifier"),
    ]
    return next(
        ((status, cause, {}) for kind, status, cause in known if isinstance(error, kind)), (500, "internal", {})
    )


async def _files(scope: Scope, body: bytes, most: int) -> list[bytes]:
    """The files of a form."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        async with Request(scope, receive).form(max_files=most, max_fields=most) as form:
            files = [await item.read() for _, item in form.multi_items() if isinstance(item, UploadFile)]
    except HTTPException as error:
        raise HttpError(400, f"the form cannot be read: {error.detail}") from None
    if not files:
        raise HttpError(400, "the form has no files")
    return files


def _asked(request: Request) -> _Asked:
    asked: _Asked = request.scope["state"]["asked"]
    return asked


def _top(request: Request) -> int:
    text = request.query_params.get("top", "5")
    if not (text.isascii() and text.isdecimal() and len(text) < 5 and 1 <= int(text) <= 1000):
        raise HttpError(400, "top must be a whole number from 1 to 1000")
    return int(text)


def _timeout(request: Request) -> float | None:
    """Seconds."""
    text = request.query_params.get("timeout")
    try:
        seconds = float(text) if text is not None else None
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 < seconds < 1e6:
        raise HttpError(400, "timeout must be a number of seconds above 0")
    return seconds


def _json_size(headers: Headers) -> int | None:
    text = headers.get(_JSON_SIZE)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise ProtocolError(f"{_JSON_SIZE} must be a whole number, not {text[:40]!r}")
    return int(text)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type="application/json")
