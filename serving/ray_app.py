"""The same server in Ray Serve's replicas, for more machines than one.

    serve run keras_resnets.serving.ray_app:build bundles=/models/resnet50 max_replicas=8 cpus=4

Each replica is a process with an engine and a batcher of its own, that answers what `keras-resnets serve` answers over
HTTP. Ray spreads the requests, starts and stops replicas with the load, and replaces them one by one when the
application is deployed again, with a new bundle say: a replica is asked only once its models are warm.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from keras_resnets.extras import extra

from .app import App
from .served import Settings
from .server import SWITCH_SECONDS, ServerOptions, log_to_stderr, make_service

with extra("serve-ray"):
    from ray import serve

_DRAIN = 30.0  # seconds that a replica's requests may still take when it is to go
_OF_A_REPLICA = {"min_replicas": int, "max_replicas": int, "cpus": float, "gpus": float}
_KINDS: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": {"true": True, "false": False}.__getitem__}


class _OfThisReplica:
    """An ASGI application: that of the replica that runs here."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":  # Ray insists on it; a replica begins and ends by itself
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
        else:
            replica: Any = serve.get_replica_context().servable_object
            await replica.answer(scope, receive, send)


@serve.deployment(name="keras_resnets")
@serve.ingress(_OfThisReplica())
class Replica:
    """A server's application without a server of its own.

    Args:
        bundles: PATH or NAME=PATH of bundles or ONNX files, which every machine must have.
        settings: how they are run.
    """

    async def __init__(self, bundles: Sequence[str], settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it
        log_to_stderr(as_json=False)
        sys.setswitchinterval(SWITCH_SECONDS)
        self.service = make_service(bundles, None, settings, ServerOptions())
        self.answer = App(self.service)
        await self.service.repository.load_all()

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        if not self.service.ready:
            raise RuntimeError("the models are not ready")

    async def __del__(self) -> None:
        """Ray calls this when the replica's requests are done."""
        await asyncio.to_thread(self.service.repository.close, _DRAIN)


def application(
    bundles: Sequence[str],
    settings: Settings | None = None,
    *,
    min_replicas: int = 1,
    max_replicas: int = 4,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> Any:
    """An application for ray.serve.run.

    Args:
        bundles: PATH or NAME=PATH of bundles or ONNX files, which every machine must have.
        settings: how they are run; by default with as many threads as a replica has CPUs.
        min_replicas, max_replicas: between which Ray keeps their number, by the requests that wait.
        cpus, gpus: of one replica.

    Raises:
        ValueError: for numbers out of range.
    """
    if not bundles:
        raise ValueError("nothing to serve: name a bundle or an ONNX file, bundles=PATH")
    settings = settings or Settings(threads=max(1, int(cpus)))
    deployment: Any = Replica  # what the decorator made of it
    configured = deployment.options(
        # A replica's batcher must see what waits, to make batches of it and to refuse what would come too late.
        max_ongoing_requests=2 * settings.max_queue,
        max_queued_requests=settings.max_queue,
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": 2 * settings.max_batch,
        },
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        graceful_shutdown_timeout_s=_DRAIN,
    )
    return configured.bind(list(bundles), settings)


def build(arguments: Mapping[str, str]) -> Any:
    """The application of `serve run`'s KEY=VALUE arguments, or of a configuration file's.

    Args:
        arguments: `bundles`, comma-separated; the arguments of `application`, and the fields of `Settings`.

    Raises:
        ValueError: for an argument that there is not, or a value that does not fit.
    """
    left = dict(arguments)
    bundles = [item for item in left.pop("bundles", "").split(",") if item]
    replica = {name: _read(name, left.pop(name), kind) for name, kind in _OF_A_REPLICA.items() if name in left}
    chosen = [field for field in fields(Settings) if field.name not in ("asked", "processes")]
    kinds = {field.name: _KINDS[field.type.partition(" ")[0]] for field in chosen}
    if unknown := sorted(set(left) - set(kinds)):
        known = ", ".join(["bundles", *_OF_A_REPLICA, *kinds])
        raise ValueError(f"no argument {', '.join(unknown)}; there are {known}")
    threads = str(max(1, int(replica.get("cpus", 1))))
    settings = Settings(**{name: _read(name, text, kinds[name]) for name, text in {"threads": threads, **left}.items()})
    return application(bundles, settings, **replica)


def _read(name: str, text: str, kind: Any) -> Any:
    try:
        return kind(text)
    except KeyError:
        raise ValueError(f"{name} must be true or false, not {text!r}") from None
    except ValueError:
        raise ValueError(f"{name} must be a number, not {text!r}") from None
