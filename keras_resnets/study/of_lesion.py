"""What a trained network does without some of its blocks, after Veit et al. 2016 (arXiv:1605.06431).

A residual network of n blocks is a sum over 2ⁿ paths, of which half avoid any one block. In a plain one every
path leads through every block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra
from keras_resnets.study.blocks import Blocks
from keras_resnets.study.kept import Kept, progress
from keras_resnets.study.outcome import Outcome, StudyError
from keras_resnets.study.runs import this_environment
from keras_resnets.study.trained import NETWORKS, Trained, trained_networks

with extra("tensorflow"):
    import keras
    import tensorflow as tf

COUNTS = (1, 2, 3, 4, 6, 8, 10, 12)  # blocks that are left out together, or pairs that are exchanged
QUICK = {"images": 500, "draws": 1, "counts": (2, 4, 8), "path_images": 32, "path_draws": 2}
TOLERABLE = 5.0  # points of accuracy
_SEVERAL, _EXCHANGED = "several", "exchanged"  # names of measurements, before a number


class _Plan(NamedTuple):
    draws: int
    counts: tuple[int, ...]
    path_images: int
    path_draws: int
    seed: int


def lesion(
    folder: str | Path,
    *,
    networks: Sequence[str | Path] = NETWORKS,
    images: int = 0,
    draws: int = 5,
    counts: Sequence[int] = COUNTS,
    path_images: int = 128,
    path_draws: int = 10,
    data: str | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> Outcome:
    """Leave blocks out of trained networks, exchange them, and see how long the paths are that matter.

    Args:
        folder: of the study; what is measured is kept there, and not measured again.
        networks: folders of training runs, .keras files, or names with weights of the package.
        images: test images; 0: all.
        draws: random choices of blocks for each of `counts`.
        counts: how many blocks are left out together, and how many pairs exchanged.
        path_images: images whose gradients are looked at on single paths.
        path_draws: random paths of each length; 0 leaves them out.
        data: the networks' data set, where they do not tell it.
        seed: of the random choices.
        verbose: show progress on standard error.

    Returns:
        The outcome; accuracies in percent.

    Raises:
        StudyError: when a network is not made of blocks.
        WeightsError, DataError: when weights or images cannot be had.
    """
    folder = Path(folder)
    if draws < 1 or min(counts, default=0) < 1:
        raise StudyError("draws and counts must be at least 1")
    found, plan = [], _Plan(draws, tuple(counts), path_images, path_draws, seed)
    for one in trained_networks(networks, images, data):
        found.append(_examine(one, one.kept(folder, seed=seed), plan, verbose))
    outcome = Outcome(
        "lesion",
        f"Trained networks without some of their blocks, {found[0]['images']:,} test images",
        {
            "networks": [one["network"] for one in found], "images": found[0]["images"], "draws": draws,
            "counts": list(counts), "path_images": path_images, "path_draws": path_draws, "seed": seed,
        },
        [sentence for one in found for sentence in _findings(one)],
        [_row(one) for one in found],
        {"networks": found},
        this_environment(),
    )  # fmt: skip
    outcome.save(folder)
    return outcome


def _examine(one: Trained, kept: Kept, plan: _Plan, verbose: bool) -> dict[str, Any]:
    """All that is measured of one network."""
    draws, counts, path_images, path_draws, seed = plan
    blocks = Blocks(one.model)
    whole = list(range(len(blocks.blocks)))
    lesions = _lesions(blocks, draws, counts, np.random.default_rng(seed))
    lengths = [] if blocks.blocks[0].addition is None or not path_draws else [number + 1 for number in whole]
    with progress(one.name, len(lesions) + len(lengths), verbose) as advance:
        accuracies = {}
        for name, orders in lesions.items():
            accuracies[name] = kept.get(name, _percent, blocks, one, orders)
            advance()
        way = PathGradients(blocks, one.images[:path_images], one.labels[:path_images])
        paths = []
        for length in lengths:
            name = f"paths of {length}, {path_draws} draws, {path_images} images"
            paths.append(kept.get(name, way.mean, length, path_draws, seed))
            advance()
    exchanged = [
        {"tau": kendall(order), "accuracy": accuracy}
        for name, orders in lesions.items()
        if name.startswith(_EXCHANGED)
        for order, accuracy in zip(orders, accuracies[name], strict=True)
    ]
    return {
        "network": one.name,
        "family": one.family,
        "images": len(one.images),
        "chance": 100.0 / one.model.output_shape[-1],
        "blocks": [block.name for block in blocks.blocks],
        "removable": blocks.removable,
        "whole": accuracies["whole"][0],
        "without_one": accuracies["without one"],
        "without_several": {
            name.split()[1].rstrip(","): values for name, values in accuracies.items() if name.startswith(_SEVERAL)
        },
        "exchanged": exchanged,
        "paths": paths,
    }


def _lesions(
    blocks: Blocks, draws: int, counts: Sequence[int], random: np.random.Generator
) -> dict[str, list[list[int]]]:
    """By name, the orders of blocks whose accuracies are measured together."""
    whole = list(range(len(blocks.blocks)))
    found = {"whole": [whole], "without one": [[n for n in whole if n != gone] for gone in blocks.removable]}
    for count in counts:
        if count <= len(blocks.removable):
            found[f"{_SEVERAL} {count}, {draws} draws"] = [_without(blocks, count, random) for _ in range(draws)]
    for count in counts:
        found[f"{_EXCHANGED} {count}, {draws} draws"] = [_exchanged(blocks, count, random) for _ in range(draws)]
    return found


def _percent(blocks: Blocks, one: Trained, orders: Sequence[Sequence[int]]) -> list[float]:
    return [100 * int(count) / len(one.images) for count in blocks.correct(one.images, one.labels, orders)]


def _without(blocks: Blocks, count: int, random: np.random.Generator) -> list[int]:
    gone = set(random.choice(blocks.removable, count, replace=False).tolist())
    return [number for number in range(len(blocks.blocks)) if number not in gone]


def _exchanged(blocks: Blocks, count: int, random: np.random.Generator) -> list[int]:
    """An order in which `count` random pairs of removable blocks of one shape have changed places."""
    order = list(range(len(blocks.blocks)))
    shapes = {number: tuple(blocks.blocks[number].output.shape) for number in blocks.removable}
    pairs = [pair for pair in combinations(blocks.removable, 2) if shapes[pair[0]] == shapes[pair[1]]]
    for _ in range(count if pairs else 0):
        one, other = pairs[random.integers(len(pairs))]
        order[one], order[other] = order[other], order[one]
    return order


def kendall(order: Sequence[int]) -> float:
    """Kendall's τ between an order and the original: 1 for the same, −1 for the reverse."""
    pairs = list(combinations(order, 2))
    return sum(1 if a < b else -1 for a, b in pairs) / len(pairs)


