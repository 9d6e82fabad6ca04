"""Servers to test: the real program, in a process of its own, on a free port."""

import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest


class Running:
    """A server that runs; `log` grows with what it says."""

    def __init__(self, process, log):
        self.process, self._log = process, log

    @property
    def log(self):
        return self._log.read_text()

    @property
    def url(self):
        """http://127.0.0.1:…, once it listens."""
        return self.wait_for(r"listening on (\S+),").group(1)

    @property
    def address(self):
        return self.url.partition("://")[2]

    def wait_for(self, pattern, seconds=60):
        """The match of a pattern in the log, once it is there."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.log)):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.01)
        return match

    def stop(self):
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="session")
def serving(tmp_path_factory):
    """A context manager that runs `keras-resnets serve` with arguments until it is ready."""

    @contextmanager
    def run(*arguments, ready=True):
        log = tmp_path_factory.mktemp("server") / "log"
        command = [sys.executable, "-m", "keras_resnets.cli", "serve", "--port", "0", *map(str, arguments)]
        with log.open("wb") as file, subprocess.Popen(command, stderr=file, stdout=file) as process:
            try:
                server = Running(process, log)
                if ready:
                    server.wait_for('(INFO |")ready after')
                yield server
            finally:
                process.kill()

    return run


@pytest.fixture
def key_and_certificate(tmp_path):
    """PEM files of a server that clients call localhost or 127.0.0.1."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key,
            "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


@pytest.fixture(scope="session")
def at_once():
    """Calls a function with each item, on threads of their own, and raises what one of them raised."""

    def call(function, items):
        with ThreadPoolExecutor(len(items)) as pool:
            list(pool.map(function, items))

    return call


@pytest.fixture(scope="session")
def png():
    """Makes a PNG file's bytes of an array."""

    def encode(array):
        import io

        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        return file.getvalue()

    return encode


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, the system's own."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()
