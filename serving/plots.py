"""Draws a benchmark's rows as SVG pictures that take their colours from the page around them, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from keras_resnets.extras import extra

from .benchmark import quickest
from .sheets import ALWAYS, FLOAT32, Row, images, short_names

# Matplotlib knows no CSS variables: it draws in colours that nobody else uses, and they are exchanged afterwards.
_TEXT, _FAINT, _LINE, _CARD = "#b00001", "#b00002", "#b00003", "#b00004"
_PLACEHOLDERS = {_TEXT: "var(--text)", _FAINT: "var(--faint)", _LINE: "var(--line)", _CARD: "var(--card)"}
_COLOURS = 6  # --c0 to --c5 of the page
_MARKERS = (  # matplotlib's, the same in words, and whether it is filled
    *(("o", "●", True), ("s", "■", True), ("^", "▲", True), ("D", "◆", True), ("v", "▼", True)),
    *(("o", "○", False), ("s", "□", False), ("^", "△", False), ("D", "◇", False), ("v", "▽", False)),
)
_DASHES = ("-", "--", ":", "-.")
_SETTINGS = {
    "font.size": 9, "text.color": _TEXT, "axes.labelcolor": _TEXT, "axes.edgecolor": _FAINT, "xtick.color": _FAINT,
    "ytick.color": _FAINT, "xtick.labelcolor": _TEXT, "ytick.labelcolor": _TEXT, "grid.color": _LINE,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "text.usetex": False, "svg.fonttype": "none", "svg.hashsalt": "keras-resnets",
}  # fmt: skip
_SIZE = (4.4, 3.1)  # inches: small, so that the letters stay readable on a phone
_LOGARITHMIC = 6.0  # largest over smallest value from which an axis is logarithmic
_LINES, _DISTRIBUTIONS = 12, 6


class Plot(NamedTuple):
    """A picture for an HTML page.

    Args:
        title, note: what it shows, and how to read it.
        legend: CSS colour, symbol and words: of each precision, then of each symbol where there are several.
        svg: the element, with a description for those who cannot see it.
    """

    title: str
    note: str
    legend: Sequence[tuple[str, str, str]]
    svg: str


def plots(rows: Sequence[Row]) -> list[Plot]:
    """The pictures that these rows have the figures for.

    Args:
        rows: measured ones of a result.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    with extra("bench"):
        import matplotlib
    if not rows:
        return []
    looks = _Looks(rows)
    with matplotlib.rc_context(_SETTINGS):
        drawn = [draw(rows, looks) for draw in (_trade_off, _batches, _accuracy, _distribution)]
    return [plot for plot in drawn if plot]


class _Looks:
    """The colour tells the precision and the symbol what else varies; of one precision, the colour tells that too."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._others = short_names(rows, without=ALWAYS)
        self._precisions = list(dict.fromkeys(str(row.get("precision")) for row in rows))
        self._kinds = list(dict.fromkeys(self._others.values()))

    def series(self, row: Row) -> str:
        """The words of the line to which a row belongs: all but its batch."""
        return ", ".join(filter(None, (str(row.get("precision")), self._others[row["name"]])))

    def grouped(self, rows: Iterable[Row]) -> dict[str, list[Row]]:
        """Rows by their series, in the order of first appearance."""
        groups: dict[str, list[Row]] = {}
        for row in rows:
            groups.setdefault(self.series(row), []).append(row)
        return groups

    def style(self, row: Row) -> dict[str, Any]:
        """Arguments of matplotlib's `plot`."""
        kind = self._kinds.index(self._others[row["name"]])
        colour = f"#a0000{self._colour(row) % _COLOURS}"
        marker, _, filled = _MARKERS[kind % len(_MARKERS)]
        return {
            "color": colour, "marker": marker, "linestyle": _DASHES[kind % len(_DASHES)], "linewidth": 1.8,
            "markersize": 6, "markerfacecolor": colour if filled else _CARD,
            "markeredgecolor": _CARD if filled else colour,
        }  # fmt: skip

    def legend(self, rows: Iterable[Row]) -> list[tuple[str, str, str]]:
        """What the colours and symbols of these rows mean, in one order for all pictures."""
        drawn = {row["name"] for row in rows}
        precisions: dict[str, tuple[str, str, str]] = {}
        kinds: dict[str, tuple[str, str, str]] = {}
        for row in self._rows:
            if row["name"] not in drawn:
                continue
            other = self._others[row["name"]]
            colour = f"var(--c{self._colour(row) % _COLOURS})"
            symbol = _MARKERS[self._kinds.index(other) % len(_MARKERS)][1]
            if len(self._kinds) == 1 or self._by_kind:
                precisions[self.series(row)] = colour, symbol, self.series(row)
            else:
                precisions[str(row.get("precision"))] = colour, "▬", str(row.get("precision"))
                kinds[other] = "var(--text)", symbol, other or "others"
        return [*precisions.values(), *kinds.values()]

    @property
    def _by_kind(self) -> bool:
        return len(self._precisions) == 1

    def _colour(self, row: Row) -> int:
        if self._by_kind:
            return self._kinds.index(self._others[row["name"]])
        return self._precisions.index(str(row.get("precision")))


