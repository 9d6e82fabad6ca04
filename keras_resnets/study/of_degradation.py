"""Degradation: what He et al. 2015 (arXiv:1512.03385) show in Figures 1 and 6, on the user's machine.

Plain and residual networks that differ in their shortcuts alone are trained at several depths and seeds. If the deep
plain one is worse on its own training images, it is not overfitting that spoils it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_resnets.data import Dataset, load_dataset
from keras_resnets.models import REGISTRY
from keras_resnets.study.networks import FAMILIES
from keras_resnets.study.outcome import Outcome, StudyError
from keras_resnets.study.runs import environment_of, finished, history, merged, test_accuracy, train_run
from keras_resnets.training.config import Recipe

DEPTHS = (20, 32, 44, 56)
SEEDS = (0, 1, 2)
RECIPE = Recipe(
    model="", data="fashion_mnist", epochs=15, train_images=20_000, learning_rate=0.1, warmup_epochs=1, pad=2, flip=True
)
CURVE_IMAGES = 2_000
QUICK = {
    "depths": (20, 56), "seeds": (0,), "curve_images": 500, "recipe": replace(RECIPE, epochs=3, train_images=2_000),
}  # fmt: skip
_IMAGENET_SIDE = 32  # pixels, of networks that begin with ImageNet's stem


class Run(NamedTuple):
    """One training of the study."""

    family: str
    depth: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.recipe.model}-seed{self.recipe.seed}"


def degradation(
    folder: str | Path,
    *,
    depths: Sequence[int] = DEPTHS,
    seeds: Sequence[int] = SEEDS,
    recipe: Recipe = RECIPE,
    curve_images: int = CURVE_IMAGES,
    dataset: Dataset | None = None,
    verbose: bool = True,
) -> Outcome:
    """Train plain and residual networks at several depths and seeds, and compare their errors.

    Each training has a folder of its own below `folder`, and goes on where it was when the study is started again;
    after each, the study's files are written with what there is.

    Args:
        folder: of the study.
        depths: layers: 20, 32, 44, 56 and 110 for small images; 18, 34, 50, 101 and 152 are ImageNet's networks, here
            with an input of 32 pixels unless the recipe has an image_size.
        seeds: of initialisation, order and augmentation; the bands go from the lowest to the highest.
        recipe: how each is trained; its model and seed do not matter, and it holds no images out.
        curve_images: test images whose error is measured after every epoch; at the end it is that of all. 0: all.
        dataset: instead of loading the recipe's.
        verbose: show progress on standard error.

    Returns:
        The outcome; errors in percent. Training errors are the last epoch's running means, as in Figure 6.

    Raises:
        StudyError: for a depth that no plain network has.
        TrainingError, DataError: see `keras_resnets.training.train`.
        TrainingStopped, KeyboardInterrupt: after a signal; the same call goes on.
    """
    folder = Path(folder)
    if recipe.validation:
        raise StudyError("the recipe of this study holds no images out: its curves are of test images")
    runs = _plan(depths, seeds, recipe)
    data = dataset or load_dataset(recipe.data)
    # Figure 6 shows the test error of each epoch. Nothing is chosen by it.
    number = min(curve_images, len(data.test)) or len(data.test)
    some = np.linspace(0, len(data.test) - 1, number).astype(np.int64)
    data = replace(data, validation=data.test.take(some))
    for number, run in enumerate(runs, start=1):
        place = folder / run.name
        if not finished(place, run.recipe):
            train_run(run.recipe, place, data.sized(run.recipe.image_size), f"{number} of {len(runs)}", verbose)
            _gather(folder, runs[:number], recipe, data.name).save(folder)
    outcome = _gather(folder, runs, recipe, data.name)
    outcome.save(folder)
    return outcome


def _plan(depths: Sequence[int], seeds: Sequence[int], recipe: Recipe) -> list[Run]:
    """All runs; one seed of everything before the next, so that a study that is ended early compares what it has."""
    known = sorted(
        int(name.removeprefix("plainnet"))
        for name in REGISTRY
        if name.startswith("plainnet") and name.replace("plainnet", "resnet") in REGISTRY
    )
    if unknown := [depth for depth in depths if depth not in known]:
        raise StudyError(f"there is no plain network of {unknown[0]} layers; there are {', '.join(map(str, known))}")
    if not depths or not seeds or len(set(depths)) < len(depths) or len(set(seeds)) < len(seeds):
        raise StudyError(f"depths and seeds must be different numbers, at least one, not {list(depths)}, {list(seeds)}")
    return [
        Run(family, depth, _recipe_of(f"{prefix}{depth}", recipe, seed))
        for seed in seeds
        for depth in sorted(depths)
        for family, prefix in FAMILIES.items()
    ]


def _recipe_of(model: str, recipe: Recipe, seed: int) -> Recipe:
    side = recipe.image_size or (_IMAGENET_SIDE if REGISTRY[model].classes == 1000 else 0)
    return replace(recipe, model=model, seed=seed, image_size=side)


def _gather(folder: Path, runs: Sequence[Run], recipe: Recipe, data: str) -> Outcome:
    """The outcome of the runs that are finished."""
    curves: dict[str, dict[str, Any]] = {}
    for run in runs:
        net = curves.setdefault(
            run.recipe.model,
            {"family": run.family, "depth": run.depth, "seeds": [], "training": [], "test": [], "test_at_end": []},
        )
        rows = history(folder / run.name)
        net["seeds"].append(run.recipe.seed)
        net["training"].append([_percent(row["accuracy"]) for row in rows])
        net["test"].append([_percent(row["val_accuracy"]) for row in rows])
        net["test_at_end"].append(_percent(test_accuracy(folder / run.name)))
    images = f"{recipe.train_images:,} images" if recipe.train_images else "all images"
    return Outcome(
        "degradation",
        f"Plain and residual networks of several depths on {data}, {images}, {recipe.epochs} epochs",
        {**recipe.to_dict(), "model": sorted(curves), "seed": sorted({run.recipe.seed for run in runs})},
        [_finding(family, curves) for family in FAMILIES if _depths_of(family, curves)],
        [_row(name, net) for name, net in curves.items()],
        {"curves": curves},
        merged([environment_of(folder / run.name) for run in runs]),
    )


def _percent(accuracy: float) -> float:
    return round(100 * (1 - accuracy), 4)


def _row(name: str, net: dict[str, Any]) -> dict[str, Any]:
    return {
        "network": name,
        "family": net["family"],
        "layers": net["depth"],
        "parameters": REGISTRY[name].parameters,
        "seeds": len(net["seeds"]),
        "training error (%)": spread(_ends(net)),
        "test error (%)": spread(net["test_at_end"]),
    }


def _ends(net: dict[str, Any]) -> list[float]:
    return [curve[-1] for curve in net["training"]]


def spread(values: Sequence[float]) -> str:
    """ "8.12 (8.03 to 8.20)": median, least and greatest."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{float(np.median(values)):.2f} ({min(values):.2f} to {max(values):.2f})"


