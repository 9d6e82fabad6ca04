"""The look that the studies' pictures share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_resnets.extras import extra

with extra("study"):
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

PLAIN, RESIDUAL = "#c0392b", "#1f6fb2"
FAMILY_COLORS = {"plain": PLAIN, "residual": RESIDUAL}


def sheet(columns: int, rows: int = 1, width: float = 4.6, height: float = 4.2, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes [rows, columns], without touching what the user draws with pyplot."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def shades(family: str, number: int) -> list[Any]:
    """Colours of one family, from light to dark."""
    colours = colormaps["Reds" if family == "plain" else "Blues"]
    return [colours(0.45 + 0.5 * (i + 1) / number) for i in range(number)]


def coloured(networks: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Any]]:
    """Networks with their colours: those of one "family" in its shades, the plain ones first."""
    every = list(networks)
    for family in FAMILY_COLORS:
        mine = [one for one in every if one["family"] == family]
        yield from zip(mine, shades(family, len(mine)), strict=True)


def write(figure: Any, file: Path) -> None:
    """Write the figure as a PNG."""
    figure.savefig(file, dpi=110, format="png")
