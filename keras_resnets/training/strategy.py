"""Chooses the tf.distribute strategy, from one device to several machines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from keras_resnets.extras import extra
from keras_resnets.training.cluster import Cluster, find_cluster
from keras_resnets.training.config import TrainingError
from keras_resnets.training.watch import PEER_TIMEOUT, Peers

with extra("tensorflow"):
    import tensorflow as tf

STRATEGIES = ("auto", "single", "mirrored", "multi-worker")


def make_strategy(name: str = "auto", peer_timeout: float = PEER_TIMEOUT) -> Any:
    """The strategy called `name`.

    "single": one device. "mirrored": all GPUs of this machine, or its logical CPUs where it has none.
    "multi-worker": several processes, each of which is told by TF_CONFIG or SLURM who they are; one replica for
    each of its GPUs, or one in all where it has none (TensorFlow uses no further logical CPUs here). "auto":
    multi-worker when several workers are described, else mirrored when there are several GPUs, else single.

    Multi-worker must come before TensorFlow runs anything. It waits for the other workers; from then on this
    process ends, with status 75, when one of them does (see `Peers`).

    Args:
        name: one of these.
        peer_timeout: seconds without a sign of life after which a worker is given up.

    Raises:
        TrainingError: for another name, a wrong description of the workers, or workers that do not fit together.
        PeerError: when another worker does not start.
    """
    if name not in STRATEGIES:
        raise TrainingError(f"strategy must be one of {', '.join(STRATEGIES)}, not {name!r}")
    cluster = find_cluster() if name in ("auto", "multi-worker") else None
    if name == "multi-worker" and cluster is None:
        raise TrainingError(
            "strategy multi-worker needs to be told of the workers: set TF_CONFIG, start with SLURM's srun, or try it "
            "on one machine with keras-resnets launch --workers 2 -- train …"
        )
    if cluster and (name == "multi-worker" or len(cluster.workers) > 1):
        return _multi_worker(cluster, peer_timeout)
    gpus = tf.config.list_logical_devices("GPU")
    if name == "single" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in gpus or tf.config.list_logical_devices("CPU")])


def check_batch_size(batch_size: int, strategy: Any) -> None:
    """Raise TrainingError when there are more replicas than images in a global batch."""
    replicas = strategy.num_replicas_in_sync
    if batch_size < replicas:
        raise TrainingError(f"batch_size {batch_size} leaves some of {replicas} replicas without an image")


def shard(strategy: Any) -> tuple[int, int, int]:
    """(first, count, total): the replicas that this process feeds, of all replicas."""
    count = _local_replicas(strategy)
    return _worker(strategy) * count, count, strategy.num_replicas_in_sync


def is_chief(strategy: Any) -> bool:
    """Whether this process is the one that writes files."""
    return _worker(strategy) == 0


def several_workers(strategy: Any) -> bool:
    """Whether other processes train along."""
    return _local_replicas(strategy) < strategy.num_replicas_in_sync


@contextmanager
def watching_peers(strategy: Any, timeout: float | None = None) -> Iterator[None]:
    """Inside, this process ends with status 75 when another worker does not live any more; see `Peers`.

    Leaving tells the others that this worker is done; leaving with an error tells them which.

    Args:
        strategy: of `make_strategy`; with one that has no other workers nothing happens.
        timeout: seconds without a sign of life after which a worker is given up; by default `make_strategy`'s.
    """
    peers = getattr(strategy.cluster_resolver, "peers", None)
    if peers is None:
        yield
        return
    peers.timeout = timeout or peers.timeout
    with peers:
        yield


class _Resolver(tf.distribute.cluster_resolver.SimpleClusterResolver):
    """Tells the strategy who the workers are, and keeps the watch over them."""

    def __init__(self, cluster: Cluster, gpus: int, peers: Peers) -> None:
        # Chief or not is decided by the index: TensorFlow takes worker 0 for the chief when none is named.
        super().__init__(
            tf.train.ClusterSpec({"worker": list(cluster.workers)}),
            task_type="worker",
            task_id=cluster.index,
            num_accelerators={"GPU": gpus},
            rpc_layer="grpc",
        )
        self.peers = peers


def _worker(strategy: Any) -> int:
    resolver = strategy.cluster_resolver
    return resolver.task_id if isinstance(resolver, _Resolver) else 0


def _local_replicas(strategy: Any) -> int:
    # The default strategy refuses to name its device.
    return 1 if strategy.num_replicas_in_sync == 1 else len(strategy.extended.worker_devices)


def _multi_worker(cluster: Cluster, peer_timeout: float) -> Any:
    gpus = _take_gpus(cluster)
    # TensorFlow waits for missing workers without end, and takes their number of GPUs for its own.
    peers = Peers(cluster, replicas=max(len(gpus), 1), timeout=peer_timeout)
    peers.meet()
    _set_heartbeat(cluster, peer_timeout)
    communication = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=communication.NCCL if gpus else communication.RING
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(_Resolver(cluster, len(gpus), peers), options)
    except RuntimeError as error:
        if "startup" not in str(error):
            raise
        raise TrainingError(
            "strategy multi-worker must be made before TensorFlow runs anything in this process; make it first"
        ) from error


def _take_gpus(cluster: Cluster) -> list[Any]:
    """The GPUs that this process uses; hides those that belong to other workers of the machine."""
    gpus = tf.config.list_physical_devices("GPU")
    if cluster.share is None or len(gpus) < 2:
        return gpus
    place, number = cluster.share
    if len(gpus) % number:
        raise TrainingError(f"{number} workers of this machine cannot share its {len(gpus)} GPUs equally")
    each = len(gpus) // number
    mine = gpus[place * each : (place + 1) * each]
    tf.config.set_visible_devices(mine, "GPU")
    return mine


def _set_heartbeat(cluster: Cluster, seconds: float) -> None:
    """Let TensorFlow, too, wait that long: it gives a silent worker up after 10 s, and has no public setting."""
    with suppress(ImportError, AttributeError, TypeError):  # as other versions may answer
        from tensorflow.python.eager import context

        own = context.context()
        if own.coordination_service is not None:
            return
        jobs = tf.compat.v1.ConfigProto().experimental.coordination_config.coordinated_job_list
        jobs.add(name="worker", num_tasks=len(cluster.workers))
        own.configure_coordination_service(
            service_type="standalone",
            service_leader="/job:worker/replica:0/task:0",
            heartbeat_timeout_in_ms=round(seconds * 1000),
            coordinated_jobs=list(jobs),
        )
