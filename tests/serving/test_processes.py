"""A server of two processes as clients meet it: one server."""

import json
import os
import re
import signal
import socket
import ssl
import time
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from keras_resnets.serving.client import Client
from keras_resnets.serving.figures import families_of, left_behind, to_text, total
from keras_resnets.serving.metrics import Metrics
from keras_resnets.serving.served import Settings

PROCESSES = ("--processes", 2)


@pytest.fixture(scope="module")
def server(serving, exported):
    with serving(f"tiny={exported()[1]}", *PROCESSES, "--grpc-port", 0) as running:
        yield running


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)


@pytest.fixture(scope="module")
def want(exported, images):
    return np.asarray(exported()[0](((images[..., None] / 255 - 0.5) / 0.25).astype(np.float32)))


def children(server):
    """The ids of the processes that the parent has started and that have not ended."""
    pid = server.process.pid
    found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in found if not ended(child)]


def ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def who_has(connection, pids):
    """The process that holds the other end of a client's connection."""
    theirs, own = (f":{name[1]:04X}" for name in (connection.sock.getpeername(), connection.sock.getsockname()))
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = {row[9] for row in rows if row[1].endswith(theirs) and row[2].endswith(own) and row[9] != "0"}
    for pid in pids:
        for item in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if str(item.readlink()) == f"socket:[{inode}]":
                    return pid
            except FileNotFoundError:
                pass  # closed meanwhile
    raise AssertionError(f"nobody has {own}")


def ask(connection, method, path, body=None):
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def connected(stack, server, count):
    made = [stack.enter_context(closing(HTTPConnection(server.address, timeout=30))) for _ in range(count)]
    assert [ask(one, "GET", "/v2/health/ready")[0] for one in made] == [200] * count
    return made


def counted(text, start):
    return float(next(line for line in text.splitlines() if line.startswith(start)).rpartition(" ")[2])


def test_connections_are_balanced_and_each_process_answers_right(server, images, want, png):
    pids = children(server)
    assert len(pids) == 2
    with ExitStack() as stack:
        connections = connected(stack, server, 8)
        holders = [who_has(one, pids) for one in connections]
        assert sorted(map(holders.count, pids)) == [4, 4]
        for number, one in enumerate(connections):
            status, body = ask(one, "POST", "/v1/classify/tiny?top=3", png(images[number % 5]))
            assert status == 200
            scores = {row["class"]: row["score"] for row in json.loads(body)["predictions"][0]}
            np.testing.assert_allclose([scores[i] for i in range(3)], want[number % 5], atol=1e-5)
        # Whoever has fewer gets what comes: the connections of one process end, and as many new ones are its.
        for one, holder in zip(connections, holders, strict=True):
            if holder == pids[0]:
                one.close()
        until(lambda: {who_has(*connected(stack, server, 1), pids)} == {pids[0]})


def test_statistics_and_metrics_are_sums_whoever_answers(serving, exported, images, png):
    with ExitStack() as stack:
        server = stack.enter_context(serving(f"tiny={exported()[1]}", *PROCESSES, "--grpc-port", 0))
        connections = connected(stack, server, 16)
        for _ in range(5):
            assert [ask(one, "POST", "/v1/classify/tiny", png(images[0]))[0] for one in connections] == [200] * 16
        address = server.wait_for(r"gRPC on (\S+)").group(1)
        client = stack.enter_context(triton_grpc.InferenceServerClient(address))
        rows = [json.loads(ask(one, "GET", "/v2/models/tiny/stats")[1])["model_stats"] for one in connections]
        assert rows == [rows[0]] * 16
        assert json.loads(ask(connections[0], "GET", "/v2/models/stats")[1])["model_stats"] == rows[0]
        (told,) = client.get_inference_statistics("tiny", as_json=True)["model_stats"]
        texts = [ask(one, "GET", "/metrics")[1].decode() for one in connections]
    ((row,),) = rows[:1]
    assert row["inference_count"] == row["inference_stats"]["success"]["count"] == int(told["inference_count"]) == 80
    assert sum(size["batch_size"] * size["compute_infer"]["count"] for size in row["batch_stats"]) == 80
    for text in texts:
        assert counted(text, 'keras_resnets_request_seconds_count{model="tiny",stage="total"}') == 80
        assert counted(text, 'keras_resnets_batch_rows_sum{model="tiny",version="1"}') == 80
        assert counted(text, 'keras_resnets_processes{state="counted"}') == 2
        assert counted(text, "keras_resnets_ready") == 1


