"""Keeps what `keras-resnets tune` found: in the user's cache, for one bundle on one machine. A bundle is sealed."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keras_resnets.atomic import atomic_file
from keras_resnets.bundle import MANIFEST, sha256
from keras_resnets.machine import cache_folder
from keras_resnets.untrusted import parse_json

from .conditions import conditions, fingerprint
from .served import Settings

_LOG = logging.getLogger(__name__)
FORMAT, FORMAT_VERSION = "keras-resnets-tuned", 1
# The settings that are found; the others say what the server's owner wants.
FOUND = ("provider", "precision", "threads", "workers", "max_batch", "queue_delay", "cuda_graphs")


@dataclass(frozen=True)
class Tuned:
    """What was found.

    Args:
        settings: values of `FOUND`.
        target: "latency" or "throughput".
        evidence: what was measured of it, and of ONNX Runtime's defaults.
        date: of the search, as 2026-01-31.
    """

    settings: Mapping[str, Any]
    target: str
    evidence: Mapping[str, Any]
    date: str

    def __str__(self) -> str:
        return f"tuned for {self.target} on {self.date}: {settings_text(self.settings)}"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings for people, in a line."""
    parts = [f"{settings['precision']} on {settings['provider']}"]
    if settings["provider"] in ("cpu", "openvino"):
        parts.append(f"{settings['workers']} × {settings['threads']} threads")
    parts.append(f"batches to {settings['max_batch']}")
    parts.append(f"queue delay {1e3 * settings['queue_delay']:g} ms")
    return ", ".join([*parts, *["CUDA graphs"] * bool(settings.get("cuda_graphs"))])


def keep(bundle: Path, found: Tuned) -> Path:
    """Store what was found for this bundle on this machine; returns the file."""
    file = _file(bundle)
    data = {
        "format": FORMAT, "format_version": FORMAT_VERSION, "settings": dict(found.settings), "target": found.target,
        "evidence": dict(found.evidence), "date": found.date, "bundle": sha256(bundle / MANIFEST),
    }  # fmt: skip
    with atomic_file(file) as draft:
        draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return file


def forget(bundle: Path) -> None:
    """Remove what was found for this bundle on this machine."""
    _file(bundle).unlink(missing_ok=True)


def known(bundle: Path) -> Tuned | None:
    """What was found for this bundle, as it is now, on this machine, as it is now; None where nothing was."""
    if not any(_folder().glob(f"{_hash(bundle)}-*.json")):
        return None  # the usual case, in which a server that starts need not look at the machine
    file = _file(bundle)
    try:
        data = parse_json(file.read_bytes())
        if data["format"] != FORMAT or data["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {data['format']} {data['format_version']}")
        settings = {name: data["settings"][name] for name in FOUND}
        Settings(**settings)  # values that no server could use are no settings
        return Tuned(settings, str(data["target"]), dict(data["evidence"]), str(data["date"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("%s is not used, since it cannot be read (%s): run keras-resnets tune again", file, error)
        return None


def applied(settings: Settings, source: Path) -> tuple[Settings, Tuned | None]:
    """Settings with what was found for a bundle in place of all that the user did not ask for.

    Nothing is taken where he asked for another provider or precision than was found: the rest was found for these.

    Args:
        settings: those whose `asked` is None stay as they are.
        source: a bundle's folder, or an ONNX file, of which nothing is known.
    """
    found = known(source) if settings.asked is not None and (source / MANIFEST).is_file() else None
    if found is None:
        return settings, None
    asked = settings.asked or frozenset()
    differs = any(
        name in asked and getattr(settings, name) != found.settings[name] for name in ("provider", "precision")
    )
    if differs:
        return settings, None
    return replace(settings, **{name: value for name, value in found.settings.items() if name not in asked}), found


def _file(bundle: Path) -> Path:
    """Named by the bundle's manifest, which holds the hash of every file in it, and by the machine."""
    return _folder() / f"{_hash(bundle)}-{fingerprint(conditions())}.json"


def _folder() -> Path:
    return cache_folder() / "tuned"


def _hash(bundle: Path) -> str:
    return sha256(bundle / MANIFEST)[:32]
