"""The first training step of a very deep network: how long until its loss is there, and the memory it takes.

    python benchmarks/deep_first_step.py [--batch 16] [--rounds 3] [--keras]

Ours is `keras_resnets.training.loop.Loop` as `keras-resnets train` runs it, without and with rematerialization, on a
built ResNet-1202 (28×28×1): the time runs from there to the first loss (tracing, TensorFlow's preparations, forward,
backward and update), the memory is the growth of the process's peak meanwhile. --keras adds Keras's fit, which takes
minutes. Each run is a process of its own, in turn; the result goes to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
from paired import cores, in_turn, medians, write_result
from rich.console import Console

OURS, KERAS = ("ours", "ours_remat"), ("keras",)
SHAPE, CLASSES = (28, 28, 1), 10


def dataset(batch: int) -> Any:
    """The same batch of noise again and again."""
    import tensorflow as tf

    chance = np.random.default_rng(0)
    images, labels = chance.standard_normal((batch, *SHAPE), np.float32), chance.integers(0, CLASSES, batch)
    return tf.data.Dataset.from_tensors((images, labels)).repeat()


def prepared(contender: str, name: str, batch: int) -> Any:
    """Build the network and its optimizer; returns a function that runs so many steps and gives the mean loss."""
    import keras
    import tensorflow as tf

    import keras_resnets
    from keras_resnets.training import Recipe
    from keras_resnets.training.loop import Loop
    from keras_resnets.training.optimizers import make_optimizer
    from keras_resnets.training.schedule import Rate

    keras.utils.set_random_seed(0)
    net = keras_resnets.create_model(name, input_shape=SHAPE, classes=CLASSES)
    batches = dataset(batch)
    if contender == "keras":
        net.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=False)
        return lambda steps: net.fit(batches, steps_per_epoch=steps, verbose=0).history["loss"][0]
    tf.config.experimental.enable_op_determinism()
    remat = contender == "ours_remat"
    recipe = Recipe(model=name, data="", epochs=1, batch_size=batch, learning_rate=0.01, remat=remat)
    optimizer = make_optimizer(recipe, Rate(recipe, 10_000), net.trainable_variables)
    loop = Loop(net, recipe, tf.distribute.get_strategy(), optimizer=optimizer)
    iterator = iter(batches)
    return lambda steps: loop.result(loop.train(iterator, steps))["loss"]


def measure(contender: str, name: str, batch: int) -> None:
    """Print the figures as JSON; runs in a process of its own."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    run = prepared(contender, name, batch)
    before, began = peak(), time.perf_counter()
    loss = run(1)
    seconds, added = time.perf_counter() - began, peak() - before
    began = time.perf_counter()
    run(1)
    print(
        json.dumps(
            {"seconds": seconds, "added_mb": added, "next_step": time.perf_counter() - began, "first_loss": float(loss)}
        )
    )


def peak() -> float:
    """The highest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run the contenders in turn, print the medians, write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet1202")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keras", action="store_true", help="also Keras's fit")
    parser.add_argument("--measure", choices=[*OURS, *KERAS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.model, options.batch)
        return
    contenders = [*OURS, *(KERAS if options.keras else ())]
    arguments = ["--model", options.model, "--batch", str(options.batch)]
    commands = {name: [sys.executable, __file__, "--measure", name, *arguments] for name in contenders}
    console = Console()
    with console.status("measuring") as status:
        rows = in_turn(commands, options.rounds, status.update)
    figures = medians(rows)
    for name, row in figures.items():
        console.print(
            f"{name}: first loss after {row['seconds']:.1f} s, {row['added_mb']:.0f} MB more; next step "
            f"{row['next_step']:.1f} s",
            highlight=False,
        )
    memory = figures["ours_remat"]["added_mb"] / figures["ours"]["added_mb"]
    console.print(f"memory with rematerialization / without: {memory:.2f}", highlight=False)
    name = f"deep_first_step_{options.model}_batch{options.batch}_cpu{cores()}_tf{version('tensorflow')}"
    packages = ("tensorflow", "keras", "numpy")
    file = write_result(f"{name}_keras{version('keras')}", packages, rows, ratio_memory=memory)
    console.print(f"wrote {file}")


if __name__ == "__main__":
    main()
