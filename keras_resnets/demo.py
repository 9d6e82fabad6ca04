"""The whole way on real images: a trained ResNet-20, export, verify, predict, measure."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from keras_resnets.atomic import atomic_file
from keras_resnets.bundle import Bundle
from keras_resnets.data import Dataset, Split, load_dataset
from keras_resnets.extras import extra

RUNTIMES = ("Keras", "SavedModel", "ONNX Runtime")


class DemoError(RuntimeError):
    """A step of the demo that failed; the message holds what it printed."""


class Measurement(NamedTuple):
    """What one runtime did on the test images."""

    scores: NDArray[np.float32]
    milliseconds: float  # median of one image, preprocessed


class Case(NamedTuple):
    """A trained network and the images that it is shown.

    Args:
        data: name of the data set.
        images: what its test images are.
        model: the network's file, in the demo's folder.
        license: of the network.
    """

    data: str
    images: str
    model: str
    license: str


SHIPPED = Case(
    "fashion_mnist_sample", "test images of Fashion-MNIST", "model.keras",
    "Apache-2.0; trained on Fashion-MNIST (MIT)",
)  # fmt: skip
TRAINED = Case(
    "digits", "held-out handwritten digits", "run/model.keras", "Apache-2.0; trained on UCI optdigits (CC BY 4.0)"
)


def run(out: Path, *, train: bool = False, console: Console | None = None) -> None:
    """Run the demo in a folder: take the package's network, or train one; export, measure, draw.

    Prints one table, and writes `predictions.png`.
    """
    _pyplot()  # said at once when it is missing, not after the training
    say = console or Console()
    case = TRAINED if train else SHIPPED
    data = load_dataset(case.data)
    if train:
        _train(out / "run", say)
    else:
        _take(out / case.model, say)
    seconds, bundle = _export(out, case, data)
    say.print(f"exported and verified {bundle.path}", highlight=False)
    results = {name: _in_own_process(name, out, case) for name in RUNTIMES}
    say.print(_table(results, case, data, seconds, bundle))
    _draw(out / "predictions.png", data, results["ONNX Runtime"].scores)
    say.print(f"wrote {out / 'predictions.png'}", highlight=False)


def _take(file: Path, say: Console) -> None:
    """The network that comes with the package, as a Keras file."""
    from keras_resnets.models import create_model
    from keras_resnets.models.files import save_model
    from keras_resnets.weights import find_weights

    record = find_weights("resnet20", "fashion_mnist")
    say.print(f"{record.name}: {record.results[0].top1:.2f}% of all 10,000 test images", highlight=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_model(create_model("resnet20", weights=record), file)


def _train(folder: Path, say: Console) -> None:
    from keras_resnets.training import RECIPES, train

    say.print("training ResNet-20 on 1,437 handwritten digits")
    train(RECIPES["digits"](), folder, overwrite=True)


def _export(out: Path, case: Case, data: Dataset) -> tuple[float, Bundle]:
    """The bundle, and the seconds that its ONNX file takes to export."""
    from keras_resnets.export import to_bundle, to_onnx
    from keras_resnets.models.files import load_model

    model = load_model(out / case.model)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        to_onnx(model, Path(folder) / "timed.onnx")
        seconds = time.perf_counter() - began
    images = list(_test_images(data)[:17])
    return seconds, to_bundle(model, out / "bundle", images=images, license=case.license, overwrite=True)


def _test_images(data: Dataset) -> NDArray[np.uint8]:
    assert isinstance(data.test, Split)  # both are in memory
    return data.test.images


def _in_own_process(name: str, out: Path, case: Case) -> Measurement:
    """Measure one runtime alone: the idle threads of another in the same process would falsify its times."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scores.npz"
        command = [sys.executable, "-m", __name__, name, str(out), str(file), *case]
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise DemoError(f"measuring {name} failed:\n{done.stderr.strip()}")
        with np.load(file) as arrays:
            return Measurement(arrays["scores"], float(arrays["milliseconds"]))


