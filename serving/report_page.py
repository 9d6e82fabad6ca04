"""The HTML page of a benchmark's result, with its style and its pictures inside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from keras_resnets.extras import MissingExtraError

from .benchmark import measured
from .plots import Plot, plots
from .sheets import Row, Sheet, is_number, sheets

_UNITS = {"gb": "GB", "mb": "MB", "w": "W", "mhz": "MHz"}  # what a name of the conditions may end in


def page(result: Mapping[str, Any], sentences: Sequence[str]) -> str:
    """The page's text.

    Args:
        result: see `benchmark.run`.
        sentences: to begin with, the first in large letters.
    """
    first, *more = sentences
    title = _title(result)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="headline">{escape(first)}</p>',
        *(f'<p class="more">{escape(sentence)}</p>' for sentence in more),
        *(f'<p class="warning"><b>Warning:</b> {escape(str(warning))}</p>' for warning in result.get("warnings") or ()),
        _pictures(measured(result)),
        *map(_table, sheets(result, brief=False)),
        '<div class="columns"><section><h2>Conditions</h2><dl>',
        *(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _conditions(result)),
        "</dl></section>",
        "<section><h2>How to read this</h2><ul>",
        *(f"<li>{escape(sentence)}</li>" for sentence in _explanation(result)),
        "</ul></section></div>",
    ]
    return _PAGE.substitute(title=escape(title), body="\n".join(parts))


def _title(result: Mapping[str, Any]) -> str:
    every = result["rows"] or result.get("scenarios") or ()
    what = dict.fromkeys(str(row.get("model") or row.get("target")) for row in every)
    conditions = result.get("conditions") or {}
    machine = conditions.get("gpu") or conditions.get("processor")
    return "Benchmark" + (f" of {', '.join(what)}" if what else "") + (f" on {machine}" if machine else "")


def _pictures(rows: Sequence[Row]) -> str:
    try:
        drawn = plots(rows)
    except MissingExtraError as error:
        return f'<p class="warning">Without plots: {escape(str(error))}</p>'
    return f'<div class="columns">{"".join(map(_figure, drawn))}</div>' if drawn else ""


def _figure(plot: Plot) -> str:
    legend = "".join(
        f'<li><span style="color:{colour}" aria-hidden="true">{symbol}</span> {escape(words)}</li>'
        for colour, symbol, words in plot.legend
    )
    return (
        f"<figure><h2>{escape(plot.title)}</h2>{plot.svg}"
        f'<ul class="legend">{legend}</ul><figcaption>{escape(plot.note)}</figcaption></figure>'
    )


def _table(sheet: Sheet) -> str:
    kinds = [' class="number"' if is_number(sheet, i) else "" for i in range(len(sheet.columns))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in zip(kinds, sheet.columns, strict=True)
    )
    lines = "".join(
        f'<tr><th scope="row"><span>{escape(cells[0])}</span></th>'
        + "".join(
            f"<td{kind}><span>{escape(text)}</span></td>" for kind, text in zip(kinds[1:], cells[1:], strict=True)
        )
        + "</tr>\n"
        for cells in sheet.rows
    )
    title = escape(sheet.title)
    return (
        f'<section class="scroll {sheet.kind}" tabindex="0" aria-label="{title}"><table>'
        f"<caption><span>{title}</span></caption><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table></section>"
    )


def _conditions(result: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """What the figures were measured on, as names and values for people."""
    for name, value in (result.get("conditions") or {}).items():
        if value in (None, [], {}, ""):
            continue
        words, _, unit = name.rpartition("_")
        known = unit in _UNITS and words
        shown = (words if known else name).replace("cpus", "CPUs").replace("gpu", "GPU")
        # The package's own name is no words.
        yield (
            shown if name == "keras_resnets" else shown.replace("_", " "),
            _said(name, value) + (f" {_UNITS[unit]}" if known else ""),
        )


def _said(name: str, value: Any) -> str:
    if name == "busy_before":
        return f"{value:.0%} of the CPUs' time, by other programs"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _explanation(result: Mapping[str, Any]) -> Iterable[str]:
    rounds = (result.get("conditions") or {}).get("rounds")
    if result["rows"]:
        yield (
            "Each run had a process of its own, and configurations took turns. A figure is the median of "
            f"{rounds or 'the'} rounds; a difference smaller than how far the rounds lie apart says nothing."
        )
        yield from _FIGURES
    if result.get("comparison"):
        yield (
            "Beside the baseline: by how much a figure changed, with the 95% interval, and the chance that any row "
            "differs so much if nothing had changed."
        )
    if result.get("scenarios"):
        yield (
            "The scenarios are load patterns as MLPerf Inference describes them. These are not MLPerf results: nobody "
            "submitted or reviewed them."
        )


_FIGURES = (
    "p50 and p99: half of the calls, and 99% of them, took at most so long. A call is a whole batch, from tensors in "
    "the process's memory to outputs there.",
    "Device-bound: inputs and outputs lie where the network computes, so that nothing has to be copied.",
    "× float32: images/s over the best that float32 gave at any batch, of the same model, runtime and provider.",
    "Golden drift: the largest difference of the outputs to those stored in the bundle, over the largest of these. A "
    "configuration whose outputs are wrong, or that ran otherwise than asked, is refused and gets no figures.",
)
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
  :root {
    --back: #f7f7f5; --card: #fff; --text: #1d1f23; --faint: #646a73; --line: #dcdfe4; --bad: #b3261e; --note: #fff4d6;
    --c0: #0068a8; --c1: #c84c00; --c2: #00805c; --c3: #a0438f; --c4: #7a6400; --c5: #4a4f57;
  }
  @media (prefers-color-scheme: dark) {
    :root {
      --back: #15171a; --card: #1e2125; --text: #e8eaed; --faint: #9aa1ab; --line: #363b42;
      --bad: #ff8a80; --note: #3a3115;
      --c0: #63b3f0; --c1: #ff9a56; --c2: #3fcfa2; --c3: #e69ad6; --c4: #e3d04a; --c5: #c3c7cd;
    }
  }
  * { box-sizing: border-box; }
  body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
  main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; overflow-wrap: anywhere; }
  h1 { font-size: 1rem; margin: 0; color: var(--faint); font-weight: 600; }
  h2, caption { font-size: 1rem; font-weight: 600; margin: 0 0 .5rem; text-align: left; }
  p { margin: .5rem 0; }
  .headline { font-size: clamp(1.35rem, 1rem + 1.8vw, 2rem); line-height: 1.25; font-weight: 650;
    margin: .5rem 0 .75rem; }
  .more { font-size: 1.1rem; }
  .warning { background: var(--note); border-left: .3rem solid var(--c4); border-radius: .3rem; padding: .5rem .75rem; }
  .columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
    gap: 1rem; margin-top: 1rem; }
  figure, section { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
    padding: clamp(.6rem, 2vw, 1rem); min-width: 0; }
  main > section { margin-top: 1rem; }
  svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
  svg text { font-family: system-ui, sans-serif !important; }
  .legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .5rem 0; padding: 0;
    font-size: .9rem; }
  figcaption { color: var(--faint); font-size: .9rem; }
  .scroll { overflow-x: auto; }
  :focus-visible { outline: 3px solid var(--c0); outline-offset: 2px; }
  table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums;
    overflow-wrap: normal; }
  th, td { text-align: left; vertical-align: top; padding: .2rem .9rem .2rem 0;
    border-bottom: 1px solid var(--line); }
  th { font-weight: normal; }
  thead th { color: var(--faint); vertical-align: bottom; }
  tbody th, thead th:first-child { position: sticky; left: 0; background: var(--card); }
  td span, tbody th span { display: inline-block; width: max-content; max-width: min(34rem, 60vw); }
  tbody th span { max-width: min(22rem, 36vw); overflow-wrap: anywhere; }
  caption span { position: sticky; left: 0; display: inline-block; max-width: min(60rem, 100vw - 4.2rem); }
  .number { text-align: right; white-space: nowrap; }
  thead .number { white-space: normal; }
  .refusals tbody th { color: var(--bad); }
  .refusals td { width: 100%; }
  .refusals td span { width: auto; max-width: none; min-width: 9rem; }
  dl { display: grid; grid-template-columns: minmax(6rem, auto) 1fr; gap: .25rem 1rem; margin: 0; font-size: .92rem; }
  dt { color: var(--faint); }
  dd { margin: 0; }
  section > ul { margin: 0; padding-left: 1.2rem; }
</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")
