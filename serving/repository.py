"""The models that are served, by name and version: loaded, replaced under load, and unloaded.

What may be loaded is found when the server starts, and again at each load: bundles and ONNX files that were named, and
those in the folders of a repository. Names from requests are looked up among these, and never become paths.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from keras_resnets.bundle import MANIFEST

from .served import ServedModel, Settings
from .tuned import applied

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
Observe = Callable[[str, str, int, float], None]


class UnknownModelError(LookupError):
    """No model of that name or version."""


class NotReadyError(RuntimeError):
    """A model that exists and is not loaded."""


class RepositoryError(ValueError):
    """What was named cannot be served."""


@dataclass
class _Entry:
    """A version of a model: where it is, and what became of it."""

    source: Path
    model: ServedModel | None = None
    state: str = "UNAVAILABLE"  # as the protocol calls it: READY, LOADING, UNAVAILABLE
    reason: str = "not loaded"
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Repository:
    """See the module.

    Args:
        named: bundles and ONNX files: PATH, or NAME=PATH. The name is by default the folder's or the file's.
        folder: a repository: FOLDER/NAME is a bundle or holds model.onnx, or FOLDER/NAME/VERSION does.
        settings: how models are run.
        observe: called with (name, version, rows, seconds) after each batch.

    Attributes:
        ready: whether all that was there at the start has been loaded.

    Raises:
        RepositoryError: when something named does not exist, or two have one name.
    """

    def __init__(
        self,
        named: Iterable[str],
        folder: Path | None,
        settings: Settings,
        observe: Observe = lambda name, version, rows, seconds: None,
    ) -> None:
        self._named = _named(named)
        self._folder = folder.resolve() if folder else None
        if self._folder and not self._folder.is_dir():
            raise RepositoryError(f"the repository {folder} is not a folder")
        self._settings, self._observe = settings, observe
        self._entries: dict[str, dict[str, _Entry]] = {}
        self._closing: set[threading.Thread] = set()
        self.ready = False
        self._scan()
        if not self._entries and not self._folder:
            raise RepositoryError("nothing to serve: name a bundle, an ONNX file or a repository")

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """A loaded model; without a version its newest.

        Raises:
            UnknownModelError, NotReadyError: see there.
        """
        versions = self._versions(name)
        if version is not None:
            if version not in versions:
                raise UnknownModelError(f"model {name} has no version {version}; it has {', '.join(versions)}")
            entry = versions[version]
            if entry.model is None:
                raise NotReadyError(f"version {version} of model {name} is not ready: {entry.reason}")
            return entry.model
        for entry in reversed(versions.values()):
            if entry.model is not None:
                return entry.model
        raise NotReadyError(f"model {name} is not ready: {next(reversed(versions.values())).reason}")

    def versions(self, name: str) -> list[str]:
        """The versions that answer, oldest first.

        Raises:
            UnknownModelError: see there.
        """
        return [version for version, entry in self._versions(name).items() if entry.model is not None]

    def index(self, ready: bool = False) -> list[dict[str, str]]:
        """Every version of every model, or those that are ready, as the protocol's repository index lists them."""
        return [
            {"name": name, "version": version, "state": entry.state, "reason": "" if entry.model else entry.reason}
            for name, versions in self._entries.items()
            for version, entry in versions.items()
            if not ready or entry.state == "READY"
        ]

    def models(self) -> list[ServedModel]:
        """All that are loaded."""
        return [
            entry.model for versions in self._entries.values() for entry in versions.values() if entry.model is not None
        ]

    async def load_all(self) -> None:
        """Load everything.

        Raises:
            Exception: what went wrong with the first that cannot be loaded.
        """
        for name in list(self._entries):
            await self.load(name)
        self.ready = True

    async def load(self, name: str) -> None:
        """Load a model's versions anew, as they are on the disk now. Each serves on until its successor is warm; where
        that cannot be loaded, the old one stays.

        Raises:
            UnknownModelError: when there is none of that name.
            Exception: why a version could not be loaded.
        """
        self._scan()
        failed: Exception | None = None
        for version, entry in list(self._versions(name).items()):
            async with entry.lock:
                try:
                    await self._load(name, version, entry)
                except Exception as error:
                    _LOG.error("model %s version %s cannot be loaded: %s", name, version, error)
                    failed = failed or error
        if failed:
            raise failed

    async def unload(self, name: str) -> None:
        """Take a model out of service; what it accepted is answered.

        Raises:
            UnknownModelError: see there.
        """
        for entry in self._versions(name).values():
            async with entry.lock:
                model, entry.model, entry.state, entry.reason = entry.model, None, "UNAVAILABLE", "unloaded"
            self._retire(model)

    def close(self, timeout: float) -> bool:
        """Answer what was accepted, and stop; returns whether all of it was done in time."""
        done = True
        for versions in self._entries.values():
            for entry in versions.values():
                if entry.model is not None:
                    done = entry.model.close(timeout) and done
                    entry.model = None
        for thread in list(self._closing):
            thread.join(timeout)
            done = done and not thread.is_alive()
        return done

    async def _load(self, name: str, version: str, entry: _Entry) -> None:
        if entry.model is None:
            entry.state, entry.reason = "LOADING", "loading"
        try:
            fresh = await asyncio.to_thread(self._open, name, version, entry.source)
        except Exception as error:
            entry.reason = str(error)
            if entry.model is None:
                entry.state = "UNAVAILABLE"
            raise
        old, entry.model, entry.state, entry.reason = entry.model, fresh, "READY", ""
        _LOG.info("model %s version %s is ready after %.2f s", name, version, fresh.load_seconds)
        self._retire(old)

    def _open(self, name: str, version: str, source: Path) -> ServedModel:
        settings, found = applied(self._settings, source)
        if found:
            _LOG.info("model %s version %s: %s", name, version, found)
        return ServedModel(
            name, version, source, settings, lambda rows, seconds: self._observe(name, version, rows, seconds)
        )

    def _retire(self, model: ServedModel | None) -> None:
        if model is None:
            return

        def close() -> None:
            model.close()
            self._closing.discard(thread)

        thread = threading.Thread(target=close, name=f"retire-{model.name}", daemon=True)
        self._closing.add(thread)
        thread.start()

    def _versions(self, name: str) -> dict[str, _Entry]:
        if name not in self._entries:
            raise UnknownModelError(f"there is no model {name}; there are {', '.join(self._entries) or 'none'}")
        return self._entries[name]

    def _scan(self) -> None:
        """Find what may be loaded; what is gone from the disk stays as long as it is loaded."""
        found: dict[str, dict[str, Path]] = {name: {"1": path} for name, path in self._named.items()}
        for name, paths in _in_folder(self._folder).items():
            if name in self._named:
                raise RepositoryError(f"model {name} is named, and in the repository as well")
            found[name] = paths
        for name, sources in found.items():
            known = self._entries.setdefault(name, {})
            for version, source in sources.items():
                known.setdefault(version, _Entry(source))
            self._entries[name] = dict(sorted(known.items(), key=lambda item: int(item[0])))
        for name, versions in list(self._entries.items()):
            for version, entry in list(versions.items()):
                if entry.model is None and version not in found.get(name, {}):
                    del versions[version]
            if not versions:
                del self._entries[name]


