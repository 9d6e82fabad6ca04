"""The commands `keras-resnets bench` and `tune`: parse, call the library, print."""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras_resnets.cli_serve import API_KEY

_PROVIDERS = ("cpu", "openvino", "cuda", "tensorrt")  # those of keras_resnets.bundle, which loads NumPy
_SLOWER = 3  # exit status
_ROUNDS, _ROUNDS_TO_COMPARE = 3, 5
_SCENARIOS = ("single-stream", "multi-stream", "server", "offline")


def add_bench(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `bench` to the program's commands."""
    parser = command(
        commands, "bench", _bench, "measure bundles and ONNX files in ONNX Runtime",
        "  keras-resnets bench digits                                every precision, batches of 1, 8 and 32\n"
        "  keras-resnets bench digits --batch 1,16 --threads 1,2 --rounds 5 --out results\n"
        "  keras-resnets bench digits --compare other.onnx --peer savedmodel --peer openvino\n"
        "  keras-resnets bench digits --provider cuda --cuda-graphs both --provider-option use_tf32=0\n"
        "  keras-resnets bench digits --scenario server --p99 20 --precision int8\n"
        "  keras-resnets bench digits --scenario offline --url http://127.0.0.1:8000\n"
        "  keras-resnets bench digits --baseline results/bench.json  what became slower since",
    )  # fmt: skip
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="bundles, and ONNX files from anywhere")
    what = parser.add_argument_group("what is measured: every combination")
    what.add_argument(
        "--provider", type=words, default=("cpu",), metavar="LIST", help=f"of {', '.join(_PROVIDERS)} (default: cpu)"
    )
    what.add_argument("--precision", type=words, metavar="LIST", help="default: all that are for the provider")
    what.add_argument("--batch", type=_numbers, default=(1, 8, 32), metavar="LIST", help="images (default: 1,8,32)")
    what.add_argument("--threads", type=_numbers, metavar="LIST", help="of an operator (default: the CPUs ÷ workers)")
    what.add_argument("--workers", type=_numbers, default=(1,), metavar="LIST", help="calls at once (default: 1)")
    what.add_argument("--cuda-graphs", choices=("no", "yes", "both"), default="no", help="default: no")
    what.add_argument(
        "--provider-option", action="append", default=[], metavar="NAME=VALUE", help="ONNX Runtime's own; repeatable"
    )
    others = parser.add_argument_group("others, in the same run, in turn")
    others.add_argument("--compare", action="append", default=[], metavar="FILE", help="an ONNX file; repeatable")
    others.add_argument(
        "--peer", action="append", default=[], metavar="NAME",
        help="savedmodel (the bundle's, in TensorFlow), openvino (its own runtime), keras:ResNet50 (keras.applications'"
        " own export), torchvision:NAME, timm:NAME (through torch.onnx), torch:NAME (PyTorch itself); repeatable",
    )  # fmt: skip
    others.add_argument("--peer-python", metavar="PYTHON", help="one that has torch, for torch's peers")
    _add_scenarios(parser)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--rounds", type=int,
        help=f"processes of each configuration (default: {_ROUNDS}; {_ROUNDS_TO_COMPARE} with --baseline)",
    )  # fmt: skip
    how.add_argument("--seconds", type=float, default=2.0, help="of each timed loop (default: %(default)g)")
    how.add_argument("--baseline", type=Path, metavar="JSON", help="an older result; status 3 if something got slower")
    how.add_argument("--out", type=Path, default=Path("bench"), help="folder for bench.json and report.html (bench)")
    how.add_argument("--list", action="store_true", help="show the configurations, and measure nothing")


def _add_scenarios(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("MLPerf-style scenarios instead (not MLPerf results), through mlcommons-loadgen")
    group.add_argument("--scenario", type=words, metavar="LIST", help=f"of {', '.join(_SCENARIOS)}, or all")
    group.add_argument(
        "--p99", type=float, default=15.0, metavar="MS", help="the server scenario's bound (default: 15)"
    )
    group.add_argument("--url", help=f"ask this running server, which serves the bundle, over HTTP (key: {API_KEY})")
    group.add_argument("--grpc", metavar="HOST:PORT", help="or this one over gRPC")
    group.add_argument("--model", metavar="NAME", help="what the server calls it (default: as its folder)")


def words(text: str) -> tuple[str, ...]:
    """What stands between the commas, for an option's type.

    Raises:
        argparse.ArgumentTypeError: when there is nothing.
    """
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise argparse.ArgumentTypeError("it is empty")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers with commas between them, as 1,8,32, not {text!r}") from None
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"numbers from 1, not {min(numbers)}")
    return numbers


