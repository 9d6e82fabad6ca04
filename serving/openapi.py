"""The server's HTTP interface as an OpenAPI 3.1 document: for people, client generators and tests."""

from __future__ import annotations

from typing import Any

from .protocol import DATATYPES
from .service import VERSION

_NAME = {"name": "name", "in": "path", "required": True, "description": "of the model", "schema": {"type": "string"}}
_VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
_TENSOR = {
    "name": {"type": "string"},
    "datatype": {"enum": [*DATATYPES, "BYTES"]},
    "shape": {"type": "array", "items": {"type": "integer", "minimum": -1}},
}


def document() -> dict[str, Any]:
    """The document, as JSON types."""
    paths: dict[str, Any] = {
        "/v1/classify/{name}": {"post": _classify()},
        "/v1/models": {"get": _operation("Cards of the models", _object(models={"type": "array"}))},
        "/v2": {"get": _operation("The server's name, version and extensions", _object(name={"type": "string"}))},
        "/v2/health/live": {"get": _operation("Whether the process answers", _object(live={"type": "boolean"}))},
        "/v2/health/ready": {
            "get": _operation("Whether requests are taken", _object(ready={"type": "boolean"}), also={503: "not yet"})
        },
        "/v2/models/stats": {"get": _operation("Counts of all models", _object(model_stats={"type": "array"}))},
        "/v2/repository/index": {"post": _index()},
        "/v2/repository/models/{name}/load": {"post": _control("Load a model as it is on the disk")},
        "/v2/repository/models/{name}/unload": {"post": _control("Take a model out of service")},
        "/metrics": {"get": {"summary": "Prometheus", "responses": {"200": {"description": "its text format"}}}},
    }
    for start, parameters in (
        ("/v2/models/{name}", [_NAME]), ("/v2/models/{name}/versions/{version}", [_NAME, _VERSION]),
    ):  # fmt: skip
        paths[start] = {"get": _of_model("Its tensors", _metadata(), parameters)}
        paths[f"{start}/ready"] = {
            "get": _of_model("Whether it answers", _object(ready={"type": "boolean"}), parameters)
        }
        paths[f"{start}/config"] = {
            "get": _of_model("In the words of Triton's", _object(max_batch_size={"type": "integer"}), parameters)
        }
        paths[f"{start}/stats"] = {"get": _of_model("Counts", _object(model_stats={"type": "array"}), parameters)}
        paths[f"{start}/infer"] = {"post": _infer(parameters)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "keras_resnets", "version": VERSION, "description": "Image classification, and the Open "
                 "Inference Protocol v2 with Triton's binary, classification, statistics and repository extensions."},
        "paths": paths,
        "components": {
            "schemas": {"Error": _object(error={"type": "string", "minLength": 1})},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }  # fmt: skip


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _content(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _operation(
    summary: str,
    answer: Any,
    parameters: Any = (),
    body: Any = None,
    also: dict[int, str] | None = None,
) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": "done", "content": _content(answer)}}
    error = _content({"$ref": "#/components/schemas/Error"})
    for status, description in (also or {}).items():
        content = _content(answer) if status == 503 and "ready" in answer.get("properties", {}) else error
        responses[str(status)] = {"description": description, "content": content}
    responses["401"] = {"description": "a key is needed", "content": error}
    operation: dict[str, Any] = {"summary": summary, "parameters": list(parameters), "responses": responses}
    if body is not None:
        operation["requestBody"] = body
    return operation


_UNKNOWN = {404: "no such model or version"}
_NOT_READY = {503: "not loaded, or shutting down"}
_TOO_MUCH = {
    400: "wrong in itself", 408: "sent too slowly", 413: "too large", 415: "unknown compression", 429: "overload",
    504: "its deadline passed",
}  # fmt: skip


def _of_model(summary: str, answer: Any, parameters: Any) -> dict[str, Any]:
    operation = _operation(summary, answer, parameters, also=_UNKNOWN)
    error = _content({"$ref": "#/components/schemas/Error"})
    operation["responses"]["503"] = {"description": _NOT_READY[503], "content": error}
    return operation


def _metadata() -> dict[str, Any]:
    tensors = {"type": "array", "items": _object(**_TENSOR)}
    return _object(
        name={"type": "string"}, versions={"type": "array", "items": {"type": "string"}},
        platform={"type": "string"}, inputs=tensors, outputs=tensors,
    )  # fmt: skip


def _infer(parameters: Any) -> dict[str, Any]:
    sizes = {"shape": {"type": "array", "items": {"type": "integer", "minimum": 0}}}
    data = {"type": "array", "description": "the values, flat or nested"}
    request = _object(
        inputs={"type": "array", "minItems": 1, "items": {
            "type": "object", "required": ["name", "datatype", "shape"],
            "properties": {**_TENSOR, **sizes, "data": data, "parameters": {"type": "object"}},
        }},
    )  # fmt: skip
    request["properties"] |= {
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _object(name={"type": "string"})},
        "parameters": {"type": "object"},
    }
    answer = _object(
        model_name={"type": "string"}, model_version={"type": "string"},
        outputs={"type": "array", "items": _object(**_TENSOR)},
    )  # fmt: skip
    body = {"required": True, "content": {**_content(request), "application/octet-stream": {"schema": {}}}}
    size = {
        "name": "Inference-Header-Content-Length", "in": "header", "description": "bytes of JSON before binary tensors",
        "schema": {"type": "integer", "minimum": 0},
    }  # fmt: skip
    return _operation("Run a model", answer, [*parameters, size], body, {**_UNKNOWN, **_TOO_MUCH, **_NOT_READY})


def _classify() -> dict[str, Any]:
    query = [
        {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 5}},
        {
            "name": "timeout",
            "in": "query",
            "description": "seconds",
            "schema": {"type": "number", "exclusiveMinimum": 0},
        },
        {"name": "version", "in": "query", "schema": {"type": "string"}},
    ]
    one = {"label": {"type": "string"}, "class": {"type": "integer"}, "score": {"type": "number"}}
    answer = _object(
        model_name={"type": "string"}, model_version={"type": "string"},
        predictions={"type": "array", "items": {"type": "array", "items": _object(**one)}},
        milliseconds={"type": "object"},
    )  # fmt: skip
    file = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
    body = {"required": True, "content": dict.fromkeys(("image/jpeg", "image/png", "image/webp"), file)}
    return _operation(
        "The most probable classes of an image file, or of several as multipart/form-data", answer, [_NAME, *query],
        body, {**_UNKNOWN, **_TOO_MUCH, **_NOT_READY},
    )  # fmt: skip


def _index() -> dict[str, Any]:
    schema = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    row = _object(**{key: {"type": "string"} for key in ("name", "version", "state", "reason")})
    return _operation(
        "Every version of every model", {"type": "array", "items": row}, body={"content": _content(schema)},
        also={400: _TOO_MUCH[400], 408: _TOO_MUCH[408], 413: _TOO_MUCH[413], 415: _TOO_MUCH[415]},
    )  # fmt: skip


def _control(summary: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"parameters": {"type": "object"}}}
    return _operation(
        summary, {"type": "object"}, [_NAME], {"content": _content(schema)},
        {**_UNKNOWN, 400: _TOO_MUCH[400], 403: "only with --control", 408: _TOO_MUCH[408], 413: _TOO_MUCH[413],
         415: _TOO_MUCH[415]},
    )  # fmt: skip
