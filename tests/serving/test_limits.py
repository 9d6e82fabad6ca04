"""Clients that dribble, lie, swamp or leave: each gets its error, and the others their answers."""

import gzip
import itertools
import json
import re
import socket
import struct
import time
import zlib
from http.client import HTTPConnection

import numpy as np
import pytest
import tritonclient.http as triton


@pytest.fixture(scope="module")
def server(serving, exported):
    with serving(
        f"tiny={exported()[1]}", "--header-timeout", 1, "--body-timeout", 1, "--max-body", 1, "--max-connections", 40
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def still_well(server, infer):
    """Whatever a test did, the next client is served."""
    yield
    assert infer(np.zeros((1, 8, 8, 1)))[0] == 200
    assert "Traceback" not in server.log


@pytest.fixture
def infer(server):
    """Sends rows as JSON: status and answer."""

    def ask(rows, headers=None, change=lambda body: body, **more):
        item = {"name": "images", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
        connection = HTTPConnection(server.address, timeout=30)
        connection.request(
            "POST", "/v2/models/tiny/infer", change(json.dumps({"inputs": [item], **more}).encode()), headers or {}
        )
        answer = connection.getresponse()
        told = json.loads(answer.read())
        connection.close()
        return answer.status, told

    return ask


def talk(server, *parts, pause=0.0):
    """Send raw parts with pauses; everything that comes back until the server hangs up."""
    host, _, port = server.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it hung up while we were talking
        got = b""
        try:
            while part := connection.recv(65536):
                got += part
        except ConnectionResetError:
            pass
    return got


HEAD = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("parts", "status"),
    {
        "nothing is sent": ((), 408),
        "headers that do not end": ((HEAD,), 408),
        "headers a letter at a time": (tuple(bytes([letter]) for letter in HEAD[:8]), 408),
        "a body that does not come": ((HEAD + b"Content-Length: 100\r\n\r\n",), 408),
        "a body that is shorter than it says": ((HEAD + b"Content-Length: 100\r\n\r\n{}",), 408),
        "a chunk that does not end": ((HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",), 408),
        "endless headers": ((HEAD, *[b"X: " + b"y" * 20_000 + b"\r\n"] * 10), 431),
        "an endless line": ((b"GET /" + b"a" * 200_000,), 431),
        "no HTTP": ((b"\x16\x03\x01 hello\r\n\r\n",), 400),
        "a length that is no number": ((HEAD + b"Content-Length: many\r\n\r\n",), 400),
        "two lengths": ((HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",), 400),
        "a length and chunks": (
            (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",), 400,
        ),
        "a length beyond the limit": ((HEAD + b"Connection: close\r\nContent-Length: 99999999999\r\n\r\n",), 413),
        "chunks beyond the limit": (
            (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"10000\r\n" + bytes(65536) + b"\r\n"] * 20), 413,
        ),
    }.values(),
)  # fmt: skip
def test_what_a_connection_may_not_do(server, parts, status):
    got = talk(server, *parts, pause=0.02)
    assert re.match(rb"HTTP/1\.1 (\d+)", got).group(1) == str(status).encode(), got[:300]
    assert json.loads(got.partition(b"\r\n\r\n")[2]).keys() == {"error"}


def test_bytes_behind_a_body_are_another_request(server):
    got = talk(server, HEAD + b"Content-Length: 2\r\n\r\n{}trailing nonsense\r\n\r\n")
    assert re.findall(rb"HTTP/1\.1 (\d+)", got)[0] == b"400"


def test_requests_in_a_pipeline_are_answered_in_order(server):
    request = b"GET /v2/models/tiny/versions/%d HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    got = talk(server, request % 1 + request % 2 + last)
    assert re.findall(rb"HTTP/1\.1 (\d+)", got) == [b"200", b"404", b"200"]


def test_a_body_in_many_pieces_and_another_request_behind_it(server):
    """Gathered, whatever its pieces are; what follows in the last piece is the next request's."""
    rows = np.random.default_rng(0).normal(size=(900, 8, 8, 1)).astype("<f4")
    item = {"name": "images", "shape": [900, 8, 8, 1], "datatype": "FP32"}
    item["parameters"] = {"binary_data_size": rows.nbytes}
    head = json.dumps({"inputs": [item]}).encode()
    request = (
        (
            f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(head) + rows.nbytes}\r\n"
            f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
        ).encode()
        + head
        + rows.tobytes()
    )
    stream = request + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    pieces = np.sort(np.random.default_rng(1).integers(1, len(stream), 40))
    cut = [stream[a:b] for a, b in itertools.pairwise([0, *pieces.tolist(), len(stream)])]
    told = talk(server, *cut, pause=0.005)
    assert re.findall(rb"HTTP/1.1 (\d+)", told) == [b"200", b"200"]
    answer = json.loads(told.partition(b"\r\n\r\n")[2].partition(b"HTTP/1.1")[0])
    assert np.array_equal(np.array(answer["outputs"][0]["data"], np.float32).shape, (900 * 3,))


def test_a_small_file_that_would_become_a_large_one(infer):
    bomb = gzip.compress(bytes(300 * 2**20))
    assert len(bomb) < 2**20
    status, told = infer(np.zeros((1, 8, 8, 1)), {"Content-Encoding": "gzip"}, lambda body: bomb)
    assert status == 413 and "larger than" in told["error"]


@pytest.mark.parametrize("change", [lambda b: gzip.compress(b)[:-5], lambda b: gzip.compress(b) + b"more", lambda b: b])
def test_corrupt_compression(infer, change):
    status, told = infer(np.zeros((1, 8, 8, 1)), {"Content-Encoding": "gzip"}, change)
    assert status == 400 and "compress" in told["error"]


def classify(server, body):
    connection = HTTPConnection(server.address, timeout=30)
    connection.request("POST", "/v1/classify/tiny", body)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_an_image_of_a_billion_pixels(server):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**7)))
        + chunk(b"IEND", b"")
    )
    status, told = classify(server, bomb)
    assert status == 400 and "25 million pixels" in told["error"]


