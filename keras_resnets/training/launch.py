"""Several workers on one machine: to try multi-worker training, or to give each GPU a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from keras_resnets.training.cluster import find_cluster
from keras_resnets.training.config import TrainingError

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_TAIL = 15  # lines of a failed worker's log to show
_POLL = 0.1  # seconds
_SAVING = 10  # times as long as others, workers may take to end when those before them ended in order


def launch(
    command: Sequence[str],
    workers: int,
    *,
    gpus_per_worker: int | None = None,
    logs: str | Path | None = None,
    stop_seconds: float = 30.0,
) -> int:
    """Run `command` in several processes that are the workers of one cluster, and wait for them.

    Each gets a TF_CONFIG with addresses of this machine, and its own share of the GPUs. Worker 0 writes where this
    process writes, the others into logs. SIGTERM, SIGINT, SIGHUP and SIGUSR1 are passed on to all; a second SIGINT
    kills them. When one fails, the others are sent SIGTERM, and SIGKILL when they are still there `stop_seconds`
    later (ten times that if it ended with status 75, having saved its state). On Linux none outlives this process,
    even when that is killed.

    Call it from the main thread: signals are handled there.

    Args:
        command: program and arguments.
        workers: how many processes.
        gpus_per_worker: GPUs of each; by default this machine's, divided equally, or none.
        logs: folder for worker-1.log and so on; by default a temporary one, deleted when all went well.
        stop_seconds: that workers get to end when another failed.

    Returns:
        0 when all workers returned it. Otherwise the status of the one that failed first, 128 + n if signal n ended
        it; and 75 (EX_TEMPFAIL) only when nothing else went wrong: all saved their state after a signal.

    Raises:
        TrainingError: when the workers do not fit this machine, or this process is a worker already.
    """
    if workers < 1:
        raise TrainingError(f"workers must be at least 1, not {workers}")
    cluster = find_cluster()
    if cluster and len(cluster.workers) > 1:
        raise TrainingError(f"this process is {cluster.name(cluster.index)} already: run the command without launch")
    gpus = _share_gpus(workers, gpus_per_worker)
    folder = Path(logs) if logs else Path(tempfile.mkdtemp(prefix="keras-resnets-workers-"))
    folder.mkdir(parents=True, exist_ok=True)
    if workers > 1:
        several = f"workers 1 to {workers - 1} write to {folder}/worker-*.log"
        told = f"worker 1 writes to {folder}/worker-1.log" if workers == 2 else several
        print(told, file=sys.stderr, flush=True)
    environments = [{**os.environ, **own} for own in _environments(_free_ports(workers), gpus)]
    status = _Workers(command, environments, folder, stop_seconds).run()
    if status == 0 and logs is None:
        shutil.rmtree(folder, ignore_errors=True)
    return status


def _environments(ports: Sequence[int], gpus: Sequence[str | None]) -> list[dict[str, str]]:
    """What each worker's environment has in addition: who the workers are, and which GPUs are its own."""
    addresses = [f"127.0.0.1:{port}" for port in ports]
    environments = []
    for index, devices in enumerate(gpus):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        own = {"TF_CONFIG": json.dumps(config)}
        environments.append(own if devices is None else {**own, "CUDA_VISIBLE_DEVICES": devices})
    return environments