def _options(pairs: Sequence[str]) -> dict[str, str]:
    split = {name: value for name, gap, value in (pair.partition("=") for pair in pairs) if gap}
    if len(split) != len(pairs):
        raise ValueError(f"--provider-option wants NAME=VALUE, once for each name, not {' '.join(pairs)}")
    return split


def _bench(options: argparse.Namespace) -> int:
    from rich.console import Console

    from keras_resnets.serving import benchmark, report

    console = Console(width=None if sys.stdout.isatty() else 200)
    old = benchmark.load(options.baseline) if options.baseline else None
    if options.scenario or options.url or options.grpc:
        result = _scenarios(options, console)
    else:
        with tempfile.TemporaryDirectory() as folder:
            chosen = _contenders(options, Path(folder))
            if options.list:
                for one in chosen:
                    console.print(one.name, highlight=False)
                return 0
            usual = _ROUNDS_TO_COMPARE if old else _ROUNDS
            with _progress(console) as say:
                result = benchmark.run(
                    chosen, rounds=usual if options.rounds is None else options.rounds, seconds=options.seconds,
                    say=say, keep=lambda result: benchmark.save(result, options.out / "bench.json"),
                )  # fmt: skip
    status = _compared(old, result) if old else 0
    benchmark.save(result, options.out / "bench.json")
    report.write_html(result, options.out / "report.html")
    report.print_table(result, console)
    console.print(f"wrote {options.out / 'bench.json'} and {options.out / 'report.html'}", highlight=False)
    if not benchmark.measured(result) and not any(row["valid"] for row in result.get("scenarios", ())):
        raise benchmark.BenchmarkError("nothing gave figures; the table says why")
    return status


def _contenders(options: argparse.Namespace, folder: Path) -> list[Any]:
    from keras_resnets.serving import benchmark

    graphs = {"no": (False,), "yes": (True,), "both": (False, True)}[options.cuda_graphs]
    chosen = benchmark.sweep(
        [*options.bundles, *options.compare],
        providers=options.provider, precisions=options.precision, batches=options.batch, threads=options.threads,
        workers=options.workers, cuda_graphs=graphs, options=_options(options.provider_option),
    )  # fmt: skip
    if options.peer:
        from keras_resnets.peers import peer_contenders

        chosen += peer_contenders(
            options.peer, options.bundles[0], batches=options.batch, threads=options.threads, folder=folder,
            python=options.peer_python, providers=options.provider, precisions=options.precision,
        )  # fmt: skip
    return chosen


def _scenarios(options: argparse.Namespace, console: Any) -> dict[str, Any]:
    """Every scenario, each in a process of its own."""
    from keras_resnets.serving import benchmark
    from keras_resnets.serving.conditions import conditions
    from keras_resnets.serving.scenarios import run_apart

    asked = options.scenario or _SCENARIOS
    names = _SCENARIOS if "all" in asked else asked
    if unknown := [name for name in names if name not in _SCENARIOS]:
        raise ValueError(f"there is no scenario {unknown[0]!r}; there are {', '.join(_SCENARIOS)}, and all")
    if len(options.bundles) > 1:
        raise ValueError(f"scenarios are of one bundle, not {len(options.bundles)}")
    rows = []
    with _progress(console) as say:
        for number, name in enumerate(names):
            say(name, number, len(names))
            request = {"scenario": name, "target": _target(options), "seconds": options.seconds, "p99_ms": options.p99}
            rows.append(run_apart(request))
    return benchmark.as_result([], conditions() | {"seconds": options.seconds, "rounds": 1}, scenarios=rows)


def _target(options: argparse.Namespace) -> dict[str, Any]:
    """Who answers: a running server, or the engine with the server's batcher."""
    bundle = Path(options.bundles[0])
    only = {"bundle": str(bundle), "precision": (options.precision or (None,))[0]}
    if options.url and options.grpc:
        raise ValueError("one server at a time: --url or --grpc")
    if options.url:
        key = {"api_key": os.environ[API_KEY]} if API_KEY in os.environ else {}
        return {"kind": "http", "url": options.url, "model": options.model or bundle.resolve().name, **only, **key}
    if options.grpc:
        return {"kind": "grpc", "address": options.grpc, "model": options.model or bundle.resolve().name, **only}
    chosen = {
        "provider": options.provider[0], "workers": options.workers[0], "max_batch": max(options.batch),
        "threads": (options.threads or (None,))[0], "cuda_graphs": options.cuda_graphs == "yes",
    }  # fmt: skip
    return {"kind": "engine", **only, **chosen}


def _compared(old: Mapping[str, Any], result: dict[str, Any]) -> int:
    """Put the comparison into the result; returns the exit status."""
    from keras_resnets.serving import baseline

    result["comparison"] = baseline.compare(old, result)
    result["warnings"] += baseline.cautions(old, result)
    return _SLOWER if baseline.regressions(result["comparison"]) else 0


