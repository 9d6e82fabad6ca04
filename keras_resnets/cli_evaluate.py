"""The command `keras-resnets evaluate`: finds out what runs the network, calls the library, prints."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_resnets.data.dataset import Dataset, Samples
    from keras_resnets.training.figures import Evaluation
    from keras_resnets.training.scorers import Scorer

_MODEL, _RECIPE, _BUNDLE, _SAVED_MODEL = "model.keras", "recipe.json", "bundle.json", "saved_model.pb"
SPLITS = ("test", "validation", "train")


def add_evaluate(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `evaluate` to the program's commands."""
    parser = command(
        commands, "evaluate", _evaluate, "measure a network's accuracy on images whose classes are known",
        "  keras-resnets evaluate runs/digits                                the run's own test images\n"
        "  keras-resnets evaluate runs/digits --split validation\n"
        "  keras-resnets evaluate bundle --data digits                       through ONNX Runtime, without TensorFlow\n"
        "  keras-resnets evaluate bundle/saved_model --data digits\n"
        "  keras-resnets evaluate model.keras --data fashion_mnist --out report\n"
        "  keras-resnets evaluate resnet50 --weights imagenet --data imagenet:PATH --crops 10\n"
        "  keras-resnets evaluate resnet50 --weights imagenet --data folder:PATH --scales 224,256,384,480,640\n"
        "  keras-resnets evaluate runs/fashion_mnist --flip --limit 1000 --json",
    )  # fmt: skip
    parser.add_argument(
        "model",
        help="a run's folder, a .keras file, a bundle's folder (or a model.onnx in it), a SavedModel's folder, or a "
        "name of `keras-resnets list`",
    )
    parser.add_argument("--data", metavar="NAME", help="a data set, as for train (default: what the run trained on)")
    parser.add_argument("--split", default="test", help="test (default), validation or train")
    parser.add_argument("--weights", help="for a model by name: a tag (see weights list) or a file")
    parser.add_argument("--crops", type=int, default=1, help="1: the centre (default); 10: corners, centre, mirrored")
    parser.add_argument(
        "--scales",
        metavar="S,S,…",
        help="average over whole images with these shorter sides in pixels; He et al. 2015: 224,256,384,480,640",
    )
    parser.add_argument("--flip", action="store_true", help="average over each view's mirror image too")
    parser.add_argument("--batch", type=int, default=64, help="images scored at once (default 64)")
    parser.add_argument("--limit", type=int, metavar="N", help="this many images, spread evenly over the split")
    parser.add_argument("--provider", default="cpu", help="for a bundle: cpu (default), openvino, cuda or tensorrt")
    parser.add_argument("--out", metavar="FOLDER", help="write evaluation.json, per_class.csv and two pictures there")
    parser.add_argument("--overwrite", action="store_true", help="replace the evaluation in that folder")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables, for programs")


def _evaluate(options: argparse.Namespace) -> int:
    scales = _scales(options.scales)
    if options.split not in SPLITS:
        raise ValueError(f"--split must be {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, not {options.split!r}")
    if options.out:
        _check_out(Path(options.out), options.overwrite)
    form = _form(options)
    if form != "onnx":
        from keras_resnets.cli import load_tensorflow_quietly

        load_tensorflow_quietly()
    from keras_resnets.training.evaluation import Protocol, evaluate

    Protocol(options.crops, scales, options.flip)  # before data and network are loaded
    data, split = _data(options)
    scorer = _described(_OPEN[form](options, bool(scales)), data)
    with _progress() as progress:
        found = evaluate(
            scorer,
            split,
            crops=options.crops,
            scales=scales,
            flip=options.flip,
            batch_size=options.batch,
            limit=options.limit,
            progress=progress,
        )
    facts = {"model": options.model, "data": data.name, "split": options.split}
    if options.json:
        print(json.dumps({**facts, **found.to_dict()}, ensure_ascii=False, allow_nan=False))
    else:
        _print(found, f"{scorer.name} on {data.name}, {options.split} images: {found.protocol}")
    if options.out:
        from keras_resnets.training.report import write_report

        files = write_report(found, split, options.out, facts)
        print(f"wrote {', '.join(file.name for file in files)} into {options.out}", file=sys.stderr)
    return 0


