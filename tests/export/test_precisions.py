"""Lower precisions: written only when they decide as float32 does, and repaired until they do."""

import collections
import json

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import keras_resnets
from keras_resnets.bundle import Bundle
from keras_resnets.cli import main
from keras_resnets.data import load_digits
from keras_resnets.export import DataFreeWarning, ExportError, Gate, to_bundle
from keras_resnets.export.gate import Panel, Quality, pass_gate
from keras_resnets.models.files import describe
from keras_resnets.serving import Engine

LOWER = ("float16", "int8", "int8-symmetric")
SAVED = ("saved_model", "saved_model pixels", "saved_model encoded")


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A residual network that reads digits, as a file: tests change what they load."""
    keras.utils.set_random_seed(0)
    model = keras_resnets.ResNet20(input_shape=(8, 8, 1), classes=10)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    tensor = digits.preprocessing.normalize(digits.train.images)
    model.fit(tensor, digits.train.labels, batch_size=64, epochs=4, verbose=0)
    keras_resnets.update_batch_norm(model, [tensor])
    file = tmp_path_factory.mktemp("trained") / "model.keras"
    model.save(file)
    return file


@pytest.fixture
def options(digits):
    return {
        "preprocessing": digits.preprocessing,
        "labels": digits.class_names,
        "images": digits.train.images[:400],
        "targets": digits.train.labels[:400],
        "saved_model": False,
    }


@pytest.fixture(scope="module")
def bundle(trained, digits, tmp_path_factory):
    """One with every precision."""
    folder = tmp_path_factory.mktemp("bundle") / "b"
    return to_bundle(
        keras.models.load_model(trained), folder, preprocessing=digits.preprocessing, labels=digits.class_names,
        images=digits.train.images[:400], targets=digits.train.labels[:400], precisions=LOWER,
    )  # fmt: skip


def top1(bundle, precision, digits):
    scores = Engine(bundle, precision=precision).predict_scores(digits.test.images)
    return float((scores.argmax(-1) == digits.test.labels).mean())


def test_every_precision_classifies_images_it_never_saw(bundle, digits):
    accuracy = {precision: top1(bundle, precision, digits) for precision in ("float32", *LOWER)}
    assert accuracy["float32"] > 0.9
    assert all(value >= accuracy["float32"] - 0.01 for value in accuracy.values()), accuracy


def test_the_bundle_says_how_each_precision_decides(bundle):
    bundle = Bundle.open(bundle.path)
    bundle.check()
    first, *lower = bundle.manifest.variants
    assert (first.precision, first.quality) == ("float32", None)
    assert [variant.precision for variant in lower] == list(LOWER)
    text = (bundle.path / "report.md").read_text()
    for variant in lower:
        quality = dict(variant.quality)
        assert quality.pop("real_images")
        assert Quality(**quality).passes(Gate())
        assert quality["images"] == 200
        assert quality["top1_float32"] > 0.9
        assert f"agrees with float32 on {quality['agreement']:.2%} of 200 images" in text
        assert variant.drift < 0.2


def test_the_verification_covers_precisions_batches_and_inputs(bundle):
    rows = {(r["runtime"], r["precision"], r["inputs"], r["batch"]) for r in bundle.manifest.verification}
    forms = [(form, "float32") for form in SAVED] + [*(("onnxruntime", precision) for precision in ("float32", *LOWER))]
    assert rows == {(*form, inputs, batch) for form in forms for inputs in ("noise", "images") for batch in (1, 3, 17)}
    for row in bundle.manifest.verification:
        assert (row["allowed"] is None) == (row["precision"] != "float32")
        assert row["provider"] == ("cpu" if row["runtime"] == "onnxruntime" else "")
    worst = {p: max(r["max_error"] for r in bundle.manifest.verification if r["precision"] == p) for p in LOWER}
    assert 1e-6 < worst["float16"] < 0.01 < worst["int8"]


def optimized(file, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


def test_whole_blocks_run_in_int8(bundle, trained, tmp_path):
    model = keras.models.load_model(trained)
    kinds = collections.Counter(type(layer).__name__ for layer in model.layers)
    found = optimized(bundle.path / "model.int8.onnx", tmp_path)
    assert found["QLinearConv"] == kinds["Conv2D"]
    assert found["QLinearAdd"] == kinds["Add"]
    assert found["Conv"] == found["Add"] == 0
    weights = {item.name: item for item in onnx.load(bundle.path / "model.int8.onnx").graph.initializer}
    kernel = weights["conv1_conv/kernel_quantized"]
    assert kernel.data_type == onnx.TensorProto.INT8
    assert len(onnx.numpy_helper.to_array(weights["conv1_conv/kernel_scale"])) == kernel.dims[0]


def test_symmetric_activations_have_no_zero_point(bundle):
    graph = onnx.load(bundle.path / "model.int8-symmetric.onnx").graph
    stored = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    points = [stored[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(points) > 20
    assert all(point.dtype == np.int8 and not point.any() for point in points)


def test_float16_is_half_the_size_and_takes_float32(bundle):
    sizes = {v.precision: (bundle.path / v.file).stat().st_size for v in bundle.manifest.variants}
    assert sizes["int8"] < 0.4 * sizes["float32"]
    assert sizes["float16"] < 0.6 * sizes["float32"]
    graph = onnx.load(bundle.path / "model.float16.onnx").graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    assert any(item.data_type == onnx.TensorProto.FLOAT16 for item in graph.initializer)


def plant(model, layer, channel, factor):
    """Let one channel of a block's first batch norm be `factor` times as large and what reads it as much less so:
    the same function, since ReLU scales with its input, but eight bits for all channels hold only that one."""
    norm = model.get_layer(f"{layer}_bn")
    convs = [item for item in model.layers if isinstance(item, keras.layers.Conv2D)]
    following = convs[[item.name for item in convs].index(f"{layer}_conv") + 1]
    scale = np.ones(norm.gamma.shape, np.float32)
    scale[channel] = factor
    norm.gamma.assign(norm.gamma * scale)
    norm.beta.assign(norm.beta * scale)
    following.kernel.assign(following.kernel / scale[:, None])
    return following.name


def block_layer(model):
    return next(layer.name.removesuffix("_conv") for layer in model.layers if layer.name.endswith("block2_1_conv"))


def test_a_layer_that_quantizes_badly_is_caught_and_repaired(trained, options, digits, tmp_path):
    model = keras.models.load_model(trained)
    layer = block_layer(model)
    following = plant(model, layer, channel=3, factor=1e4)
    steps = []
    repaired = to_bundle(model, tmp_path / "b", **options, precisions=["int8"], progress=steps.append)
    quality = repaired.variant("int8").quality
    assert {f"{layer}_conv", following} <= set(quality["float_layers"])
    assert len(quality["float_layers"]) < 8
    assert any("returning" in step and layer in step for step in steps)
    assert quality["agreement"] >= Gate().agreement
    assert top1(repaired, "int8", digits) >= top1(repaired, "float32", digits) - 0.01
    assert layer in (repaired.path / "report.md").read_text().split("in float32 stay")[1]


def test_what_float16_cannot_hold_stays_in_float32(trained, options, digits, tmp_path):
    model = keras.models.load_model(trained)
    layer = block_layer(model)
    plant(model, layer, channel=3, factor=1e7)
    bundle = to_bundle(model, tmp_path / "b", **options, precisions=["float16"])
    quality = bundle.variant("float16").quality
    assert f"{layer}_conv" in quality["float_layers"]
    assert top1(bundle, "float16", digits) >= top1(bundle, "float32", digits) - 0.002


def test_what_no_repair_helps_is_not_written(trained, options, tmp_path):
    class Broken:
        """A precision that answers at random, whatever stays in float32."""

        kept = frozenset()

        def __init__(self, source):
            self.source = source

        def write(self, file, kept):
            proto = onnx.load(self.source)
            for item in proto.graph.initializer:
                if item.name == "predictions/kernel":
                    weight = onnx.numpy_helper.to_array(item)
                    item.CopyFrom(onnx.numpy_helper.from_array(np.roll(weight, 1, 1), item.name))
            file.write_bytes(proto.SerializeToString())

        def rank(self, tensor):
            return [("conv1_conv",)]

    options.pop("targets")
    bundle = to_bundle(keras.models.load_model(trained), tmp_path / "b", **options)
    batch = options["preprocessing"].normalize(options["images"][:64])
    panel = Panel(bundle.path / "model.onnx", lambda: iter([batch]), None, classes=True)
    with pytest.raises(ExportError, match=r"agrees with float32 on .*give more images, or another gate="):
        pass_gate(Broken(bundle.path / "model.onnx"), tmp_path / "broken.onnx", panel, Gate(), lambda line: None)


def test_a_failed_gate_leaves_no_bundle(trained, options, tmp_path, monkeypatch):
    monkeypatch.setattr("keras_resnets.export.int8.Int8.rank", lambda self, tensor: [])
    model = keras.models.load_model(trained)
    plant(model, block_layer(model), channel=3, factor=1e4)
    with pytest.raises(ExportError, match="the gate wants"):
        to_bundle(model, tmp_path / "b", **options, precisions=["int8"])
    assert list(tmp_path.iterdir()) == []


def test_without_images_a_warning_says_that_the_cost_is_unknown(trained, options, digits, tmp_path):
    for name in ("images", "targets"):
        options.pop(name)
    model = keras.models.load_model(trained)
    with pytest.warns(DataFreeWarning, match="what it costs on yours is not known"):
        bundle = to_bundle(model, tmp_path / "b", **options, precisions=["int8"], gate=Gate(agreement=0.5))
    quality = bundle.variant("int8").quality
    assert not quality["real_images"]
    assert quality["top1"] is None
    assert top1(bundle, "int8", digits) >= top1(bundle, "float32", digits) - 0.1


def test_pixels_and_features_go_through_the_gate_too(trained, options, tmp_path):
    model = keras.models.load_model(trained)
    features = keras.Model(model.input, model.layers[-2].output)
    options.pop("labels"), options.pop("targets")
    bundle = to_bundle(features, tmp_path / "b", **options, precisions=["int8", "float16"], pixels=True)
    pixels = options["images"][:5]
    expected = Engine(bundle).run(pixels)
    for precision in ("int8", "float16"):
        got = Engine(bundle, precision=precision).run(pixels)
        cosine = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosine.min() > 0.97
        assert bundle.variant(precision).quality["agreement"] > 0.98


def test_a_folder_s_subfolders_are_the_classes(trained, digits, tmp_path):
    for i in range(60):
        folder = tmp_path / "photos" / digits.class_names[digits.train.labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.train.images[i, :, :, 0]).save(folder / f"{i}.png")
    model = keras.models.load_model(trained)
    common = {"preprocessing": digits.preprocessing, "labels": digits.class_names, "saved_model": False}
    bundle = to_bundle(model, tmp_path / "b", **common, images=tmp_path / "photos", precisions=["int8"])
    assert bundle.variant("int8").quality["top1_float32"] > 0.9
    (tmp_path / "photos" / "others").mkdir()
    Image.fromarray(digits.train.images[0, :, :, 0]).save(tmp_path / "photos" / "others" / "x.png")
    bundle = to_bundle(model, tmp_path / "c", **common, images=tmp_path / "photos", precisions=["int8"])
    assert bundle.variant("int8").quality["top1"] is None


def test_what_cannot_be_meant_says_so(trained, options, tmp_path):
    model = keras.models.load_model(trained)
    for change, message in (
        ({"precisions": ["int4"]}, "unknown precision 'int4'; there are float32, float16"),
        ({"targets": options["targets"][:3]}, "400 images"),
        ({"targets": options["targets"] / 2}, "one class index an image"),
        ({"images": None}, "targets= are the classes of images="),
        ({"images": []}, "images= is empty"),
    ):
        with pytest.raises(ExportError, match=message):
            to_bundle(model, tmp_path / "b", **{"precisions": ["int8"], **options, **change})
    for limits in ({"agreement": 98}, {"top1_loss": -0.1}, {"agreement": float("nan")}):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
            Gate(**limits)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(trained, tmp_path, capsys):
    out = str(tmp_path / "b")
    arguments = ["export", str(trained), out, "--images", "digits", "--precision", "int8", "--no-saved-model"]
    assert main(arguments) == 1
    assert "needs preprocessing=" in capsys.readouterr().err
    model = keras.models.load_model(trained)
    digits = load_digits()
    describe(model, digits.preprocessing, digits.class_names)
    keras_resnets.save_model(model, trained.with_name("described.keras"))
    arguments[1] = str(trained.with_name("described.keras"))
    assert main([*arguments, "--agreement", "0.9"]) == 0
    assert "int8 agrees with float32 on" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "b" / "bundle.json").read_text())
    assert [row["precision"] for row in manifest["variants"]] == ["float32", "int8"]
    assert manifest["variants"][1]["quality"]["top1"] > 0.9
    assert main([*arguments, "--overwrite", "--agreement", "98"]) == 1
    assert "must be in [0, 1]" in capsys.readouterr().err
    assert main(["verify", out]) == 0
    assert "int8 on cpu" in capsys.readouterr().out
