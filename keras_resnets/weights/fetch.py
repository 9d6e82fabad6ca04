"""Downloads pretrained weights and verifies them.

A file is used only when its bytes are those that were published: every load hashes it, against the ledger's hash
or the SHA-256 that the Hugging Face hub announces, and against our own SHA-256 of the first verified load.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from keras_resnets.atomic import atomic_file
from keras_resnets.extras import extra
from keras_resnets.machine import cache_folder
from keras_resnets.quiet import quiet
from keras_resnets.weights.faults import explained, retried
from keras_resnets.weights.records import Weights, WeightsError

_KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"
_PACKAGE = Path(__file__).parent  # of this package's own weights
_TIMEOUT = 30.0  # seconds without a byte from keras.applications' host; the hub's is HF_HUB_DOWNLOAD_TIMEOUT
_ABANDONED = 3600.0  # seconds after which a partial file has no process that still writes it
_SHA256 = re.compile(r"[0-9a-f]{64}")


class _DamagedError(WeightsError):
    """The file's bytes are not those that were published; a new download may mend it."""


class _UnknownError(WeightsError):
    """There is no hash to compare the file with."""


def cached(weights: Weights) -> Path | None:
    """The file of a record, if it was downloaded before; its hash is not checked and no network is used."""
    if weights.source in ("keras", "package"):
        path = (_PACKAGE / weights.repository if weights.source == "package" else cache_folder()) / weights.file
        return path if path.is_file() else None
    with extra("pretrained"):
        from huggingface_hub import try_to_load_from_cache
    found = try_to_load_from_cache(weights.repository, weights.file, cache_dir=_hub_cache(), revision=weights.revision)
    return Path(found) if isinstance(found, str) else None


def verify(weights: Weights, path: str | Path | None = None) -> str:
    """Check a file against the hash of its record.

    Args:
        weights: the record.
        path: the file; None takes the one in the cache.

    Returns:
        The hash that it was compared with, "sha256:…" or "md5:…".

    Raises:
        WeightsError: when the file is missing, differs, or has no hash to compare it with.
    """
    file = cached(weights) if path is None else Path(path)
    if file is None:
        raise WeightsError(f"{weights.name} is not in the cache; download it first")
    return _check(weights, file)[0]


def download(weights: Weights, *, progress: bool = True) -> Path:
    """The verified file of a record, from the cache or else from its host.

    Files of the Hugging Face hub go into the cache that timm and transformers share (HF_HOME, HF_HUB_CACHE), and
    HF_ENDPOINT and HF_HUB_OFFLINE hold; those of keras.applications into $KERAS_RESNETS_CACHE/keras_resnets or the
    user's cache, from the mirror $KERAS_RESNETS_KERAS_URL if that is set. What is in the cache and verified is used
    without asking the host. Several processes may do this at once.

    Args:
        weights: the record.
        progress: show a bar on stderr (the hub's on a terminal alone).

    Raises:
        WeightsError: when it cannot be downloaded, or is not what was published. Nothing that could be taken for
            the weights is left behind.
        MissingExtraError: without the extra "pretrained".
    """
    if weights.source == "package":
        return _of_package(weights)
    _remembered()  # unreadable, it would fail after the download
    path = cached(weights)
    if path is not None:
        with suppress(_UnknownError):  # the hub is asked for its hash below
            try:
                return _accepted(weights, path)
            except _DamagedError:
                _discard(path)
    path, announced = (_from_keras if weights.source == "keras" else _from_hub)(weights, progress)
    try:
        return _accepted(weights, path, announced)
    except WeightsError:
        _discard(path)
        raise


def _of_package(weights: Weights) -> Path:
    path = cached(weights)
    if path is None:
        raise WeightsError(f"{weights.name} is missing in the installed package: install keras-resnets again")
    _check(weights, path)
    return path


# What a file is compared with.


def _accepted(weights: Weights, path: Path, announced: str | None = None) -> Path:
    """The path, once its file is verified and remembered."""
    _, sha256 = _check(weights, path, announced)
    _remember(weights, sha256)
    return path


def _check(weights: Weights, path: Path, announced: str | None = None) -> tuple[str, str]:
    """The hash that the file was compared with, and its SHA-256."""
    published = weights.hash or announced or _linked_hash(path)
    digests = _digests(weights, path, {"sha256", (published or "sha256").partition(":")[0]})
    ours = _remembered().get(_key(weights))
    expected = published or ours
    if expected is None:
        raise _UnknownError(f"{weights.name}: there is no published hash to compare {path} with")
    if expected not in digests:
        raise _DamagedError(
            f"{weights.name}: {path} is damaged or was replaced: expected {expected}, found {', '.join(digests)}"
        )
    if ours and ours not in digests and not _pinned(weights):
        raise WeightsError(_changed(weights, ours, digests[-1]))
    return expected, digests[-1]


def _digests(weights: Weights, path: Path, algorithms: set[str]) -> list[str]:
    """The file's hashes, its SHA-256 last."""
    hashes = [hashlib.new(name, usedforsecurity=False) for name in sorted(algorithms)]  # "md5" before "sha256"
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                for one in hashes:
                    one.update(block)
    except OSError as error:
        raise WeightsError(f"{weights.name}: {path} cannot be read: {error}") from error
    return [f"{one.name}:{one.hexdigest()}" for one in hashes]


def _linked_hash(path: Path) -> str | None:
    """The SHA-256 that the hub announced, by which its cache names the file that a snapshot links to."""
    if not path.is_symlink():
        return None
    name = path.readlink().name  # one step: the blob may itself be a link into a store with names of another kind
    return f"sha256:{name}" if _SHA256.fullmatch(name) else None


