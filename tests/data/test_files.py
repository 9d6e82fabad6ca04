"""Pictures in files: their decoding against Pillow's, odd and broken ones, folders of classes."""

import io
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_resnets.data import DataError, Split, load_dataset, load_folder
from keras_resnets.data.encoded import FileSplit
from keras_resnets.data.pictures import is_ordinary
from keras_resnets.data.pipeline import (
    Augmentation,
    CorruptSamples,
    Shard,
    evaluation_batches,
    explain,
    training_batches,
)
from keras_resnets.preprocessing import Preprocessing

SIDE = 48
SAME = Preprocessing((SIDE, SIDE), 3, mean=(0.0,) * 3, std=(1.0,) * 3)
GREY = Preprocessing((SIDE, SIDE), 1, mean=(0.0,), std=(1.0,))
# Of a square picture no part of the whole area has another aspect, so that this takes the whole.
WHOLE = Augmentation(crop="random_resized", min_area=1.0)


def picture(number=0, size=(SIDE, SIDE)):
    """A smooth colourful picture, different for each number."""
    x, y = np.meshgrid(np.linspace(0, 3, size[0]), np.linspace(0, 3, size[1]))
    waves = [np.sin(x * (1 + c) + number) * np.cos(y * (2 - c / 2) - number) for c in range(3)]
    return Image.fromarray((127.5 * (1 + np.stack(waves, -1))).astype(np.uint8))


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, **options)
    return file.getvalue()


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(picture(1, (SIDE, SIDE)), exif=exif)


def upright_with_exif():
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    return jpeg(picture(2), exif=exif)


def deep():
    """Grey levels of 16 bits."""
    return png(Image.fromarray(np.asarray(picture(3).convert("L")).astype(np.uint16) * 257))


ODD = {
    "jpeg": lambda: jpeg(picture()),
    "jpeg without subsampling": lambda: jpeg(picture(), subsampling=0),
    "progressive": lambda: jpeg(picture(), progressive=True),
    "grey jpeg": lambda: jpeg(picture().convert("L")),
    "cmyk jpeg": lambda: jpeg(picture().convert("CMYK")),
    "exif, rotated": rotated,
    "exif, upright": upright_with_exif,
    "png": lambda: png(picture()),
    "png with alpha": lambda: png(picture().convert("RGBA")),
    "palette png": lambda: png(picture().quantize(16)),
    "16-bit png": deep,
}


def split_of(folder, contents):
    """A split of files with these bytes; all are called .jpg."""
    names = []
    for number, content in enumerate(contents):
        (folder / f"{number}.jpg").write_bytes(content)
        names.append(f"{number}.jpg")
    return FileSplit(np.arange(len(names)), folder, tuple(names))


def collect(batches):
    return tuple(np.concatenate(column) for column in zip(*((x.numpy(), y.numpy()) for x, y in batches), strict=True))


def train(split, augmentation=WHOLE, batch_size=1, preprocessing=SAME, **more):
    return training_batches(split, preprocessing, augmentation, batch_size, 0, 0, **more)


# Decoding.


@pytest.mark.parametrize("preprocessing", [SAME, GREY], ids=["colour", "grey"])
def test_odd_files_train_as_they_evaluate(tmp_path, preprocessing):
    """Whatever a file is, training sees the reference transform's pixels."""
    split = split_of(tmp_path, [make() for make in ODD.values()])
    want = preprocessing(tmp_path / name for name in split.files)
    images, labels = collect(train(split, preprocessing=preprocessing))
    np.testing.assert_array_equal(np.sort(labels), np.arange(len(ODD)))
    for image, label in zip(images, labels, strict=True):
        np.testing.assert_allclose(image, want[label], atol=1, err_msg=list(ODD)[label])
    evaluated, order = collect(evaluation_batches(split, preprocessing, 4))
    np.testing.assert_array_equal(order, np.arange(len(ODD)))
    np.testing.assert_array_equal(evaluated, want)


def test_a_plain_jpeg_has_pillows_pixels_exactly(tmp_path):
    split = split_of(tmp_path, [jpeg(picture(number)) for number in range(4)])
    images, labels = collect(train(split))
    for image, label in zip(images, labels, strict=True):
        np.testing.assert_array_equal(image, np.asarray(split.image(label)))