def _free_ports(number: int) -> list[int]:
    """Neighbouring free ports, with another free one behind them for the watch."""
    chance = random.SystemRandom()
    for _ in range(100):
        # Below those that the system hands out to clients, which could take one before its worker listens.
        first = chance.randrange(12_000, 32_000 - number)
        ports = range(first, first + number + 1)
        if all(_is_free(port) for port in ports):
            return list(ports[:-1])
    raise TrainingError(f"no {number + 1} neighbouring ports of this machine are free")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _share_gpus(workers: int, each: int | None) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each worker; None to leave it as it is."""
    devices = _gpus()
    if each is None:
        if not devices:
            return [None] * workers
        if len(devices) % workers:
            raise TrainingError(
                f"{workers} workers cannot share {len(devices)} GPUs equally: choose another number of workers, or "
                f"--gpus-per-worker (0 for CPUs)"
            )
        each = len(devices) // workers
    if each < 0:
        raise TrainingError(f"gpus_per_worker must be at least 0, not {each}")
    if workers * each > len(devices):
        raise TrainingError(f"{workers} workers with {each} GPUs each need {workers * each}; there are {len(devices)}")
    return [",".join(devices[i * each : (i + 1) * each]) for i in range(workers)]


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in listed.stdout.splitlines() if line.startswith("GPU "))]


class _Workers:
    """The processes, from their start to the end of the last."""

    def __init__(
        self, command: Sequence[str], environments: Sequence[Mapping[str, str]], logs: Path, stop_seconds: float
    ) -> None:
        self.command, self.environments, self.logs, self.stop_seconds = command, environments, logs, stop_seconds
        self._processes: list[subprocess.Popen[bytes]] = []
        self._arrived: list[int] = []  # signals to pass on
        self._signalled = False
        self._failed: list[tuple[int, int]] = []  # (round in which it was seen, worker)

    def run(self) -> int:
        before = {number: signal.signal(number, self._remember) for number in _PASSED_ON}
        try:
            for index, environment in enumerate(self.environments):
                self._processes.append(self._start(index, environment))
            self._wait()
            return self._report()
        finally:
            self._signal(signal.SIGKILL)
            for process in self._processes:
                process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, index: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C in a terminal would otherwise reach it twice.
        options: dict[str, Any] = {"env": environment, "start_new_session": True, "preexec_fn": _die_with_parent()}
        if index == 0:
            return subprocess.Popen(self.command, **options)
        with self._log(index).open("wb") as log:
            return subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **options
            )

    def _log(self, index: int) -> Path:
        return self.logs / f"worker-{index}.log"

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append(number)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def _wait(self) -> None:
        """Wait for all, passing signals on; once one has failed, not much longer."""
        asked, interrupted, turn = math.inf, False, 0
        while running := [process for process in self._processes if process.poll() is None]:
            while self._arrived:
                number, self._signalled = self._arrived.pop(0), True
                self._signal(signal.SIGKILL if number == signal.SIGINT and interrupted else number)
                interrupted = interrupted or number == signal.SIGINT
            self._note_failures(turn)
            if self._failed and asked == math.inf:
                asked = time.monotonic()
                if not self._signalled:
                    self._signal(signal.SIGTERM)
            # One that says 75 has saved or lost nothing, and the chief may still be saving.
            patience = self.stop_seconds * (1 if self._broken() else _SAVING)
            if time.monotonic() > asked + patience:
                self._signal(signal.SIGKILL)
            turn += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                running[0].wait(_POLL)
        self._note_failures(turn)

    def _note_failures(self, turn: int) -> None:
        known = {index for _, index in self._failed}
        self._failed += [(turn, i) for i, process in enumerate(self._processes) if process.poll() and i not in known]

    def _broken(self) -> bool:
        return any(self._processes[index].returncode != os.EX_TEMPFAIL for _, index in self._failed)

    def _report(self) -> int:
        if not self._failed:
            return 0
        _, first = min(self._failed, key=self._blame)
        code = self._processes[first].returncode
        status = 128 - code if code < 0 else code
        if status == os.EX_TEMPFAIL and self._signalled:
            return status
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {status}"
        print(f"keras-resnets: worker {first} {how}, and so all were stopped", file=sys.stderr)
        if first:
            print(f"the end of {self._log(first)}:", file=sys.stderr)
            for line in self._log(first).read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]:
                print(f"  {line}", file=sys.stderr)
        return status

    def _blame(self, failure: tuple[int, int]) -> tuple[bool, int, bool, int]:
        """The first is the one to report; those that stopped since another did, which may be killed, come behind it."""
        turn, index = failure
        code = self._processes[index].returncode
        return code == os.EX_TEMPFAIL, turn, code > 0, index


def _die_with_parent() -> Callable[[], None] | None:
    """What a child runs so that the kernel kills it when this process ends; Linux has that, others do not."""
    if not sys.platform.startswith("linux"):
        return None
    # Looked up here: after the fork little is safe to do.
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(os.EX_TEMPFAIL)

    return prepare
