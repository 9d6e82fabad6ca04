"""The command `keras-resnets launch`: parse, call the library."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any


def add_launch(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `launch` to the program's commands."""
    parser = command(
        commands, "launch", _launch, "run a command in several workers on this machine",
        "  keras-resnets launch --workers 2 -- train --recipe digits\n"
        "  keras-resnets launch --workers 4 --gpus-per-worker 2 -- train --recipe fashion_mnist --out runs/fashion\n"
        "  keras-resnets launch --workers 2 --logs runs/logs -- train --recipe digits --overwrite",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, required=True, help="how many processes")
    parser.add_argument(
        "--gpus-per-worker", type=int, metavar="K", help="GPUs of each (default: all, divided equally; 0: CPUs)"
    )
    parser.add_argument("--logs", metavar="FOLDER", help="for the output of workers 1, 2, … (default: a temporary one)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …", help="a command of keras-resnets")


def _launch(options: argparse.Namespace) -> int:
    from keras_resnets.training.launch import launch

    # Python versions differ in whether the separator is among the rest.
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command or command[0].startswith("-") or command[0] == "launch":
        raise ValueError("launch needs a command behind --: keras-resnets launch --workers 2 -- train --recipe digits")
    program = [sys.executable, "-m", "keras_resnets.cli", *command]
    return launch(program, options.workers, gpus_per_worker=options.gpus_per_worker, logs=options.logs)
