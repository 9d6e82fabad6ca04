"""Shows an Evaluation: tables for people, evaluation.json and per_class.csv for programs, and two pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from keras_resnets.atomic import atomic_file
from keras_resnets.data.dataset import Samples
from keras_resnets.extras import extra
from keras_resnets.preprocessing import Preprocessing
from keras_resnets.training.figures import Evaluation

EVALUATION, PER_CLASS, CONFUSION, ERRORS = "evaluation.json", "per_class.csv", "confusion.png", "errors.png"
_COUNTED, _DRAWN = 20, 50  # classes up to which a matrix shows its counts, and up to which it is drawn
_PAIRS = 30
_GRID = (3, 8)  # rows and columns of mistakes
_THUMBNAIL = 192  # pixels of the shorter side
_DPI = 120


def tables(evaluation: Evaluation) -> list[Table]:
    """The figures, the classes of the lowest recall and the most frequent confusions; what is empty is left out."""
    low, high = evaluation.top1_interval
    loss = evaluation.cross_entropy
    figures = Table("top-1", "95% interval", "top-5", "cross-entropy", "images", "images/s")
    figures.add_row(
        f"{evaluation.top1:.2%}",
        f"{low:.2%} – {high:.2%}",
        f"{evaluation.top5:.2%}",
        "–" if loss is None else f"{loss:.4f}",
        f"{evaluation.images:,}",
        f"{evaluation.images_per_second:,.0f}",
    )
    worst = Table("class", "images", "recall", "precision", "F1", title="lowest recall", title_justify="left")
    for row in evaluation.worst_classes():
        worst.add_row(row.label, f"{row.images:,}", *map(_percent, (row.recall, row.precision, row.f1)))
    mistakes = Table("is", "taken for", "images", "of the class", title="confusions", title_justify="left")
    for pair in evaluation.confusions():
        mistakes.add_row(pair.truth, pair.predicted, f"{pair.images:,}", f"{pair.share:.1%}")
    return [table for table in (figures, worst, mistakes) if table.row_count]


def _percent(rate: float) -> str:
    return f"{rate:.1%}" if rate >= 0 else "–"  # NaN: nothing divided by nothing


def write_report(evaluation: Evaluation, split: Samples, folder: str | Path, facts: Mapping[str, Any]) -> list[Path]:
    """Write evaluation.json, per_class.csv, confusion.png and, where there are mistakes, errors.png.

    Args:
        evaluation: what was found.
        split: the images that it was found on.
        folder: each file in it is replaced whole or not at all.
        facts: what else evaluation.json says, in front: model and data, for example.

    Returns:
        The files, evaluation.json the last: where it is, the others are.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    folder = Path(folder)
    (folder / EVALUATION).unlink(missing_ok=True)
    _write_csv(evaluation, folder / PER_CLASS)
    draw_confusion(evaluation, folder / CONFUSION)
    drawn = draw_errors(evaluation, split, folder / ERRORS)
    with atomic_file(folder / EVALUATION) as draft:
        text = json.dumps({**facts, **evaluation.to_dict()}, ensure_ascii=False, allow_nan=False)
        draft.write_text(text + "\n", encoding="utf-8")
    names = (PER_CLASS, CONFUSION, *([ERRORS] if drawn else []), EVALUATION)
    return [folder / name for name in names]


def _write_csv(evaluation: Evaluation, file: Path) -> None:
    with atomic_file(file) as draft, draft.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.DictWriter(stream, ("label", "images", "precision", "recall", "f1"))
        rows.writeheader()
        rows.writerows(evaluation.to_dict()["classes"])


