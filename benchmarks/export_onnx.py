"""Times ONNX exports of ResNet-50: this package against Keras's own exporter.

    python benchmarks/export_onnx.py [--model resnet50] [--rounds 3]

Each contender runs in a process of its own, in turn; the time is the export call alone (no imports, no
building of the model), the memory the highest resident size of the whole process. The result goes to
benchmarks/results, in a file whose name says the conditions.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from paired import cores, in_turn, medians, write_result
from rich.console import Console
from rich.table import Table

CONTENDERS = ("keras_resnets", "keras")
PACKAGES = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "numpy")


def measure(contender: str, name: str) -> None:
    """Export once and print the figures as JSON; runs in a process of its own."""
    import keras_resnets

    model = keras_resnets.create_model(name)
    model(one_image(model))  # Keras's exporter refuses a model that was never called
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        if contender == "keras":
            began = time.perf_counter()
            model.export(file, format="onnx", verbose=False)
        else:
            from keras_resnets.export import to_onnx

            began = time.perf_counter()
            to_onnx(model, file)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        import onnx

        nodes = len(onnx.load(file, load_external_data=False).graph.node)
        print(
            json.dumps({"seconds": seconds, "peak_mb": peak / 1024, "added_mb": (peak - before) / 1024, "nodes": nodes})
        )


def one_image(model: Any) -> Any:
    """A batch of one image."""
    import numpy as np

    return np.ones((1, *model.input_shape[1:]), np.float32)


def main() -> None:
    """Run the contenders in turn, print the medians, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.model)
        return
    console = Console()
    with console.status("measuring") as status:
        rows = in_turn(__file__, CONTENDERS, ["--model", options.model], options.rounds, status.update)
    figures = medians(rows)
    ours, theirs = (figures[name] for name in CONTENDERS)
    table = Table("exporter", "seconds", "peak memory", "added by the export", "nodes", title=options.model)
    for name, row in figures.items():
        table.add_row(
            name,
            f"{row['seconds']:.1f}",
            f"{row['peak_mb']:.0f} MB",
            f"{row['added_mb']:.0f} MB",
            f"{row['nodes']:.0f}",
        )
    console.print(table)
    ratio = theirs["seconds"] / ours["seconds"]
    console.print(f"medians of {options.rounds}; Keras's exporter takes {ratio:.1f} times as long")
    name = f"export_{options.model}_cpu{cores()}_tf{version('tensorflow')}_keras{version('keras')}"
    file = write_result(name, PACKAGES, rows, ratio_seconds=ratio)
    console.print(f"wrote {file}")


if __name__ == "__main__":
    main()
