"""The command `keras-resnets export`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_resnets.cli_weights import read_shape


def add_export(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = command(
        commands, "export", _export, "export a model to a verified bundle",
        "  keras-resnets export runs/digits digits_bundle\n"
        "  keras-resnets export model.keras bundle --images photos/ --preset torch\n"
        "  keras-resnets export resnet50 bundle --weights imagenet\n"
        "  keras-resnets export resnet50 bundle --weights my.weights.h5 --preset torch --labels classes.txt\n"
        "  keras-resnets export model.keras bundle --images photos/ --precision int8 --precision float16\n"
        "  keras-resnets export resnet50 bundle --weights imagenet --for triton --for tf-serving\n"
        "  keras-resnets export resnet50 bundle               random weights, to measure speed",
        loads_tensorflow=True,
    )  # fmt: skip
    parser.add_argument("model", help="a run's folder, a .keras file, or a name of `keras-resnets list`")
    parser.add_argument("out", help="the bundle's folder, which must not exist")
    parser.add_argument("--weights", help="for a model by name: a tag (see weights list) or a file")
    parser.add_argument("--variant", help="for a model by name, see keras-resnets info")
    parser.add_argument("--classes", type=int, help="for a model by name")
    parser.add_argument("--input-shape", metavar="HxWxC", help="for a model by name, for example 224x224x3")
    parser.add_argument("--preset", help="preprocessing: torch, caffe or tf (default: the model's own)")
    parser.add_argument("--labels", help="a text file with one class name a line (default: the model's own)")
    parser.add_argument(
        "--images",
        help="real images to verify, calibrate and judge with, beside noise: a folder, or a data set that can be "
        "trained on, of which training images are taken",
    )
    parser.add_argument(
        "--precision", dest="precisions", action="append", default=[],
        help="also write float16, int8 (x86 CPUs) or int8-symmetric (GPUs, ARM); may be repeated",
    )  # fmt: skip
    parser.add_argument("--agreement", type=float, help="share of images a lower precision must decide as float32 does")
    parser.add_argument("--top1-loss", type=float, help="top-1 it may lose, 0.005 for half a percentage point")
    parser.add_argument("--license", help="of the weights, stored in the bundle")
    parser.add_argument("--pixels", action="store_true", help="the ONNX graph takes uint8 and normalises by itself")
    parser.add_argument("--layout", choices=("nhwc", "nchw"), default="nhwc", help="of the ONNX graph's images")
    parser.add_argument(
        "--output", choices=("probabilities", "logits", "features"), help="of the model (default: what it gives)"
    )
    parser.add_argument("--top-k", type=int, default=0, help="so many best classes as further outputs of the graph")
    parser.add_argument("--open-size", action="store_true", help="the model takes images of any height and width")
    parser.add_argument("--onnxruntime", metavar="VERSION", help="that must read the graph, 1.8 or newer")
    parser.add_argument(
        "--for", dest="engines", action="append", default=[], metavar="ENGINE",
        help="also lay the files out for triton, tf-serving, kserve or openvino; may be repeated",
    )  # fmt: skip
    parser.add_argument("--no-saved-model", action="store_true", help="ONNX only")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")


def _export(options: argparse.Namespace) -> int:
    from rich.console import Console

    from keras_resnets.bundle import MANIFEST
    from keras_resnets.export import Gate, to_bundle
    from keras_resnets.export.errors import refuse_existing
    from keras_resnets.export.gate import quality_text
    from keras_resnets.preprocessing import Preprocessing

    refuse_existing(Path(options.out), options.overwrite, MANIFEST)
    labels = _read_labels(options.labels) if options.labels else None
    model = _model_to_export(options)
    preprocessing = None
    if options.preset:
        height, width = (side or 224 for side in model.inputs[0].shape[1:3])
        preprocessing = Preprocessing.preset(options.preset, (height, width))
    images, targets = _read_images(options.images) if options.images else (None, None)
    limits = {"agreement": options.agreement, "top1_loss": options.top1_loss}
    console = Console(stderr=True)
    with console.status("exporting") as status:
        bundle = to_bundle(
            model,
            options.out,
            preprocessing=preprocessing,
            labels=labels,
            images=images,
            targets=targets,
            license=options.license,
            saved_model=not options.no_saved_model,
            **{name: getattr(options, name) for name in _FORM},
            precisions=options.precisions,
            gate=Gate(**{name: value for name, value in limits.items() if value is not None}),
            engines=options.engines,
            overwrite=options.overwrite,
            progress=status.update,
        )
    worst: dict[str, float] = {}
    for row in bundle.manifest.verification:
        if row["precision"] == "float32":
            worst[row["runtime"]] = max(worst.get(row["runtime"], 0.0), row["max_error"])
    for runtime, error in worst.items():
        print(f"{runtime} equals Keras: largest difference {error:.1e} of the largest output")
    for variant in bundle.manifest.variants:
        if variant.quality:
            print(f"{variant.precision} {quality_text(variant.quality)}")
    if bundle.manifest.preprocessing is None:
        print("no preprocessing is known: the bundle takes tensors, not images (--preset gives it one)")
    print(f"wrote {bundle.path}")
    return 0


_FORM = ("pixels", "layout", "output", "top_k", "open_size", "onnxruntime")
_BY_NAME = ("weights", "variant", "classes", "input_shape")


def _read_images(name: str) -> tuple[Any, Any]:
    """A folder as it is, or a data set's training images with their classes."""
    from keras_resnets.data import LOADERS, load_dataset

    if Path(name).exists() or name not in LOADERS:
        return name, None
    split = load_dataset(name).train
    return (split.image(row) for row in range(len(split))), split.labels


def _read_labels(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from None


def _model_to_export(options: argparse.Namespace) -> Any:
    from keras_resnets.models import REGISTRY

    path = Path(options.model)
    file = path / "model.keras" if path.is_dir() else path
    named = options.model.lower() in REGISTRY and not file.is_file()
    if named or not (path.exists() or path.suffix == ".keras"):
        return _fresh_model(options)
    given = [f"--{name.replace('_', '-')}" for name in _BY_NAME if getattr(options, name) is not None]
    if given:
        raise ValueError(f"{' and '.join(given)} go with a model by name, and {path} is a saved one")
    if path.is_dir() and not file.is_file():
        raise ValueError(f"{path} is no training run: it has no model.keras")
    from keras_resnets.models.files import load_model

    return load_model(file)


def _fresh_model(options: argparse.Namespace) -> Any:
    import numpy as np

    from keras_resnets.models import REGISTRY, create_model
    from keras_resnets.models.damping import damp_residuals

    if options.model.lower() not in REGISTRY and ("/" in options.model or os.sep in options.model):
        raise ValueError(f"{options.model} does not exist")
    arguments = {name: getattr(options, name) for name in _BY_NAME}
    if options.input_shape:
        arguments["input_shape"] = read_shape(options.input_shape)
    model = create_model(options.model, **{name: value for name, value in arguments.items() if value is not None})
    if not options.weights:
        print("no --weights: exporting random ones", file=sys.stderr)
        shape = (side or 64 for side in model.input_shape[1:])
        noise = np.random.default_rng(0).standard_normal((4, *shape), np.float32)
        if not np.isfinite(model(noise, training=False)).all():
            # A thousand residual blocks, each doubling the variance, exceed float32 until trained.
            print("their outputs are not finite: its blocks are damped", file=sys.stderr)
            damp_residuals(model)
    return model
