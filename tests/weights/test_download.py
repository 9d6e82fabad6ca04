"""Downloads from hosts that behave and hosts that do not: what is kept, what is removed, what is said."""

import dataclasses
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap

import pytest

from keras_resnets.extras import MissingExtraError
from keras_resnets.weights import WeightsError, cached, download, verify

pytest.importorskip("huggingface_hub")
pooch = pytest.importorskip("pooch")

# One process that downloads one record; the environment names the hosts and the caches.
WORKER = """
import dataclasses, sys
from keras_resnets import weights
from keras_resnets.weights import WeightsError, download, find_weights
{before}
record = dataclasses.replace(find_weights({model!r}, {tag!r}), revision=None, hash={hash!r})
try:
    print(download(record, progress=False))
except WeightsError as error:
    sys.exit(str(error))
"""


def worker(record, before=""):
    code = textwrap.dedent(WORKER).format(before=before, model=record.model, tag=record.tag, hash=record.hash)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def sha256(path):
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def served(hub):
    (data,) = hub.files.values()
    return data


def left(tmp_path):
    """Files that hold some of the weights, but for the one that older huggingface_hub keeps to resume."""
    files = [*(tmp_path / "hub").rglob("*"), *(tmp_path / "cache").rglob("*")]
    resumable = re.compile(r"[0-9a-f]{64}\.incomplete")
    return [
        file for file in files if file.is_file() and file.stat().st_size > 2000 and not resumable.fullmatch(file.name)
    ]


def refused(weights, message):
    with pytest.raises(WeightsError, match=message) as caught:
        download(weights, progress=False)
    assert str(caught.value).startswith(weights.name)
    assert cached(weights) is None
    return caught.value


# What goes well.


def test_a_download_is_verified_remembered_and_found_again(hub, weights, tmp_path):
    assert cached(weights) is None
    path = download(weights, progress=False)
    assert path.read_bytes() == served(hub)
    assert cached(weights) == path
    remembered = json.loads((tmp_path / "cache" / "keras_resnets" / "sha256.json").read_text())
    assert list(remembered.values()) == [sha256(path)]
    asked = len(hub.requests)
    assert download(weights, progress=False) == path
    assert len(hub.requests) == asked  # the second load asks nobody


def test_safetensors_arrive_as_arrays(torch_weights):
    from safetensors.numpy import load_file

    assert load_file(download(torch_weights, progress=False))["conv1.weight"].shape == (100, 1000)


def test_the_hubs_redirect_to_another_host_is_followed(hub, torch_weights):
    hub.mode = "redirect"
    assert download(torch_weights, progress=False).read_bytes() == served(hub)
    assert any(path.startswith("/elsewhere/") for _, path, _ in hub.requests)


def test_a_pinned_commit_is_asked_for(hub, stand_in, torch_weights):
    pinned = dataclasses.replace(torch_weights, revision=stand_in.COMMIT)
    path = download(pinned, progress=False)
    assert cached(pinned) == path
    assert all(f"/resolve/{stand_in.COMMIT}/" in asked for _, asked, _ in hub.requests)


def test_a_download_of_timm_is_used(hub, torch_weights, tmp_path):
    from huggingface_hub import hf_hub_download

    theirs = hf_hub_download(torch_weights.repository, torch_weights.file, endpoint=hub.url, cache_dir=tmp_path / "hub")
    hub.mode = 503
    assert str(download(torch_weights, progress=False)) == theirs


def test_a_mirror_without_the_hubs_hash_is_checked_against_the_ledger(hub, torch_weights):
    ledger = dataclasses.replace(torch_weights, hash=f"sha256:{hashlib.sha256(served(hub)).hexdigest()}")
    assert verify(ledger, download(ledger, progress=False)) == ledger.hash


@pytest.mark.parametrize("progress", [False, True])
def test_the_bar_can_be_hidden(weights, progress, capfd, monkeypatch):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # the hub's bar without a terminal
    download(weights, progress=progress)
    assert ("100%" in capfd.readouterr().err) is progress
    from huggingface_hub.utils import are_progress_bars_disabled

    assert not are_progress_bars_disabled()


