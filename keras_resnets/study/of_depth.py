"""What depth costs, and whether a network of that depth trains: 20 to 1202 layers, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnets.data import load_dataset
from keras_resnets.extras import extra
from keras_resnets.machine import memory_mb
from keras_resnets.models import model_info
from keras_resnets.study.kept import Kept, progress
from keras_resnets.study.networks import FAMILIES, family_of
from keras_resnets.study.outcome import Outcome, StudyError
from keras_resnets.study.runs import this_environment
from keras_resnets.training.config import Recipe

with extra("tensorflow"):
    import keras

NETWORKS = ("plainnet20", "plainnet56", "plainnet110", "resnet20", "resnet56", "resnet110", "resnet1202")
RECIPE = Recipe(
    model="", data="fashion_mnist", epochs=1, batch_size=32, learning_rate=0.05, schedule="constant", warmup_epochs=0.5
)
QUICK = {"networks": ("plainnet20", "plainnet110", "resnet20", "resnet110"), "steps": 10}


def depth(
    folder: str | Path,
    *,
    networks: Sequence[str] = NETWORKS,
    steps: int = 100,
    recipe: Recipe = RECIPE,
    verbose: bool = True,
) -> Outcome:
    """Train networks of different depths for some steps, and measure time, memory and loss.

    Args:
        folder: of the study; a network that was measured is not measured again.
        networks: names of the registry.
        steps: of training.
        recipe: how they are trained; its model, epochs and train_images do not matter.
        verbose: show progress on standard error.

    Returns:
        The outcome: seconds to build the network and to the end of the first step, median seconds of the later ones,
        the process's greatest memory, and the mean loss of the last tenth of the steps.

    Raises:
        StudyError: when a network's process fails, with what it said.
        ValueError: for an unknown network.
    """
    folder = Path(folder)
    if steps < 2:
        raise StudyError(f"steps must be at least 2, not {steps}: the first one compiles")
    for name in networks:
        model_info(name)
    data = load_dataset(recipe.data)
    if recipe.batch_size * steps > len(data.train):
        raise StudyError(
            f"{steps} steps of {recipe.batch_size} images are more than the {len(data.train)} of {data.name}"
        )
    kept = Kept(folder / "measured.json", {"steps": steps, "recipe": recipe.to_dict()})
    found = []
    with progress("networks", len(networks), verbose) as advance:
        for name in networks:
            found.append(kept.get(name, _in_own_process, name, steps, recipe))
            advance()
    outcome = Outcome(
        "depth",
        f"{steps} steps of {recipe.batch_size} images of {data.name}",
        {"networks": list(networks), "steps": steps, "recipe": recipe.to_dict()},
        _findings(found),
        [_row(one) for one in found],
        {"networks": found},
        this_environment(),
    )
    outcome.save(folder)
    return outcome


def _in_own_process(name: str, steps: int, recipe: Recipe) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        settings, result = Path(place) / "settings.json", Path(place) / "result.json"
        settings.write_text(json.dumps({"steps": steps, "recipe": replace(recipe, model=name).to_dict()}))
        command = [sys.executable, "-m", __name__, str(settings), str(result)]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise StudyError(f"{name} failed (status {done.returncode}):\n{done.stdout.strip()[-2000:]}")
        measured: dict[str, Any] = json.loads(result.read_text())
        return measured


class _Clock(keras.callbacks.Callback):
    """When each step ended, and what the mean loss of the epoch was by then."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.means: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.means.append(float(logs["loss"]))  # waits for the device
        self.times.append(time.perf_counter())


