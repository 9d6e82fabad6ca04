"""Keras to ONNX: tf2onnx converts a skeleton without weights, and they are filled in at the end."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import keras_resnets
from keras_resnets.atomic import atomic_file
from keras_resnets.extras import extra
from keras_resnets.preprocessing import Preprocessing
from keras_resnets.quiet import quiet

from .edges import give_top, take_channels_first
from .errors import ExportError, refuse_existing
from .fold import fill
from .graph_form import GraphForm
from .naming import name_by_layer
from .pixels import take_pixels
from .stream import Large, write
from .trace import INPUT, Skeleton, interface, skeleton
from .unsupported import check_operators, conversion_error

with extra("export"):
    import onnx
    import tensorflow as tf
    from tf2onnx import tfonnx
with extra("serve"):
    import onnxruntime

_WEIGHT = "ImmutableConst"  # TensorFlow's operator of a type and a shape alone; it is never run


def to_onnx(
    model: Any,
    file: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
    license: str | None = None,
    pixels: bool = False,
    layout: str = "nhwc",
    output: str | None = None,
    top_k: int = 0,
    open_size: bool = False,
    onnxruntime: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a Keras image model as one ONNX file, with batch norm folded into convolutions.

    The result is not compared with the model: `to_bundle` does that.

    Args:
        model: a built Keras model with one input [batch, height, width, channels] and one output.
        file: path to write; the file appears whole or not at all. Weights beyond 2 GiB go beside it, into FILE.data.
        preprocessing, labels: for the file's metadata; by default the model's own.
        license: of the weights, for the metadata too.
        pixels: take uint8 pixels and do the preprocessing's normalisation in the graph.
        layout: of the images: "nhwc", or "nchw" without a Transpose.
        output: "probabilities", "logits" or "features" (what the last Dense layer reads); by default what the
            model gives.
        top_k: so many best classes as further outputs: "top_classes", int64 [batch, top_k], and "top_scores".
        open_size: take images of any height and width.
        onnxruntime: the version, "1.8" or newer, that must read the file; by default the installed one.
        overwrite: replace an existing file.

    Returns:
        The path. The graph's input is called "images", its first output "probabilities", "logits" or "features",
        and its batch dimension "batch". Its metadata say "model", "license", and as JSON "labels" and
        "preprocessing", as far as they are known.

    Raises:
        ExportError: when the model has a form, a layer or a size that cannot be exported, or the path
            cannot be written.
        MissingExtraError: when tf2onnx, onnx or onnxruntime is not installed.
    """
    path = Path(file)
    refuse_existing(path, overwrite)
    form = GraphForm(pixels, layout, output, top_k, open_size, onnxruntime)
    labels = labels or getattr(model, "labels", None)
    preprocessing = preprocessing or getattr(model, "preprocessing", None)
    if pixels:
        check_pixels(model, preprocessing)
    model = form.model(model)
    known = {
        "model": model.name,
        "license": license,
        "labels": json.dumps(list(labels), ensure_ascii=False) if labels else None,
        "preprocessing": json.dumps(preprocessing.to_dict()) if preprocessing else None,
    }
    _write(model, path, form, preprocessing, {key: text for key, text in known.items() if text})
    return path


def _write(
    model: Any, path: Path, form: GraphForm, preprocessing: Preprocessing | None, metadata: dict[str, str]
) -> None:
    """Convert and write a model that gives the wanted output already."""
    try:
        # The scratch folder lies there too, so that a bundle's draft holds whatever a killed export leaves.
        with atomic_file(path) as draft, TemporaryDirectory(prefix=".writing-", dir=draft.parent) as scratch:
            proto, large = convert(model, Path(scratch), form)
            if form.pixels and preprocessing:
                take_pixels(proto, large, preprocessing)
            if form.layout == "nchw":
                take_channels_first(proto.graph)
            if form.top_k:
                give_top(proto.graph, form.top_k)
            onnx.helper.set_model_props(proto, metadata)
            write(proto, large, draft, path.with_name(f"{path.name}.data"))
            _check(draft, model.name)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error}") from error


def _check(file: Path, name: str) -> None:
    try:
        onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{name} converts to an invalid graph: {error}") from error


def check_pixels(model: Any, preprocessing: Preprocessing | None) -> None:
    """Raise ExportError unless a preprocessing says how the model's pixels are normalised."""
    channels = interface(model).input_shape[-1]
    if preprocessing is None:
        raise ExportError(
            f"to take pixels, {model.name} needs preprocessing= (--preset), which says how they are normalised"
        )
    if channels != preprocessing.channels:
        raise ExportError(
            f"the preprocessing makes {preprocessing.channels} channels, but {model.name} takes {channels}"
        )


def convert(model: Any, scratch: Path, form: GraphForm) -> tuple[Any, Large]:
    """The ONNX ModelProto of a Keras model, and its large arrays; see `to_onnx`."""
    face = interface(model)
    layers = {layer.name for layer in model._flatten_layers() if layer is not model}
    with _without_collector():
        traced = skeleton(model)
        proto = _optimize(_convert_graph(traced, model.name, layers, form.opset), scratch)
        large = fill(proto, traced.weights, traced.packed)
        name_by_layer(proto.graph, layers, INPUT, face.output)
    _describe(proto, model.name, face.input_shape, (None, *model.outputs[0].shape[1:]))
    proto.ir_version = form.ir_version
    return proto, large