def test_two_processes_at_once(weights, tmp_path):
    both = [worker(weights), worker(weights)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
    assert verify(weights)
    assert len(json.loads((tmp_path / "cache" / "keras_resnets" / "sha256.json").read_text())) == 1


def test_a_connection_that_breaks_once_is_resumed(hub, torch_weights):
    hub.mode = "gone once"
    assert download(torch_weights, progress=False).read_bytes() == served(hub)
    first, second = hub.asked("GET")
    assert first is None
    start = int(second.removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= len(served(hub)) // 2


def test_a_connection_that_breaks_once_is_tried_again(hub, keras_weights):
    hub.mode = "gone once"
    assert download(keras_weights, progress=False).read_bytes() == served(hub)
    assert len(hub.asked("GET")) == 2


# What goes wrong with the file.


def test_a_file_that_breaks_off_each_time_is_an_error(hub, weights, tmp_path):
    hub.mode = "truncated"
    error = refused(weights, "broke off before the file was complete")
    assert error.__cause__ is not None
    assert left(tmp_path) == []
    hub.mode = "complete"
    assert download(weights, progress=False).read_bytes() == served(hub)


def test_a_corrupted_file_is_removed(hub, weights, tmp_path):
    hub.mode = "corrupted"
    refused(weights, "damaged")
    assert left(tmp_path) == []
    hub.mode = "complete"
    assert download(weights, progress=False).read_bytes() == served(hub)


def test_a_damaged_file_in_the_cache_is_downloaded_again(hub, weights):
    path = download(weights, progress=False)
    path.resolve().write_bytes(served(hub)[:-1])
    with pytest.raises(WeightsError, match="damaged or was replaced: expected"):
        verify(weights)
    assert download(weights, progress=False).read_bytes() == served(hub)


def test_a_damaged_file_is_removed_even_when_there_is_no_other(hub, weights, tmp_path):
    path = download(weights, progress=False)
    path.resolve().write_bytes(served(hub)[:-1])
    hub.mode = 503
    refused(weights, "HTTP 503")
    assert left(tmp_path) == []


def test_a_file_other_than_the_ledgers_is_not_even_downloaded(hub, torch_weights):
    strict = dataclasses.replace(torch_weights, hash="sha256:" + "0" * 64)
    refused(strict, "offers another file than .* nothing was downloaded")
    assert hub.asked("GET") == []


def test_a_file_that_the_publisher_replaced_is_an_error(hub, torch_weights, tmp_path):
    from huggingface_hub import hf_hub_download

    path = download(torch_weights, progress=False)
    (name,) = hub.files
    hub.files[name] = served(hub)[:-1] + b"x"
    path.unlink()
    refused(torch_weights, r"another file than the one first loaded here .* remove the old hash from .*sha256\.json")
    # The same when another program has already taken the new one; that program's file is left alone.
    theirs = hf_hub_download(torch_weights.repository, torch_weights.file, endpoint=hub.url, cache_dir=tmp_path / "hub")
    with pytest.raises(WeightsError, match="another file than the one first loaded here"):
        download(torch_weights, progress=False)
    assert os.path.exists(theirs)  # noqa: PTH110


def test_a_cache_without_links_is_compared_with_what_the_hub_says(hub, torch_weights, tmp_path, monkeypatch):
    """As on Windows, where a snapshot holds the file itself and nothing tells its hash."""
    path = download(torch_weights, progress=False)
    path.unlink()
    path.write_bytes(served(hub))
    assert verify(torch_weights) == sha256(path)  # our own hash of the first load
    monkeypatch.setenv("KERAS_RESNETS_CACHE", str(tmp_path / "other"))
    with pytest.raises(WeightsError, match="no published hash to compare"):
        verify(torch_weights)
    assert download(torch_weights, progress=False) == path
    assert verify(torch_weights) == sha256(path)


def test_verify_takes_any_path(weights, tmp_path):
    copy = tmp_path / "copy"
    copy.write_bytes(download(weights, progress=False).read_bytes())
    assert verify(weights, copy) == (weights.hash or sha256(copy))
    copy.write_bytes(b"no")
    with pytest.raises(WeightsError, match="damaged"):
        verify(weights, copy)
    with pytest.raises(WeightsError, match="cannot be read"):
        verify(weights, tmp_path / "nothing")


def test_verify_needs_a_file(weights):
    with pytest.raises(WeightsError, match="not in the cache; download it first"):
        verify(weights)


def test_our_own_hashes_must_be_readable(weights, tmp_path):
    download(weights, progress=False)
    (tmp_path / "cache" / "keras_resnets" / "sha256.json").write_text("{")
    with pytest.raises(WeightsError, match=r"sha256\.json cannot be read .* delete it"):
        download(weights, progress=False)


# What goes wrong on the way.


@pytest.mark.parametrize("missing", ["huggingface_hub", "pooch"])
def test_without_the_extra_the_pip_line_is_told(keras_weights, torch_weights, missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"keras-resnets\[pretrained\]"):
        download(keras_weights if missing == "pooch" else torch_weights, progress=False)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"private or gated \(HTTP 401\).*hf auth login"),
        (403, r"refused \(HTTP 403\)"),
        (404, r"not there \(HTTP 404\)"),
        (429, r"too many requests \(HTTP 429\). Wait"),
        (503, r"HTTP 503. Try again later"),
    ],
)
def test_a_host_that_refuses(hub, weights, status, message, tmp_path):
    hub.mode = status
    error = refused(weights, message)
    assert error.__cause__ is not None
    assert left(tmp_path) == []
    assert len(hub.requests) >= (3 if status == 503 else 1)  # what may pass is tried again


