"""Writes files and folders so that a crash never leaves half of one.

A file is replaced in one step. A folder takes two renames: a crash between them leaves the old one beside its
place, in a folder whose name starts with ".writing-old-".
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; on success it takes the place of `path`, on failure it disappears."""
    target = Path(path)
    draft = target.with_name(f".writing-{uuid.uuid4().hex[:8]}{target.suffix}")
    with _parents(target):
        try:
            draft.touch(exist_ok=False)
            yield draft
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
    draft = target.with_name(f".writing-{target.name}-{uuid.uuid4().hex[:8]}")
    with _parents(target):
        try:
            draft.mkdir()
            yield draft
            for item in (*draft.rglob("*"), draft):
                _sync(item)
            if target.exists() and not overwrite:  # somebody else was faster
                raise FileExistsError(target)
            _swap(draft, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


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
    if not target.exists():
        draft.rename(target)
        return
    aside = target.with_name(f".writing-old-{target.name}-{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    target.rename(aside / "old")
    try:
        draft.rename(target)
    except BaseException:
        (aside / "old").rename(target)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
