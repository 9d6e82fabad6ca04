"""Times training steps: this package's loop against Keras's fit and PyTorch.

    python benchmarks/train_speed.py --model resnet20 --torch-python TORCH/bin/python [--rounds 5]
    python benchmarks/train_speed.py --model resnet50

ResNet-20 takes 28×28×1 in batches of 128, ResNet-50 224×224×3 in batches of 16, with SGD and momentum. One batch stays
in memory, so that no input pipeline is measured. Ours is `keras_resnets.training.loop.Loop` with deterministic
operations, as `keras-resnets train` runs it. Keras's is `compile` and `fit` as a user writes them: of the same network
in stock layers, or of keras.applications.ResNet50 (whose stride sits elsewhere: 4% fewer multiply-adds than ours).
`fit` lets XLA compile where it can, which on a CPU is the slower way; "keras-plain" is jit_compile=False. PyTorch's is
channels_last, with autocast for bfloat16; --torch-python names a Python that has it. Each run is a process of its own,
in turn; the result goes to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

OURS = ("ours_float32", "ours_bfloat16")
KERAS = ("keras_float32", "keras_bfloat16", "keras-plain_float32", "keras-plain_bfloat16")
TORCH = ("torch_float32", "torch_bfloat16")
SHAPES = {"resnet20": (128, 28, 1, 10), "resnet50": (16, 224, 3, 1000)}  # batch, side, channels, classes
RATE = 0.01


def batch(model: str) -> tuple[Any, Any]:
    """One batch of noise, channels last."""
    number, side, channels, classes = SHAPES[model]
    chance = np.random.default_rng(0)
    images = chance.standard_normal((number, side, side, channels), np.float32)
    return images, chance.integers(0, classes, number)


def ours(model: str, precision: str) -> Callable[[int], None]:
    """The loop of `keras-resnets train`: runs so many steps."""
    import keras
    import tensorflow as tf

    import keras_resnets
    from keras_resnets.training import Recipe
    from keras_resnets.training.loop import Loop
    from keras_resnets.training.optimizers import make_optimizer
    from keras_resnets.training.schedule import Rate

    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    number, side, channels, classes = SHAPES[model]
    net = keras_resnets.create_model(model, input_shape=(side, side, channels), classes=classes)
    recipe = Recipe(
        model=model, data="", epochs=1, batch_size=number, learning_rate=RATE, weight_decay=0, precision=precision
    )
    optimizer = make_optimizer(recipe, Rate(recipe, 10_000), net.trainable_variables)
    loop = Loop(net, recipe, tf.distribute.get_strategy(), optimizer=optimizer)
    batches = iter(tf.data.Dataset.from_tensors(batch(model)).repeat())
    return lambda steps: print(loop.result(loop.train(batches, steps)), file=sys.stderr)


def keras_fit(model: str, precision: str, jit_compile: Any = "auto") -> Callable[[int], None]:
    """compile and fit."""
    import keras
    import tensorflow as tf

    import keras_resnets

    if precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    _, side, channels, classes = SHAPES[model]
    if model == "resnet50":
        net = keras.applications.ResNet50(weights=None)
    else:
        net = keras_resnets.create_model(model, input_shape=(side, side, channels), classes=classes)
    optimizer, loss = keras.optimizers.SGD(RATE, momentum=0.9), "sparse_categorical_crossentropy"
    net.compile(optimizer, loss, metrics=["accuracy"], jit_compile=jit_compile)
    batches = tf.data.Dataset.from_tensors(batch(model)).repeat()
    return lambda steps: net.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)


def torch_steps(model: str, precision: str) -> Callable[[int], None]:
    """The same networks in PyTorch."""
    import torch
    from torch.nn.functional import cross_entropy

    net = (_torch_resnet20() if model == "resnet20" else _torch_resnet50()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9)
    images, labels = batch(model)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(labels)

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                outputs = net(x)
            loss = cross_entropy(outputs.float(), y)
            loss.backward()
            optimizer.step()
        print(loss.item(), file=sys.stderr)

    return run


def _torch_block(convs: list[tuple[int, int, int, int]], shortcut: Any) -> Any:
    """y = ReLU(F(x) + shortcut(x)); convolutions as (channels in, channels out, kernel, stride)."""
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            layers: list[Any] = []
            for i, o, k, s in convs:
                layers += [nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
            self.residual, self.shortcut, self.relu = nn.Sequential(*layers[:-1]), shortcut, nn.ReLU(inplace=True)

        def forward(self, x: Any) -> Any:
            return self.relu(self.residual(x) + (self.shortcut(x) if self.shortcut else x))

    return Block()


def _torch_resnet20() -> Any:
    """With shortcuts of option A."""
    from torch import nn
    from torch.nn.functional import pad

    class Shortcut(nn.Module):  # type: ignore[misc]
        def __init__(self, more: int) -> None:
            super().__init__()
            self.more = more

        def forward(self, x: Any) -> Any:
            return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.more))

    blocks, before = [], 16
    for width in (16, 32, 64):
        for _ in range(3):
            stride = 2 if width > before else 1
            blocks.append(
                _torch_block(
                    [(before, width, 3, stride), (width, width, 3, 1)], Shortcut(width - before) if stride > 1 else None
                )
            )
            before = width
    stem = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _torch_resnet50() -> Any:
    """v1.5, with projections where shapes differ."""
    from torch import nn

    blocks, before = [], 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for number in range(depth):
            stride, out = 2 if number == 0 and width > 64 else 1, 4 * width
            projection = None
            if number == 0:
                projection = nn.Sequential(nn.Conv2d(before, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            convs = [(before, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1)]
            blocks.append(_torch_block(convs, projection))
            before = out
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def measure(contender: str, model: str, seconds: float) -> None:
    """Train for so many seconds behind the first steps, and print images/s as JSON; runs in a process of its own."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    name, precision = contender.split("_")
    plain = partial(keras_fit, jit_compile=False)
    run = {"ours": ours, "keras": keras_fit, "keras-plain": plain, "torch": torch_steps}[name](model, precision)
    run(3)
    began = time.perf_counter()
    run(2)
    steps = max(3, round(2 * seconds / (time.perf_counter() - began)))
    began = time.perf_counter()
    run(steps)
    print(json.dumps({"images_per_second": SHAPES[model][0] * steps / (time.perf_counter() - began)}))