def _p50(row: Row) -> float:
    return float(row["end_to_end"]["p50_ms"])


def _trade_off(rows: Sequence[Row], looks: _Looks) -> Plot:
    figure, axis = _axis("median latency of a call (ms)", "throughput (images/s)")
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (_p50(row), -images(row))):
        if not best or images(row) > images(best[-1]):
            best.append(row)
    axis.plot([_p50(row) for row in best], [images(row) for row in best], color=_FAINT, linewidth=1, zorder=1)
    _scatter(axis, rows, looks, _p50, images)
    _scale(axis.xaxis, [_p50(row) for row in rows])
    _scale(axis.yaxis, [images(row) for row in rows])
    _number_points(figure, axis, [(_p50(row), images(row), str(row["batch"])) for row in rows])
    note = "Up and to the left is better; the number at a point is its batch."
    if len(best) > 1:
        note += " The line joins configurations that no other beats in both."
    describe = f"Throughput over median latency of {len(rows)} configurations: {_range(rows, _p50)} ms, " + (
        f"{_range(rows, images)} images/s."
    )
    return Plot("Latency against throughput", note, looks.legend(rows), _svg(figure, "trade", describe))


def _batches(rows: Sequence[Row], looks: _Looks) -> Plot | None:
    batches = sorted({row["batch"] for row in rows})
    if len(batches) < 2:
        return None
    figure, axis = _axis("batch (images in a call)", "throughput (images/s)")
    fastest_first = sorted(looks.grouped(rows).values(), key=lambda group: -max(map(images, group)))
    shown = [row for group in fastest_first[:_LINES] for row in group]
    for group in fastest_first[:_LINES]:
        line = sorted(group, key=lambda row: row["batch"])
        axis.plot([row["batch"] for row in line], [images(row) for row in line], **looks.style(line[0]))
    axis.set_xscale("log", base=2)
    ticks = _apart(batches)
    axis.set_xticks(ticks, [str(batch) for batch in ticks])
    axis.xaxis.minorticks_off()
    _scale(axis.yaxis, [images(row) for row in shown], logarithmic=False)
    note = "Where a line is level, a larger batch only makes its callers wait."
    if len(fastest_first) > _LINES:
        note += f" Of {len(fastest_first)} lines the {_LINES} highest are drawn."
    describe = f"Throughput over batches of {batches[0]} to {batches[-1]}: {_range(shown, images)} images/s."
    return Plot("Throughput by batch", note, looks.legend(shown), _svg(figure, "batches", describe))


def _accuracy(rows: Sequence[Row], looks: _Looks) -> Plot | None:
    """The fastest batch of each series, where its quality is known; of float32 it follows from the others'."""
    judged = [row for row in rows if row.get("quality")]
    measure = "top1" if any(row["quality"].get("top1") is not None for row in judged) else "agreement"
    known = [
        (max(group, key=images), value)
        for group in looks.grouped(rows).values()
        if (value := _quality(group[0], judged, measure)) is not None
    ]
    if not any(row.get("quality") for row, _ in known):
        return None
    label = "top-1 accuracy (%)" if measure == "top1" else "same class as float32 (%)"
    figure, axis = _axis("throughput of the fastest batch (images/s)", label)
    shown, values = [row for row, _ in known], {row["name"]: 100 * value for row, value in known}
    _scatter(axis, shown, looks, images, lambda row: values[row["name"]])
    _scale(axis.xaxis, [images(row) for row in shown])
    # At least one point of per cent from top to bottom: less would make noise look like a difference.
    low, high = min(values.values()), max(values.values())
    margin = max(1.0, 1.3 * (high - low)) / 2
    axis.set_ylim((low + high) / 2 - margin, (low + high) / 2 + margin)
    axis.yaxis.get_major_formatter().set_useOffset(False)
    _number_points(figure, axis, [(images(row), values[row["name"]], str(row["batch"])) for row in shown])
    judges = sorted({f"{row['quality']['images']:,}" for row in judged if "images" in row["quality"]})
    note = "Up and to the right is better." + (f" Judged on {' or '.join(judges)} images." if judges else "")
    describe = f"{label} over images/s: " + "; ".join(
        f"{looks.series(row)} {values[row['name']]:.2f} at {images(row):.4g}" for row in shown
    )
    return Plot("Accuracy against throughput", note, looks.legend(shown), _svg(figure, "accuracy", describe))


def _quality(row: Row, judged: Sequence[Row], measure: str) -> float | None:
    if row.get("quality"):
        value = row["quality"].get(measure)
        return None if value is None else float(value)
    others = [other["quality"] for other in judged if other.get("model") == row.get("model")]
    if row.get("precision") != FLOAT32 or not others:
        return None
    value = others[0].get("top1_float32") if measure == "top1" else 1.0
    return None if value is None else float(value)


