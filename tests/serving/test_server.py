"""The server as clients meet it: Triton's own client, unmodified, and plain HTTP."""

import asyncio
import gzip
import json
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from onnx import numpy_helper
from onnx.backend.test.runner import Runner
from tritonclient.utils import InferenceServerException

from keras_resnets.serving import Engine

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))
COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def repository(exported, tmp_path_factory):
    """A repository of one model in two versions, and a plain ONNX file."""
    folder = tmp_path_factory.mktemp("repository")
    _, bundle = exported()
    for version in ("1", "2"):
        shutil.copytree(bundle, folder / "tiny" / version)
    (folder / "light").mkdir()
    shutil.copy(next(file for file in LIGHT if "squeezenet" in file.name), folder / "light" / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def server(serving, repository):
    with serving("--repository", repository, "--control") as running:
        yield running


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.address, concurrency=16) as connected:
        yield connected


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def tensors(images):
    return ((images / 255 - 0.5) / 0.25).astype(np.float32)


@pytest.fixture(scope="module")
def want(exported, tensors):
    return np.asarray(exported()[0](tensors))


def tensor_input(tensors, binary):
    item = triton.InferInput("images", list(tensors.shape), "FP32")
    item.set_data_from_numpy(tensors, binary_data=binary)
    return [item]


def ask(server, method, path, body=b"", headers=None):
    """A plain request: status, JSON, headers."""
    connection = HTTPConnection(server.address, timeout=30)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    told = answer.read()
    connection.close()
    return answer.status, json.loads(told) if told else None, answer.headers


def ask_raw(server, path):
    connection = HTTPConnection(server.address)
    connection.request("GET", path)
    return connection.getresponse().read()


def test_health_and_metadata(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("tiny") and client.is_model_ready("tiny", "1")
    assert client.get_server_metadata()["name"] == "keras_resnets"
    assert {"binary_tensor_data", "classification"} <= set(client.get_server_metadata()["extensions"])
    assert client.get_model_metadata("tiny") == {
        "name": "tiny",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 8, 8, 1]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
    }
    config = client.get_model_config("tiny")
    assert config["max_batch_size"] == 16 and config["input"][0]["dims"] == [8, 8, 1]
    assert client.get_model_config("light")["max_batch_size"] == 0


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_inference(client, tensors, want, binary, binary_output, compression):
    outputs = None if binary_output is None else [triton.InferRequestedOutput("probabilities", binary_output)]
    answer = client.infer(
        "tiny", tensor_input(tensors, binary), outputs=outputs, request_id="mine",
        request_compression_algorithm=compression,
    )  # fmt: skip
    np.testing.assert_allclose(answer.as_numpy("probabilities"), want, atol=1e-5)
    response = answer.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("mine", "tiny", "2")


def test_answers_are_compressed_for_those_who_ask(server, client):
    """A small answer is not worth it."""
    for path, coding in (("/openapi.json", "gzip"), ("/v2/health/live", None)):
        connection = HTTPConnection(server.address)
        connection.request("GET", path, headers={"Accept-Encoding": "gzip, deflate"})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.headers["Content-Encoding"] == coding
        assert (gzip.decompress(body) if coding else body) == ask_raw(server, path)
    item = triton.InferInput("data_0", [1, 3, 224, 224], "FP32")
    item.set_data_from_numpy(np.ones((1, 3, 224, 224), np.float32))
    plain, compressed = (
        client.infer("light", [item], response_compression_algorithm=how).as_numpy("softmaxout_1")
        for how in (None, "gzip")
    )
    assert plain.size == 1000 and np.array_equal(plain, compressed)


def test_several_in_flight_each_get_their_own(client, tensors, want):
    rows = [i % 5 for i in range(200)]
    waiting = [client.async_infer("tiny", tensor_input(tensors[i : i + 1], True)) for i in rows]
    for i, one in zip(rows, waiting, strict=True):
        np.testing.assert_allclose(one.get_result().as_numpy("probabilities"), want[i : i + 1], atol=1e-5)


def test_the_asynchronous_client(server, tensors, want):
    async def main():
        async with triton_aio.InferenceServerClient(server.address) as client:
            assert await client.is_model_ready("tiny")
            return await asyncio.gather(*(client.infer("tiny", tensor_input(tensors, i % 2)) for i in range(20)))

    for answer in asyncio.run(main()):
        np.testing.assert_allclose(answer.as_numpy("probabilities"), want, atol=1e-5)


