"""Who the workers are: read from TF_CONFIG or from SLURM's variables.

TensorFlow's own SlurmClusterResolver would not do (2.21): it sorts host names, so that rank 0 on n9 is told that
it lives on n10; it runs nvidia-smi, fails where there is none, and overrides SLURM's own binding of GPUs; its port
is the same for every job of a node; and it cannot read names with anything behind the brackets.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras_resnets.training.config import TrainingError

_EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
_HIGHEST_PORT = 65535
# SLURM jobs get ports below those that systems hand out to clients (from 32768 on Linux).
_FIRST_PORT, _PORTS = 12_000, 20_000


@dataclass(frozen=True)
class Cluster:
    """The workers of a run, as one of them sees it.

    Args:
        workers: "host:port" of each, at which TensorFlow listens; the chief comes first.
        index: which of them this process is.
        share: (place, number) of this process among the workers of its machine when all of them see the same
            GPUs and must divide them; None when what it sees is its own.
    """

    workers: tuple[str, ...]
    index: int
    share: tuple[int, int] | None = None

    @property
    def watch_address(self) -> tuple[str, int]:
        """Host and port at which the chief hears from the other workers: the next one up that no worker has."""
        host, port = split_address(self.workers[0])
        taken = {split_address(worker)[1] for worker in self.workers if split_address(worker)[0] == host}
        return host, next(free for free in range(port + 1, port + len(self.workers) + 1) if free not in taken)

    @property
    def digest(self) -> str:
        """The same for all workers that were given the same list."""
        return hashlib.sha256(",".join(self.workers).encode()).hexdigest()[:16]

    def name(self, index: int) -> str:
        """A worker, for messages."""
        return f"worker {index} ({self.workers[index]})"


def find_cluster(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that TF_CONFIG describes, or else the tasks of a SLURM step; None when there is neither.

    Raises:
        TrainingError: when the description is wrong; the message says what to write.
    """
    if environment.get("TF_CONFIG", "").strip():
        return _from_tf_config(environment["TF_CONFIG"])
    # Only srun sets the variables of a step: a batch script's own process is no task, whatever --ntasks says.
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return _from_slurm(environment)
    return None


