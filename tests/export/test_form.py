"""What a graph looks like from outside: layout, output, best classes, open sides, opset, files."""

import collections

import keras
import numpy as np
import onnx
import onnxruntime
import pytest

import keras_resnets
from keras_resnets import Preprocessing
from keras_resnets.bundle import Bundle
from keras_resnets.cli import main
from keras_resnets.export import ExportError, to_bundle, to_onnx
from keras_resnets.serving import Engine

COLOUR = Preprocessing((16, 16), 3, scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def session(file):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def run(file, images):
    return session(file).run(None, {"images": images})


def noise(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def operators(file):
    return collections.Counter(node.op_type for node in onnx.load(file).graph.node)


def close(got, expected):
    return np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.fixture(scope="module")
def net(settle):
    return settle(keras_resnets.ResNet20(input_shape=(16, 16, 3), classes=5))


@pytest.mark.parametrize("name", ["resnet20", "plainnet18", "resnet18v2", "densenetbc100_12", "vgg11_bn", "resnet18d"])
def test_channels_first_needs_no_transpose(name, settle, tmp_path):
    model = settle(keras_resnets.create_model(name, input_shape=(32, 32, 3), classifier_activation=None))
    file = to_onnx(model, tmp_path / "m.onnx", layout="nchw")
    assert operators(file)["Transpose"] == 0
    images = noise(3, 32, 32, 3)
    assert close(run(file, images.transpose(0, 3, 1, 2))[0], np.asarray(model(images, training=False)))
    dims = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, 32, 32]


def test_channels_first_where_the_input_is_read_in_other_ways(tmp_path):
    images = keras.Input((6, 6, 3))
    summed = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, padding="same")(images))
    model = keras.Model(images, keras.layers.Concatenate()([summed, keras.layers.Flatten()(images)]))
    file = to_onnx(model, tmp_path / "m.onnx", layout="nchw")
    assert close(run(file, noise(2, 6, 6, 3).transpose(0, 3, 1, 2))[0], np.asarray(model(noise(2, 6, 6, 3))))


@pytest.mark.parametrize("preset", ["torch", "caffe", "tf"])
def test_channels_first_pixels(preset, net, tmp_path):
    how = Preprocessing.preset(preset, 16)
    file = to_onnx(net, tmp_path / "m.onnx", layout="nchw", pixels=True, preprocessing=how)
    assert operators(file)["Transpose"] == 0
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    expected = np.asarray(net(how.normalize(pixels), training=False))
    assert np.allclose(run(file, np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))[0], expected, atol=1e-5)


def heads():
    def base():
        images = keras.Input((16, 16, 3))
        return images, keras.layers.GlobalAveragePooling2D(name="pool")(keras.layers.Conv2D(6, 3)(images))

    images, pooled = base()
    yield "softmax in the Dense layer", keras.Model(images, keras.layers.Dense(4, activation="softmax")(pooled))
    images, pooled = base()
    yield "a Softmax layer", keras.Model(images, keras.layers.Softmax()(keras.layers.Dense(4)(pooled)))
    images, pooled = base()
    dense = keras.layers.Dense(4)(keras.layers.Dropout(0.5)(pooled))
    yield "an Activation", keras.Model(images, keras.layers.Activation("sigmoid")(dense))
    images, pooled = base()
    yield "logits", keras.Model(images, keras.layers.Dense(4)(pooled))


@pytest.mark.parametrize("model", [pytest.param(model, id=name) for name, model in heads()])
def test_any_output_of_a_classifier(model, tmp_path):
    images = noise(3, 16, 16, 3)
    dense = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dense))
    pooled = np.asarray(keras.Model(model.inputs, model.get_layer("pool").output)(images))
    logits = pooled @ np.asarray(dense.kernel) + np.asarray(dense.bias)
    before = np.asarray(model(images))
    squash = keras.ops.sigmoid if isinstance(model.layers[-1], keras.layers.Activation) else keras.ops.softmax
    wanted = {"features": pooled, "logits": logits, "probabilities": np.asarray(squash(logits))}
    for output, expected in wanted.items():
        file = to_onnx(model, tmp_path / f"{output}.onnx", output=output)
        assert [value.name for value in session(file).get_outputs()] == [output]
        assert np.allclose(run(file, images)[0], expected, atol=1e-5)
    assert np.array_equal(np.asarray(model(images)), before)


def test_the_best_classes(net, tmp_path):
    file = to_onnx(net, tmp_path / "m.onnx", top_k=3)
    scores, classes, best = run(file, noise(4, 16, 16, 3))
    assert [value.name for value in session(file).get_outputs()] == ["probabilities", "top_classes", "top_scores"]
    assert classes.dtype == np.int64
    assert np.array_equal(classes, np.argsort(-scores, axis=1)[:, :3])
    assert np.array_equal(best, np.take_along_axis(scores, classes, 1))


def test_any_height_and_width(net, tmp_path):
    file = to_onnx(net, tmp_path / "m.onnx", open_size=True)
    dims = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", "height", "width", 3]
    assert close(run(file, noise(2, 16, 16, 3))[0], np.asarray(net(noise(2, 16, 16, 3))))
    free = keras_resnets.ResNet20(input_shape=(None, None, 3), classes=5)
    free.set_weights(net.get_weights())
    for side in (9, 40):
        images = noise(2, side, side + 3, 3)
        assert close(run(file, images)[0], np.asarray(free(images, training=False)))