@contextmanager
def _without_collector() -> Iterator[None]:
    """Python's garbage collector looks through all nodes of the growing graphs again and again: a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _convert_graph(traced: Skeleton, name: str, layers: set[str], opset: int) -> Any:
    try:
        # What it logs of a failure is in the exception too.
        with quiet(logging.getLogger("tf2onnx"), logging.CRITICAL), tf.Graph().as_default() as graph:
            proto, inputs = _with_late_weights(traced)
            tf.import_graph_def(proto, name="")
            converted = tfonnx.process_tf_graph(
                graph,
                opset=opset,
                input_names=inputs,
                output_names=[traced.output],
                custom_op_handlers={
                    _WEIGHT: (_weight, []),
                    "Erfc": (_erfc, []),
                    "MirrorPad": (_mirror_pad, []),
                    "ResizeArea": (_resize_area, []),
                },
            )
            proto = converted.make_model(name)
    except Exception as error:  # tf2onnx lets through whatever its handlers meet
        raise conversion_error(error, name, layers) from error
    check_operators(proto.graph, opset, name, layers)
    return proto


def _with_late_weights(traced: Skeleton) -> tuple[Any, list[str]]:
    """The skeleton's GraphDef with a node of no inputs for each weight, which becomes one of the graph's at the end.

    Returns:
        The GraphDef, and the names of the inputs that are left.

    tf2onnx looks each input up in the list of all nodes, forty times: a third of its time for a thousand layers.
    """
    proto = traced.graph.as_graph_def(add_shapes=True)
    left = dict.fromkeys([traced.input, *traced.weights])
    for node in proto.node:
        # What the function closed over has no shape here, and stays an input.
        if f"{node.name}:0" in traced.weights and "shape" in node.attr:
            node.op = _WEIGHT
            node.attr["memory_region_name"].s = node.name.encode()
            del left[f"{node.name}:0"]
    return proto, list(left)


def _weight(context: Any, node: Any, name: str, args: Any) -> None:
    """A weight becomes an input of the graph."""
    tensor = node.output[0]
    kind, shape = context.get_dtype(tensor), context.get_shape(tensor)
    context.remove_node(node.name)
    context.add_graph_input(tensor, kind, shape)


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """erfc(x) = 1 − erf(x), and erfc(−x · c) = 1 + erf(x / (1 / c)) in exact GELU; tf2onnx has no handler for it.

    The latter is the spelling of which onnxruntime's sessions make one Gelu.
    """
    shape, kind = context.get_shape(node.output[0]), context.get_dtype(node.output[0])

    def make(operator: str, inputs: list[str], **where: Any) -> str:
        return context.make_node(operator, inputs, shapes=[shape], dtypes=[kind], **where).output[0]

    x, sign, scaled = node.input[0], "Sub", node.inputs[0]
    negative = scaled.inputs[0] if scaled.type == "Mul" and scaled.inputs[1].is_const() else None
    if negative is not None and negative.type == "Neg":
        divisor = context.make_const(f"{name}_divisor", 1 / scaled.inputs[1].get_tensor_value(as_list=False))
        x, sign = make("Div", [negative.input[0], divisor.output[0]], name=f"{name}_scaled"), "Add"
    one = context.make_const(f"{name}_one", np.array(1, np.float32))
    context.remove_node(node.name)
    erf = make("Erf", [x], name=f"{name}_erf")
    make(sign, [erf, one.output[0]] if sign == "Add" else [one.output[0], erf], name=name, outputs=node.output)


def _mirror_pad(context: Any, node: Any, name: str, args: Any) -> None:
    """Padding that mirrors: ONNX has "reflect", and "edge" for one pixel of what TensorFlow calls symmetric.

    tf2onnx makes a dozen nodes of the latter.
    """
    pads = node.inputs[1].get_tensor_value(as_list=False)
    symmetric = node.get_attr_str("mode") == "SYMMETRIC"
    if symmetric and pads.max() > 1:
        raise NotImplementedError("symmetric padding by more than one pixel")
    shape, kind = context.get_shape(node.output[0]), context.get_dtype(node.output[0])
    sides = context.make_const(f"{name}_pads", pads.T.reshape(-1).astype(np.int64))
    context.remove_node(node.name)
    context.make_node(
        "Pad",
        [node.input[0], sides.output[0]],
        attr={"mode": "edge" if symmetric else "reflect"},
        name=name,
        outputs=node.output,
        shapes=[shape],
        dtypes=[kind],
    )


def _resize_area(context: Any, node: Any, name: str, args: Any) -> None:
    """tf2onnx makes of it what computes something else."""
    raise NotImplementedError("ONNX has no resizing by areas")


def _optimize(proto: Any, scratch: Path) -> Any:
    """onnxruntime's basic optimizations, above all moving transposes until they cancel.

    They run on the skeleton, so that no weight is copied; what they write is standard ONNX.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    file = scratch / "skeleton.onnx"
    options.optimized_model_filepath = str(file)
    try:
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise ExportError(f"onnxruntime does not take the converted graph: {error}") from error
    return onnx.load(file)


def _describe(proto: Any, name: str, input_shape: tuple[int | None, ...], output_shape: tuple[int | None, ...]) -> None:
    """Dimension names, used opsets only, and who made it."""
    # An output's open sides stay unnamed: equal names would promise equal sizes.
    sides = (("batch", "height", "width", "channels"), ("batch",))
    for value, shape, names in zip(
        (proto.graph.input[0], proto.graph.output[0]), (input_shape, output_shape), sides, strict=True
    ):
        kind = value.type.tensor_type.elem_type
        dims = [size or name for size, name in zip_longest(shape, names)]
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, dims))
    domains = {node.domain for node in proto.graph.node}
    used = [opset for opset in proto.opset_import if opset.domain in domains]
    del proto.opset_import[:]
    proto.opset_import.extend(used)
    proto.graph.name = name
    proto.producer_name, proto.producer_version = "keras_resnets", keras_resnets.__version__