def _scales(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise ValueError(f"--scales are lengths in pixels, for example 224,256,384,480,640, not {text!r}") from None


def _check_out(folder: Path, overwrite: bool) -> None:
    from keras_resnets.training.report import EVALUATION, pyplot

    for mark, what in ((_RECIPE, "a training run"), (_BUNDLE, "a bundle"), (_SAVED_MODEL, "a SavedModel")):
        if (folder / mark).exists():
            raise ValueError(f"--out {folder} is the folder of {what}: choose another one")
    if (folder / EVALUATION).exists() and not overwrite:
        raise ValueError(f"{folder} already holds an evaluation: choose another folder, or pass --overwrite")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file, not a folder")
    pyplot()  # a missing matplotlib is told before the work, not after it


def _form(options: argparse.Namespace) -> str:
    """What MODEL is: "keras" (a run or a file), "saved_model", "onnx" or "name".

    Raises:
        ValueError: when it is none of them, or --weights contradicts it.
    """
    from keras_resnets.models import REGISTRY, model_info

    path = Path(options.model)
    if path.is_dir():
        marks = ((_BUNDLE, "onnx"), (_SAVED_MODEL, "saved_model"), (_MODEL, "keras"))
        form = next((form for mark, form in marks if (path / mark).is_file()), None)
    else:
        form = {".keras": "keras", ".onnx": "onnx"}.get(path.suffix)
    if form:
        if options.weights:
            raise ValueError(f"--weights goes with a model by name, and {path} is a saved one")
        return form
    if options.model.lower() not in REGISTRY:
        if path.is_dir():
            raise ValueError(f"{path} is no run, bundle or SavedModel: it has no {_MODEL}, {_BUNDLE} or {_SAVED_MODEL}")
        if path.exists():
            raise ValueError(f"{path} is no .keras file; other weights go with a model's name, as --weights {path}")
        if path.parent != Path():
            raise ValueError(f"{path} does not exist")
    name = model_info(options.model).name
    if not options.weights:
        raise ValueError(f"{name} alone has random weights: give --weights (see keras-resnets weights list {name})")
    return "name"


def _data(options: argparse.Namespace) -> tuple[Dataset, Samples]:
    """The data set and its split, with the images held out that a run's recipe held out."""
    from keras_resnets.data import load_dataset

    recipe = _recipe(Path(options.model))
    name = options.data or recipe.get("data")
    if not name:
        raise ValueError(f"{options.model} does not say what it was trained on: give --data, for example --data digits")
    data = load_dataset(name)
    if name == recipe.get("data") and recipe.get("validation") and data.validation is None:
        data = data.hold_out(recipe["validation"])
    split: Samples | None = getattr(data, options.split)
    if split is None:
        raise ValueError(
            f"{name} has no {options.split} images of its own"
            + ("; a run's folder says how many training images it held out" if options.split == "validation" else "")
        )
    return data, split


def _recipe(model: Path) -> dict[str, Any]:
    """The recipe beside a run's model; empty for anything else."""
    file = (model if model.is_dir() else model.parent) / _RECIPE
    if not file.is_file() or not (model.is_dir() or model.suffix == ".keras"):
        return {}
    try:
        recipe = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(recipe, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise ValueError(f"{file} is corrupt: {error}") from error
    return recipe


def _described(scorer: Scorer, data: Dataset) -> Scorer:
    """The scorer with the data set's preprocessing and class names where it has none of its own.

    Raises:
        ValueError: when their classes differ in number or order.
    """
    names = tuple(data.class_names)
    if len(names) != scorer.classes:
        raise ValueError(f"{scorer.name} has {scorer.classes} classes, and {data.name} has {len(names)}")
    if scorer.labels is not None and scorer.labels != names:
        if sorted(scorer.labels) == sorted(names):
            raise ValueError(
                f"{scorer.name} has the classes of {data.name} in another order, from {scorer.labels[0]!r}"
            )
        print(f"note: {data.name} calls its classes {names[0]}, …, the network {scorer.labels[0]}, …", file=sys.stderr)
    if scorer.preprocessing is None:
        print(f"note: {scorer.name} does not say how images become its input; as for {data.name}", file=sys.stderr)
    return replace(scorer, labels=scorer.labels or names, preprocessing=scorer.preprocessing or data.preprocessing)


def _open_keras(options: argparse.Namespace, any_size: bool) -> Scorer:
    from keras_resnets.models.files import load_model
    from keras_resnets.training.scorers import keras_scorer

    path = Path(options.model)
    return keras_scorer(load_model(path / _MODEL if path.is_dir() else path), any_size=any_size)


def _open_name(options: argparse.Namespace, any_size: bool) -> Scorer:
    from keras_resnets.models import create_model
    from keras_resnets.models.recognize import model_from_weights
    from keras_resnets.training.scorers import keras_scorer

    if Path(options.weights).is_file():
        model = model_from_weights(options.weights, model=options.model)
    else:
        model = create_model(options.model, weights=options.weights)
    return keras_scorer(model, any_size=any_size)


def _open_saved_model(options: argparse.Namespace, any_size: bool) -> Scorer:
    """A SavedModel; where it lies in a bundle, that says what its images and classes are."""
    from keras_resnets.bundle import Bundle
    from keras_resnets.training.scorers import saved_model_scorer

    folder = Path(options.model).resolve()
    if (folder.parent / _BUNDLE).is_file():
        bundle = Bundle.open(folder.parent)
        if bundle.manifest.saved_model == folder.name:
            bundle.check(name for name in bundle.manifest.files if name.startswith(f"{folder.name}/"))
            return saved_model_scorer(options.model, bundle.manifest.preprocessing, bundle.manifest.labels)
    return saved_model_scorer(options.model)


def _open_bundle(options: argparse.Namespace, any_size: bool) -> Scorer:
    """A bundle through ONNX Runtime; a model.onnx chooses the precision."""
    from keras_resnets.bundle import Bundle
    from keras_resnets.serving import Engine
    from keras_resnets.training.scorers import Scorer

    path, precision = Path(options.model), None
    bundle = Bundle.open(path if path.is_dir() else path.parent)
    manifest = bundle.manifest
    if not path.is_dir():
        precision = {row.file: row.precision for row in manifest.variants}.get(path.name)
        if precision is None:
            raise ValueError(f"{path} is no file of the bundle {path.parent}")
    engine = Engine(bundle, provider=options.provider, precision=precision, batch_size=options.batch)
    height, width, channels = manifest.input_shape[1:]
    how = manifest.preprocessing if manifest.input_type == "uint8" else None
    return Scorer(
        name=options.model,
        score=(lambda images: engine.run(how.denormalize(images))) if how else engine.run,
        input_shape=(height, width, channels),
        classes=engine.session.get_outputs()[0].shape[-1],
        kind=manifest.output_kind,
        preprocessing=manifest.preprocessing,
        labels=manifest.labels,
    )


_OPEN = {"keras": _open_keras, "name": _open_name, "saved_model": _open_saved_model, "onnx": _open_bundle}


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal's standard error."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("images"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=None)
        yield lambda done, number: bar.update(task, completed=done, total=number)


def _print(found: Evaluation, title: str) -> None:
    from rich.console import Console

    from keras_resnets.training.report import tables

    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(title, highlight=False, markup=False)
    for table in tables(found):
        console.print(table)