def test_a_host_that_is_not_there(hub, weights):
    hub.server.server_close()  # its port refuses connections now
    refused(weights, "cannot be reached")


def test_a_host_whose_name_is_unknown(weights, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
    monkeypatch.setenv("KERAS_RESNETS_KERAS_URL", "http://no-such-host.invalid")
    refused(weights, "no-such-host.invalid: the host cannot be reached")


def test_a_host_that_falls_silent(hub, weights, tmp_path):
    hub.mode = "stalled"
    refused(weights, "does not answer, or no longer")
    assert left(tmp_path) == []


def test_offline_takes_what_is_there(hub, torch_weights, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(torch_weights, "HF_HUB_OFFLINE forbids")
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    path = download(torch_weights, progress=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download(torch_weights, progress=False) == path


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_full_disk(weights, tmp_path):
    """A process that may write no file as large as this one, which fails as on a full disk or quota."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))"
    process = worker(weights, before=limit)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the disk is full, or a quota is reached. Free some space" in said
    assert left(tmp_path) == []


def test_a_disk_that_is_full_at_the_end(weights, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download._chmod_and_move", full)
    monkeypatch.setattr("shutil.move", full)
    refused(weights, "the disk is full")
    assert left(tmp_path) == []


def test_a_cache_that_cannot_be_written_to_is_no_obstacle(torch_weights, tmp_path, monkeypatch):
    path = download(torch_weights, progress=False)
    ours = tmp_path / "cache" / "keras_resnets" / "sha256.json"
    ours.unlink()

    def refuse(_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("keras_resnets.weights.fetch.atomic_file", refuse)
    assert download(torch_weights, progress=False) == path
    assert not ours.exists()


def test_partial_files_of_killed_processes_are_swept(hub, weights, tmp_path):
    blobs = tmp_path / "hub" / f"models--{weights.repository.replace('/', '--')}" / "blobs"
    name = f"{hashlib.sha256(served(hub)).hexdigest()}.1234abcd.incomplete"
    stale = [blobs / name, tmp_path / "cache" / "keras_resnets" / "tmpabcdefgh"][weights.source == "keras"]
    young = stale.with_name(stale.name.replace("abcd", "ffff", 1))
    for file in (stale, young):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    os.utime(stale, (0, 0))
    download(weights, progress=False)
    assert not stale.exists()
    assert young.exists()