def test_classification(client, tensors, want):
    outputs = [triton.InferRequestedOutput("probabilities", binary_data=True, class_count=2)]
    answer = client.infer("tiny", tensor_input(tensors, True), outputs=outputs).as_numpy("probabilities")
    for texts, scores in zip(answer, want, strict=True):
        best = np.argsort(-scores)[:2]
        parts = [text.decode().split(":") for text in texts]
        assert [(int(index), label) for _, index, label in parts] == [(i, COLOURS[i]) for i in best]
        np.testing.assert_allclose([float(score) for score, *_ in parts], scores[best], atol=1e-5)


def test_statistics_count_rows_and_executions(serving, exported, tensors):
    with (
        serving(f"tiny={exported()[1]}", "--queue-delay", "50") as fresh,
        triton.InferenceServerClient(fresh.address, concurrency=64) as client,
    ):
        waiting = [client.async_infer("tiny", tensor_input(tensors[:1], True)) for _ in range(64)]
        assert all(one.get_result().as_numpy("probabilities").shape == (1, 3) for one in waiting)
        (told,) = client.get_inference_statistics("tiny")["model_stats"]
        assert client.get_inference_statistics()["model_stats"] == [told]
    assert told["inference_count"] == 64 == told["inference_stats"]["success"]["count"]
    assert told["execution_count"] <= 32
    assert sum(row["batch_size"] * row["compute_infer"]["count"] for row in told["batch_stats"]) == 64


WRONG = {
    "an unknown model": ("nothing", "images", (1, 8, 8, 1), "FP32", {}),
    "an unknown version": ("tiny", "images", (1, 8, 8, 1), "FP32", {"model_version": "7"}),
    "an unknown input": ("tiny", "pictures", (1, 8, 8, 1), "FP32", {}),
    "another size": ("tiny", "images", (1, 9, 8, 1), "FP32", {}),
    "another type": ("tiny", "images", (1, 8, 8, 1), "FP64", {}),
    "no rows": ("tiny", "images", (0, 8, 8, 1), "FP32", {}),
}


@pytest.mark.parametrize(("model", "name", "shape", "kind", "options"), WRONG.values(), ids=WRONG)
def test_errors_are_the_client_s_exceptions(client, model, name, shape, kind, options):
    item = triton.InferInput(name, list(shape), kind)
    item.set_data_from_numpy(np.zeros(shape, "float64" if kind == "FP64" else "float32"))
    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, [item], **options)
    assert refused.value.status() in ("400", "404") and len(refused.value.message()) > 10


def test_models_are_unloaded_and_loaded(client, tensors):
    def states():
        return {(row["name"], row["version"]): row["state"] for row in client.get_model_repository_index()}

    assert states() == {("light", "1"): "READY", ("tiny", "1"): "READY", ("tiny", "2"): "READY"}
    client.unload_model("tiny")
    assert states()["tiny", "2"] == "UNAVAILABLE" and not client.is_model_ready("tiny")
    assert client.is_server_ready()
    with pytest.raises(InferenceServerException, match="not ready"):
        client.infer("tiny", tensor_input(tensors, True))
    client.load_model("tiny")
    assert states()["tiny", "2"] == "READY"
    assert client.infer("tiny", tensor_input(tensors, True)).as_numpy("probabilities").shape == (5, 3)
    with pytest.raises(InferenceServerException, match="there is no model"):
        client.load_model("nothing")
    with pytest.raises(InferenceServerException, match="config is not taken"):
        client.load_model("tiny", config=json.dumps({"backend": "python"}))
    with pytest.raises(InferenceServerException, match="is not taken"):
        client.load_model("tiny", config="{}", files={"file:1/model.onnx": b"anything"})


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..%2fetc", "tiny%2f1", "%00", "."])
def test_no_path_leaves_the_repository(server, name):
    for action in ("load", "unload"):
        status, told, _ = ask(server, "POST", f"/v2/repository/models/{name}/{action}")
        assert status in (400, 404) and "error" in told
    assert ask(server, "POST", f"/v2/models/{name}/infer", b"{}")[0] in (404, 405)


def test_loading_is_off_by_default(serving, exported):
    with serving(exported()[1]) as server:
        name = exported()[1].name
        for action in ("load", "unload"):
            status, told, _ = ask(server, "POST", f"/v2/repository/models/{name}/{action}")
            assert status == 403 and "--control" in told["error"]
        assert ask(server, "POST", "/v2/repository/index")[1][0]["state"] == "READY"


