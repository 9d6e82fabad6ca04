"""The reference transform, against arithmetic written down a second time and against keras.applications."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from keras_resnets import Preprocessing
from keras_resnets.preprocessing import ImageError, load_image

SMALL = Preprocessing((4, 4))
GREY = Preprocessing((4, 4), 1, mean=(0.0,), std=(1.0,))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(picture, form="PNG", **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_without_pixels(width, height):
    """A PNG file that declares a size and has nothing to decode."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")


# The arithmetic.


def test_torch_preset_by_hand():
    image = noise(6, 6, 3)
    got = Preprocessing.preset("torch", 6, resize=6)([image])[0]
    red, green, blue = (image[..., c] / 255 for c in range(3))
    want = np.stack([(red - 0.485) / 0.229, (green - 0.456) / 0.224, (blue - 0.406) / 0.225], -1)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_caffe_preset_by_hand():
    image = noise(6, 6, 3)
    got = Preprocessing.preset("caffe", 6, resize=6)([image])[0]
    red, green, blue = (image[..., c].astype(float) for c in range(3))
    np.testing.assert_allclose(got, np.stack([blue - 103.939, green - 116.779, red - 123.68], -1), atol=1e-4)


def test_tf_preset_spans_minus_one_to_one():
    image = np.array([0, 51, 255], np.uint8).reshape(1, 3, 1).repeat(3, 0).repeat(3, 2)
    got = Preprocessing.preset("tf", 3, resize=3)([image])[0]
    np.testing.assert_allclose(got[0, :, 0], [-1, -0.6, 1], atol=1e-6)


@pytest.mark.parametrize("mode", ["torch", "caffe", "tf"])
def test_presets_agree_with_keras(mode):
    from keras.applications.imagenet_utils import preprocess_input

    image = noise(12, 10, 3)
    got = Preprocessing.preset(mode, (12, 10), resize=12).normalize(image)
    np.testing.assert_allclose(got, preprocess_input(image.astype(np.float32), mode=mode), atol=2e-5)


def test_normalize_leaves_its_argument_alone():
    pixels = noise(2, 4, 4, 3)
    before = pixels.copy()
    values = Preprocessing.preset("caffe", 4).normalize(pixels)
    assert values.dtype == np.float32
    assert values.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(pixels, before)


def test_batches():
    images = [noise(9, 7, 3, seed=i) for i in range(3)]
    batch = SMALL(iter(images))
    assert batch.shape == (3, 4, 4, 3)
    assert batch.dtype == np.float32
    for row, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(row, SMALL.pixels(image))
    assert SMALL([]).shape == (0, 4, 4, 3)


# The geometry.


@pytest.mark.parametrize(("height", "width"), [(10, 16), (16, 10), (10, 10)])
def test_the_crop_is_the_centre(height, width):
    """The shorter side is right already, so that nothing is resampled."""
    image = noise(height, width, 3)
    top, left = (height - 6) // 2, (width - 4) // 2
    got = Preprocessing((6, 4), resize=10).pixels(image)
    np.testing.assert_array_equal(got, image[top : top + 6, left : left + 4])


@pytest.mark.parametrize(("height", "width"), [(5, 9), (9, 5)])
def test_the_shorter_side_is_resized_and_the_aspect_kept(height, width):
    image = noise(height, width, 3)
    large = image.repeat(2, 0).repeat(2, 1)
    got = Preprocessing((10, 10), resize=10, interpolation="nearest").pixels(image)
    top, left = (large.shape[0] - 10) // 2, (large.shape[1] - 10) // 2
    np.testing.assert_array_equal(got, large[top : top + 10, left : left + 10])


def test_without_resize_the_whole_image_is_squeezed():
    image = np.zeros((10, 40), np.uint8)
    image[:, 20:] = 255
    got = Preprocessing((6, 4), 1, mean=(0,), std=(1,), interpolation="nearest").pixels(image)
    np.testing.assert_array_equal(got[..., 0], [[0, 0, 255, 255]] * 6)


