"""The command `keras-resnets train`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_resnets.training import Recipe

_EXAMPLES = """  keras-resnets train --recipe digits
  keras-resnets train --recipe digits                               again, after a kill: goes on where it was
  keras-resnets train --recipe fashion_mnist --model resnet56 --epochs 20 --out runs/resnet56
  keras-resnets train --recipe fashion_mnist --validation 5000      choose on held-out images
  keras-resnets train --recipe resnet50_v15 --data imagenet:PATH --precision bfloat16 --strategy mirrored
  keras-resnets train --recipe digits --model plainnet20 --data folder:PATH --image-size 64 --show
  keras-resnets launch --workers 2 -- train --recipe digits --strategy multi-worker
  keras-resnets train --list                                        the recipes"""
_FIELDS = {"str": str, "int": int, "float": float, "bool": bool, "tuple[float, ...]": "numbers"}


def add_train(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = command(commands, "train", _train, "train a model with a recipe", _EXAMPLES, loads_tensorflow=True)
    parser.add_argument("--recipe", help="a name of --list (default: that of the run in --out, else digits)")
    shows = parser.add_mutually_exclusive_group()
    shows.add_argument("--list", dest="only_shows", action="store_const", const="list", help="show the recipes and end")
    shows.add_argument(
        "--show",
        dest="only_shows",
        action="store_const",
        const="recipe",
        help="show the recipe with all its fields and end",
    )
    parser.add_argument("--out", help="folder of the run (default: runs/RECIPE)")
    parser.add_argument(
        "--strategy", default="auto",
        help="auto (default), single, mirrored over this machine's GPUs, or multi-worker (TF_CONFIG or SLURM)",
    )  # fmt: skip
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on with the run in the folder (default)",
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the run in the folder and start over")
    parser.add_argument("--save-minutes", type=float, default=5.0, help="between checkpoints in an epoch (default 5)")
    parser.add_argument("--save-steps", type=int, default=0, help="the same in steps instead")
    parser.add_argument("--log-steps", type=int, default=100, help="between rows of steps.csv (default 100; 0: none)")
    parser.add_argument("--keep-best", action="store_true", help="also keep best.keras, by held-out accuracy")
    parser.add_argument(
        "--peer-timeout", type=float, default=120.0, metavar="SECONDS",
        help="without a sign of life of another worker until it is given up (default 120)",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    group = parser.add_argument_group("fields of the recipe, each overrides it (see keras_resnets.training.Recipe)")
    for name, kind in _recipe_fields():
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        elif kind == "numbers":
            group.add_argument(flag, type=_numbers, default=None, metavar="A,B,…")
        else:
            group.add_argument(flag, type=kind, default=None, metavar=kind.__name__.upper())


def _recipe_fields() -> list[tuple[str, Any]]:
    from dataclasses import fields

    from keras_resnets.training.config import Recipe

    return [(field.name, _FIELDS[str(field.type)]) for field in fields(Recipe)]


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers with commas between them") from None


def _train(options: argparse.Namespace) -> int:
    from keras_resnets.training import RECIPES, TrainingStopped

    if options.only_shows == "list":
        for name, make in RECIPES.items():
            print(f"{name:20} {(make.__doc__ or '').splitlines()[0]}")
        return 0
    recipe, out = _choose(options)
    if options.only_shows:
        print(json.dumps(recipe.to_dict(), indent=2))
        return 0
    from keras_resnets.training import train

    print(f"{recipe.model} on {recipe.data}, {recipe.epochs} epochs, into {out}")
    try:
        train(
            recipe,
            out,
            strategy=options.strategy,
            resume=options.resume,
            overwrite=options.overwrite,
            save_minutes=options.save_minutes,
            save_steps=options.save_steps,
            log_steps=options.log_steps,
            keep_best=options.keep_best,
            peer_timeout=options.peer_timeout,
            verbose=not options.quiet,
        )
    except TrainingStopped as stopped:
        print(f"keras-resnets: {stopped}", file=sys.stderr)
        # What a scheduler requeues on; the shell's own code for a signal would look like a crash.
        return os.EX_TEMPFAIL
    _report(out)
    return 0


def _report(out: Path) -> None:
    from keras_resnets.training.records import EVALUATION

    if (out / EVALUATION).exists():  # the chief's to write
        test = json.loads((out / EVALUATION).read_text())["test"]
        print(f"test accuracy {test['accuracy']:.2%}, loss {test['loss']:.4f}")
        print(f"next: keras-resnets evaluate {out}, or keras-resnets export {out} BUNDLE")


def _choose(options: argparse.Namespace) -> tuple[Recipe, Path]:
    """The recipe and the folder: a run's own recipe goes on when no other is named."""
    import difflib
    from dataclasses import replace

    from keras_resnets.training import RECIPES
    from keras_resnets.training.config import RECIPE, read_recipe

    out = Path(options.out or Path("runs") / (options.recipe or "digits"))
    if options.recipe is None and (out / RECIPE).exists() and not options.overwrite:
        recipe = read_recipe(out)
    else:
        name = options.recipe or "digits"
        if name not in RECIPES:
            near = difflib.get_close_matches(name, RECIPES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}"
            raise ValueError(f"unknown recipe {name!r}: {hint}")
        recipe = RECIPES[name]()
    given = {name: value for name, _ in _recipe_fields() if (value := getattr(options, name)) is not None}
    return replace(recipe, **given), out
