"""The engine, against the Keras model that its bundle was made of."""

import json

import keras
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from keras_resnets.bundle import Bundle, BundleError, sha256
from keras_resnets.export import to_bundle
from keras_resnets.preprocessing import ImageError
from keras_resnets.serving import Engine, ProviderError

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def images():
    """Seven grey images, each brighter than the one before, so that their scores differ."""
    random = np.random.default_rng(0)
    return np.stack([random.integers(20 * i, 90 + 20 * i, (8, 8)) for i in range(7)]).astype(np.uint8)


@pytest.fixture(scope="module")
def model(exported):
    return exported()[0]


@pytest.fixture(scope="module")
def want(model, images):
    """What Keras says; the arithmetic of the preprocessing is written down a second time."""
    return np.asarray(model(((images / 255 - 0.5) / 0.25)[..., None].astype(np.float32)))


@pytest.fixture(scope="module")
def engine(exported):
    return Engine(exported()[1], threads=1)


def agree(got, want):
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_images_of_these_tests_can_be_told_apart(want):
    assert all(np.abs(want[i] - want[j]).max() > 1e-3 for i in range(7) for j in range(i))


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "pillow", "array", "array with channel", "colour array"])
def test_one_image_of_every_kind(engine, images, want, tmp_path, kind):
    file = tmp_path / "image.png"
    Image.fromarray(images[3]).save(file)
    source = {
        "path": file,
        "str": str(file),
        "bytes": file.read_bytes(),
        "pillow": Image.fromarray(images[3]),
        "array": images[3],
        "array with channel": images[3][..., None],
        "colour array": np.stack([images[3]] * 3, -1),
    }[kind]
    agree(engine.predict_scores(source), want[3:4])
    agree(engine.predict_scores([source]), want[3:4])


@pytest.mark.parametrize(
    "form",
    [
        lambda greys: greys,
        lambda greys: greys[..., None],
        lambda greys: np.stack([greys] * 3, -1),
        list,
        tuple,
        iter,
        lambda greys: (Image.fromarray(image) for image in greys),
    ],
    ids=["greys", "batch", "colour batch", "list", "tuple", "iterator", "generator"],
)
def test_several_images_in_every_form(engine, images, want, form):
    agree(engine.predict_scores(form(images)), want)


def test_mixed_kinds_and_sizes(engine, model, images, want, tmp_path):
    """A larger image is resized as the reference does it."""
    Image.fromarray(images[1]).save(tmp_path / "1.png")
    large = np.random.default_rng(1).integers(0, 256, (31, 17), np.uint8)
    got = engine.predict_scores([tmp_path / "1.png", large, Image.fromarray(images[2])])
    agree(got[[0, 2]], want[[1, 2]])
    resized = np.asarray(Image.fromarray(large).resize((8, 8), Image.Resampling.BILINEAR))
    agree(got[1], model(((resized[None, ..., None] / 255 - 0.5) / 0.25).astype(np.float32))[0])


def test_predict_names_the_classes(engine, images, want):
    rows = engine.predict(images, top=2)
    assert len(rows) == 7
    for row, scores in zip(rows, want, strict=True):
        best = np.argsort(scores)[::-1][:2]
        assert [p.label for p in row] == [COLOURS[i] for i in best]
        assert [p.class_index for p in row] == list(best)
        agree([p.score for p in row], scores[best])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batches_are_split_and_stay_in_order(exported, images, want, batch_size):
    engine = Engine(exported()[1], batch_size=batch_size, threads=1)
    agree(engine.predict_scores(images), want)
    agree(engine.predict_scores(Image.fromarray(image) for image in images), want)
    agree(engine.run(((images / 255 - 0.5) / 0.25)[..., None].astype(np.float32)), want)


