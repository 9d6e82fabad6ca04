"""Times ONNX exports: this package against Keras's own exporter and PyTorch's two.

    python benchmarks/export_onnx.py [--model resnet50] [--rounds 3] [--torch-python TORCH/bin/python]
    python benchmarks/export_onnx.py --what bundle

PyTorch's take torchvision's model of the same name; --torch-python names a Python that has torch, torchvision, onnx and
onnxscript. Each contender runs in a process of its own, in turn; the time is the export call alone (no imports, no
building of the model, which was called once before), the memory what the call added at its peak to the process. A
contender that fails, or takes more than --limit seconds or --memory GB, did not finish and is not run again. `--what
bundle` times to_bundle: ONNX and SavedModel, both verified. The result goes to benchmarks/results, in a file whose name
says the conditions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paired import Limits, Row, cores, in_turn, measured, medians, write_result

TORCH = ("torch_torchscript", "torch_dynamo")
CONTENDERS = {"onnx": ("keras_resnets", "keras", *TORCH), "bundle": ("bundle",)}
PACKAGES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy")
FILE = "model.onnx"  # as in a bundle


def of_keras(contender: str, name: str) -> tuple[int, Callable[[Path], object]]:
    """A model of this package: the bytes of its weights, and what exports it to a folder."""
    import numpy as np

    import keras_resnets
    from keras_resnets.export import to_bundle, to_onnx

    model = keras_resnets.create_model(name)
    model(np.ones((1, *model.input_shape[1:]), np.float32))  # Keras's exporter refuses a model that was never called
    calls: dict[str, Callable[[Path], object]] = {
        "keras_resnets": lambda folder: to_onnx(model, folder / FILE),
        "keras": lambda folder: model.export(folder / FILE, format="onnx", verbose=False),
        "bundle": lambda folder: to_bundle(model, folder, overwrite=True),
    }
    weights = sum(math.prod(weight.shape) * np.dtype(weight.dtype).itemsize for weight in model.variables)
    return weights, calls[contender]


def of_torch(contender: str, name: str) -> tuple[int, Callable[[Path], object]]:
    """The same of torchvision's model."""
    import torch
    from torch_models import build, export, image

    model = build(name)
    with torch.no_grad():
        model(image(1))
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return weights, lambda folder: export(model, folder / FILE, dynamo=contender == "torch_dynamo")


def measure(contender: str, name: str) -> None:
    """Export once and print the figures as JSON; runs in a process of its own."""
    import onnx

    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    weights, call = (of_torch if contender in TORCH else of_keras)(contender, name)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "exported"
        folder.mkdir()
        took = measured(lambda: call(folder))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        nodes = len(onnx.load(folder / FILE, load_external_data=False).graph.node)
    megabytes = weights / 2**20
    figures = {"weights_mb": megabytes, "added_by_weights": took.added_mb / megabytes, "file_mb": size / 2**20}
    print(json.dumps({**took._asdict(), **figures, "nodes": nodes}))


def compare(options: argparse.Namespace) -> None:
    """Run the contenders in turn, print the medians, write the result file."""
    from rich.console import Console

    console = Console()
    torch = torchvision(options.torch_python, options.model) if options.torch_python else None
    contenders = chosen(options, bool(torch))
    pythons = {name: options.torch_python if name in TORCH else sys.executable for name in contenders}
    commands = {
        name: [python, __file__, "--measure", name, "--model", options.model] for name, python in pythons.items()
    }
    unfinished: dict[str, str] = {}
    with console.status("measuring") as status:
        rows = in_turn(commands, options.rounds, status.update, Limits(options.limit, options.memory), unfinished)
    ratios = to_ours(medians(rows), CONTENDERS[options.what][0])
    show(console, f"{options.model}, medians of {options.rounds}", medians(rows), ratios, unfinished)
    kind = "export" if options.what == "onnx" else options.what
    file = write_result(
        f"{kind}_{options.model}_cpu{cores()}_tf{version('tensorflow')}_keras{version('keras')}", PACKAGES, rows,
        ratios=ratios, not_finished=unfinished, limits={"seconds": options.limit, "memory_gb": options.memory},
        torch=torch,
    )  # fmt: skip
    console.print(f"wrote {file}")


def chosen(options: argparse.Namespace, with_torch: bool) -> list[str]:
    """The contenders asked for, or all that there are."""
    known = [name for name in CONTENDERS[options.what] if with_torch or name not in TORCH]
    if unknown := [name for name in options.contenders or () if name not in known]:
        without = "" if with_torch else f" (without --torch-python, or torchvision has no {options.model})"
        raise SystemExit(f"no contender {', '.join(unknown)}; there are {', '.join(known)}{without}")
    return [name for name in known if not options.contenders or name in options.contenders]


def torchvision(python: Path, model: str) -> dict[str, str] | None:
    """The versions in PyTorch's Python, or None where torchvision has no such model."""
    script = Path(__file__).with_name("torch_models.py")
    done = subprocess.run([python, script, model], check=True, stdout=subprocess.PIPE, text=True)
    told = json.loads(done.stdout)
    return told["packages"] if told["has"] else None


def to_ours(figures: dict[str, Row], ours: str) -> dict[str, Row]:
    """Time and added memory of the others as multiples of ours."""
    if ours not in figures:
        return {}
    return {
        name: {key: row[key] / figures[ours][key] for key in ("seconds", "added_mb")}
        for name, row in figures.items()
        if name != ours
    }


def show(console: Any, title: str, figures: dict[str, Row], ratios: dict[str, Row], unfinished: dict[str, str]) -> None:
    """Print the table."""
    from rich.markup import escape
    from rich.table import Column, Table

    head = ("seconds", "memory added", "× weights", "file", "nodes", "time × ours", "memory × ours")
    table = Table(Column("exporter", no_wrap=True), *head, title=title)
    for name, row in figures.items():
        by_ours = [f"{ratios[name][key]:.1f}" if name in ratios else "" for key in ("seconds", "added_mb")]
        table.add_row(
            name, f"{row['seconds']:.2f}", f"{row['added_mb']:.0f} MB", f"{row['added_by_weights']:.1f}",
            f"{row['file_mb']:.1f} MB", f"{row['nodes']:.0f}", *by_ours,
        )  # fmt: skip
    console.print(table)
    for name, why in unfinished.items():
        console.print(f"{name}: not finished: {escape(why)}", highlight=False)


def main() -> None:
    """Parse the options; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet50", help="of keras-resnets list")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--what", choices=list(CONTENDERS), default="onnx")
    parser.add_argument("--contenders", nargs="+", help=f"some of {', '.join(CONTENDERS['onnx'])}")
    parser.add_argument("--torch-python", type=Path, help="a Python that has torch, torchvision, onnx and onnxscript")
    parser.add_argument("--limit", type=float, default=300, help="seconds of a run, imports included")
    parser.add_argument("--memory", type=float, default=20, help="GB of a run's process")
    parser.add_argument("--measure", choices=sum(CONTENDERS.values(), ()), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.model)
    else:
        compare(options)


if __name__ == "__main__":
    main()
