"""Measures what lower precisions cost: top-1 of every variant of a bundle on its data set's test images.

    python benchmarks/precision_accuracy.py runs/fashion_mnist [--images 1000] [--without-images]

The run is exported to float32, float16, int8 and int8-symmetric, calibrated and judged on training images, and
every variant classifies the whole test set through ONNX Runtime on the CPU. The result goes to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from paired import cores, write_result
from rich.console import Console
from rich.table import Table

PRECISIONS = ("float16", "int8", "int8-symmetric")
PACKAGES = ("tensorflow", "keras", "onnx", "onnxruntime", "numpy")


def main() -> None:
    """Export, classify, print, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a training run's folder")
    parser.add_argument("--images", type=int, default=1_000, help="training images to calibrate and judge with")
    parser.add_argument("--without-images", action="store_true", help="calibrate on synthetic images instead")
    options = parser.parse_args()
    console = Console()
    with console.status("exporting") as status:
        rows, name = measure(options.run, 0 if options.without_images else options.images, status.update)
    table = Table("precision", "top-1", "lost", "agrees on training images", "float32 layers", "bytes", title=name)
    for precision, (row,) in rows.items():
        table.add_row(
            precision,
            f"{row['top1']:.2%}",
            f"{rows['float32'][0]['top1'] - row['top1']:+.2%}",
            f"{row['agreement']:.2%}",
            f"{row['float_layers']:.0f}",
            f"{row['bytes']:,.0f}",
        )
    console.print(table)
    how = "synthetic" if options.without_images else f"{options.images}images"
    file = write_result(f"precisions_{name}_{how}_cpu{cores()}", PACKAGES, rows)
    console.print(f"wrote {file}")


def measure(run: Path, images: int, say: Callable[[str], None]) -> tuple[dict[str, list[dict[str, float]]], str]:
    """Figures by precision, and the name of model and data."""
    from keras_resnets.data import load_dataset
    from keras_resnets.export import DataFreeWarning, to_bundle
    from keras_resnets.models.files import load_model
    from keras_resnets.serving import Engine

    recipe = json.loads((run / "recipe.json").read_text())
    data = load_dataset(recipe["data"])
    real = {"images": data.train.images[:images], "targets": data.train.labels[:images]} if images else {}
    rows = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DataFreeWarning)
        model = load_model(run / "model.keras")
        bundle = to_bundle(model, Path(folder) / "b", precisions=PRECISIONS, saved_model=False, progress=say, **real)
        for variant in bundle.manifest.variants:
            say(f"classifying {len(data.test)} images in {variant.precision}")
            scores = Engine(bundle, precision=variant.precision).predict_scores(data.test.images)
            quality = variant.quality or {"agreement": 1.0, "float_layers": ()}
            rows[variant.precision] = [
                {
                    "top1": float((scores.argmax(-1) == data.test.labels).mean()),
                    "agreement": quality["agreement"],
                    "float_layers": len(quality["float_layers"]),
                    "bytes": (bundle.path / variant.file).stat().st_size,
                }
            ]
    return rows, f"{recipe['model']}_{recipe['data']}"


if __name__ == "__main__":
    main()