def test_an_image_of_the_right_size_is_not_touched():
    image = noise(4, 4, 3)
    np.testing.assert_array_equal(SMALL.pixels(image), image)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_shrinking_averages(interpolation):
    """Without antialiasing a fine checkerboard would come out as black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    got = Preprocessing((4, 4), 1, mean=(0,), std=(1,), interpolation=interpolation).pixels(board)
    assert np.all(np.abs(got.astype(int) - 128) < 8)


def test_interpolations_differ():
    image = noise(9, 9, 3)
    results = {Preprocessing((5, 5), interpolation=name).pixels(image).tobytes() for name in (
        "nearest", "bilinear", "bicubic", "lanczos",
    )}  # fmt: skip
    assert len(results) == 4


def test_the_default_resize_is_the_usual_protocol():
    assert Preprocessing.preset("torch").resize == 256
    assert Preprocessing.preset("torch", 299).resize == 342
    assert Preprocessing.preset("torch", 224, resize=232).resize == 232


# What comes in.


def test_every_kind_of_source_is_the_same_image(tmp_path):
    image = noise(7, 9, 3)
    picture = Image.fromarray(image)
    file = tmp_path / "image.png"
    picture.save(file)
    want = SMALL.pixels(image)
    for source in (file, str(file), file.read_bytes(), picture):
        np.testing.assert_array_equal(SMALL.pixels(source), want)


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats(form, options):
    image = noise(4, 4, 3)
    np.testing.assert_array_equal(SMALL.pixels(encoded(Image.fromarray(image), form, **options)), image)


def test_jpeg_is_close():
    """A smooth image, since JPEG is lossy."""
    image = np.add.outer(np.arange(16) * 8, np.arange(16) * 8).astype(np.uint8)[..., None].repeat(3, 2)
    got = Preprocessing((16, 16)).pixels(encoded(Image.fromarray(image), "JPEG", quality=95))
    assert np.abs(got.astype(int) - image).max() <= 6


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_images_become_three_equal_channels(mode):
    picture = Image.fromarray((noise(4, 4) > 127).astype(np.uint8) * 255).convert(mode)
    got = SMALL.pixels(encoded(picture))
    assert set(np.unique(got)) == {0, 255}
    np.testing.assert_array_equal(got, GREY.pixels(encoded(picture)).repeat(3, 2))


def test_colour_becomes_luma():
    """ITU-R 601, as in torchvision and Pillow."""
    image = noise(4, 4, 3)
    want = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(GREY.pixels(image)[..., 0] - want).max() <= 1


def test_alpha_is_left_out():
    image = noise(4, 4, 4)
    np.testing.assert_array_equal(SMALL.pixels(encoded(Image.fromarray(image))), image[..., :3])


def test_palettes_are_looked_up():
    colours = noise(3, 3, seed=5)
    index = noise(4, 4) % 3
    picture = Image.fromarray(index).convert("P")
    picture.putpalette(colours.tobytes())
    np.testing.assert_array_equal(SMALL.pixels(encoded(picture)), colours[index])


@pytest.mark.parametrize("transform", [GREY, SMALL], ids=["to grey", "to colour"])
def test_sixteen_bits_a_pixel_keep_their_brightness(transform):
    deep = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    got = transform.pixels(encoded(Image.fromarray(deep)))
    assert np.abs(got.astype(float) - deep[..., None] / 257).max() <= 1


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1)])
def test_grey_arrays(shape):
    image = noise(*shape)
    np.testing.assert_array_equal(GREY.pixels(image)[..., 0], image.reshape(4, 4))
    np.testing.assert_array_equal(SMALL.pixels(image)[..., 2], image.reshape(4, 4))


def test_arrays_of_any_memory_layout():
    image = noise(8, 8, 3)
    np.testing.assert_array_equal(SMALL.pixels(image[::2, ::-2]), image[::2, ::-2].copy())


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation):
    stored = noise(3, 5)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(encoded(Image.fromarray(stored), exif=exif.tobytes()))
    np.testing.assert_array_equal(np.asarray(upright), UPRIGHT[orientation](stored))


# The record.


@pytest.mark.parametrize(
    "record",
    [
        Preprocessing.preset("torch"),
        Preprocessing.preset("caffe", (192, 160)),
        Preprocessing((8, 8), 1, scale=1 / 255, mean=(0.2861,), std=(0.353,), interpolation="nearest"),
    ],
)
def test_round_trip_through_json(record):
    assert Preprocessing.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_lists_and_tuples_make_equal_records():
    one = Preprocessing([4, 4], mean=[0, 0, 0], std=[1, 1, 1])
    assert one == SMALL
    assert hash(one) == hash(SMALL)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "size"),
        ({"size": [4, 4], "zoom": 2}, "zoom"),
        ({"size": 4}, "not a preprocessing record"),
        ({"size": [4, 4], "std": [1.0]}, "one a channel"),
        ({"size": [4.5, 4]}, "size"),
        ({"size": [4, 4], "scale": "1/255"}, "scale"),
        ({"size": [4, 4], "mean": ["a", "b", "c"]}, "mean"),
    ],
)
def test_records_that_are_not_records(data, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_dict(data)


NAN = float("nan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (4, 4, 3)}, "size must be"),
        ({"size": (0, 4)}, "size must be"),
        ({"channels": 4}, "channels must be 1 or 3"),
        ({"channels": 1}, "mean and std need 1 values"),
        ({"mean": (0.0,)}, "mean and std need 3 values"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"std": (1.0, -1.0, 1.0)}, "std must be positive"),
        ({"std": (NAN, 1.0, 1.0)}, "std"),
        ({"mean": (NAN, 0.0, 0.0)}, "mean"),
        ({"scale": NAN}, "scale"),
        ({"interpolation": "box"}, "nearest, bilinear, bicubic, lanczos"),
        ({"resize": 3}, "resize 3 is smaller than the crop"),
        ({"channels": 1, "mean": (0.0,), "std": (1.0,), "bgr": True}, "bgr needs 3 channels"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{"size": (4, 4), **arguments})


def test_an_unknown_preset_names_the_others():
    with pytest.raises(ValueError, match="torch, caffe, tf"):
        Preprocessing.preset("pytorch")


# What is refused.


@pytest.mark.parametrize("source", [lambda path: path, str])
def test_a_missing_file(tmp_path, source):
    with pytest.raises(ImageError, match=r"absent\.png: no such file"):
        load_image(source(tmp_path / "absent.png"))


def test_a_folder(tmp_path):
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


def test_text_called_png(tmp_path):
    file = tmp_path / "notes.png"
    file.write_text("not an image")
    with pytest.raises(ImageError, match=r"notes\.png is not a JPEG, PNG or WEBP image"):
        load_image(file)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff"])
def test_bytes_that_are_no_image(data):
    with pytest.raises(ImageError, match="the image is not a"):
        load_image(data)


def test_other_formats_are_refused():
    """Each decoder that is not asked for is one less to attack."""
    for form in ("GIF", "BMP", "TIFF"):
        with pytest.raises(ImageError, match="is not a JPEG, PNG or WEBP image"):
            load_image(encoded(Image.fromarray(noise(4, 4)), form))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_files(tmp_path, form, kept):
    data = encoded(Image.fromarray(noise(64, 64, 3)), form)
    file = tmp_path / "half"
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match="half cannot be decoded"):
        load_image(file)


def test_a_truncated_file_that_pillow_opened():
    """Pillow reads the header at open and the pixels at first use, which is ours."""
    data = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    with pytest.raises(ImageError):
        SMALL.pixels(Image.open(io.BytesIO(data[: len(data) // 2])))


def test_a_png_with_a_flipped_bit():
    data = bytearray(encoded(Image.fromarray(noise(32, 32, 3))))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(bytes(data))


def test_over_25_million_pixels():
    small_file = encoded(Image.new("1", (5001, 5000)))
    assert len(small_file) < 10_000
    with pytest.raises(ImageError, match="5001×5000 is over the limit of 25 million pixels"):
        load_image(small_file)


@pytest.mark.parametrize("side", [5001, 20_000])
def test_the_size_is_checked_before_decoding(side):
    with pytest.raises(ImageError, match="over the limit of 25 million pixels"):
        load_image(png_without_pixels(side, side))


@pytest.mark.filterwarnings("error")
def test_the_refusal_of_a_large_image_is_the_only_message():
    """Pillow warns of its own limit from 89 million pixels on."""
    with pytest.raises(ImageError, match="over the limit of 25 million pixels"):
        load_image(png_without_pixels(10_000, 10_000))


def test_a_line_of_pixels_does_not_fill_the_memory():
    """10 million pixels in one row: the shorter side at 256 would make 655 billion of them."""
    with pytest.raises(ImageError):
        Preprocessing.preset("torch").pixels(Image.new("L", (10_000_000, 1)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"must be uint8 .* not float32"),
        (np.zeros((4, 4), np.int64), r"must be uint8 .* not int64"),
        (noise(4), r"not \[4\]"),
        (noise(2, 4, 4, 3), r"not \[2, 4, 4, 3\]"),
        (noise(4, 4, 2), r"not \[4, 4, 2\]"),
        (noise(0, 4, 3), "without pixels"),
        (noise(4, 0), "without pixels"),
        (None, "must be uint8"),
    ],
)
def test_arrays_that_are_no_image(array, message):
    with pytest.raises(ImageError, match=message):
        SMALL.pixels(array)


@pytest.mark.parametrize("resize", [None, 4])
def test_a_picture_without_pixels(resize):
    with pytest.raises(ImageError, match="without pixels"):
        Preprocessing((4, 4), resize=resize).pixels(Image.new("RGB", (0, 4)))


def test_an_uncropped_image_is_what_the_crop_is_taken_from():
    photo = Image.fromarray(noise(60, 90, 3))
    torch = Preprocessing.preset("torch", 32, 40)
    whole = torch.uncropped(photo)
    assert whole.shape == (40, 60, 3)
    assert np.array_equal(whole[4:36, 14:46], torch.pixels(photo))
    assert np.array_equal(whole, np.asarray(photo.resize((60, 40), Image.Resampling.BILINEAR)))
    assert torch.uncropped(photo, 20).shape == (20, 30, 3)
    assert np.array_equal(SMALL.uncropped(photo), SMALL.pixels(photo))
    assert GREY.uncropped(photo, 10).shape == (10, 15, 1)
    with pytest.raises(ImageError, match="exceeds 25 million"):
        SMALL.uncropped(Image.new("L", (1_000_000, 1)), 256)
