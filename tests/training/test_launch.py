"""Several workers on one machine: their output, their end, and nobody left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from keras_resnets.training import TrainingError
from keras_resnets.training.cluster import Cluster, find_cluster
from keras_resnets.training.launch import launch

# Runs `launch` in a process of its own: signals are for that one.
_LAUNCH = """
import sys
from keras_resnets.training.launch import launch
sys.exit(launch([sys.executable, "-c", sys.argv[2]], int(sys.argv[1]), stop_seconds=1.5, **{options}))
"""
_SELF = """
import json, os, signal, sys, time
from pathlib import Path
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
"""


def start(workers, code, **options):
    command = [sys.executable, "-c", _LAUNCH.replace("{options}", repr(options)), str(workers), _SELF + code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(workers, code, **options):
    process = start(workers, code, **options)
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


def is_alive(number):
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def numbers(folder, count):
    """Process numbers that the workers wrote into a folder."""
    wait_for(lambda: len(list(folder.glob("*.pid"))) == count)
    return [int(file.stem) for file in folder.glob("*.pid")]


def announce(folder):
    """Code by which a worker says that it runs and what it is."""
    return f"Path({str(folder)!r}, str(os.getpid()) + '.pid').touch()\n"


def test_workers_are_told_of_each_other():
    code = "import sys; from keras_resnets.training.cluster import find_cluster; print(find_cluster(), flush=True)"
    status, out, errors = run(3, code)
    assert status == 0
    assert "index=0" in out
    assert out.count("127.0.0.1:") == 3
    folder = Path(errors.partition("write to ")[2].split("/worker-")[0])
    assert not folder.exists()  # all went well


def test_the_first_worker_writes_here_and_the_others_into_logs(tmp_path):
    logs = tmp_path / "logs"
    status, out, errors = run(3, "print('out', index); print('err', index, file=sys.stderr)", logs=str(logs))
    assert (status, out) == (0, "out 0\n")
    assert "err 0" in errors
    assert str(logs) in errors
    assert {file.name: set(file.read_text().splitlines()) for file in logs.iterdir()} == {
        "worker-1.log": {"out 1", "err 1"},
        "worker-2.log": {"out 2", "err 2"},
    }


def test_of_two_workers_the_log_of_the_one_is_named(tmp_path):
    _, _, errors = run(2, "pass", logs=str(tmp_path))
    assert errors == f"worker 1 writes to {tmp_path}/worker-1.log\n"


def test_a_failing_worker_ends_the_others_and_is_the_one_reported(tmp_path):
    code = announce(tmp_path) + "time.sleep(1)\nif index == 1: print('the reason'); sys.exit(7)\ntime.sleep(600)"
    status, _, errors = run(3, code, logs=str(tmp_path))
    assert status == 7
    assert "worker 1 ended with status 7, and so all were stopped" in errors
    assert "worker-1.log:\n  the reason" in errors
    assert not any(is_alive(number) for number in numbers(tmp_path, 3))


def test_a_killed_worker_is_reported_though_the_others_say_75():
    code = "time.sleep(1)\nif index == 0: os.kill(os.getpid(), 9)\ntime.sleep(0.5); sys.exit(75)"
    status, _, errors = run(2, code)
    assert status == 128 + signal.SIGKILL
    assert "worker 0 was ended by SIGKILL" in errors


def test_a_worker_that_does_not_stop_is_killed(tmp_path):
    code = (
        announce(tmp_path) + "signal.signal(15, signal.SIG_IGN)\ntime.sleep(1)\nif index: sys.exit(1)\ntime.sleep(600)"
    )
    status, _, _ = run(2, code, logs=str(tmp_path))
    assert status == 1
    assert not any(is_alive(number) for number in numbers(tmp_path, 2))


def test_a_worker_that_ends_well_leaves_the_others_alone():
    status, out, _ = run(2, "time.sleep(0 if index else 2); print('done')")
    assert (status, out) == (0, "done\n")


_SAVES = """
signal.signal({number}, lambda *_: (time.sleep(0 if index else 2.5), print("saved", flush=True), os._exit(75)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_signals_are_passed_on_and_all_may_save(number, tmp_path):
    code = _SAVES.replace("{number}", str(int(number))) + announce(tmp_path) + "time.sleep(600)"
    process = start(2, code, logs=str(tmp_path))
    workers = numbers(tmp_path, 2)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    # The chief took longer than workers get that are stopped for another's fault.
    assert (process.returncode, out) == (os.EX_TEMPFAIL, "saved\n")
    assert (tmp_path / "worker-1.log").read_text() == "saved\n"
    assert "stopped" not in errors
    assert not any(is_alive(worker) for worker in workers)


def test_a_second_interrupt_kills(tmp_path):
    code = "signal.signal(2, signal.SIG_IGN)\n" + announce(tmp_path) + "time.sleep(600)"
    process = start(2, code, logs=str(tmp_path))
    workers = numbers(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert all(is_alive(worker) for worker in workers)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    assert not any(is_alive(worker) for worker in workers)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's parent death signal is Linux's")
def test_no_worker_outlives_a_killed_launch(tmp_path):
    process = start(3, "signal.signal(15, signal.SIG_IGN)\n" + announce(tmp_path) + "time.sleep(600)")
    workers = numbers(tmp_path, 3)
    process.kill()
    process.communicate()
    wait_for(lambda: not any(is_alive(worker) for worker in workers))


def test_gpus_are_divided(monkeypatch, capfd):
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    for options, expected in (({}, "4,5"), ({"gpus_per_worker": 1}, "4"), ({"gpus_per_worker": 0}, "")):
        assert launch([sys.executable, "-c", code], 2, **options) == 0
        assert capfd.readouterr().out == f"{expected}\n"
    with pytest.raises(TrainingError, match="2 workers with 3 GPUs each need 6; there are 4"):
        launch(["true"], 2, gpus_per_worker=3)
    with pytest.raises(TrainingError, match="3 workers cannot share 4 GPUs equally"):
        launch(["true"], 3)


def test_a_worker_cannot_launch(monkeypatch):
    config = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(TrainingError, match="run the command without launch"):
        launch(["true"], 2)


def test_there_is_at_least_one_worker():
    with pytest.raises(TrainingError, match="workers must be at least 1"):
        launch(["true"], 0)


_TRAINS = """
import numpy as np, tensorflow as tf
from keras_resnets.training.strategy import is_chief, make_strategy, several_workers, shard, watching_peers
strategy = make_strategy("auto", peer_timeout=60.0)
first, count, total = shard(strategy)
print(first, count, total, is_chief(strategy), several_workers(strategy), strategy.num_replicas_in_sync, flush=True)
shares = [[1.0, 2.0, 3.0], [4.0, 5.0]], [[6.0], []]  # of the workers, at each step; the last batch has one number
with watching_peers(strategy):
    with strategy.scope():
        weight = tf.Variable(1.0, aggregation=tf.VariableAggregation.SUM)
    data = tf.data.Dataset.from_generator(
        lambda: iter([step[first] for step in shares]), output_signature=tf.TensorSpec([None], tf.float32)
    )
    batches = iter(strategy.distribute_datasets_from_function(lambda context: data))

    def replica(numbers):
        weight.assign_sub(0.1 * tf.reduce_sum(weight * numbers))

    step = tf.function(lambda batches: strategy.run(replica, args=(next(batches),)))
    for _ in shares:
        step(batches)
        print(f"{weight.numpy():.4f}", flush=True)
    if not is_chief(strategy):
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    all_reduce = tf.function(lambda: strategy.reduce("SUM", strategy.run(lambda: tf.ones([])), axis=None))
    while True:
        all_reduce()
"""


def test_workers_train_together_until_one_dies(tmp_path):
    status, out, errors = run(2, _TRAINS, logs=str(tmp_path))
    # One weight w and the loss w²·Σx / 2: steps of 0.1·w·15 and 0.1·w·6.
    weights = ["-0.5000", "-0.2000"]
    assert out.splitlines() == ["0 1 2 True True 2", *weights]
    log = (tmp_path / "worker-1.log").read_text()
    assert [line for line in log.splitlines() if line[:2] in ("1 ", "-0")] == ["1 1 2 False True 2", *weights]
    assert status == 128 + signal.SIGKILL
    assert "is gone; this worker stops" in errors
    assert "worker 1 was ended by SIGKILL" in errors


# The examples of docs/distributed.md.

_EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def _program(folder, name, script):
    """An executable of this name, in front of others in PATH."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_kubernetes_example_makes_a_cluster(tmp_path):
    service, job = yaml.safe_load_all((_EXAMPLES / "train-kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    environment = _program(tmp_path, "keras-resnets", 'printf "%s\\n%s" "$TF_CONFIG" "$*"')
    environment |= {variable["name"]: variable["value"] for variable in container["env"]}
    count = job["spec"]["completions"]
    for index in range(count):
        environment["JOB_COMPLETION_INDEX"] = str(index)  # set by Kubernetes
        command = [*container["command"], *container["args"]]
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        config, _, arguments = out.partition("\n")
        # Pods of an indexed job are called JOB-INDEX, and SUBDOMAIN is the headless service's name.
        names = [f"{job['metadata']['name']}-{i}.{service['metadata']['name']}:2222" for i in range(count)]
        assert find_cluster({"TF_CONFIG": config}) == Cluster(tuple(names), index)
        assert _accepted(arguments.split())
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [os.EX_TEMPFAIL]}} in job["spec"][
        "podFailurePolicy"
    ]["rules"]


def _accepted(arguments):
    """Whether the command line can be read."""
    from keras_resnets.cli import _parser

    return _parser().parse_args(arguments).strategy == "multi-worker"


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"), [(0, "0", False), (75, "0", True), (75, "20", False), (1, "0", False)]
)
def test_the_slurm_example_requeues_on_75_alone(status, restarts, requeued, tmp_path):
    _program(tmp_path, "scontrol", f'echo "$*" > {tmp_path}/scontrol.called')
    environment = _program(tmp_path, "srun", f'echo "$*"; exit {status}')
    environment |= {"DATA": "/data", "OUT": "/out", "SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": restarts}
    done = subprocess.run(
        ["bash", str(_EXAMPLES / "train.sbatch")], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, "")
    assert _accepted(done.stdout.split("keras-resnets ")[1].split())
    called = tmp_path / "scontrol.called"
    assert (called.read_text() if called.exists() else "") == ("requeue 17\n" if requeued else "")


def test_the_benchmark_for_several_gpus_says_what_it_lacks(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "multi_gpu.sh"
    for answer, fault in (
        ("exit 9", "nvidia-smi fails"),
        ("echo one", "nvidia-smi lists 1"),
        ("echo", "nvidia-smi lists 0"),
    ):
        environment = _program(tmp_path, "nvidia-smi", answer)
        done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert fault in done.stderr
