"""Lays out a bundle's files as other inference engines want them, beside the configuration that each one reads."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_resnets.bundle import Manifest
from keras_resnets.extras import extra

from .errors import ExportError

with extra("export"):
    import onnx

FOLDER = "engines"
MAX_BATCH = 32
QUEUE_DELAY = 2_000  # µs that a request may wait for others: a tenth of a ResNet-50 on two cores
QUEUE_SIZE = 256
_DEADLINE = 10_000_000  # µs in the queue, after which the answer is an error
_CUDA_SEARCH = "1"  # heuristic: cuDNN's exhaustive search of each new batch size stalls requests for seconds


class Tensor(NamedTuple):
    """An input or output of an ONNX graph."""

    name: str
    kind: str  # as NumPy calls it
    dims: tuple[int, ...]  # without the batch; -1: any


class Plan(NamedTuple):
    """What an engine's files are made of."""

    source: Path
    manifest: Manifest
    name: str
    input: Tensor
    outputs: tuple[Tensor, ...]


def check_engines(engines: Sequence[str], saved_model: bool) -> None:
    """Raise ExportError for an unknown engine, or one that needs a SavedModel where there will be none."""
    for engine in engines:
        if engine not in ENGINES:
            raise ExportError(f"there is nothing for {engine!r}: choose of {', '.join(ENGINES)}")
    if "tf-serving" in engines and not saved_model:
        raise ExportError("TensorFlow Serving loads a SavedModel: export with one (without --no-saved-model)")


def write_engine(engine: str, source: Path, manifest: Manifest, folder: Path) -> None:
    """Write what an engine loads, with hard links to the bundle's files where the file system has them.

    Args:
        engine: one of `ENGINES`.
        source: folder with the files that the manifest names.
        manifest: of the bundle.
        folder: to write into.
    """
    graph = onnx.load(source / manifest.variants[0].file, load_external_data=False).graph
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", manifest.model)
    outputs = tuple(_tensor(value) for value in graph.output)
    ENGINES[engine](Plan(source, manifest, name, _tensor(graph.input[0]), outputs), folder)


def _tensor(value: Any) -> Tensor:
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)
    return Tensor(value.name, kind, dims[1:])


def _triton(plan: Plan, folder: Path) -> None:
    home = folder / plan.name
    _place_graph(plan, home / "1")
    if plan.manifest.labels:
        _write(home / "labels.txt", "".join(f"{label}\n" for label in plan.manifest.labels))
    _write(home / "config.pbtxt", _triton_config(plan, "KIND_AUTO"))
    for name, (kind, rest) in _TRITON.items():
        _write(home / "configs" / f"{name}.pbtxt", _triton_config(plan, kind, rest))


def _triton_config(plan: Plan, kind: str, rest: str = "") -> str:
    labels = ' label_filename: "labels.txt"' if plan.manifest.labels else ""
    outputs = [f"{{ {_triton_tensor(tensor)}{labels if i == 0 else ''} }}" for i, tensor in enumerate(plan.outputs)]
    return f"""\
name: "{plan.name}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
input [ {{ {_triton_tensor(plan.input)} }} ]
output [ {", ".join(outputs)} ]
instance_group [ {{ kind: {kind} count: 1 }} ]
dynamic_batching {{
  max_queue_delay_microseconds: {QUEUE_DELAY}
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {_DEADLINE}
    max_queue_size: {QUEUE_SIZE}
  }}
}}
{_triton_warmup(plan.input, 1)}{_triton_warmup(plan.input, MAX_BATCH)}{rest}"""


def _triton_tensor(tensor: Tensor) -> str:
    kind = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8", "int64": "TYPE_INT64"}[tensor.kind]
    return f'name: "{tensor.name}" data_type: {kind} dims: {list(tensor.dims)}'