def measure(name: str, out: Path, file: Path, case: Case) -> None:
    """Scores of the test images and the median time of one, written to a .npz file."""
    data = load_dataset(case.data)
    predict = {"Keras": _keras, "SavedModel": _saved_model, "ONNX Runtime": _onnx}[name](out, case)
    tensor = data.preprocessing(_test_images(data))
    scores = predict(tensor)
    times = []
    for i in range(-20, 200):
        began = time.perf_counter()
        predict(tensor[i % 10 : i % 10 + 1])
        times.append(time.perf_counter() - began)
    with file.open("wb") as stream:
        np.savez(stream, scores=scores, milliseconds=np.median(times[20:]) * 1000)


def _keras(out: Path, case: Case) -> Callable[[Any], NDArray[np.float32]]:
    from keras_resnets.models.files import load_model

    model = load_model(out / case.model)
    return lambda tensor: model.predict(tensor, verbose=0, batch_size=32)


def _saved_model(out: Path, _: Case) -> Callable[[Any], NDArray[np.float32]]:
    with extra("tensorflow"):
        import tensorflow as tf

    loaded = tf.saved_model.load(str(out / "bundle" / "saved_model"))

    def predict(tensor: Any) -> NDArray[np.float32]:
        # Through `loaded`: a signature does not keep alive what it belongs to.
        scores: NDArray[np.float32] = loaded.signatures["serving_default"](tf.constant(tensor))["probabilities"].numpy()
        return scores

    return predict


def _onnx(out: Path, _: Case) -> Callable[[Any], NDArray[np.float32]]:
    from keras_resnets.serving import Engine

    return Engine(out / "bundle").run


def _table(results: dict[str, Measurement], case: Case, data: Dataset, seconds: float, bundle: Bundle) -> Table:
    number = len(data.test)
    reference = results["Keras"].scores
    table = Table(
        "runtime", "correct", "accuracy", "same class as Keras", "largest difference", "one image",
        title=f"ResNet-20, {number:,} {case.images}", title_justify="left",
        caption=f"ONNX export {seconds:.2f} s; {len(bundle.manifest.verification)} comparisons passed before "
        "the bundle was written; times: median of 200, each runtime in a process of its own",
        caption_justify="left",
    )  # fmt: skip
    for name, (scores, milliseconds) in results.items():
        correct = int((scores.argmax(1) == data.test.labels).sum())
        same = int((scores.argmax(1) == reference.argmax(1)).sum())
        difference = float(np.abs(scores - reference).max() / reference.max())
        table.add_row(
            name, f"{correct}/{number}", f"{correct / number:.2%}", f"{same}/{number}",
            "–" if name == "Keras" else f"{difference:.1e}", f"{milliseconds:.2f} ms",
        )  # fmt: skip
    return table


def _pyplot() -> Any:
    with extra("study"):
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    return plt


def _draw(file: Path, data: Dataset, scores: NDArray[np.float32]) -> None:
    """The mistakes first, then the least certain: prediction and truth under each image."""
    plt = _pyplot()
    guess, truth = scores.argmax(1), data.test.labels
    order = np.lexsort((scores.max(1), guess == truth))[:24]
    figure, axes = plt.subplots(3, 8, figsize=(12, 6), layout="constrained")
    for axis, i in zip(axes.flat, order, strict=True):
        right = guess[i] == truth[i]
        axis.imshow(_test_images(data)[i, :, :, 0], cmap="gray_r", interpolation="nearest")
        axis.set_title(
            f"{data.class_names[guess[i]]} {scores[i, guess[i]]:.0%}"
            + ("" if right else f"\nis {data.class_names[truth[i]]}"),
            color="black" if right else "firebrick", fontsize=9,
        )  # fmt: skip
        axis.set_xticks([])
        axis.set_yticks([])
    wrong = int((guess != truth).sum())
    figure.suptitle(
        f"ResNet-20 through ONNX Runtime: {wrong} of {len(truth):,} test images wrong (red), then the least certain"
    )
    with atomic_file(file) as draft:
        figure.savefig(draft, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Case(*sys.argv[4:]))
