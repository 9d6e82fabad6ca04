"""Writes files and folders so that a crash never leaves half of one.

A file is replaced in one step, and on Linux a folder too. Elsewhere a folder takes two renames: a crash between
them leaves the old one beside its place, until the folder is written again. That also deletes what killed processes
left of it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_HERE = -100  # AT_FDCWD
_ABANDONED = 60.0  # seconds


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; on success it takes the place of `path`, on failure it disappears."""
    target = Path(path)
    draft = target.with_name(f".writing-{uuid.uuid4().hex[:8]}{target.suffix}")
    with _parents(target):
        try:
            draft.touch(exist_ok=False)
            mode = draft.stat().st_mode
            yield draft
            draft.chmod(mode)  # what writes by a rename of its own (safetensors does) leaves it to the owner alone
            _sync(draft)
            draft.replace(target)
            _sync(target.parent)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it takes the place of `path`, on failure it disappears.

    Raises:
        FileExistsError: when `path` exists and `overwrite` is false.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise FileExistsError(target)
    with _parents(target), _draft(target) as draft:
        yield draft
        for item in (*draft.rglob("*"), draft):
            _sync(item)
        if target.exists() and not overwrite:  # somebody else was faster
            raise FileExistsError(target)
        _swap(draft, target)
        _sync(target.parent)


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A new folder beside the target, which this process holds the lock of as long as it lives; deleted at the end."""
    _sweep(target)
    number = uuid.uuid4().hex[:8]
    draft, bare = (target.with_name(f"{_prefix(target, what)}{number}") for what in ("writing", "making"))
    try:
        bare.mkdir()
        with _locked(bare):
            bare.rename(draft)  # under this name it would be swept without a lock
            yield draft
    finally:
        for folder in (draft, bare):
            shutil.rmtree(folder, ignore_errors=True)


def _prefix(target: Path, what: str = "writing") -> str:
    return f".{what}-{target.name}-"


def _sweep(target: Path) -> None:
    """Delete what processes that are no more left of this folder; put back what they had set aside."""
    for aside in target.parent.glob(f"{escape(_prefix(target, 'replaced'))}????????"):
        if not target.exists():
            aside.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    for left in target.parent.glob(f"{escape(_prefix(target))}????????"):
        with suppress(OSError), _locked(left) as ours:
            if ours:
                shutil.rmtree(left, ignore_errors=True)
    for bare in target.parent.glob(f"{escape(_prefix(target, 'making'))}????????"):
        with suppress(OSError):
            if time.time() - bare.stat().st_mtime > _ABANDONED:
                bare.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, which ends with the process however it ends; yields whether it could be had."""
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:  # somebody else's, or a file system without locks
            held = False
        yield held
    finally:
        os.close(handle)


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Make the folders above a path; on failure remove those that were not there."""
    made = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody else uses it by now
                folder.rmdir()
        raise


def _swap(draft: Path, target: Path) -> None:
    """Put the draft in the target's place. What was there is in the draft's place then, or gone."""
    if not target.exists():
        draft.rename(target)
    elif not _exchange(draft, target):
        aside = target.with_name(f"{_prefix(target, 'replaced')}{uuid.uuid4().hex[:8]}")
        target.rename(aside)
        try:
            draft.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system cannot."""
    rename: Any = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    return bool(rename) and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