def test_page_client_and_json_log(serving, exported, images, want, png, tmp_path):
    (tmp_path / "key").write_text("secret\n")
    with (
        serving(exported()[1], *PROCESSES, "--log-format", "json", "--api-key-file", tmp_path / "key") as server,
        closing(HTTPConnection(server.address, timeout=30)) as connection,
    ):
        assert b"<html" in ask(connection, "GET", "/")[1]
        name = exported()[1].name
        assert [ask(connection, "GET", f"/v2/models/{name}")[0] for _ in range(2)] == [401, 401]
        clients = [Client(server.url, api_key="secret") for _ in range(2)]
        for client in clients:
            (best,) = client.classify(name, [png(images[0])], top=1)
            assert best[0].class_index == want[0].argmax()
        lines = [json.loads(line) for line in server.log.splitlines()]
        assert server.stop() == 0
    assert sum("ready after" in line["message"] and "process" not in line for line in lines) == 1
    assert {line.get("process") for line in lines} == {None, 0, 1}
    assert "secret" not in server.log


def test_tls(serving, exported, key_and_certificate):
    key, certificate = key_and_certificate
    with ExitStack() as stack:
        tls = ("--tls-certificate", certificate, "--tls-key", key)
        server = stack.enter_context(serving(exported()[1], *PROCESSES, *tls))
        host, _, port = server.address.partition(":")
        trusting = ssl.create_default_context(cafile=certificate)
        with closing(HTTPConnection(host, int(port), timeout=30)) as plain, pytest.raises((OSError, HTTPException)):
            ask(plain, "GET", "/v2/health/ready")
        pids, holders = children(server), []
        for _ in range(4):
            one = stack.enter_context(closing(HTTPSConnection(host, int(port), context=trusting, timeout=30)))
            assert ask(one, "GET", "/v2/health/ready")[0] == 200
            holders.append(who_has(one, pids))
        assert set(holders) == set(pids)
        assert "Traceback" not in server.log


def test_what_cannot_be_started_is_told_once(serving, exported, server, bundle_copy, tmp_path):
    graph = bundle_copy / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    bundle = exported()[1]
    grpc_port = server.wait_for(r"gRPC on \S+:(\d+)").group(1)
    for arguments, expected in (
        (("nowhere",), "neither a bundle"),
        ((bundle_copy,), "corrupt"),
        ((bundle, "--port", server.address.rpartition(":")[2]), "cannot listen on 127.0.0.1:"),
        ((bundle, "--grpc-port", grpc_port), f"cannot listen on 127.0.0.1:{grpc_port}:"),
        ((bundle, "--tls-certificate", tmp_path / "nowhere.pem"), "nowhere.pem"),
        ((bundle, "--control"), "--control would change the models of one process: it needs --processes 1"),
    ):
        with serving(*arguments, *PROCESSES, ready=False) as failed:
            assert failed.process.wait(60) == 1
            (line,) = re.findall("^keras-resnets: (.*)$", failed.log, re.MULTILINE)
            assert expected in line and "Traceback" not in failed.log
    with serving(bundle, "--processes", 0, ready=False) as failed:
        assert failed.process.wait(60) == 1
        assert failed.log == "keras-resnets: processes must be at least 1, not 0\n"


def test_ctrl_c_ends_it(serving, exported):
    with serving(exported()[1], *PROCESSES) as server:
        pids = children(server)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        assert all(map(ended, pids)) and "Traceback" not in server.log


@pytest.mark.faults
def test_a_process_that_dies_comes_back_while_the_other_serves(serving, exported, images, png):
    with ExitStack() as stack:
        server = stack.enter_context(serving(f"tiny={exported()[1]}", *PROCESSES))
        connections = connected(stack, server, 8)
        assert [ask(one, "POST", "/v1/classify/tiny", png(images[0]))[0] for one in connections] == [200] * 8
        assert counted(ask(connections[0], "GET", "/metrics")[1].decode(), "keras_resnets_batch_rows_sum") == 8
        dying, other = children(server)
        os.kill(dying, signal.SIGKILL)
        server.wait_for("process [01] ended with signal 9; it is started again in 0 s")
        fresh = connected(stack, server, 8)  # in part while the new one is on its way
        assert [ask(one, "POST", "/v1/classify/tiny", png(images[0]))[0] for one in fresh] == [200] * 8
        until(lambda: set(children(server)) - {dying, other} and len(children(server)) == 2)
        until(lambda: 'counted"} 2' in ask(fresh[0], "GET", "/metrics")[1].decode())
        (new,) = set(children(server)) - {other}
        late = connected(stack, server, 4)
        assert new in {who_has(one, [new, other]) for one in late}
        # What was counted of the one that died stays.
        for one in (*fresh, *late):
            assert counted(ask(one, "GET", "/metrics")[1].decode(), "keras_resnets_batch_rows_sum") == 16
            (row,) = json.loads(ask(one, "GET", "/v2/models/stats")[1])["model_stats"]
            assert row["inference_count"] == 16
        assert server.stop() == 0