def test_no_session_call_exceeds_the_batch_size(exported, images):
    """Larger ones would need more memory than the operator planned for."""
    engine = Engine(exported()[1], batch_size=3, threads=1)
    given = []
    run = engine.session.run

    class Recording:
        def run(self, names, feed, options):
            given.extend(len(value) for value in feed.values())
            return run(names, feed, options)

    engine.session = Recording()
    engine.predict(iter(images))
    engine.run(np.zeros((7, 8, 8, 1), np.float32))
    assert given == [3, 3, 1] * 2


@pytest.mark.parametrize("nothing", [[], np.empty((0, 8, 8), np.uint8), np.empty((0, 8, 8, 1), np.uint8)])
def test_no_images_no_predictions(engine, nothing):
    assert engine.predict(nothing) == []
    assert engine.predict_scores(nothing).shape == (0, 3)


def test_an_empty_tensor(engine):
    assert engine.run(np.empty((0, 8, 8, 1), np.float32)).shape == (0, 3)


def test_an_open_bundle(exported, images, want):
    agree(Engine(Bundle.open(exported()[1])).predict_scores(images), want)


def test_logits_become_probabilities(exported, images):
    model, folder = exported("logits")
    engine = Engine(folder, threads=1)
    tensor = ((images / 255 - 0.5) / 0.25)[..., None].astype(np.float32)
    logits = np.asarray(model(tensor))
    agree(engine.run(tensor), logits)
    scores = engine.predict_scores(images)
    agree(scores, keras.ops.softmax(logits))
    agree(scores.sum(1), np.ones(7))


def test_large_logits_do_not_overflow(tiny_model, tiny_preprocessing, tmp_path):
    """e to the 1000 is infinite."""
    model = tiny_model("logits")
    model.layers[-1].kernel.assign(np.zeros((4, 3)))
    model.layers[-1].bias.assign([1000, 999, -1000])
    to_bundle(model, tmp_path / "b", preprocessing=tiny_preprocessing, saved_model=False)
    agree(Engine(tmp_path / "b", threads=1).predict_scores(np.zeros((8, 8), np.uint8)), [[0.7310586, 0.2689414, 0]])


# Tensors.


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (np.zeros((1, 8, 8, 1)), r"float32 \['batch', 8, 8, 1\], not float64 \[1, 8, 8, 1\]"),
        (np.zeros((1, 8, 8, 1), np.uint8), "not uint8"),
        (np.zeros((1, 8, 8, 3), np.float32), r"not float32 \[1, 8, 8, 3\]"),
        (np.zeros((1, 9, 8, 1), np.float32), r"not float32 \[1, 9, 8, 1\]"),
        (np.zeros((8, 8, 1), np.float32), r"not float32 \[8, 8, 1\]"),
        (np.zeros((), np.float32), r"not float32 \[\]"),
    ],
)
def test_tensors_that_do_not_fit(engine, tensor, message):
    with pytest.raises(ValueError, match=message):
        engine.run(tensor)


def test_without_preprocessing_only_tensors_run(exported, images):
    model, folder = exported(preprocessed=False)
    engine = Engine(folder, threads=1)
    tensor = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    agree(engine.run(tensor), model(tensor))
    with pytest.raises(BundleError, match=r"export it again with preprocessing=.*Engine\.run"):
        engine.predict(images)


def test_features_are_no_classes(exported, images):
    model, folder = exported("features")
    engine = Engine(folder, threads=1)
    tensor = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    agree(engine.run(tensor), model(tensor))
    with pytest.raises(BundleError, match="gives features, not classes"):
        engine.predict(images)


# What is refused.


