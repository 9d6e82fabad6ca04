"""What the clocks say: a call of known latency shows whether percentiles, rates and waiting are right."""

import threading
import time

import numpy as np
import pytest

from keras_resnets.serving.timing import at_once, closed_loop, on_schedule, poisson, quantiles_ms, summary


class FakeTime:
    """A clock that only calls and sleeps move."""

    def __init__(self):
        self.now = 0.0

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def taking(fake, *latencies):
    """A call that takes these seconds, one after the other, again and again."""
    calls = iter(range(10**9))
    return lambda: fake.sleep(latencies[next(calls) % len(latencies)])


def test_a_closed_loop_times_each_call_and_ends_in_time():
    fake = FakeTime()
    times = closed_loop(taking(fake, 0.01, 0.03), 1.0, fake.clock)
    assert times == pytest.approx([0.01, 0.03] * 25)
    slow = closed_loop(taking(fake, 7.0), 1.0, fake.clock)
    assert slow == pytest.approx([7.0] * 5)  # few, but some


def test_percentiles_are_values_that_occurred():
    times = np.arange(1, 101) / 1e3  # 1 … 100 ms
    row = summary(np.random.default_rng(0).permutation(times), batch=8)
    assert [row[f"p{p}_ms"] for p in (50, 90, 95, 99)] == pytest.approx([50, 90, 95, 99])
    assert row["images_per_second"] == pytest.approx(8 * 100 / 5.05) and row["calls"] == 100
    assert quantiles_ms(times)[0] == 1 and quantiles_ms(times)[100] == 100 and len(quantiles_ms(times)) == 101


def test_on_a_schedule_those_that_had_to_wait_say_so():
    """One call of a second among calls of a millisecond, a hundred a second: 99 of them were due while it ran."""
    fake = FakeTime()
    due = np.arange(200) / 100
    latencies = on_schedule(taking(fake, 1.0, *[0.001] * 199), due, fake.clock, fake.sleep)
    # The k-th waits for the first to end, and for those before it; until the queue is empty.
    expected = [max(1.0 + 0.001 * k - due[k], 0.001) for k in range(200)]
    assert latencies == pytest.approx(expected)
    closed = closed_loop(taking(fake, 1.0, *[0.001] * 199), 1.199, fake.clock)
    # A closed loop sees one slow call in two hundred, where half the arrivals were slow.
    assert summary(closed, 1)["p99_ms"] == pytest.approx(1) and summary(latencies, 1)["p50_ms"] > 50


def test_a_poisson_process_has_its_rate_and_no_memory():
    moments = poisson(500, 100, seed=3)
    gaps = np.diff(moments)
    assert len(moments) == pytest.approx(50_000, rel=0.02) and moments[-1] < 100 and (gaps >= 0).all()
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.02
    assert not np.array_equal(moments[:100], poisson(500, 100, seed=4)[:100])


def test_calls_at_once_are_counted_together():
    latencies, rate = at_once([lambda: time.sleep(0.02)] * 4, 0.4)
    assert len(latencies) >= 20 and (latencies >= 0.02).all()
    # Four at once give more than three of them one after the other could.
    assert rate * (latencies.mean() / 0.02) > 3 / 0.02 and rate <= 4 / 0.02 * 1.01


def test_what_a_thread_raises_is_raised():
    def fail():
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        at_once([fail, fail], 0.1)