def _pinned(weights: Weights) -> bool:
    return weights.hash is not None and weights.hash.startswith("sha256:")


def _changed(weights: Weights, ours: str, theirs: str) -> str:
    return (
        f"{weights.name} is another file than the one first loaded here ({ours}, now {theirs}): its publisher "
        f"replaced it, or somebody else did; if you trust the new one, remove the old hash from {_ours()}"
    )


def _key(weights: Weights) -> str:
    return f"{weights.repository}/{weights.file}" + (f"@{weights.revision}" if weights.revision else "")


def _ours() -> Path:
    return cache_folder() / "sha256.json"


def _remembered() -> dict[str, str]:
    """Our own hashes of the first verified loads."""
    try:
        known = json.loads(_ours().read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"{_ours()} cannot be read ({error}); delete it to start anew") from error
    if not isinstance(known, dict):
        raise WeightsError(f"{_ours()} is not a table of hashes; delete it to start anew")
    return known


def _remember(weights: Weights, sha256: str) -> None:
    if _remembered().get(_key(weights)) == sha256:
        return
    with extra("pretrained"):
        from huggingface_hub.utils import WeakFileLock
    # A cache that cannot be written to is no obstacle: the check against the publisher's hash stands.
    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        with WeakFileLock(cache_folder() / "sha256.lock"):
            known = _remembered()
            ours = known.setdefault(_key(weights), sha256)
            if ours != sha256 and not _pinned(weights):
                raise WeightsError(_changed(weights, ours, sha256))
            with atomic_file(_ours()) as draft:
                draft.write_text(json.dumps({**known, _key(weights): sha256}, indent=1, sort_keys=True))


def _discard(path: Path) -> None:
    """Remove a file and, when it is a link, everything that it links to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink(missing_ok=True)
        path = target
    path.unlink(missing_ok=True)


# Where files come from.


def _from_hub(weights: Weights, progress: bool) -> tuple[Path, str | None]:
    """The file in the hub's cache, and the SHA-256 that the hub announced for it."""
    with extra("pretrained"):
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT
    place: dict[str, Any] = {
        "repo_id": weights.repository,
        "filename": weights.file,
        "revision": weights.revision,
        "endpoint": endpoint,
    }
    cache = _hub_cache() or constants.HF_HUB_CACHE
    blobs = Path(cache) / f"models--{weights.repository.replace('/', '--')}" / "blobs"
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES:
        raise WeightsError(
            f"{weights.name} is not in the cache ({cache}), or nothing there tells its hash, and HF_HUB_OFFLINE "
            "forbids its download; unset that, or copy the cache of a machine that has it"
        )
    with explained(weights, endpoint):
        # Asked first, and briefly: hf_hub_download waits half a minute for a host that is not there.
        head = retried(lambda: get_hf_file_metadata(hf_hub_url(**place), timeout=constants.HF_HUB_ETAG_TIMEOUT))
    announced = f"sha256:{head.etag}" if _SHA256.fullmatch(head.etag or "") else None
    _expect(weights, endpoint, announced)
    # huggingface_hub 2.4 resumes within one call and keeps nothing; 0.30 and 1.0 keep this and resume it later.
    partial = blobs / f"{head.etag}.incomplete"
    with explained(weights, endpoint, partial), _bars(progress):
        path = Path(retried(lambda: hf_hub_download(**place, cache_dir=cache), partial.is_file))
    _sweep(blobs, f"{head.etag}*.incomplete")
    return path, announced


def _expect(weights: Weights, endpoint: str, announced: str | None) -> None:
    """Refuse to download a file that is not the one that the ledger knows or that was first loaded here."""
    ours = _remembered().get(_key(weights))
    if announced and weights.hash and announced != weights.hash:
        raise WeightsError(
            f"{weights.name}: {endpoint} offers another file than the one that is known here (expected "
            f"{weights.hash}, offered {announced}), so nothing was downloaded; a newer release may know it"
        )
    if announced and ours and announced != ours and not weights.hash:
        raise WeightsError(_changed(weights, ours, announced))


def _from_keras(weights: Weights, progress: bool) -> tuple[Path, str | None]:
    """The file in our own cache; its MD5 is the ledger's."""
    with extra("pretrained"):
        import pooch
    base = (os.environ.get("KERAS_RESNETS_KERAS_URL") or _KERAS_URL).rstrip("/")
    downloader = pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 20, timeout=_TIMEOUT)
    # It prints a line per download, bar or no bar.
    with quiet(pooch.get_logger(), logging.WARNING), explained(weights, base):
        path = retried(
            lambda: pooch.retrieve(
                f"{base}/{weights.repository}/{weights.file}",
                known_hash=weights.hash,
                fname=weights.file,
                path=cache_folder(),
                downloader=downloader,
            )
        )
    _sweep(cache_folder(), "tmp*")
    return Path(path), None


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Show or hide the hub's progress bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _sweep(folder: Path, pattern: str) -> None:
    """Remove the partial files of processes that were killed; younger ones may belong to a living process."""
    for file in folder.glob(pattern):
        with suppress(OSError):
            if time.time() - file.stat().st_mtime > _ABANDONED:
                file.unlink()


def _hub_cache() -> str | None:
    """The hub's cache as the environment says now; None for its default."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return str(Path(chosen).expanduser())
    if home := os.environ.get("HF_HOME"):
        return str(Path(home).expanduser() / "hub")
    return None
