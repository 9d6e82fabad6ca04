"""A benchmark's result as tables of words, for the terminal and for the page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .benchmark import REFUSED, fastest, measured

Row = Mapping[str, Any]
FLOAT32, NONE = "float32", "–"
ROWS, REFUSALS, COMPARISON, SCENARIOS = "rows", "refusals", "comparison", "scenarios"  # kinds of sheets
_VERDICTS = {"faster": "▲ faster", "slower": "▼ slower"}

# What tells configurations apart, and how people say it; "" where it goes without saying.
_WORDS: dict[str, Callable[[Any], str]] = {
    "kind": lambda kind: "" if kind in ("bundle", "onnx", None) else str(kind),
    "model": str,
    "precision": str,
    "provider": str,
    "batch": "batch {}".format,
    "threads": lambda threads: f"{threads} thread{'s' * (threads != 1)}",
    "workers": lambda workers: f"{workers} worker{'s' * (workers != 1)}",
    "spin": lambda spin: "spinning" if spin else "no spinning",
    "cuda_graphs": lambda graphs: "CUDA graph" if graphs else "no CUDA graph",
    "options": lambda options: ", ".join(f"{name}={value}" for name, value in sorted((options or {}).items())),
}
ALWAYS = ("precision", "batch")
_SAME = ("kind", "model", "provider")  # of which rows a precision can be compared with float32
_USUAL = {"workers": 1, "spin": True, "cuda_graphs": False}
_NUMBER = re.compile(r"–|-?[\d,.]+(e[-+]?\d+)?%?")


class _Column(NamedTuple):
    """Of the table of rows; `brief` ones are in the terminal's too."""

    title: str
    cell: Callable[[Row], str]
    brief: bool = True


class Sheet(NamedTuple):
    """A table, wherever it is shown; `kind` is one of the four above."""

    kind: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def short_names(rows: Sequence[Row], without: Collection[str] = ()) -> dict[str, str]:
    """By each row's name what tells it from the other rows, with precision and batch in any case.

    Args:
        rows: measured ones.
        without: labels to leave out.
    """
    shown = [label for label in _varying(rows) if label not in without]
    short = {row["name"]: _say(row, shown) for row in rows}
    unique = without or len(set(short.values())) == len(rows)
    return short if unique else {row["name"]: row["name"] for row in rows}


def common_words(rows: Sequence[Row]) -> str:
    """What the short names leave out, as all rows have it, and is not what everybody expects."""
    shared = [label for label in _WORDS if label not in ALWAYS and len({repr(row.get(label)) for row in rows}) == 1]
    return _say(rows[0], [label for label in shared if rows[0].get(label) != _USUAL.get(label)]) if rows else ""


def _varying(rows: Sequence[Row]) -> list[str]:
    """The labels of which rows have different ones; a peer may have none, which is no difference worth words."""
    given = {label: {repr(row[label]) for row in rows if row.get(label) is not None} for label in _WORDS}
    return [label for label in _WORDS if label in ALWAYS or len(given[label]) > 1]


def _say(row: Row, labels: Iterable[str]) -> str:
    return ", ".join(words for label in labels if row.get(label) is not None and (words := _WORDS[label](row[label])))


def baseline(row: Row, rows: Iterable[Row]) -> Row | None:
    """The fastest float32 of the same model, in the same runtime on the same provider; TF32 is none."""
    same = [
        other
        for other in rows
        if other.get("precision") == FLOAT32
        and (other.get("options") or {}).get("use_tf32") != "1"
        and all(other.get(name) == row.get(name) for name in _SAME)
    ]
    return fastest(same)


def images(row: Row) -> float:
    """A second, end to end."""
    return float(row["end_to_end"]["images_per_second"])


def rate(row: Row) -> str:
    """`images`, for people."""
    return number(images(row))


def number(value: Any) -> str:
    """Three digits of a number, and all that stand before the point."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return NONE if value is None or value == "" else str(value)
    if not math.isfinite(value):
        return NONE
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if abs(value) >= 1e-3 else f"{value:.2g}"


def _within(*path: str) -> Callable[[Row], str]:
    """A cell: the number at this path of a row."""

    def cell(row: Row) -> str:
        value: Any = row
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return number(value)

    return cell


def _quality(name: str) -> Callable[[Row], str]:
    """A cell: this share of a row's quality."""

    def cell(row: Row) -> str:
        share = (row.get("quality") or {}).get(name)
        return NONE if share is None else f"{share:.2%}"

    return cell


def _spread(row: Row) -> str:
    """How far the rounds lie apart: the noise, below which differences of rows say nothing."""
    rates = [images(figures) for figures in row.get("rounds", ())]
    return f"{(max(rates) - min(rates)) / images(row):.1%}" if len(rates) > 1 else NONE