def test_an_image_that_cannot_be_read(engine, images, tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(ImageError, match=r"notes\.png is not a"):
        engine.predict([images[0], tmp_path / "notes.png"])


@pytest.mark.parametrize("top", [0, -3])
def test_a_top_below_one(engine, images, top):
    with pytest.raises(ValueError, match=f"top must be at least 1, not {top}"):
        engine.predict(images, top=top)
    with pytest.raises(ValueError, match="top must be at least 1"):
        engine.predict([], top=top)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threads": 0}, ValueError, "threads must be at least 1, not 0"),
        ({"threads": -1}, ValueError, "threads must be at least 1, not -1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, not 0"),
        ({"provider": "gpu"}, ProviderError, "unknown provider 'gpu'; there are cpu, openvino, cuda, tensorrt"),
        ({"precision": "int8"}, BundleError, "no int8 variant; it has float32"),
    ],
)
def test_wrong_options(exported, options, error, message):
    with pytest.raises(error, match=message):
        Engine(exported()[1], **options)


@pytest.mark.parametrize(
    ("provider", "name", "extra"),
    [
        ("cuda", "CUDAExecutionProvider", "serve-gpu"),
        ("tensorrt", "TensorrtExecutionProvider", "serve-gpu"),
        ("openvino", "OpenVINOExecutionProvider", "serve-openvino"),
    ],
)
def test_a_provider_that_is_not_installed(exported, provider, name, extra):
    if name in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has {name}")
    with pytest.raises(ProviderError, match=rf'no {provider} provider.*pip install "keras-resnets\[{extra}\]"'):
        Engine(exported()[1], provider=provider)


# Damage.


def test_a_damaged_model_is_not_opened(bundle_copy):
    data = bytearray((bundle_copy / "model.onnx").read_bytes())
    data[-20] ^= 1
    (bundle_copy / "model.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx is corrupt"):
        Engine(bundle_copy)


@pytest.fixture
def rewrite_golden(bundle_copy):
    """Replace the golden sample, with a manifest that has the right hash for it."""

    def rewrite(**arrays):
        file = bundle_copy / "golden.npz"
        np.savez(file, **arrays)
        manifest = json.loads((bundle_copy / "bundle.json").read_text())
        manifest["files"]["golden.npz"] = {"sha256": sha256(file), "bytes": file.stat().st_size}
        (bundle_copy / "bundle.json").write_text(json.dumps(manifest))
        return bundle_copy

    return rewrite


def test_the_golden_sample_is_reproduced(engine):
    assert engine.check_golden() < 1e-5


@pytest.mark.parametrize("error", [0.01, -0.5, np.nan, np.inf])
def test_other_outputs_than_the_golden_ones(bundle_copy, rewrite_golden, error):
    """As from a processor or a provider that computes something else."""
    inputs, outputs = Bundle.open(bundle_copy).golden()
    outputs[1, 2] += error
    with pytest.raises(BundleError, match="the golden sample differs"):
        Engine(rewrite_golden(input=inputs, output=outputs))


def test_rounding_is_no_difference(bundle_copy, rewrite_golden):
    inputs, outputs = Bundle.open(bundle_copy).golden()
    Engine(rewrite_golden(input=inputs, output=outputs * np.float32(1.0001)))


def test_a_golden_sample_of_fewer_outputs_than_inputs(bundle_copy, rewrite_golden):
    """NumPy would compare the one output with both inputs, and find no difference."""
    inputs, outputs = Bundle.open(bundle_copy).golden()
    with pytest.raises(BundleError, match="golden"):
        Engine(rewrite_golden(input=inputs[[0, 0]], output=outputs[:1]))


@pytest.mark.parametrize(
    "arrays",
    [
        {"input": np.zeros((2, 8, 8, 1), np.uint8)},
        {"input": np.zeros((2, 8, 8, 1), np.uint8), "output": np.zeros((2, 5), np.float32)},
        {"input": np.zeros((2, 9, 9, 1), np.uint8), "output": np.zeros((2, 3), np.float32)},
        {"input": np.zeros((0, 8, 8, 1), np.uint8), "output": np.zeros((0, 3), np.float32)},
    ],
    ids=["no output", "other classes", "other size", "no rows"],
)
def test_a_golden_sample_that_does_not_fit(rewrite_golden, arrays):
    with pytest.raises(BundleError, match="golden"):
        Engine(rewrite_golden(**arrays))
