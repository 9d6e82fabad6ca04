"""The server over gRPC: Triton's own client, unmodified."""

import threading

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from keras_resnets.serving.grpc_server import parse_message
from keras_resnets.serving.messages import MESSAGES, METHODS
from keras_resnets.serving.protocol import ProtocolError, TensorSpec, datatype

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def server(serving, exported, tmp_path_factory):
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text("secret")
    with (
        serving(f"tiny={exported()[1]}", "--grpc-port", 0, "--control", "--queue-delay", 20) as running,
        serving(f"tiny={exported()[1]}", "--grpc-port", 0, "--api-key-file", key) as guarded,
    ):
        running.guarded = guarded
        yield running


def address(server):
    return server.wait_for(r"gRPC on (\S+)").group(1)


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(address(server)) as connected:
        yield connected


@pytest.fixture(scope="module")
def tensors():
    return np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def want(exported, tensors):
    return np.asarray(exported()[0](tensors))


def inputs(tensors, name="images", kind="FP32"):
    item = triton.InferInput(name, list(tensors.shape), kind)
    item.set_data_from_numpy(tensors)
    return [item]


def fields(descriptor):
    """A message's fields as they are on the wire: number, name, type, repeated or not, and those of messages in it."""
    return {
        field.number: (
            field.name, field.type, bool(field.is_repeated),
            field.containing_oneof.name if field.containing_oneof else None,
            fields(field.message_type) if field.message_type else None,
        )
        for field in descriptor.fields
    }  # fmt: skip


def contained(ours, theirs):
    """Whether every field of ours is theirs, and an enumeration an integer."""
    for number, (name, kind, repeated, oneof, inner) in ours.items():
        their_name, their_kind, their_repeated, their_oneof, their_inner = theirs[number]
        assert (name, repeated) == (their_name, their_repeated)
        assert oneof == their_oneof or name == "dynamic_batching"  # the only one of its alternatives that we send
        assert kind == their_kind or (kind, their_kind) == (5, 14), name
        if inner is not None:
            contained(inner, their_inner)
    return True


@pytest.mark.parametrize("name", sorted({f"{method}{end}" for method in METHODS for end in ("Request", "Response")}))
def test_our_messages_are_triton_s(name):
    ours, theirs = fields(MESSAGES[name].DESCRIPTOR), fields(getattr(service_pb2, name).DESCRIPTOR)
    assert contained(ours, theirs)
    if name not in ("ModelConfigResponse", "ModelStatisticsResponse"):  # of these we send a part
        assert contained(theirs, ours)


def test_health_metadata_and_configuration(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny", "1")
    assert client.get_server_metadata().name == "keras_resnets"
    told = client.get_model_metadata("tiny")
    assert [(item.name, item.datatype, list(item.shape)) for item in told.inputs] == [("images", "FP32", [-1, 8, 8, 1])]
    config = client.get_model_config("tiny").config
    assert config.max_batch_size == 16 and list(config.input[0].dims) == [8, 8, 1]
    assert config.input[0].data_type == 11  # TYPE_FP32
    assert config.dynamic_batching.max_queue_delay_microseconds == 20_000


def test_inference(client, tensors, want):
    answer = client.infer("tiny", inputs(tensors), request_id="mine")
    np.testing.assert_allclose(answer.as_numpy("probabilities"), want, atol=1e-5)
    assert answer.get_response().id == "mine" and answer.get_response().model_version == "1"


def test_typed_contents(server, tensors, want):
    """KServe's clients may send numbers instead of raw bytes."""
    with grpc.insecure_channel(address(server)) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            service_pb2.ModelInferRequest.SerializeToString, service_pb2.ModelInferResponse.FromString,
        )  # fmt: skip
        request = service_pb2.ModelInferRequest(model_name="tiny")
        item = request.inputs.add(name="images", datatype="FP32", shape=tensors.shape)
        item.contents.fp32_contents.extend(tensors.ravel().tolist())
        answer = call(request)
        got = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)
        np.testing.assert_allclose(got, want, atol=1e-5)
        del item.contents.fp32_contents[-1]
        with pytest.raises(grpc.RpcError) as refused:
            call(request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_several_in_flight_each_get_their_own(client, tensors, want):
    answers, done = {}, threading.Semaphore(0)

    def keep(number):
        def callback(result, error):
            answers[number] = error or result.as_numpy("probabilities")
            done.release()

        return callback

    for number in range(200):
        client.async_infer("tiny", inputs(tensors[number % 5 : number % 5 + 1]), keep(number))
    for _ in range(200):
        assert done.acquire(timeout=30)
    for number in range(200):
        np.testing.assert_allclose(answers[number], want[number % 5 : number % 5 + 1], atol=1e-5)


def test_classification_and_statistics(client, tensors, want, at_once):
    outputs = [triton.InferRequestedOutput("probabilities", class_count=1)]
    got = client.infer("tiny", inputs(tensors), outputs=outputs).as_numpy("probabilities")
    assert [text.decode().split(":")[1:] for text in got[:, 0]] == [[str(i), COLOURS[i]] for i in want.argmax(1)]
    (before,) = client.get_inference_statistics("tiny").model_stats
    at_once(lambda number: client.infer("tiny", inputs(tensors[:1])), range(64))
    (after,) = client.get_inference_statistics("tiny").model_stats
    assert after.inference_count - before.inference_count == 64
    assert after.execution_count - before.execution_count <= 32


@pytest.mark.parametrize(
    ("model", "name", "shape", "kind", "options", "status"),
    [
        ("nothing", "images", (1, 8, 8, 1), "FP32", {}, "NOT_FOUND"),
        ("tiny", "images", (1, 8, 8, 1), "FP32", {"model_version": "7"}, "NOT_FOUND"),
        ("tiny", "pictures", (1, 8, 8, 1), "FP32", {}, "INVALID_ARGUMENT"),
        ("tiny", "images", (1, 9, 8, 1), "FP32", {}, "INVALID_ARGUMENT"),
        ("tiny", "images", (1, 8, 8, 1), "FP64", {}, "INVALID_ARGUMENT"),
        ("tiny", "images", (0, 8, 8, 1), "FP32", {}, "INVALID_ARGUMENT"),
        ("tiny", "images", (1, 8, 8, 1), "FP32", {"timeout": 1}, "DEADLINE_EXCEEDED"),
    ],
)  # fmt: skip
def test_errors_are_the_client_s_exceptions(client, model, name, shape, kind, options, status):
    values = np.zeros(shape, "float64" if kind == "FP64" else "float32")
    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, inputs(values, name, kind), **options)
    assert status in refused.value.status() and len(refused.value.message()) > 10


