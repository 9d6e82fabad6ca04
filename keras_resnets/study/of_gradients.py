"""What of the gradient reaches the first block: a product of one factor a layer, or a sum that holds a 1.

Without a shortcut the backward pass multiplies the gradient by one factor a layer, so that it falls or grows
geometrically with depth. With one, dy/dx = dF/dx + 1 (He et al. 2016, arXiv:1603.05027, equation 5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_resnets.data import Dataset, load_dataset
from keras_resnets.data.dataset import Samples
from keras_resnets.extras import extra
from keras_resnets.models.layers import dtype_policy
from keras_resnets.study.flow import Point, gradient_profile, random_inputs
from keras_resnets.study.kept import Kept, progress
from keras_resnets.study.networks import FAMILIES, any_network, network, scale_kernels, without_batch_norm
from keras_resnets.study.outcome import Outcome, StudyError
from keras_resnets.study.runs import finished, this_environment, train_run
from keras_resnets.training.config import Recipe

with extra("tensorflow"):
    import keras

DEPTHS = (20, 32, 44, 56, 110)
SEEDS = (0, 1, 2)
BATCH = 32
RECIPE = Recipe(
    model="", data="fashion_mnist", epochs=5, train_images=5_000, learning_rate=0.1, warmup_epochs=1, pad=2, flip=True
)
QUICK: dict[str, Any] = {
    "depths": (20, 32, 44, 56), "seeds": (0,), "batch": 16,
    "recipe": replace(RECIPE, epochs=1, train_images=1_000, warmup_epochs=0),
}  # fmt: skip
_TRAINED_DEPTHS = (20, 32, 44, 56)  # of networks that are watched while they train: the deepest of these that is asked


class Setting(NamedTuple):
    """How networks begin: with batch norm or without, and their kernels' share of He's standard deviation."""

    name: str
    batch_norm: bool
    scale: float


SETTINGS = (
    Setting("no batch norm, 0.7 × He", False, 0.7),
    Setting("no batch norm, He", False, 1.0),
    Setting("batch norm, He", True, 1.0),
)


def product_law(family: str, setting: Setting) -> float | None:
    """Decades a layer that theory expects of the gradient's norm, towards the last block; None: it is no product.

    With kernels of s times He's standard deviation a plain layer with ReLU multiplies the gradient's norm by s (He et
    al. 2015, arXiv:1502.01852, equation 14), a residual block of two layers by √(1 + s⁴). Batch norm makes that
    √(π / (π − 1)) a plain layer whatever s is (Yang et al. 2019, arXiv:1902.08129), and a residual network's
    gradient grow as a power of the depth instead.
    """
    if setting.batch_norm:
        return math.log10(math.pi / (math.pi - 1)) / 2 if family == "plain" else None
    return math.log10(setting.scale) if family == "plain" else math.log10(1 + setting.scale**4) / 4


def gradients(
    folder: str | Path,
    *,
    depths: Sequence[int] = DEPTHS,
    seeds: Sequence[int] = SEEDS,
    batch: int = BATCH,
    dtype: str = "float64",
    recipe: Recipe = RECIPE,
    dataset: Dataset | None = None,
    model: str | None = None,
    arguments: dict[str, Any] | None = None,
    verbose: bool = True,
) -> Outcome:
    """Measure ‖∂L/∂h‖ at the output h of every block, in new networks and while they train.

    Args:
        folder: of the study; what is measured is kept there, and not measured again.
        depths: layers, 6n + 2.
        seeds: of the networks.
        batch: real images in the batch of the loss.
        dtype: precision of new networks; "float64" reaches further than float32 where gradients vanish.
        recipe: how two networks are trained to be looked at after every epoch; 0 `train_images` takes all.
        dataset: instead of loading the recipe's.
        model: one Keras model instead of the comparison, see `keras_resnets.study.networks.any_network`; its inputs
            are random numbers.
        arguments: of its constructor.
        verbose: show progress on standard error.

    Returns:
        The outcome: slopes of log10(‖∂L/∂h first‖ / ‖∂L/∂h last‖) in decades a layer, with R² of the straight line.

    Raises:
        StudyError: for settings that cannot be meant, or a gradient that is not finite.
    """
    folder = Path(folder)
    _check(depths, seeds, batch)
    if model:
        return _of_one(folder, model, arguments or {}, seeds, batch, dtype, verbose)
    data = dataset or load_dataset(recipe.data)
    kept = Kept(folder / "measured.json", {"data": data.name, "batch": batch, "dtype": dtype})
    profiles = _new_networks(kept, data, depths, seeds, batch, dtype, verbose)
    deepest = max((depth for depth in _TRAINED_DEPTHS if depth <= max(depths)), default=_TRAINED_DEPTHS[0])
    trained = _while_training(folder, data, deepest, batch, recipe, verbose)
    outcome = _outcome(profiles, trained, data, recipe, batch, dtype)
    outcome.save(folder)
    return outcome


def _check(depths: Sequence[int], seeds: Sequence[int], batch: int) -> None:
    if not depths or not seeds or batch < 1:
        raise StudyError("gradients needs at least one depth, one seed and one image")


def _new_networks(
    kept: Kept, data: Dataset, depths: Sequence[int], seeds: Sequence[int], batch: int, dtype: str, verbose: bool
) -> list[dict[str, Any]]:
    """A profile of every setting, family, depth and seed."""
    plan = [
        (setting, family, depth, seed)
        for depth in sorted(depths)
        for setting in SETTINGS
        for family in FAMILIES
        for seed in seeds
    ]
    found = []
    with progress("new networks", len(plan), verbose) as advance:
        for setting, family, depth, seed in plan:
            name = f"{setting.name}, {family}, {depth}, seed {seed}"
            points = kept.get(name, _measure, setting, family, depth, seed, data, batch, dtype)
            key = {"setting": setting.name, "family": family, "depth": depth, "seed": seed}
            found.append({**key, "gradients": [point[1] for point in points], "blocks": [point[0] for point in points]})
            advance()
    return found


def _measure(
    setting: Setting, family: str, depth: int, seed: int, data: Dataset, batch: int, dtype: str
) -> list[Point]:
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    images, labels = first_batch(data, data.train, batch)
    with dtype_policy(dtype):
        model = network(family, depth, input_shape=images.shape[1:], classes=len(data.class_names))
        if not setting.batch_norm:
            model = without_batch_norm(model)
    scale_kernels(model, setting.scale)
    return gradient_profile(model, images, labels)


def first_batch(data: Dataset, split: Samples, number: int) -> tuple[Any, Any]:
    """Images as the network takes them, and their labels: the same ones every time.

    Raises:
        StudyError: when there are not so many.
    """
    if not 1 <= number <= len(split):
        raise StudyError(f"{number} images were asked for, and there are {len(split)}")
    rows = np.sort(np.random.default_rng(0).permutation(len(split))[:number])
    taken = split.take(rows)
    return data.preprocessing([taken.image(row) for row in range(number)]), taken.labels


def _while_training(
    folder: Path, data: Dataset, depth: int, batch: int, recipe: Recipe, verbose: bool
) -> list[dict[str, Any]]:
    """Profiles of a plain and a residual network before training and after each epoch."""
    images, labels = first_batch(data, data.train, batch)
    found = []
    for family, prefix in FAMILIES.items():
        one = replace(recipe, model=f"{prefix}{depth}")
        place = folder / one.model
        kept = Kept(place / "gradients.json", {"batch": batch, "recipe": one.to_dict()})
        if not (finished(place, one) and str(one.epochs) in kept):
            probe = GradientProbe(kept, images, labels)
            train_run(one, place, data, verbose=verbose, callbacks=[probe])
        for epoch in range(one.epochs + 1):
            gradients_then = [point[1] for point in kept[str(epoch)]]
            found.append({"family": family, "depth": depth, "epoch": epoch, "gradients": gradients_then})
    return found


class GradientProbe(keras.callbacks.Callback):
    """Keeps the gradient's profile before training, and after each epoch, under the epoch's number.

    Args:
        kept: where.
        images, labels: of the batch whose loss it is.
    """

    def __init__(self, kept: Kept, images: Any, labels: Any) -> None:
        super().__init__()
        self.kept, self.images, self.labels = kept, images, labels

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self.kept.get("0", self._profile)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.kept.put(str(epoch + 1), self._profile())

    def _profile(self) -> list[Point]:
        return gradient_profile(self.model, self.images, self.labels)


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Slope, intercept and R² of the least-squares line."""
    across, up = np.asarray(x, float), np.asarray(y, float)
    if len(set(x)) < 2:
        return math.nan, math.nan, math.nan
    slope, intercept = np.polyfit(across, up, 1)
    spread = float(((up - up.mean()) ** 2).sum())
    rest = float(((up - slope * across - intercept) ** 2).sum())
    return float(slope), float(intercept), 1 - rest / spread if spread else 1.0


