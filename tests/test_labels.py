"""decode_predictions: the best classes of each row, in words."""

import numpy as np
import pytest

from keras_resnets import decode_predictions
from keras_resnets.labels import DIGITS, FASHION_MNIST

SCORES = np.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]], np.float32)


def test_best_first_for_each_row():
    first, second = decode_predictions(SCORES, ["cat", "dog", "owl"], top=2)
    assert [p.label for p in first] == ["dog", "owl"]
    assert [p.class_index for p in second] == [0, 2]
    assert [p.score for p in first] == pytest.approx([0.6, 0.3])


def test_a_prediction_holds_plain_python_values():
    """They go into JSON answers, which know no NumPy."""
    prediction = decode_predictions(SCORES, top=1)[0][0]
    assert (type(prediction.label), type(prediction.class_index), type(prediction.score)) == (str, int, float)


def test_classes_without_names():
    assert [p.label for p in decode_predictions(SCORES)[0]] == ["class 1", "class 2", "class 0"]


def test_ties_go_to_the_lower_class():
    scores = np.full((1, 100), 0.01)
    scores[0, 70] = 0.02
    assert [p.class_index for p in decode_predictions(scores, top=5)[0]] == [70, 0, 1, 2, 3]


def test_a_top_larger_than_the_classes_gives_all():
    assert [len(row) for row in decode_predictions(SCORES, top=10)] == [3, 3]


def test_nested_lists_and_five_by_default():
    rows = decode_predictions([[0.0, 0.1, 0.2, 0.3, 0.4, 0.5]])
    assert [p.class_index for p in rows[0]] == [5, 4, 3, 2, 1]


def test_no_rows():
    assert decode_predictions(np.empty((0, 3)), ["a", "b", "c"]) == []


def test_unsigned_scores():
    """A quantized network may give bytes; minus a byte is a byte too."""
    rows = decode_predictions(np.array([[0, 5, 200]], np.uint8), top=3)
    assert [p.class_index for p in rows[0]] == [2, 1, 0]


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        ([0.1, 0.9], {}, r"\[batch, classes\], not \[2\]"),
        (np.zeros((2, 3, 4)), {}, r"not \[2, 3, 4\]"),
        (SCORES, {"top": 0}, "top must be at least 1, not 0"),
        (SCORES, {"top": -1}, "not -1"),
        (SCORES, {"labels": ["a", "b"]}, "2 labels for 3 classes"),
        (SCORES, {"labels": []}, "0 labels for 3 classes"),
    ],
)
def test_errors(scores, arguments, message):
    with pytest.raises(ValueError, match=message):
        decode_predictions(scores, **arguments)


def test_ten_names_each():
    assert DIGITS[7] == "7"
    assert FASHION_MNIST[9] == "Ankle boot"
    assert len(set(DIGITS)) == len(set(FASHION_MNIST)) == 10
