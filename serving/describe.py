"""What a server tells of its models: their tensors, their configuration in Triton's words, and a card for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .protocol import TensorSpec
from .served import ServedModel


def metadata_of(model: ServedModel, versions: Iterable[str]) -> dict[str, Any]:
    """A model's metadata as the protocol has them."""

    def tensors(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]

    return {
        "name": model.name,
        "versions": list(versions),
        "platform": "onnxruntime_onnx",
        "inputs": tensors(model.inputs),
        "outputs": tensors(model.outputs),
    }


def config_of(model: ServedModel) -> dict[str, Any]:
    """A model's configuration in the words of Triton's."""
    settings, batched = model.settings, model.batched
    instances = settings.workers * settings.processes

    def tensors(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
        return [
            {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": list(spec.shape[batched:])}
            for spec in specs
        ]

    config: dict[str, Any] = {
        "name": model.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": settings.max_batch if batched else 0,
        "input": tensors(model.inputs),
        "output": tensors(model.outputs),
        "instance_group": [{"count": instances, "kind": "KIND_GPU" if settings.on_gpu else "KIND_CPU"}],
    }
    if batched:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": round(settings.queue_delay * 1e6)}
    return config


def card_of(model: ServedModel) -> dict[str, Any]:
    """What people want to know of a model."""
    card: dict[str, Any] = {"name": model.name, "version": model.version, "classifies": False}
    if model.engine is None:
        return card
    manifest, variant = model.engine.bundle.manifest, model.engine.variant
    how = manifest.preprocessing
    return card | {
        "classifies": how is not None and manifest.output_kind != "features",
        "architecture": manifest.model,
        "precision": variant.precision,
        "quality": variant.quality,
        "provider": model.settings.provider,
        "classes": len(manifest.labels) if manifest.labels else None,
        "preprocessing": how.to_dict() if how else None,
        "license": manifest.license,
        "golden_drift": model.engine.golden_drift,
        "verification": list(manifest.verification),
        "created": dict(manifest.created),
    }