def test_plain_onnx_files_give_their_reference_outputs(serving):
    """The nine ImageNet graphs that onnx ships, with their own inputs and outputs."""
    with (
        serving(*(f"{file.stem}={file}" for file in LIGHT)) as server,
        triton.InferenceServerClient(server.address, network_timeout=120) as client,
    ):
        assert len(LIGHT) == 9
        for file in LIGHT:
            (argument,) = client.get_model_metadata(file.stem)["inputs"]
            image = Runner.generate_dummy_data(onnx.helper.make_tensor_value_info("x", 1, argument["shape"]))
            item = triton.InferInput(argument["name"], list(image.shape), "FP32")
            item.set_data_from_numpy(image)
            got = client.infer(file.stem, [item])
            (name,) = [output["name"] for output in client.get_model_metadata(file.stem)["outputs"]]
            expected = numpy_helper.to_array(
                onnx.TensorProto.FromString(file.with_name(f"{file.stem}_output_0.pb").read_bytes())
            )
            np.testing.assert_allclose(got.as_numpy(name), expected, rtol=1e-3, atol=1e-7)


def test_it_is_live_before_it_is_ready(serving):
    with serving(*(f"{file.stem}={file}" for file in LIGHT), ready=False) as server:
        server.wait_for("listening")
        assert ask(server, "GET", "/v2/health/live")[0] == 200
        assert ask(server, "GET", "/v2/health/ready")[:2] == (503, {"ready": False})
        assert ask(server, "POST", f"/v2/models/{LIGHT[-1].stem}/infer", b"{}")[0] == 503
        server.wait_for("INFO ready after")
        assert ask(server, "GET", "/v2/health/ready")[:2] == (200, {"ready": True})


def test_an_image_is_classified(server, png, images, want):
    status, told, headers = ask(
        server, "POST", "/v1/classify/tiny?top=2", png(images[0, ..., 0]), {"X-Request-Id": "me"}
    )
    assert status == 200 and headers["X-Request-Id"] == "me"
    (row,) = told["predictions"]
    best = np.argsort(-want[0])[:2]
    assert [(one["class"], one["label"]) for one in row] == [(i, COLOURS[i]) for i in best]
    np.testing.assert_allclose([one["score"] for one in row], want[0][best], atol=1e-5)
    assert (told["model_name"], told["model_version"]) == ("tiny", "2")
    assert set(told["milliseconds"]) == {"queue", "decode", "compute", "total"}


