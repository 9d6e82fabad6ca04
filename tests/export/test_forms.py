"""The forms in which layers are traced for ONNX: as few nodes as can be, the layer's values, at any batch size."""

import collections

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers

from keras_resnets.export import to_onnx


def attend(x, **arguments):
    x = layers.Reshape((16, 8))(x)
    return layers.MultiHeadAttention(2, 3, name="attention")(x, x, **arguments)


def attend_across(x):
    x = layers.Reshape((16, 8))(x)
    keys = layers.Dense(5)(x[:, 3:])
    return layers.MultiHeadAttention(2, 3, value_dim=4, use_bias=False, output_shape=7)(x, x[:, 3:], keys)


def einsum(equation, shape, bias=None, activation=None):
    return layers.EinsumDense(equation, shape, activation, bias)


# What is made of [batch, 4, 4, 8], and the operators that must be all there is.
FORMS = {
    "reshape": (layers.Reshape((2, -1, 4)), {"Reshape": 1}),
    "flatten": (layers.Flatten(), {"Reshape": 1}),
    "flatten_channels_first": (layers.Flatten("channels_first"), {"Transpose": 1, "Reshape": 1}),
    "dense": (layers.Dense(5, "relu"), {"MatMul": 1, "Add": 1, "Relu": 1}),
    "dense_no_bias": (layers.Dense(5, use_bias=False), {"MatMul": 1}),
    "dense_gelu": (layers.Dense(5, "gelu"), {"MatMul": 1, "Add": 2, "Mul": 2, "Div": 1, "Erf": 1}),
    "layer_norm": (layers.LayerNormalization(epsilon=1e-6), {"LayerNormalization": 1}),
    "layer_norm_axis": (layers.LayerNormalization(axis=3, scale=False), {"LayerNormalization": 1}),
    "layer_norm_plain": (layers.LayerNormalization(axis=[-1], center=False, scale=False), {"LayerNormalization": 1}),
    "layer_norm_elsewhere": (layers.LayerNormalization(axis=[1, 2]), None),
    "einsum_dense": (einsum("abcd,de->abce", (4, 4, 5), "e", "relu"), {"MatMul": 1, "Add": 1, "Relu": 1}),
    "einsum_splits": (einsum("abcd,def->abcef", (4, 4, 3, 2), "ef"), {"MatMul": 1, "Add": 1, "Reshape": 1}),
    "einsum_bias_part": (
        einsum("abcd,def->abcef", (4, 4, 3, 2), "f"),
        {"MatMul": 1, "Add": 1, "Reshape": 1},
    ),
    "einsum_joins": (einsum("abcd,cdf->abf", (4, 6), "f"), {"MatMul": 1, "Add": 1, "Reshape": 1}),
    "einsum_other": (einsum("abcd,bde->abce", (4, 4, 5)), None),
    "einsum_ellipsis": (einsum("...d,de->...e", (4, 4, 5)), None),
    "attention": (attend, {"MatMul": 6, "Add": 4, "Transpose": 4, "Reshape": 5, "Softmax": 1, "Mul": 1}),
    "attention_across": (attend_across, None),
    "attention_causal": (lambda x: attend(x, use_causal_mask=True), None),
}


def compare(model, file, sides=(4, 4)):
    images = np.random.default_rng(1).normal(size=(17, *sides, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for batch in (1, 3, 17):
        found = session.run(None, {"images": images[:batch]})[0]
        expected = np.asarray(model(images[:batch], training=False))
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def shaken(model, seed=0):
    """Give all weights random values, so that a forgotten one shows."""
    random = np.random.default_rng(seed)
    for variable in model.variables:
        variable.assign(random.uniform(0.5, 1.5, variable.shape) * random.choice([-1, 1], variable.shape))
    return model


@pytest.mark.parametrize("name", FORMS)
def test_a_form_has_few_nodes_and_the_layer_s_values(name, tmp_path):
    make, operators = FORMS[name]
    inputs = keras.Input((4, 4, 8))
    model = shaken(keras.Model(inputs, make(inputs)))
    file = to_onnx(model, tmp_path / "m.onnx")
    found = collections.Counter(node.op_type for node in onnx.load(file).graph.node)
    compare(model, file)
    if operators is not None:
        assert found == operators


@pytest.mark.parametrize(
    "make",
    [
        layers.Dense(5, "gelu"),
        layers.LayerNormalization(),
        layers.Reshape((-1, 8)),
        lambda x: layers.GlobalAveragePooling2D()(einsum("abcd,def->abcef", (None, None, 2, 3))(x)[..., 0]),
    ],
)
def test_a_form_with_open_height_and_width(make, tmp_path):
    inputs = keras.Input((None, None, 8))
    model = shaken(keras.Model(inputs, make(inputs)))
    file = to_onnx(model, tmp_path / "m.onnx")
    for sides in ((4, 4), (3, 7)):
        compare(model, file, sides)


class Doubled(layers.Dense):
    """Not what its base class computes."""

    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


def test_a_subclass_keeps_its_own_call(tmp_path):
    inputs = keras.Input((4, 4, 8))
    model = keras.Model(inputs, Doubled(3)(inputs))
    compare(model, to_onnx(model, tmp_path / "m.onnx"))


def test_onnxruntime_knows_gelu(tmp_path):
    """In the spelling of the file a session finds the operation, which is several times as fast."""
    inputs = keras.Input((4, 4, 8))
    model = keras.Model(inputs, layers.Activation("gelu")(inputs))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "session.onnx")
    onnxruntime.InferenceSession(str(to_onnx(model, tmp_path / "m.onnx")), options, ["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(tmp_path / "session.onnx").graph.node] == ["Gelu"]