def _distribution(rows: Sequence[Row], looks: _Looks) -> Plot | None:
    """Of one batch alone: calls of other sizes are no slower or faster, but other calls."""
    drawable = [row for row in rows if row.get("quantiles_ms")]
    first = quickest(drawable)
    if first is None:
        return None
    same = sorted((row for row in drawable if row["batch"] == first["batch"]), key=_p50)
    shown = same[:_DISTRIBUTIONS]
    figure, axis = _axis("share of calls (%)", "took at most (ms)")
    for row in shown:
        values = row["quantiles_ms"]
        shares = [100 * i / max(1, len(values) - 1) for i in range(len(values))]
        axis.plot(shares, values, markevery=(0.1, 0.2), **looks.style(row))
    axis.set_xlim(0, 100)
    axis.set_xticks([0, 25, 50, 75, 90, 99], ["0", "25", "50", "75", "90", "99"])
    _scale(axis.yaxis, [value for row in shown for value in row["quantiles_ms"]])
    note = "The flatter, the steadier; what rises at the right end are the slowest calls."
    if len(same) > len(shown):
        note += f" Of {len(same)} configurations the {len(shown)} of least median are drawn."
    title = f"Latency of all calls at batch {first['batch']}"
    describe = f"{title}: " + "; ".join(f"{looks.series(row)} {_p50(row):.3g} ms in the median" for row in shown)
    return Plot(title, note, looks.legend(shown), _svg(figure, "calls", describe))


def _range(rows: Sequence[Row], value: Callable[[Row], float]) -> str:
    return f"{min(map(value, rows)):.3g} to {max(map(value, rows)):.3g}"


def _axis(x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, dpi=72, layout="constrained")  # 72: a pixel is a point of the SVG
    axis = figure.subplots()
    axis.set(xlabel=x, ylabel=y)
    axis.tick_params(length=0)
    return figure, axis


def _scatter(
    axis: Any, rows: Sequence[Row], looks: _Looks, x: Callable[[Row], float], y: Callable[[Row], float]
) -> None:
    for row in rows:
        axis.plot(x(row), y(row), **{**looks.style(row), "linestyle": "none", "markersize": 8})


def _scale(side: Any, values: Sequence[float], logarithmic: bool | None = None) -> None:
    """From zero, or logarithmic where that would press the small values together; numbers are written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    low, high = min(values), max(values)
    name, limits = side.axis_name, (0.0, 1.12 * high)
    if low > 0 and (high > _LOGARITHMIC * low if logarithmic is None else logarithmic):
        getattr(side.axes, f"set_{name}scale")("log")
        side.set_major_locator(LogLocator(subs=(1.0,) if high > 1e3 * low else (1.0, 2.0, 5.0)))
        side.minorticks_off()
        limits = (low / 1.3, high * 1.3)
    getattr(side.axes, f"set_{name}lim")(*limits)
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1e3 else f"{value:g}"))


def _apart(batches: Sequence[int]) -> list[int]:
    """Those whose numbers do not touch on a logarithmic axis."""
    least = (batches[-1] / batches[0]) ** 0.06
    chosen = [batches[0]]
    for batch in batches[1:]:
        if batch >= least * chosen[-1]:
            chosen.append(batch)
    return chosen


def _number_points(figure: Any, axis: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Write a word at each point, where it covers neither another point nor another word; else leave it out."""
    figure.draw_without_rendering()  # only now is it known where points are
    places = axis.transData.transform([(x, y) for x, y, _ in points])
    taken = [(x - 4.0, y - 4.0, x + 4.0, y + 4.0) for x, y in places]
    for (x, y), (at_x, at_y, word) in zip(places, points, strict=True):
        half = 2.7 * len(word)
        for right, up in ((0, 11), (half + 7, 0), (-half - 7, 0), (0, -11), (half + 5, 8), (-half - 5, -8)):
            box = (x + right - half, y + up - 4.5, x + right + half, y + up + 4.5)
            if axis.bbox.contains(*box[:2]) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axis.annotate(
                    word, (at_x, at_y), (right, up), textcoords="offset points", ha="center", va="center", fontsize=8
                )
                break


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _svg(figure: Any, name: str, description: str) -> str:
    """The figure as an element of an HTML page, whose other pictures have other names."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    (box,) = re.findall(r'viewBox="([\d. ]+)"', text)
    inside = text[text.index(">", text.index("<svg")) + 1 :]
    inside = inside.replace("xlink:href", "href")
    inside = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", inside)
    inside = re.sub(r"#a0000(\d)", r"var(--c\1)", inside)
    for placeholder, variable in _PLACEHOLDERS.items():
        inside = inside.replace(placeholder, variable)
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(description)}">{inside.strip()}'