@pytest.mark.parametrize(
    ("name", "ordinary"),
    [(name, name in ("jpeg", "jpeg without subsampling", "progressive", "grey jpeg", "exif, upright")) for name in ODD],
)
def test_what_tensorflow_decodes_itself(name, ordinary):
    assert is_ordinary(ODD[name]()) == ordinary


@pytest.mark.parametrize("size", [(SIDE * 2, SIDE * 2), (SIDE * 5, SIDE * 5), (900, 900)])
@pytest.mark.parametrize("encode", [jpeg, png])
def test_large_pictures_are_reduced_without_a_shift(tmp_path, size, encode):
    """Also where libjpeg decodes them at a half, a quarter or an eighth."""
    split = split_of(tmp_path, [encode(picture(0, size))])
    images, _ = collect(train(split))
    want = np.asarray(picture(0, size).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    assert np.abs(images[0] - want).mean() < 1.5


@pytest.mark.parametrize("crop", ["random_resized", "shorter_side"])
@pytest.mark.parametrize("encode", [jpeg, png])
def test_a_crop_is_a_part_of_the_picture(tmp_path, crop, encode):
    """The pixels hold their own place in the picture as colours: the crop's corners and scale can be read off."""
    size = (200, 160)
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    image = Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))
    options = {"subsampling": 0, "quality": 100} if encode is jpeg else {}
    file = io.BytesIO()
    image.save(file, encode.__name__.upper(), **options)
    split = split_of(tmp_path, [file.getvalue()] * 12)
    images, _ = collect(train(split, Augmentation(crop=crop)))
    areas = []
    for part in images:
        across, down = part[..., 0].mean(0), part[..., 1].mean(1)
        # Linear, within the picture, from edge to edge.
        for values, limit in ((across, size[0]), (down, size[1])):
            np.testing.assert_allclose(np.diff(values, 2), 0, atol=1.5)
            assert values[0] > -1.5
            assert values[-1] < limit + 0.5
        np.testing.assert_allclose(part[..., 0], np.broadcast_to(across, (SIDE, SIDE)), atol=3)
        areas.append((across[-1] - across[0]) * (down[-1] - down[0]) / (size[0] * size[1]))
    if crop == "random_resized":
        assert 0.05 < min(areas) < max(areas) <= 1
    else:
        assert 0.15 < min(areas) < max(areas) < 0.62  # (224/480)² to (224/256)² of 160×160
    assert len({round(area, 3) for area in areas}) > 6


def test_pictures_in_memory_and_in_files_are_the_same_to_training(tmp_path):
    images = np.stack([np.asarray(picture(number)) for number in range(6)])
    memory = Split(images, np.arange(6))
    files = split_of(tmp_path, [png(picture(number)) for number in range(6)])
    for augmentation in (
        Augmentation(pad=3, flip=True, random_erasing=0.5),
        Augmentation(crop="random_resized", flip=True, rand_augment=(2, 5)),
    ):
        for one, two in zip(collect(train(memory, augmentation)), collect(train(files, augmentation)), strict=True):
            np.testing.assert_array_equal(one, two)


def test_small_pictures_in_memory_for_a_larger_network():
    """As evaluation resizes them, which is the reference."""
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 20, 1), np.uint8)
    split, preprocessing = Split(images, np.arange(5)), Preprocessing((32, 32), 3, mean=(0.0,) * 3, std=(1.0,) * 3)
    want = preprocessing(images)
    np.testing.assert_array_equal(collect(evaluation_batches(split, preprocessing, 2))[0], want)
    trained, labels = collect(train(split, Augmentation(), preprocessing=preprocessing))
    np.testing.assert_array_equal(trained, want[labels])


# Pictures that cannot be read.


