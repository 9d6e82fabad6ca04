"""ONNX files: what is in the graph, and that onnxruntime computes what Keras does."""

import collections

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

import keras_resnets
from keras_resnets.export import ExportError, to_onnx

SMALL = ["resnet20", "plainnet20", "resnet20v2", "resnet18", "plainnet18", "resnet18v2"]
# One of each further family.
FURTHER = ["wrn16_8", "wideresnet50_2", "resnext50_32x4d", "densenetbc100_12", "densenet121", "seresnet18",
           "resnet18d", "resnetrs50", "vgg11_bn", "vit_ti16"]  # fmt: skip
# What would compute shapes from shapes.
SHAPES = {"Shape", "Gather", "Cast", "ReduceProd", "ConstantOfShape", "Expand"}


def run(file, images):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


def noise(model, batch):
    shape = tuple(side or 40 for side in model.input_shape[1:])
    return np.random.default_rng(1).normal(size=(batch, *shape)).astype(np.float32)


def operators(file):
    return collections.Counter(node.op_type for node in onnx.load(file).graph.node)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_the_families_give_keras_s_logits(name, batch, settle, tmp_path):
    model = settle(keras_resnets.create_model(name, input_shape=(32, 32, 3), classifier_activation=None))
    file = to_onnx(model, tmp_path / "m.onnx")
    expected = np.asarray(model(noise(model, batch), training=False))
    assert np.abs(run(file, noise(model, batch)) - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("name", FURTHER)
def test_the_further_families_give_keras_s_logits(name, settle, tmp_path):
    model = keras_resnets.create_model(name, input_shape=(64, 64, 3), classifier_activation=None)
    if name == "resnetrs50":
        keras_resnets.damp_residuals(model)  # or its depth would amplify rounding
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        model = settle(model)
    file = to_onnx(model, tmp_path / "m.onnx")
    expected = np.asarray(model(noise(model, 3), training=False))
    assert np.abs(run(file, noise(model, 3)) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert operators(file)["Conv"] == sum(isinstance(layer, keras.layers.Conv2D) for layer in model.layers)
    assert not SHAPES & set(operators(file))


@pytest.mark.parametrize("name", SMALL)
def test_the_graph_holds_what_it_must_and_no_more(name, settle, tmp_path):
    model = settle(keras_resnets.create_model(name, input_shape=(32, 32, 3)))
    file = to_onnx(model, tmp_path / "m.onnx")
    found = operators(file)
    assert found["Transpose"] <= 1
    assert found["Conv"] == sum(isinstance(layer, keras.layers.Conv2D) for layer in model.layers)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before = [norm.input._keras_history.operation for norm in norms]
    # A norm stays where it follows an addition, or a convolution that the shortcut reads too.
    kept = [x for x in before if not isinstance(x, keras.layers.Conv2D) or len(x._outbound_nodes) > 1]
    assert found["BatchNormalization"] == len(kept)
    assert bool(kept) == name.endswith("v2")
    assert onnx.load(file).opset_import[0].version >= 18


def test_every_name_says_its_layer(resnet20, tmp_path):
    graph = onnx.load(to_onnx(resnet20, tmp_path / "m.onnx")).graph
    layers = {layer.name for layer in resnet20.layers}
    names = [node.name for node in graph.node]
    tensors = [name for node in graph.node for name in (*node.input, *node.output)]
    assert len(set(names)) == len(names)
    for name in {*names, *tensors} - {"images", "probabilities"}:
        assert name.partition("/")[0] in layers, name
    assert graph.input[0].name == "images"
    assert graph.output[0].name == "probabilities"
    sizes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (graph.input[0], graph.output[0])
    ]
    assert sizes == [["batch", 8, 8, 1], ["batch", 3]]
    assert "conv1_conv/kernel" in {item.name for item in graph.initializer}


def test_outputs_are_called_what_they_are(settle, tmp_path):
    for arguments, output in (
        ({"classifier_activation": None}, "logits"),
        ({"include_top": False, "pooling": "avg"}, "features"),
        ({"include_top": False}, "features"),
    ):
        model = settle(keras_resnets.ResNet20(input_shape=(8, 8, 1), **arguments))
        file = to_onnx(model, tmp_path / f"{output}.onnx", overwrite=True)
        assert onnx.load(file).graph.output[0].name == output
        expected = np.asarray(model(noise(model, 2), training=False))
        assert np.allclose(run(file, noise(model, 2)), expected, atol=1e-5 * np.abs(expected).max())


def test_height_and_width_may_stay_open(settle, tmp_path):
    model = settle(keras_resnets.ResNet20(input_shape=(None, None, 3)))
    file = to_onnx(model, tmp_path / "m.onnx")
    for side in (17, 40):
        images = np.random.default_rng(2).normal(size=(2, side, side + 3, 3)).astype(np.float32)
        assert np.allclose(run(file, images), np.asarray(model(images, training=False)), atol=1e-5)


def test_a_model_with_shared_layers_nested_models_and_every_kind_of_norm(tmp_path):
    """What is not in the zoo: folding must know when it is wrong."""
    inner_in = keras.Input((6, 6, 4))
    inner = keras.Model(inner_in, keras.layers.BatchNormalization(name="inside")(inner_in), name="inner")
    inputs = keras.Input((6, 6, 3))
    conv = keras.layers.Conv2D(4, 1, name="shared")(inputs)
    # The convolution is read twice, so its norm cannot be folded into it.
    normed = keras.layers.BatchNormalization(scale=False, name="no_scale")(conv)
    x = keras.layers.Add()([conv, normed, inner(conv)])
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.BatchNormalization(center=False, name="no_center")(x)
    x = keras.layers.Conv2D(8, 3, groups=4, activation="gelu", name="grouped")(x)
    x = keras.layers.LayerNormalization(name="layer_norm")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.BatchNormalization(name="flat_norm")(keras.layers.Dense(5)(x))
    model = keras.Model(inputs, keras.layers.Softmax()(x))
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.uniform(0.5, 1.5, variable.shape))
    file = to_onnx(model, tmp_path / "m.onnx")
    expected = np.asarray(model(noise(model, 3), training=False))
    assert np.abs(run(file, noise(model, 3)) - expected).max() <= 1e-5 * expected.max()


