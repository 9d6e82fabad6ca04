"""Times ResNet-50 v1.5 in ONNX Runtime: this package's file against torchvision's, in float32 and int8.

    python benchmarks/runtime_onnx.py --torch-python TORCH/bin/python
    python benchmarks/runtime_onnx.py --torch-python TORCH/bin/python --provider openvino --python OPENVINO/bin/python

Ours is `to_onnx` of ResNet50(variant="v1.5"), torchvision's the same network by torch.onnx (TorchScript) in the Python
that --torch-python names, both with random weights, and images as torchvision takes them, [batch, 3, 224, 224]. Our
int8 is what `to_bundle` writes, torchvision's what onnxruntime's quantize_static makes of it: QDQ, U8S8, per channel;
both are calibrated on noise by MinMax. The sessions run in the Python that --python names, which needs onnxruntime (of
any distribution), numpy and Pillow only, and are opened as keras_resnets.serving opens them: with as many threads as
there are cores, all graph optimizations, and no other provider than the one asked for. Each file and batch is a process
of its own, in turn; the result goes to benchmarks/results, in a file whose name says the conditions.
"""

from __future__ import annotations

import argparse
import json
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import distributions
from itertools import product
from pathlib import Path
from typing import Any

from paired import Row, cores, in_turn, last_words, medians, write_result

ROOT = Path(__file__).parents[1]
WHO, PRECISIONS, BATCHES = ("ours", "torchvision"), ("float32", "int8"), (1, 8)
SIDE, CALIBRATION_IMAGES = 224, 32
TORCH_MODELS = Path(__file__).with_name("torch_models.py")
PACKAGES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy")


def serving(name: str) -> Any:
    """From keras_resnets.serving.providers, by its path: what else the package needs may be missing."""
    sys.path.insert(0, str(ROOT))
    return runpy.run_path(str(ROOT / "serving" / "providers.py"))[name]


def measure(file: Path, provider: str, batch: int, seconds: float) -> None:
    """Run a session on noise for so many seconds, and print the figures as JSON; runs in a process of its own."""
    import numpy as np

    session = serving("open_session")(file, provider)
    (images,) = session.get_inputs()
    noise = np.random.default_rng(0).integers(0, 256, (batch, *images.shape[1:]), np.uint8)
    feed = {images.name: noise if images.type == "tensor(uint8)" else noise.astype(np.float32) / 128 - 1}
    run_for(session, feed, 1.0)  # warms up
    times = run_for(session, feed, seconds)
    latency = statistics.median(times)
    print(json.dumps({"median_ms": 1000 * latency, "images_per_second": batch * len(times) / sum(times)}))


def run_for(session: Any, feed: dict[str, Any], seconds: float) -> list[float]:
    """The seconds of each run, at least three."""
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        began = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - began)
    return times


def conditions(provider: str) -> None:
    """Print as JSON what sessions run with, and fail when the provider is not active."""
    import numpy
    import onnxruntime

    session = serving("open_session")(serving("_PROBE"), provider)
    options = session.get_session_options()
    told = {
        "onnxruntime": onnxruntime.__version__,
        # onnxruntime, onnxruntime-openvino and onnxruntime-gpu share one import name.
        "distribution": next(item.name for item in distributions() if item.name.startswith("onnxruntime")),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "provider": session.get_providers()[0],
        "threads": options.intra_op_num_threads,
        "graph_optimization": options.graph_optimization_level.name,
    }
    print(json.dumps(told))


def export_ours(folder: Path) -> None:
    """Our ResNet-50 v1.5."""
    import keras_resnets
    from keras_resnets.export import to_onnx

    to_onnx(keras_resnets.ResNet50(variant="v1.5"), folder / "ours_float32.onnx", layout="nchw")


def quantize_ours(folder: Path) -> None:
    """Ours in int8, as `to_bundle` makes it, calibrated on noise like theirs."""
    import numpy as np

    from keras_resnets.export.int8 import Int8, calibrate

    chance = np.random.default_rng(0)
    images = (chance.standard_normal((1, 3, SIDE, SIDE), np.float32) for _ in range(CALIBRATION_IMAGES))
    source = folder / "ours_float32.onnx"
    Int8(source, calibrate(source, images), symmetric=False).write(folder / "ours_int8.onnx", ())


