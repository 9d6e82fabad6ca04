"""The whole way on real images: train ResNet-20 on handwritten digits, export, verify, predict, measure."""

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

_LICENSE = "Apache-2.0; trained on UCI optdigits (CC BY 4.0)"
RUNTIMES = ("Keras", "SavedModel", "ONNX Runtime")


class DemoError(RuntimeError):
    """A step of the demo that failed; the message holds what it printed."""


class Measurement(NamedTuple):
    """What one runtime did on the test images."""

    scores: NDArray[np.float32]
    milliseconds: float  # median of one image, preprocessed


def run(out: Path, *, retrain: bool = False, console: Console | None = None) -> None:
    """Run the demo in a folder: train if it holds no trained network, export, measure, draw.

    Prints one table, and writes `predictions.png`.
    """
    _pyplot()  # said at once when it is missing, not after the training
    say = console or Console()
    data = load_dataset("digits")
    if retrain or not (out / "run" / "evaluation.json").is_file():
        _train(out / "run", say)
    else:
        say.print(f"using the network in {out / 'run'} (--retrain trains it again)", highlight=False)
    seconds, bundle = _export(out, data)
    say.print(f"exported and verified {bundle.path}", highlight=False)
    results = {name: _in_own_process(name, out) for name in RUNTIMES}
    say.print(_table(results, data, seconds, bundle))
    _draw(out / "predictions.png", data, results["ONNX Runtime"].scores)
    say.print(f"wrote {out / 'predictions.png'}", highlight=False)


def _train(folder: Path, say: Console) -> None:
    from keras_resnets.training import RECIPES, train

    say.print("training ResNet-20 on 1,437 handwritten digits")
    train(RECIPES["digits"](), folder, overwrite=True)


def _export(out: Path, data: Dataset) -> tuple[float, Bundle]:
    """The bundle, and the seconds that its ONNX file takes to export."""
    from keras_resnets.export import to_bundle, to_onnx
    from keras_resnets.models.files import load_model

    model = load_model(out / "run" / "model.keras")
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        to_onnx(model, Path(folder) / "timed.onnx")
        seconds = time.perf_counter() - began
    bundle = to_bundle(model, out / "bundle", images=list(_test_images(data)[:17]), license=_LICENSE, overwrite=True)
    return seconds, bundle


def _test_images(data: Dataset) -> NDArray[np.uint8]:
    assert isinstance(data.test, Split)  # the digits are in memory
    return data.test.images


def _in_own_process(name: str, out: Path) -> Measurement:
    """Measure one runtime alone: the idle threads of another in the same process would falsify its times."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scores.npz"
        command = [sys.executable, "-m", __name__, name, str(out), str(file)]
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise DemoError(f"measuring {name} failed:\n{done.stderr.strip()}")
        with np.load(file) as arrays:
            return Measurement(arrays["scores"], float(arrays["milliseconds"]))


def measure(name: str, out: Path, file: Path) -> None:
    """Scores of the test images and the median time of one, written to a .npz file."""
    data = load_dataset("digits")
    predict = {"Keras": _keras, "SavedModel": _saved_model, "ONNX Runtime": _onnx}[name](out)
    tensor = data.preprocessing(_test_images(data))
    scores = predict(tensor)
    times = []
    for i in range(-20, 200):
        began = time.perf_counter()
        predict(tensor[i % 10 : i % 10 + 1])
        times.append(time.perf_counter() - began)
    with file.open("wb") as stream:
        np.savez(stream, scores=scores, milliseconds=np.median(times[20:]) * 1000)


def _keras(out: Path) -> Callable[[Any], NDArray[np.float32]]:
    from keras_resnets.models.files import load_model

    model = load_model(out / "run" / "model.keras")
    return lambda tensor: model.predict(tensor, verbose=0, batch_size=32)


def _saved_model(out: Path) -> Callable[[Any], NDArray[np.float32]]:
    with extra("tensorflow"):
        import tensorflow as tf

    loaded = tf.saved_model.load(str(out / "bundle" / "saved_model"))

    def predict(tensor: Any) -> NDArray[np.float32]:
        # Through `loaded`: a signature does not keep alive what it belongs to.
        scores: NDArray[np.float32] = loaded.signatures["serving_default"](tf.constant(tensor))["probabilities"].numpy()
        return scores

    return predict


def _onnx(out: Path) -> Callable[[Any], NDArray[np.float32]]:
    from keras_resnets.serving import Engine

    return Engine(out / "bundle").run


def _table(results: dict[str, Measurement], data: Dataset, seconds: float, bundle: Bundle) -> Table:
    number = len(data.test)
    reference = results["Keras"].scores
    table = Table(
        "runtime", "correct", "accuracy", "same class as Keras", "largest difference", "one image",
        title=f"ResNet-20, {number} held-out handwritten digits", title_justify="left",
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
    figure, axes = plt.subplots(3, 8, figsize=(11, 5.4), layout="constrained")
    for axis, i in zip(axes.flat, order, strict=True):
        right = guess[i] == truth[i]
        axis.imshow(_test_images(data)[i, :, :, 0], cmap="gray_r", interpolation="nearest")
        axis.set_title(
            f"{guess[i]} ({scores[i, guess[i]]:.0%})" + ("" if right else f", is {truth[i]}"),
            color="black" if right else "firebrick", fontsize=10,
        )  # fmt: skip
        axis.set_xticks([])
        axis.set_yticks([])
    wrong = int((guess != truth).sum())
    figure.suptitle(
        f"ResNet-20 through ONNX Runtime: {wrong} of {len(truth)} held-out digits wrong (red), then the least certain"
    )
    with atomic_file(file) as draft:
        figure.savefig(draft, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
