"""Who the workers are (TF_CONFIG, SLURM), the watch between them, and the strategy made of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_resnets.training import TrainingError
from keras_resnets.training.cluster import Cluster, expand_nodes, find_cluster, split_address
from keras_resnets.training.launch import _free_ports
from keras_resnets.training.watch import _Patience, _Reception

GONE = os.EX_TEMPFAIL


def tf_config(cluster, kind="worker", index=0):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def slurm(rank, nodes="n[9-10]", per_node="2(x2)", tasks=4, **more):
    """What srun tells task `rank` of 2 nodes with 2 tasks each."""
    return {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_PROCID": str(rank),
        "SLURM_STEP_NODELIST": nodes, "SLURM_STEP_TASKS_PER_NODE": per_node, "SLURM_NODEID": str(rank // 2),
        "SLURM_LOCALID": str(rank % 2), **more,
    }  # fmt: skip


def test_without_a_description_there_is_no_cluster():
    assert find_cluster({}) is None
    assert find_cluster({"TF_CONFIG": "{}"}) is None
    assert find_cluster({"TF_CONFIG": " "}) is None


def test_tf_config_names_the_workers_with_the_chief_first():
    workers = ["a:1", "b:2"]
    assert find_cluster(tf_config({"worker": workers}, index=1)) == Cluster(("a:1", "b:2"), 1)
    with_chief = {"worker": workers, "chief": ["c:3"]}
    assert find_cluster(tf_config(with_chief, "chief", 0)) == Cluster(("c:3", "a:1", "b:2"), 0)
    assert find_cluster(tf_config(with_chief, "worker", "1")) == Cluster(("c:3", "a:1", "b:2"), 2)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{worker: a}", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"cluster": {"worker": ["a:1"]}}', '"task" with "type" and "index" is missing'),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}', '"task" with "type" and "index" is missing'),
        ('{"cluster": ["a:1"], "task": {}}', '"cluster" is not an object'),
        (tf_config({"worker": ["a:1"]}, index=1), 'index of "task" is 1, and "cluster" has 1 of type \'worker\''),
        (tf_config({"worker": ["a:1"]}, index=-1), 'index of "task" is -1, not a number'),
        (tf_config({"worker": ["a:1"]}, index=True), 'index of "task" is True, not a number'),
        (tf_config({"worker": ["a:1"]}, "master"), "type 'master'"),
        (tf_config({"worker": ["a:1"]}, "chief"), "has 0 of type 'chief'"),
        (tf_config({"worker": ["a:1"], "ps": ["b:1"]}), '"cluster" has ps'),
        (tf_config({"worker": ["a:1"], "chief": ["b:1", "c:1"]}), "2 chiefs"),
        (tf_config({"worker": "a:1"}), '"worker" is not a list'),
        (tf_config({"worker": ["a"]}), "'a' is not host:port"),
        (tf_config({"worker": ["a:99999"]}), "'a:99999' is not host:port"),
        (tf_config({"worker": ["a:1", "a:1"]}), "same address"),
    ],
)
def test_a_wrong_tf_config_is_explained_with_a_right_one(text, fault):
    environment = text if isinstance(text, dict) else {"TF_CONFIG": text}
    with pytest.raises(TrainingError) as error:
        find_cluster(environment)
    assert fault in str(error.value)
    example = str(error.value).partition("should look like ")[2]
    assert len(find_cluster({"TF_CONFIG": example}).workers) == 2


def test_addresses_may_be_ipv6():
    assert split_address("[::1]:22") == ("::1", 22)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("gpu5", ["gpu5"]),
        ("node[01-03,07],gpu5", ["node01", "node02", "node03", "node07", "gpu5"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("n[008-010]-ib", ["n008-ib", "n009-ib", "n010-ib"]),
        ("r[1-2]n[1,3]", ["r1n1", "r1n3", "r2n1", "r2n3"]),
        ("a-1,b.example.org", ["a-1", "b.example.org"]),
    ],
)
def test_slurm_node_lists_are_expanded_in_their_order(text, nodes):
    assert list(expand_nodes(text)) == nodes


@given(
    st.lists(st.tuples(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.integers(0, 90), st.integers(0, 9)), min_size=1)
)
def test_slurm_node_lists_of_any_ranges(parts):
    text = ",".join(f"{prefix}[{low:03d}-{low + more:03d}]" for prefix, low, more in parts)
    assert list(expand_nodes(text)) == [
        f"{prefix}{number:03d}" for prefix, low, more in parts for number in range(low, low + more + 1)
    ]


@pytest.mark.parametrize("text", ["", "n[1-2", "n1-2]", "n[]", "n[a-b]", ",n1", "n1,", "n[[1]]", "n[1-2-3]"])
def test_an_unreadable_node_list_is_an_error(text):
    with pytest.raises(TrainingError, match="node list"):
        expand_nodes(text)


def test_slurm_tasks_live_where_slurm_put_them():
    clusters = [find_cluster(slurm(rank)) for rank in range(4)]
    assert [cluster.index for cluster in clusters] == [0, 1, 2, 3]
    assert len({cluster.workers for cluster in clusters}) == len({cluster.digest for cluster in clusters}) == 1
    hosts, ports = zip(*map(split_address, clusters[0].workers), strict=True)
    # TensorFlow's resolver would sort n10 before n9.
    assert hosts == ("n9", "n9", "n10", "n10")
    assert ports[:2] == ports[2:]
    assert ports[1] == ports[0] + 1


def test_slurm_jobs_and_steps_of_one_node_have_different_ports():
    def ports(job, step):
        return {
            split_address(worker)[1] for worker in find_cluster(slurm(0, SLURM_JOB_ID=job, SLURM_STEP_ID=step)).workers
        }

    cases = [ports(str(job), str(step)) for job in (8, 9, 123456) for step in (0, 1)]
    assert sum(map(len, cases)) == len(set.union(*cases)) == 2 * len(cases)
    assert all(1024 < port < 32768 for port in set.union(*cases))


def test_slurm_tasks_of_one_node_share_what_they_all_see():
    assert [find_cluster(slurm(rank)).share for rank in range(4)] == [(0, 2), (1, 2), (0, 2), (1, 2)]
    # Bound by SLURM: what a task sees is its own.
    assert find_cluster(slurm(1, SLURM_GPUS_PER_TASK="1")).share is None
    assert find_cluster(slurm(1, SLURM_TRES_PER_TASK="cpu=4,gres/gpu=1")).share is None
    assert find_cluster(slurm(1, SLURM_GPU_BIND="none")).share == (1, 2)
    alone = slurm(1, per_node="1(x2)", tasks=2, SLURM_NODEID="1", SLURM_LOCALID="0")
    assert find_cluster(alone).share is None


def test_only_the_tasks_of_a_slurm_step_are_workers():
    assert find_cluster({"SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[1-4]", "SLURM_PROCID": "0"}) is None
    assert find_cluster(slurm(0, tasks=1)) is None
    assert find_cluster({**slurm(0), **tf_config({"worker": ["a:1", "b:1"]})}).workers == ("a:1", "b:1")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"SLURM_NODEID": "1"}, "--distribution=block"),  # tasks dealt out in turns
        ({"SLURM_STEP_TASKS_PER_NODE": "2,1"}, "3 places for 4 tasks"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4"}, "2 nodes, and the tasks of 1"),
        ({"SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE is 'two'"),
        ({"SLURM_PROCID": "4"}, "this is number 4"),
        ({"SLURM_PROCID": ""}, "SLURM_PROCID is ''"),
    ],
)
def test_a_strange_slurm_environment_is_explained(change, fault):
    with pytest.raises(TrainingError, match=fault):
        find_cluster({**slurm(1), **change})


def test_the_watch_has_a_port_that_no_worker_has():
    assert Cluster(("a:5", "a:6", "b:5"), 0).watch_address == ("a", 7)
    assert Cluster(("a:6", "a:5", "b:7"), 1).watch_address == ("a", 7)
    assert Cluster(("a:2222", "b:2222"), 1).watch_address == ("a", 2223)


# What follows runs real processes without TensorFlow: worker i of n runs `body`, with `peers`, `index` and `say`.

_WORKER = """
import os, signal, sys, time
from keras_resnets.training import TrainingStopped
from keras_resnets.training.cluster import find_cluster
from keras_resnets.training.watch import Peers
def say(text): print(text, flush=True)
cluster = find_cluster()
index = cluster.index
peers = Peers(cluster, **{options})
peers.meet()
say("met")
with peers:
{body}
say("left")
"""


class Workers:
    """Processes that form a cluster."""

    def __init__(self, number, body="    pass", start=None, **options):
        ports = _free_ports(number)
        self.addresses = [f"127.0.0.1:{port}" for port in ports]
        code = _WORKER.replace("{body}", body).replace("{options}", repr({"timeout": 2.0, **options}))
        self.processes = {i: self.start(i, code) for i in (range(number) if start is None else start)}

    def start(self, index, code):
        environment = {**os.environ, **tf_config({"worker": self.addresses}, index=index)}
        command = [sys.executable, "-c", code]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def until_met(self):
        for process in self.processes.values():
            assert process.stdout.readline() == "met\n"

    def results(self):
        """{index: (status, output, errors)}, of all that end within a minute."""
        gathered = {}
        for index, process in self.processes.items():
            out, errors = process.communicate(timeout=60)
            gathered[index] = process.returncode, out, errors
        return gathered

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.wait()


def test_workers_that_leave_at_different_times_raise_no_alarm():
    # One before the chief and one after it, by more than the timeout.
    with Workers(3, "    time.sleep([2, 0, 4][index])", timeout=1.5) as workers:
        assert all(result == (0, "met\nleft\n", "") for result in workers.results().values())


def test_a_busy_main_thread_raises_no_alarm():
    body = "    end = time.monotonic() + 4\n    while time.monotonic() < end: sum(range(10000))"
    with Workers(2, body, timeout=2.0) as workers:
        assert all(result == (0, "met\nleft\n", "") for result in workers.results().values())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_the_others_at_once(victim):
    # A timeout that the test would not survive: the closed connection tells.
    with Workers(3, "    time.sleep(600)", timeout=500.0) as workers:
        workers.until_met()
        workers.processes[victim].kill()
        results = workers.results()
    assert results.pop(victim)[0] == -signal.SIGKILL
    for status, _, errors in results.values():
        assert status == GONE
        assert f"worker {victim} ({workers.addresses[victim]}) is gone" in errors
        assert "start all workers again" in errors


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_frozen_worker_ends_the_others_after_the_timeout(victim):
    with Workers(3, "    time.sleep(600)", timeout=2.0) as workers:
        workers.until_met()
        workers.processes[victim].send_signal(signal.SIGSTOP)
        frozen = workers.processes.pop(victim)
        try:
            results = workers.results()
        finally:
            frozen.kill()
            frozen.communicate()
    for status, _, errors in results.values():
        assert status == GONE
        assert f"worker {victim} ({workers.addresses[victim]}) has not answered for 2 s" in errors


@pytest.mark.slow
def test_a_worker_frozen_for_less_than_the_timeout_raises_no_alarm():
    with Workers(2, "    time.sleep(5)", timeout=4.0) as workers:
        workers.until_met()
        workers.processes[1].send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        workers.processes[1].send_signal(signal.SIGCONT)
        assert [status for status, _, _ in workers.results().values()] == [0, 0]


def test_the_process_ends_although_its_main_thread_is_stuck_and_holds_the_output():
    # Like a thread in a collective operation, and one that blocks on a full pipe.
    body = """
    if index:
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdout.write("x" * 10_000_000)
"""
    with Workers(2, body, timeout=500.0) as workers:
        workers.until_met()
        assert workers.processes[0].wait(timeout=60) == GONE


def test_an_error_of_one_worker_is_told_by_all():
    with Workers(3, "    if index == 2: raise OSError('disk full')\n    time.sleep(600)") as workers:
        results = workers.results()
    status, _, errors = results.pop(2)
    assert (status, errors.count("OSError: disk full")) == (1, 1)
    for status, _, errors in results.values():
        assert status == GONE
        assert f"worker 2 ({workers.addresses[2]}) failed (OSError: disk full)" in errors


def test_an_error_that_all_meet_is_each_ones_own():
    with Workers(3, "    time.sleep(0.2 * index)\n    raise ValueError('bad recipe')") as workers:
        for status, _, errors in workers.results().values():
            assert (status, "ValueError: bad recipe" in errors, "keras-resnets:" in errors) == (1, True, False)


def test_a_stop_by_signal_leaves_the_chief_time_to_save():
    body = "    time.sleep(0 if index else 3)\n    say('saved')\n    raise TrainingStopped('', 15)"
    with Workers(2, body, timeout=1.0) as workers:
        for status, out, errors in workers.results().values():
            assert (status, "saved" in out, "keras-resnets:" in errors) == (1, True, False)


def test_a_program_that_does_not_use_the_watch_may_end_when_it_likes():
    body = "    pass\npeers = Peers(cluster, timeout=2.0)\npeers.meet()\ntime.sleep([4, 0, 1][index])"
    with Workers(3, body) as workers:
        assert [(status, errors) for status, _, errors in workers.results().values()] == [(0, "")] * 3


def test_a_failed_collective_that_the_watch_cannot_explain_is_an_error_about_workers():
    # As when a worker left in order while the others needed it; error 14 is UNAVAILABLE.
    body = """
    time.sleep(1)
    if index == 0:
        raise type("UnavailableError", (Exception,), {"__module__": "tensorflow.errors", "error_code": 14})("Socket")
