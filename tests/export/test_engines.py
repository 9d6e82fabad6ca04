"""What is written for other engines, read with their own definitions and held against the ONNX session."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from keras_resnets.bundle import Bundle
from keras_resnets.export import ExportError, to_bundle
from keras_resnets.export.engines import ENGINES, MAX_BATCH

LABELS = ("shirt", "bag", "ankle boot")
KINDS = {"TYPE_FP32": "tensor(float)"}


@pytest.fixture(scope="module")
def bundle(resnet20, tiny_preprocessing, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines") / "b"
    return to_bundle(resnet20, folder, preprocessing=tiny_preprocessing, labels=LABELS, engines=tuple(ENGINES))


def session(file):
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def triton(file):
    return text_format.Parse(file.read_text(), ModelConfig())


def equal(configured, value):
    """A tensor of a Triton configuration is one of a session."""
    assert configured.name == value.name
    assert KINDS[DataType.Name(configured.data_type)] == value.type
    assert list(configured.dims) == [side if isinstance(side, int) else -1 for side in value.shape[1:]]
    assert value.shape[0] == "batch"


@pytest.mark.parametrize("root", ["triton", "kserve/models"])
def test_a_triton_repository_says_what_the_session_says(bundle, root):
    home = bundle.path / "engines" / root / "resnet20"
    assert sorted(path.name for path in home.iterdir()) == ["1", "config.pbtxt", "configs", "labels.txt"]
    own = session(home / "1" / "model.onnx")
    configs = {file.stem: triton(file) for file in (home / "config.pbtxt", *(home / "configs").iterdir())}
    assert sorted(configs) == ["config", "cpu", "cuda", "tensorrt"]
    kinds = {name: ModelInstanceGroup.Kind.Name(config.instance_group[0].kind) for name, config in configs.items()}
    assert kinds == {"config": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU", "tensorrt": "KIND_GPU"}
    for config in configs.values():
        assert (config.name, config.backend) == (home.name, "onnxruntime")
        (inputs,), (outputs,) = config.input, config.output
        equal(inputs, own.get_inputs()[0])
        equal(outputs, own.get_outputs()[0])
        assert tuple((home / outputs.label_filename).read_text().splitlines()) == LABELS
        queue = config.dynamic_batching.default_queue_policy
        assert 0 < config.dynamic_batching.max_queue_delay_microseconds < queue.default_timeout_microseconds
        assert queue.max_queue_size > config.max_batch_size
        for warmup in config.model_warmup:
            (values,) = warmup.inputs.values()
            assert list(warmup.inputs) == [inputs.name]
            assert (values.data_type, list(values.dims)) == (inputs.data_type, list(inputs.dims))
            images = np.zeros((warmup.batch_size, *values.dims), np.float32)
            assert len(own.run(None, {inputs.name: images})[0]) == warmup.batch_size
        assert [warmup.batch_size for warmup in config.model_warmup] == [1, config.max_batch_size]
    accelerator = configs["tensorrt"].optimization.execution_accelerators.gpu_execution_accelerator[0]
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP32"  # what was verified


def batching_parameters():
    """BatchingParameters of TensorFlow Serving's session_bundle_config.proto, which its API's wheel leaves out."""
    file = descriptor_pb2.FileDescriptorProto(name="batching.proto", package="t", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    message = file.message_type.add(name="BatchingParameters")
    numbers = {"max_batch_size": 1, "batch_timeout_micros": 2, "max_enqueued_batches": 3, "num_batch_threads": 4}
    field = descriptor_pb2.FieldDescriptorProto
    for name, number in numbers.items():
        message.field.add(
            name=name, number=number, type=field.TYPE_MESSAGE, label=field.LABEL_OPTIONAL,
            type_name=".google.protobuf.Int64Value",
        )  # fmt: skip
    message.field.add(name="allowed_batch_sizes", number=6, type=field.TYPE_INT64, label=field.LABEL_REPEATED)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.BatchingParameters"))()


SERVE = """
import json, sys
import numpy as np
import tensorflow as tf
signature = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
((name, spec),) = signature.structured_input_signature[1].items()
((output, shape),) = signature.structured_outputs.items()
images = np.load(sys.argv[2])
np.save(sys.argv[3], signature(**{name: tf.constant(images)})[output])
print(json.dumps([name, spec.dtype.name, spec.shape.as_list(), output, shape.shape.as_list()]))
print("keras_resnets" in sys.modules)
"""


def test_tf_serving_loads_what_keras_computes(bundle, tmp_path):
    folder = bundle.path / "engines" / "tf-serving"
    (config,) = text_format.Parse((folder / "models.config").read_text(), ModelServerConfig()).model_config_list.config
    assert (config.name, config.base_path, config.model_platform) == ("resnet20", "/models/resnet20", "tensorflow")
    batching = text_format.Parse((folder / "batching.config").read_text(), batching_parameters())
    assert batching.max_batch_size.value == batching.allowed_batch_sizes[-1] == MAX_BATCH
    assert list(batching.allowed_batch_sizes) == [1, 2, 4, 8, 16, 32]
    # In a process with TensorFlow, and without this package, as in TensorFlow Serving.
    golden, expected = bundle.golden()
    np.save(tmp_path / "in.npy", bundle.manifest.preprocessing.normalize(golden))
    command = [sys.executable, "-c", SERVE, str(folder / config.name / "1"), "in.npy", "out.npy"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()
    assert printed[-1] == "False"
    name, dtype, shape, output, output_shape = json.loads(printed[-2])
    own = session(bundle.path / "model.onnx")
    inputs, outputs = own.get_inputs()[0], own.get_outputs()[0]
    assert (name, dtype, shape[1:]) == (inputs.name, "float32", inputs.shape[1:])
    assert (output, output_shape[1:]) == (outputs.name, outputs.shape[1:])
    assert np.abs(np.load(tmp_path / "out.npy") - expected).max() < 1e-5


def check_fields(kind, content, tables):
    """Every field of a YAML object is one that KServe knows, of its type."""
    if kind not in tables:
        assert isinstance(content, {"str": str, "int": int}.get(kind, dict)), kind
        return
    for name, value in content.items():
        assert name in tables[kind], f"{kind} has no {name}"
        check_fields(tables[kind][name], value, tables)


def test_kserve_knows_every_field(bundle):
    tables = json.loads(Path(__file__).with_name("kserve_fields.json").read_text())
    content = yaml.safe_load((bundle.path / "engines" / "kserve" / "inference_service.yaml").read_text())
    check_fields("V1beta1InferenceService", content, tables)
    assert content["apiVersion"] == "serving.kserve.io/v1beta1"
    model = content["spec"]["predictor"]["model"]
    assert (model["modelFormat"]["name"], model["protocolVersion"]) == ("onnx", "v2")
    with pytest.raises(AssertionError, match="has no modelformat"):
        check_fields("V1beta1ModelSpec", {"modelformat": {}}, tables)


def test_openvino_model_server_gets_the_sessions_shape(bundle):
    folder = bundle.path / "engines" / "openvino"
    (entry,) = json.loads((folder / "config.json").read_text())["model_config_list"]
    own = session(folder / entry["config"]["name"] / "1" / "model.onnx")
    _, *sides = own.get_inputs()[0].shape
    assert entry["config"]["shape"] == f"(1:{MAX_BATCH},{','.join(map(str, sides))})"
    assert entry["config"]["base_path"] == f"/models/{entry['config']['name']}"


def test_the_files_are_sealed_and_take_no_room(bundle):
    Bundle.open(bundle.path).check()
    copies = [bundle.path / "model.onnx", *bundle.path.glob("engines/**/model.onnx")]
    assert len(copies) == 4
    assert len({file.stat().st_ino for file in copies}) == 1


def test_what_no_engine_takes_is_said_before_the_export(resnet20, tmp_path):
    for engines, saved_model, message in (
        (["torchserve"], True, "choose of triton"),
        (["tf-serving"], False, "SavedM"),
    ):
        with pytest.raises(ExportError, match=message):
            to_bundle(resnet20, tmp_path / "b", engines=engines, saved_model=saved_model)
    assert not (tmp_path / "b").exists()


def test_open_sides_are_any(tmp_path):
    import keras

    images = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(images))
    model = keras.Model(images, keras.layers.Dense(3)(pooled), name="any side")
    bundle = to_bundle(model, tmp_path / "b", engines=["triton"], saved_model=False)
    (home,) = (bundle.path / "engines" / "triton").iterdir()
    config = triton(home / "config.pbtxt")
    assert config.name == home.name == "any_side"
    equal(config.input[0], session(home / "1" / "model.onnx").get_inputs()[0])
    assert not config.model_warmup
    assert not config.output[0].label_filename