def test_models_are_unloaded_and_loaded(client, tensors):
    client.unload_model("tiny")
    assert client.get_model_repository_index().models[0].state == "UNAVAILABLE"
    with pytest.raises(InferenceServerException, match="not ready"):
        client.infer("tiny", inputs(tensors))
    client.load_model("tiny")
    assert client.get_model_repository_index().models[0].state == "READY"
    with pytest.raises(InferenceServerException, match="is not taken"):
        client.load_model("tiny", config="{}")


def test_a_key_is_asked_for(server, tensors):
    with triton.InferenceServerClient(address(server.guarded)) as client:
        assert client.is_server_ready()
        for headers in (None, {"x-api-key": "Secret"}, {"authorization": "Basic secret"}):
            with pytest.raises(InferenceServerException) as refused:
                client.infer("tiny", inputs(tensors), headers=headers)
            assert "UNAUTHENTICATED" in refused.value.status()
        for headers in ({"x-api-key": "secret"}, {"authorization": "Bearer secret"}):
            assert client.infer("tiny", inputs(tensors), headers=headers).as_numpy("probabilities").shape == (5, 3)


def test_a_message_beyond_the_limit(serving, exported):
    with (
        serving(f"tiny={exported()[1]}", "--grpc-port", 0, "--max-body", 0.1) as small,
        triton.InferenceServerClient(address(small)) as client,
    ):
        with pytest.raises(InferenceServerException) as refused:
            client.infer("tiny", inputs(np.zeros((1000, 8, 8, 1), np.float32)))
        assert "RESOURCE_EXHAUSTED" in refused.value.status()
        assert client.infer("tiny", inputs(np.zeros((1, 8, 8, 1), np.float32))).as_numpy("probabilities").shape == (
            1,
            3,
        )


def test_sigterm_answers_what_was_accepted(serving, exported, tensors, want):
    with serving(f"tiny={exported()[1]}", "--grpc-port", 0, "--queue-delay", 3000) as server:
        answers, done = [], threading.Event()

        def keep(result, error):
            answers.append(error or result.as_numpy("probabilities"))
            done.set()

        with triton.InferenceServerClient(address(server)) as client:
            client.async_infer("tiny", inputs(tensors), keep)
            assert not done.wait(1.0)
            assert server.stop() == 0
            assert done.wait(10)
    np.testing.assert_allclose(answers[0], want, atol=1e-5)


SPECS = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("k", "INT64", (-1,)), TensorSpec("t", "BYTES", (-1,)))
SIZES = st.lists(st.integers(-2, 5) | st.sampled_from([2**31, 2**62, 2**63 - 1]), max_size=3)
RAW = st.lists(st.binary(max_size=40), max_size=4)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["x", "k", "t", "y", ""]), st.sampled_from(["FP32", "INT64", "BYTES", "no"]), SIZES,
            st.lists(st.floats(width=32), max_size=8) | st.none(),
        ), max_size=4,
    ),
    RAW,
)  # fmt: skip
def test_whatever_a_message_says_it_is_taken_or_refused(items, raw):
    message = MESSAGES["ModelInferRequest"](model_name="m", raw_input_contents=raw)
    for name, kind, shape, numbers in items:
        tensor = message.inputs.add(name=name, datatype=kind, shape=shape)
        if numbers is not None:
            tensor.contents.fp32_contents.extend(numbers)
    try:
        request = parse_message(message, SPECS, (TensorSpec("y", "FP32", (-1,)),))
    except ProtocolError as error:
        assert str(error)
    else:
        assert set(request.inputs) == {spec.name for spec in SPECS}
        for name, kind, shape, _ in items:
            array = request.inputs[name]
            assert list(array.shape) == shape and datatype(array) == kind


@given(arrays(np.float32, st.tuples(st.integers(0, 3), st.just(2)), elements=st.floats(width=32)))
def test_raw_tensors_arrive_as_they_were_sent(values):
    message = MESSAGES["ModelInferRequest"](raw_input_contents=[values.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=values.shape)
    request = parse_message(message, SPECS[:1], (TensorSpec("y", "FP32", (-1,)),))
    assert request.inputs["x"].tobytes() == values.tobytes() and request.inputs["x"].shape == values.shape