def split_address(address: str) -> tuple[str, int]:
    """("host", 2222) of "host:2222".

    Raises:
        ValueError: for anything else.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) <= _HIGHEST_PORT):
        raise ValueError(f"{address!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _from_tf_config(text: str) -> Cluster | None:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise _tf_config_error(f"it is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise _tf_config_error("it is not a JSON object")
    cluster = config.get("cluster")
    if not cluster:
        return None
    if not isinstance(cluster, dict):
        raise _tf_config_error('"cluster" is not an object')
    if other := [kind for kind in cluster if kind not in ("chief", "worker")]:
        raise _tf_config_error(f'"cluster" has {", ".join(other)}, and this training knows "chief" and "worker" alone')
    chiefs, workers = (_addresses(cluster.get(kind, []), kind) for kind in ("chief", "worker"))
    if len(chiefs) > 1:
        raise _tf_config_error(f"there are {len(chiefs)} chiefs")
    kind, index = _task(config.get("task"), {"chief": len(chiefs), "worker": len(workers)})
    if kind == "worker":
        index += len(chiefs)
    everyone = (*chiefs, *workers)
    if len(set(everyone)) < len(everyone):
        raise _tf_config_error("two workers have the same address; on one machine each needs a port of its own")
    return Cluster(everyone, index)


def _tf_config_error(fault: str) -> TrainingError:
    return TrainingError(f"TF_CONFIG is wrong: {fault}. It should look like {_EXAMPLE}")


def _addresses(given: Any, kind: str) -> tuple[str, ...]:
    if not isinstance(given, list):
        raise _tf_config_error(f'"{kind}" is not a list of addresses')
    for address in given:
        try:
            split_address(str(address))
        except ValueError as error:
            raise _tf_config_error(f'"{kind}" names {error}') from None
    return tuple(given)


def _task(task: Any, members: Mapping[str, int]) -> tuple[str, int]:
    if not isinstance(task, dict) or not {"type", "index"} <= task.keys():
        raise _tf_config_error('"task" with "type" and "index" is missing, so that no process knows which worker it is')
    kind, index = task["type"], task["index"]
    if kind not in members:
        raise _tf_config_error(f'"task" has the type {kind!r}, and this training knows "chief" and "worker" alone')
    if isinstance(index, bool) or not str(index).isdecimal():
        raise _tf_config_error(f'the index of "task" is {index!r}, not a number from 0 on')
    if int(index) >= members[kind]:
        raise _tf_config_error(f'the index of "task" is {index}, and "cluster" has {members[kind]} of type {kind!r}')
    return kind, int(index)


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    def number(name: str) -> int:
        if not environment.get(name, "").isdecimal():
            raise TrainingError(f"{name} is {environment.get(name)!r}, not a number: start the workers with srun")
        return int(environment[name])

    nodes = expand_nodes(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", ""))
    tasks = _tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""), len(nodes))
    rank, total = number("SLURM_PROCID"), number("SLURM_STEP_NUM_TASKS")
    if sum(tasks) != total or rank >= total:
        raise TrainingError(f"SLURM names {sum(tasks)} places for {total} tasks, of which this is number {rank}")
    places = [(node, local) for node, count in enumerate(tasks) for local in range(count)]
    if places[rank] != (number("SLURM_NODEID"), number("SLURM_LOCALID")):
        raise TrainingError("SLURM spread the tasks over the nodes in turns: add --distribution=block to srun")
    first = _slurm_port(number("SLURM_JOB_ID"), number("SLURM_STEP_ID"), max(tasks))
    workers = tuple(f"{nodes[node]}:{first + local}" for node, local in places)
    node, local = places[rank]
    return Cluster(workers, rank, None if tasks[node] == 1 or _bound(environment) else (local, tasks[node]))


def _slurm_port(job: int, step: int, tasks: int) -> int:
    """The first port of a step on each of its nodes; other steps of the same nodes get others."""
    width = tasks + 1  # and one for the watch
    return _FIRST_PORT + ((job * 101 + step) * max(width, 16)) % (_PORTS - width)


def _bound(environment: Mapping[str, str]) -> bool:
    """Whether SLURM gave each task GPUs of its own."""
    return (
        "SLURM_GPUS_PER_TASK" in environment
        or "gpu" in environment.get("SLURM_TRES_PER_TASK", "")
        or environment.get("SLURM_GPU_BIND", "none") != "none"
    )


def expand_nodes(text: str) -> tuple[str, ...]:
    """Names of a SLURM node list, in its order: "n[09-10],gpu5" is ("n09", "n10", "gpu5").

    Raises:
        TrainingError: when it cannot be read.
    """
    parts = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)
    if not text or ",".join(parts) != text:
        raise TrainingError(f"SLURM's node list {text!r} cannot be read: start the workers with srun, or set TF_CONFIG")
    return tuple(name for part in parts for name in _expand(part))


def _expand(part: str) -> list[str]:
    found = re.match(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if not found:
        return [part]
    before, ranges, after = found.groups()
    numbers = []
    for one in ranges.split(","):
        bounds = re.fullmatch(r"(\d+)(?:-(\d+))?", one)
        if not bounds:
            raise TrainingError(f"SLURM's node list has {one!r} in brackets, which is no range of numbers")
        low, high = bounds[1], bounds[2] or bounds[1]
        numbers += [f"{value:0{len(low)}d}" for value in range(int(low), int(high) + 1)]
    return [f"{before}{number}{rest}" for number in numbers for rest in _expand(after)]


def _tasks_per_node(text: str, nodes: int) -> list[int]:
    """[2, 2, 2, 1] of "2(x3),1"."""
    tasks: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not found:
            raise TrainingError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}: start the workers with srun, or set TF_CONFIG")
        tasks += [int(found[1])] * int(found[2] or 1)
    if len(tasks) != nodes:
        raise TrainingError(f"SLURM names {nodes} nodes, and the tasks of {len(tasks)}")
    return tasks
