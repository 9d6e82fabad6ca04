"""Compares a Keras model with its exported forms: the proof that to_bundle demands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_resnets.extras import extra
from keras_resnets.models.layers import tapped_head
from keras_resnets.preprocessing import Preprocessing, load_image

from .errors import ExportError
from .runtime import open_session
from .trace import INPUT, interface

with extra("export"):
    import onnx
    import tensorflow as tf

BATCH_SIZES = (1, 3, 17)
Prepare = Callable[[NDArray[np.float32]], NDArray[Any]]
# From a batch to the model's own output, by its name, and "logits" where that is their softmax or sigmoid.
Runner = Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]]


class Form(NamedTuple):
    """What a model was exported to, and how it is run; see `Comparison`."""

    runtime: str
    provider: str = ""
    precision: str = "float32"

    def __str__(self) -> str:
        # A SavedModel has one precision, and picks its device itself.
        return " ".join(self) if self.provider else self.runtime


@dataclass(frozen=True)
class Comparison:
    """How far one runtime is from Keras on one batch.

    Args:
        runtime: what was compared with Keras: "onnxruntime" or "saved_model".
        provider: of onnxruntime: "cpu", "cuda", …
        precision: "float32", "float16", …
        output: "probabilities", "logits" or "features". A saturated softmax or sigmoid hides differences, so
            models that end in one are compared before it as well.
        inputs: "noise" or "images".
        batch: number of images.
        max_error, mean_error: of |a − b|, over max|a| of the Keras output.
        allowed: what max_error may be; None where the accuracy gate judges instead.
        top1_agreement: share of the rows whose largest output is the same class.
    """

    runtime: str
    provider: str
    precision: str
    output: str
    inputs: str
    batch: int
    max_error: float
    mean_error: float
    allowed: float | None
    top1_agreement: float

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON types."""
        return asdict(self)


class Case(NamedTuple):
    """A batch of one kind of input, and the outputs that Keras gives for it."""

    inputs: str
    tensor: NDArray[np.float32]
    expected: Mapping[str, NDArray[Any]]


def ask(reference: Runner, probes: Mapping[str, NDArray[np.float32]]) -> tuple[Case, ...]:
    """Run Keras on every probe at batch sizes 1, 3 and 17.

    Args:
        reference: the Keras model, see `keras_runner`.
        probes: kind of input to a tensor [at least 1, height, width, channels]; rows repeat to fill a batch.

    Raises:
        ExportError: when Keras itself gives infinities or NaN.
    """
    cases = []
    for kind, probe in probes.items():
        for batch in BATCH_SIZES:
            tensor = np.resize(probe, (batch, *probe.shape[1:]))
            expected = reference(tensor)
            if not all(np.isfinite(values).all() for values in expected.values()):
                raise ExportError(_NOT_FINITE.format(inputs=kind))
            cases.append(Case(kind, tensor, expected))
    return tuple(cases)


def compare(
    reference: Runner,
    forms: Mapping[Form, Runner],
    cases: Sequence[Case],
    tolerance: float | None,
    locate: Callable[[Form, NDArray[np.float32]], str] = lambda form, tensor: "",
) -> tuple[Comparison, ...]:
    """Run every form on every case.

    Args:
        reference: the Keras model, see `keras_runner`.
        forms: what was exported, with the same outputs.
        cases: what it gave, see `ask`.
        tolerance: largest allowed max|a − b| / max|a|, see `_allowed` for probabilities; None: any that is finite.
        locate: says where a form that drifts leaves Keras on an input, for the message.

    Raises:
        ExportError: when a figure exceeds the tolerance.
    """
    rows = []
    for case in cases:
        given = {form: run(case.tensor) for form, run in forms.items()}
        # What one form cannot give (logits behind a layout change, say) is compared in none, and loosens nothing.
        shared = [output for output in case.expected if all(output in outputs for outputs in given.values())]
        expected = {output: case.expected[output] for output in shared}
        allowed = _allowed(expected, tolerance)
        rows += [
            _row((*form, output, case.inputs), values, outputs[output], allowed[output])
            for output, values in expected.items()
            for form, outputs in given.items()
        ]
    worst = max(rows, key=lambda row: np.nan_to_num(row.max_error / (row.allowed or np.inf), nan=np.inf), default=None)
    if worst and not worst.max_error <= (np.finfo(np.float32).max if worst.allowed is None else worst.allowed):
        form = Form(worst.runtime, worst.provider, worst.precision)
        first = next(case.tensor[:1] for case in cases if case.inputs == worst.inputs)
        limit = "finite ones" if worst.allowed is None else f"{worst.allowed:.0e}"
        raise ExportError(
            f"{form} drifts from Keras by {worst.max_error:.2e} of the largest value (allowed: "
            f"{limit}) in {worst.output} on {worst.inputs}, batch {worst.batch}; nothing was written"
            + (_explanation(reference, worst.output, first, tolerance or np.inf) or locate(form, first))
        )
    return tuple(rows)


def _allowed(expected: Mapping[str, NDArray[Any]], tolerance: float | None) -> dict[str, float | None]:
    """Softmax turns a difference d of two logits into a relative one of up to 2d in a probability, so logits within
    the tolerance allow that much; the logits are what is held to it."""
    if tolerance is None:
        return dict.fromkeys(expected)
    limits: dict[str, float | None] = dict.fromkeys(expected, tolerance)
    if "logits" in expected and "probabilities" in expected:
        limits["probabilities"] = tolerance * max(1.0, 2 * float(np.abs(expected["logits"]).max()))
    return limits


