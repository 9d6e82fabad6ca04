"""Writes verified bundles: export, comparison and seal happen in a draft folder that only then moves into place."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import keras_resnets
from keras_resnets.atomic import atomic_folder
from keras_resnets.bundle import MANIFEST, Bundle, Manifest, Variant, seal
from keras_resnets.preprocessing import ImageLike, Preprocessing

from .engines import FOLDER, check_engines, write_engine
from .errors import ExportError, refuse_existing
from .gate import Gate
from .graph_form import GraphForm
from .locate import errors_by_layer, part_ways, relative_error
from .lower import check_precisions, write_variants
from .onnx import check_pixels, to_onnx
from .report import write_report
from .runtime import active_providers, run_all
from .samples import GATE_ROWS, PROBE_ROWS, Samples, choose_samples
from .saved_model import to_saved_model
from .trace import INPUT, Interface, interface
from .verify import Comparison, Form, Prepare, ask, compare, keras_runner, onnx_runner, saved_model_runners

TOLERANCE = 1e-4
_ONNX, _SAVED_MODEL, _GOLDEN = "model.onnx", "saved_model", "golden.npz"
_REPORTED_LAYERS = 150
_FOR = ("cpu", "openvino", "cuda", "tensorrt")


def to_bundle(
    model: Any,
    path: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
    images: str | Path | Iterable[ImageLike] | None = None,
    targets: Sequence[int] | None = None,
    license: str | None = None,
    pixels: bool = False,
    layout: str = "nhwc",
    output: str | None = None,
    top_k: int = 0,
    open_size: bool = False,
    onnxruntime: str | None = None,
    precisions: Sequence[str] = (),
    gate: Gate | None = None,
    saved_model: bool = True,
    engines: Sequence[str] = (),
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Export a Keras image model to a bundle, after proving that it gives what Keras gives.

    Args:
        model: a built float32 Keras model with one input [batch, height, width, channels] and one output. Its
            layers are changed while it is traced: do not call it from another thread meanwhile.
        path: folder to write; it appears whole or not at all.
        preprocessing: how images become the input; by default the model's own (see `load_model`). Without
            one the bundle runs on tensors only, and refuses images.
        labels: class names; by default the model's own.
        images: real images to verify, calibrate and judge with, beside noise: a folder, or paths, Pillow images,
            uint8 arrays. Of a folder 1,000 are drawn at random, of others the first are taken; half of them calibrate
            lower precisions, the other half judges these.
        targets: the class index of each image; of a folder they follow from its subfolders, if these are called as
            the labels.
        license: of the weights, stored in the bundle.
        pixels: the ONNX graph takes uint8 pixels, and normalises them itself as the preprocessing says. The SavedModel
            has a signature for each (see `to_saved_model`) in any case.
        layout, output, top_k, open_size, onnxruntime: what the ONNX graph takes, gives, and is read by; see `to_onnx`.
        precisions: lower ones to write beside float32: "float16", "int8" (unsigned activations, for x86 CPUs and
            OpenVINO), "int8-symmetric" (signed, for GPUs and ARM). Each passes the gate or nothing is written.
        gate: what they must keep; by default `Gate()`.
        saved_model: also export, verify and include a SavedModel.
        engines: also lay out the files as other engines load them, in engines/NAME: "triton" (model repository),
            "tf-serving", "kserve" (an InferenceService and its Triton repository), "openvino" (Model Server).
        tolerance: largest allowed max|a − b| / max|a| between Keras and each exported form, in logits or features.
        overwrite: replace an existing bundle.
        progress: called with a line before each step.

    Returns:
        The bundle.

    Raises:
        ExportError: when the model cannot be exported, an exported form drifts, a lower precision does not pass
            the gate, an image cannot be read, or the folder cannot be written. Nothing is left behind.
        MissingExtraError: when a dependency is not installed.
    """
    say = progress or (lambda line: None)
    folder = Path(path)
    refuse_existing(folder, overwrite, MANIFEST)
    check_engines(engines, saved_model)
    form = GraphForm(pixels, layout, output, top_k, open_size, onnxruntime)
    preprocessing = preprocessing or getattr(model, "preprocessing", None)
    labels = tuple(labels or getattr(model, "labels", None) or ()) or None
    if pixels:
        check_pixels(model, preprocessing)
    model = form.model(model)
    face = interface(model)
    labels = None if output == "features" else labels
    _check_description(model, face, preprocessing, labels)
    lower = check_precisions(precisions)
    most = 2 * GATE_ROWS if lower else PROBE_ROWS
    samples = choose_samples(face.input_shape, preprocessing, images, targets, labels, most)
    prepare = _prepare(form, preprocessing)
    try:
        with atomic_folder(folder, overwrite=overwrite) as draft:
            say("converting to ONNX")
            described: dict[str, Any] = {"preprocessing": preprocessing, "labels": labels, "license": license}
            to_onnx(model, draft / _ONNX, **described, **asdict(replace(form, output=None, open_size=False)))
            float32 = Variant(_ONNX, "float32", form.opset, _FOR, 0.0, None)
            classes = face.output != "features"
            lowered = write_variants(lower, float32, draft, samples, prepare, gate or Gate(), classes, say)
            variants = [float32, *lowered]
            if saved_model:
                say("writing the SavedModel")
                to_saved_model(model, draft / _SAVED_MODEL, preprocessing=preprocessing)
            say("verifying against Keras")
            report = _verify(model, draft, variants, saved_model, samples, prepare, tolerance)
            expected = _write_golden(model, draft, samples)
            golden = prepare(samples.tensor(samples.golden))
            variants = [_with_drift(variant, draft, golden, expected) for variant in variants]
            manifest = Manifest(
                model=model.name,
                input_name=INPUT,
                input_shape=face.input_shape if layout == "nhwc" else tuple(face.input_shape[i] for i in (0, 3, 1, 2)),
                input_layout=layout,
                input_type="uint8" if pixels else "float32",
                output_name=face.output,
                output_kind=face.output,
                variants=tuple(variants),
                preprocessing=preprocessing,
                labels=labels,
                golden=_GOLDEN,
                saved_model=_SAVED_MODEL if saved_model else None,
                license=license,
                verification=tuple(row.to_dict() for row in report),
                created=_versions(),
            )
            say("writing the report")
            layers = errors_by_layer(model, draft / _ONNX, samples.probes["noise"][:1], prepare, _REPORTED_LAYERS)
            write_report(draft, manifest, layers, tolerance)
            for engine in engines:
                write_engine(engine, draft, manifest, draft / FOLDER / engine)
            manifest = replace(manifest, files=seal(draft))
            (draft / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    except OSError as error:
        raise ExportError(f"cannot write {folder}: {error}") from error
    return Bundle(folder, manifest)


def _prepare(form: GraphForm, preprocessing: Preprocessing | None) -> Prepare:
    """From the Keras model's input to the graph's."""

    def prepare(tensor: NDArray[np.float32]) -> NDArray[Any]:
        values = preprocessing.denormalize(tensor) if form.pixels and preprocessing else tensor
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if form.layout == "nchw" else values

    return prepare


def _verify(
    model: Any,
    draft: Path,
    variants: Sequence[Variant],
    saved_model: bool,
    samples: Samples,
    prepare: Prepare,
    tolerance: float,
) -> list[Comparison]:
    """Keras against every form that was written; float32 forms must agree, the gate has judged the others."""

    def locate(form: Form, tensor: NDArray[np.float32]) -> str:
        if form.runtime != "onnxruntime":
            return ""
        return part_ways(errors_by_layer(model, draft / _ONNX, tensor, prepare), tolerance)

    reference = keras_runner(model)
    cases = ask(reference, samples.probes)
    rows: list[Comparison] = []
    for variant in variants:
        file = draft / variant.file
        forms = {
            Form("onnxruntime", provider, variant.precision): onnx_runner(file, prepare, provider)
            for provider in active_providers(file)
        }
        exact = variant.precision == "float32"
        if saved_model and exact:
            served = saved_model_runners(draft / _SAVED_MODEL, samples.preprocessing, samples.files)
            forms |= {Form(runtime): runners for runtime, runners in served.items()}
        rows += compare(reference, forms, cases, tolerance if exact else None, locate)
    return rows


def _write_golden(model: Any, draft: Path, samples: Samples) -> NDArray[np.float32]:
    sample = samples.golden
    expected = np.asarray(model(samples.tensor(sample), training=False), np.float32)
    np.savez_compressed(draft / _GOLDEN, input=sample, output=expected)
    return expected


def _with_drift(variant: Variant, draft: Path, images: NDArray[Any], expected: NDArray[np.float32]) -> Variant:
    return replace(variant, drift=relative_error(expected, run_all(draft / variant.file, iter([images]))))


def _check_description(
    model: Any, face: Interface, preprocessing: Preprocessing | None, labels: Sequence[str] | None
) -> None:
    height, width, channels = face.input_shape[1:]
    if preprocessing:
        given = (*preprocessing.size, preprocessing.channels)
        fits = all(side in (None, own) for side, own in zip((height, width, channels), given, strict=True))
        if not fits:
            raise ExportError(f"the preprocessing makes {given}, but {model.name} takes {(height, width, channels)}")
    classes = model.outputs[0].shape[-1]
    if labels and len(labels) != classes:
        raise ExportError(f"{len(labels)} labels for the {classes} outputs of {model.name}")


def _versions() -> dict[str, str]:
    found = {"keras_resnets": keras_resnets.__version__, "python": platform.python_version()}
    for package in ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # another distribution provides it: onnxruntime-gpu, tensorflow-cpu
            continue
    return found
