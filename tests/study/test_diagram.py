"""Blocks as pictures: what is drawn is what the network has."""

import pytest
from matplotlib.patches import Circle, FancyBboxPatch

import keras_resnets
from keras_resnets.study import StudyError
from keras_resnets.study.diagram import draw_block
from keras_resnets.study.plots import sheet

SMALL = {"input_shape": (16, 16, 1), "classes": 3}
BASIC = ["3×3 conv, 16", "batch norm", "ReLU", "3×3 conv, 16", "batch norm"]


def drawn(model, block):
    """The boxes, additions and texts of a picture."""
    _, axes = sheet(1)
    draw_block(model, block, axes[0, 0])
    kinds = [type(patch) for patch in axes[0, 0].patches]
    return kinds.count(FancyBboxPatch), kinds.count(Circle), [text.get_text() for text in axes[0, 0].texts]


def test_a_plain_block_is_the_residual_one_without_the_addition():
    boxes, additions, texts = drawn(keras_resnets.PlainNet20(**SMALL), "conv2_block1")
    assert (boxes, additions) == (6, 0) and [text for text in texts if text in BASIC] == [*BASIC, "ReLU"]
    boxes, additions, texts = drawn(keras_resnets.ResNet20(**SMALL), "conv2_block1")
    assert (boxes, additions) == (6, 1) and {"x", "+", "F(x) + x", "identity"} <= set(texts)
    assert [text for text in texts if text in BASIC] == [*BASIC, "ReLU"]


def test_what_is_on_the_shortcut_is_named():
    _, _, texts = drawn(keras_resnets.ResNet20(**SMALL), "conv3_block1")
    assert "1×1 max pooling, /2\nzero padding" in texts and "3×3 conv, 32, /2" in texts
    _, _, texts = drawn(keras_resnets.ResNet50(input_shape=(32, 32, 3)), "conv3_block1")
    assert "1×1 conv, 512, /2\nbatch norm" in texts


def test_a_pre_activation_block_has_nothing_behind_the_addition():
    boxes, additions, texts = drawn(keras_resnets.ResNet20V2(**SMALL), "conv2_block2")
    assert (boxes, additions) == (6, 1) and texts.index("F(x) + x") > texts.index("+")


def test_another_name_is_refused_with_those_that_there_are():
    with pytest.raises(StudyError, match="no block 'conv9_block1'; it has conv2_block1, conv2_block2"):
        drawn(keras_resnets.ResNet20(**SMALL), "conv9_block1")
