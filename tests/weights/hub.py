"""A stand-in, on this machine, for the Hugging Face hub and for keras.applications' host, which can misbehave."""

import hashlib
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODES = ("complete", "truncated", "gone once", "corrupted", "stalled", "redirect")


class Hub:
    """Serves `files`, by the path "owner/repository/file" of the hub or "keras/folder/file" of the other host.

    `mode` is one of MODES, or an HTTP status that every answer then has; `requests` is what was asked for, as
    (method, path, Range header or None).
    """

    def __init__(self):
        self.files = {}
        self.mode = "complete"
        self.requests = []
        self.gone = False  # whether the connection was cut once
        self.closing = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def asked(self, method):
        """The Range headers of all requests of one method."""
        return [ranged for verb, _, ranged in self.requests if verb == method]


class Handler(BaseHTTPRequestHandler):
    """Answers one connection as the mode of `server.hub` says."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        path = self.path.lstrip("/").removeprefix("elsewhere/")
        owner_and_repository, _, rest = path.partition("/resolve/")
        name = f"{owner_and_repository}/{rest.partition('/')[2]}" if rest else path
        if isinstance(self.hub.mode, int):
            self.refuse(self.hub.mode)
        elif name not in self.hub.files:
            self.refuse(404, {"X-Error-Code": "RepoNotFound"})
        elif self.hub.mode == "redirect" and not self.path.startswith("/elsewhere/"):
            # By another host name, as the hub sends its files from another host.
            there = f"http://localhost:{self.hub.server.server_port}/elsewhere/{path}"
            self.begin(302, self.hub.files[name], {"Location": there, "Content-Length": "0"})
        else:
            self.serve(self.hub.files[name], body)

    def refuse(self, status, headers=()):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def begin(self, status, data, headers):
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("ETag", '"of-the-pointer"')
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def serve(self, data, body):
        ranged = self.headers.get("Range")
        start = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged else 0
        headers = {"Content-Length": str(len(data) - start)}
        if ranged:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.begin(206 if ranged else 200, data, headers)
        if body:
            with suppress(OSError):  # the client may be gone
                self.send(data, start)

    def send(self, data, start):
        half = len(data) // 2
        cut = self.hub.mode == "truncated" or (self.hub.mode == "gone once" and not self.hub.gone)
        if self.hub.mode == "corrupted":
            data = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
        if cut or self.hub.mode == "stalled":
            self.wfile.write(data[start:half])
            self.wfile.flush()
            self.close_connection = True
            self.hub.gone = self.hub.gone or cut
            if self.hub.mode == "stalled":
                self.hub.closing.wait(20)
        else:
            self.wfile.write(data[start:])
