"""The command `keras-resnets study`: one subcommand a study."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_resnets.cli_bench import words
from keras_resnets.study import STUDIES

if TYPE_CHECKING:
    from keras_resnets.training import Recipe

_EXAMPLES = """  keras-resnets study degradation --quick                       plain against residual, in minutes
  keras-resnets study degradation --depths 20,56 --seeds 0,1,2  again after a stop: goes on where it was
  keras-resnets study NAME --help                               what can be set"""
_RECIPE_OPTIONS = {
    "data": (str, "NAME", "data set, as for train (default fashion_mnist)"),
    "train_images": (int, "N", "training images to use; 0: all"),
    "epochs": (int, "N", "passes over them"),
    "batch_size": (int, "N", "images a step"),
    "learning_rate": (float, "RATE", "highest rate of the schedule"),
    "clip_norm": (float, "NORM", "largest norm of all gradients together; 0 (default): not clipped"),
    "precision": (str, "NAME", "float32, or bfloat16, which is faster where the hardware has it"),
    "image_size": (int, "PIXELS", "side of the network's input; 0: that of the images"),
}
_TRAINED = "plainnet20,resnet20,plainnet56,resnet56"  # what those studies look at that need trained networks


def add_study(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = command(commands, "study", _study, "measure the residual idea on real images", _EXAMPLES, True)
    studies = parser.add_subparsers(title="studies", required=True, metavar="NAME", dest="study")
    for name, (examples, add_options) in _STUDIES.items():
        one = studies.add_parser(
            name,
            help=STUDIES[name],
            description=STUDIES[name][0].upper() + STUDIES[name][1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument("--quick", action="store_true", help="small settings: under 3 minutes on 2 CPU cores")
        one.add_argument("--out", metavar="FOLDER", help=f"for table, picture and JSON (default: studies/{name})")
        one.add_argument("--quiet", action="store_true", help="no progress bar")
        add_options(one)


def _degradation_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depths", type=_numbers, metavar="N,N,…", help="layers (default 20,32,44,56)")
    parser.add_argument("--seeds", type=_numbers, metavar="N,N,…", help="default 0,1,2")
    _recipe_options(parser, *_RECIPE_OPTIONS)


def _gradients_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depths", type=_numbers, metavar="N,N,…", help="layers (default 20,32,44,56,110)")
    parser.add_argument("--seeds", type=_numbers, metavar="N,N,…", help="default 0,1,2")
    parser.add_argument("--batch", type=int, metavar="N", help="images of the loss (default 32)")
    parser.add_argument("--dtype", help="of new networks: float64 (default) or float32")
    parser.add_argument(
        "--model", help="one Keras model instead: a name of `list`, a .keras file, or MODULE:FUNCTION that makes it"
    )
    parser.add_argument("--arguments", type=_json, metavar="JSON", help="of that function, an object")
    _recipe_options(parser, "data", "train_images", "epochs", "batch_size", "learning_rate")


def _trained_options(parser: argparse.ArgumentParser, networks: str = _TRAINED) -> None:
    parser.add_argument(
        "--networks", type=words, metavar="A,B,…",
        help=f"trained networks: runs' folders, .keras files, names with weights of the package (default: {networks})",
    )  # fmt: skip
    parser.add_argument("--images", type=int, metavar="N", help="test images; 0: all")
    parser.add_argument("--data", metavar="NAME", help="their data set, where they do not tell it")


def _identity_options(parser: argparse.ArgumentParser) -> None:
    _trained_options(parser)
    parser.add_argument("--deeper", metavar="NAME", help="what residual networks are turned into (default resnet56)")


def _lesion_options(parser: argparse.ArgumentParser) -> None:
    _trained_options(parser)
    parser.add_argument("--draws", type=int, metavar="N", help="random choices of several blocks (default 5)")
    parser.add_argument("--counts", type=_numbers, metavar="N,N,…", help="how many blocks to leave out or exchange")
    parser.add_argument("--path-draws", type=int, metavar="N", help="random paths of each length; 0: none (default 10)")
    parser.add_argument("--seed", type=int, help="of the random choices (default 0)")


def _landscape_options(parser: argparse.ArgumentParser) -> None:
    _trained_options(parser, "plainnet56,resnet56")
    parser.add_argument("--points", type=int, metavar="N", help="on a side of the grid, odd (default 25)")
    parser.add_argument("--radius", type=float, help="of the square, in lengths of the filters (default 1)")
    parser.add_argument("--seed", type=int, help="of the directions (default 0)")


def _depth_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", type=words, metavar="A,B,…", help="names of `list`")
    parser.add_argument("--steps", type=int, metavar="N", help="of training (default 100)")
    _recipe_options(parser, "data", "batch_size", "learning_rate", "precision")


def _recipe_options(parser: argparse.ArgumentParser, *names: str) -> None:
    group = parser.add_argument_group("how networks are trained")
    for name in names:
        kind, metavar, text = _RECIPE_OPTIONS[name]
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=text)


_STUDIES: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "degradation": (
        "  keras-resnets study degradation --quick\n"
        "  keras-resnets study degradation --depths 20,56 --seeds 0,1,2 --precision bfloat16\n"
        "  keras-resnets study degradation --depths 152 --seeds 0 --epochs 5 --clip-norm 1     the extreme: ImageNet's",
        _degradation_options,
    ),
    "gradients": (
        "  keras-resnets study gradients --quick\n"
        "  keras-resnets study gradients --depths 20,56,110,218,1202 --seeds 0 --batch 8\n"
        "  keras-resnets study gradients --model keras_hub.models:BertBackbone --arguments '{\"num_layers\": 12, …}'\n"
        "  keras-resnets study gradients --model my_models.py:make_model",
        _gradients_options,
    ),
    "identity": (
        "  keras-resnets study identity --quick\n"
        "  keras-resnets study identity --networks runs/resnet44,runs/plainnet44",
        _identity_options,
    ),
    "lesion": (
        "  keras-resnets study lesion --quick\n"
        "  keras-resnets study lesion --data fashion_mnist --images 2000\n"
        "  keras-resnets study lesion --networks runs/resnet44,runs/plainnet44",
        _lesion_options,
    ),
    "landscape": (
        "  keras-resnets study landscape --quick\n"
        "  keras-resnets study landscape --points 51 --images 1000       again after a stop: goes on where it was",
        _landscape_options,
    ),
    "depth": (
        "  keras-resnets study depth --quick\n"
        "  keras-resnets study depth --networks resnet110,resnet1001v2,resnet1202 --steps 20",
        _depth_options,
    ),
}


def _study(options: argparse.Namespace) -> int:
    import importlib

    from keras_resnets.training import TrainingStopped

    module = importlib.import_module(f"keras_resnets.study.of_{options.study}")
    settings = dict(module.QUICK) if options.quick else {}
    given = {name: value for name, value in vars(options).items() if name not in _OURS and value is not None}
    if changes := {name: given.pop(name) for name in _RECIPE_OPTIONS if name in given and hasattr(module, "RECIPE")}:
        settings["recipe"] = _changed(settings.get("recipe", module.RECIPE), changes)
    out = Path(options.out or Path("studies") / options.study)
    try:
        outcome = getattr(module, options.study)(out, **{**settings, **given}, verbose=not options.quiet)
    except TrainingStopped as stopped:
        print(f"keras-resnets: {stopped}", file=sys.stderr)
        return os.EX_TEMPFAIL
    outcome.show()
    print(f"wrote {options.study}.png, .md and .json into {out}")
    return 0


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with other values; a run that is as short as its warm-up has a shorter one."""
    epochs = changes.get("epochs", 0)
    if 0 < epochs <= recipe.warmup_epochs:
        changes = {**changes, "warmup_epochs": epochs / 4}
    return replace(recipe, **changes)


_OURS = ("study", "quick", "out", "quiet", "run", "loads_tensorflow", "traceback")


def _json(text: str) -> dict[str, Any]:
    import json

    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers with commas between them") from None
