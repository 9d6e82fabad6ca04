"""The commands `keras-resnets weights …`: parse, call the library, print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_weights(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `weights` and what it can do to the program's commands."""
    parser = command(
        commands, "weights", None, "list, download, verify and convert pretrained weights",
        "  keras-resnets weights list resnet50\n"
        "  keras-resnets weights info resnet50.tv2_in1k\n"
        "  keras-resnets weights download resnet50.tv2_in1k\n"
        "  keras-resnets weights convert mine.keras mine.safetensors --naming timm",
    )  # fmt: skip
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    listed = command(
        actions, "list", _list, "list the weights of the ledger, the best of a model first",
        '  keras-resnets weights list\n  keras-resnets weights list "densenet*"',
    )  # fmt: skip
    listed.add_argument("model", nargs="?", default="*", help='a model or a pattern as in a shell, "resnet*"')
    for name, run, summary in (
        ("info", _info, "show what is known of some weights"),
        ("download", _download, "download weights into the cache, and verify them"),
    ):
        action = command(
            actions, name, run, summary,
            f"  keras-resnets weights {name} resnet50.a1_in1k\n"
            f"  keras-resnets weights {name} resnet50               the best of the model",
        )  # fmt: skip
        action.add_argument("weights", help="model.tag, or a model for the best of its weights")
    verified = command(
        actions, "verify", _verify, "compare weights with their publisher's hash",
        "  keras-resnets weights verify resnet50.a1_in1k\n"
        "  keras-resnets weights verify resnet50.keras_in1k --file my_copy.h5",
    )  # fmt: skip
    verified.add_argument("weights", help="model.tag, or a model for the best of its weights")
    verified.add_argument("--file", help="a copy to check (default: the one in the cache)")
    _add_convert(actions, command)


def _add_convert(actions: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    parser = command(
        actions, "convert", _convert, "convert weights between this package, timm and torchvision",
        "  keras-resnets weights convert timm.safetensors mine.keras --model resnet50\n"
        "  keras-resnets weights convert runs/digits/model.keras digits.safetensors --naming timm\n"
        "  keras-resnets weights convert torch.safetensors mine.safetensors --model vgg16 --classes 10",
        loads_tensorflow=True,
    )  # fmt: skip
    parser.add_argument("source", help="a .keras, .safetensors, .weights.h5 or keras.applications' .h5 file")
    parser.add_argument("target", help="a .safetensors or .keras file to write")
    parser.add_argument("--naming", default="zoo", help="of a .safetensors target: zoo (default), timm or torchvision")
    parser.add_argument("--model", help="which network it is; a file of this package says so itself")
    parser.add_argument("--classes", type=int, help="its number of classes (default: as in the source)")
    parser.add_argument("--input-shape", metavar="HxWxC", help="its input, where that decides the weights' shapes")
    parser.add_argument("--variant", help="see keras-resnets info MODEL")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _find(name: str) -> Any:
    from keras_resnets.weights import find_weights

    model, _, tag = name.partition(".")
    return find_weights(model, tag or None)


def _list(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from keras_resnets.models.tables import WEIGHTS_COLUMNS, weights_rows

    rows = weights_rows(options.model)
    if not rows:
        raise ValueError(f"there are no pretrained weights of {options.model}; keras-resnets weights list shows all")
    table = Table(*WEIGHTS_COLUMNS)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


def _info(options: argparse.Namespace) -> int:
    from keras_resnets.models.tables import results
    from keras_resnets.weights import IMAGENET, cached

    record = _find(options.weights)
    try:
        path = cached(record)
    except ImportError:
        path = None
    preprocessing = record.preprocessing
    rows = {
        "model": record.model + (f', variant "{record.variant}"' if record.variant else ""),
        "top-1 / top-5": f"{results(record)} (see {record.page})",
        "recipe": record.recipe,
        "licence": record.license
        + ("; the terms of ImageNet itself (non-commercial) may apply beside it" if record.labels == IMAGENET else ""),
        "input": f"{preprocessing.size[0]}×{preprocessing.size[1]}×{preprocessing.channels}"
        + (f" of {preprocessing.resize}, {preprocessing.interpolation}" if preprocessing.resize else "")
        + f", mean {preprocessing.mean}, std {preprocessing.std}"
        + (", blue first" if preprocessing.bgr else ""),
        "file": f"{record.repository}/{record.file}" + (f" at {record.revision}" if record.revision else ""),
        "hash": record.hash or "the SHA-256 that the hub gives at download, and ours of the first one",
        "in the package" if record.source == "package" else "in the cache": str(path or "no"),
    }
    print(record.name)
    for name, value in rows.items():
        print(f"  {name:14} {value}")
    return 0


def _download(options: argparse.Namespace) -> int:
    from keras_resnets.weights import download

    print(download(_find(options.weights)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from keras_resnets.weights import verify

    record = _find(options.weights)
    print(f"{record.name} is what was published: {verify(record, options.file)}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    from keras_resnets.models.loading import save_weights
    from keras_resnets.models.torch_names import DIALECTS

    source, target = Path(options.source), Path(options.target)
    if target.suffix not in (".safetensors", ".keras"):
        raise ValueError(f"the target ends in .safetensors or .keras, not {target.name!r}")
    if options.naming not in ("zoo", *DIALECTS):
        raise ValueError(f"--naming must be zoo, {' or '.join(DIALECTS)}, not {options.naming!r}")
    if target.exists() and not options.overwrite:
        raise ValueError(f"{target} exists; --overwrite replaces it")
    if target.suffix == ".keras" and options.naming != "zoo":
        raise ValueError(f"--naming {options.naming} goes with a .safetensors target")
    model = _model_of(source, options)
    if target.suffix == ".keras":
        from keras_resnets.models.files import save_model

        save_model(model, target)
    else:
        save_weights(model, target, options.naming)
    print(f"wrote {target}: {model.name}, {model.count_params():,} values")
    return 0


def _model_of(source: Path, options: argparse.Namespace) -> Any:
    """The network that a weights file is of, with its weights."""
    from keras_resnets.models.recognize import model_from_weights

    return model_from_weights(
        source,
        model=options.model,
        classes=options.classes,
        input_shape=read_shape(options.input_shape) if options.input_shape else None,
        variant=options.variant,
    )


def read_shape(text: str) -> tuple[int, int, int]:
    """(height, width, channels) from "224x224x3".

    Raises:
        ValueError: for anything else.
    """
    try:
        height, width, channels = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise ValueError(f"--input-shape is HxWxC, for example 224x224x3, not {text!r}") from None
    return height, width, channels
