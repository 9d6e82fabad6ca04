"""Others that take part in a benchmark: runtimes for a bundle, other libraries' models, and PyTorch itself.

    savedmodel         the bundle's SavedModel, in TensorFlow
    openvino           the bundle's ONNX files, in OpenVINO's own runtime
    keras:NAME         a model of keras.applications as Keras exports it, in ONNX Runtime
    torchvision:NAME   one of torchvision's as torch.onnx exports it, in ONNX Runtime
    timm:NAME          likewise one of timm's
    torch:NAME         torchvision's model (torch:timm/NAME: timm's) in PyTorch

A runtime is a program like `serving.contender`, with the same figures, and the same check of the golden sample:

    echo '{"peer": "openvino", "bundle": "digits_bundle", "batch": 8}' | python -m keras_resnets.peers

Exported files are measured as any ONNX file is. What needs PyTorch runs in a Python of its own; see `peers_torch`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets import peers_torch
from keras_resnets.atomic import atomic_file
from keras_resnets.bundle import Bundle, BundleError, Variant
from keras_resnets.extras import MissingExtraError, extra
from keras_resnets.golden import Golden
from keras_resnets.machine import usable_cpus
from keras_resnets.serving import timing
from keras_resnets.serving.benchmark import BenchmarkError, Contender, contender, name_of, sweep
from keras_resnets.serving.contender import Configuration, RefusedError
from keras_resnets.serving.providers import ON_GPU

_TORCH = Path(peers_torch.__file__)
# Eager, and with Triton's kernels in CUDA graphs.
_ON_CUDA: tuple[str | None, ...] = (None, "reduce-overhead")


class Running(NamedTuple):
    """A bundle in another runtime.

    Args:
        run: the output for [batch, …] as the runtime takes it.
        seconds: that it took to open.
        settings: what the runtime itself says that it runs with.
    """

    run: Callable[[NDArray[Any]], NDArray[Any]]
    seconds: float
    settings: Mapping[str, Any]


class Task(NamedTuple):
    """What a runtime is to do.

    Args:
        bundle: that it runs.
        variant: of the bundle.
        threads: of an operator.
        golden: the bundle's sample, as the runtime takes it.
        batch: images of a call.
    """

    bundle: Bundle
    variant: Variant
    threads: int
    golden: Golden
    batch: int


def saved_model(task: Task) -> Running:
    """The bundle's SavedModel in TensorFlow, on the CPU.

    Raises:
        MissingExtraError: when TensorFlow is not installed.
        BundleError: when the bundle has no SavedModel.
    """
    manifest = task.bundle.manifest
    if manifest.saved_model is None:
        raise BundleError(f"{task.bundle.path} has no SavedModel")
    with extra("tensorflow"):
        import tensorflow as tf

    task.bundle.check([name for name in manifest.files if name.startswith(f"{manifest.saved_model}/")])
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(task.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    signature = "pixels" if manifest.input_type == "uint8" else "serving_default"
    began = time.perf_counter()
    loaded = tf.saved_model.load(str(task.bundle.path / manifest.saved_model))
    seconds = time.perf_counter() - began

    def run(tensor: NDArray[Any]) -> NDArray[Any]:
        # A signature alone does not keep the weights.
        return loaded.signatures[signature](**{manifest.input_name: tf.constant(tensor)})[manifest.output_name].numpy()

    threads = tf.config.threading.get_intra_op_parallelism_threads()
    return Running(
        run, seconds, {"runtime": f"TensorFlow {tf.__version__}", "threads": threads, "signature": signature}
    )


def openvino(task: Task) -> Running:
    """A bundle's ONNX file in OpenVINO, on the CPU, compiled for the very batch that is timed.

    Raises:
        RefusedError: when OpenVINO is not installed, or takes other threads than asked for.
    """
    try:
        import openvino as ov
    except ImportError as error:
        raise RefusedError("OpenVINO's runtime is not installed. Run: pip install openvino") from error
    manifest = task.bundle.manifest
    task.bundle.check(task.bundle.graph_files(task.variant))
    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": task.threads, "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # otherwise some CPUs compute in bfloat16 what is not int8
    }  # fmt: skip
    began = time.perf_counter()
    core = ov.Core()
    model = core.read_model(task.bundle.path / task.variant.file)
    model.reshape({manifest.input_name: [task.batch, *task.golden.tensor.shape[1:]]})
    compiled = core.compile_model(model, "CPU", options)
    request, output = compiled.create_infer_request(), compiled.output(manifest.output_name)
    seconds = time.perf_counter() - began
    if (threads := compiled.get_property("INFERENCE_NUM_THREADS")) != task.threads:
        raise RefusedError(f"{task.threads} threads were asked for, and OpenVINO takes {threads}")

    def run(tensor: NDArray[Any]) -> NDArray[Any]:
        return request.infer({manifest.input_name: tensor}, share_inputs=True, share_outputs=True)[output]

    return Running(run, seconds, {"runtime": f"OpenVINO {ov.__version__}", **options})


RUNTIMES: dict[str, Callable[[Task], Running]] = {"savedmodel": saved_model, "openvino": openvino}
FILES = ("keras", "torchvision", "timm")  # whose exports are measured as ONNX files


def measure(
    peer: str, bundle: str, precision: str | None = None, batch: int = 1, threads: int | None = None,
    seconds: float = 2.0,
) -> dict[str, Any]:  # fmt: skip
    """The figures of a bundle in another runtime; call it in a process that does nothing else.

    Args:
        peer: of `RUNTIMES`.
        bundle: its folder.
        precision: which variant; by default its first.
        batch: images of a call.
        threads: of one operator; by default the CPUs of this process.
        seconds: of the timed loop.

    Raises:
        BundleError: when the bundle cannot be read, or the outputs are not its own.
        RefusedError, MissingExtraError: when the runtime cannot do it.
    """
    opened = Bundle.open(bundle)
    variant = opened.variant(precision)
    golden = Golden.of(opened, variant, channels_last=peer == "savedmodel")
    task = Task(opened, variant, threads or usable_cpus(), golden, batch)
    yardstick = timing.yardstick_ms()
    running = RUNTIMES[peer](task)
    images = np.ascontiguousarray(golden.tensor[golden.rows(0, batch)])
    told = peers_torch.figures(timing, lambda: running.run(images), batch, seconds)
    return told | {
        "open_s": running.seconds, "yardstick_ms": yardstick, "memory_mb": timing.memory_mb(),
        "golden_drift": golden.drift_in_batches(running.run, batch), "settings": dict(running.settings),
    }  # fmt: skip


def peer_contenders(
    names: Sequence[str],
    bundle: str | Path | None = None,
    *,
    batches: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] | None = None,
    folder: str | Path,
    python: str | Path | None = None,
    precisions: Sequence[str] | None = None,
    providers: Sequence[str] = ("cpu",),
) -> list[Contender]:
    """Peers by their names (see the module's docstring), for `benchmark.run`.

    Args:
        names: of peers.
        bundle: for "savedmodel" and "openvino", which run on the CPU alone.
        batches: images of a call.
        threads: of one operator; by default the CPUs that this process may use. More than these take no part.
        folder: gets the files that are exported, and must last as long as the benchmark.
        python: one that has torch, for the peers that need it.
        precisions: of the bundle, in OpenVINO; by default all that are meant for it.
        providers: for what runs in ONNX Runtime; PyTorch runs on the GPU for "cuda" and "tensorrt".

    Raises:
        BenchmarkError: for a name that is none, a peer that lacks a bundle or a Python, or a model that does not
            exist or cannot be exported.
        BundleError: when the bundle cannot be read, or lacks a precision.
    """
    for name in names:
        _check(name, bundle, python)
    found: list[Contender] = []
    for kind, _, model in (name.partition(":") for name in names):
        if kind in RUNTIMES:
            found += _of_bundle(kind, Path(bundle or ""), batches, threads, precisions)
        elif kind == "torch":
            found += _of_torch(model, python, batches, threads, providers)
        else:
            file = _exported(kind, model, Path(folder), python)
            files = sweep([file], providers=providers, batches=batches, threads=threads)
            found += [one._replace(labels={**one.labels, "kind": kind}) for one in files]
    return list({one.name: one for one in found}.values())


def _check(name: str, bundle: str | Path | None, python: str | Path | None) -> None:
    """Raise BenchmarkError unless a peer has what it needs; before anything is exported."""
    kind, _, model = name.partition(":")
    models = r"(timm/|torchvision/)?[\w.]+" if kind == "torch" else r"[\w.]+"
    if not (name in RUNTIMES or (kind in (*FILES, "torch") and re.fullmatch(models, model))):
        known = ", ".join([*RUNTIMES, *(f"{kind}:NAME" for kind in (*FILES, "torch"))])
        raise BenchmarkError(f"there is no peer {name!r}; there are {known}")
    if name in RUNTIMES and not (bundle and Path(bundle).is_dir()):
        raise BenchmarkError(f"the peer {name} runs bundles; {bundle or 'nothing'} is none")
    if kind in ("torch", "torchvision", "timm") and not python:
        raise BenchmarkError(f"{name} needs --peer-python: a Python that has torch, torchvision and, for timm's, timm")


def _of_bundle(
    kind: str, bundle: Path, batches: Sequence[int], threads: Sequence[int] | None, precisions: Sequence[str] | None
) -> list[Contender]:
    if kind == "openvino":
        meant = [row.precision for row in Bundle.open(bundle).manifest.variants if "openvino" in row.providers]
        chosen: Sequence[str] = precisions or meant
    else:
        chosen = ("float32",)
    found = []
    for precision, batch, number in product(chosen, batches, threads or [usable_cpus()]):
        with suppress(RefusedError):  # more threads than CPUs
            one = contender(Configuration(str(bundle), precision, "cpu", batch, number))
            request = {
                "peer": kind, "bundle": str(bundle), "precision": precision, "batch": batch, "threads": number
            }  # fmt: skip
            program = [sys.executable, "-m", "keras_resnets.peers"]
            found.append(Contender(f"{kind}: {one.name}", {**one.labels, "kind": kind}, program, request))
    return found


def _of_torch(
    model: str,
    python: str | Path | None,
    batches: Sequence[int],
    threads: Sequence[int] | None,
    providers: Sequence[str],
) -> list[Contender]:
    """PyTorch itself: eager in float32 on the CPU; eager and compiled in float16 on a GPU."""
    cpus = usable_cpus()
    ways: list[tuple[str, str, str | None, int]] = []  # device, precision, mode of torch.compile, threads
    if any(provider not in ON_GPU for provider in providers):
        ways += [("cpu", "float32", None, number) for number in threads or [cpus] if number <= cpus]
    if any(provider in ON_GPU for provider in providers):
        ways += [("cuda", "float16", mode, cpus) for mode in _ON_CUDA]
    library, _, short = model.rpartition("/")
    found = []
    for (device, precision, mode, number), batch in product(ways, batches):
        labels = {
            "kind": "torch", "model": short, "precision": precision, "provider": device, "batch": batch,
            "threads": number, "workers": 1, "spin": True, "quality": None,
            "cuda_graphs": mode == "reduce-overhead",
            "options": {"compile": mode} if mode else {},
        }  # fmt: skip
        request = {
            "model": f"{library or 'torchvision'}/{short}", "batch": batch, "threads": number, "device": device,
            "precision": precision, "compile": mode, "timing": timing.__file__,
        }  # fmt: skip
        found.append(Contender(f"torch: {name_of(labels)}", labels, [str(python), str(_TORCH)], request))
    return found


def _exported(kind: str, model: str, folder: Path, python: str | Path | None) -> Path:
    """An ONNX file of another library's model, written in a process of its own."""
    file = folder / f"{kind}_{model}.onnx"
    with atomic_file(file) as draft:
        if kind == "keras":
            command = [sys.executable, "-m", "keras_resnets.peers", "--export", model, str(draft)]
        else:
            command = [str(python), str(_TORCH), "--export", f"{kind}/{model}", str(draft)]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except OSError as error:
            raise BenchmarkError(f"{kind}:{model}: {command[0]} cannot be run: {error}") from error
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise BenchmarkError(f"{kind}:{model} cannot be exported: {lines[-1] if lines else done.returncode}")
    return file


def export_keras(name: str, file: Path) -> None:
    """Write a model of keras.applications with random weights, as Keras itself exports it.

    Raises:
        BenchmarkError: when there is no such model.
    """
    with extra("export"):
        import keras

    build = getattr(keras.applications, name, None)
    if not callable(build):
        known = [key for key in vars(keras.applications) if key[0].isupper()]
        raise BenchmarkError(f"keras.applications has no {name}; it has {', '.join(sorted(known))}")
    model = build(weights=None)
    model(np.zeros((1, *model.input_shape[1:]), np.float32))  # Keras exports no model that was never called
    model.export(file, format="onnx", verbose=False)


def main() -> int:
    """Read a request and print its figures, or export; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--export", nargs=2, metavar=("NAME", "FILE"), help="write a model of keras.applications")
    options = parser.parse_args()
    if options.export:
        try:
            export_keras(options.export[0], Path(options.export[1]))
        except (BenchmarkError, MissingExtraError) as error:
            sys.exit(str(error))
        return 0
    try:
        told = measure(**json.load(sys.stdin))
    except (RefusedError, BundleError, MissingExtraError) as error:
        told = {"refused": str(error)}
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