@pytest.mark.faults
def test_a_process_that_hangs_is_left_out(serving, exported):
    with ExitStack() as stack:
        server = stack.enter_context(serving(f"tiny={exported()[1]}", *PROCESSES, "--drain", 1))
        pids = children(server)
        connections = {who_has(one, pids): one for one in connected(stack, server, 2)}
        os.kill(pids[0], signal.SIGSTOP)
        try:
            text = ask(connections[pids[1]], "GET", "/metrics")[1].decode()
            assert [
                counted(text, f'keras_resnets_processes{{state="{state}"}}') for state in ("counted", "silent")
            ] == [1, 1]
            server.wait_for("does not tell what it counted")
        finally:
            os.kill(pids[0], signal.SIGCONT)
        until(lambda: 'counted"} 2' in ask(connections[pids[1]], "GET", "/metrics")[1].decode())


@pytest.mark.faults
def test_no_process_outlives_the_parent(serving, exported):
    with serving(exported()[1], *PROCESSES) as server:
        pids = children(server)
        server.process.kill()
        server.process.wait(60)
        until(lambda: all(map(ended, pids)))
        host, _, port = server.address.partition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))


@pytest.mark.faults
def test_while_no_process_is_there_connections_wait(serving, exported):
    with serving(exported()[1], *PROCESSES) as server:
        for pid in children(server):
            os.kill(pid, signal.SIGKILL)
        until(lambda: server.log.count("ended with signal 9") == 2)
        statuses = []
        while statuses[-1:] != [200]:
            with closing(HTTPConnection(server.address, timeout=30)) as one:
                statuses.append(ask(one, "GET", "/v2/health/ready")[0])
        assert set(statuses) <= {200, 503}
        assert server.stop() == 0


@pytest.mark.faults
def test_sigterm_while_it_starts(serving, exported):
    with serving(exported()[1], *PROCESSES, ready=False) as server:
        server.wait_for("listening on")
        assert server.stop() == 0
        assert "Traceback" not in server.log


@pytest.mark.faults
def test_it_gives_up_where_no_process_can_be_started_again(serving, bundle_copy):
    with serving(bundle_copy, *PROCESSES) as server:
        (bundle_copy / "model.onnx").write_bytes(b"nonsense")
        for pid in children(server):
            os.kill(pid, signal.SIGKILL)
        assert server.process.wait(60) == 1
        (line,) = re.findall("^keras-resnets: (.*)$", server.log, re.MULTILINE)
        assert "corrupt" in line and "it is started again" in server.log


def test_the_cpus_are_divided_among_the_workers_of_all_processes(monkeypatch):
    monkeypatch.setattr("keras_resnets.serving.served.usable_cpus", lambda: 16)
    threads = {(p, w): Settings(processes=p, workers=w).intra_threads for p in (1, 2, 4) for w in (1, 2, 8)}
    assert threads == {(p, w): max(1, 16 // (p * w)) for p, w in threads}
    assert Settings(processes=2, threads=5).intra_threads == 5


def test_figures_of_one_process_are_written_as_prometheus_s_own():
    metrics = Metrics(lambda: [("m", "1", 2, 3)])
    metrics.batch("m", "1", 4, 0.1)
    metrics.answered("m", "http", 200)
    own = metrics.text().decode()
    assert to_text(metrics.figures(), {"counted": 1}).decode().startswith(own)


def test_figures_are_added():
    one, other = (Metrics(lambda: [("m", "1", 2, 3)]) for _ in range(2))
    for metrics, rows in ((one, 4), (other, 4), (other, 8)):
        metrics.batch("m", "1", rows, 0.5)
    other.failure("n", "2", "image", 0.25)
    for metrics in (one, other):
        metrics.ready(True)
    both = total([json.loads(json.dumps(metrics.figures())) for metrics in (one, other)])
    by_name = {(row["name"], row["version"]): row for row in both["statistics"]}
    assert by_name["m", "1"]["execution_count"] == 3
    assert by_name["m", "1"]["batch_stats"] == [
        {"batch_size": 4, "compute_infer": {"count": 2, "ns": 10**9}},
        {"batch_size": 8, "compute_infer": {"count": 1, "ns": 5 * 10**8}},
    ]
    assert by_name["n", "2"]["inference_stats"]["fail"] == {"count": 1, "ns": 25 * 10**7}
    text = to_text(both, {}).decode()
    assert counted(text, "keras_resnets_batch_rows_sum") == 16
    assert counted(text, 'keras_resnets_batch_rows_bucket{le="4.0"') == 2
    assert counted(text, "keras_resnets_queue_rows{") == 4
    assert counted(text, "keras_resnets_ready") == 1
    assert "queue_rows" not in to_text(left_behind(both), {}).decode()
    one.before = left_behind(other.figures())
    assert total([one.figures()])["statistics"] == both["statistics"]
    assert families_of(one.registry) != one.figures()["families"]