def damaged():
    whole = jpeg(picture())
    scan = whole.index(b"\xff\xda")
    return {
        "truncated": whole[: len(whole) * 2 // 3],
        "empty": b"",
        "text": b"a shopping list, which is no picture at all",
        "header only": whole[: scan + 4],
        "truncated png": png(picture())[:-200],
        "jfif and nothing": whole[:24],
    }


@pytest.mark.parametrize("kind", damaged())
@pytest.mark.parametrize("augmentation", [WHOLE, Augmentation()], ids=["fused", "as in evaluation"])
def test_a_broken_picture_is_named(tmp_path, kind, augmentation):
    split = split_of(tmp_path, [jpeg(picture(0)), damaged()[kind], jpeg(picture(2))])
    with pytest.raises(tf.errors.OpError) as caught:
        collect(train(split, augmentation))
    error = explain(caught.value, split)
    assert isinstance(error, DataError)
    assert "1.jpg" in str(error)
    with pytest.raises(DataError, match=r"1\.jpg"):
        split.image(1)


def test_a_broken_picture_of_an_evaluation_is_named(tmp_path):
    split = split_of(tmp_path, [jpeg(picture(0)), damaged()["truncated"], jpeg(picture(2))])
    with pytest.raises(tf.errors.OpError) as caught:
        collect(evaluation_batches(split, SAME, 2))
    assert "1.jpg" in str(explain(caught.value, split))


def test_a_file_that_is_gone_is_named(tmp_path):
    split = split_of(tmp_path, [jpeg(picture(number)) for number in range(3)])
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(tf.errors.OpError) as caught:
        collect(train(split))
    assert "2.jpg" in str(explain(caught.value, split))
    assert "No such file" in str(explain(caught.value, split))


def test_an_error_that_has_nothing_to_do_with_pictures(tmp_path):
    split = split_of(tmp_path, [jpeg(picture())])
    assert explain(ValueError("the loss is not finite"), split) is None


def test_the_error_comes_at_the_step_of_the_picture(tmp_path):
    """All steps before it are trained."""
    split = split_of(tmp_path, [jpeg(picture(number)) for number in range(10)])
    order = [int(label) for _, labels in train(split) for label in labels]
    (tmp_path / f"{order[6]}.jpg").write_bytes(b"")
    seen = []
    with pytest.raises(tf.errors.OpError):
        for _, labels in train(split, batch_size=2):
            seen += labels.numpy().tolist()
    assert seen == order[:6]


@pytest.fixture
def holes(tmp_path):
    """Twelve pictures of which four are broken, two of them neighbours in the epoch's order; and that order."""
    split = split_of(tmp_path, [jpeg(picture(number)) for number in range(12)])
    order = [int(label) for _, labels in train(split) for label in labels]
    broken = [order[place] for place in (0, 4, 5, 11)]
    for number, content in zip(broken, damaged().values(), strict=False):
        (tmp_path / f"{number}.jpg").write_bytes(content)
    return split, order, broken


def test_skipping_takes_the_next_of_the_order(holes):
    split, order, broken = holes
    corrupt = CorruptSamples()
    images, labels = collect(train(split, batch_size=4, on_corrupt="skip", corrupt=corrupt))
    want = list(order)
    want[0], want[4], want[5], want[11] = order[1], order[6], order[6], order[1]
    assert labels.tolist() == want
    for image, label in zip(images, labels, strict=True):
        np.testing.assert_array_equal(image, np.asarray(split.image(label)))
    assert corrupt.count == 4
    assert sorted(corrupt.names) == sorted(f"{number}.jpg" for number in broken)


def test_skipping_is_the_same_for_any_replicas_and_when_resumed(holes):
    split, _, _ = holes
    augmentation = Augmentation(crop="random_resized", flip=True, mixup=0.3)
    more = {"on_corrupt": "skip", "classes": 12, "batch_size": 6}
    whole = [(x.numpy(), y.numpy()) for x, y in train(split, augmentation, **more)]
    counted = [CorruptSamples(), CorruptSamples()]
    parts = [
        [(x.numpy(), y.numpy()) for x, y in train(split, augmentation, shard=shard, corrupt=corrupt, **more)]
        for shard, corrupt in zip((Shard(0, 1, 2), Shard(1, 1, 2)), counted, strict=True)
    ]
    for step, (images, targets) in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[step][0] for part in parts]), images)
        np.testing.assert_array_equal(np.concatenate([part[step][1] for part in parts]), targets)
    # Each is counted by one process.
    assert sum(corrupt.count for corrupt in counted) == 4
    (resumed,) = train(split, augmentation, start=1, **more)
    np.testing.assert_array_equal(resumed[0], whole[1][0])


def test_skipping_of_everything_is_an_error(tmp_path):
    split = split_of(tmp_path, [b""] * 4)
    with pytest.raises(tf.errors.OpError) as caught:
        collect(train(split, on_corrupt="skip"))
    assert ".jpg" in str(explain(caught.value, split))


def test_another_way_with_corrupt_pictures(tmp_path):
    with pytest.raises(DataError, match="on_corrupt must be one of error, skip, not 'ignore'"):
        train(split_of(tmp_path, [b""]), on_corrupt="ignore")


# Folders.


