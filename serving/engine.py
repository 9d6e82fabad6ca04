"""Predicts with a bundle: images in, class names and probabilities out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keras_resnets.bundle import Bundle, BundleError
from keras_resnets.golden import Golden
from keras_resnets.labels import Prediction, decode_predictions
from keras_resnets.preprocessing import ImageLike

from .providers import open_session, run_options, tensorrt_options


class Engine:
    """A bundle's network in an ONNX Runtime session. TensorFlow and Keras are not needed.

    Args:
        bundle: the bundle's folder, or an open Bundle. Its files are compared with their hashes.
        provider: "cpu", "openvino", "cuda" or "tensorrt"; one that is not active is an error.
        precision: which variant; by default the bundle's first.
        threads: threads of one operator; by default the CPUs that this process may use.
        batch_size: images a session call at most.
        spin: whether threads that wait keep their cores busy, which is faster where nothing else needs these.
        cuda_graphs: see `open_session`; `run` and `predict` make no use of them.
        provider_options: the provider's own, by ONNX Runtime's names, over those of `providers.options_of`.

    Attributes:
        variant: of the bundle, that runs.
        golden: the bundle's golden sample, as `run` takes it.
        open_seconds: what ONNX Runtime took to read the graph, and to build engines where the provider does.
        golden_drift: largest difference of the golden sample's output to Keras's, over its largest value.

    Raises:
        BundleError: when the bundle is missing or corrupt, or its golden sample gives other outputs here.
        ProviderError: when the provider is not active.
        ValueError: when `threads` or `batch_size` is below 1, or for CUDA graphs on another provider.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        provider: str = "cpu",
        precision: str | None = None,
        threads: int | None = None,
        batch_size: int = 32,
        spin: bool = True,
        cuda_graphs: bool = False,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.batch_size = batch_size
        self.variant = variant = self.bundle.variant(precision)
        self.bundle.check(self.bundle.graph_files(variant))
        self._options = run_options() if cuda_graphs else None
        manifest = self.bundle.manifest
        own: dict[str, str] = {}
        if provider == "tensorrt":
            own = tensorrt_options(manifest.input_name, manifest.input_shape[1:], batch_size, variant.precision)
        own |= provider_options or {}
        self.golden = Golden.of(self.bundle, variant, tf32=own.get("use_tf32") == "1")
        began = time.perf_counter()
        self.session = open_session(self.bundle.path / variant.file, provider, threads, spin, cuda_graphs, own)
        self.open_seconds = time.perf_counter() - began
        self.golden_drift = self.check_golden()

    def run(self, tensor: NDArray[Any]) -> NDArray[np.float32]:
        """The network's raw output for a tensor that is already preprocessed, or the graph's pixels.

        Args:
            tensor: float32 [batch, height, width, channels]; uint8, or channels first, where the bundle's
                `input_type` and `input_layout` say so.

        Returns:
            float32 [batch, classes], or [batch, …] of a feature extractor.

        Raises:
            ValueError: when shape or type differ from the network's input.
        """
        manifest = self.bundle.manifest
        array = np.asarray(tensor)
        fits = array.ndim == 4 and all(
            want in (None, have) for want, have in zip(manifest.input_shape, array.shape, strict=True)
        )
        if array.dtype != manifest.input_type or not fits:
            want = ["batch", *(side or "any" for side in manifest.input_shape[1:])]
            raise ValueError(
                f"{manifest.model} takes {manifest.input_type} {want}, not {array.dtype} {list(array.shape)}"
            )
        parts = [array[i : i + self.batch_size] for i in range(0, max(len(array), 1), self.batch_size)]
        return np.concatenate([self._run(part) for part in parts])

    def predict_scores(self, images: ImageLike | Iterable[ImageLike]) -> NDArray[np.float32]:
        """Probabilities [images, classes] for images; arguments and errors are those of `predict`."""
        manifest = self.bundle.manifest
        if manifest.preprocessing is None:
            raise BundleError(
                f"{self.bundle.path} does not say how images become tensors: export it again with preprocessing=, "
                "or give preprocessed tensors to Engine.run"
            )
        if manifest.output_kind == "features":
            raise BundleError(f"{manifest.model} gives features, not classes; use Engine.run")
        many = _as_images(images)
        outputs = []
        while part := list(islice(many, self.batch_size)):
            outputs.append(self._run(self.input_of(self.pixels_of(part))))
        if not outputs:
            return np.empty((0, len(manifest.labels or ())), np.float32)
        scores = np.concatenate(outputs)
        return softmax(scores) if manifest.output_kind == "logits" else scores

    def predict(self, images: ImageLike | Iterable[ImageLike], top: int = 5) -> list[list[Prediction]]:
        """The `top` most probable classes of each image, best first.

        Args:
            images: one image or several: file paths, a file's bytes, Pillow images, uint8 arrays
                [height, width] or [height, width, channels] of any size, or one array of them: [batch,
                height, width, channels], or [batch, height, width] where that cannot be one colour image.
            top: how many classes an image.

        Returns:
            One list an image, of Prediction(label, class_index, score).

        Raises:
            ImageError: when an image cannot be read.
            BundleError: when the bundle has no preprocessing, or no classes.
            ValueError: when `top` is below 1.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}")
        scores = self.predict_scores(images)
        return decode_predictions(scores, self.bundle.manifest.labels, top) if len(scores) else []

    def check_golden(self) -> float:
        """Run the bundle's golden sample here: the largest difference to Keras, over Keras's largest output.

        Raises:
            BundleError: when it exceeds 1e-3; for a lower precision three times what it was where it was made, and
                3e-2 with TF32; or when the sample does not fit.
        """
        try:
            got = self.run(self.golden.tensor)
        except ValueError as error:
            raise BundleError(f"{self.bundle.path}: its golden sample does not fit: {error}") from error
        return self.golden.drift(got)

    def pixels_of(self, images: Sequence[ImageLike]) -> NDArray[np.uint8]:
        """uint8 [batch, height, width, channels] of images; the bundle must have a preprocessing.

        Raises:
            ImageError: when one cannot be read.
        """
        preprocessing = self.bundle.manifest.preprocessing
        assert preprocessing is not None
        if len(images) == 1:
            return preprocessing.pixels(images[0])[None]
        return np.stack([preprocessing.pixels(image) for image in images])

    def input_of(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """What `run` takes, from what `pixels_of` gives."""
        preprocessing, kind = self.bundle.manifest.preprocessing, self.bundle.manifest.input_type
        assert preprocessing is not None
        return self._laid_out(pixels if kind == "uint8" else preprocessing.normalize(pixels))

    def _laid_out(self, tensor: NDArray[Any]) -> NDArray[Any]:
        first = self.bundle.manifest.input_layout == "nchw"
        return np.ascontiguousarray(tensor.transpose(0, 3, 1, 2)) if first else tensor

    def _run(self, tensor: NDArray[Any]) -> NDArray[np.float32]:
        manifest = self.bundle.manifest
        output: NDArray[np.float32] = self.session.run(
            [manifest.output_name], {manifest.input_name: tensor}, self._options
        )[0]
        return output


def _as_images(images: Any) -> Iterator[ImageLike]:
    """One image or several as an iterator; what one array means is told by its rank."""
    if isinstance(images, (str, Path, bytes, Image.Image)):
        return iter([images])
    if isinstance(images, np.ndarray):
        greys = images.ndim == 3 and images.shape[2] not in (1, 3)
        return iter(images if images.ndim == 4 or greys else [images])
    return iter(images)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of logits [..., classes]."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: NDArray[np.float32] = shifted / shifted.sum(axis=-1, keepdims=True)
    return scores
