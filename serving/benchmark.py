"""Runs contenders in turn, each run in a process of its own, and keeps what they measured with its conditions."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from keras_resnets.atomic import atomic_file
from keras_resnets.bundle import MANIFEST, PROVIDERS, Bundle, sha256
from keras_resnets.machine import usable_cpus
from keras_resnets.untrusted import parse_json

from .apart import NoAnswerError, answer_of
from .conditions import busy, conditions
from .contender import Configuration, RefusedError

FORMAT, FORMAT_VERSION = "keras-resnets-bench", 1
MEASURED, REFUSED = "measured", "refused"
_BUSY = 0.15  # share of the CPU time that others may use before figures are doubtful
_TIMEOUT = 900.0  # seconds of one process; TensorRT builds for minutes


class BenchmarkError(ValueError):
    """Nothing to measure, or a result that cannot be read."""


class Contender(NamedTuple):
    """Who takes part.

    Args:
        name: what it is called; no two have the same.
        labels: what tables and plots tell of it: kind ("bundle", "onnx", or a peer's), model, precision, provider,
            batch, threads, workers, spin, cuda_graphs, bundle (its hash), quality (beside float32, see Variant).
        program: that prints figures as `contender.measure` gives them, as JSON in its last line.
        request: for its standard input, as JSON; seconds are added.
    """

    name: str
    labels: Mapping[str, Any]
    program: Sequence[str]
    request: Mapping[str, Any]


def contender(what: Configuration, model: str | None = None) -> Contender:
    """A configuration of a bundle or an ONNX file as one who takes part.

    Args:
        what: see there.
        model: what it is called; by default as its folder or file.

    Raises:
        BundleError: when the bundle cannot be read, or lacks the precision.
    """
    labels: dict[str, Any] = {**asdict(what), "threads": what.intra_threads}
    source = Path(labels.pop("source"))
    if source.is_dir():
        bundle = Bundle.open(source)
        variant = bundle.variant(what.precision)
        quality = dict(variant.quality) if variant.quality else None
        labels |= {
            "kind": "bundle", "model": model or source.resolve().name, "architecture": bundle.manifest.model,
            "precision": variant.precision, "quality": quality, "bundle": sha256(source / MANIFEST),
        }  # fmt: skip
    else:
        if not source.is_file():
            raise BenchmarkError(f"{source} is neither a bundle nor an ONNX file")
        labels |= {
            "kind": "onnx",
            "model": model or source.name,
            "precision": what.precision or "as it is",
            "quality": None,
        }
    program = [sys.executable, "-m", "keras_resnets.serving.contender"]
    return Contender(name_of(labels), labels, program, asdict(what))


def name_of(labels: Mapping[str, Any]) -> str:
    """What people call a configuration; equal only for equal ones."""
    parts = [labels["model"], labels["precision"], labels["provider"], f"batch {labels['batch']}"]
    if labels["provider"] in ("cpu", "openvino"):
        workers, threads = labels.get("workers", 1), labels["threads"]
        parts.append(f"{workers} × {threads} threads" if workers > 1 else f"{threads} thread{'s' * (threads > 1)}")
    parts += ["no spinning"] * (not labels.get("spin", True)) + ["CUDA graph"] * bool(labels.get("cuda_graphs"))
    parts += [f"{name}={value}" for name, value in sorted((labels.get("options") or {}).items())]
    return ", ".join(parts)


def sweep(
    sources: Sequence[str | Path],
    *,
    providers: Sequence[str] = ("cpu",),
    precisions: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] | None = None,
    workers: Sequence[int] = (1,),
    cuda_graphs: Sequence[bool] = (False,),
    options: Mapping[str, str] | None = None,
) -> list[Contender]:
    """Every combination, but more threads than there are CPUs.

    Args:
        sources: bundles, and ONNX files, which have one precision.
        providers: "cpu", "openvino", "cuda", "tensorrt".
        precisions: of the bundles; by default all that they have for the provider.
        batches, threads, workers, cuda_graphs, options: see `Configuration`.

    Raises:
        BenchmarkError: for an unknown provider, or when nothing is left.
        BundleError: when a bundle cannot be read, or lacks a precision.
    """
    if unknown := [name for name in providers if name not in PROVIDERS]:
        raise BenchmarkError(f"unknown provider {unknown[0]!r}; there are {', '.join(PROVIDERS)}")
    cpus = usable_cpus()
    names = [Path(source).resolve().name for source in dict.fromkeys(sources)]
    counts: Sequence[int | None] = threads or [None]
    chosen: list[Contender] = []
    for source, provider in product(map(Path, sources), providers):
        model = str(source) if names.count(source.resolve().name) > 1 else None
        for precision in _precisions(source, provider, precisions):
            for batch, workers_, graphs in product(batches, workers, cuda_graphs):
                for threads_ in counts:
                    with suppress(RefusedError):
                        what = Configuration(
                            str(source), precision, provider, batch, threads_, workers_,
                            cuda_graphs=graphs, options=options or {},
                        )  # fmt: skip
                        chosen.append(contender(what, model))
    if not chosen:
        raise BenchmarkError(f"no configuration is left: this process may use {cpus} CPUs, and all want more threads")
    return list({one.name: one for one in chosen}.values())


def _precisions(source: Path, provider: str, asked: Sequence[str] | None) -> Sequence[str | None]:
    if not source.is_dir():
        return [None]
    variants = Bundle.open(source).manifest.variants
    return asked or [row.precision for row in variants if provider in row.providers] or [variants[0].precision]


def run(
    contenders: Sequence[Contender],
    *,
    rounds: int = 3,
    seconds: float = 2.0,
    say: Callable[[str, int, int], None] = lambda name, done, all_: None,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
    timeout: float = _TIMEOUT,
) -> dict[str, Any]:
    """Measure contenders in turn, A B C A B C; returns a result, see docs/benchmarks.md.

    One that is refused, fails or is out of time is not run again, and the result says why. Figures are the medians of
    the rounds.

    Args:
        contenders: see `sweep` and `contender`.
        rounds: runs of each.
        seconds: of each timed loop.
        say: called with (name, runs done, runs in all) before each run.
        keep: called with the result so far after each round, so that little is lost when somebody interrupts.
        timeout: seconds of a process.
    """
    if rounds < 1 or seconds <= 0:
        raise BenchmarkError(f"rounds must be at least 1 and seconds more than 0, not {rounds} and {seconds}")
    others, known = busy(), conditions()
    known |= {"seconds": seconds, "order": "in turn, each run in a process of its own", "busy_before": round(others, 3)}
    told: dict[str, list[dict[str, Any]]] = {one.name: [] for one in contenders}
    reasons: dict[str, str] = {}
    result: dict[str, Any] = {}
    warnings = [_busy_warning(others)] if others > _BUSY else []
    for number in range(rounds):
        for place, one in enumerate(contenders):
            if one.name in reasons:
                continue
            say(one.name, number * len(contenders) + place, rounds * len(contenders))
            figures = _measured(one, seconds, timeout)
            if why := figures.get("refused"):
                reasons[one.name] = why
            else:
                told[one.name].append(figures)
        rows = [_row(one, told[one.name], reasons.get(one.name)) for one in contenders]
        result = as_result(rows, {**known, "rounds": number + 1}, warnings)
        keep(result)
    return result


def once(one: Contender, seconds: float, timeout: float = _TIMEOUT) -> dict[str, Any]:
    """The row of a contender that was run once; who asks for many looks at the machine himself."""
    figures = _measured(one, seconds, timeout)
    why = figures.get("refused")
    return _row(one, [] if why else [figures], why)


def as_result(
    rows: Sequence[Mapping[str, Any]], known: Mapping[str, Any], warnings: Sequence[str] = (), **more: Any
) -> dict[str, Any]:
    """Rows and the conditions they were measured under, in the form that is saved, reported and compared."""
    return {
        "format": FORMAT, "format_version": FORMAT_VERSION, "conditions": dict(known), "warnings": list(warnings),
        "rows": list(rows), **more,
    }  # fmt: skip


def _busy_warning(share: float) -> str:
    return f"other programs used {share:.0%} of the CPUs before the first run: the figures may be too slow"


def _row(one: Contender, rounds: Sequence[dict[str, Any]], why: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": one.name, **one.labels, "state": REFUSED if why else MEASURED, "reason": why}
    return row if why else row | medians(rounds) | {"rounds": list(rounds)}


def medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each figure, of figures within figures too; what is no number is the first round's."""
    row: dict[str, Any] = {}
    for name, value in rounds[0].items():
        values = [figures[name] for figures in rounds if figures.get(name) is not None]
        if isinstance(value, Mapping):
            row[name] = medians(values)
        elif isinstance(value, list) and value and all(len(other) == len(value) for other in values):
            row[name] = [_median(column) for column in zip(*values, strict=True)]
        else:
            row[name] = _median(values) if values else value
    return row


def _median(values: Sequence[Any]) -> Any:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return statistics.median(values) if numbers else values[0]


def _measured(one: Contender, seconds: float, timeout: float) -> dict[str, Any]:
    """The figures of one run, or {"refused": why}."""
    try:
        return answer_of(one.program, {**one.request, "seconds": seconds}, timeout)
    except NoAnswerError as error:
        return {"refused": str(error)}


def save(result: Mapping[str, Any], file: str | Path) -> None:
    """Write a result as JSON, at once or not at all."""
    with atomic_file(file) as draft:
        draft.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(file: str | Path) -> dict[str, Any]:
    """A result that was saved.

    Raises:
        BenchmarkError: when the file is missing, or is none.
    """
    try:
        result = parse_json(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{file} cannot be read: {error}") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise BenchmarkError(f"{file} is not a result of keras-resnets bench")
    if result.get("format_version") != FORMAT_VERSION:
        raise BenchmarkError(f"{file} has format version {result.get('format_version')}, not {FORMAT_VERSION}")
    return result


def measured(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows with figures."""
    return [row for row in result["rows"] if row["state"] == MEASURED]


def fastest(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of most images/s; None of none."""
    return max(rows, key=lambda row: row["end_to_end"]["images_per_second"], default=None)


def quickest(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of least median latency; None of none."""
    return min(rows, key=lambda row: row["end_to_end"].get("p50_ms", math.inf), default=None)