def _ratio(profile: dict[str, Any]) -> float:
    """Decades between the first block's gradient and the last's."""
    return math.log10(profile["gradients"][0] / profile["gradients"][-1])


def _outcome(
    profiles: list[dict[str, Any]], trained: list[dict[str, Any]], data: Dataset, recipe: Recipe, batch: int, dtype: str
) -> Outcome:
    depths, seeds = (sorted({profile[key] for profile in profiles}) for key in ("depth", "seed"))
    fits = list(_fits(profiles))
    rows = [
        {
            "begins with": fit["setting"],
            "family": fit["family"],
            "decades a layer": fit["slope"],
            "R²": fit["r2"],
            "product law": fit["law"],
            f"first / last at {depths[-1]} layers": fit["deepest"],
        }
        for fit in fits
    ]
    findings = [_finding(setting, fits) for setting in SETTINGS] if len(depths) > 1 else []
    findings += [_trained_finding(family, trained) for family in FAMILIES]
    return Outcome(
        "gradients",
        f"‖∂L/∂h‖ at the first block over the last, {depths[0]} to {depths[-1]} layers, {data.name}, {dtype}",
        {"depths": depths, "seeds": seeds, "batch": batch, "dtype": dtype, "recipe": recipe.to_dict()},
        findings,
        rows,
        {"profiles": profiles, "trained": trained, "fits": fits},
        this_environment(),
    )


