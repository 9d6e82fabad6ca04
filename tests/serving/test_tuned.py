"""What tune found is used where bundle and machine are those it was found for, and nowhere else."""

import json
from dataclasses import replace

import pytest

from keras_resnets.serving import tuned
from keras_resnets.serving.served import Settings
from keras_resnets.serving.tuned import Tuned, applied, keep, known

FOUND = Tuned(
    {"provider": "cpu", "precision": "float32", "threads": 1, "workers": 2, "max_batch": 4, "queue_delay": 0.001,
     "cuda_graphs": False},
    "throughput", {"images_per_second": 100.0}, "2026-01-31",
)  # fmt: skip
NOTHING = Settings(asked=frozenset())


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_RESNETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_is_kept_and_known_again(bundle_copy):
    assert known(bundle_copy) is None
    file = keep(bundle_copy, FOUND)
    assert known(bundle_copy) == FOUND and file.parent.name == "tuned"
    assert str(FOUND) == (
        "tuned for throughput on 2026-01-31: float32 on cpu, 2 × 1 threads, batches to 4, queue delay 1 ms"
    )


def test_what_the_user_asked_for_stays(bundle_copy):
    keep(bundle_copy, FOUND)
    settings, found = applied(replace(NOTHING, max_queue=7), bundle_copy)
    assert found == FOUND and settings.max_queue == 7
    assert (settings.workers, settings.threads, settings.max_batch, settings.queue_delay) == (2, 1, 4, 0.001)
    settings, found = applied(Settings(max_batch=9, asked=frozenset(["max_batch"])), bundle_copy)
    assert found and settings.max_batch == 9 and settings.workers == 2
    # Without a word of what was asked for, all of it was.
    assert applied(Settings(), bundle_copy) == (Settings(), None)


@pytest.mark.parametrize("other", [{"provider": "openvino"}, {"precision": "int8"}])
def test_nothing_is_taken_for_another_provider_or_precision(bundle_copy, other):
    keep(bundle_copy, FOUND)
    settings = Settings(**other, asked=frozenset(other))
    assert applied(settings, bundle_copy) == (settings, None)


def test_another_bundle_or_machine_has_its_own(bundle_copy, exported, monkeypatch):
    keep(bundle_copy, FOUND)
    assert known(exported("logits")[1]) is None
    there = tuned.conditions() | {"processor": "another"}
    monkeypatch.setattr(tuned, "conditions", lambda: there)
    assert known(bundle_copy) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data["settings"].update(workers=0),
        lambda data: data["settings"].pop("threads"),
        lambda data: data["settings"].update(workers="two"),
        lambda data: data.update(format="other"),
        lambda data: data.update(format_version=99),
        lambda data: data.update(settings=None),
    ],
)
def test_a_damaged_file_is_said_and_not_used(bundle_copy, caplog, damage):
    file = keep(bundle_copy, FOUND)
    data = json.loads(file.read_text())
    damage(data)
    file.write_text(json.dumps(data))
    assert known(bundle_copy) is None and "run keras-resnets tune again" in caplog.text
    file.write_text(file.read_text()[:-20])
    assert known(bundle_copy) is None


def test_the_server_uses_it_and_says_so(bundle_copy, serving, cache):
    keep(bundle_copy, FOUND)
    with serving(bundle_copy) as server:
        assert f"model bundle version 1: {FOUND}" in server.log
    with serving(bundle_copy, "--no-tuned") as server:
        assert "tuned" not in server.log