@pytest.mark.parametrize("weight", ["gamma", "moving_variance", "moving_mean"])
def test_a_layer_may_read_the_weights_of_a_batch_norm(weight, tmp_path):
    class Reader(keras.layers.Layer):
        def call(self, images):
            return images + getattr(norm, weight)

    image = keras.Input((6, 6, 3))
    norm = keras.layers.BatchNormalization(name="norm")
    model = keras.Model(image, Reader(name="reader")(norm(image)))
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.uniform(0.5, 1.5, variable.shape))
    file = to_onnx(model, tmp_path / "m.onnx")
    assert np.allclose(run(file, noise(model, 2)), model(noise(model, 2), training=False), atol=1e-5)


def test_layers_may_be_called_as_the_graph_s_input_and_output_are(tmp_path):
    image = keras.Input((4, 4, 1))
    flat = keras.layers.Flatten(name="images")(image / 255.0 + 1)  # arithmetic belongs to no layer
    hidden = keras.layers.Dense(4, name="logits")(flat)
    model = keras.Model(image, keras.layers.Dense(5, activation="softmax", name="probabilities")(hidden))
    file = to_onnx(model, tmp_path / "m.onnx")
    assert np.allclose(run(file, noise(model, 2)), model(noise(model, 2)), atol=1e-6)


def test_a_fixed_batch_size_becomes_free(tmp_path):
    image = keras.Input(batch_shape=(4, 6, 6, 1))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(image)))
    assert run(to_onnx(model, tmp_path / "m.onnx"), np.ones((7, 6, 6, 1), np.float32)).shape == (7, 2)


def test_zeros_padded_around_negative_values_are_not_merged_into_a_maximum(tmp_path):
    """onnxruntime before 1.32 replaces a Pad of zeros and a MaxPool by a MaxPool that pads with minus infinity,
    in the file that it optimizes and again in every session; it does so only where the value is zero."""
    inputs = keras.Input((6, 6, 2))
    padded = keras.layers.ZeroPadding2D(1)(inputs)
    model = keras.Model(inputs, keras.layers.MaxPooling2D(3, 2)(padded))
    file = to_onnx(model, tmp_path / "m.onnx")
    images = -1 - np.random.default_rng(0).random((2, 6, 6, 2)).astype(np.float32)
    expected = np.asarray(model(images))
    assert (expected == 0).any()
    assert np.allclose(run(file, images), expected, atol=1e-30)
    assert operators(file)["Pad"] == 1
    constants = [onnx.numpy_helper.to_array(item) for item in onnx.load(file).graph.initializer]
    assert any(0 < value < 1e-30 for array in constants if array.dtype == np.float32 for value in array.ravel())


def test_exporting_changes_nothing_in_the_model(resnet20, tmp_path):
    images = noise(resnet20, 2)
    before, weights = np.asarray(resnet20(images)), [np.array(v) for v in resnet20.variables]
    to_onnx(resnet20, tmp_path / "m.onnx")
    assert np.array_equal(before, resnet20(images))
    assert all(np.array_equal(a, b) for a, b in zip(weights, resnet20.variables, strict=True))
    assert all("call" not in vars(layer) for layer in resnet20.layers)


