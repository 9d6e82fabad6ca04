"""The server in Ray Serve's replicas, on a cluster of this machine: `make test-ray`, about two minutes."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import numpy as np
import pytest

pytestmark = pytest.mark.ray
PORT = 8123


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="make test-ray installs it")
    from ray import serve

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    yield serve
    serve.shutdown()
    ray.shutdown()


def ask(method, path, body=None):
    """Status and JSON."""
    connection = HTTPConnection(f"127.0.0.1:{PORT}", timeout=60)
    connection.request(method, path, body)
    answer = connection.getresponse()
    told = answer.read()
    connection.close()
    return answer.status, json.loads(told) if told.startswith((b"{", b"[")) else told


def infer(rows):
    item = {"name": "images", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
    return ask("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [item]}))


def replicas(serve):
    (deployment,) = serve.status().applications["default"].deployments.values()
    return deployment.replica_states.get("RUNNING", 0)


def test_replicas_serve_scale_and_are_replaced(cluster, exported, at_once):
    from keras_resnets.serving.ray_app import application, build

    model, bundle = exported()
    rows = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype(np.float32)
    want = np.asarray(model(rows))
    cluster.run(build({"bundles": f"tiny={bundle}", "max_replicas": "1", "deadline": "30"}))

    # The protocol is the server's own.
    assert ask("GET", "/v2/health/ready") == (200, {"ready": True})
    assert ask("GET", "/v2/models/tiny")[1]["inputs"][0]["shape"] == [-1, 8, 8, 1]
    status, told = ask("POST", "/v2/models/tiny/infer", "{}")
    assert status == 400 and "input images is missing" in told["error"]
    assert ask("GET", "/v2/models/huge")[0] == 404

    # Rows of many requests share batches inside the replica.
    wrong, go = [], threading.Barrier(64)

    def client(number):
        go.wait()
        status, told = infer(rows[number : number + 1])
        if status != 200 or not np.allclose(told["outputs"][0]["data"], want[number], atol=1e-5):
            wrong.append(told)

    at_once(client, range(64))
    assert not wrong
    (statistics,) = ask("GET", "/v2/models/tiny/stats")[1]["model_stats"]
    assert statistics["inference_count"] == 64 and statistics["execution_count"] < 64

    # A new version replaces the replicas while they are asked, and none of the requests fails.
    stop, statuses = threading.Event(), []

    def ask_on():
        while not stop.is_set():
            statuses.append(infer(rows[:1])[0])

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_on) for _ in range(4)]
        try:
            cluster.run(application([f"tiny={bundle}", f"second={bundle}"], min_replicas=2, max_replicas=2))
            time.sleep(2)
        finally:
            stop.set()
    for one in asking:
        one.result()  # raises what a client met
    assert set(statuses) == {200} and len(statuses) > 10
    assert replicas(cluster) == 2
    assert ask("GET", "/v2/models/second/ready")[0] == 200


def test_wrong_arguments_are_named():
    pytest.importorskip("ray", reason="make test-ray installs it")
    from keras_resnets.serving.ray_app import application, build

    with pytest.raises(ValueError, match="no argument batch; there are bundles, min_replicas"):
        build({"bundles": "b", "batch": "4"})
    with pytest.raises(ValueError, match="max_batch must be at least 1"):
        build({"bundles": "b", "max_batch": "0"})
    with pytest.raises(ValueError, match="cpus must be a number, not 'many'"):
        build({"bundles": "b", "cpus": "many"})
    with pytest.raises(ValueError, match="nothing to serve"):
        application([])
