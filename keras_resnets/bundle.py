"""The contract between export and serving: a sealed folder with model.onnx and bundle.json.

bundle.json, version 1, says what each file is, its SHA-256, how images become the model's input, what the
outputs mean, and what the verification measured. Nothing in a bundle changes after it was written.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.preprocessing import Preprocessing
from keras_resnets.untrusted import parse_json

MANIFEST = "bundle.json"
FORMAT = "keras-resnets-bundle"
FORMAT_VERSION = 1
INPUT_TYPES = ("float32", "uint8")
LAYOUTS = ("nhwc", "nchw")
PROVIDERS = {  # what they are called in bundles and here, and by ONNX Runtime
    "cpu": "CPUExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
OUTPUT_KINDS = ("probabilities", "logits", "features")


class BundleError(ValueError):
    """A bundle that is missing, corrupt, incomplete, or of a newer format."""


@dataclass(frozen=True)
class Variant:
    """One ONNX file of a bundle: the same network at one precision.

    Args:
        file: its name.
        precision: "float32", "float16", "int8" or "int8-symmetric".
        opset: of the graph.
        providers: meant for: see `PROVIDERS`.
        drift: of the golden sample's output from Keras's where the bundle was made, over the largest value.
        quality: how it decides beside float32 (images, agreement, top-1), or None for float32 itself.
    """

    file: str
    precision: str
    opset: int
    providers: tuple[str, ...]
    drift: float
    quality: Mapping[str, Any] | None


@dataclass(frozen=True)
class Manifest:
    """The content of bundle.json.

    Args:
        model: the model's name.
        input_name, input_shape: of the ONNX graph: [None, height, width, channels], or channels first.
        input_layout: which of these: "nhwc" or "nchw".
        input_type: "float32", already preprocessed, or "uint8": pixels, which the graph normalises.
        output_name: of the ONNX graph.
        output_kind: "probabilities", "logits" or "features".
        variants: the ONNX files, the first being the default.
        preprocessing: how images become tensors; None if it was not known at export.
        labels: class names, or None.
        golden: the .npz file with a sample input and the Keras model's output for it.
        saved_model: folder of the SavedModel, or None.
        license: of the weights, or None.
        verification: the figures, one row a runtime, kind of input and batch size.
        created: versions of what made it.
        files: SHA-256 and size in bytes of every other file.
    """

    model: str
    input_name: str
    input_shape: tuple[int | None, ...]
    input_layout: str
    input_type: str
    output_name: str
    output_kind: str
    variants: tuple[Variant, ...]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    golden: str
    saved_model: str | None
    license: str | None
    verification: tuple[Mapping[str, Any], ...]
    created: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of bundle.json."""
        data = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        data["preprocessing"] = self.preprocessing.to_dict() if self.preprocessing else None
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse bundle.json.

        Raises:
            BundleError: when it is not JSON, not a bundle's, of a newer version, or has missing or wrong fields.
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise BundleError(f"{MANIFEST} is not valid JSON: {error}") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise BundleError(f'{MANIFEST} does not say "format": "{FORMAT}"')
        version = data.pop("format_version", None)
        if not isinstance(version, int) or version < 1:
            raise BundleError(f"{MANIFEST} has no valid format_version")
        if version > FORMAT_VERSION:
            raise BundleError(
                f"the bundle has format version {version}, this keras_resnets reads up to {FORMAT_VERSION}: "
                "run: pip install --upgrade keras-resnets"
            )
        try:
            return _manifest(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{MANIFEST} has missing or wrong fields: {error}") from error


def _manifest(data: dict[str, Any]) -> Manifest:
    variants = tuple(Variant(**{**row, "providers": tuple(row["providers"])}) for row in data.pop("variants"))
    stored, labels = data.pop("preprocessing"), data.pop("labels")
    manifest = Manifest(
        variants=variants,
        preprocessing=Preprocessing.from_dict(stored) if stored else None,
        labels=tuple(labels) if labels else None,
        input_shape=tuple(data.pop("input_shape")),
        verification=tuple(data.pop("verification")),
        **data,
    )
    if not variants:
        raise ValueError("no variants")
    if manifest.output_kind not in OUTPUT_KINDS:
        raise ValueError(f"output_kind {manifest.output_kind!r}")
    if manifest.input_type not in INPUT_TYPES:
        raise ValueError(f"input_type {manifest.input_type!r}")
    if manifest.input_layout not in LAYOUTS:
        raise ValueError(f"input_layout {manifest.input_layout!r}")
    if manifest.input_type == "uint8" and manifest.preprocessing is None:
        raise ValueError("uint8 pixels without a preprocessing")
    if len(manifest.input_shape) != 4:
        raise ValueError(f"input_shape {manifest.input_shape}")
    _check_files(manifest)
    return manifest


def _check_files(manifest: Manifest) -> None:
    """Raise ValueError or TypeError unless every file has a hash and lies in the bundle."""
    if not isinstance(manifest.files, dict):
        raise TypeError("files is no object")
    needed = {row.file for row in manifest.variants} | {manifest.golden}
    for name in (*manifest.files, *needed, manifest.saved_model or "saved_model"):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ValueError(f"the file name {name!r} leaves the bundle")
    if missing := needed - set(manifest.files):
        raise ValueError(f"no hash for {', '.join(sorted(missing))}")
    for name, record in manifest.files.items():
        if not isinstance(record["sha256"], str) or not isinstance(record["bytes"], int):
            raise TypeError(f"files: {name} needs sha256 and bytes")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read a bundle's manifest; `check` then reads the files.

        Raises:
            BundleError: when the folder or its manifest is missing or unusable.
        """
        folder = Path(path)
        if not folder.is_dir():
            what = "is a file, not a bundle folder" if folder.exists() else "does not exist"
            raise BundleError(f"bundle {folder} {what}")
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{folder / MANIFEST} cannot be read: {error}") from error
        try:
            return cls(folder, Manifest.from_json(text))
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error.__cause__

    def check(self, names: Iterable[str] | None = None) -> None:
        """Compare files (by default all of them) with their recorded sizes and hashes.

        Raises:
            BundleError: naming the first file that is missing or differs.
        """
        for name in self.manifest.files if names is None else names:
            if name not in self.manifest.files:
                raise BundleError(f"{self.path} has no file {name}")
            record = self.manifest.files[name]
            file = self.path / name
            if not file.is_file():
                raise BundleError(f"{self.path}: {name} is missing; export the bundle again")
            size = file.stat().st_size
            if size != record["bytes"]:
                raise BundleError(f"{self.path}: {name} is corrupt ({size:,} bytes instead of {record['bytes']:,})")
            if sha256(file) != record["sha256"]:
                raise BundleError(f"{self.path}: {name} is corrupt (its SHA-256 differs from {MANIFEST})")

    def variant(self, precision: str | None = None) -> Variant:
        """The ONNX file of a precision; without one, the default.

        Raises:
            BundleError: when the bundle has no such precision.
        """
        variants = self.manifest.variants
        for row in variants:
            if precision in (None, row.precision):
                return row
        has = ", ".join(row.precision for row in variants)
        raise BundleError(f"{self.path} has no {precision} variant; it has {has}")

    def graph_files(self, variant: Variant) -> list[str]:
        """A variant's file and, of a graph beyond two gigabytes, the one with its weights."""
        return [name for name in self.manifest.files if name in (variant.file, f"{variant.file}.data")]

    def golden(self) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """The golden sample: input (uint8 pixels, or a float32 tensor where the preprocessing is not known)
        [batch, height, width, channels], and the Keras model's output for it.

        Raises:
            BundleError: when the file cannot be read.
        """
        try:
            with np.load(self.path / self.manifest.golden, allow_pickle=False) as arrays:
                return arrays["input"], arrays["output"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{self.path}: {self.manifest.golden} cannot be read: {error}") from error


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def seal(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a folder, by relative name: the manifest's `files`."""
    return {
        file.relative_to(folder).as_posix(): {"sha256": sha256(file), "bytes": file.stat().st_size}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST
    }