def pyplot() -> Any:
    """matplotlib.pyplot, drawing into files.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    with extra("study"):
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    return plt


def draw_confusion(evaluation: Evaluation, file: str | Path) -> None:
    """Draw the confusion matrix, with counts up to 20 classes; over 50 classes, the most confused pairs as bars."""
    plt = pyplot()
    classes = len(evaluation.labels)
    figure = _pairs(evaluation, plt) if classes > _DRAWN else _matrix(evaluation, plt)
    low, high = evaluation.top1_interval
    figure.suptitle(
        f"top-1 {evaluation.top1:.2%} ({low:.2%} – {high:.2%}) of {evaluation.images:,} images", fontsize=11
    )
    _save(figure, file, plt)


def _matrix(evaluation: Evaluation, plt: Any) -> Any:
    """Shares of each true class by colour, stretched where they are small: mistakes are what one looks for."""
    from matplotlib.colors import PowerNorm

    matrix, classes = evaluation.confusion, len(evaluation.labels)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 2.6 + (0.5 if classes <= _COUNTED else 0.2) * classes
    figure, axis = plt.subplots(figsize=(side + 0.9, side), layout="constrained")
    picture = axis.imshow(shares, cmap="Blues", norm=PowerNorm(0.4, 0, 1), interpolation="nearest")
    names = [_short(label) for label in evaluation.labels]
    turned = max(map(len, names)) > 2
    axis.set_xticks(range(classes), names, rotation=45 if turned else 0, ha="right" if turned else "center")
    axis.set_yticks(range(classes), names)
    axis.tick_params(length=0, labelsize=9 if classes <= _COUNTED else 7)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true class")
    axis.set_xticks(np.arange(1, classes) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, classes) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="minor", length=0)
    bar = figure.colorbar(picture, ax=axis, shrink=0.8, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1%", "5%", "20%", "50%", "100%"], fontsize=8)
    bar.set_label("share of the true class", fontsize=9)
    if classes <= _COUNTED:
        _write_counts(axis, matrix, picture.norm(shares))
    return figure


def _write_counts(axis: Any, matrix: Any, darkness: Any) -> None:
    size = 9 if matrix.max() < 1000 else 8 if matrix.max() < 10_000 else 6
    for truth, predicted in zip(*np.nonzero(matrix), strict=True):
        dark = darkness[truth, predicted] > 0.6
        axis.text(
            predicted, truth, f"{matrix[truth, predicted]}", ha="center", va="center", fontsize=size,
            color="white" if dark else "black",
        )  # fmt: skip


def _pairs(evaluation: Evaluation, plt: Any) -> Any:
    """The most frequent mistakes as bars, the most frequent on top."""
    pairs = evaluation.confusions(_PAIRS)
    figure, axis = plt.subplots(figsize=(8.5, 1.6 + 0.24 * len(pairs)), layout="constrained")
    names = [f"{_short(pair.truth, 28)} → {_short(pair.predicted, 28)}" for pair in pairs]
    bars = axis.barh(range(len(pairs)), [pair.images for pair in pairs], color="steelblue")
    axis.bar_label(bars, [f"{pair.images}  ({pair.share:.0%})" for pair in pairs], padding=3, fontsize=8)
    axis.set_yticks(range(len(pairs)), names, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.12, y=0.01)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("images (share of the true class)")
    axis.set_title("most frequent mistakes: true class → predicted" if pairs else "no mistakes", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    if not pairs:
        axis.set_axis_off()
    return figure


def draw_errors(evaluation: Evaluation, split: Samples, file: str | Path) -> bool:
    """Draw the most confident mistakes with truth and prediction; returns whether there are any.

    Without one there is no picture, and an older one is removed.
    """
    wrong = np.flatnonzero(evaluation.predictions != evaluation.truths)
    chosen = wrong[np.argsort(-evaluation.confidences[wrong], kind="stable")][: _GRID[0] * _GRID[1]]
    if not len(chosen):
        Path(file).unlink(missing_ok=True)
        return False
    plt = pyplot()
    columns = min(_GRID[1], len(chosen))
    rows = -(-len(chosen) // columns)
    size = (max(1.55 * columns, 4.5), 1.95 * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, number in zip(axes.flat, chosen, strict=False):
        axis.imshow(_thumbnail(split.image(int(evaluation.rows[number]))), interpolation="nearest")
        truth, predicted = (
            _short(evaluation.labels[row[number]]) for row in (evaluation.truths, evaluation.predictions)
        )
        axis.set_title(f"{truth}\n→ {predicted} ({evaluation.confidences[number]:.0%})", fontsize=8)
    figure.suptitle(
        f"{len(wrong):,} of {evaluation.images:,} images wrong"
        + ("; the most confident mistakes" if len(wrong) > len(chosen) else "")
        + (": " if columns > 3 else "\n")
        + "true class → prediction (its probability)",
        fontsize=10,
    )
    _save(figure, file, plt)
    return True


def _thumbnail(image: Any) -> NDArray[np.uint8]:
    """RGB [height, width, 3], whole and upright, small images in their own pixels."""
    sides = image.size if isinstance(image, Image.Image) else image.shape[:2]
    return Preprocessing((1, 1)).uncropped(image, min(_THUMBNAIL, *sides))


def _short(label: str, length: int = 18) -> str:
    # A dollar sign would begin a formula.
    text = label if len(label) <= length else f"{label[: length - 1].rstrip()}…"
    return text.replace("$", r"\$")


def _save(figure: Any, file: str | Path, plt: Any) -> None:
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # inches
    try:
        with atomic_file(file) as draft:
            figure.savefig(draft, dpi=_DPI)
    finally:
        plt.close(figure)
