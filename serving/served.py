"""One model that is served: a session with its warm-up and proof, in a form that a batcher can feed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.bundle import MANIFEST, Bundle, BundleError
from keras_resnets.labels import Prediction, decode_predictions
from keras_resnets.machine import usable_cpus

from .batcher import Answer, Batcher, Tensors
from .binding import BoundSession
from .engine import Engine, softmax
from .protocol import DATATYPES, ProtocolError, TensorSpec
from .providers import ON_GPU, check_cuda_graphs, open_session

_LARGE = 128 * 1024  # bytes of image files
_TINY = 64 * 64  # pixels
_PIXELS = ""  # as no tensor is called: of images, which become the model's input when their batch is together
_OF_ONNX = {onnx: name for name, (_, onnx) in DATATYPES.items()}


@dataclass(frozen=True)
class Settings:
    """How models are run; the command line's options.

    Args:
        provider: "cpu", "openvino", "cuda" or "tensorrt".
        precision: of bundles: which variant; by default their first.
        threads: of one operator; by default the container's CPUs, shared among the workers of all processes.
        workers: batches that run at once.
        max_batch: rows of a batch.
        queue_delay: seconds that a free worker waits for a fuller batch.
        max_queue: rows that wait at most.
        deadline: seconds that a request may take, where it does not say so itself.
        cuda_graphs: replay each batch size as one launch; on NVIDIA GPUs, for models of fixed sizes.
        processes: of the server; each has queues, workers and a copy of the models of its own.
        asked: the names of those that the user chose; in place of the others stands what `keras-resnets tune` found
            for a bundle on this machine, if anything. None: all are chosen.
    """

    provider: str = "cpu"
    precision: str | None = None
    threads: int | None = None
    workers: int = 1
    max_batch: int = 16
    queue_delay: float = 0.0
    max_queue: int = 256
    deadline: float = 10.0
    cuda_graphs: bool = False
    processes: int = 1
    asked: frozenset[str] | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "max_batch", "max_queue", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.deadline <= 0:
            raise ValueError(f"deadline must be more than 0 seconds, not {self.deadline}")
        if self.cuda_graphs:
            check_cuda_graphs(self.provider)

    @property
    def on_gpu(self) -> bool:
        """Whether the provider is an NVIDIA GPU's."""
        return self.provider in ON_GPU

    @property
    def intra_threads(self) -> int:
        """Threads of one operator."""
        return self.threads or max(1, usable_cpus() // (self.workers * self.processes))


class ServedModel:
    """A bundle or a plain ONNX file, warm, behind a batcher.

    Args:
        name, version: what clients call it.
        source: the bundle's folder, or the ONNX file.
        settings: see there.
        observe: called with (rows, seconds) after each batch.

    Attributes:
        inputs, outputs: tensors by the protocol's names of types; -1 is any size.
        batched: whether the first axis counts rows. Other models run one request at a time.
        bundle: None for a plain ONNX file.
        load_seconds: what loading and warming took.

    Raises:
        BundleError: when the bundle is corrupt, or gives other outputs here than where it was made.
        ProviderError: when the provider is not active, or onnxruntime cannot read the file.
        ValueError: when the model has tensors that the protocol cannot carry.
    """

    def __init__(
        self,
        name: str,
        version: str,
        source: Path,
        settings: Settings,
        observe: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        began = time.monotonic()
        self.name, self.version, self.settings = name, version, settings
        self.engine, self.bundle = None, None
        if (source / MANIFEST).exists() or source.is_dir():
            self.bundle = Bundle.open(source)
            self.engine = Engine(
                self.bundle, provider=settings.provider, precision=settings.precision,
                threads=settings.intra_threads, batch_size=settings.max_batch, spin=False,
                cuda_graphs=settings.cuda_graphs,
            )  # fmt: skip
            self._session = self.engine.session
        elif source.suffix == ".onnx" and source.is_file():
            self._session = open_session(
                source, settings.provider, settings.intra_threads, spin=False, cuda_graphs=settings.cuda_graphs
            )
        else:
            raise BundleError(f"{source} is neither a bundle nor an ONNX file")
        self.inputs = tuple(map(_spec, self._session.get_inputs()))
        self.outputs = tuple(map(_spec, self._session.get_outputs()))
        self.batched = all(spec.shape and spec.shape[0] == -1 for spec in (*self.inputs, *self.outputs))
        self.labels = self.bundle.manifest.labels if self.bundle else None
        sized = not any(-1 in spec.shape[1:] for spec in self.inputs)
        if settings.cuda_graphs and not (sized and self.batched):
            raise ValueError(f"{name} takes tensors of any size, of which no CUDA graph can be captured")
        bound = sized and self.batched and settings.on_gpu
        self._call = BoundSession(self._session, "cuda", settings.cuda_graphs).run if bound else self._call_unbound
        if sized:  # otherwise there is no size to warm
            self._warm()
        self.batcher = Batcher(
            self._run if self.batched else self._run_alone, self._prepare,
            max_batch=settings.max_batch if self.batched else 1, queue_delay=settings.queue_delay,
            max_queue=settings.max_queue, workers=settings.workers, observe=observe,
        )  # fmt: skip
        self.load_seconds = time.monotonic() - began

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes that are warmed, and to which providers with a program for each size are padded."""
        sizes = [1]
        while sizes[-1] < self.settings.max_batch:
            sizes.append(min(2 * sizes[-1], self.settings.max_batch))
        return tuple(sizes)

    async def infer(self, tensors: Tensors, deadline: float) -> Answer:
        """Run checked tensors; see `Batcher.submit`.

        Raises:
            ProtocolError: when the inputs differ in rows, or have none.
        """
        if not self.batched:
            answer = await self.batcher.submit(tensors, 1, object(), deadline)
            return answer._replace(outputs={name: values[0] for name, values in answer.outputs.items()})
        rows = {len(tensor) for tensor in tensors.values()}
        if len(rows) != 1 or 0 in rows:
            raise ProtocolError(f"the inputs need one number of rows, at least 1, not {sorted(rows)}")
        key = tuple((name, tensors[name].shape[1:]) for name in sorted(tensors))
        return await self.batcher.submit(tensors, rows.pop(), key, deadline)

    async def classify(
        self, images: Sequence[bytes], top: int, deadline: float
    ) -> tuple[list[list[Prediction]], Answer]:
        """The best classes of image files. They are decoded on the batcher's threads; large ones beside them, so that
        those in the same batch need not wait for them; and tiny ones at once, which costs less than changing threads.

        Raises:
            ImageError: when one cannot be read.
            BundleError: when the model does not say how images become tensors, or has no classes.
        """
        manifest = self.bundle.manifest if self.bundle else None
        if manifest is None or manifest.preprocessing is None:
            raise BundleError(f"{self.name} does not say how images become tensors: send tensors to /infer")
        if manifest.output_kind == "features":
            raise BundleError(f"{self.name} gives features, not classes: send tensors to /infer")
        height, width = manifest.preprocessing.size
        payload: Any = list(images)
        if sum(map(len, images)) > _LARGE:
            payload = await asyncio.to_thread(self._prepare, payload)
        elif len(images) == 1 and height * width <= _TINY and _is_tiny(images[0]):
            payload = self._prepare(payload)
        answer = await self.batcher.submit(payload, len(images), _PIXELS, deadline)
        scores = answer.outputs[manifest.output_name]
        scores = softmax(scores) if manifest.output_kind == "logits" else scores
        return decode_predictions(scores, manifest.labels, top), answer

    def close(self, timeout: float | None = None) -> bool:
        """Answer what waits, and stop; returns whether that was done in time."""
        return self.batcher.close(timeout)

    def _prepare(self, payload: Any) -> Tensors:
        if isinstance(payload, Mapping):
            return payload
        assert self.engine is not None
        return {_PIXELS: self.engine.pixels_of(payload)}

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        rows = len(next(iter(tensors.values())))
        feeds = tensors
        if self.engine and _PIXELS in tensors:
            feeds = {self.engine.bundle.manifest.input_name: self.engine.input_of(tensors[_PIXELS])}
        if self.settings.provider != "cpu":
            feeds = {name: _padded(tensor, self._bucket(rows)) for name, tensor in feeds.items()}
        outputs = self._call(feeds)
        return {spec.name: values[:rows] for spec, values in zip(self.outputs, outputs, strict=True)}

    def _run_alone(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Without a batch axis: one is put in front for the batcher."""
        outputs = self._call(tensors)
        return {spec.name: np.asarray(values)[None] for spec, values in zip(self.outputs, outputs, strict=True)}

    def _call_unbound(self, feeds: Tensors) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = self._session.run(None, dict(feeds))
        return outputs

    def _bucket(self, rows: int) -> int:
        return next((size for size in self.buckets if size >= rows), rows)

    def _warm(self) -> None:
        """Run every batch size once: the first run of a shape allocates memory, and builds programs on GPUs."""
        for rows in self.buckets if self.batched else (1,):
            self._call({spec.name: _zeros(spec, rows) for spec in self.inputs})


def _is_tiny(image: bytes) -> bool:
    """Whether a PNG says that it has few pixels; other files' headers are not worth reading twice."""
    sides = image[16:24]  # behind the signature, and the first chunk's length and name
    return (
        image[:8] == b"\x89PNG\r\n\x1a\n" and len(sides) == 8
        and int.from_bytes(sides[:4]) * int.from_bytes(sides[4:]) <= _TINY
    )  # fmt: skip


def _spec(argument: Any) -> TensorSpec:
    """An input or output of a session."""
    if argument.type not in _OF_ONNX:
        raise ValueError(f"{argument.name} is a {argument.type}, which cannot be served")
    shape = tuple(side if isinstance(side, int) and side >= 0 else -1 for side in argument.shape)
    return TensorSpec(argument.name, _OF_ONNX[argument.type], shape)


def _zeros(spec: TensorSpec, rows: int) -> NDArray[Any]:
    shape = [rows if side == -1 else side for side in spec.shape]
    return np.zeros(shape, DATATYPES[spec.datatype][0])


def _padded(tensor: NDArray[Any], rows: int) -> NDArray[Any]:
    if len(tensor) == rows:
        return tensor
    return np.concatenate([tensor, np.zeros((rows - len(tensor), *tensor.shape[1:]), tensor.dtype)])