def compare(options: argparse.Namespace) -> None:
    """Run all contenders in turn, print the medians, write the result file."""
    from paired import cores, in_turn, medians, write_result
    from rich.console import Console

    contenders = [*OURS, *KERAS, *(TORCH if options.torch_python else ())]
    arguments = ["--model", options.model, "--seconds", str(options.seconds)]
    pythons = {name: options.torch_python if name in TORCH else sys.executable for name in contenders}
    commands = {name: [python, __file__, "--measure", name, *arguments] for name, python in pythons.items()}
    console = Console()
    with console.status("measuring") as status:
        rows = in_turn(commands, options.rounds, status.update)
    middle = {name: row["images_per_second"] for name, row in medians(rows).items()}
    for name, rate in middle.items():
        console.print(f"{options.model} {name}: {rate:.1f} images/s", highlight=False)
    ratios = {
        f"ours_{precision}/{other}": middle[f"ours_{precision}"] / middle[other]
        for other in (*KERAS, *TORCH)
        if (precision := other.partition("_")[2]) and other in middle
    }
    ratios["ours_bfloat16/ours_float32"] = middle["ours_bfloat16"] / middle["ours_float32"]
    for name, ratio in ratios.items():
        console.print(f"{name}: {ratio:.2f}", highlight=False)
    file = write_result(
        f"train_speed_{options.model}_cpu{cores()}_tf{version('tensorflow')}_keras{version('keras')}",
        ("tensorflow", "keras", "numpy"), rows, ratios=ratios, torch=_torch_version(options.torch_python),
    )  # fmt: skip
    console.print(f"wrote {file}")


def _torch_version(python: str | None) -> str | None:
    if not python:
        return None
    code = "import torch; print(torch.__version__)"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> None:
    """Parse the options; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=list(SHAPES), default="resnet20")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--torch-python", type=Path, help="a Python that has PyTorch and NumPy")
    parser.add_argument("--measure", choices=[*OURS, *KERAS, *TORCH], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.model, options.seconds)
    else:
        compare(options)


if __name__ == "__main__":
    main()
