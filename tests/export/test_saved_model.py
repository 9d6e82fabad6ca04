"""The signatures of a SavedModel that take images do in the graph what the reference does in NumPy and Pillow."""

import io
import struct
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, features
from sklearn.datasets import load_sample_images

from keras_resnets import Preprocessing
from keras_resnets.export import ExportError, saved_model, to_bundle, to_saved_model
from keras_resnets.export import decode as transform
from keras_resnets.preprocessing import ImageError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
PRESETS = ("torch", "caffe", "tf")
COLOUR = Preprocessing((16, 12), resize=20, scale=1 / 127.5, mean=(1.0, 1.0, 1.0), bgr=True)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(picture, form="PNG", **options):
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, form, **options)
    return file.getvalue()


def plain(size, channels=3, **fields):
    return Preprocessing(size, channels, mean=(0.0,) * channels, std=(1.0,) * channels, **fields)


def in_graph(how):
    """The decoding of a batch, as a signature runs it."""
    return tf.function(lambda files: transform.decode(files, how), [tf.TensorSpec([None], tf.string)], autograph=False)


def check_pixels(files, how):
    got = in_graph(how)(tf.constant(files)).numpy()
    np.testing.assert_array_equal(got, np.stack([how.pixels(file) for file in files]))


def small_model(height, width, top=True):
    images = keras.Input((height, width, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu", kernel_initializer=keras.initializers.HeNormal(1))(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    if top:
        x = keras.layers.Dense(4, "softmax", kernel_initializer=keras.initializers.HeNormal(2))(x)
    return keras.Model(images, x)


@pytest.fixture(scope="module")
def colour_model():
    return small_model(16, 12)


@pytest.fixture(scope="module")
def photographs():
    """Two photographs, upright, as a tall and a wide strip, and small."""
    pictures = []
    for image in load_sample_images().images:
        picture = Image.fromarray(image)
        width, height = picture.size
        pictures += [
            picture,
            picture.transpose(Image.Transpose.ROTATE_90),
            picture.crop((width // 3, 0, width // 2, height)),
            picture.crop((0, height // 3, width, height // 2)),
            picture.resize((width // 5, height // 5)),
        ]
    return pictures


# The pixels.


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("size", "resize"), [((7, 5), None), ((24, 31), 40), ((17, 32), 33)])
def test_every_size_is_resized_and_cropped_as_pillow_does(size, resize, interpolation):
    random = np.random.default_rng(0)
    special = [(1, 1), (1, 9), size, (40, 40), (48, 62), (80, 80), (300, 40), (40, 300), (41, 97), (97, 41), (33, 34)]
    shapes = [*special, *random.integers(1, 130, (16, 2))]
    files = [encoded(noise(*shape, 3, seed=i)) for i, shape in enumerate(shapes)]
    check_pixels(files, plain(size, resize=resize, interpolation=interpolation))


@pytest.mark.parametrize(("channels", "resize"), [(3, 72), (3, None), (1, 72)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_photographs_have_the_references_pixels(interpolation, resize, channels, photographs):
    forms = [
        {"form": "PNG"},
        {"form": "JPEG", "quality": 90},
        {"form": "JPEG", "quality": 60, "subsampling": 0},
        {"form": "JPEG", "subsampling": 1, "progressive": True},
    ]
    if not features.check("libjpeg_turbo"):  # another library may round otherwise
        forms = forms[:1]
    files = []
    for i, picture in enumerate(photographs):
        files += [encoded(picture, **forms[i % len(forms)]), encoded(picture.convert("L"), **forms[-1])]
    check_pixels(files, plain((64, 60), channels, resize=resize, interpolation=interpolation))


def png(neighbour, depth, colour, channels, *chunks):
    """A PNG file of random bits, of any kind that the format has."""
    height, width = 13, 16
    rows = noise(height, width * channels * depth // 8)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(neighbour("test_preprocessing.py").png_chunk(*part) for part in parts)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_png_and_jpeg(channels, photographs, neighbour):
    """16 bits keep their upper 8, transparency is dropped."""
    grey, rgb, palette, grey_alpha, rgba = 0, 2, 3, 4, 6
    colours, transparency = noise(256, 3).tobytes(), noise(256).tobytes()
    files = [
        *(png(neighbour, depth, grey, 1) for depth in (1, 2, 4, 8, 16)),
        *(png(neighbour, depth, rgb, 3) for depth in (8, 16)),
        *(png(neighbour, depth, grey_alpha, 2) for depth in (8, 16)),
        *(png(neighbour, depth, rgba, 4) for depth in (8, 16)),
        *(png(neighbour, depth, palette, 1, (b"PLTE", colours[: 3 << depth])) for depth in (1, 2, 4, 8)),
        png(neighbour, 8, palette, 1, (b"PLTE", colours), (b"tRNS", transparency)),
        png(neighbour, 8, grey, 1, (b"tRNS", b"\0\7")),
        png(neighbour, 8, rgb, 3, (b"tRNS", b"\0\7" * 3)),
    ]
    if features.check("libjpeg_turbo"):
        files += [encoded(photographs[0].convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")]
    check_pixels(files, plain((9, 8), channels))
    check_pixels(files, plain((9, 8), channels, resize=12))


def test_exif_orientation_is_not_followed(photographs):
    exif = Image.Exif()
    exif[0x0112] = 6
    how = plain((20, 20), resize=24)
    turned = encoded(photographs[0], exif=exif)
    got = in_graph(how)(tf.constant([turned])).numpy()[0]
    np.testing.assert_array_equal(got, how.pixels(encoded(photographs[0])))
    assert (got != how.pixels(turned)).any()


def test_what_the_reference_refuses_fails_in_the_graph(photographs, neighbour):
    jpeg, lossless = (encoded(photographs[0], form) for form in ("JPEG", "PNG"))
    how = plain((8, 8), resize=8_000)
    wide = encoded(noise(4, 4_000, 3))
    run = in_graph(how)
    for file in (
        b"",
        b"no image",
        jpeg[:10_000],
        lossless[:10_000],
        jpeg[:20],
        encoded(photographs[0].convert("P"), "GIF"),
        encoded(photographs[0], "BMP"),
        neighbour("test_preprocessing.py").png_without_pixels(60_000, 60_000),
        neighbour("test_preprocessing.py").png_without_pixels(0, 5),
        wide,
    ):
        with pytest.raises(ImageError):
            how.pixels(file)
        with pytest.raises(tf.errors.InvalidArgumentError):
            run(tf.constant([encoded(noise(8, 8, 3)), file]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="resized to 8000, has over 25 million pixels"):
        run(tf.constant([wide]))
    assert run(tf.constant([], tf.string)).shape == (0, 8, 8, 3)


@pytest.mark.parametrize("preset", PRESETS)
def test_normalising_gives_the_same_floats(preset):
    how = Preprocessing.preset(preset, 16)
    pixels = np.stack([np.roll(np.arange(256, dtype=np.uint8), i) for i in (0, 50, 99)], -1).reshape(1, 16, 16, 3)
    got = tf.function(lambda pixels: transform.normalize(pixels, how), autograph=False)(tf.constant(pixels))
    np.testing.assert_array_equal(got, how.normalize(pixels))


# The signatures.

LOAD = """
import sys
sys.modules["keras"] = sys.modules["keras_resnets"] = sys.modules["PIL"] = None
import numpy as np
import tensorflow as tf
model = tf.saved_model.load("s")
inputs = np.load("in.npz", allow_pickle=True)
forms = {"serving_default": "tensor", "logits": "tensor", "pixels": "pixels", "encoded": "files"}
assert sorted(model.signatures) == sorted(forms)
out = {}
for key, name in forms.items():
    (out[key],) = model.signatures[key](images=tf.convert_to_tensor(inputs[name])).values()
try:
    model.signatures["encoded"](images=tf.constant([b"no image"]))
except tf.errors.InvalidArgumentError:
    out["refused"] = True
np.savez("out.npz", **out, decoded=model.decode(tf.convert_to_tensor(inputs["files"])))
"""


def test_every_signature_runs_where_only_tensorflow_is(colour_model, photographs, tmp_path):
    files = [encoded(picture) for picture in photographs]
    pixels = np.stack([COLOUR.pixels(file) for file in files])
    tensor = COLOUR.normalize(pixels)
    to_saved_model(colour_model, tmp_path / "s", preprocessing=COLOUR)
    np.savez(tmp_path / "in.npz", tensor=tensor, pixels=pixels, files=np.array(files, object))
    subprocess.run([sys.executable, "-c", LOAD], check=True, capture_output=True, cwd=tmp_path)
    expected = np.asarray(colour_model(tensor, training=False))
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_array_equal(out["decoded"], pixels)
        for key in ("serving_default", "pixels", "encoded"):
            np.testing.assert_allclose(out[key], expected, atol=1e-6)
            np.testing.assert_array_equal(out[key].argmax(-1), expected.argmax(-1))
        np.testing.assert_allclose(keras.ops.softmax(out["logits"]), expected, atol=1e-6)
        assert out["refused"]


def test_the_models_own_preprocessing_is_the_default(tmp_path):
    model = small_model(16, 12, top=False)
    without = tf.saved_model.load(str(to_saved_model(model, tmp_path / "without")))
    assert list(without.signatures) == ["serving_default"]
    model.preprocessing = COLOUR
    loaded = tf.saved_model.load(str(to_saved_model(model, tmp_path / "with")))
    assert sorted(loaded.signatures) == ["encoded", "pixels", "serving_default"]
    pixels = noise(2, 16, 12, 3)
    got = loaded.signatures["pixels"](images=tf.constant(pixels))["features"]
    expected = np.asarray(model(COLOUR.normalize(pixels)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_open_sides_stay_open_for_pixels(tmp_path):
    model = small_model(None, None)
    loaded = tf.saved_model.load(str(to_saved_model(model, tmp_path / "s", preprocessing=COLOUR)))
    for shape in ((2, 16, 12, 3), (1, 33, 40, 3)):
        pixels = noise(*shape)
        got = loaded.signatures["pixels"](images=tf.constant(pixels))["probabilities"]
        np.testing.assert_allclose(got, model(COLOUR.normalize(pixels)), atol=1e-6)
    files = tf.constant([encoded(noise(50, 60, 3))])
    assert loaded.signatures["encoded"](images=files)["probabilities"].shape == (1, 4)


@pytest.mark.parametrize("how", [Preprocessing((16, 16)), plain((16, 12), 1)])
def test_a_preprocessing_that_does_not_fit(how, colour_model, tmp_path):
    with pytest.raises(ExportError, match=r"the preprocessing makes .* takes \(16, 12, 3\)"):
        to_saved_model(colour_model, tmp_path / "s", preprocessing=how)
    assert list(tmp_path.iterdir()) == []


# What to_bundle proves of them.


@pytest.fixture
def folder(photographs, tmp_path):
    (tmp_path / "photographs").mkdir()
    for i, picture in enumerate(photographs):
        picture.save(tmp_path / "photographs" / f"{i}.{('jpg', 'png')[i % 2]}")
    return tmp_path / "photographs"


@pytest.mark.parametrize("output", ["probabilities", "logits", "features"])
def test_every_signature_is_verified(output, tiny_model, tiny_preprocessing, tmp_path):
    bundle = to_bundle(tiny_model(output), tmp_path / "b", preprocessing=tiny_preprocessing)
    forms = {(row["runtime"], row["output"]) for row in bundle.manifest.verification}
    outputs = {"probabilities": {"probabilities", "logits"}}.get(output, {output})
    runtimes = ("onnxruntime", "saved_model", "saved_model pixels", "saved_model encoded")
    assert forms == {(runtime, kind) for runtime in runtimes for kind in outputs}


@pytest.mark.parametrize("resize", [None, 20])
def test_files_of_several_forms_verify(resize, colour_model, folder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("jpg", "webp"):
        Image.fromarray(noise(30, 50, 3)).save(folder / f"turned.{form}", exif=exif)
    how = Preprocessing((16, 12), resize=resize)
    images = [*folder.iterdir(), noise(40, 30, 3), str(folder / "0.jpg")]
    to_bundle(colour_model, tmp_path / "b", preprocessing=how, images=images).check()


def swapped(pixels, how):
    return transform.normalize(pixels[..., ::-1], how)


def shifted(files, how):
    return tf.roll(transform.decode(files, how), 1, 2)


@pytest.mark.parametrize(
    ("step", "fault", "form"), [("normalize", swapped, "pixels"), ("decode", shifted, "encoded")]
)  # fmt: skip
def test_a_step_that_is_wrong_is_found(step, fault, form, colour_model, tmp_path, monkeypatch):
    monkeypatch.setattr(saved_model, step, fault)
    with pytest.raises(ExportError, match=f"saved_model {form} drifts from Keras"):
        to_bundle(colour_model, tmp_path / "b", preprocessing=COLOUR)
    assert list(tmp_path.iterdir()) == []


def test_images_files_are_resized_in_the_graph(colour_model, folder, tmp_path, monkeypatch):
    """Noise is put into files of the right size, which no kernel changes; images keep theirs."""
    monkeypatch.setitem(transform._KERNELS, "bilinear", transform._KERNELS["bicubic"])
    to_bundle(colour_model, tmp_path / "noise", preprocessing=COLOUR)
    with pytest.raises(ExportError, match=r"saved_model encoded drifts .* on images"):
        to_bundle(colour_model, tmp_path / "images", preprocessing=COLOUR, images=folder)
