"""Shows a benchmark's result: a table in the terminal, and one HTML file that needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keras_resnets.atomic import atomic_file

from .benchmark import measured, quickest
from .report_page import page
from .sheets import FLOAT32, REFUSALS, Row, baseline, images, is_number, number, rate, sheets, short_names

_ENOUGH = 0.95  # of the most images/s


def headline(result: Mapping[str, Any]) -> list[str]:
    """What a reader wants to know first: what is fastest, what answers soonest, and what was refused.

    Args:
        result: see `benchmark.run`.

    Returns:
        A few sentences; the first is what matters most.
    """
    rows, every = measured(result), len(result["rows"])
    if not every:
        scenarios = _scenario_sentences(result)
        return [*scenarios, "MLPerf-style; not an MLPerf result."] if scenarios else ["There was nothing to run."]
    if not rows:
        return [f"No configuration was measured: {_of(every, every)} refused."]
    sentences = [*_speed(rows), *_latency(rows)]
    if refused := every - len(rows):
        sentences.append(f"{_of(refused, every)} refused; the reasons are below.")
    if verdicts := Counter(row["verdict"] for row in result.get("comparison") or () if "verdict" in row):
        told = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in sorted(verdicts, key=_worst_first))
        sentences.append(f"Beside the baseline: {told}.")
    return sentences


def _worst_first(verdict: str) -> tuple[bool, bool, str]:
    return "slower" not in verdict, "refused" not in verdict, verdict


def _speed(rows: Sequence[Row]) -> Iterable[str]:
    best = max(rows, key=images)
    says = "is fastest:" if len(rows) > 1 else "gives"
    yield f"{short_names(rows)[best['name']]} {says} {rate(best)} images/s{_gain(best, rows)}."
    if more := " ".join(filter(None, (_accuracy(best), _enough(best, rows)))):
        yield more


def _latency(rows: Sequence[Row]) -> Iterable[str]:
    quick = quickest(rows) or rows[0]
    calls = quick["end_to_end"]
    most = f"of its calls take at most {number(calls.get('p50_ms'))} ms, 99% at most {number(calls.get('p99_ms'))} ms."
    if len(rows) == 1:
        yield f"Half {most}"
    else:
        who = "It also" if quick is max(rows, key=images) else short_names(rows)[quick["name"]]
        yield f"{who} has the lowest latency: half {most}"


def _scenario_sentences(result: Mapping[str, Any]) -> list[str]:
    """The figure that each scenario is about."""
    told = []
    for row in result.get("scenarios") or ():
        metric = str(row.get("metric"))
        value = number((row.get("figures") or {}).get(metric))
        words = f"{metric.removesuffix('_ms')} {value} ms" if metric.endswith("_ms") else f"{value} samples/s"
        who = ", ".join(str(row[name]) for name in ("scenario", "target") if row.get(name))
        told.append(f"{who}: {words if row.get('valid') else 'not valid'}.")
    return told


def _of(some: int, every: int) -> str:
    if some == every:
        return "the only one was" if every == 1 else f"all {every} were"
    return f"{some} of {every} configurations {'was' if some == 1 else 'were'}"


def _gain(best: Row, rows: Sequence[Row]) -> str:
    base = baseline(best, rows)
    if base is None or base is best:
        return ""
    times = images(best) / images(base)
    return f", {f'{times:.1f} times' if times >= 1.05 else 'hardly more than'} float32's best ({rate(base)})"


def _accuracy(row: Row) -> str:
    """What a lower precision costs, or that nobody knows."""
    quality = row.get("quality")
    if not quality:
        known = row.get("precision") in (None, FLOAT32, "as it is")
        return "" if known else "What it costs in accuracy was not measured."
    judged = f"{quality['images']:,} images" if "images" in quality else "the images that it was judged on"
    if quality.get("top1") is not None and quality.get("top1_float32") is not None:
        return f"Its top-1 accuracy is {quality['top1']:.2%}, float32's {quality['top1_float32']:.2%}, on {judged}."
    return f"It agrees with float32 on {quality['agreement']:.2%} of {judged}." if "agreement" in quality else ""


def _enough(best: Row, rows: Sequence[Row]) -> str:
    """The least batch that is about as fast: who waits for an answer prefers it."""
    series = short_names(rows, without=("batch",))
    same = [
        row for row in rows if series[row["name"]] == series[best["name"]] and images(row) >= _ENOUGH * images(best)
    ]
    least = min(same, key=lambda row: row["batch"])
    if least["batch"] == best["batch"]:
        return ""
    return f"Batch {least['batch']} gives {images(least) / images(best):.0%} of its images/s already."


def print_table(result: Mapping[str, Any], console: Console) -> None:
    """Print the headline, the tables and the warnings.

    Args:
        result: see `benchmark.run`.
        console: where to.
    """
    first, *more = headline(result)
    console.print(Text(first, "bold"))
    for sentence in more:
        console.print(Text(sentence))
    for sheet in sheets(result, brief=True):
        refused = sheet.kind == REFUSALS
        table = Table(
            title=Text(sheet.title), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False,
            row_styles=["dim"] if refused else None,
        )  # fmt: skip
        numbers = [is_number(sheet, i) for i in range(len(sheet.columns))]
        for i, name in enumerate(sheet.columns):
            if numbers[i]:
                title = name.replace(" ", "\n") if " " in name else f"\n{name}"
                table.add_column(title, justify="right", no_wrap=True)
            else:  # in line with the second line of the others
                style = "red" if refused and not i else None
                table.add_column("\n" * any(numbers) + name, style=style, overflow="fold")
        for cells in sheet.rows:
            table.add_row(*map(Text, cells))
        console.print(table)
    for warning in result.get("warnings") or ():
        console.print(Text(f"warning: {warning}", "yellow"))


def write_html(result: Mapping[str, Any], file: str | Path) -> None:
    """Write a page for people, at once or not at all: one file that loads nothing.

    Without matplotlib it has no plots, and says so.

    Args:
        result: see `benchmark.run`.
        file: to write or to replace.
    """
    text = page(result, headline(result))
    with atomic_file(file) as draft:
        draft.write_text(text, encoding="utf-8")