def _triton_warmup(tensor: Tensor, batch: int) -> str:
    if -1 in tensor.dims:  # no size would be the right one
        return ""
    kind, dims = _triton_tensor(tensor).split(" data_type: ")[1].split(" dims: ")
    content = f"data_type: {kind} dims: {dims} random_data: true"
    inputs = f'inputs {{ key: "{tensor.name}" value {{ {content} }} }}'
    return f'model_warmup [ {{ name: "batch of {batch}" batch_size: {batch} {inputs} }} ]\n'


# tritonserver --model-config-name=NAME takes one of these instead of config.pbtxt. TensorRT stays in float32, which is
# what the bundle's verification covers.
_TRITON = {
    "cpu": ("KIND_CPU", ""),
    "cuda": (
        "KIND_GPU",
        f'parameters {{ key: "cudnn_conv_algo_search" value {{ string_value: "{_CUDA_SEARCH}" }} }}\n',
    ),
    "tensorrt": (
        "KIND_GPU",
        "optimization { execution_accelerators { gpu_execution_accelerator [ {\n"
        '  name: "tensorrt"\n'
        '  parameters { key: "precision_mode" value: "FP32" }\n'
        '  parameters { key: "trt_engine_cache_enable" value: "true" }\n'
        '  parameters { key: "trt_engine_cache_path" value: "/var/cache/tensorrt" }\n'
        "} ] } }\n",
    ),
}


def _tf_serving(plan: Plan, folder: Path) -> None:
    assert plan.manifest.saved_model  # see check_engines
    _place(plan.source / plan.manifest.saved_model, folder / plan.name / "1")
    _write(
        folder / "models.config",
        f'model_config_list {{ config {{ name: "{plan.name}" base_path: "/models/{plan.name}" '
        'model_platform: "tensorflow" } }\n',
    )
    sizes = [2**i for i in range(MAX_BATCH.bit_length())]
    _write(
        folder / "batching.config",
        f"max_batch_size {{ value: {MAX_BATCH} }}\nbatch_timeout_micros {{ value: {QUEUE_DELAY} }}\n"
        f"max_enqueued_batches {{ value: {QUEUE_SIZE // MAX_BATCH} }}\n"
        + "".join(f"allowed_batch_sizes: {size}\n" for size in sizes),
    )


def _openvino(plan: Plan, folder: Path) -> None:
    _place_graph(plan, folder / plan.name / "1")
    shape = ",".join(map(str, (f"1:{MAX_BATCH}", *plan.input.dims)))
    config = {"name": plan.name, "base_path": f"/models/{plan.name}", "shape": f"({shape})"}
    _write(folder / "config.json", json.dumps({"model_config_list": [{"config": config}]}, indent=2) + "\n")


def _kserve(plan: Plan, folder: Path) -> None:
    _triton(plan, folder / "models")
    _write(folder / "inference_service.yaml", _KSERVE.format(name=re.sub(r"[^a-z0-9-]+", "-", plan.name.lower())))


_KSERVE = """\
# Copy the folder models to where storageUri points, then: kubectl apply -f inference_service.yaml
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    model:
      modelFormat:
        name: onnx
      runtime: kserve-tritonserver
      protocolVersion: v2
      storageUri: pvc://models/{name}
      resources:
        requests: {{cpu: "1", memory: 2Gi}}
        limits: {{memory: 4Gi}}
"""

ENGINES: dict[str, Callable[[Plan, Path], None]] = {
    "triton": _triton,
    "tf-serving": _tf_serving,
    "kserve": _kserve,
    "openvino": _openvino,
}


def _place_graph(plan: Plan, folder: Path) -> None:
    """The float32 graph as model.onnx and, of one beyond two gigabytes, its weights, which it knows by their name."""
    file = plan.source / plan.manifest.variants[0].file
    _place(file, folder / "model.onnx")
    weights = file.with_name(f"{file.name}.data")
    if weights.exists():
        _place(weights, folder / weights.name)


def _place(source: Path, target: Path) -> None:
    """Link a file or a folder's files, or copy where links cannot be."""
    target.parent.mkdir(parents=True, exist_ok=True)

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:
            shutil.copyfile(old, new)

    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)
    else:
        link(str(source), str(target))


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