def measure(steps: int, recipe: Recipe) -> dict[str, Any]:
    """Train a network for some steps in this process."""
    from keras_resnets.training.run import build_model, train

    data = load_dataset(recipe.data)
    recipe = replace(recipe, epochs=1, train_images=steps * recipe.batch_size)
    began = time.perf_counter()
    model = build_model(recipe, data)
    built = time.perf_counter() - began
    clock, few = _Clock(), replace(data, test=data.test.take(np.arange(recipe.batch_size)))
    parameters = model.count_params()
    del model
    keras.utils.clear_session()
    with suppress(OSError):  # what loading the images took does not count; where a container forbids this, it does
        Path("/proc/self/clear_refs").write_text("5")
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        train(recipe, place, dataset=few, callbacks=[clock], log_steps=0, save_minutes=1e6, verbose=False)
    totals = np.array(clock.means) * np.arange(1, steps + 1)  # from means so far to the loss of each step
    losses = np.diff(totals, prepend=0.0)
    return {
        "network": recipe.model,
        "family": family_of(recipe.model),
        "layers": int("".join(filter(str.isdigit, recipe.model.removesuffix("v2")))),
        "parameters": parameters,
        "build_seconds": built,
        "first_step_seconds": clock.times[0] - began,
        "step_seconds": float(np.median(np.diff(clock.times))),
        "memory_mb": memory_mb(),
        "losses": losses.tolist(),
    }


def _last(one: dict[str, Any]) -> float:
    return float(np.mean(one["losses"][-max(1, len(one["losses"]) // 10) :]))


def _row(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "network": one["network"],
        "parameters": one["parameters"],
        "build (s)": round(one["build_seconds"], 2),
        "first step (s)": round(one["first_step_seconds"], 1),
        "later steps (s)": round(one["step_seconds"], 3),
        "memory (MB)": round(one["memory_mb"]),
        "loss at first": round(one["losses"][0], 3),
        "loss at the end": round(_last(one), 3),
    }


def _by_depth(found: Sequence[dict[str, Any]], family: str) -> list[dict[str, Any]]:
    return sorted((one for one in found if one["family"] == family), key=lambda one: one["layers"])


def _findings(found: Sequence[dict[str, Any]]) -> list[str]:
    sentences = []
    for family in FAMILIES:
        mine = _by_depth(found, family)
        if mine:
            told = ", ".join(f"{_last(one):.2f} ({one['layers']} layers)" for one in mine)
            sentences.append(f"{family}: loss after {len(mine[0]['losses'])} steps {told}")
    return sentences


def draw(outcome: Outcome, file: Path) -> None:
    """Loss by step, and what a step costs by depth."""
    from keras_resnets.study.plots import FAMILY_COLORS, coloured, sheet, write

    networks = outcome.details["networks"]
    figure, axes = sheet(3)
    for one, colour in coloured(sorted(networks, key=lambda one: one["layers"])):
        axes[0, 0].plot(range(1, len(one["losses"]) + 1), _smooth(one["losses"]), color=colour, label=one["network"])
    for family in FAMILIES:
        mine = _by_depth(networks, family)
        # Pre-activation networks are of other blocks: no line leads to them.
        for label, style, v2 in ((family, "o-", False), (f"{family}, pre-activation", "D", True)):
            chosen = [one for one in mine if one["network"].endswith("v2") == v2]
            if not chosen:
                continue
            layers = [one["layers"] for one in chosen]
            for axis, key in ((axes[0, 1], "step_seconds"), (axes[0, 2], "memory_mb")):
                axis.plot(layers, [one[key] for one in chosen], style, color=FAMILY_COLORS[family], label=label)
    axes[0, 0].set(title="loss", xlabel="step", ylabel="cross-entropy", yscale="log")
    axes[0, 1].set(title="a step", xlabel="layers", ylabel="seconds", xscale="log", yscale="log")
    axes[0, 2].set(title="memory of the process", xlabel="layers", ylabel="MB", xscale="log", ylim=(0, None))
    for axis in axes.flat:
        axis.legend(fontsize=8)
    figure.suptitle(outcome.title)
    write(figure, file)


def _smooth(losses: Sequence[float]) -> Any:
    """A mean over the last steps, as many as a twentieth of all."""
    width = max(1, len(losses) // 20)
    sums = np.cumsum(np.concatenate([[0.0], losses]))
    starts = np.maximum(0, np.arange(1, len(losses) + 1) - width)
    return (sums[1:] - sums[starts]) / (np.arange(1, len(losses) + 1) - starts)


if __name__ == "__main__":
    _given = json.loads(Path(sys.argv[1]).read_text())
    _measured = measure(_given["steps"], Recipe.from_dict(_given["recipe"]))
    Path(sys.argv[2]).write_text(json.dumps(_measured))
