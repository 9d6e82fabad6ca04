"""Evaluation: figures against scikit-learn and SciPy, views against hand-cut ones, and what cannot be evaluated."""

import csv
import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from sklearn import metrics

from keras_resnets import Preprocessing, ResNet20, create_model
from keras_resnets.data.dataset import DataError, Split
from keras_resnets.models.files import describe
from keras_resnets.training.config import TrainingError
from keras_resnets.training.evaluation import Protocol, evaluate
from keras_resnets.training.figures import wilson
from keras_resnets.training.report import draw_confusion, draw_errors, tables, write_report
from keras_resnets.training.scorers import Scorer, keras_scorer, saved_model_scorer, with_open_sides

RAW = Preprocessing((2, 2), 1, mean=(0.0,), std=(1.0,))
GREY = Preprocessing((8, 8), 1, scale=1 / 255, mean=(0.4,), std=(0.3,))


class Album:
    """Images of different sizes with labels."""

    def __init__(self, images, labels):
        self.images, self.labels = images, np.asarray(labels, np.int64)

    def __len__(self):
        return len(self.labels)

    def image(self, row):
        return self.images[row]

    def name(self, row):
        return f"album/{row}.jpg"


def table_scorer(scores, kind="probabilities", **fields):
    """Gives row i of a table for image i of `numbered`, whose pixels say i."""
    return Scorer("table", lambda x: scores[x[:, 0, 0, 0].astype(int)], (2, 2, 1), scores.shape[1], kind, RAW, **fields)


def numbered(labels):
    rows = np.arange(len(labels), dtype=np.uint8)
    return Split(np.broadcast_to(rows[:, None, None, None], (len(rows), 2, 2, 1)), np.asarray(labels, np.int64))


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def random_case():
    """250 images of 7 classes, of which class 5 is never the truth and class 6 never predicted."""
    random = np.random.default_rng(0)
    truths = random.choice([0, 1, 2, 3, 4, 6], 250)
    logits = random.standard_normal((250, 7)) * 2
    logits[np.arange(250), truths] += 1.5
    logits[:, 6] -= 20
    return truths, logits


@pytest.fixture(scope="module")
def small_network():
    """ResNet-20 for 8×8 grey images, whose probabilities are far from 0 and 1."""
    keras.utils.set_random_seed(3)
    model = ResNet20(input_shape=(8, 8, 1))
    kernel = model.get_layer("predictions").kernel
    kernel.assign(0.1 * kernel)
    describe(model, GREY, None)
    return model


@pytest.fixture(scope="module")
def photos():
    """Smooth pictures, upright and broad."""
    random = np.random.default_rng(1)
    sides = [(10, 14), (13, 9), (10, 14), (8, 8), (20, 11)]
    coarse = [random.integers(0, 256, (3, 3), np.uint8) for _ in sides]
    pairs = zip(coarse, sides, strict=True)
    return [Image.fromarray(pixels).resize(side, Image.Resampling.BICUBIC) for pixels, side in pairs]


