"""Writes verified bundles: export, comparison and seal happen in a draft folder that only then moves into place."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import keras_resnets
from keras_resnets.atomic import atomic_folder
from keras_resnets.bundle import MANIFEST, Bundle, Manifest, Variant, seal
from keras_resnets.preprocessing import ImageError, ImageLike, Preprocessing

from .engines import FOLDER, check_engines, write_engine
from .errors import ExportError, refuse_existing
from .locate import errors_by_layer, part_ways
from .onnx import OPSET, check_pixels, to_onnx
from .report import write_report
from .saved_model import to_saved_model
from .trace import INPUT, Interface, interface
from .verify import Prepare, compare, keras_runners, onnx_runners, saved_model_runners

TOLERANCE = 1e-4
_ONNX, _SAVED_MODEL, _GOLDEN = "model.onnx", "saved_model", "golden.npz"
_GOLDEN_ROWS = 2
_PROBE_ROWS = 17
_ANY_SIDE = 224  # for a side that the model leaves open
_REPORTED_LAYERS = 150
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_FOR = ("cpu", "openvino", "cuda", "tensorrt")


def to_bundle(
    model: Any,
    path: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
    images: str | Path | Iterable[ImageLike] | None = None,
    license: str | None = None,
    pixels: bool = False,
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
        images: real images to verify with, beside noise: a folder, or paths, Pillow images, uint8 arrays.
        license: of the weights, stored in the bundle.
        pixels: the ONNX graph takes uint8 pixels, and normalises them itself as the preprocessing says. The SavedModel
            takes normalised float32 in any case.
        saved_model: also export, verify and include a SavedModel.
        engines: also lay out the files as other engines load them, in engines/NAME: "triton" (model repository),
            "tf-serving", "kserve" (an InferenceService and its Triton repository), "openvino" (Model Server).
        tolerance: largest allowed max|a − b| / max|a| between Keras and each exported form, in logits or features.
        overwrite: replace an existing bundle.
        progress: called with a line before each step.

    Returns:
        The bundle.

    Raises:
        ExportError: when the model cannot be exported, an exported form drifts, an image cannot be read, or
            the folder cannot be written. Nothing is left behind.
        MissingExtraError: when a dependency is not installed.
    """
    say = progress or (lambda line: None)
    folder = Path(path)
    refuse_existing(folder, overwrite, MANIFEST)
    check_engines(engines, saved_model)
    face = interface(model)
    preprocessing = preprocessing or getattr(model, "preprocessing", None)
    labels = tuple(labels or getattr(model, "labels", None) or ()) or None
    _check_description(model, face, preprocessing, labels)
    if pixels:
        check_pixels(model, preprocessing)
    golden, probes = _probes(face, preprocessing, images)
    prepare = preprocessing.denormalize if pixels and preprocessing else np.asarray
    try:
        with atomic_folder(folder, overwrite=overwrite) as draft:
            say("converting to ONNX")
            described: dict[str, Any] = {"preprocessing": preprocessing, "labels": labels, "license": license}
            to_onnx(model, draft / _ONNX, pixels=pixels, **described)
            runtimes = {"onnxruntime": onnx_runners(draft / _ONNX, prepare)}
            if saved_model:
                say("writing the SavedModel")
                to_saved_model(model, draft / _SAVED_MODEL)
                runtimes["saved_model"] = saved_model_runners(draft / _SAVED_MODEL)
            say("verifying against Keras")
            report = compare(
                keras_runners(model), runtimes, probes, tolerance, _locator(model, draft, prepare, tolerance)
            )
            _write_golden(model, draft, golden, preprocessing)
            manifest = Manifest(
                model=model.name,
                input_name=INPUT,
                input_shape=face.input_shape,
                input_type="uint8" if pixels else "float32",
                output_name=face.output,
                output_kind=face.output,
                variants=(Variant(_ONNX, "float32", OPSET, _FOR),),
                preprocessing=preprocessing,
                labels=labels,
                golden=_GOLDEN,
                saved_model=_SAVED_MODEL if saved_model else None,
                license=license,
                verification=tuple(row.to_dict() for row in report),
                created=_versions(),
            )
            say("writing the report")
            layers = errors_by_layer(model, draft / _ONNX, next(iter(probes.values()))[:1], prepare, _REPORTED_LAYERS)
            write_report(draft, manifest, layers, tolerance)
            for engine in engines:
                write_engine(engine, draft, manifest, draft / FOLDER / engine)
            manifest = replace(manifest, files=seal(draft))
            (draft / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    except OSError as error:
        raise ExportError(f"cannot write {folder}: {error}") from error
    return Bundle(folder, manifest)


def _locator(model: Any, draft: Path, prepare: Prepare, tolerance: float) -> Callable[[str, NDArray[np.float32]], str]:
    def locate(runtime: str, tensor: NDArray[np.float32]) -> str:
        if runtime != "onnxruntime":
            return ""
        return part_ways(errors_by_layer(model, draft / _ONNX, tensor, prepare), tolerance)

    return locate


def _write_golden(model: Any, draft: Path, sample: NDArray[Any], preprocessing: Preprocessing | None) -> None:
    tensor = preprocessing.normalize(sample) if preprocessing else sample
    expected = np.asarray(model(tensor, training=False), np.float32)
    np.savez_compressed(draft / _GOLDEN, input=sample, output=expected)


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


def _probes(
    face: Interface, preprocessing: Preprocessing | None, images: Any
) -> tuple[NDArray[Any], dict[str, NDArray[np.float32]]]:
    """The golden input, and what to verify with: noise, and real images where given."""
    random = np.random.default_rng(0)
    if preprocessing is None:
        if images is not None:
            raise ExportError("images= needs preprocessing=, which says how they become the model's input")
        height, width, channels = (side or _ANY_SIDE for side in face.input_shape[1:])
        noise = random.standard_normal((_PROBE_ROWS, height, width, channels), np.float32)
        return noise[:_GOLDEN_ROWS], {"noise": noise}
    shape = (_PROBE_ROWS, *preprocessing.size, preprocessing.channels)
    pixels = random.integers(0, 256, shape, np.uint8)
    probes = {"noise": preprocessing.normalize(pixels)}
    real = [] if images is None else _read(images, preprocessing)
    if images is not None:
        if not real:
            raise ExportError(f"no images to verify with: {images} has none of {', '.join(sorted(_SUFFIXES))}")
        pixels = np.stack(real)
        probes["images"] = preprocessing.normalize(pixels)
    return pixels[:_GOLDEN_ROWS], probes


def _read(images: Any, preprocessing: Preprocessing) -> list[NDArray[np.uint8]]:
    if isinstance(images, (str, Path)):
        folder = Path(images)
        if not folder.is_dir():
            raise ExportError(f"the folder of images {folder} does not exist")
        images = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    rows = []
    try:
        for image in images:
            rows.append(preprocessing.pixels(image))
            if len(rows) == _PROBE_ROWS:
                break
    except ImageError as error:
        raise ExportError(f"an image to verify with cannot be used: {error}") from error
    return rows


def _versions() -> dict[str, str]:
    found = {"keras_resnets": keras_resnets.__version__, "python": platform.python_version()}
    for package in ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # another distribution provides it: onnxruntime-gpu, tensorflow-cpu
            continue
    return found