def test_an_existing_file_is_replaced_only_when_asked(resnet20, tmp_path):
    file = tmp_path / "m.onnx"
    file.write_text("mine")
    with pytest.raises(ExportError, match="already exists"):
        to_onnx(resnet20, file)
    assert file.read_text() == "mine"
    with pytest.raises(ExportError, match="not an ONNX file"):
        to_onnx(resnet20, tmp_path, overwrite=True)
    to_onnx(resnet20, file, overwrite=True)
    assert operators(file)["Conv"] == 19


def test_an_unwritable_place_is_an_export_error(resnet20, tmp_path):
    (tmp_path / "a_file").write_text("")
    with pytest.raises(ExportError, match="cannot write"):
        to_onnx(resnet20, tmp_path / "a_file" / "m.onnx")


class Custom(keras.layers.Layer):
    """A layer of what somebody wrote."""

    def __init__(self, compute, **arguments):
        super().__init__(**arguments)
        self.compute = compute

    def call(self, inputs):
        return self.compute(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


class Counter(keras.layers.Layer):
    """A layer with a variable that Keras does not see."""

    def build(self, input_shape):
        self.hidden = [tf.Variable(2.0)]

    def call(self, inputs):
        return inputs * self.hidden[0]


def in_python(inputs):
    if tf.reduce_sum(inputs) > 0:
        return inputs
    return -inputs


def in_a_loop(inputs):
    return tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * 2), (0, inputs))[1]


# What a layer's call may be that has no ONNX form, and what the error says beside the layer's name.
GUILTY = {
    "python_if": (in_python, "as a Python `bool` is not allowed.*keras.ops.where"),
    "python_if_in_a_function": (tf.function(in_python), "control flow"),
    "python_loop": (lambda x: next(iter(x)), "Iterating over a symbolic"),
    "numpy": (lambda x: x * float(np.max(x)), "to a numpy array.*keras.ops"),
    "eager": (lambda x: tf.constant(x.numpy()), "numpy"),
    "raises": (lambda x: {}["missing"], "KeyError: 'missing'"),
    "cond": (lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: x * 2, lambda: x - 1), "control flow"),
    "while_loop": (in_a_loop, "control flow"),
    "map_fn": (lambda x: tf.map_fn(lambda row: row * 2, x), "control flow"),
    "py_function": (lambda x: tf.ensure_shape(tf.py_function(lambda y: y, [x], tf.float32), x.shape), "Python code"),
    "numpy_function": (lambda x: tf.ensure_shape(tf.numpy_function(abs, [x], tf.float32), x.shape), "Python code"),
    "random": (lambda x: x + tf.random.uniform([4, 4, 1]), "random numbers"),
    "igamma": (lambda x: tf.math.igamma(x, x), "Igamma, which has no ONNX form"),
    "fft": (lambda x: tf.math.real(tf.signal.fft(tf.cast(x, tf.complex64))), "FFT, which tf2onnx cannot convert"),
    "resize_area": (lambda x: tf.image.resize(x, (4, 4), "area"), "ResizeArea"),
    "resize_lanczos": (lambda x: tf.image.resize(x, (4, 4), "lanczos3"), "no ONNX form"),
}