class PathGradients:
    """The gradient that reaches the first block on paths through a given number of residual branches.

    Forward the network is whole. Backward, a chosen block lets the gradient through its branch alone, any other one
    through its shortcut alone (Veit et al. 2016, Section 4.3).

    Args:
        blocks: of a residual network.
        images, labels: of the loss.
    """

    def __init__(self, blocks: Blocks, images: Any, labels: Any) -> None:
        self.blocks, self.count = blocks, len(blocks.blocks)
        self.images, self.labels = images, labels

    @cached_property
    def _gradient(self) -> Any:
        """As a graph, made when the first path is asked for: those of a finished study are kept."""
        blocks, images = self.blocks, self.images
        parts = [block.apart() for block in blocks.blocks]
        start = blocks.stem(tf.constant(images), training=False)
        truth = tf.constant(self.labels)

        def gradient(chosen: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(start)
                x = start
                for number, (part, rectified) in enumerate(parts):
                    shortcut, residual = part(x)
                    on = chosen[number]
                    through_branch = tf.stop_gradient(shortcut) + residual
                    through_shortcut = shortcut + tf.stop_gradient(residual)
                    x = on * through_branch + (1 - on) * through_shortcut
                    x = tf.nn.relu(x) if rectified else x
                scores = blocks.head(x, training=False)
                loss = tf.reduce_sum(keras.losses.sparse_categorical_crossentropy(truth, scores))
            return tape.gradient(loss, start)

        spec = tf.TensorSpec([self.count], start.dtype)
        return tf.function(gradient).get_concrete_function(spec)

    def gradient(self, chosen: Sequence[int]) -> NDArray[np.float32]:
        """∂L/∂h of the loss of each image at the first block's input, on the path through these branches."""
        switches = np.zeros(self.count, np.float32)
        switches[list(chosen)] = 1
        return np.asarray(self._gradient(tf.constant(switches)))

    def mean(self, length: int, draws: int, seed: int) -> float:
        """Mean over images and random paths of one length of ‖∂L/∂h‖ at the first block's input."""
        random = np.random.default_rng([seed, length])
        paths = [self.gradient(random.choice(self.count, length, replace=False).tolist()) for _ in range(draws)]
        return float(np.mean([np.linalg.norm(path.reshape(len(path), -1), axis=1) for path in paths]))


def path_weights(paths: Sequence[float]) -> list[float]:
    """Each length's share of the whole gradient: that of one path times their number, normalised to 1."""
    logs = [
        math.log(value) + math.lgamma(len(paths) + 1) - math.lgamma(length + 1) - math.lgamma(len(paths) - length + 1)
        if value > 0
        else -math.inf
        for length, value in enumerate(paths, start=1)
    ]
    top = max(logs)
    shares = np.exp([log - top for log in logs]) if top > -math.inf else np.zeros(len(logs))
    return [float(share) for share in shares / max(shares.sum(), 1e-300)]


def _tolerable(one: dict[str, Any]) -> int:
    return sum(one["whole"] - accuracy <= TOLERABLE for accuracy in one["without_one"])


def _row(one: dict[str, Any]) -> dict[str, Any]:
    losses = [one["whole"] - accuracy for accuracy in one["without_one"]]
    return {
        "network": one["network"],
        "accuracy (%)": round(one["whole"], 2),
        "blocks left out in turn": len(losses),
        "median loss (points)": round(float(np.median(losses)), 2),
        "greatest loss (points)": round(max(losses), 2),
        f"lose at most {TOLERABLE:.0f} points": f"{_tolerable(one)} of {len(losses)}",
    }


def _findings(one: dict[str, Any]) -> list[str]:
    removed, share = len(one["without_one"]), 100 * _tolerable(one) / len(one["without_one"])
    median = float(np.median(one["without_one"]))
    near = f", where chance is {one['chance']:.0f}%" if median < 3 * one["chance"] else ""
    sentences = [
        f"{one['network']} ({one['whole']:.2f}%): without any one of {removed} blocks that keep the shape it has "
        f"{median:.2f}% in the median{near}; {share:.0f}% of the blocks cost at most {TOLERABLE:.0f} points"
    ]
    if one.get("paths"):
        weights = np.cumsum(path_weights(one["paths"]))
        middle, most = (int(np.searchsorted(weights, share)) + 1 for share in (0.5, 0.95))
        sentences.append(
            f"{one['network']}: half of the gradient comes on paths through at most {middle} of its {len(weights)} "
            f"blocks, 95% through at most {most}"
        )
    return sentences


def draw(outcome: Outcome, file: Path) -> None:
    """Accuracy without each block, without several, in other orders, and where the gradient comes from."""
    from keras_resnets.study.plots import coloured, sheet, write

    networks = outcome.details["networks"]
    figure, axes = sheet(2, 2, width=6)
    for one, colour in coloured(networks):
        _draw_singly(axes[0, 0], one, colour)
        _draw_several(axes[0, 1], one, colour)
        _draw_exchanged(axes[1, 0], one, colour)
        _draw_paths(axes[1, 1], one, colour)
    for axis in axes.flat[:3]:
        axis.axhline(networks[0]["chance"], color="gray", linestyle=":", label="chance")
        axis.set(ylabel="accuracy (%)", ylim=(0, 100))
    axes[0, 0].set(title="without one block", xlabel="number of the block")
    axes[0, 1].set(title="without several at random", xlabel="blocks left out")
    axes[1, 0].set(title="blocks in another order", xlabel="Kendall's τ with the original order")
    axes[1, 1].set(title="share of the gradient", xlabel="residual branches on the path")
    for axis in axes.flat:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    for axis in (axes[0, 0], axes[0, 1], axes[1, 1]):
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(outcome.title)
    write(figure, file)


def _draw_singly(axis: Any, one: Mapping[str, Any], colour: Any) -> None:
    numbers = [number + 1 for number in one["removable"]]
    axis.plot(numbers, one["without_one"], "o-", color=colour, markersize=4, label=one["network"])
    axis.axhline(one["whole"], color=colour, linewidth=0.8, linestyle="--")


def _draw_several(axis: Any, one: Mapping[str, Any], colour: Any) -> None:
    counts = sorted(map(int, one["without_several"]))
    values = [one["without_several"][str(count)] for count in counts]
    axis.plot([0, *counts], [one["whole"], *map(np.median, values)], "o-", color=colour, label=one["network"])
    axis.fill_between(counts, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2)


def _draw_exchanged(axis: Any, one: Mapping[str, Any], colour: Any) -> None:
    taus = [1.0, *(entry["tau"] for entry in one["exchanged"])]
    values = [one["whole"], *(entry["accuracy"] for entry in one["exchanged"])]
    axis.plot(taus, values, "o", color=colour, markersize=4, label=one["network"])


def _draw_paths(axis: Any, one: Mapping[str, Any], colour: Any) -> None:
    if one.get("paths"):
        shares = path_weights(one["paths"])
        percent = [100 * share for share in shares]
        axis.bar(range(1, len(shares) + 1), percent, color=colour, alpha=0.7, label=one["network"])
        axis.set_ylabel("%")
