"""Atomic writes: the old content or the new one, whatever happens in between."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from keras_resnets import atomic
from keras_resnets.atomic import atomic_file, atomic_folder


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def content(folder):
    return {item.relative_to(folder).as_posix(): item.read_text() for item in folder.rglob("*") if item.is_file()}


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "weights.txt"
    with atomic_file(target) as draft:
        draft.write_text("complete")
        assert not target.exists()
    assert target.read_text() == "complete"
    assert names(target.parent) == ["weights.txt"]


def test_the_draft_has_the_suffix_of_the_file(tmp_path):
    """Keras and NumPy choose the format by the suffix, or add one of their own."""
    with atomic_file(tmp_path / "model.keras") as draft:
        draft.write_text("x")
        assert draft.suffix == ".keras"


def test_a_file_is_replaced(tmp_path):
    target = tmp_path / "weights.txt"
    target.write_text("old")
    with atomic_file(str(target)) as draft:
        draft.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["weights.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "weights.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_file(target) as draft:
        draft.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["weights.txt"]


def test_a_failure_leaves_no_new_file(tmp_path):
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "weights.txt") as draft:
        draft.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_the_usual_permissions(tmp_path):
    """A temporary file is the owner's alone; what takes its place must be readable as the umask says."""
    old = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "file") as draft:
            draft.write_text("x")
        with atomic_file(tmp_path / "renamed") as draft:  # as safetensors writes
            descriptor, other = tempfile.mkstemp(dir=tmp_path)
            os.close(descriptor)
            Path(other).replace(draft)
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "renamed").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


def test_a_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "bundle"
    with atomic_folder(target) as draft:
        (draft / "deep").mkdir()
        (draft / "deep" / "a.txt").write_text("a")
        assert not target.exists()
    assert content(target) == {"deep/a.txt": "a"}
    assert names(target.parent) == ["bundle"]


def test_an_existing_folder_is_refused(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    with pytest.raises(FileExistsError, match="bundle"), atomic_folder(target):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["bundle"]


def test_a_folder_that_appeared_meanwhile_is_kept(tmp_path):
    """Two exports to one path: without overwrite, the second to finish must not destroy the first."""
    target = tmp_path / "bundle"
    with pytest.raises(FileExistsError), atomic_folder(target) as draft:
        (draft / "mine.txt").write_text("mine")
        target.mkdir()
        (target / "theirs.txt").write_text("theirs")
    assert content(target) == {"theirs.txt": "theirs"}
    assert names(tmp_path) == ["bundle"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with atomic_folder(target, overwrite=True) as draft:
        (draft / "new.txt").write_text("new")
        assert content(target) == {"old.txt": "old"}
    assert content(target) == {"new.txt": "new"}
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_leaves_the_old_folder(tmp_path, existing):
    target = tmp_path / "bundle"
    if existing:
        target.mkdir()
        (target / "old.txt").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target, overwrite=True) as draft:
        (draft / "half.txt").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == (["bundle"] if existing else [])
    assert not existing or content(target) == {"old.txt": "old"}


def kill_while_writing(code, target):
    """Run code that writes within an atomic block, and kill it without warning before the block ends."""
    script = f"""
import sys, time
from keras_resnets.atomic import atomic_file, atomic_folder

def written():
    print("written", flush=True)
    time.sleep(600)

target = sys.argv[1]
{code}
"""
    command = [sys.executable, "-c", script, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "written\n"
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_killed_process_leaves_the_old_file(tmp_path):
    target = tmp_path / "weights.txt"
    target.write_text("old")
    kill_while_writing("with atomic_file(target) as draft:\n    draft.write_text('half')\n    written()", target)
    assert target.read_text() == "old"
    with atomic_file(target) as draft:
        draft.write_text("new")
    assert target.read_text() == "new"


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_killed_process_leaves_the_old_folder(tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old.txt").write_text("old")
    code = (
        "with atomic_folder(target, overwrite=True) as draft:\n    (draft / 'half.txt').write_text('x')\n    written()"
    )
    kill_while_writing(code, target)
    assert content(target) == {"old.txt": "old"}
    with atomic_folder(target, overwrite=True) as draft:
        (draft / "new.txt").write_text("new")
    assert content(target) == {"new.txt": "new"}
    assert names(tmp_path) == ["bundle"]  # what the killed one left is gone


def test_the_draft_of_a_living_process_is_left_alone(tmp_path):
    with atomic_folder(tmp_path / "bundle") as first:
        (first / "first.txt").write_text("first")
        with atomic_folder(tmp_path / "bundle", overwrite=True) as second:
            (second / "second.txt").write_text("second")
        assert content(first) == {"first.txt": "first"}
        shutil.rmtree(tmp_path / "bundle")
    assert content(tmp_path / "bundle") == {"first.txt": "first"}


@pytest.fixture
def no_exchange(monkeypatch):
    """As on a system that cannot exchange two folders."""
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)


def test_without_an_exchange_a_folder_is_replaced_too(tmp_path, no_exchange):
    test_a_folder_is_replaced_as_a_whole(tmp_path)


def test_what_a_crash_between_two_renames_set_aside_comes_back(tmp_path, no_exchange, monkeypatch):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old.txt").write_text("old")
    # No handler runs in a process that is killed: the old folder stays aside.
    target.rename(tmp_path / ".replaced-bundle-01234567")
    with pytest.raises(RuntimeError), atomic_folder(target, overwrite=True):
        raise RuntimeError
    assert content(target) == {"old.txt": "old"}
    assert names(tmp_path) == ["bundle"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges folders")
def test_on_linux_a_replaced_folder_is_there_at_every_moment(tmp_path):
    """One process replaces it as fast as it can, and this one reads it meanwhile."""
    target = tmp_path / "bundle"
    code = """
import sys
import tempfile
from pathlib import Path
from keras_resnets.atomic import atomic_folder
for i in range(100):
    with atomic_folder(sys.argv[1], overwrite=True) as draft:
        (draft / "a").write_text(str(i))
        (draft / "b").write_text(str(i))
"""
    with atomic_folder(target) as draft:
        (draft / "a").write_text("x")
        (draft / "b").write_text("x")
    missing = 0
    with subprocess.Popen([sys.executable, "-c", code, str(target)]) as process:
        while process.poll() is None:
            missing += not target.is_dir()
    assert process.returncode == 0
    assert not missing
    assert content(target) == {"a": "99", "b": "99"}


def test_an_empty_draft_of_a_killed_process_is_deleted_too(tmp_path):
    target = tmp_path / "bundle"
    kill_while_writing("with atomic_folder(target) as draft:\n    written()", target)
    assert [name.startswith(".writing-bundle-") for name in names(tmp_path)] == [True]
    with atomic_folder(target):
        pass
    assert names(tmp_path) == ["bundle"]


def test_a_folder_within_a_draft(tmp_path):
    with atomic_folder(tmp_path / "outer") as outer, atomic_folder(outer / "inner") as inner:
        (inner / "a.txt").write_text("a")
    assert content(tmp_path / "outer") == {"inner/a.txt": "a"}