def _fits(profiles: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for setting in SETTINGS:
        for family in FAMILIES:
            some = _those_of(profiles, setting, family)
            slope, intercept, r2 = line([one["depth"] for one in some], [_ratio(one) for one in some])
            deepest = max(one["depth"] for one in some)
            ratios = [_ratio(one) for one in some if one["depth"] == deepest]
            yield {
                "setting": setting.name, "family": family, "slope": slope, "intercept": intercept, "r2": r2,
                "law": product_law(family, setting), "deepest": 10 ** float(np.median(ratios)),
            }  # fmt: skip


def _those_of(found: Iterable[dict[str, Any]], setting: Setting, family: str) -> list[dict[str, Any]]:
    """Profiles or fits of one setting and family."""
    return [one for one in found if (one["setting"], one["family"]) == (setting.name, family)]


def _finding(setting: Setting, fits: Sequence[dict[str, Any]]) -> str:
    plain, residual = (_those_of(fits, setting, family)[0] for family in FAMILIES)
    times = abs(plain["slope"] / residual["slope"])
    how = f"{times:.1f} times as steep as the residual one's" if times > 1 else "flatter than the residual one's"
    return (
        f"{setting.name}: towards the first block the plain network's gradient {_goes(plain['slope'])} (R² "
        f"{plain['r2']:.3f}; the product law says {plain['law']:+.3f}), {how} ({residual['slope']:+.3f})"
    )


def _goes(slope: float, what: str = "layer") -> str:
    return f"{'grows' if slope > 0 else 'falls'} by {abs(slope):.3f} decades a {what}"


def _trained_finding(family: str, trained: Sequence[dict[str, Any]]) -> str:
    mine = [one for one in trained if one["family"] == family]
    first, last = mine[0], mine[-1]
    return (
        f"{family}, {last['depth']} layers with batch norm: first block over last {10 ** _ratio(first):.3g} before "
        f"training, {10 ** _ratio(last):.3g} after {last['epoch']} epoch{'s' if last['epoch'] > 1 else ''}"
    )


def _of_one(
    folder: Path, source: str, arguments: dict[str, Any], seeds: Sequence[int], batch: int, dtype: str, verbose: bool
) -> Outcome:
    """The profile of any Keras model, with random inputs."""
    settings = {"model": source, "arguments": arguments, "batch": batch, "dtype": dtype}
    kept = Kept(folder / "measured.json", settings)

    def measure(seed: int) -> list[Point]:
        keras.utils.clear_session()
        keras.utils.set_random_seed(seed)
        with dtype_policy(dtype):
            model = any_network(source, arguments)
        return gradient_profile(model, _shaped(model, random_inputs(model, batch, seed=seed)), seed=seed)

    profiles = []
    with progress(source, len(seeds), verbose) as advance:
        for seed in seeds:
            points = kept.get(f"seed {seed}", measure, seed)
            profiles.append({"seed": seed, "blocks": [p[0] for p in points], "gradients": [p[1] for p in points]})
            advance()
    outcome = _outcome_of_one(source, profiles, {**settings, "seeds": list(seeds)})
    outcome.save(folder)
    return outcome


def _shaped(model: Any, made: dict[str, Any]) -> Any:
    """Inputs in the form in which the model takes them: a dict, a list, or one array."""
    if isinstance(model.input, dict):
        return {key: made[tensor.name] for key, tensor in model.input.items()}
    arrays = [made[tensor.name] for tensor in model.inputs]
    return arrays if isinstance(model.input, (list, tuple)) else arrays[0]


def _outcome_of_one(source: str, profiles: list[dict[str, Any]], settings: dict[str, Any]) -> Outcome:
    logs = np.log10([profile["gradients"] for profile in profiles])
    places = np.arange(logs.shape[1])
    slope, _, r2 = line(list(np.tile(places, len(profiles))), list(logs.ravel()))
    ratio = 10 ** float(np.median(logs[:, 0] - logs[:, -1]))
    rows = [
        {"block": name, "‖∂L/∂h‖ (median)": 10 ** float(np.median(logs[:, i]))}
        for i, name in enumerate(profiles[0]["blocks"])
    ]
    finding = (
        f"{source}: the gradient at {rows[0]['block']} is {ratio:.3g} times that at {rows[-1]['block']}; towards the "
        f"first block it {_goes(-slope, 'block')} (R² {r2:.3f})"
    )
    title = f"‖∂L/∂h‖ at each block of {source}, new, {settings['dtype']}"
    return Outcome("gradients", title, settings, [finding], rows, {"profiles": profiles}, this_environment())


def draw(outcome: Outcome, file: Path) -> None:
    """Ratios by depth with their lines, and profiles along the network."""
    if "trained" in outcome.details:
        _draw_comparison(outcome, file)
        return
    from keras_resnets.study.plots import RESIDUAL, sheet, write

    figure, axes = sheet(1, width=8)
    axis, profiles = axes[0, 0], outcome.details["profiles"]
    for profile in profiles:
        axis.plot(profile["gradients"], "o-", color=RESIDUAL, alpha=0.6)
    axis.set(yscale="log", ylabel="‖∂L/∂h‖", ylim=_decade([v for p in profiles for v in p["gradients"]]))
    axis.set_xticks(range(len(profiles[0]["blocks"])), profiles[0]["blocks"], rotation=60, ha="right", fontsize=8)
    figure.suptitle(outcome.title)
    write(figure, file)


def _decade(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis that shows at least a decade around the values, lest a flat line look steep."""
    low, high = min(values) / 1.5, max(values) * 1.5
    middle = math.sqrt(low * high)
    return min(low, middle / 10**0.5), max(high, middle * 10**0.5)


def _draw_comparison(outcome: Outcome, file: Path) -> None:
    from keras_resnets.study.plots import sheet, write

    figure, axes = sheet(len(SETTINGS), 2)
    for axis, setting in zip(axes[0], SETTINGS, strict=True):
        _draw_ratios(axis, setting, outcome)
    for axis, setting in zip(axes[1, :2], (SETTINGS[0], SETTINGS[2]), strict=True):
        _draw_profiles(axis, setting, outcome)
    _draw_training(axes[1, 2], outcome)
    axes[0, 0].set_ylabel("‖∂L/∂h‖, first block over last")
    axes[1, 0].set_ylabel("‖∂L/∂h‖, of the last block's")
    figure.suptitle(outcome.title)
    write(figure, file)


def _draw_ratios(axis: Any, setting: Setting, outcome: Outcome) -> None:
    from keras_resnets.study.plots import FAMILY_COLORS

    for fit in outcome.details["fits"]:
        if fit["setting"] != setting.name:
            continue
        colour = FAMILY_COLORS[fit["family"]]
        some = _those_of(outcome.details["profiles"], setting, fit["family"])
        depths = np.array(sorted({one["depth"] for one in some}))
        axis.plot([one["depth"] for one in some], [10 ** _ratio(one) for one in some], "o", color=colour, markersize=4)
        label = f"{fit['family']}: {fit['slope']:+.3f} decades a layer"
        if not math.isnan(fit["slope"]):
            axis.plot(depths, 10 ** (fit["slope"] * depths + fit["intercept"]), color=colour, label=label)
        if fit["law"] is not None and len(depths) > 1:
            start = fit["slope"] * depths[0] + fit["intercept"]
            law = 10 ** (fit["law"] * (depths - depths[0]) + start)
            axis.plot(depths, law, ":", color=colour, label=f"product law: {fit['law']:+.3f}")
    axis.set(title=setting.name, xlabel="layers", yscale="log")
    axis.legend(fontsize=8)


def _draw_profiles(axis: Any, setting: Setting, outcome: Outcome) -> None:
    """Along the deepest networks, of one seed."""
    from keras_resnets.study.plots import FAMILY_COLORS

    deepest = max(one["depth"] for one in outcome.details["profiles"])
    for one in outcome.details["profiles"]:
        if (one["setting"], one["depth"]) == (setting.name, deepest):
            values = np.array(one["gradients"]) / one["gradients"][-1]
            axis.plot(range(1, len(values) + 1), values, color=FAMILY_COLORS[one["family"]], linewidth=1, alpha=0.7)
    axis.set(title=f"{deepest} layers, {setting.name}", xlabel="block", yscale="log")


def _draw_training(axis: Any, outcome: Outcome) -> None:
    from keras_resnets.study.plots import shades

    trained = outcome.details["trained"]
    epochs = max(one["epoch"] for one in trained)
    for one in trained:
        values = np.array(one["gradients"]) / one["gradients"][-1]
        colour = shades(one["family"], epochs + 1)[one["epoch"]]
        label = f"{one['family']}, {one['epoch']} epochs" if one["epoch"] in (0, epochs) else None
        axis.plot(range(1, len(values) + 1), values, color=colour, label=label, linewidth=1.2)
    axis.set(title=f"{trained[0]['depth']} layers, while they train", xlabel="block", yscale="log")
    axis.legend(fontsize=8)
