"""The batcher: every request gets its own answer or its own error, in bounded time, whatever the others do."""

import asyncio
import threading
import time

import numpy as np
import pytest

from keras_resnets.serving.batcher import Batcher, ClosedError, DeadlineError, OverloadError


class Model:
    """Doubles its rows; waits at a gate first, and remembers its batches."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.batches = []

    def __call__(self, tensors):
        x = tensors["x"]
        self.gate.wait(30)
        self.batches.append(x.copy())
        if np.isnan(x).any():
            raise FloatingPointError("poison")
        return {"y": 2 * x}


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def make(model):
    """Gives a batcher of the model, which is closed at the end."""
    made = []

    def build(**options):
        made.append(Batcher(options.pop("run", model), **options))
        return made[-1]

    yield build
    model.gate.set()
    assert all(batcher.close(10) for batcher in made)


def rows(*values):
    return {"x": np.array(values, np.float32)[:, None]}


async def ask(batcher, *values, **options):
    answer = await batcher.submit(rows(*values), len(values), **options)
    return answer.outputs["y"][:, 0].tolist()


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_rows_are_counted_and_answers_are_each_one_s_own(make, model):
    async def main():
        batcher = make(max_batch=8, max_queue=1000)
        model.gate.clear()
        sizes = np.random.default_rng(0).integers(1, 5, 60)
        values = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
        tasks = [asyncio.create_task(ask(batcher, *part)) for part in values]
        await until(lambda: batcher.waiting + batcher.running == sizes.sum())
        model.gate.set()
        return values, await asyncio.gather(*tasks)

    values, answers = asyncio.run(main())
    assert all(answer == (2 * part).tolist() for part, answer in zip(values, answers, strict=True))
    assert max(map(len, model.batches)) == 8
    assert len(model.batches) <= 40  # at least 5 of 8 rows, since none has more than 4


def test_one_row_requests_share_executions(make, model):
    async def main():
        batcher = make(max_batch=16)
        model.gate.clear()
        tasks = [asyncio.create_task(ask(batcher, i)) for i in range(64)]
        await until(lambda: batcher.waiting + batcher.running == 64)
        model.gate.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [[2 * i] for i in range(64)]
    assert len(model.batches) <= 6


def test_several_workers_answer_each_request_once(make, model):
    async def main():
        batcher = make(workers=4, max_batch=3, max_queue=10_000)
        return await asyncio.gather(*(ask(batcher, i, i + 0.5) for i in range(500)))

    assert asyncio.run(main()) == [[2 * i, 2 * i + 1] for i in range(500)]
    assert sum(map(len, model.batches)) == 1000


def test_requests_of_other_shapes_do_not_share_a_batch_but_are_all_answered(make, model):
    async def main():
        batcher = make(max_batch=8)
        model.gate.clear()
        many = [np.full((1, 1 + i % 3), i, np.float32) for i in range(30)]
        tasks = [asyncio.create_task(batcher.submit({"x": x}, 1, x.shape[1:])) for x in many]
        await until(lambda: batcher.waiting + batcher.running == 30)
        model.gate.set()
        return many, await asyncio.gather(*tasks)

    many, answers = asyncio.run(main())
    assert all(np.array_equal(answer.outputs["y"], 2 * x) for x, answer in zip(many, answers, strict=True))


def test_a_request_larger_than_a_batch_runs_alone(make, model):
    async def main():
        batcher = make(max_batch=2)
        return await asyncio.gather(ask(batcher, *range(7)), ask(batcher, 9))

    assert asyncio.run(main()) == [[2.0 * i for i in range(7)], [18.0]]


def test_poison_kills_its_own_request_alone(make, model):
    async def main():
        batcher = make(max_batch=8)
        model.gate.clear()
        first = asyncio.create_task(ask(batcher, 0))
        await until(lambda: batcher.running == 1)
        tasks = [asyncio.create_task(ask(batcher, np.nan if i == 3 else i)) for i in range(8)]
        await until(lambda: batcher.waiting == 8)
        model.gate.set()
        return await asyncio.gather(first, *tasks, return_exceptions=True)

    answers = asyncio.run(main())
    assert isinstance(answers.pop(4), FloatingPointError)
    assert answers == [[0.0], [0.0], [2.0], [4.0], [8.0], [10.0], [12.0], [14.0]]


@pytest.mark.parametrize("error", [ValueError("bad image"), MemoryError()])
def test_what_cannot_be_prepared_fails_alone(make, error):
    def prepare(payload):
        if payload < 0:
            raise error
        return rows(payload)

    async def main():
        batcher = make(prepare=prepare)
        return await asyncio.gather(*(batcher.submit(i, 1) for i in (1, -1, 2)), return_exceptions=True)

    one, bad, two = asyncio.run(main())
    assert type(bad) is type(error)
    assert one.outputs["y"] == 2 and two.outputs["y"] == 4


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_no_error_ends_a_worker(make, error):
    def run(tensors):
        if tensors["x"][0] < 0:
            raise error
        return {"y": tensors["x"]}

    async def main():
        batcher = make(run=run)
        with pytest.raises(RuntimeError, match="the batch was lost"):
            await ask(batcher, -1)
        return await ask(batcher, 5)

    assert asyncio.run(main()) == [5]


def test_who_is_cancelled_leaves_the_queue(make, model):
    async def main():
        batcher = make()
        model.gate.clear()
        first = asyncio.create_task(ask(batcher, 0))
        await until(lambda: batcher.running == 1)
        gone, stays = asyncio.create_task(ask(batcher, 1)), asyncio.create_task(ask(batcher, 2))
        await until(lambda: batcher.waiting == 2)
        gone.cancel()
        await asyncio.wait([gone])
        assert gone.cancelled() and batcher.waiting == 1
        model.gate.set()
        return await asyncio.gather(first, stays)

    assert asyncio.run(main()) == [[0], [4]]
    assert [x.ravel().tolist() for x in model.batches] == [[0], [2]]


def test_who_is_cancelled_in_a_batch_harms_nobody(make, model):
    async def main():
        batcher = make()
        model.gate.clear()
        first = asyncio.create_task(ask(batcher, 0))
        await until(lambda: batcher.running == 1)
        first.cancel()
        await asyncio.wait([first])
        model.gate.set()
        return await ask(batcher, 1)

    assert asyncio.run(main()) == [2]


def test_a_deadline_passes_in_the_queue(make, model):
    async def main():
        batcher = make()
        model.gate.clear()
        first = asyncio.create_task(ask(batcher, 0))
        await until(lambda: batcher.running == 1)
        late = asyncio.create_task(ask(batcher, 1, deadline=time.monotonic() + 0.05))
        await asyncio.sleep(0.1)
        model.gate.set()
        with pytest.raises(DeadlineError):
            await late
        with pytest.raises(DeadlineError):
            await ask(batcher, 2, deadline=time.monotonic() - 1)
        return await first

    assert asyncio.run(main()) == [0]
    assert [x.ravel().tolist() for x in model.batches] == [[0]]


@pytest.mark.parametrize("others", [True, False])
def test_what_cannot_be_answered_in_time_is_not_run_before_others(make, model, others):
    """Nor is it refused where nobody waits behind it: what a row takes is an estimate, which may be far too high."""

    async def main():
        batcher = make(max_batch=1)
        await ask(batcher, 0)
        model.gate.clear()
        first = asyncio.create_task(ask(batcher, 1))
        await until(lambda: batcher.running == 1)
        hasty = asyncio.create_task(ask(batcher, 2, deadline=time.monotonic() + 30))
        patient = [asyncio.create_task(ask(batcher, 3))] if others else []
        await until(lambda: batcher.waiting == 1 + others)
        batcher._row_seconds = 1e4  # as after a pause of the machine
        model.gate.set()
        if not others:
            return await asyncio.gather(first, hasty)
        with pytest.raises(DeadlineError, match="would pass in the batch"):
            await hasty
        return await asyncio.gather(first, *patient)

    assert asyncio.run(main()) == [[2], [6] if others else [4]]


def test_a_full_queue_refuses_at_once(make, model):
    async def main():
        batcher = make(max_queue=4)
        model.gate.clear()
        first = asyncio.create_task(ask(batcher, 0))
        await until(lambda: batcher.running == 1)
        waiting = [asyncio.create_task(ask(batcher, i)) for i in range(4)]
        await until(lambda: batcher.waiting == 4)
        with pytest.raises(OverloadError, match="the queue is full"):
            await ask(batcher, 9)
        model.gate.set()
        await asyncio.gather(first, *waiting)
        return await ask(batcher, 9)

    assert asyncio.run(main()) == [18]


def test_a_queue_that_is_too_long_for_the_deadline_refuses_at_once(make, model):
    def slow(tensors):
        time.sleep(0.05 * len(tensors["x"]))
        return model(tensors)

    async def main():
        batcher = make(run=slow, max_batch=1)
        await ask(batcher, 0)  # so that it knows how long a row takes
        waiting = [asyncio.create_task(ask(batcher, i)) for i in range(6)]
        await until(lambda: batcher.waiting == 5)
        with pytest.raises(OverloadError) as refused:
            await ask(batcher, 9, deadline=time.monotonic() + 0.1)
        assert refused.value.retry_after > 0.1
        patient = asyncio.create_task(ask(batcher, 9, deadline=time.monotonic() + 60))
        return (await asyncio.gather(patient, *waiting))[0]

    assert asyncio.run(main()) == [18]


def test_a_queue_delay_waits_for_company(make, model):
    async def main():
        batcher = make(queue_delay=5.0, max_batch=3)
        tasks = []
        for i in range(3):
            tasks.append(asyncio.create_task(ask(batcher, i)))
            await asyncio.sleep(0.02)
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [[0], [2], [4]]
    assert [len(x) for x in model.batches] == [3]


def test_a_queue_delay_gives_way_to_a_deadline(make, model):
    async def main():
        batcher = make(queue_delay=10.0)
        patient = asyncio.create_task(ask(batcher, 1))
        return await asyncio.gather(patient, ask(batcher, 2, deadline=time.monotonic() + 0.5))

    assert asyncio.run(main()) == [[2], [4]]
    assert [len(x) for x in model.batches] == [2]


def test_closing_answers_what_waits_and_takes_no_more(make, model):
    async def main():
        batcher = make(max_batch=1)
        model.gate.clear()
        tasks = [asyncio.create_task(ask(batcher, i)) for i in range(5)]
        await until(lambda: batcher.waiting + batcher.running == 5)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close, 10))
        await until(lambda: batcher._closed)
        with pytest.raises(ClosedError):
            await ask(batcher, 9)
        model.gate.set()
        assert await closing
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [[2 * i] for i in range(5)]


def test_closing_says_when_it_was_not_done_in_time(make, model):
    async def main():
        batcher = make()
        model.gate.clear()
        task = asyncio.create_task(ask(batcher, 1))
        await until(lambda: batcher.running == 1)
        assert not await asyncio.to_thread(batcher.close, 0.05)
        model.gate.set()
        return await task

    assert asyncio.run(main()) == [2]


def test_an_idle_batcher_uses_no_processor(make):
    batchers = [make(workers=4) for _ in range(4)]
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1
    assert all(batcher.waiting == 0 for batcher in batchers)


@pytest.mark.parametrize(
    "options", [{"max_batch": 0}, {"max_queue": 0}, {"workers": 0}, {"queue_delay": -1}, {"queue_delay": float("nan")}]
)
def test_limits_out_of_range(options, model):
    with pytest.raises(ValueError, match="must be"):
        Batcher(model, **options)