def test_half_an_image(server, png):
    whole = png(np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8))
    status, told = classify(server, whole[: len(whole) // 2])
    assert status == 400 and "cannot be decoded" in told["error"]


def test_not_a_number(server, infer):
    """NaN is no JSON; in binary it comes back as what the network makes of it, to its sender alone."""
    rows = np.zeros((1, 8, 8, 1), np.float32)
    assert infer(rows * np.nan)[0] == 400
    item = triton.InferInput("images", [1, 8, 8, 1], "FP32")
    item.set_data_from_numpy(rows * np.nan)
    with triton.InferenceServerClient(server.address, concurrency=8) as client:
        waiting = [client.async_infer("tiny", [item]) for _ in range(8)]
        good = [infer(rows) for _ in range(8)]
        assert all(np.isnan(one.get_result().as_numpy("probabilities")).any() for one in waiting)
        assert all(status == 200 and np.isfinite(told["outputs"][0]["data"]).all() for status, told in good)
        with pytest.raises(triton.InferenceServerException, match="NaN"):
            client.infer("tiny", [item], outputs=[triton.InferRequestedOutput("probabilities", binary_data=False)])


def test_too_many_connections_are_refused_and_those_that_leave_make_room(server):
    host, _, port = server.address.partition(":")
    idle = [socket.create_connection((host, int(port)), timeout=5) for _ in range(40)]
    time.sleep(0.1)
    assert talk(server).startswith(b"HTTP/1.1 503")
    for one in idle:
        one.close()
    time.sleep(0.1)


def test_answers_are_never_mixed_up(server, infer, at_once):
    """A thousand requests on 16 connections, each with an image and an id of its own."""
    wrong = []
    rows = np.random.default_rng(0).normal(size=(16, 1, 8, 8, 1)).astype(np.float32)
    expected = [infer(row)[1]["outputs"][0]["data"] for row in rows]
    assert len({tuple(np.round(one, 6)) for one in expected}) == 16

    def client(number):
        connection = HTTPConnection(server.address, timeout=30)
        item = {"name": "images", "shape": [1, 8, 8, 1], "datatype": "FP32", "data": rows[number].ravel().tolist()}
        for i in range(60):
            identity = f"{number}-{i}"
            connection.request("POST", "/v2/models/tiny/infer", json.dumps({"id": identity, "inputs": [item]}))
            told = json.loads(connection.getresponse().read())
            if told["id"] != identity or not np.allclose(told["outputs"][0]["data"], expected[number], atol=1e-5):
                wrong.append(told)
        connection.close()

    at_once(client, range(16))
    assert not wrong


def test_who_leaves_before_the_answer_is_not_run(serving, exported):
    with serving(f"tiny={exported()[1]}", "--queue-delay", "6000") as slow:
        host, _, port = slow.address.partition(":")
        item = {"name": "images", "shape": [1, 8, 8, 1], "datatype": "FP32", "data": [0] * 64}
        body = json.dumps({"inputs": [item]}).encode()
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            time.sleep(1.0)  # it waits for company now
        slow.wait_for("disconnected")
        connection = HTTPConnection(slow.address, timeout=30)
        connection.request("GET", "/v2/models/tiny/stats")
        (told,) = json.loads(connection.getresponse().read())["model_stats"]
        assert told["execution_count"] == 0 and told["inference_stats"]["fail"]["count"] == 1


def test_a_deadline_of_the_request_s_own(serving, exported):
    with serving(f"tiny={exported()[1]}", "--queue-delay", "5000") as slow:
        item = {"name": "images", "shape": [1, 8, 8, 1], "datatype": "FP32", "data": [0] * 64}
        for timeout, expected in ((1, 504), (500_000, 200)):  # the queue delay of 5 s gives way
            connection = HTTPConnection(slow.address, timeout=30)
            connection.request(
                "POST", "/v2/models/tiny/infer", json.dumps({"inputs": [item], "parameters": {"timeout": timeout}})
            )
            assert connection.getresponse().status == expected