def _depths_of(family: str, curves: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted((net for net in curves.values() if net["family"] == family), key=lambda net: net["depth"])


def _finding(family: str, curves: dict[str, Any]) -> str:
    """How the deepest of a family compares with the shallowest, on the training images."""
    nets = _depths_of(family, curves)
    first, last = nets[0], nets[-1]
    if first is last:
        return f"{family}, {first['depth']} layers: training error {spread(_ends(first))}%"
    low, high = _ends(first), _ends(last)
    if min(high) > max(low):
        verdict = "is above that of"
    elif max(high) < min(low):
        verdict = "is below that of"
    else:
        verdict = "overlaps that of"
    seeds = f"median, and range over {len(low)} seeds" if len(low) > 1 else "one seed"
    return (
        f"{family}: the training error of {last['depth']} layers, {spread(high)}%, {verdict} {first['depth']} layers, "
        f"{spread(low)}% ({seeds})"
    )


def draw(outcome: Outcome, file: Path) -> None:
    """Curves of both families beside each other, as in Figure 6, and the error at the end by depth."""
    from keras_resnets.study.plots import FAMILY_COLORS, shades, sheet, write

    curves = dict(outcome.details["curves"])
    families = [family for family in FAMILIES if _depths_of(family, curves)]
    figure, axes = sheet(len(families) + 1)
    left, end = axes[0, : len(families)], axes[0, -1]
    top = 1.05 * max(_quantile(net, 0.9) for net in curves.values())
    for axis, family in zip(left, families, strict=True):
        nets = _depths_of(family, curves)
        for net, colour in zip(nets, shades(family, len(nets)), strict=True):
            _band(axis, net["training"], colour, f"{net['depth']} layers", "--")
            _band(axis, net["test"], colour, None, "-")
        axis.set(title=f"{family} networks", xlabel="epoch", ylim=(0, top))
        axis.legend(title="dashed: training\nsolid: test")
    left[0].set_ylabel("error (%)")
    for family in families:
        nets = _depths_of(family, curves)
        depths, ends = [net["depth"] for net in nets], [_ends(net) for net in nets]
        end.plot(depths, [np.median(values) for values in ends], "o-", color=FAMILY_COLORS[family], label=family)
        end.fill_between(depths, *_range(ends), color=FAMILY_COLORS[family], alpha=0.25, linewidth=0)
    end.set(title="training error at the end", xlabel="layers", ylabel="error (%)", xticks=depths)
    end.set_ylim(bottom=0)
    end.legend()
    figure.suptitle(outcome.title)
    write(figure, file)


def _quantile(net: dict[str, Any], share: float) -> float:
    return float(np.quantile([value for curve in (*net["training"], *net["test"]) for value in curve], share))


def _range(values: Iterable[Sequence[float]]) -> tuple[list[float], list[float]]:
    pairs = [(min(some), max(some)) for some in values]
    return [low for low, _ in pairs], [high for _, high in pairs]


def _band(axis: Any, curves: Sequence[Sequence[float]], colour: Any, label: str | None, style: str) -> None:
    """The median of the seeds, and their range."""
    together = np.asarray(curves)
    epochs = np.arange(1, together.shape[1] + 1)
    axis.plot(epochs, np.median(together, 0), style, color=colour, label=label, linewidth=1.6)
    axis.fill_between(epochs, together.min(0), together.max(0), color=colour, alpha=0.2, linewidth=0)
