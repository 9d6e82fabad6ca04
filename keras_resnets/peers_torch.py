"""torchvision's and timm's models as peers of a benchmark; runs in the Python that --peer-python names.

    TORCH/bin/python keras_resnets/peers_torch.py --export torchvision/resnet50 FILE.onnx
    echo '{"timing": "serving/timing.py", "model": "torchvision/resnet50", "batch": 8}' \\
        | TORCH/bin/python keras_resnets/peers_torch.py

That Python needs torch and NumPy, torchvision or timm, and nothing of this package: the request names the file by which
all contenders are timed. Without --export, the figures of PyTorch itself are printed as JSON; the request has further
`device` ("cpu" or "cuda"), `precision` ("float32" or "float16"), `compile` (one of torch.compile's modes, or null),
`threads` and `seconds`. Weights are random, memory is channels_last.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

OPSET = 18  # as in keras_resnets.export
# Correlation of the outputs with float32's on the CPU, at least: deep random networks blow rounding up.
ALIKE = {"float32": 0.999, "float16": 0.9}
_WARM_SECONDS = 0.5
_declared: list[Any] = []  # operators, which last as long as this list


class RefusedError(RuntimeError):
    """A model or a device that is not there, or outputs that are wrong."""


class Request(NamedTuple):
    """What is measured; see the module's docstring."""

    model: str
    batch: int = 1
    threads: int = 1
    device: str = "cpu"
    precision: str = "float32"
    compile: str | None = None


def figures(timing: ModuleType, call: Callable[[], object], batch: int, seconds: float) -> dict[str, Any]:
    """Time a peer's call as our own configurations are timed; also for peers that are not PyTorch's.

    Args:
        timing: keras_resnets.serving.timing.
        call: from arrays in this process's memory to outputs there.
        batch: images of a call.
        seconds: of the timed loop.
    """
    began = time.perf_counter()
    call()
    first = time.perf_counter() - began
    timing.closed_loop(call, _WARM_SECONDS)
    times = timing.closed_loop(call, seconds)
    return {
        "end_to_end": timing.summary(times, batch), "quantiles_ms": timing.quantiles_ms(times),
        "device_bound": None, "first_run_s": first,
    }  # fmt: skip


def build(name: str) -> Any:
    """A model with random weights, in inference mode, whose normalisations know what noise looks like: otherwise the
    outputs of deep networks leave the range of float16.

    Args:
        name: "torchvision/NAME" or "timm/NAME".

    Raises:
        RefusedError: when the library is missing, or has no such model.
    """
    import torch

    library, _, model_name = name.rpartition("/")
    try:
        model = _make(library, model_name)
    except (ValueError, RuntimeError, TypeError) as error:
        raise RefusedError(f"{library} does not build {model_name}: {error}") from error
    except ImportError as error:
        raise RefusedError(f"{error.name} is not installed in {sys.executable}") from error
    for layer in model.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0  # the statistics are those of the next batch
    with torch.no_grad():
        model.train()(torch.from_numpy(images(model, 8)))
    return model.eval()


def _make(library: str, name: str) -> Any:
    if library == "timm":
        _torchvision()  # timm imports it
        import timm

        return timm.create_model(name, pretrained=False)
    return _torchvision().models.get_model(name, weights=None)


def _torchvision() -> Any:
    """torchvision, also where its operators were compiled for another PyTorch. No classifier calls them, but two are
    described at the import, and must have been declared."""
    import torch

    try:
        import torchvision
    except RuntimeError:
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            with suppress(RuntimeError):
                operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(operators)
        import torchvision
    return torchvision


def images(model: Any, batch: int) -> Any:
    """Noise as the model takes it, float32 [batch, channels, height, width]."""
    known = getattr(model, "default_cfg", None) or {}  # timm's
    shape = known.get("input_size", (3, 299, 299) if type(model).__name__ == "Inception3" else (3, 224, 224))
    return np.random.default_rng(0).standard_normal((batch, *shape), np.float32)


def export(name: str, file: Path) -> None:
    """Write a model by torch.onnx, for any batch.

    Raises:
        RefusedError: see `build`.
    """
    import torch

    model = build(name)
    # The exporter for TorchScript: its graphs are the ones that people have, and it needs no onnxscript.
    torch.onnx.export(
        model, (torch.from_numpy(images(model, 1)),), str(file), dynamo=False, opset_version=OPSET,
        input_names=["images"], output_names=["logits"], dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
    )  # fmt: skip


