"""The command `keras-resnets verify`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_verify(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = command(
        commands, "verify", _verify, "check a bundle where it landed: every file's hash, and the golden sample",
        "  keras-resnets verify bundle\n"
        "  keras-resnets verify bundle --provider cpu --provider cuda",
    )  # fmt: skip
    parser.add_argument("bundle", help="a bundle's folder")
    parser.add_argument(
        "--provider", dest="providers", action="append",
        help="cpu (default), openvino, cuda or tensorrt; one that is not active is an error; may be repeated",
    )  # fmt: skip


def _verify(options: argparse.Namespace) -> int:
    from keras_resnets.bundle import Bundle
    from keras_resnets.serving import Engine

    bundle = Bundle.open(options.bundle)
    bundle.check()
    size = sum(record["bytes"] for record in bundle.manifest.files.values())
    print(f"{len(bundle.manifest.files)} files, {size / 1e6:,.1f} MB: sizes and SHA-256 as recorded")
    for variant in bundle.manifest.variants:
        for provider in options.providers or ["cpu"]:
            drift = Engine(bundle, provider=provider, precision=variant.precision).golden_drift
            print(f"{variant.precision} on {provider}: the golden sample differs by {drift:.1e} of its largest output")
    return 0
