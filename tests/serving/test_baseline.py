"""Comparisons of results whose truth is known, because they are made up."""

import numpy as np
import pytest

from keras_resnets.serving import baseline
from keras_resnets.serving.baseline import cautions, compare, machine_ratio, regressions, rounds_needed
from keras_resnets.serving.benchmark import FORMAT, FORMAT_VERSION, MEASURED, REFUSED, BenchmarkError, load, save

CONDITIONS = {"processor": "one", "usable_cpus": 2, "onnxruntime": "1.32.0", "seconds": 2.0}
ROWS = tuple(f"row {number}" for number in range(10))
CHANGED = (baseline.SLOWER, baseline.FASTER)


def measured(rates, yardstick_ms=1.0, **labels):
    """A row of which each round made so many images/s."""
    rounds = [
        {
            "end_to_end": {"images_per_second": float(rate), "p50_ms": 990 / rate, "p99_ms": 1500 / rate},
            "yardstick_ms": yardstick_ms,
        }
        for rate in rates
    ]
    return {"state": MEASURED, "reason": None, "rounds": rounds, **labels}


def result(rows, warnings=(), **conditions):
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "conditions": CONDITIONS | conditions,
        "warnings": list(warnings),
        "rows": [{"name": name, **row} for name, row in rows.items()],
    }


def noisy(chance, noise, rounds=5, speed=1.0, slow=(), by=1.0, names=ROWS):
    """A result whose rows make 100 images/s, `slow` ones `by` times as many, at a machine's speed, with noise."""
    rates = {name: 100 * speed * (by if name in slow else 1) * chance.lognormal(0, noise, rounds) for name in names}
    return result({name: measured(row, 1 / speed) for name, row in rates.items()})


def verdicts(old, new, **options):
    return {row["name"]: row["verdict"] for row in compare(old, new, **options)}


def heaps(chance, rounds):
    """What the alignment of memory does: a process is fast or 8 % slower, and hardly anything between."""
    return 100 * chance.choice([1, 0.92], rounds) * chance.lognormal(0, 0.001, rounds)


@pytest.mark.parametrize(
    "draw",
    [lambda chance: 100 * chance.lognormal(0, 0.05, 5), lambda chance: heaps(chance, 5)],
    ids=["bell", "two heaps"],
)
def test_noise_is_hardly_ever_called_a_change(draw):
    chance = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        old, new = (result({name: measured(draw(chance)) for name in ROWS}) for _ in range(2))
        alarms += any(verdict in CHANGED for verdict in verdicts(old, new).values())
    assert alarms / 200 <= 0.08


def test_a_tenth_slower_is_found_among_ten_rows_and_nothing_else_blamed():
    chance = np.random.default_rng(1)
    found = blamed = 0
    for _ in range(100):
        old, new = noisy(chance, 0.02), noisy(chance, 0.02, slow=ROWS[3:4], by=0.9)
        seen = verdicts(old, new)
        found += seen.pop(ROWS[3]) == baseline.SLOWER
        blamed += any(verdict in CHANGED for verdict in seen.values())
    assert found >= 95
    assert blamed <= 8


def test_all_rows_a_tenth_faster_are_found():
    chance = np.random.default_rng(2)
    old, new = noisy(chance, 0.02), noisy(chance, 0.02, slow=ROWS, by=1.1)
    assert set(verdicts(old, new).values()) == {baseline.FASTER}
    assert regressions(compare(old, new)) == []


def test_a_change_too_small_is_not_told_however_sure():
    chance = np.random.default_rng(3)
    old, new = noisy(chance, 1e-4), noisy(chance, 1e-4, slow=ROWS, by=0.99)
    assert max(row["p"] for row in compare(old, new)) < 0.01
    assert set(verdicts(old, new).values()) == {baseline.NO_CHANGE}
    assert set(verdicts(old, new, smallest=0.005).values()) == {baseline.SLOWER}


def test_a_slower_machine_is_not_blamed_on_rows():
    chance = np.random.default_rng(4)
    old, new = noisy(chance, 0.02), noisy(chance, 0.02, speed=0.5)
    rows = compare(old, new)
    assert {row["verdict"] for row in rows} == {baseline.MACHINE}
    assert rows[0]["corrected"] == pytest.approx(1, abs=0.05)
    assert "by the machine's speed" in rows[0]["why"]
    assert machine_ratio(old, new) == pytest.approx(0.5)
    assert any("0.50 times the baseline's speed" in line for line in cautions(old, new))


def test_a_row_that_became_slower_than_its_slower_machine():
    chance = np.random.default_rng(5)
    old, new = noisy(chance, 0.02), noisy(chance, 0.02, speed=0.8, slow=ROWS[:1], by=0.7)
    seen = verdicts(old, new)
    assert seen.pop(ROWS[0]) == baseline.SLOWER
    assert set(seen.values()) == {baseline.MACHINE}


def test_a_network_as_slow_as_ever_on_a_faster_machine_is_not_called_the_same():
    chance = np.random.default_rng(6)
    old, new = noisy(chance, 0.001), noisy(chance, 0.001, speed=1.25, slow=ROWS, by=0.8)
    assert set(verdicts(old, new).values()) == {baseline.MACHINE}


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_few_rounds_cannot_tell(rounds):
    chance = np.random.default_rng(7)
    old, new = noisy(chance, 0.001, rounds), noisy(chance, 0.001, rounds, slow=ROWS, by=0.1)
    rows = compare(old, new)
    assert {row["verdict"] for row in rows} == {baseline.TOO_FEW}
    assert rows[0]["why"] == f"{rounds} rounds and {rounds}: at least 4 each are needed"