@pytest.mark.parametrize(
    ("version", "opset", "ir"),
    [("1.8", 14, 7), ("1.10", 15, 8), ("1.12.1", 17, 8), ("1.16", 18, 8), ("1.99", 18, 8), (None, 18, 8)],
)
def test_the_opset_is_what_the_runtime_reads(version, opset, ir, net, tmp_path):
    file = to_onnx(net, tmp_path / "m.onnx", onnxruntime=version)
    proto = onnx.load(file)
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", opset)]
    assert proto.ir_version == ir
    for node in proto.graph.node:
        assert onnx.defs.get_schema(node.op_type, opset).since_version <= opset
    assert close(run(file, noise(2, 16, 16, 3))[0], np.asarray(net(noise(2, 16, 16, 3))))


def test_weights_beyond_a_message_s_size_go_into_a_file_of_their_own(net, tmp_path, monkeypatch):
    monkeypatch.setattr("keras_resnets.export.stream.LARGE", 1_000)
    monkeypatch.setattr("keras_resnets.export.stream.MAX_BYTES", 10_000)
    file = to_onnx(net, tmp_path / "m.onnx")
    assert {item.name for item in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    assert file.stat().st_size < 0.2 * (tmp_path / "m.onnx.data").stat().st_size
    assert close(run(file, noise(2, 16, 16, 3))[0], np.asarray(net(noise(2, 16, 16, 3))))
    bundle = to_bundle(net, tmp_path / "b", preprocessing=COLOUR, engines=["triton", "openvino"], saved_model=False)
    for folder in ("", "engines/triton/*/1", "engines/openvino/*/1"):
        (data,) = bundle.path.glob(f"{folder}/model.onnx.data".lstrip("/"))
        assert run(data.with_name("model.onnx"), noise(1, 16, 16, 3))
    Engine(tmp_path / "b")
    (bundle.path / "model.onnx.data").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.onnx\.data is corrupt"):
        Engine(tmp_path / "b")


def test_a_bundle_of_another_form_predicts_the_same(net, tmp_path):
    images = list(np.random.default_rng(0).integers(0, 256, (5, 20, 18, 3), np.uint8))
    common = {"preprocessing": COLOUR, "labels": list("abcde"), "saved_model": False}
    expected = Engine(to_bundle(net, tmp_path / "plain", **common)).predict_scores(images)
    for number, form in enumerate((
        {"layout": "nchw", "output": "logits"},
        {"layout": "nchw", "pixels": True, "top_k": 2, "precisions": ["int8", "float16"]},
        {"open_size": True, "onnxruntime": "1.12"},
    )):  # fmt: skip
        bundle = to_bundle(net, tmp_path / str(number), **common, **form)
        Bundle.open(bundle.path).check()
        engine = Engine(bundle.path)
        assert np.allclose(engine.predict_scores(images), expected, atol=1e-5)
        assert bundle.manifest.input_layout == form.get("layout", "nhwc")
        got = session(bundle.path / "model.onnx").get_inputs()[0].shape
        assert [None if isinstance(side, str) else side for side in got] == list(bundle.manifest.input_shape)
        for precision in form.get("precisions", ()):
            assert Engine(bundle.path, precision=precision).predict_scores(images).shape == expected.shape


def test_what_cannot_be_had_says_so(net, tmp_path):
    features = keras_resnets.ResNet20(input_shape=(16, 16, 3), include_top=False, pooling="avg")
    for model, form, message in (
        (net, {"layout": "chwn"}, "layout must be nhwc or nchw"),
        (net, {"output": "classes"}, "output must be one of"),
        (net, {"top_k": 6}, "top_k=6 cannot be taken of"),
        (net, {"top_k": -1}, "must be a number of classes"),
        (net, {"onnxruntime": "new"}, "two numbers, as in 1.16"),
        (net, {"onnxruntime": "1.2"}, "too old"),
        (features, {"output": "logits"}, "gives features, of which logits cannot be made"),
        (features, {"top_k": 1}, "cannot be taken"),
        (keras.Sequential([keras.Input((8, 8, 3)), net_ending_inside()]), {"output": "logits"}, "nested model"),
        (vgg(), {"open_size": True}, "cannot take images of any size"),
    ):
        with pytest.raises(ExportError, match=message):
            to_onnx(model, tmp_path / "m.onnx", **form)
    assert list(tmp_path.iterdir()) == []


def net_ending_inside():
    images = keras.Input((8, 8, 3))
    return keras.Model(images, keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(images)))


def vgg():
    return keras_resnets.create_model("vgg11_bn", input_shape=(32, 32, 3))


def test_the_command_line(tmp_path, capsys):
    arguments = ["export", "resnet20", str(tmp_path / "b"), "--no-saved-model", "--layout", "nchw", "--top-k", "2"]
    assert main([*arguments, "--output", "logits", "--onnxruntime", "1.12", "--open-size"]) == 0
    graph = onnx.load(tmp_path / "b" / "model.onnx").graph
    assert [value.name for value in graph.output] == ["logits", "top_classes", "top_scores"]
    assert main(["verify", str(tmp_path / "b")]) == 0
    assert main([*arguments, "--overwrite", "--top-k", "11"]) == 1
    assert "top_k=11 cannot be taken" in capsys.readouterr().err