def _explanation(reference: Runner, output: str, tensor: NDArray[np.float32], tolerance: float) -> str:
    """Whether the network, not the export, is to blame: how far Keras's own output moves with its input's last bit."""
    before, after = (reference(images)[output] for images in (tensor, np.nextafter(tensor, np.float32(np.inf))))
    moved = float(np.abs(after - before).max()) / (float(np.abs(before).max()) or 1.0)
    if moved < tolerance:
        return ""
    return (
        f". Keras's own output moves by {moved:.1e} when the last bit of its input does: this network amplifies "
        "rounding (deep plain networks that were never trained do), so that no float32 export can agree better"
    )


_NOT_FINITE = (
    "Keras itself gives infinite or NaN outputs on {inputs}, so no export can be proven. A very deep network "
    "that was never trained does: load trained weights, or call keras_resnets.damp_residuals(model)"
)


def _row(
    key: tuple[str, str, str, str, str], expected: NDArray[Any], got: NDArray[Any], allowed: float | None
) -> Comparison:
    if got.shape != expected.shape:
        raise ExportError(f"{key[0]} gives shape {list(got.shape)} where Keras gives {list(expected.shape)}")
    difference = np.abs(got.astype(np.float64) - expected)
    scale = float(np.abs(expected).max()) or 1.0
    same = np.argmax(got, axis=-1) == np.argmax(expected, axis=-1)
    error = float(difference.max()) / scale, float(difference.mean()) / scale
    return Comparison(*key, len(expected), *error, allowed, float(same.mean()))


def keras_runner(model: Any) -> Runner:
    """The reference: a Keras model's output, and its logits where it ends in softmax or sigmoid.

    It is traced once, as for `model.predict`: several times faster than layer by layer.
    """
    kind = interface(model).output
    variables = model.trainable_variables, model.non_trainable_variables

    def call(images: Any) -> dict[str, Any]:
        # Not model(images): TensorFlow would have its name for a scope's, and that may have no spaces.
        state = [[variable.value for variable in group] for group in variables]
        with tapped_head(model) as logits:
            outputs = {kind: model.stateless_call(*state, images, training=False)[0]}
        if logits:
            outputs["logits"] = logits[0]
        return outputs

    spec = tf.TensorSpec(interface(model).input_shape, model.inputs[0].dtype)
    function = tf.function(call, input_signature=[spec], autograph=False)
    return lambda tensor: {output: values.numpy() for output, values in function(tensor).items()}


def saved_model_runners(
    folder: Path, preprocessing: Preprocessing | None = None, files: Mapping[bytes, Path] | None = None
) -> dict[str, Runner]:
    """Load a SavedModel and run its signatures.

    Args:
        folder: of the SavedModel.
        preprocessing: what it was written with.
        files: what images were read from, by the bytes of their pixels; other images are put into files.

    Returns:
        By name of the form: "saved_model", and where the preprocessing is known "saved_model pixels" and
        "saved_model encoded". Their logits are those of the signature `logits`, behind the same steps.
    """
    loaded = tf.saved_model.load(str(folder))
    (output,) = loaded.signatures["serving_default"].structured_outputs

    def run(key: str, images: Any) -> NDArray[Any]:
        (values,) = loaded.signatures[key](**{INPUT: tf.convert_to_tensor(images)}).values()
        return values.numpy()

    def runner(key: str, prepare: Prepare, steps: Callable[[Any], Any]) -> Runner:
        def outputs(tensor: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
            images = prepare(tensor)
            given = {output: run(key, images)}
            if "logits" in loaded.signatures:
                given["logits"] = run("logits", steps(images))
            return given

        return outputs

    forms = {"saved_model": runner("serving_default", np.asarray, np.asarray)}
    if preprocessing:
        pixels, encode = preprocessing.denormalize, _encoder(preprocessing, files or {})
        forms["saved_model pixels"] = runner("pixels", pixels, loaded.normalize)
        forms["saved_model encoded"] = runner(
            "encoded", lambda tensor: encode(pixels(tensor)), lambda files: loaded.normalize(loaded.decode(files))
        )
    return forms


def _encoder(how: Preprocessing, files: Mapping[bytes, Path]) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    """A function from uint8 pixels [batch, height, width, channels] to PNG files that the preprocessing makes them of.

    An image that was read from a file is put whole into its PNG, so that the graph resizes it. Anew, and not as the
    JPEG it may be: PNGs are decoded to the same pixels everywhere. Others get a margin that the preprocessing crops.
    """
    known = {}
    for pixels, file in files.items():
        whole = how.uncropped(file, min(load_image(file).size))
        known[pixels] = tf.io.encode_png(whole, compression=1).numpy()
    sides = how.size if how.resize is None else (how.resize, how.resize)
    before = [round((side - own) / 2) for side, own in zip(sides, how.size, strict=True)]
    margins = [(first, side - own - first) for first, side, own in zip(before, sides, how.size, strict=True)]

    def png(pixels: NDArray[Any]) -> bytes:
        return known.get(pixels.tobytes()) or tf.io.encode_png(np.pad(pixels, [*margins, (0, 0)])).numpy()

    return lambda batch: np.array([png(pixels) for pixels in batch], object)


def onnx_runner(file: Path, prepare: Prepare = lambda tensor: tensor, provider: str = "cpu") -> Runner:
    """Load an ONNX file in onnxruntime.

    Args:
        file: of the graph.
        prepare: from the Keras model's input to the graph's.
        provider: "cpu", "cuda", …

    The logits are what the final Softmax or Sigmoid reads.
    """
    graph = onnx.load(file, load_external_data=False).graph
    output = graph.output[0].name
    last = next(node for node in graph.node if output in node.output)
    names = {output: output}
    if last.op_type in ("Softmax", "Sigmoid"):
        names["logits"] = last.input[0]
    session = open_session(file, provider, list(names.values()))
    return lambda tensor: dict(zip(names, session.run(list(names.values()), {INPUT: prepare(tensor)}), strict=True))
