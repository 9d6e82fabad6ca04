"""What several processes of one server counted, as data: taken from each, added up, and written for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from keras_resnets.extras import extra

with extra("serve"):
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import Metric

# {"pid": of the process, "statistics": rows as the protocol has them, "families": Prometheus's, see families_of}
Figures = dict[str, Any]
GONE = 0  # in place of the pid
_LARGEST = ("last_inference", "keras_resnets_ready")  # what is no sum
_SMALLEST = "_created"


def families_of(registry: CollectorRegistry) -> list[dict[str, Any]]:
    """All that a registry holds, as JSON can say it."""
    return [
        {
            "name": metric.name, "type": metric.type, "documentation": metric.documentation,
            "samples": [[sample.name, sample.labels, sample.value] for sample in metric.samples],
        }
        for metric in registry.collect()
    ]  # fmt: skip


def total(figures: Sequence[Figures]) -> Figures:
    """The sums; the first figures give their pid."""
    return {
        "pid": figures[0]["pid"],
        "statistics": _added_statistics([row for one in figures for row in one["statistics"]]),
        "families": _added_families([family for one in figures for family in one["families"]]),
    }


def left_behind(figures: Figures) -> Figures:
    """What still counts of a process that has gone: not its queues."""
    return {**figures, "pid": GONE, "families": [family for family in figures["families"] if family["type"] != "gauge"]}


def to_text(figures: Figures, processes: dict[str, int]) -> bytes:
    """Prometheus's text format.

    Args:
        figures: see `total`.
        processes: how many of them are "counted" here, and how many were "silent" when they were asked.
    """
    states = [["keras_resnets_processes", {"state": state}, number] for state, number in processes.items()]
    told = {
        "name": "keras_resnets_processes", "type": "gauge", "documentation": "Processes that this is the sum of",
        "samples": states,
    }  # fmt: skip
    return bytes(generate_latest(_Collected([*figures["families"], told])))


class _Collected(CollectorRegistry):
    """A registry of what is known already."""

    def __init__(self, families: Iterable[dict[str, Any]]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for family in self._families:
            metric = Metric(family["name"], family["documentation"], family["type"])
            for name, labels, value in family["samples"]:
                metric.add_sample(name, labels, value)
            yield metric


def _added_families(families: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    by_name: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[Any, Any]] = {}
    for family in families:
        by_name.setdefault(family["name"], family)
        samples = values.setdefault(family["name"], {})
        for name, labels, value in family["samples"]:
            key = name, *sorted(labels.items())
            samples[key] = [name, labels, _added(name, samples[key][2], value) if key in samples else value]
    return [{**family, "samples": list(values[name].values())} for name, family in by_name.items()]


def _added_statistics(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["name"], row["version"]
        found[key] = _added_rows(found[key], row) if key in found else row
    return list(found.values())


def _added_rows(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two objects of the statistics extension: numbers are added, at whatever depth."""
    added: dict[str, Any] = {}
    for key, value in one.items():
        if key == "batch_stats":
            by_size = {row["batch_size"]: row for row in value}
            for row in other[key]:
                same = by_size.get(row["batch_size"])
                compute = _added_rows(same["compute_infer"], row["compute_infer"]) if same else row["compute_infer"]
                by_size[row["batch_size"]] = {"batch_size": row["batch_size"], "compute_infer": compute}
            added[key] = [by_size[size] for size in sorted(by_size)]
        elif isinstance(value, dict):
            added[key] = _added_rows(value, other[key])
        else:
            added[key] = value if isinstance(value, str) else _added(key, value, other[key])
    return added


def _added(name: str, one: Any, other: Any) -> Any:
    if name in _LARGEST:
        return max(one, other)
    return min(one, other) if name.endswith(_SMALLEST) else one + other
