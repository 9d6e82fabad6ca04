"""The loss around trained networks, after Li et al. 2018, "Visualizing the loss landscape" (arXiv:1712.09913).

A plane through the trained weights is spanned by two random directions, each filter of which is as long as the
network's own filter: otherwise a network that batch norm lets be scaled would look as flat as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra
from keras_resnets.models.layers import linear_head
from keras_resnets.study.kept import Kept, progress
from keras_resnets.study.outcome import Outcome, StudyError
from keras_resnets.study.runs import this_environment
from keras_resnets.study.trained import Trained, trained_networks

with extra("tensorflow"):
    import tensorflow as tf

NETWORKS = ("plainnet56", "resnet56")
QUICK = {"images": 100, "points": 9}
_HIGHEST = 1e6  # a loss beyond it says no more


def landscape(
    folder: str | Path,
    *,
    networks: Sequence[str | Path] = NETWORKS,
    images: int = 500,
    points: int = 25,
    radius: float = 1.0,
    seed: int = 0,
    data: str | None = None,
    verbose: bool = True,
) -> Outcome:
    """Measure the loss on a grid around trained networks.

    Args:
        folder: of the study; every row of a grid is kept there, and not measured again.
        networks: folders of training runs, .keras files, or names with weights of the package.
        images: test images whose mean loss it is; 0: all. Batch norm keeps its moving statistics.
        points: on a side of the grid; odd, so that the trained weights are its middle.
        radius: of the square, in lengths of the filters.
        seed: of the directions.
        data: the networks' data set, where they do not tell it.
        verbose: show progress on standard error.

    Returns:
        The outcome; losses are cross-entropies in nats.

    Raises:
        StudyError: for a grid that cannot be meant.
        WeightsError, DataError: when weights or images cannot be had.
    """
    folder = Path(folder)
    if points < 3 or points % 2 == 0 or radius <= 0:
        raise StudyError(f"points must be odd and at least 3, radius positive, not {points} and {radius}")
    found = []
    for one in trained_networks(networks, images, data):
        kept = one.kept(folder, points=points, radius=radius, seed=seed)
        loss = _grid(one, kept, points, radius, seed, verbose)
        found.append({"network": one.name, "family": one.family, "classes": one.model.output_shape[-1], "loss": loss})
    number = images or "all"
    outcome = Outcome(
        "landscape",
        f"Loss on a plane through trained networks, filter-normalised directions, {number} test images",
        {
            "networks": [one["network"] for one in found], "images": images, "points": points, "radius": radius,
            "seed": seed,
        },
        [_finding(one, radius) for one in found],
        [_row(one, radius) for one in found],
        {"networks": found, "radius": radius},
        this_environment(),
    )  # fmt: skip
    outcome.save(folder)
    return outcome


def _grid(one: Trained, kept: Kept, points: int, radius: float, seed: int, verbose: bool) -> list[list[float]]:
    """Mean loss [points, points]; rows along the first direction."""
    steps = np.linspace(-radius, radius, points)
    with linear_head(one.model), progress(one.name, points, verbose) as advance:
        surface = Surface(one, seed)
        rows = []
        for number, a in enumerate(steps):
            rows.append(kept.get(f"row {number}", surface.row, a, steps))
            advance()
        surface.restore()
    return rows


class Surface:
    """The loss as a function of two coordinates; the network's weights change meanwhile.

    Args:
        one: a network that gives logits, and its images.
        seed: of the directions.
    """

    def __init__(self, one: Trained, seed: int) -> None:
        self.variables = list(one.model.trainable_variables)
        self.start = [variable.numpy() for variable in self.variables]
        random = np.random.default_rng(seed)
        self.directions = [[filter_normalised(value, random) for value in self.start] for _ in range(2)]
        images, labels = tf.constant(one.images), tf.constant(one.labels)

        def mean_loss() -> Any:
            logits = one.model(images, training=False)
            each = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
            return tf.reduce_mean(tf.cast(each, tf.float64))

        self._mean_loss = tf.function(mean_loss)

    def loss(self, a: float, b: float) -> float:
        """Mean loss at `a` times the first direction and `b` times the second."""
        for variable, start, one, other in zip(self.variables, self.start, *self.directions, strict=True):
            if start.ndim > 1:
                variable.assign(start + np.float32(a) * one + np.float32(b) * other)
        value = float(self._mean_loss())
        return min(value, _HIGHEST) if math.isfinite(value) else _HIGHEST

    def row(self, a: float, steps: Sequence[float]) -> list[float]:
        """The losses at `a` times the first direction."""
        return [self.loss(a, b) for b in steps]

    def restore(self) -> None:
        """Give the network its own weights again."""
        for variable, start in zip(self.variables, self.start, strict=True):
            variable.assign(start)


def filter_normalised(value: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """A random direction whose filters (the last axis counts them) are as long as those of `value`.

    Biases and the parameters of batch norm keep their values, as in the paper: zeros for those.
    """
    if value.ndim < 2:
        return np.zeros_like(value)
    direction = random.normal(size=value.shape)
    axes = tuple(range(value.ndim - 1))
    lengths = np.sqrt((value.astype(np.float64) ** 2).sum(axes)) / np.sqrt((direction**2).sum(axes))
    return (direction * lengths).astype(np.float32)


def _numbers(one: dict[str, Any], radius: float) -> tuple[float, float, float]:
    """Loss in the middle, share of the square below the loss of guessing, and the radius of the disc below it."""
    loss = np.array(one["loss"])
    middle = len(loss) // 2
    guessing = math.log(one["classes"])
    steps = np.linspace(-radius, radius, len(loss))
    distances = np.hypot(*np.meshgrid(steps, steps))
    outside = distances[loss >= guessing]
    return (
        float(loss[middle, middle]),
        float((loss < guessing).mean()),
        float(outside.min(initial=radius * math.sqrt(2))),
    )


def _row(one: dict[str, Any], radius: float) -> dict[str, Any]:
    middle, share, disc = _numbers(one, radius)
    return {
        "network": one["network"],
        "loss at the trained weights": round(middle, 4),
        "square below guessing (%)": round(100 * share, 1),
        "worse than guessing from radius": round(disc, 3),
        "greatest loss": round(float(np.max(one["loss"])), 2),
    }


def _finding(one: dict[str, Any], radius: float) -> str:
    middle, share, disc = _numbers(one, radius)
    return (
        f"{one['network']}: loss {middle:.3f} in the middle; {100 * share:.0f}% of the square stays below that of "
        f"guessing ({math.log(one['classes']):.2f}), which is first exceeded {disc:.2f} filter lengths from the middle"
    )


def draw(outcome: Outcome, file: Path) -> None:
    """Contours above, the surface below, with one scale for all networks."""
    from keras_resnets.study.plots import FAMILY_COLORS, sheet, write

    networks, radius = outcome.details["networks"], outcome.details["radius"]
    figure, axes = sheet(len(networks), 2, width=5.2, height=4.6)
    low = min(np.min(one["loss"]) for one in networks)
    top = max(10 * math.log(networks[0]["classes"]), low * 10)
    levels = np.geomspace(max(low, 1e-3), top, 25)
    for column, one in enumerate(networks):
        loss = np.clip(one["loss"], levels[0], top)
        steps = np.linspace(-radius, radius, len(loss))
        flat = axes[0, column]
        drawn = flat.contourf(steps, steps, loss, levels=levels, cmap="viridis", norm="log")
        flat.contour(steps, steps, loss, levels=[math.log(one["classes"])], colors="white", linewidths=1)
        flat.plot(0, 0, "*", color="white", markersize=9)
        flat.set_title(one["network"], color=FAMILY_COLORS[one["family"]])
        flat.set(xlabel="second direction", ylabel="first direction", aspect="equal")
        flat.locator_params(nbins=5)
        place = axes[1, column].get_subplotspec()
        axes[1, column].remove()
        solid = figure.add_subplot(place, projection="3d")
        solid.plot_surface(*np.meshgrid(steps, steps), np.log10(loss), cmap="viridis", linewidth=0, antialiased=True)
        solid.set(zlabel="log10 loss", zlim=(np.log10(levels[0]), np.log10(top)))
    figure.colorbar(drawn, ax=list(axes[0]), label="loss (white line: guessing)", format="%.2g")
    figure.suptitle(outcome.title)
    write(figure, file)