@pytest.mark.parametrize("name", GUILTY)
def test_the_error_names_the_layer_that_cannot_be_exported(name, tmp_path):
    compute, message = GUILTY[name]
    image = keras.Input((4, 4, 1))
    inner_image = keras.Input((4, 4, 1))
    inner = keras.Model(inner_image, Custom(compute, name="the_guilty_layer")(inner_image), name="nested")
    model = keras.Model(image, keras.layers.Conv2D(2, 1)(inner(keras.layers.Conv2D(1, 1)(image))))
    with pytest.raises(ExportError, match=f"'the_guilty_layer'.*{message}"):
        to_onnx(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    assert all("call" not in vars(layer) for layer in model._flatten_layers())


def test_layers_of_keras_that_cannot_be_exported_are_named(tmp_path):
    image = keras.Input((4, 4, 2))
    for layer in (
        Counter(name="the_guilty_layer"),
        keras.layers.UpSampling2D(2, interpolation="lanczos3", name="the_guilty_layer"),
        keras.Sequential([keras.layers.Reshape((4, 8)), keras.layers.LSTM(4, name="the_guilty_layer")]),
    ):
        with pytest.raises(ExportError, match="'the_guilty_layer' uses"):
            to_onnx(keras.Model(image, layer(image)), tmp_path / "m.onnx")


def test_layers_for_training_leave_nothing_in_the_graph(tmp_path):
    image = x = keras.Input((4, 4, 2))
    for layer in (
        keras.layers.RandomFlip(),
        keras.layers.RandomRotation(0.5),
        keras.layers.Dropout(0.5),
        keras.layers.GaussianNoise(0.5),
    ):
        x = layer(x)
    model = keras.Model(image, keras.layers.Lambda(lambda x: x * 2)(x))
    file = to_onnx(model, tmp_path / "m.onnx")
    assert operators(file) == {"Mul": 1}
    assert np.array_equal(run(file, noise(model, 2)), 2 * noise(model, 2))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_upsampling_gives_keras_s_values(interpolation, tmp_path):
    # By 2 and 4, where TensorFlow's table of cubic weights is exact; the nearest pixel is so at any factor.
    size = (3, 7) if interpolation == "nearest" else (2, 4)
    image = keras.Input((4, 41, 2))
    model = keras.Model(image, keras.layers.UpSampling2D(size, interpolation=interpolation)(image))
    file = to_onnx(model, tmp_path / "m.onnx")
    assert np.allclose(run(file, noise(model, 3)), model(noise(model, 3)), atol=1e-5)
    assert set(operators(file)) <= {"Transpose", "Resize"}


class Subclassed(keras.Model):
    """A model without a graph of layers."""

    def call(self, inputs):
        return inputs


def test_what_cannot_be_exported_says_why(tmp_path):
    image = keras.Input((4, 4, 1))
    two = keras.Model([image, keras.Input((2,))], keras.layers.Flatten()(image))
    vector = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    byte = keras.Input((4, 4, 1), dtype="uint8")
    bytes_in = keras.Model(byte, keras.layers.Rescaling(1 / 255)(byte))
    half = keras.Model(image, keras.layers.Conv2D(2, 1, dtype="mixed_float16")(image))
    for model, message in (
        ("resnet50", "give a Keras model, not str"),
        (Subclassed(), "no defined inputs"),
        (two, "2 inputs"),
        (bytes_in, "uint8"),
        (half, "float16"),
        (vector, "not images"),
    ):
        with pytest.raises(ExportError, match=message):
            to_onnx(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_paddings_that_mirror(tmp_path):
    def model(width, mode):
        inputs = keras.Input((6, 6, 2))
        padded = keras.ops.pad(inputs, ((0, 0), (width, width), (0, width), (0, 0)), mode=mode)
        return keras.Model(inputs, keras.layers.Conv2D(3, 3)(padded))

    for width, mode in ((1, "symmetric"), (1, "reflect"), (2, "reflect")):
        padded = model(width, mode)
        file = to_onnx(padded, tmp_path / f"{mode}{width}.onnx")
        expected = np.asarray(padded(noise(padded, 2)))
        assert np.abs(run(file, noise(padded, 2)) - expected).max() <= 1e-5 * np.abs(expected).max()
    with pytest.raises(ExportError, match="symmetric padding by more than one pixel"):
        to_onnx(model(2, "symmetric"), tmp_path / "m.onnx")


# One of each family of keras.applications, and the smallest input that it takes below 224 pixels.
APPLICATIONS = {
    "ResNet50": 64, "ResNet50V2": 64, "VGG16": 64, "DenseNet121": 64, "MobileNetV2": 64, "EfficientNetB0": 64,
    "Xception": 75, "ConvNeXtTiny": 64, "MobileNetV3Small": 64,
}  # fmt: skip
FURTHER_APPLICATIONS = ["InceptionV3", "InceptionResNetV2", "NASNetMobile", "EfficientNetV2B0", "MobileNet",
                        "MobileNetV3Large"]  # fmt: skip


def agrees_with_keras(model, settle, file):
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        settle(model)
    to_onnx(model, file)
    for batch in (1, 3):
        images = noise(model, batch)
        expected = np.asarray(model(images, training=False))
        # With random statistics some (MobileNetV3) amplify rounding: by as much as Keras's own output moves with it.
        moved = np.abs(np.asarray(model(images * np.float32(1 + 1e-6), training=False)) - expected).max()
        assert np.abs(run(file, images) - expected).max() <= max(1e-4 * np.abs(expected).max(), 5 * moved)
    assert not SHAPES & set(operators(file))


@pytest.mark.parametrize("name", APPLICATIONS)
def test_keras_applications_at_small_sizes_give_keras_s_features(name, settle, tmp_path):
    side = APPLICATIONS[name]
    build = getattr(keras.applications, name)
    agrees_with_keras(build(weights=None, include_top=False, input_shape=(side, side, 3)), settle, tmp_path / "m.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*APPLICATIONS, *FURTHER_APPLICATIONS])
def test_keras_applications_give_keras_s_logits(name, settle, tmp_path):
    build = getattr(keras.applications, name)
    agrees_with_keras(build(weights=None, classifier_activation=None), settle, tmp_path / "m.onnx")