def fill(root, layout):
    """{"train/cat": 3, …} as pictures."""
    for place, number in layout.items():
        (root / place).mkdir(parents=True)
        for index in range(number):
            (root / place / f"{index:02d}.jpeg").write_bytes(jpeg(picture(index)))
    return root


def names(split):
    return [split.name(row) for row in range(len(split))]


def test_a_folder_of_classes(tmp_path):
    root = fill(tmp_path, {"train/dog": 3, "train/cat": 2, "val/cat": 1, "val/dog": 1})
    (root / "train/cat/.hidden.jpg").write_bytes(b"")
    (root / "train/cat/notes.txt").write_text("no picture")
    (root / "train/cat/A.PNG").write_bytes(png(picture(7)))
    data = load_dataset(f"folder:{root}", size=64)
    assert data.class_names == ("cat", "dog")
    assert names(data.train) == [
        "train/cat/00.jpeg", "train/cat/01.jpeg", "train/cat/A.PNG",
        "train/dog/00.jpeg", "train/dog/01.jpeg", "train/dog/02.jpeg",
    ]  # fmt: skip
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.labels.dtype == np.int64
    # As usual for ImageNet, the validation images are those to test with.
    assert names(data.test) == ["val/cat/00.jpeg", "val/dog/00.jpeg"]
    assert data.validation is None
    assert data.preprocessing == Preprocessing.preset("torch", 64)
    assert load_folder(root).preprocessing.size == (224, 224)
    images, labels = collect(evaluation_batches(data.test, data.preprocessing, 5))
    np.testing.assert_array_equal(images, data.preprocessing([root / "val/cat/00.jpeg"] * 2))
    assert labels.tolist() == [0, 1]


def test_a_folder_with_validation_and_test(tmp_path):
    data = load_folder(fill(tmp_path, {"train/a": 3, "validation/a": 2, "test/a": 1}))
    assert (len(data.train), len(data.validation), len(data.test)) == (3, 2, 1)
    with pytest.raises(DataError, match="held out already"):
        data.hold_out(1)


@pytest.mark.parametrize("inner", ["", "train/"])
def test_a_folder_of_classes_alone(tmp_path, inner):
    """A tenth of each class is kept to test with, the same files every time."""
    data = load_folder(fill(tmp_path, {f"{inner}a": 21, f"{inner}b": 5, f"{inner}c": 1}))
    assert np.bincount(data.test.labels, minlength=3).tolist() == [2, 1, 0]
    assert np.bincount(data.train.labels, minlength=3).tolist() == [19, 4, 1]
    assert not set(names(data.train)) & set(names(data.test))
    assert names(load_folder(tmp_path).test) == names(data.test)
    held = data.hold_out(6)
    assert (len(held.train), len(held.validation)) == (18, 6)
    assert set(names(held.train)) | set(names(held.validation)) == set(names(data.train))


def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(DataError, match="absent is no folder"):
        load_folder(tmp_path / "absent")
    with pytest.raises(DataError, match="has no folders of classes"):
        load_folder(tmp_path)
    fill(tmp_path, {"train/a": 0})
    with pytest.raises(DataError, match="train has no pictures"):
        load_folder(tmp_path)
    shutil.rmtree(tmp_path / "train")
    fill(tmp_path, {"train/a": 1, "val/a": 1, "val/b": 1})
    with pytest.raises(DataError, match="has the class 'b', of which there are no training images"):
        load_folder(tmp_path)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(DataError, match="one picture a class"):
        load_folder(tmp_path)


def test_a_place_that_is_missing():
    with pytest.raises(DataError, match=r"'folder:' says no place: folder:PATH"):
        load_dataset("folder:")


def test_tensorflow_may_decode_in_parallel_where_it_shall_be_deterministic(tmp_path):
    """Under enable_op_determinism tf.data runs functions with stateful operations one at a time."""
    split = split_of(tmp_path, [jpeg(picture())] * 4)
    for batches in (train(split, Augmentation(crop="random_resized", flip=True)), evaluation_batches(split, SAME, 2)):
        graph = tf.compat.v1.GraphDef.FromString(batches._as_serialized_graph().numpy())
        inner = {node.op for function in graph.library.function for node in function.node_def}
        assert inner & {"DecodeAndCropJpeg", "PyFuncStateless"}
        assert not sorted(inner & {"PyFunc", "EagerPyFunc", "DatasetToSingleElement"})