@contextmanager
def _progress(console: Any) -> Iterator[Callable[[str, int, int], None]]:
    """A bar, with what is running and when all will be done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


def add_tune(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `tune` to the program's commands."""
    parser = command(
        commands, "tune", _tune, "find by measurement how a bundle is served best on this machine",
        "  keras-resnets tune digits                                    most images/s; serve then uses it\n"
        "  keras-resnets tune digits --target latency\n"
        "  keras-resnets tune digits --p99 20ms --max-accuracy-drop 0.5 --budget 5m --out tuning\n"
        "  keras-resnets tune digits --show                             what was found before\n"
        "  keras-resnets tune digits --forget",
    )  # fmt: skip
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--target", choices=("throughput", "latency"), default="throughput", help="default: throughput")
    parser.add_argument("--p99", type=_milliseconds, metavar="MS", help="99 of 100 requests must not take longer")
    parser.add_argument(
        "--max-accuracy-drop", type=float, default=0.5, metavar="POINTS",
        help="percentage points of top-1 that a lower precision may lose beside float32; where the bundle does not know"
        " its top-1, of the images on which both agree (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument("--provider", type=words, metavar="LIST", help="that may be used (default: all active ones)")
    parser.add_argument("--budget", type=_seconds, default=600.0, metavar="TIME", help="as 90s or 10m (default: 10m)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write bench.json and report.html there, too")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--show", action="store_true", help="measure nothing; show what was found")
    what.add_argument("--forget", action="store_true", help="measure nothing; serve with the defaults again")


def _milliseconds(text: str) -> float:
    return _number(text.removesuffix("ms"), "milliseconds, as 20 or 20ms", text)


def _seconds(text: str) -> float:
    scale = 60 if text.endswith("m") else 1
    return scale * _number(text.rstrip("sm"), "a time, as 90s or 10m", text)


def _number(digits: str, what: str, text: str) -> float:
    try:
        value = float(digits)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{what}, not {text!r}") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{what}, and more than 0, not {text!r}")
    return value


def _tune(options: argparse.Namespace) -> int:
    from rich.console import Console

    from keras_resnets.serving import benchmark, report, tuned
    from keras_resnets.serving.tune import Goal, tune

    console = Console(width=None if sys.stdout.isatty() else 200)
    if options.show or options.forget:
        return _known(options, console)
    goal = Goal(options.target, options.p99, options.max_accuracy_drop)
    with console.status("looking at the providers") as status:
        found, result = tune(options.bundle, goal, providers=options.provider, budget=options.budget, say=status.update)
    if options.out:
        benchmark.save(result, options.out / "bench.json")
        report.write_html(result, options.out / "report.html")
    report.print_table(result, console)
    _print_served(result, console)
    file = tuned.keep(options.bundle, found)
    for line in _conclusion(found):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"kept in {file}; keras-resnets serve {options.bundle} uses it", highlight=False, soft_wrap=True)
    return 0


def _known(options: argparse.Namespace, console: Any) -> int:
    from keras_resnets.bundle import Bundle
    from keras_resnets.serving import tuned

    found = tuned.known(Bundle.open(options.bundle).path)
    if found is None:
        console.print(f"nothing was found yet for {options.bundle} on this machine", highlight=False)
        return 0
    for line in _conclusion(found):
        console.print(line, highlight=False, soft_wrap=True)
    if options.forget:
        tuned.forget(options.bundle)
        console.print("forgotten", highlight=False)
    return 0


def _conclusion(found: Any) -> Iterator[str]:
    yield str(found)
    evidence = found.evidence
    if "times_the_defaults" in evidence:
        yield (
            f"served {evidence['images_per_second']:,.1f} images/s, {evidence['times_the_defaults']:.2f} times "
            f"onnxruntime's defaults in float32 ({evidence['onnxruntime_defaults_images_per_second']:,.1f})"
        )
    if "p50_ms" in evidence:
        yield f"half of its requests took at most {evidence['p50_ms']:.3g} ms, 99% at most {evidence['p99_ms']:.3g} ms"


def _print_served(result: Mapping[str, Any], console: Any) -> None:
    from rich.table import Table

    from keras_resnets.serving.tuned import settings_text

    table = Table("served with", "images/s", "p50 ms", "p99 ms", "", title="Served over HTTP", title_justify="left")
    for row in result["served"]:
        figures = [
            f"{row['figures'][key]:,.3g}" if key in row["figures"] else "–"
            for key in ("images_per_second", "p50_ms", "p99_ms")
        ]
        table.add_row(settings_text(row["settings"]), *figures, "" if row["valid"] else str(row["reason"]))
    console.print(table)
    for why in result["dropped"]:
        console.print(f"not considered: {why}", highlight=False, style="dim", soft_wrap=True)
