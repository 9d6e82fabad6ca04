"""The HTTP side of the server: the Open Inference Protocol, classification of image files, health and metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_resnets.extras import extra
from keras_resnets.preprocessing import ImageError

from .describe import card_of, config_of, metadata_of
from .openapi import document
from .protocol import JSON_SIZE, ProtocolError, parse_request, response
from .served import ServedModel
from .service import EXTENSIONS, VERSION, Asked, RequestError, Service, Verdict, holds_key
from .web import ClientGoneError, off_the_loop, read_body, while_connected

with extra("serve"):
    import orjson
    from prometheus_client import CONTENT_TYPE_LATEST
    from starlette.datastructures import Headers, UploadFile
    from starlette.exceptions import HTTPException
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route, Router
    from starlette.types import Message, Receive, Scope, Send

_ASKS = re.compile(r"/v2/models/(?P<infer>[^/]+)(/versions/(?P<version>[^/]+))?/infer|/v1/classify/(?P<classify>[^/]+)")
_WORTH_COMPRESSING = 1024  # bytes
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


class App:
    """An ASGI application; see the module.

    Args:
        service: what answers.
        api_key: what clients must send as `Authorization: Bearer KEY` or `X-API-Key: KEY`, if anything.
    """

    def __init__(self, service: Service, api_key: str | None = None) -> None:
        self.service, self._key = service, api_key
        self._router = Router([Route(path, handler, methods=[method]) for method, path, handler in self._handlers()])
        self._compressing = GZipMiddleware(self._answer, minimum_size=_WORTH_COMPRESSING, compresslevel=4)

    def _handlers(self) -> list[tuple[str, str, Any]]:
        """Method, path and handler."""
        of_a_model = [
            ("POST", "/infer", self._infer),  # for what GET and others are told
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
            ("GET", "/openapi.json", self._openapi),
            ("GET", "/", self._page),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served, not {scope['type']}")
        headers = Headers(scope=scope)
        asked = Asked("http", headers.get("x-request-id", ""))
        scope.update(app=self, state={"asked": asked})
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", asked.id.encode())]
            await send(message)

        self.service.active += 1
        try:
            if self._key is not None and scope["path"] not in _OPEN and not holds_key(headers, self._key):
                message = "an API key is needed: Authorization: Bearer KEY"
                raise RequestError(401, message, **{"www-authenticate": "Bearer"})
            compress = "gzip" in headers.get("accept-encoding", "")
            await (self._compressing if compress else self._answer)(scope, receive, send_with_id)
        except Exception as error:
            if status:
                raise  # half an answer is sent: the server closes the connection
            if isinstance(error, HTTPException):
                message = f"{error.detail}; GET /openapi.json lists what there is"
                error = RequestError(error.status_code, message, **(error.headers or {}))
            verdict = self.service.refused(asked, error)
            status = verdict.status
            if not isinstance(error, ClientGoneError):
                await _send_error(send_with_id, verdict)
        finally:
            self.service.active -= 1
        self.service.metrics.answered(asked.model, "http", status)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What most requests ask goes past the router and its layers: refusals under overload would pay for them."""
        asks = _ASKS.fullmatch(scope["path"]) if scope["method"] == "POST" else None
        if asks is None:
            await self._router(scope, receive, send)
            return
        infers = asks["infer"] is not None
        scope["path_params"] = {"name": asks["infer"] if infers else asks["classify"], "version": asks["version"]}
        answer = await (self._infer if infers else self._classify)(Request(scope, receive, send))
        await answer(scope, receive, send)

    def _admitted(self, request: Request, timeout: float | None = None) -> tuple[ServedModel, float]:
        version = request.path_params.get("version") or _query(request).get("version")
        return self.service.admit(_asked(request), request.path_params["name"], version, timeout)

    async def _infer(self, request: Request) -> Response:
        model, deadline = self._admitted(request)
        json_size = _json_size(request.headers)
        body = await read_body(request.headers, request.receive, self.service.limits.body)
        text = len(body) if json_size is None else json_size  # binary tensors are not even copied
        message = await off_the_loop(text, parse_request, body, json_size, model.inputs, model.outputs)
        if message.timeout is not None:
            deadline = min(deadline, _asked(request).began + message.timeout)
        answer = await while_connected(request.receive, model.infer(message.inputs, deadline))
        parts, json_size = response(model.name, model.version, message, answer.outputs, model.labels)
        self.service.succeeded(_asked(request), model, answer)
        if json_size is None:
            return Response(parts[0], media_type="application/json")
        return Response(b"".join(parts), headers={JSON_SIZE: str(json_size)}, media_type="application/octet-stream")

    async def _classify(self, request: Request) -> Response:
        top = _top(request)
        model, deadline = self._admitted(request, _timeout(request))
        images = await self._images(request)
        predictions, answer = await while_connected(request.receive, model.classify(images, top, deadline))
        self.service.succeeded(_asked(request), model, answer)
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
        body = await read_body(request.headers, request.receive, self.service.limits.body)
        images = [body]
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            images = await _files(request.scope, body, self.service.limits.images)
        if not all(images):
            raise ImageError("the body is empty: send a JPEG, PNG or WebP file")
        return images

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _is_ready(self, request: Request) -> Response:
        return _json({"ready": self.service.ready}, 200 if self.service.ready else 503)

    async def _server(self, request: Request) -> Response:
        return _json({"name": "keras_resnets", "version": VERSION, "extensions": EXTENSIONS})

    def _model(self, request: Request) -> ServedModel:
        return self.service.repository.get(request.path_params["name"], request.path_params.get("version"))

    async def _model_ready(self, request: Request) -> Response:
        model = self._model(request)
        return _json({"name": model.name, "ready": not self.service.draining}, 503 if self.service.draining else 200)

    async def _metadata(self, request: Request) -> Response:
        model = self._model(request)
        return _json(metadata_of(model, self.service.repository.versions(model.name)))

    async def _config(self, request: Request) -> Response:
        return _json(config_of(self._model(request)))

    async def _statistics(self, request: Request) -> Response:
        path = request.path_params
        return _json({"model_stats": await self.service.statistics(path.get("name"), path.get("version"))})

    async def _models(self, request: Request) -> Response:
        return _json({"models": [card_of(model) for model in self.service.repository.models()]})

    async def _index(self, request: Request) -> Response:
        ready = (await self._object(request)).get("ready", False)
        if not isinstance(ready, bool):
            raise ProtocolError("ready must be true or false")
        return _json(self.service.repository.index(ready))

    async def _load(self, request: Request) -> Response:
        await self.service.load(request.path_params["name"], await self._parameters(request))
        return _json({})

    async def _unload(self, request: Request) -> Response:
        await self.service.unload(request.path_params["name"], await self._parameters(request))
        return _json({})

    async def _parameters(self, request: Request) -> Mapping[str, Any]:
        parameters = (await self._object(request)).get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise ProtocolError("parameters must be an object")
        return parameters

    async def _object(self, request: Request) -> dict[str, Any]:
        """The body's JSON object; an empty body is an empty one."""
        body = await read_body(request.headers, request.receive, self.service.limits.body)
        try:
            message = orjson.loads(body) if body.strip() else {}
        except orjson.JSONDecodeError as error:
            raise ProtocolError(f"the body is not valid JSON: {error}") from None
        if not isinstance(message, dict):
            raise ProtocolError("the body must be a JSON object")
        return message

    async def _openapi(self, request: Request) -> Response:
        return _json(document())

    async def _page(self, request: Request) -> Response:
        headers = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
        return Response(_PAGE.read_bytes(), headers=headers, media_type="text/html")

    async def _metrics(self, request: Request) -> Response:
        return Response(await self.service.exposition(), headers={"content-type": CONTENT_TYPE_LATEST})


