"""What the server does with a request, whichever protocol brought it: admission, models, counting, errors."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

from keras_resnets.bundle import BundleError
from keras_resnets.preprocessing import ImageError

from .batcher import Answer, ClosedError, DeadlineError, OverloadError
from .figures import to_text
from .metrics import Metrics
from .protocol import ProtocolError
from .repository import NotReadyError, Repository, UnknownModelError
from .served import ServedModel
from .siblings import Siblings

_LOG = logging.getLogger(__name__)
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SPARING = 1.0  # seconds between lines about overload, which would be a load themselves
VERSION = version("keras-resnets")
EXTENSIONS = ("binary_tensor_data", "classification", "statistics", "model_configuration", "model_repository")


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


class RequestError(Exception):
    """A request that ends with this status of HTTP, message and headers."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers, self.cause = status, headers, f"http_{status}"


class Verdict(NamedTuple):
    """What an error is called: a status of HTTP, a cause in the metrics, and what the client may know."""

    status: int
    cause: str
    message: str
    headers: Mapping[str, str]


class Asked:
    """What is known of a request on its way.

    Args:
        protocol: "http" or "grpc".
        given: the id that the client gave, if any.
    """

    def __init__(self, protocol: str, given: str = "") -> None:
        self.protocol = protocol
        self.id = given if _ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        self.model = self.version = ""
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began


def holds_key(headers: Mapping[str, Any], key: str) -> bool:
    """Whether HTTP's headers or gRPC's metadata have the key, as `authorization: Bearer KEY` or `x-api-key: KEY`."""
    given = str(headers.get("x-api-key", ""))
    bearer, space, token = str(headers.get("authorization", "")).partition(" ")
    if space and bearer.lower() == "bearer":
        given = token
    return hmac.compare_digest(given.encode(), key.encode())


class Service:
    """See the module.

    Args:
        repository: the models.
        metrics: counts what happens.
        limits: see there.
        control: whether models may be loaded and unloaded by request.

    Attributes:
        draining: set this to refuse what comes from now on.
        active: requests that are worked on.
        siblings: the other processes of the server, if it has any: what is counted is the sum of all.
    """

    def __init__(
        self, repository: Repository, metrics: Metrics, limits: Limits | None = None, control: bool = False
    ) -> None:
        self.repository, self.metrics, self.limits = repository, metrics, limits or Limits()
        self.draining, self.active = False, 0
        self.siblings: Siblings | None = None
        self._control = control
        self._told_of_overload, self._untold = 0.0, 0

    @property
    def ready(self) -> bool:
        """Whether requests are taken: every model is warm, and nothing is being shut down."""
        return not self.draining and self.repository.ready

    def admit(
        self, asked: Asked, name: str, version: str | None, timeout: float | None = None
    ) -> tuple[ServedModel, float]:
        """The model and the deadline, by time.monotonic. Before a body is read: refusing costs little then.

        Raises:
            UnknownModelError, NotReadyError, ClosedError, OverloadError, DeadlineError: see there.
        """
        if self.draining:
            raise ClosedError("the server is shutting down")
        model = self.repository.get(name, version or None)
        asked.model, asked.version = model.name, model.version
        if self.active > self.limits.concurrency:
            raise OverloadError(f"{self.active} requests are being worked on", model.batcher.expected_wait())
        deadline = asked.began + (timeout or model.settings.deadline)
        model.batcher.admit(1, deadline)
        return model, deadline

    def succeeded(self, asked: Asked, model: ServedModel, answer: Answer) -> None:
        """Count a request that was answered."""
        rows = len(next(iter(answer.outputs.values()))) if model.batched else 1
        self.metrics.success(model.name, model.version, rows, answer, asked.seconds)

    def refused(self, asked: Asked, error: Exception) -> Verdict:
        """Judge, count and log a request that failed; what a client may not know goes to the log alone."""
        verdict = _judged(error)
        told = {"request_id": asked.id, "model": asked.model, "status": verdict.status}
        if verdict.status == 500:
            _LOG.error("request failed", exc_info=error, extra=told)
            verdict = verdict._replace(message=f"internal error; the server's log says more of request {asked.id}")
        elif verdict.cause != "overload":
            _LOG.info("refused: %s", verdict.cause, extra=told)
        elif time.monotonic() - self._told_of_overload > _SPARING:
            more = f", and {self._untold} more since it was last told" if self._untold else ""
            _LOG.info("refused: overload%s", more, extra=told)
            self._told_of_overload, self._untold = time.monotonic(), 0
        else:
            self._untold += 1
        if asked.model:
            self.metrics.failure(asked.model, asked.version, verdict.cause, asked.seconds)
        return verdict

    async def statistics(self, name: str | None, version: str | None) -> list[dict[str, Any]]:
        """Of a model, or of all.

        Raises:
            UnknownModelError, NotReadyError: see there.
        """
        models = [self.repository.get(name, version or None)] if name else self.repository.models()
        known = self.metrics.statistics
        rows = [known(model.name, model.version).to_dict(model.name, model.version) for model in models]
        if self.siblings is None:
            return rows
        whole, _ = await self.siblings.whole(self.metrics.figures())
        found = {(row["name"], row["version"]): row for row in whole["statistics"]}
        return [found[row["name"], row["version"]] for row in rows]

    async def exposition(self) -> bytes:
        """All metrics, in Prometheus's text format."""
        self.metrics.ready(self.ready)
        if self.siblings is None:
            return await asyncio.to_thread(self.metrics.text)
        return to_text(*await self.siblings.whole(self.metrics.figures()))

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model as it is on the disk.

        Raises:
            RequestError: when that is not allowed, or it cannot be loaded.
            ProtocolError: when the request wants anything else.
        """
        self._check_control(parameters)
        try:
            await self.repository.load(name)
        except UnknownModelError:
            raise
        except Exception as error:
            message = f"model {name} cannot be loaded; what served before serves on: {error}"
            raise RequestError(400, message) from error

    async def unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Take a model out of service.

        Raises:
            RequestError, ProtocolError: as for `load`.
        """
        self._check_control(parameters)
        await self.repository.unload(name)

    def _check_control(self, parameters: Mapping[str, Any]) -> None:
        if not self._control:
            raise RequestError(403, "models are loaded and unloaded only where the server was started with --control")
        if refused := sorted(set(parameters) - {"unload_dependents"}):
            raise ProtocolError(f"{', '.join(refused)} is not taken: models come from the repository as it is on disk")


_KNOWN: tuple[tuple[type[Exception], int, str], ...] = (
    (UnknownModelError, 404, "unknown_model"),
    (NotReadyError, 503, "not_ready"),
    (DeadlineError, 504, "deadline"),
    (ImageError, 400, "image"),
    (ProtocolError, 400, "protocol"),
    (BundleError, 400, "not_a_classifier"),
)


def _judged(error: Exception) -> Verdict:
    message = str(error)
    if isinstance(error, RequestError):
        return Verdict(error.status, error.cause, message, error.headers)
    if isinstance(error, OverloadError):
        seconds = max(1, math.ceil(min(error.retry_after, 60.0)))
        return Verdict(429, "overload", message, {"retry-after": str(seconds)})
    if isinstance(error, ClosedError):
        return Verdict(503, "closed", message, {"retry-after": "1"})
    for kind, status, cause in _KNOWN:
        if isinstance(error, kind):
            return Verdict(status, cause, message, {})
    return Verdict(500, "internal", message, {})
