"""The command `keras-resnets`: parses, calls the library, prints."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_resnets import __version__
from keras_resnets.cli_bench import add_bench, add_tune
from keras_resnets.cli_evaluate import add_evaluate
from keras_resnets.cli_export import add_export
from keras_resnets.cli_launch import add_launch
from keras_resnets.cli_serve import API_KEY, add_serve
from keras_resnets.cli_study import add_study
from keras_resnets.cli_train import add_train
from keras_resnets.cli_verify import add_verify
from keras_resnets.cli_weights import add_weights

_EPILOG = """examples:
  keras-resnets list "resnet*v2"              the models whose names match
  keras-resnets info resnet50                 paper, parameters, multiply-adds, weights
  keras-resnets weights list resnet50         published weights, with accuracy and licence
  keras-resnets train --recipe digits         train on handwritten digits, into runs/digits
  keras-resnets evaluate runs/digits          top-1, top-5, confusions; of bundles and SavedModels too
  keras-resnets export runs/digits digits     a verified bundle from that run
  keras-resnets verify digits                 hashes and golden sample, wherever the bundle landed
  keras-resnets predict digits photo.png      the most probable classes, through ONNX Runtime
  keras-resnets serve digits                  answer requests over HTTP
  keras-resnets bench digits                  measure it: precisions, batches, threads, others
  keras-resnets tune digits                   find what serves best here; serve then uses it
  keras-resnets study degradation --quick     see plain networks get worse with depth
  keras-resnets doctor                        versions, devices and providers of this machine
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for an error, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        if options.loads_tensorflow and not getattr(options, "only_shows", False):
            load_tensorflow_quietly()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return int(options.run(options) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        if options.traceback or not _is_ours(error):
            raise
        print(f"keras-resnets: {error}", file=sys.stderr)
        return int(getattr(error, "exit_status", 1))


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Ours are written for the user, without the line of code that they come from; others are for programmers."""
    if category.__module__.startswith("keras_resnets"):
        print(f"keras-resnets: warning: {message}", file=sys.stderr)


def load_tensorflow_quietly() -> None:
    """Import TensorFlow without its start-up chatter, which would bury what is printed here.

    Part of it is written before any log level applies, hence the detour of the file descriptor.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0" or os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 (a device, not a path)
            os.dup2(nowhere.fileno(), 2)
        import keras  # noqa: F401
    except ImportError:
        pass  # whoever needs it says what to install
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _is_ours(error: BaseException) -> bool:
    """Errors that the library raises are written for the user; any other is a fault whose traceback is wanted."""
    return isinstance(error, OSError) or type(error) is ValueError or type(error).__module__.startswith("keras_resnets")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-resnets",
        description="Residual and plain networks for Keras: train, export with proof, predict.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"keras-resnets {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_list(commands)
    _add_info(commands)
    add_weights(commands, _command)
    for add_with in (
        add_train,
        add_launch,
        add_evaluate,
        add_study,
        add_export,
        add_verify,
        add_serve,
        add_bench,
        add_tune,
    ):
        add_with(commands, _command)
    for add in (_add_predict, _add_sample, _add_doctor, _add_demo):
        add(commands)
    return parser


def _command(
    commands: Any, name: str, run: Any, summary: str, examples: str, loads_tensorflow: bool = False
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, loads_tensorflow=loads_tensorflow)
    return parser


def _add_list(commands: Any) -> None:
    parser = _command(
        commands, "list", _list, "list the models", '  keras-resnets list\n  keras-resnets list "plainnet*"'
    )
    parser.add_argument("pattern", nargs="?", default="*", help='as in a shell, for example "resnet*v2"')


def _list(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from keras_resnets.models import list_models
    from keras_resnets.models.tables import MODEL_COLUMNS, model_rows

    names = list_models(options.pattern)
    if not names:
        raise ValueError(f"no model matches {options.pattern!r}; keras-resnets list shows all")
    table = Table(*MODEL_COLUMNS)
    for row in model_rows(names):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    return 0


def _add_info(commands: Any) -> None:
    parser = _command(
        commands,
        "info",
        _info,
        "show what is known of a model",
        "  keras-resnets info resnet50\n  keras-resnets info ResNet1001V2",
    )
    parser.add_argument("model", help="a name of `keras-resnets list`")


def _info(options: argparse.Namespace) -> int:
    from keras_resnets.models import model_info
    from keras_resnets.weights import list_weights

    info = model_info(options.model)
    published = f"{info.published[0]} ({info.published[1]})" if info.published else "no count"
    cost = f"; published: {' ('.join(info.published_multiply_adds)})" if info.published_multiply_adds else ""
    tags = [record.tag for record in list_weights(info.name)]
    rows = {
        "constructor": f"keras_resnets.{info.constructor}",
        "paper": info.paper,
        "parameters": f"{info.parameters:,} trainable; published: {published}",
        "multiply-adds": f"{info.multiply_adds:,} an image{cost}",
        "default input": f"{' × '.join(map(str, info.input_shape))} (height, width, channels), {info.classes} classes",
        **dict(info.options),
        "weights": ", ".join(tags) + " (the best first)" if tags else "none are known",
    }
    print(info.name)
    for name, value in rows.items():
        print(f"  {name:14} {value}")
    return 0


def _add_predict(commands: Any) -> None:
    parser = _command(
        commands, "predict", _predict, "classify images with a bundle, through ONNX Runtime",
        "  keras-resnets predict bundle cat.jpg dog.png\n"
        "  keras-resnets predict bundle photos/*.jpg --top 1 --json\n"
        "  keras-resnets predict bundle cat.jpg --provider cuda\n"
        "  keras-resnets predict cats cat.jpg --url http://127.0.0.1:8000",
    )  # fmt: skip
    parser.add_argument("bundle", help="a bundle's folder; with --url, a model's name")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG or WebP files")
    parser.add_argument("--top", type=int, default=5, help="classes an image (default 5)")
    parser.add_argument("--provider", default="cpu", help="cpu (default), openvino, cuda or tensorrt")
    parser.add_argument("--precision", help="float32, float16, int8 … (default: the bundle's first)")
    parser.add_argument("--threads", type=int, help="threads of one operator (default: the CPUs of this process)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    parser.add_argument("--url", help=f"ask this server (its key: {API_KEY}), and run nothing here")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for the server (default 30)")


def _predict(options: argparse.Namespace) -> int:
    import json

    if options.url:
        from keras_resnets.serving.client import Client

        key = os.environ.get(API_KEY)
        client = Client(options.url, api_key=key, timeout=options.timeout)
        predictions = client.classify(options.bundle, options.images, options.top)
    else:
        from keras_resnets.serving import Engine

        engine = Engine(options.bundle, provider=options.provider, precision=options.precision, threads=options.threads)
        predictions = engine.predict(options.images, options.top)
    for image, best in zip(options.images, predictions, strict=True):
        if options.json:
            print(json.dumps({"image": image, "predictions": [row._asdict() for row in best]}, ensure_ascii=False))
            continue
        print(image)
        for row in best:
            print(f"  {row.score:7.2%}  {row.label}")
    return 0


def _add_sample(commands: Any) -> None:
    parser = _command(
        commands, "sample", _sample, "write a trained bundle and pictures, to classify and serve at once",
        "  keras-resnets sample\n"
        "  keras-resnets predict sample/clothes sample/images/*.png --top 1\n"
        "  keras-resnets serve sample/clothes --precision int8",
    )  # fmt: skip
    parser.add_argument("folder", nargs="?", default="sample", help="must not exist (default: sample)")


def _sample(options: argparse.Namespace) -> int:
    from keras_resnets.sample import write_sample

    try:
        bundle, images = write_sample(options.folder)
    except FileExistsError as error:
        raise ValueError(f"{error.filename or Path(options.folder)} exists: choose another folder") from None
    print(f"wrote {bundle} and {len(list(images.iterdir()))} pictures into {images}; now, for example:")
    print(f"  keras-resnets predict {bundle} {images}/*.png --top 1")
    print(f"  keras-resnets serve {bundle}")
    return 0


def _add_doctor(commands: Any) -> None:
    _command(
        commands, "doctor", _doctor, "show versions, devices and execution providers, and what is wrong with them",
        "  keras-resnets doctor",
        loads_tensorflow=True,
    )  # fmt: skip


def _doctor(options: argparse.Namespace) -> int:
    from keras_resnets import doctor

    warnings = doctor.report()
    return 1 if warnings else 0


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands, "demo", _demo, "export a trained network, verify it, and classify real images with it",
        "  keras-resnets demo\n  keras-resnets demo --out demo_output --train",
        loads_tensorflow=True,
    )  # fmt: skip
    parser.add_argument("--out", default="demo_output", help="folder for the network, the bundle and the picture")
    parser.add_argument("--train", action="store_true", help="train the network first, on handwritten digits")


def _demo(options: argparse.Namespace) -> int:
    from keras_resnets import demo

    demo.run(Path(options.out), train=options.train)
    return 0


if __name__ == "__main__":
    sys.exit(main())