def test_several_images_are_classified_at_once(server, png, images, want):
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="f"; filename="%d.png"\r\n\r\n%s\r\n' % (i, png(image[..., 0]))
        for i, image in enumerate(images)
    ]
    body = b"".join(parts) + b"--x--\r\n"
    status, told, _ = ask(
        server, "POST", "/v1/classify/tiny?top=1&version=1", body, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert status == 200 and told["model_version"] == "1"
    assert [row[0]["class"] for row in told["predictions"]] == want.argmax(1).tolist()


def test_large_images_are_decoded_as_small_ones(server, png, exported):
    large = np.random.default_rng(0).integers(0, 256, (900, 700), np.uint8)
    status, told, _ = ask(server, "POST", "/v1/classify/tiny", png(large))
    (want,) = Engine(exported()[1]).predict([large])
    assert status == 200 and len(png(large)) > 500_000
    got = [(one["label"], one["score"]) for one in told["predictions"][0]]
    assert got == [(one.label, pytest.approx(one.score, abs=1e-5)) for one in want]
    status, told, _ = ask(server, "POST", "/v1/classify/tiny", png(large)[:300_000])
    assert status == 400 and "cannot be decoded" in told["error"]


REFUSED = {
    "no image": ("POST", "/v1/classify/tiny", b"no image", {}, 400),
    "an empty body": ("POST", "/v1/classify/tiny", b"", {}, 400),
    "an empty form": (
        "POST",
        "/v1/classify/tiny",
        b"--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
        400,
    ),
    "a form of nonsense": ("POST", "/v1/classify/tiny", b"abc", {"Content-Type": "multipart/form-data"}, 400),
    "top is 0": ("POST", "/v1/classify/tiny?top=0", b"x", {}, 400),
    "top is a word": ("POST", "/v1/classify/tiny?top=many", b"x", {}, 400),
    "a timeout of no time": ("POST", "/v1/classify/tiny?timeout=0", b"x", {}, 400),
    "a timeout that is none": ("POST", "/v1/classify/tiny?timeout=nan", b"x", {}, 400),
    "an unknown model": ("POST", "/v1/classify/nothing", b"x", {}, 404),
    "an unknown version": ("POST", "/v1/classify/tiny?version=9", b"x", {}, 404),
    "a model without preprocessing": ("POST", "/v1/classify/light", b"x", {}, 400),
    "nowhere": ("GET", "/nowhere", b"", {}, 404),
    "another method": ("GET", "/v1/classify/tiny", b"", {}, 405),
    "a header that is no number": (
        "POST",
        "/v2/models/tiny/infer",
        b"{}",
        {"Inference-Header-Content-Length": "x"},
        400,
    ),
    "a header beyond the body": ("POST", "/v2/models/tiny/infer", b"{}", {"Inference-Header-Content-Length": "9"}, 400),
    "no gzip": ("POST", "/v2/models/tiny/infer", b"{}", {"Content-Encoding": "gzip"}, 400),
    "an unknown coding": ("POST", "/v2/models/tiny/infer", b"{}", {"Content-Encoding": "br"}, 415),
    "an index of nonsense": ("POST", "/v2/repository/index", b"[", {}, 400),
}


@pytest.mark.parametrize(("method", "path", "body", "headers", "expected"), REFUSED.values(), ids=REFUSED)
def test_bad_requests_are_told_what_is_wrong(server, method, path, body, headers, expected):
    status, told, answer = ask(server, method, path, body, headers)
    assert status == expected and set(told) == {"error"} and len(told["error"]) > 8
    assert answer["X-Request-Id"]
    if status == 405:
        assert answer["Allow"] == "POST"


def test_metrics(server, png, images):
    ask(server, "POST", "/v1/classify/tiny", png(images[0, ..., 0]))
    ask(server, "POST", "/v1/classify/tiny", b"no image")
    connection = HTTPConnection(server.address)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    for line in (
        'keras_resnets_requests_total{model="tiny",protocol="http",status="200"}',
        'keras_resnets_rejects_total{cause="image",model="tiny"}',
        'keras_resnets_batch_rows_count{model="tiny",version="2"}',
        'keras_resnets_request_seconds_count{model="tiny",stage="queue"}',
        'keras_resnets_queue_rows{model="tiny",version="2"} 0.0',
        "keras_resnets_ready 1.0",
    ):
        assert line in text


def test_a_key_is_asked_for(serving, exported, tmp_path):
    (tmp_path / "key").write_text("secret\n")
    with serving(f"m={exported()[1]}", "--api-key-file", tmp_path / "key") as server:
        for headers in ({}, {"X-API-Key": "Secret"}, {"Authorization": "Basic secret"}, {"X-API-Key": "é"}):
            assert ask(server, "GET", "/v2/models/m", headers=headers)[0] == 401
        for headers in ({"X-API-Key": "secret"}, {"Authorization": "bearer secret"}):
            assert ask(server, "GET", "/v2/models/m", headers=headers)[0] == 200
        assert ask(server, "GET", "/v2/health/ready")[0] == 200
        assert "secret" not in server.log


def test_https_and_grpc_with_tls(serving, exported, tmp_path, key_and_certificate):
    key, certificate = key_and_certificate
    with serving(f"m={exported()[1]}", "--tls-certificate", certificate, "--tls-key", key, "--grpc-port", 0) as server:
        host, _, port = server.address.partition(":")
        connection = HTTPSConnection(host, int(port), context=ssl.create_default_context(cafile=certificate))
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 200
        secure = server.wait_for(r"gRPC on (\S+)").group(1)
        with triton_grpc.InferenceServerClient(secure, ssl=True, root_certificates=str(certificate)) as client:
            assert client.is_server_ready()
    for name in ("nowhere.pem", "key.pem"):
        with serving(exported()[1], "--tls-certificate", tmp_path / name, ready=False) as failed:
            assert failed.process.wait(60) == 1
            assert name in failed.log and "Traceback" not in failed.log


def test_it_logs_json(serving, exported):
    with serving(f"m={exported()[1]}", "--log-format", "json") as server:
        ask(server, "POST", "/v1/classify/m", b"no image", {"X-Request-Id": "abc"})
        server.wait_for('"request_id": "abc"')
        lines = [json.loads(line) for line in server.log.splitlines()]
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    assert (lines[-1]["model"], lines[-1]["status"], lines[-1]["request_id"]) == ("m", 400, "abc")


def test_a_corrupt_bundle_is_not_served(serving, exported, tmp_path):
    folder = shutil.copytree(exported()[1], tmp_path / "bundle")
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1] + b"x")
    with serving(folder, ready=False) as server:
        assert server.process.wait(60) == 1
        assert "corrupt" in server.log and "Traceback" not in server.log