def _named(items: Iterable[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for item in items:
        name, equals, rest = item.partition("=")
        path = Path(rest if equals else item)
        if not equals:
            name = path.resolve().stem if path.suffix == ".onnx" else path.resolve().name
        if not _NAME.fullmatch(name):
            raise RepositoryError(f"{name!r} is no name for a model (letters, digits, . _ -): give NAME={path}")
        if not _is_source(path):
            raise RepositoryError(f"{path} is neither a bundle (a folder with {MANIFEST}) nor an ONNX file")
        if name in found:
            raise RepositoryError(f"two models are called {name}: give NAME=PATH")
        found[name] = path.resolve()
    return found


def _in_folder(folder: Path | None) -> Mapping[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    for item in sorted(folder.iterdir()) if folder else ():
        if not _NAME.fullmatch(item.name) or not item.is_dir():
            continue
        versions = {inner.name: inner for inner in item.iterdir() if _VERSION.fullmatch(inner.name) and inner.is_dir()}
        sources = {version: _source(path) for version, path in versions.items()} if versions else {"1": _source(item)}
        if sources := {version: source for version, source in sources.items() if source}:
            found[item.name] = sources
    return found


def _source(folder: Path) -> Path | None:
    if (folder / MANIFEST).is_file():
        return folder
    graph = folder / "model.onnx"
    return graph if graph.is_file() else None


def _is_source(path: Path) -> bool:
    return (path / MANIFEST).is_file() or (path.suffix == ".onnx" and path.is_file())
