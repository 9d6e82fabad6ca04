"""The client against the real server, and against servers that fail on purpose."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from keras_resnets.cli import main
from keras_resnets.preprocessing import ImageError
from keras_resnets.serving import Engine
from keras_resnets.serving.client import Client, ServerError


@pytest.fixture(scope="module")
def server(serving, exported, tmp_path_factory):
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text("secret")
    with serving(f"tiny={exported()[1]}", "--api-key-file", key) as running:
        yield running


@pytest.fixture
def client(server):
    return Client(server.url, api_key="secret")


@pytest.fixture(scope="module")
def images():
    return list(np.random.default_rng(0).integers(0, 256, (3, 10, 12), np.uint8))


@contextmanager
def failing(*answers):
    """A server that gives these answers in turn: (status, headers, body), or None to hang up."""
    left, asked = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((time.monotonic(), self.path))
            self.rfile.read(int(self.headers["Content-Length"]))
            if (answer := left.pop(0)) is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()


GOOD = (200, {}, json.dumps({"predictions": [[{"label": "a", "class": 0, "score": 1.0}]]}).encode())
BUSY = (429, {"Retry-After": "0"}, b'{"error": "the queue is full"}')


def test_it_gives_what_the_engine_gives(client, exported, images, png, tmp_path):
    want = Engine(exported()[1]).predict(images, top=2)
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    for given in (images, [tmp_path / "a.png", png(images[1]), Image.fromarray(images[2])]):
        got = client.classify("tiny", given, top=2)
        assert [[one[:2] for one in row] for row in got] == [[one[:2] for one in row] for row in want]
        np.testing.assert_allclose(
            [[one.score for one in row] for row in got], [[one.score for one in row] for row in want], atol=1e-5
        )
    assert client.classify("tiny", str(tmp_path / "a.png"))[0][0][:2] == want[0][0][:2]
    assert client.classify("tiny", []) == []


def test_tensors_and_cards(client, exported):
    tensors = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    got = client.infer("tiny", {"images": tensors})
    np.testing.assert_allclose(got["probabilities"], Engine(exported()[1]).run(tensors), atol=1e-5)
    assert client.ready() and [card["name"] for card in client.models()] == ["tiny"]
    with pytest.raises(ValueError, match="complex64"):
        client.infer("tiny", {"images": tensors.astype(np.complex64)})


def test_what_the_server_refuses_is_not_asked_again(client, server):
    with pytest.raises(ServerError, match="there is no model") as refused:
        client.classify("nothing", b"x")
    assert refused.value.status == 404
    with pytest.raises(ServerError, match="is not a JPEG"):
        client.classify("tiny", b"x")
    with pytest.raises(ServerError, match="an API key is needed"):
        Client(server.url).models()
    with pytest.raises(ImageError, match="cannot be read"):
        client.classify("tiny", "nowhere.png")
    with failing((500, {}, b"no JSON")) as (url, asked), pytest.raises(ServerError, match="HTTP status 500"):
        Client(url).classify("m", b"x")
    assert len(asked) == 1


def test_overload_and_broken_connections_are_tried_again():
    with failing(BUSY, None, (503, {}, b"{}"), GOOD) as (url, asked):
        assert Client(url).classify("m", b"x")[0][0].label == "a"
    assert len(asked) == 4
    with failing(*[BUSY] * 3) as (url, asked), pytest.raises(ServerError, match="the queue is full"):
        Client(url, retries=2).classify("m", b"x")
    assert len(asked) == 3


def test_it_waits_as_long_as_the_server_says_but_not_beyond_its_deadline():
    with failing((503, {"Retry-After": "1"}, b"{}"), GOOD) as (url, asked):
        Client(url).classify("m", b"x")
    assert asked[1][0] - asked[0][0] >= 1
    with failing((503, {"Retry-After": "60"}, b"{}")) as (url, asked), pytest.raises(ServerError):
        Client(url, timeout=5).classify("m", b"x")
    assert len(asked) == 1
    assert "timeout=" in asked[0][1]  # the server learns how long there is


def test_nobody_answers():
    client = Client("http://127.0.0.1:9", retries=1)
    assert not client.ready()
    with pytest.raises(ServerError, match="does not answer") as failed:
        client.models()
    assert failed.value.status == 0
    with pytest.raises(ValueError, match="must begin with http"):
        Client("127.0.0.1:8000")


def test_on_the_command_line(server, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_RESNETS_API_KEY", "secret")
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    assert main(["predict", "tiny", str(tmp_path / "a.png"), "--url", server.url, "--top", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 2
    assert main(["predict", "other", str(tmp_path / "a.png"), "--url", server.url]) == 1
    assert "there is no model other" in capsys.readouterr().err