"""
    with Workers(2, body) as workers:
        results = workers.results()
    assert results[1][0] == 0
    assert results[0][0] == 1
    assert "PeerError: another worker has left, or cannot be reached (UnavailableError: Socket)" in results[0][2]


def test_a_worker_that_never_starts_is_named():
    with Workers(3, start=(0, 1), timeout=0.4) as workers:
        results = workers.results()
    for status, out, errors in results.values():
        assert (status, out) == (1, "")
        assert f"PeerError: worker 2 ({workers.addresses[2]}) did not start within 2 s" in errors


def test_a_chief_that_never_starts_is_named():
    with Workers(2, start=(1,), timeout=0.4) as workers:
        _, _, errors = workers.results()[1]
    assert f"PeerError: worker 0 ({workers.addresses[0]}) did not let worker 1 begin" in errors


def test_a_worker_that_starts_again_before_all_are_there_is_taken_in():
    with Workers(3, start=(0, 1), timeout=20.0) as workers:
        first, code = workers.processes[1], workers.processes[1].args[2]
        time.sleep(1.5)
        first.kill()
        first.communicate()
        workers.processes |= {1: workers.start(1, code), 2: workers.start(2, code)}
        assert [status for status, _, _ in workers.results().values()] == [0, 0, 0]


def test_a_worker_is_no_double_of_the_one_that_it_replaces():
    # The chief sees both at one look: the end of the old connection, and the new one's hello.
    cluster = find_cluster(tf_config({"worker": [f"127.0.0.1:{port}" for port in _free_ports(3)]}))
    chief = ThreadPoolExecutor().submit(_Reception(cluster, 1).receive, _Patience(20.0))

    def hello(index):
        connection = _connected(cluster.watch_address)
        text = json.dumps({"index": index, "digest": cluster.digest, "replicas": 1})
        connection.sendall(json.dumps(["hello", text]).encode() + b"\n")
        return connection

    worker = hello(1)
    for _ in range(10):
        time.sleep(0.15)  # taken in
        worker.close()
        worker = hello(1)
    with worker, hello(2):
        assert sorted(chief.result(30)) == [1, 2]


def test_strangers_at_the_port_are_ignored():
    with Workers(2, "    time.sleep(1)", start=(0,), timeout=20.0) as workers:
        address = find_cluster(tf_config({"worker": workers.addresses})).watch_address
        code = workers.processes[0].args[2]
        for words in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff" * 5000,
            b'["hello", "{}"]\n',
            b'["hello", "{\\"index\\": 1}"]\n',
            b"[" * 50_000 + b"\n",
            b"",
        ):
            with _connected(address) as stranger:
                stranger.sendall(words)
        workers.processes[1] = workers.start(1, code)
        assert [status for status, _, _ in workers.results().values()] == [0, 0]


def _connected(address):
    for _ in range(100):
        try:
            return socket.create_connection(address)
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"nobody listens at {address}")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("cluster = type(cluster)((*cluster.workers, 'z:1'), 2)", "another list of workers"),
        ("cluster = type(cluster)(cluster.workers, 1)", "two processes call themselves worker 1"),
    ],
)
def test_workers_of_different_clusters_do_not_begin(change, fault):
    with Workers(3, start=(), timeout=20.0) as workers:
        code = _WORKER.replace("{body}", "    pass").replace("{options}", "{}")
        other = code.replace("index = cluster", f"if cluster.index == 2: {change}\nindex = cluster")
        workers.processes = {i: workers.start(i, other if i == 2 else code) for i in range(3)}
        results = workers.results()
    assert all(status == 1 for status, _, _ in results.values())
    assert any("TrainingError: " in errors and fault in errors for _, _, errors in results.values())


def test_workers_with_unequal_replicas_do_not_begin():
    with Workers(2, start=()) as workers:
        code = _WORKER.replace("{body}", "    pass").replace("{options}", "dict(replicas=4 - index)")
        workers.processes = {i: workers.start(i, code) for i in range(2)}
        for status, out, errors in workers.results().values():
            assert (status, out) == (1, "")
            assert "has 3 replicas" in errors
            assert "all workers need equally many GPUs" in errors