async def _files(scope: Scope, body: bytes, most: int) -> list[bytes]:
    """The files of a form."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        async with Request(scope, receive).form(max_files=most, max_fields=most) as form:
            files = [await item.read() for _, item in form.multi_items() if isinstance(item, UploadFile)]
    except HTTPException as error:
        raise RequestError(400, f"the form cannot be read: {error.detail}") from None
    if not files:
        raise RequestError(400, "the form has no files")
    return files


async def _send_error(send: Send, verdict: Verdict) -> None:
    body = orjson.dumps({"error": verdict.message})
    headers = {"content-type": "application/json", "content-length": str(len(body)), **verdict.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": verdict.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _asked(request: Request) -> Asked:
    asked: Asked = request.scope["state"]["asked"]
    return asked


def _query(request: Request) -> Mapping[str, str]:
    return request.query_params if request.scope["query_string"] else {}


def _top(request: Request) -> int:
    text = _query(request).get("top", "5")
    if not (text.isascii() and text.isdecimal() and len(text) < 5 and 1 <= int(text) <= 1000):
        raise RequestError(400, "top must be a whole number from 1 to 1000")
    return int(text)


def _timeout(request: Request) -> float | None:
    """Seconds."""
    text = _query(request).get("timeout")
    try:
        seconds = float(text) if text is not None else None
    except ValueError:
        seconds = math.nan
    if seconds is not None and not 0 < seconds < 1e6:
        raise RequestError(400, "timeout must be a number of seconds above 0")
    return seconds


def _json_size(headers: Headers) -> int | None:
    text = headers.get(JSON_SIZE)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 12:
        raise ProtocolError(f"{JSON_SIZE} must be a whole number, not {text[:40]!r}")
    return int(text)


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
