"""What training images go through, against NumPy, Pillow and the papers."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from keras_resnets.data import DataError, Split
from keras_resnets.data.augmentation import OPERATIONS as NUMBER
from keras_resnets.data.augmentation import Augmentation, draw
from keras_resnets.data.pictures import crop_box
from keras_resnets.data.pipeline import Shard, training_batches
from keras_resnets.data.randaugment import OPERATIONS, rand_augment
from keras_resnets.preprocessing import Preprocessing

COLOUR = Preprocessing((12, 10), 3, scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
CLASSES = 40


@pytest.fixture(scope="module")
def split():
    """Forty colour images of 12×10, each a class of its own."""
    return Split(np.random.default_rng(0).integers(0, 256, (CLASSES, 12, 10, 3), np.uint8), np.arange(CLASSES))


def batches(split, augmentation, batch_size=8, seed=0, epoch=0, preprocessing=COLOUR, **more):
    made = training_batches(split, preprocessing, augmentation, batch_size, seed, epoch, classes=CLASSES, **more)
    return [(images.numpy(), targets.numpy()) for images, targets in made]


def joined(made):
    return tuple(np.concatenate(column) for column in zip(*made, strict=True))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pad", -1, "pad must be at least 0"),
        ("crop", "random", "crop must be one of none, random_resized, shorter_side"),
        ("min_area", 0.0, r"min_area must be in \(0, 1\]"),
        ("random_erasing", 1.5, "random_erasing must be a probability"),
        ("mixup", -0.1, "mixup must be at least 0"),
        ("cutmix", float("nan"), "cutmix must be at least 0 and finite"),
        ("rand_augment", (0, 5), "rand_augment must be"),
        ("rand_augment", (2, 11), "rand_augment must be"),
    ],
)
def test_an_augmentation_out_of_range(field, value, message):
    with pytest.raises(DataError, match=message):
        Augmentation(**{field: value})


def test_mixing_needs_the_number_of_classes(split):
    with pytest.raises(DataError, match="need the number of classes"):
        training_batches(split, COLOUR, Augmentation(mixup=0.2), 8, 0, 0)


# Everything is a matter of (seed, epoch, sample) alone.

FAST = Augmentation(pad=2, flip=True, random_erasing=0.5, mixup=0.4, cutmix=1.0)
RANDOM = dataclasses.replace(FAST, rand_augment=(1, 8))
RESIZED = dataclasses.replace(FAST, crop="random_resized")


@pytest.fixture(scope="module")
def whole(split):
    """The epoch of seed 0 in batches of eight."""
    return functools.cache(lambda augmentation: batches(split, augmentation))


@pytest.mark.parametrize("augmentation", [FAST, RANDOM, RESIZED], ids=["fast", "rand_augment", "random_resized"])
class TestDependsOnTheSampleAlone:
    def test_replicas_and_processes(self, split, augmentation):
        """Shares of two processes with three replicas in all, put together, are the global batches."""
        together = batches(split, augmentation, drop_last=False, batch_size=12)
        one = batches(split, augmentation, drop_last=False, batch_size=12, shard=Shard(0, 2, 3))
        two = batches(split, augmentation, drop_last=False, batch_size=12, shard=Shard(2, 1, 3))
        assert (len(together), len(one), len(two)) == (4, 8, 4)
        for step, parts in enumerate(together):
            shares = joined([*one[2 * step : 2 * step + 2], two[step]])
            for got, want in zip(shares, parts, strict=True):
                np.testing.assert_array_equal(got, want)

    def test_batch_size(self, split, augmentation, whole):
        others = joined(batches(split, augmentation, batch_size=20))
        for one, two in zip(joined(whole(augmentation)), others, strict=True):
            np.testing.assert_array_equal(one, two)

    @pytest.mark.parametrize("start", [3, 5])
    def test_a_resumed_epoch(self, split, augmentation, start, whole):
        rest = batches(split, augmentation, start=start)
        want = whole(augmentation)[start:]
        assert len(rest) == len(want) == 5 - start
        for one, two in zip(rest, want, strict=True):
            np.testing.assert_array_equal(one[0], two[0])
            np.testing.assert_array_equal(one[1], two[1])

    @pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
    def test_another_epoch_or_seed_is_another(self, split, augmentation, other, whole):
        one, two = joined(whole(augmentation)), joined(batches(split, augmentation, **other))
        assert not np.isclose(one[0], two[0]).all((1, 2, 3)).any()


@pytest.mark.parametrize("augmentation", [FAST, RANDOM], ids=["fast", "rand_augment"])
def test_equal_shares_have_a_static_shape(split, augmentation):
    images, targets = training_batches(split, COLOUR, augmentation, 8, 0, 0, classes=CLASSES).element_spec
    assert (images.shape, images.dtype) == ((8, 12, 10, 3), tf.float32)
    assert (targets.shape, targets.dtype) == ((8, CLASSES), tf.float32)


@pytest.mark.parametrize("rand_augment", [None, (1, 0)])
def test_an_empty_share(split, rand_augment):
    """Of a last batch of one sample, three of four replicas get nothing, in tensors of the right shape."""
    made = batches(
        split.take(np.arange(9)), Augmentation(rand_augment=rand_augment), shard=Shard(0, 4, 4), drop_last=False
    )
    assert [len(images) for images, _ in made] == [2, 2, 2, 2, 1, 0, 0, 0]
    assert {images.shape[1:] for images, _ in made} == {(12, 10, 3)}
    assert sorted(np.concatenate([labels for _, labels in made])) == list(range(9))


# Mixing.


def pairs(split, augmentation, **more):
    """(images as without mixing, mixed images, targets), by pairs: [pairs, 2, …]."""
    plain, labels = joined(batches(split, dataclasses.replace(augmentation, mixup=0.0, cutmix=0.0), **more))
    mixed, targets = joined(batches(split, augmentation, **more))
    own = np.take_along_axis(targets, labels[:, np.newaxis], 1)[:, 0]
    return tuple(np.stack([column[::2], column[1::2]], 1) for column in (plain, mixed, targets, labels, own))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_targets_of_a_pair_say_how_it_is_mixed(split, kind):
    _, _, targets, labels, own = pairs(split, Augmentation(**{kind: 1.0}))
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
    assert ((targets > 0).sum(-1) <= 2).all()
    # Both of a pair keep the same share; the rest is the other's class.
    np.testing.assert_allclose(own[:, 0], own[:, 1], rtol=1e-6)
    others = np.take_along_axis(targets, labels[:, ::-1, np.newaxis], 2)[..., 0]
    np.testing.assert_allclose(others, 1 - own, atol=1e-6)
    assert 0.15 < own.std() < 0.4  # of the uniform Beta(1, 1): 0.29


def test_mixup_mixes_pairs_in_the_share_of_their_targets(split):
    plain, mixed, _, _, own = pairs(split, Augmentation(mixup=0.4))
    share = own[:, :, np.newaxis, np.newaxis, np.newaxis]
    np.testing.assert_allclose(mixed, share * plain + (1 - share) * plain[:, ::-1], atol=1e-5)


def test_cutmix_exchanges_a_box_of_the_share_of_the_targets(split):
    plain, mixed, _, _, own = pairs(split, Augmentation(cutmix=1.0))
    boxes = set()
    for before, after, kept in zip(plain, mixed, own, strict=True):
        foreign = (after[0] != before[0]).any(-1)
        np.testing.assert_array_equal(after[0], np.where(foreign[..., None], before[1], before[0]))
        np.testing.assert_array_equal(after[1], np.where(foreign[..., None], before[0], before[1]))
        rows, columns = foreign.any(1), foreign.any(0)
        np.testing.assert_array_equal(foreign, rows[:, None] & columns)
        assert np.ptp(np.flatnonzero(rows)) + 1 == rows.sum() if rows.any() else True
        assert kept[0] == pytest.approx(1 - foreign.mean(), abs=1e-6)
        boxes.add((rows.sum(), columns.sum()))
    assert len(boxes) > 10


def test_mixup_and_cutmix_take_turns(split):
    plain, mixed, _, _, own = pairs(split.take(np.tile(np.arange(CLASSES), 10)), Augmentation(mixup=1.0, cutmix=1.0))
    share = own[:, :, np.newaxis, np.newaxis, np.newaxis]
    blended = np.isclose(mixed, share * plain + (1 - share) * plain[:, ::-1], atol=1e-5).all((1, 2, 3, 4))
    assert 70 < blended.sum() < 130  # of 200


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_an_odd_last_sample_stays_alone(split, kind):
    few = split.take(np.arange(7))
    plain, labels = joined(batches(few, Augmentation(), drop_last=False))
    mixed, targets = joined(batches(few, Augmentation(**{kind: 1.0}), drop_last=False))
    np.testing.assert_array_equal(mixed[6], plain[6])
    np.testing.assert_array_equal(targets[6], np.eye(CLASSES)[labels[6]])
    assert (targets[:6].max(-1) < 1).any()


# Random erasing.


def test_random_erasing(split):
    many = split.take(np.tile(np.arange(CLASSES), 25))
    plain, _ = joined(batches(many, Augmentation()))
    erased, _ = joined(batches(many, Augmentation(random_erasing=0.5)))
    gone = (erased != plain).any(-1)
    assert 400 < gone.any((1, 2)).sum() < 600
    for before, after, mask in zip(plain, erased, gone, strict=True):
        assert (after[mask] == 0).all()
        np.testing.assert_array_equal(after[~mask], before[~mask])
        np.testing.assert_array_equal(mask, mask.any(1)[:, None] & mask.any(0))
    areas = gone.mean((1, 2))[gone.any((1, 2))]
    # Zhong et al. 2017: 2% to 33% of the area, to whole pixels of 12×10.
    assert 0 < areas.min() < 0.04
    assert 0.28 < areas.max() < 0.40
    # Each border is reached.
    assert gone[:, 0].any()
    assert gone[:, -1].any()
    assert gone[:, :, 0].any()
    assert gone[:, :, -1].any()


def test_erasing_never_and_always(split):
    never = draw(Augmentation(), 100, (12, 10), 0, 0)
    assert never.erased is None
    always = draw(Augmentation(random_erasing=1.0), 100, (32, 32), 0, 0)
    assert (always.erased[:, 2:] > 0).all()


# Crops.

chances = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True, width=32), st.floats(0, 1, exclude_max=True, width=32)),
    min_size=11,
    max_size=11,
)


def torchvision_sides(height, width, min_area, chance):
    """RandomResizedCrop.get_params, written anew from its documentation and the paper."""
    for area, aspect in chance[:10]:
        target = height * width * (min_area + (1 - min_area) * area)
        ratio = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * aspect)
        w, h = np.sqrt(target * ratio), np.sqrt(target / ratio)
        if 0 < round(w) <= width and 0 < round(h) <= height:
            return h, w
    if width / height < 3 / 4:
        return min(height, width / (3 / 4)), width
    return height, min(width, height * (4 / 3))


@given(
    height=st.integers(1, 600), width=st.integers(1, 600), min_area=st.sampled_from([0.08, 0.35, 1.0]), chance=chances
)
@settings(max_examples=60, deadline=None)
def test_a_random_resized_crop(height, width, min_area, chance):
    augmentation = Augmentation(crop="random_resized", min_area=min_area)
    box = crop_box(tf.constant([height, width, 3]), augmentation, (224, 224), tf.constant(chance, tf.float32)).numpy()
    top, left, h, w = (int(value) for value in box)
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    assert h >= 1
    assert w >= 1
    want = torchvision_sides(height, width, min_area, np.float32(chance))
    # Of a side that is half a pixel, float32 may round the other way, and take another try.
    if all(abs(value % 1 - 0.5) > 1e-3 for value in want):
        assert (h, w) == pytest.approx(want, abs=0.51)


@given(height=st.integers(1, 900), width=st.integers(1, 900), chance=chances)
@settings(max_examples=60, deadline=None)
def test_a_crop_of_a_random_shorter_side(height, width, chance):
    """He et al. 2015: the shorter side becomes 256 to 480, of which 224 are cut out."""
    box = crop_box(
        tf.constant([height, width, 3]), Augmentation(crop="shorter_side"), (224, 224), tf.constant(chance, tf.float32)
    ).numpy()
    top, left, h, w = (int(value) for value in box)
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    side = 256 + int(np.float32(chance[0][0]) * 225)
    assert 256 <= side <= 480
    assert h == w == pytest.approx(max(224 * min(height, width) / side, 1), abs=0.51)


def test_the_corners_of_crops_are_uniform():
    """Both ends of the range are reached, and the middle as often."""
    augmentation = Augmentation(crop="shorter_side")
    chance = np.zeros((11, 2), np.float32)
    found = set()
    for share in np.linspace(0, 1, 400, endpoint=False):
        chance[10] = share
        found.add(int(crop_box(tf.constant([32, 32]), augmentation, (224, 224), tf.constant(chance))[0]))
    assert found == set(range(32 - 28 + 1))


# RandAugment.


@pytest.fixture(scope="module")
def photograph():
    from sklearn.datasets import load_sample_images

    return np.asarray(Image.fromarray(load_sample_images().images[1]).resize((61, 48)))


def affine(matrix, image):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=(128,) * 3)


def enhanced(kind, image, level, sign):
    return kind(image).enhance(1 + sign * 0.9 * level)


PILLOW = {
    "identity": lambda image, level, sign: image,
    "auto_contrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, level, sign: ImageOps.equalize(image),
    "rotate": lambda image, level, sign: image.rotate(30 * level * sign, fillcolor=(128,) * 3),
    "solarize": lambda image, level, sign: ImageOps.solarize(image, round(256 * (1 - level))),
    "color": functools.partial(enhanced, ImageEnhance.Color),
    "posterize": lambda image, level, sign: ImageOps.posterize(image, 8 - round(4 * level)),
    "contrast": functools.partial(enhanced, ImageEnhance.Contrast),
    "brightness": functools.partial(enhanced, ImageEnhance.Brightness),
    "sharpness": functools.partial(enhanced, ImageEnhance.Sharpness),
    "shear_x": lambda image, level, sign: affine((1, 0.3 * level * sign, 0, 0, 1, 0), image),
    "shear_y": lambda image, level, sign: affine((1, 0, 0, 0.3 * level * sign, 1, 0), image),
    "translate_x": lambda image, level, sign: affine((1, 0, 0.45 * level * sign * image.width, 0, 1, 0), image),
    "translate_y": lambda image, level, sign: affine((1, 0, 0, 0, 1, 0.45 * level * sign * image.height), image),
}


def apply(name, pixels, level, sign):
    number = list(OPERATIONS).index(name)
    return rand_augment(tf.constant(pixels), tf.constant([number]), tf.constant([sign]), 10 * level).numpy()


def test_the_papers_fourteen_operations():
    assert set(OPERATIONS) == set(PILLOW)
    assert len(OPERATIONS) == NUMBER == 14


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("level", [0.0, 0.33, 0.9])
@pytest.mark.parametrize("name", PILLOW)
def test_an_operation_is_pillows(photograph, name, level, sign):
    got = apply(name, photograph, level, sign).astype(int)
    want = np.asarray(PILLOW[name](Image.fromarray(photograph), level, sign)).astype(int)
    if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        # Of pixels on an edge either neighbour is the nearest.
        assert (got != want).any(-1).mean() < 0.01
    else:
        assert np.abs(got - want).max() <= 1


@pytest.mark.parametrize("name", PILLOW)
def test_a_flat_image_and_a_grey_one(name):
    """No operation divides by nothing, or makes values that wrap around."""
    flat = np.full((9, 8, 3), 200, np.uint8)
    assert apply(name, flat, 0.5, 1.0).shape == flat.shape
    grey = np.random.default_rng(0).integers(0, 256, (9, 8, 1), np.uint8)
    want = np.asarray(PILLOW[name](Image.fromarray(np.repeat(grey, 3, 2)), 0.5, 1.0)).astype(int)
    got = apply(name, grey, 0.5, 1.0).astype(int)
    assert np.median(np.abs(got - want)) <= 1
    if name in ("auto_contrast", "equalize"):
        np.testing.assert_array_equal(apply(name, flat, 0.5, 1.0), flat)


def test_operations_follow_each_other(photograph):
    names = list(OPERATIONS)
    numbers = tf.constant([names.index("solarize"), names.index("posterize")])
    got = rand_augment(tf.constant(photograph), numbers, tf.constant([1.0, 1.0]), 6).numpy()
    want = apply("posterize", apply("solarize", photograph, 0.6, 1.0), 0.6, 1.0)
    np.testing.assert_array_equal(got, want)


def test_all_operations_and_both_signs_are_drawn():
    draws = draw(Augmentation(rand_augment=(2, 9)), 1000, (8, 8), 0, 0)
    assert draws.operations.shape == draws.signs.shape == (1000, 2)
    assert np.bincount(draws.operations.ravel(), minlength=14).min() > 90
    assert 900 < (draws.signs == 1).sum() < 1100
    assert set(np.unique(draws.signs)) == {-1, 1}