class Opened:
    """A model on its device, and what float32 on the CPU made of the same images."""

    def __init__(self, what: Request) -> None:
        import torch

        if what.device == "cuda" and not torch.cuda.is_available():
            raise RefusedError(f"PyTorch {torch.__version__} sees no GPU")
        torch.set_num_threads(what.threads)
        torch.backends.cudnn.benchmark = True  # sizes stay as they are
        self.torch, self.what = torch, what
        model = build(what.model)
        self.array = images(model, what.batch)
        with torch.inference_mode():
            self.expected = model(torch.from_numpy(self.array)).numpy()
        self.type = getattr(torch, what.precision)
        began = time.perf_counter()
        self.model = model.to(what.device, self.type, memory_format=torch.channels_last)
        if what.compile:
            self.model = torch.compile(self.model, mode=what.compile)
        self.seconds = time.perf_counter() - began

    def tensor(self) -> Any:
        """The images where the model is."""
        tensor = self.torch.from_numpy(self.array).to(self.what.device, self.type)
        return tensor.contiguous(memory_format=self.torch.channels_last)

    def run(self) -> Any:
        """From an array to an array."""
        with self.torch.inference_mode():
            return self.model(self.tensor()).float().cpu().numpy()

    def in_place(self) -> Callable[[], None]:
        """A call on images that are on the GPU already, which leaves the outputs there."""
        tensor = self.tensor()

        def call() -> None:
            with self.torch.inference_mode():
                self.model(tensor)
            self.torch.cuda.synchronize()

        return call

    def check(self) -> float:
        """The outputs' correlation with float32's on the CPU.

        Raises:
            RefusedError: when it is too low for rounding alone.
        """
        alike = float(np.corrcoef(self.run().ravel(), self.expected.ravel())[0, 1])
        if not alike >= ALIKE[self.what.precision]:  # NaN is not, either
            raise RefusedError(f"PyTorch's outputs are others than float32's on the CPU: they correlate by {alike:.3f}")
        return alike

    def settings(self) -> dict[str, Any]:
        """What PyTorch itself says that it runs with."""
        return {
            "runtime": f"PyTorch {self.torch.__version__}", "device": self.what.device,
            "precision": self.what.precision, "compile": self.what.compile, "memory_format": "channels_last",
            "threads": self.torch.get_num_threads(), "tf32": self.torch.backends.cudnn.allow_tf32,
        }  # fmt: skip


def measure(what: Request, timing: ModuleType, seconds: float) -> dict[str, Any]:
    """The figures of a request; call it in a process that does nothing else.

    Raises:
        RefusedError: when model or GPU are missing, or the outputs are wrong.
    """
    row: dict[str, Any] = {"yardstick_ms": timing.yardstick_ms()}
    opened = Opened(what)
    row |= figures(timing, opened.run, what.batch, seconds)
    if what.device == "cuda":
        call = opened.in_place()
        timing.closed_loop(call, _WARM_SECONDS)
        row["device_bound"] = timing.summary(timing.closed_loop(call, seconds), what.batch)
    return row | {
        "open_s": opened.seconds, "memory_mb": timing.memory_mb(), "golden_drift": None,
        "settings": {**opened.settings(), "correlation_with_float32": opened.check()},
    }  # fmt: skip


def _loaded(file: str) -> ModuleType:
    """A module by its path: the package around it may not be installed here."""
    spec = importlib.util.spec_from_file_location("timing", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--export", nargs=2, metavar=("MODEL", "FILE"), help="write torchvision/NAME or timm/NAME")
    options = parser.parse_args()
    if options.export:
        try:
            export(options.export[0], Path(options.export[1]))
        except RefusedError as error:
            sys.exit(str(error))
        return 0
    asked = json.load(sys.stdin)
    timing, seconds = _loaded(asked.pop("timing")), float(asked.pop("seconds", 2.0))
    try:
        told = measure(Request(**asked), timing, seconds)
    except RefusedError as error:
        told = {"refused": str(error)}
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    # This folder's modules have common names, which PyTorch must not find.
    sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).parent.resolve()]
    sys.exit(main())