def quantize_theirs(folder: Path) -> None:
    """torchvision's file in int8, as onnxruntime's documentation advises for x86."""
    import numpy as np
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Noise(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            chance = np.random.default_rng(0)
            shape = (1, 3, SIDE, SIDE)
            self.images = (chance.standard_normal(shape, np.float32) for _ in range(CALIBRATION_IMAGES))

        def get_next(self) -> Any:
            image = next(self.images, None)
            return None if image is None else {"images": image}

    prepared = folder / "prepared.onnx"
    # Symbolic shapes, which need sympy, are for transformers.
    quant_pre_process(folder / "torchvision_float32.onnx", prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared, folder / "torchvision_int8.onnx", Noise(), quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8, per_channel=True,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )  # fmt: skip


PREPARATIONS = {"export_ours": export_ours, "quantize_ours": quantize_ours, "quantize_theirs": quantize_theirs}


def prepare(options: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> dict[str, Path]:
    """Write the files, in processes of their own, whose threads end with them; returns contender to file."""
    files = {f"{who}_{precision}": folder / f"{who}_{precision}.onnx" for precision, who in product(PRECISIONS, WHO)}
    say("exporting torchvision's ResNet-50")
    output_of(options.torch_python, TORCH_MODELS, "resnet50", "--export", files["torchvision_float32"])
    for name in PREPARATIONS:
        say(name.replace("_", " "))
        output_of(sys.executable, __file__, "--prepare", name, "--folder", folder)
    return files


def output_of(*command: str | Path) -> str:
    """What a command prints; its complaint ends this program when it fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} {command[1]} failed: {last_words(done.stderr)}")
    return done.stdout


def ratios(figures: dict[str, Row]) -> dict[str, float]:
    """Images/s, at the median latency, of int8 over float32 and of ours over torchvision's."""
    rate = {name: 1 / row["median_ms"] for name, row in figures.items()}
    pairs = [(f"{who}_int8_batch{n}", f"{who}_float32_batch{n}") for n, who in product(BATCHES, WHO)]
    pairs += [(f"ours_{kind}_batch{n}", f"torchvision_{kind}_batch{n}") for n, kind in product(BATCHES, PRECISIONS)]
    return {f"{one}/{other}": rate[one] / rate[other] for one, other in pairs if one in rate and other in rate}


def compare(options: argparse.Namespace) -> None:
    """Prepare the files, run all contenders in turn, print the medians, write the result file."""
    from rich.console import Console

    console = Console()
    sessions = json.loads(output_of(options.python, __file__, "--conditions", "--provider", options.provider))
    torch = json.loads(output_of(options.torch_python, TORCH_MODELS, "resnet50"))["packages"]
    with tempfile.TemporaryDirectory() as folder, console.status("preparing") as status:
        files = prepare(options, Path(folder), status.update)
        arguments = ["--provider", options.provider, "--seconds", str(options.seconds)]
        commands = {
            f"{name}_batch{batch}": [
                options.python, __file__, "--measure", str(file), "--batch", str(batch), *arguments
            ]
            for batch, (name, file) in product(BATCHES, files.items())
        }  # fmt: skip
        rows = in_turn(commands, options.rounds, status.update)
    figures = medians(rows)
    for name, row in figures.items():
        line = f"{name}: {row['median_ms']:.2f} ms, {row['images_per_second']:.1f} images/s"
        console.print(line, highlight=False)
    for name, ratio in ratios(figures).items():
        console.print(f"{name}: {ratio:.2f}", highlight=False)
    file = write_result(
        f"runtime_resnet50_{options.provider}_cpu{cores()}_ort{sessions['onnxruntime']}", PACKAGES, rows,
        ratios=ratios(figures), sessions=sessions, torch=torch, seconds_of_a_run=options.seconds,
    )  # fmt: skip
    console.print(f"wrote {file}")


def main() -> None:
    """Parse the options; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch-python", type=Path, help="a Python that has torch, torchvision, onnx and onnxscript")
    parser.add_argument("--python", default=sys.executable, help="where the sessions run")
    parser.add_argument("--provider", default="cpu", help="cpu, openvino, cuda or tensorrt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--conditions", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", choices=list(PREPARATIONS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.conditions:
        conditions(options.provider)
    elif options.prepare:
        PREPARATIONS[options.prepare](options.folder)
    elif options.measure:
        measure(options.measure, options.provider, options.batch, options.seconds)
    elif options.torch_python:
        compare(options)
    else:
        parser.error("--torch-python is needed")


if __name__ == "__main__":
    main()