@pytest.mark.parametrize(("level", "rounds"), [(0.05, 4), (0.01, 5), (0.001, 7)])
def test_the_rounds_said_to_be_needed_are_enough_and_no_more(level, rounds):
    assert rounds_needed(level) == rounds
    chance = np.random.default_rng(8)
    for number, verdict in [(rounds - 1, baseline.TOO_FEW), (rounds, baseline.SLOWER)]:
        old, new = noisy(chance, 0.001, number), noisy(chance, 0.001, number, slow=ROWS, by=0.5)
        assert set(verdicts(old, new, level=level).values()) == {verdict}


def test_rows_of_other_numbers_of_rounds_are_tested_too():
    steady = np.full(6, 100.0) + np.arange(6) / 100
    old = result({"six": measured(steady), "five": measured(steady[:5])})
    new = result({"six": measured(steady / 2), "five": measured(steady / 2)})
    assert verdicts(old, new) == {"six": baseline.SLOWER, "five": baseline.SLOWER}


def test_many_rounds_are_dealt_at_random_and_always_alike():
    chance = np.random.default_rng(9)
    old, new = noisy(chance, 0.05, 30), noisy(chance, 0.05, 30, slow=ROWS[:1], by=0.9)
    seen = verdicts(old, new)
    assert seen[ROWS[0]] == baseline.SLOWER
    assert compare(old, new, seed=1) == compare(old, new, seed=1)


def test_ratios_and_their_intervals():
    old = result({"a": measured([100, 102, 98, 101, 99])})
    new = result({"a": measured([80, 82, 78, 81, 79])})
    (row,) = compare(old, new)
    rate = row["figures"]["images_per_second"]
    assert (rate["old"], rate["new"], rate["ratio"]) == (100, 80, 0.8)
    assert 0.75 < rate["low"] < 0.8 < rate["high"] < 0.85
    assert row["figures"]["p50_ms"]["ratio"] == pytest.approx(1.25)
    assert row["figures"]["p99_ms"]["low"] < 1.25 < row["figures"]["p99_ms"]["high"]
    assert (row["verdict"], row["rounds"]) == (baseline.SLOWER, [5, 5])


def test_the_interval_covers_the_truth():
    chance = np.random.default_rng(10)
    inside = []
    for _ in range(200):
        (row,) = compare(noisy(chance, 0.02, 10, names="a"), noisy(chance, 0.02, 10, slow="a", by=0.9, names="a"))
        rate = row["figures"]["images_per_second"]
        inside.append(rate["low"] <= 0.9 <= rate["high"])
    assert np.mean(inside) > 0.88


def test_a_difference_that_may_be_noise_is_unclear():
    old = result({"a": measured([100, 90, 110, 95])})
    new = result({"a": measured([95, 85, 104, 80])})
    (row,) = compare(old, new)
    assert row["verdict"] == baseline.UNCLEAR
    assert "more rounds would tell" in row["why"]


def test_equal_results_have_not_changed():
    same = result({"a": measured([100] * 4), "b": measured([7] * 4)})
    assert set(verdicts(same, same).values()) == {baseline.NO_CHANGE}
    assert cautions(same, same) == []


def test_rows_that_were_not_measured_twice():
    refused = {"state": REFUSED, "reason": "no such provider"}
    rates = measured([100] * 4)
    old = result({"kept": rates, "lost": rates, "gone": rates, "mended": refused, "never": refused})
    new = result({"fresh": rates, "kept": rates, "lost": refused, "mended": rates, "never": refused})
    rows = compare(old, new)
    assert [row["name"] for row in rows] == ["fresh", "kept", "lost", "mended", "never", "gone"]
    assert {row["name"]: row["verdict"] for row in rows} == {
        "fresh": baseline.ONLY_NEW,
        "kept": baseline.NO_CHANGE,
        "lost": baseline.REFUSED_NOW,
        "mended": baseline.REFUSED_BEFORE,
        "never": baseline.REFUSED_BOTH,
        "gone": baseline.ONLY_BASELINE,
    }
    assert [(row["name"], row["why"]) for row in regressions(rows)] == [("lost", "no such provider")]


def test_nothing_in_common():
    old, new = result({"a": measured([1] * 4)}), result({"b": measured([1] * 4)})
    assert verdicts(old, new) == {"b": baseline.ONLY_NEW, "a": baseline.ONLY_BASELINE}
    assert machine_ratio(old, new) is None


def test_a_peer_without_a_yardstick():
    old, new = (result({"a": measured([100] * 4, None)}) for _ in range(2))
    assert machine_ratio(old, new) is None
    assert compare(old, new)[0]["corrected"] is None


def test_other_machines_versions_and_bundles_are_told_of():
    rates = [100, 101, 102, 103]
    old = result({"a": measured(rates, model="digits", bundle="1")}, ["others were busy"])
    new = result({"a": measured(rates, model="digits", bundle="2")}, processor="other", onnxruntime="2", seconds=0.5)
    told = cautions(old, new)
    assert "the baseline's conditions differ (processor: one and other)" in told
    assert "the baseline's conditions differ (onnxruntime: 1.32.0 and 2)" in told
    assert "the baseline's loops took 2.0 s, these 0.5 s" in told
    assert "digits is another bundle than the baseline's" in told
    assert "of the baseline: others were busy" in told
    assert verdicts(old, new) == {"a": baseline.NO_CHANGE}


def test_what_is_no_result(tmp_path):
    good = result({"a": measured([1] * 4)})
    for bad in ({}, {"format": "other", "rows": []}, []):
        with pytest.raises(BenchmarkError, match="not a result"):
            compare(bad, good)
        with pytest.raises(BenchmarkError, match="not a result"):
            compare(good, bad)
    save(good, tmp_path / "good.json")
    assert compare(load(tmp_path / "good.json"), good)[0]["verdict"] == baseline.NO_CHANGE
