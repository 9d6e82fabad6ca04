"""Times the construction of very deep networks: variables made at the end, against Keras's own order.

    python benchmarks/build.py [--model resnet1202] [--rounds 3]

The time is the constructor's call alone, in a process that has built a small network before. The result goes to
benchmarks/results, in a file whose name says the conditions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from importlib.metadata import version

from paired import cores, in_turn, medians, write_result
from rich.console import Console

CONTENDERS = ("at_the_end", "one_by_one")


def measure(contender: str, name: str) -> None:
    """Build once and print the time as JSON; runs in a process of its own."""
    import keras_resnets
    from keras_resnets.models import constructor

    if contender == "one_by_one":
        constructor.variables_at_the_end = contextlib.nullcontext
    keras_resnets.ResNet20()
    began = time.perf_counter()
    keras_resnets.create_model(name)
    print(json.dumps({"seconds": time.perf_counter() - began}))


def main() -> None:
    """Run the contenders in turn, print the medians, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet1202")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.model)
        return
    console = Console()
    with console.status("measuring") as status:
        commands = {
            name: [sys.executable, __file__, "--measure", name, "--model", options.model] for name in CONTENDERS
        }
        rows = in_turn(commands, options.rounds, status.update)
    ours, theirs = (medians(rows)[name]["seconds"] for name in CONTENDERS)
    console.print(f"{options.model}: {ours:.1f} s, and {theirs:.1f} s with variables made one by one")
    name = f"build_{options.model}_cpu{cores()}_tf{version('tensorflow')}_keras{version('keras')}"
    file = write_result(name, ("tensorflow", "keras", "numpy"), rows, ratio_seconds=theirs / ours)
    console.print(f"wrote {file}")


if __name__ == "__main__":
    main()