def test_what_cannot_be_started_says_why(serving, exported, server):
    _, bundle = exported()
    port = server.address.rpartition(":")[2]
    for arguments, expected in (
        ((), "nothing to serve"),
        (("nowhere",), "neither a bundle"),
        ((bundle, bundle), "two models are called"),
        ((f"a b={bundle}",), "is no name for a model"),
        (("--repository", "nowhere"), "is not a folder"),
        ((bundle, "--port", port), "cannot listen"),
        ((bundle, "--max-batch", 0), "max_batch must be at least 1"),
        ((bundle, "--deadline", 0), "deadline must be"),
        ((bundle, "--provider", "cuda"), "no cuda provider"),
        ((bundle, "--precision", "int4"), "int4"),
        ((bundle, "--api-key-file", "/dev/null"), "holds no key"),
    ):
        with serving(*arguments, ready=False) as failed:
            assert failed.process.wait(60) == 1
            assert expected in failed.log and "Traceback" not in failed.log


def test_a_new_version_replaces_the_old_under_load_and_a_corrupt_one_does_not(
    serving, exported, tensors, want, tmp_path
):
    folder = tmp_path / "repository"
    shutil.copytree(exported()[1], folder / "tiny" / "1")
    failures, answers, stop = [], [], threading.Event()

    def load(address):
        with triton.InferenceServerClient(address) as client:
            while not stop.is_set():
                try:
                    answer = client.infer("tiny", tensor_input(tensors, True))
                    np.testing.assert_allclose(answer.as_numpy("probabilities"), want, atol=1e-5)
                    answers.append(answer.get_response()["model_version"])
                except Exception as error:
                    failures.append(error)

    with serving("--repository", folder, "--control") as server:
        clients = [threading.Thread(target=load, args=(server.address,)) for _ in range(4)]
        for one in clients:
            one.start()
        with triton.InferenceServerClient(server.address) as client:
            client.load_model("tiny")
            shutil.copytree(exported()[1], folder / "tiny" / "2")
            client.load_model("tiny")
            shutil.copytree(exported()[1], folder / "tiny" / "3")
            (folder / "tiny" / "3" / "model.onnx").write_bytes(b"nonsense")
            with pytest.raises(InferenceServerException, match="serves on"):
                client.load_model("tiny")
            rows = client.get_model_repository_index()
        time.sleep(0.3)
        stop.set()
        for one in clients:
            one.join()
    assert not failures
    assert answers[0] == "1" and answers[-1] == "2"
    assert [(row["version"], row["state"]) for row in rows] == [("1", "READY"), ("2", "READY"), ("3", "UNAVAILABLE")]
    assert "corrupt" in rows[-1]["reason"]


def test_sigterm_loses_no_accepted_request(serving, exported, tensors, want):
    with serving(f"tiny={exported()[1]}", "--queue-delay", "3000", "--max-batch", "64") as server:
        answers, failures = [], []
        sent = threading.Barrier(9)

        def one():
            connection = HTTPConnection(server.address, timeout=30)
            connection.connect()
            sent.wait()
            item = {"name": "images", "shape": [1, 8, 8, 1], "datatype": "FP32", "data": tensors[:1].tolist()}
            body = json.dumps({"inputs": [item]})
            try:
                connection.request("POST", "/v2/models/tiny/infer", body)
                answer = connection.getresponse()
                answers.append((answer.status, json.loads(answer.read())))
            except OSError as error:
                failures.append(error)

        clients = [threading.Thread(target=one) for _ in range(8)]
        for client in clients:
            client.start()
        sent.wait()
        time.sleep(1.0)  # they wait for company now
        assert server.stop() == 0
        for client in clients:
            client.join()
    assert not failures
    assert [status for status, _ in answers] == [200] * 8
    for _, told in answers:
        np.testing.assert_allclose(told["outputs"][0]["data"], want[0], atol=1e-5)
    assert "stopping" in server.log


def test_ctrl_c_ends_it(serving, exported):
    with serving(exported()[1]) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) in (0, 130)
        assert "Traceback" not in server.log


def test_it_never_imports_a_training_framework(exported, tmp_path):
    code = """
import sys
for name in ("tensorflow", "keras", "tf2onnx", "onnx"):
    sys.modules[name] = None
from keras_resnets.cli import main
sys.exit(main(["serve", sys.argv[1], "--port", "0"]))
"""
    command = [sys.executable, "-c", code, str(exported()[1])]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert any("ready after" in line for line in iter(process.stderr.readline, ""))
        process.terminate()
        assert process.wait(30) == 0