@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_figures_are_those_of_scikit_learn(random_case, kind):
    truths, logits = random_case
    probabilities = softmax(logits)
    scores = probabilities if kind == "probabilities" else logits
    found = evaluate(table_scorer(scores, kind), numbered(truths), batch_size=32)
    guesses, classes = probabilities.argmax(1), range(7)
    assert found.top1 == metrics.accuracy_score(truths, guesses)
    assert found.top5 == metrics.top_k_accuracy_score(truths, probabilities, k=5, labels=classes)
    assert found.cross_entropy == pytest.approx(metrics.log_loss(truths, probabilities, labels=classes), rel=1e-12)
    assert np.array_equal(found.confusion, metrics.confusion_matrix(truths, guesses, labels=classes))
    rates = metrics.precision_recall_fscore_support(truths, guesses, labels=classes, zero_division=np.nan)
    rows = found.class_rows()
    for ours, theirs in zip(zip(*[row[2:] for row in rows], strict=True), rates[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert [row.images for row in rows] == list(rates[3])
    interval = stats.binomtest(int((truths == guesses).sum()), 250).proportion_ci(0.95, "wilson")
    assert found.top1_interval == pytest.approx((interval.low, interval.high), rel=1e-12)


@pytest.mark.parametrize(("successes", "number"), [(0, 1), (1, 1), (0, 30), (30, 30), (9_347, 10_000)])
def test_the_interval_at_the_ends(successes, number):
    interval = stats.binomtest(successes, number).proportion_ci(0.95, "wilson")
    assert wilson(successes, number) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_of_equal_scores_the_first_class_is_the_greater():
    found = evaluate(table_scorer(np.full((8, 8), 1 / 8)), numbered(range(8)))
    assert set(found.predictions) == {0}
    assert (found.top1, found.top5) == (1 / 8, 5 / 8)


def test_top_5_of_three_classes_is_all_of_them():
    found = evaluate(table_scorer(np.tile([0.1, 0.2, 0.7], (4, 1))), numbered([0, 1, 2, 2]))
    assert (found.top1, found.top5) == (0.5, 1.0)


def test_a_probability_of_zero_has_a_finite_loss_and_a_sigmoid_head_has_none():
    certain = evaluate(table_scorer(np.array([[1.0, 0.0]])), numbered([1]))
    assert certain.cross_entropy == pytest.approx(126 * np.log(2))
    assert evaluate(table_scorer(np.array([[0.9, 0.8]])), numbered([1])).cross_entropy is None


def test_a_limit_spreads_over_the_split(random_case):
    truths, logits = random_case
    scorer, split = table_scorer(logits, "logits"), numbered(truths)
    assert list(evaluate(scorer, split, limit=5).rows) == [0, 50, 100, 150, 200]
    assert evaluate(scorer, split, limit=10_000).images == 250
    some = evaluate(scorer, split, limit=83)
    assert some.top1 == evaluate(scorer, split.take(some.rows)).top1


def test_batches_change_nothing_and_progress_is_told(random_case):
    truths, logits = random_case
    calls = []
    found = [
        evaluate(table_scorer(logits, "logits"), numbered(truths), batch_size=size, progress=lambda *n: calls.append(n))
        for size in (1, 100, 1000)
    ]
    assert all(np.array_equal(one.confidences, found[0].confidences) for one in found)
    assert calls[250:] == [(100, 250), (200, 250), (250, 250), (250, 250)]


def test_confusions_are_the_largest_off_the_diagonal():
    scores = np.eye(3)[[0, 1, 1, 1, 2, 0, 0, 2]]
    found = evaluate(table_scorer(scores, labels=("a", "b", "c")), numbered([0, 0, 0, 1, 2, 2, 1, 2]))
    assert [tuple(row) for row in found.confusions()] == [
        ("a", "b", 2, 2 / 3), ("b", "a", 1, 0.5), ("c", "a", 1, 1 / 3),
    ]  # fmt: skip
    assert [row.label for row in found.worst_classes(2)] == ["a", "b"]


def test_ten_crops_are_corners_centre_and_their_mirror_images():
    """Krizhevsky et al. 2012: five crops and five reflections, whose softmax outputs are averaged."""
    random = np.random.default_rng(2)
    photo = Image.fromarray(random.integers(0, 256, (12, 18), np.uint8))
    preprocessing = Preprocessing((4, 4), 1, resize=8, scale=1 / 255, mean=(0.5,), std=(0.5,))
    small = np.asarray(photo.resize((12, 8), Image.Resampling.BILINEAR))[..., None]
    crops = [small[:4, :4], small[:4, 8:], small[4:, :4], small[4:, 8:], small[2:6, 4:8]]
    crops += [np.flip(crop, 1) for crop in crops]
    views = Protocol(crops=10).views(preprocessing, photo)
    assert len(views) == 10
    assert all(np.array_equal(ours, by_hand) for ours, by_hand in zip(views, crops, strict=True))
    assert np.array_equal(views[4], preprocessing.pixels(photo))
    assert Protocol(crops=10).describe(preprocessing) == "10 crops of 4×4, shorter side 8"
    weights = random.standard_normal((16, 3))
    scorer = Scorer("linear", lambda x: x.reshape(-1, 16) @ weights, (4, 4, 1), 3, "logits", preprocessing)
    found = evaluate(scorer, Album([photo], [2]), crops=10, batch_size=3)
    tensor = (np.stack(crops).astype(np.float32) / 255 - 0.5) / 0.5
    expected = softmax(tensor.reshape(10, 16) @ weights).mean(0)
    assert found.cross_entropy == pytest.approx(-np.log(expected[2]), rel=1e-5)
    assert found.confidences[0] == pytest.approx(expected.max(), rel=1e-5)


def test_flip_averages_an_image_and_its_mirror_image(small_network, photos):
    scorer, album = keras_scorer(small_network), Album(photos, [0] * 5)
    found = evaluate(scorer, album, flip=True)
    tensor = GREY(photos)
    expected = (scores_of(small_network, tensor) + scores_of(small_network, tensor[:, :, ::-1])) / 2
    np.testing.assert_allclose(found.confidences, expected.max(1), rtol=1e-5)
    assert differ(found, evaluate(scorer, album))


def scores_of(model, tensor):
    return np.asarray(model(tensor, training=False), np.float64)


def differ(one, other):
    return np.abs(one.confidences - other.confidences).max() > 0.01


def test_scales_average_whole_images_over_the_scales(small_network, photos):
    """He et al. 2015, Section 3.4, computed image by image on a network built by hand."""
    opened = create_model("resnet20", input_shape=(None, None, 1))
    opened.set_weights(small_network.get_weights())
    labels = [3, 1, 4, 1, 5]
    losses, confidences = [], []
    for photo, label in zip(photos, labels, strict=True):
        scores = []
        for scale in (8, 12):
            shorter = min(photo.size)
            sides = (scale * photo.width // shorter, scale * photo.height // shorter)
            pixels = np.asarray(photo.resize(sides, Image.Resampling.BILINEAR), np.float32)
            tensor = (pixels / 255 - 0.4) / 0.3
            scores += [scores_of(opened, t[None, :, :, None]) for t in (tensor, tensor[:, ::-1])]
        mean = np.mean(scores, axis=0)[0]
        losses.append(-np.log(mean[label]))
        confidences.append(mean.max())
    for batch_size in (1, 64):
        found = evaluate(small_network, Album(photos, labels), scales=(8, 12), flip=True, batch_size=batch_size)
        np.testing.assert_allclose(found.confidences, confidences, rtol=1e-4)
        assert found.cross_entropy == pytest.approx(np.mean(losses), rel=1e-4)
    assert differ(found, evaluate(small_network, Album(photos, labels)))


def test_open_sides_are_the_fully_convolutional_form():
    """The classifier at every position of the last map, its logits averaged, is what global pooling gives."""
    model = ResNet20(input_shape=(8, 8, 1), classes=4, classifier_activation=None)
    opened = with_open_sides(model)
    images = np.random.default_rng(0).standard_normal((2, 20, 28, 1)).astype(np.float32)
    body = keras.Model(opened.input, opened.get_layer("avg_pool").input)
    maps = np.asarray(body(images), np.float64)
    assert maps.shape[1:3] == (5, 7)
    kernel, bias = (np.asarray(value, np.float64) for value in opened.get_layer("predictions").get_weights())
    np.testing.assert_allclose(opened(images), (maps @ kernel + bias).mean((1, 2)), rtol=1e-3, atol=1e-5)
    assert with_open_sides(opened) is opened


def test_open_sides_keep_the_dtypes_of_the_network():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = ResNet20(input_shape=(8, 8, 1))
    finally:
        keras.config.set_dtype_policy(before)
    opened = with_open_sides(model)
    assert {layer.compute_dtype for layer in opened.layers} == {layer.compute_dtype for layer in model.layers}
    assert keras.config.dtype_policy() == before


def test_networks_that_cannot_take_images_of_any_size_say_what_to_do(tiny_model):
    for model, message in (
        (create_model("vgg11", input_shape=(32, 32, 1), classes=2), "crops=10"),
        (create_model("vit_ti16", input_shape=(32, 32, 1), classes=2), "fixed input size.*crops=10"),
        (tiny_model(), "does not say which network of the registry"),
    ):
        with pytest.raises(TrainingError, match=message):
            with_open_sides(model)


def test_a_network_that_was_changed_is_not_taken_for_its_original():
    images = keras.Input((8, 8, 1))
    scaled = ResNet20(input_tensor=keras.layers.Rescaling(3.0, 1.0)(images))
    with pytest.raises(TrainingError, match="was changed after it was built"):
        with_open_sides(scaled)


class Unreadable(Album):
    def image(self, row):
        return self.images[row] if row else b"\xff\xd8 no JPEG"


def scorer_with(**changes):
    return replace(table_scorer(np.full((4, 3), 1 / 3)), **changes)


FOUR = numbered([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((scorer_with(), FOUR), {"crops": 5}, TrainingError, "crops must be 1 .* or 10"),
        ((scorer_with(), FOUR), {"crops": 10, "scales": (8,)}, TrainingError, "two protocols"),
        ((scorer_with(), FOUR), {"crops": 10, "flip": True}, TrainingError, "mirror images already"),
        ((scorer_with(), FOUR), {"crops": 10}, TrainingError, "ten crops need .* resizes straight to 2×2"),
        ((scorer_with(), FOUR), {"scales": (8, 8)}, TrainingError, "different positive lengths"),
        ((scorer_with(), FOUR), {"scales": (0,)}, TrainingError, "different positive lengths"),
        ((scorer_with(), FOUR), {"scales": (8,)}, TrainingError, "2×2 pixels alone, .* None"),
        ((scorer_with(), FOUR), {"batch_size": 0}, TrainingError, "batch_size must be at least 1"),
        ((scorer_with(), FOUR), {"limit": 0}, TrainingError, "limit must be at least 1"),
        ((scorer_with(), numbered([])), {}, TrainingError, "no images"),
        ((scorer_with(), numbered([0, 3])), {}, TrainingError, "3 classes.* label is 3"),
        ((scorer_with(), numbered([0, -1])), {}, TrainingError, "label is -1"),
        ((scorer_with(preprocessing=None), FOUR), {}, TrainingError, "pass preprocessing="),
        ((scorer_with(), FOUR, GREY), {}, TrainingError, r"makes \(8, 8, 1\), but table takes \(2, 2, 1\)"),
        ((scorer_with(score=lambda x: np.full((len(x), 3), np.nan)), FOUR), {}, TrainingError, "not finite.* 2×2"),
        ((scorer_with(score=lambda x: np.ones((len(x), 2))), FOUR), {}, TrainingError, r"scores \[4, 2\] for 4"),
        ((scorer_with(), Unreadable([], [0])), {}, DataError, "album/0.jpg cannot be evaluated.* is not a JPEG"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_says_why(arguments, options, error, message):
    with pytest.raises(error, match=message):
        evaluate(*arguments, **options)


def test_scales_that_are_too_small_for_a_network():
    model = create_model("densenet121", input_shape=(32, 32, 1), classes=2)
    describe(model, replace(GREY, size=(32, 32)), None)
    with pytest.raises(TrainingError, match=r"densenet121 cannot score 1 images of 12×18 .* too small for it"):
        evaluate(model, Album([Image.new("L", (60, 40))], [0]), scales=(12,))


def test_networks_that_give_no_class_scores(tmp_path):
    wanted = r"images \[batch, height, width, channels\] to class scores"
    for pooling in ("avg", None):
        with pytest.raises(TrainingError, match=wanted):
            keras_scorer(create_model("resnet20", include_top=False, pooling=pooling))
    with pytest.raises(TrainingError, match="features, not class scores"):
        scorer_with(kind="features")
    with pytest.raises(TrainingError, match="2 class names for 3 classes"):
        scorer_with(labels=("a", "b"))
    with pytest.raises(TrainingError, match="not a readable SavedModel"):
        saved_model_scorer(tmp_path)


@pytest.mark.parametrize(("activation", "kind"), [("softmax", "probabilities"), (None, "logits")])
def test_what_a_network_ends_in_says_what_its_scores_are(activation, kind):
    images = keras.Input((2, 2, 1))
    dense = keras.layers.Dense(3, kernel_initializer="ones")(keras.layers.Flatten()(images))
    assert keras_scorer(keras.Model(images, keras.layers.Activation(activation)(dense))).kind == kind
    assert keras_scorer(keras.Model(images, keras.layers.Softmax()(dense))).kind == "probabilities"


def report_case(classes, perfect=False):
    random = np.random.default_rng(classes)
    truths = random.integers(0, classes - 1, 200)
    scores = np.eye(classes)[truths] if perfect else softmax(2 * random.standard_normal((200, classes)))
    names = tuple(f"class {number} $" for number in range(classes))
    return evaluate(table_scorer(scores, labels=names), numbered(truths)), numbered(truths)


def test_a_report_is_four_files(tmp_path):
    found, split = report_case(4)
    files = write_report(found, split, tmp_path / "report", {"model": "table"})
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == sorted(file.name for file in files)
    stored = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert stored == {"model": "table", **found.to_dict()}
    assert np.trace(stored["confusion"]) == round(stored["top1"] * 200)
    assert stored["classes"][3]["recall"] is None  # no image is of this class
    with (tmp_path / "report" / "per_class.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["label"] for row in rows] == list(found.labels)
    assert float(rows[0]["precision"]) == found.class_rows()[0].precision
    assert rows[3]["recall"] == ""
    for name in ("confusion.png", "errors.png"):
        assert min(Image.open(tmp_path / "report" / name).size) > 300


def test_a_perfect_network_has_no_picture_of_mistakes(tmp_path):
    found, split = report_case(4)
    write_report(found, split, tmp_path, {})
    found, split = report_case(4, perfect=True)
    write_report(found, split, tmp_path, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["confusion.png", "evaluation.json", "per_class.csv"]
    assert len(tables(found)) == 2
    assert len(tables(report_case(4)[0])) == 3


@pytest.mark.parametrize(("classes", "perfect"), [(2, False), (30, False), (60, False), (60, True)])
def test_pictures_of_any_number_of_classes(classes, perfect, tmp_path):
    found, _ = report_case(classes, perfect)
    draw_confusion(found, tmp_path / "confusion.png")
    assert np.asarray(Image.open(tmp_path / "confusion.png").convert("L")).std() > 5


def test_mistakes_are_shown_whatever_the_images_are(tmp_path):
    """Files upright as their EXIF says, grey, colour, 16 bits, and larger than a thumbnail."""
    random = np.random.default_rng(0)
    pictures = [
        Image.fromarray(random.integers(0, 256, (300, 500, 3), np.uint8)),
        Image.fromarray(random.integers(0, 65536, (9, 7)).astype(np.uint16)),
        random.integers(0, 256, (5, 5, 1), np.uint8),
        Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).convert("P"),
    ]
    preprocessing = replace(RAW, size=(2, 2))
    scorer = Scorer("first", lambda x: np.tile([0.9, 0.1], (len(x), 1)), (2, 2, 1), 2, "probabilities", preprocessing)
    album = Album(pictures, [1, 1, 1, 1])
    assert draw_errors(evaluate(scorer, album), album, tmp_path / "errors.png")
    assert Image.open(tmp_path / "errors.png").width > 500