def _row_columns(rows: Sequence[Row]) -> list[_Column]:
    names, top1 = short_names(rows), _quality("top1")

    def times(row: Row) -> str:
        base = baseline(row, rows)
        return NONE if base is None else f"{images(row) / images(base):.2f}"

    return [
        _Column("configuration", lambda row: names[row["name"]]),
        _Column("p50 ms", _within("end_to_end", "p50_ms")),
        _Column("p90 ms", _within("end_to_end", "p90_ms"), brief=False),
        _Column("p99 ms", _within("end_to_end", "p99_ms")),
        _Column("images/s", rate),
        _Column("× float32", times),
        _Column("rounds apart", _spread, brief=False),
        _Column("device-bound p50 ms", _within("device_bound", "p50_ms"), brief=False),
        _Column("device-bound images/s", _within("device_bound", "images_per_second"), brief=False),
        _Column("open s", _within("open_s"), brief=False),
        _Column("first call s", _within("first_run_s"), brief=False),
        _Column("memory MB", _within("memory_mb")),
        _Column("GPU memory MB", _within("gpu", "gpu_memory_mb"), brief=False),
        _Column("GPU power W", _within("gpu", "power_w"), brief=False),
        _Column("GPU clock MHz", _within("gpu", "sm_clock_mhz"), brief=False),
        _Column("golden drift", lambda row: NONE if (drift := row.get("golden_drift")) is None else f"{drift:.0e}"),
        _Column("top-1", top1),
        _Column("agreement", _quality("agreement"), brief=all(top1(row) == NONE for row in rows)),
    ]  # fmt: skip


def _text(name: str) -> Callable[[Row], str]:
    """A cell: the words under this name."""
    return lambda row: str(row.get(name) or NONE)


def _change(figure: str) -> Callable[[Row], str]:
    """A cell: by how much a figure differs from the baseline's, with the 95 % interval where it is known."""

    def cell(row: Row) -> str:
        told = (row.get("figures") or {}).get(figure) or {}
        if "ratio" not in told:
            return NONE
        low, high = told.get("low"), told.get("high")
        within = "" if low is None or high is None else f" ({low - 1:+.1%} to {high - 1:+.1%})"
        return f"{told['ratio'] - 1:+.1%}{within}"

    return cell


def _valid(row: Row) -> str:
    return "valid" if row.get("valid") else ": ".join(filter(None, ("not valid", str(row.get("reason") or ""))))


_COMPARISON = (
    _Column("configuration", _text("name")),
    _Column("verdict", lambda row: _VERDICTS.get(row.get("verdict", ""), _text("verdict")(row))),
    _Column("change of images/s", _change("images_per_second")),
    _Column("of p50", _change("p50_ms"), brief=False),
    _Column("of p99", _change("p99_ms"), brief=False),
    _Column("p value", lambda row: NONE if row.get("p") is None else f"{row['p']:.3f}"),
    _Column("why", _text("why")),
)
_SCENARIOS = (
    _Column("scenario", _text("scenario")),
    _Column("target", _text("target")),
    _Column("samples/s", _within("figures", "samples_per_second")),
    _Column("p50 ms", _within("figures", "p50_ms")),
    _Column("p90 ms", _within("figures", "p90_ms")),
    _Column("p99 ms", _within("figures", "p99_ms")),
    _Column("queries", _within("figures", "queries"), brief=False),
    _Column("samples", _within("figures", "samples"), brief=False),
    _Column("verdict", _valid),
)


def sheets(result: Mapping[str, Any], brief: bool) -> list[Sheet]:
    """The tables of a result that have rows.

    Args:
        result: see `benchmark.run`; its "comparison" is of `baseline.compare`, its "scenarios" of `run_scenario`.
        brief: with the columns that fit a terminal.
    """
    rows = sorted(measured(result), key=images, reverse=True)
    common = common_words(rows)
    refused = [row for row in result["rows"] if row["state"] == REFUSED]
    columns = [_Column("configuration", _text("name")), _Column("reason", _text("reason"))]
    title = "Measured, the fastest first" + (f"; all: {common}" if common else "")
    made = [
        _sheet(ROWS, title, _row_columns(rows), rows, brief),
        _sheet(REFUSALS, "Refused", columns, refused, brief),
        _sheet(COMPARISON, "Beside the baseline", _COMPARISON, result.get("comparison") or (), brief),
        _sheet(SCENARIOS, "Scenarios", _SCENARIOS, result.get("scenarios") or (), brief),
    ]
    return [sheet for sheet in made if sheet.rows]


def _sheet(kind: str, title: str, columns: Sequence[_Column], rows: Sequence[Row], brief: bool) -> Sheet:
    """Without the columns that have nothing to say."""
    asked = [column for column in columns if column.brief or not brief]
    told = [column for column in asked if any(column.cell(row) != NONE for row in rows)]
    return Sheet(
        kind, title, [column.title for column in told], [[column.cell(row) for column in told] for row in rows]
    )


def is_number(sheet: Sheet, column: int) -> bool:
    """Whether a column holds numbers, which stand one under the other."""
    return column > 0 and all(_NUMBER.fullmatch(cells[column]) for cells in sheet.rows)
