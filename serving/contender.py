"""Measures one configuration and prints the figures as JSON: the whole program of a process of its own.

    echo '{"source": "digits_bundle", "precision": "int8", "seconds": 2}' | python -m keras_resnets.serving.contender

In one process the waiting threads of one runtime take the cores of another; so each configuration has one for itself.
A configuration that gives wrong outputs, or ran otherwise than it was asked to, gives no figures but an error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.bundle import PROVIDERS, BundleError
from keras_resnets.machine import usable_cpus

from .binding import BoundSession
from .conditions import watched_gpu
from .engine import Engine
from .providers import ON_GPU, ProviderError, open_session
from .timing import at_once, closed_loop, memory_mb, quantiles_ms, summary, yardstick_ms

_WARM_SECONDS = 0.5
_WATCHED_SECONDS = 1.0


class RefusedError(RuntimeError):
    """A configuration whose figures would not be what they are called."""


@dataclass(frozen=True)
class Configuration:
    """What is measured.

    Args:
        source: a bundle's folder, or an ONNX file.
        precision: of a bundle: which variant; by default its first.
        provider: "cpu", "openvino", "cuda" or "tensorrt".
        batch: images of a call.
        threads: of one operator; by default the CPUs of this process.
        workers: calls at once on one session, as the server's.
        spin: whether threads that wait keep their cores busy.
        cuda_graphs: replay the network as one launch.
        options: the provider's own, by ONNX Runtime's names.
    """

    source: str
    precision: str | None = None
    provider: str = "cpu"
    batch: int = 1
    threads: int | None = None
    workers: int = 1
    spin: bool = True
    cuda_graphs: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("batch", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        asked = (self.threads or 1) * self._sharing
        if asked > (cpus := usable_cpus()):
            raise RefusedError(f"{asked} threads were asked for, and this process may use {cpus} CPUs")

    @property
    def on_gpu(self) -> bool:
        """Whether the provider is an NVIDIA GPU's."""
        return self.provider in ON_GPU

    @property
    def intra_threads(self) -> int:
        """Threads of one operator."""
        return self.threads or max(1, usable_cpus() // self._sharing)

    @property
    def _sharing(self) -> int:
        """How many calls at once want the CPUs."""
        return 1 if self.on_gpu else self.workers


def measure(what: Configuration, seconds: float) -> dict[str, Any]:
    """The figures of a configuration; call it in a process that does nothing else.

    Args:
        what: see there.
        seconds: of each timed loop.

    Raises:
        RefusedError: when the session has other threads or another provider than asked for.
        BundleError: when the outputs are not the bundle's.
        ProviderError: when the provider is not active.
    """
    yardstick = yardstick_ms()
    opened = _Opened(what)
    began = time.perf_counter()
    call = opened.caller(what)
    call()
    first = time.perf_counter() - began
    closed_loop(call, _WARM_SECONDS)
    times, rate = at_once([call] * what.workers, seconds)
    figures = {
        "end_to_end": summary(times, what.batch, rate), "quantiles_ms": quantiles_ms(times),
        "device_bound": None, "open_s": opened.seconds, "first_run_s": first, "yardstick_ms": yardstick,
    }  # fmt: skip
    if opened.bound:
        device_call = opened.bound.in_place(opened.feeds(what.batch))
        closed_loop(device_call, _WARM_SECONDS)
        figures["device_bound"] = summary(closed_loop(device_call, seconds), what.batch)
        with watched_gpu() as seen:
            closed_loop(device_call, _WATCHED_SECONDS if what.on_gpu else 0.0)
        figures["gpu"] = seen
    figures |= {"memory_mb": memory_mb(), "golden_drift": opened.check(what), "settings": opened.settings()}
    return figures


class _Opened:
    """A session that was proven to be the one asked for."""

    def __init__(self, what: Configuration) -> None:
        before, threads = _threads(), what.intra_threads
        self.engine: Engine | None = None
        if Path(what.source).is_dir():
            self.engine = Engine(
                what.source, provider=what.provider, precision=what.precision, threads=threads, spin=what.spin,
                batch_size=what.batch, cuda_graphs=what.cuda_graphs, provider_options=what.options,
            )  # fmt: skip
            self.session, self.seconds = self.engine.session, self.engine.open_seconds
        else:
            began = time.perf_counter()
            self.session = open_session(what.source, what.provider, threads, what.spin, what.cuda_graphs, what.options)
            self.seconds = time.perf_counter() - began
        self._spin = what.spin
        self._names = [item.name for item in self.session.get_outputs()]
        if self.session.get_providers()[0] != PROVIDERS[what.provider]:
            raise RefusedError(f"{what.provider} was asked for, and the session runs on {self.session.get_providers()}")
        # The thread that calls is one of the operator's threads.
        if what.provider == "cpu" and (made := len(_threads() - before)) < threads - 1:
            raise RefusedError(f"{threads} threads were asked for, and the session has {made + 1}")
        self.bound: BoundSession | None = None
        if all(isinstance(side, int) for item in self.session.get_inputs() for side in item.shape[1:]):
            place = "cuda" if what.on_gpu else "cpu"
            self.bound = BoundSession(self.session, place, what.cuda_graphs)

    def feeds(self, batch: int) -> dict[str, NDArray[Any]]:
        """The golden sample's rows, again and again; noise for a plain file."""
        if self.engine:
            golden = self.engine.golden
            tensor = np.ascontiguousarray(golden.tensor[golden.rows(0, batch)])
            return {self.engine.bundle.manifest.input_name: tensor}
        return {item.name: _noise(item, batch) for item in self.session.get_inputs()}

    def caller(self, what: Configuration) -> Callable[[], Any]:
        """From tensors in this process's memory to outputs there."""
        feeds = self.feeds(what.batch)
        if self.bound and what.on_gpu:
            bound = self.bound
            return lambda: bound.run(feeds)
        return lambda: self.session.run(None, feeds)

    def check(self, what: Configuration) -> float | None:
        """Compare the outputs, in the batches that were timed, with the golden ones; None where there are none."""
        if self.engine is None:
            outputs = self.session.run(None, self.feeds(what.batch))
            if not all(np.isfinite(values).all() for values in outputs if values.dtype.kind == "f"):
                raise RefusedError(f"{what.source} gives outputs that are not finite")
            return None
        manifest = self.engine.bundle.manifest
        place = self._names.index(manifest.output_name)
        paths = [self.bound.run] if self.bound else []
        paths += [self._run] if not (self.bound and what.on_gpu) else []
        golden, worst = self.engine.golden, 0.0
        for run in paths:

            def answer(tensor: NDArray[Any], run: Any = run) -> NDArray[Any]:
                outputs: NDArray[Any] = run({manifest.input_name: tensor})[place]
                return outputs

            worst = max(worst, golden.drift_in_batches(answer, what.batch))
        return worst

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = self.session.run(None, dict(feeds))
        return outputs

    def settings(self) -> dict[str, Any]:
        """What the session itself says that it runs with."""
        options = self.session.get_session_options()
        return {
            "provider": self.session.get_providers()[0],
            "threads": options.intra_op_num_threads,
            "spin": self._spin,
            "graph_optimization": options.graph_optimization_level.name,
            "provider_options": dict(self.session.get_provider_options().get(self.session.get_providers()[0], {})),
        }


def _noise(item: Any, batch: int) -> NDArray[Any]:
    """For an input of a plain ONNX file: pixels, or what normalised pixels look like."""
    if isinstance(item.shape[0], int) and item.shape[0] != batch:
        raise RefusedError(f"input {item.name} takes {item.shape[0]} images a call, not {batch}")
    shape = [batch, *(side if isinstance(side, int) else 224 for side in item.shape[1:])]
    chance = np.random.default_rng(0)
    if item.type == "tensor(uint8)":
        return chance.integers(0, 256, shape, np.uint8)
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    if item.type not in kinds:
        raise RefusedError(f"input {item.name} is a {item.type}; images are float32, float16 or uint8")
    return chance.standard_normal(shape, np.float32).astype(kinds[item.type])


def _threads() -> set[int | str]:
    """The threads of this process: the system's, and elsewhere than on Linux, Python's."""
    try:
        return set(os.listdir("/proc/self/task"))  # noqa: PTH208 (names, and nothing of them)
    except OSError:
        return {thread.ident or 0 for thread in threading.enumerate()}


def main() -> int:
    """Read a configuration, print its figures; see the module's docstring."""
    asked = json.load(sys.stdin)
    seconds = float(asked.pop("seconds", 2.0))
    try:
        figures = measure(Configuration(**asked), seconds)
    except (RefusedError, BundleError, ProviderError, ValueError) as error:
        print(json.dumps({"refused": str(error)}))
        return 0
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
