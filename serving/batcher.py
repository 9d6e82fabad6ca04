"""Gathers the rows of many requests into batches, runs them on a few threads, and gives each request its own answer.

The event loop submits, worker threads run. A worker that is free takes what waits at once; while all are busy the queue
grows, and the next batch with it: so batches follow the load, and one request alone waits for nothing. A queue delay
lets a free worker wait for company, which pays where a batch costs hardly more than a row (on GPUs).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]
_SMOOTHING = 0.2  # of the newest batch in the mean seconds of a row
_SAFETY = 1.5  # how much longer than expected the queue may take: machines pause, and a shorter queue costs nothing
_MARGIN = 0.05  # seconds between the end of a queue delay and a deadline


class OverloadError(RuntimeError):
    """The queue is full, or so long that the request would miss its deadline; `retry_after` says when to try again."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(RuntimeError):
    """A request's deadline passed before it was run, or would have passed while it ran."""


class ClosedError(RuntimeError):
    """The model is being unloaded, or the server stops."""


class Times(NamedTuple):
    """Where a request's time went, in seconds; the last three are those of its whole batch."""

    queue: float
    prepare: float
    compute: float
    rows: int


class Answer(NamedTuple):
    """A request's outputs, its rows alone, and where its time went."""

    outputs: dict[str, NDArray[Any]]
    times: Times


@dataclass(eq=False)
class _Job:
    payload: Any
    rows: int
    key: Hashable
    deadline: float
    future: asyncio.Future[Answer]
    arrived: float
    tensors: Tensors = field(default_factory=dict)


class Batcher:
    """A queue in front of a model, and the threads that empty it.

    Args:
        run: the model: tensors by name, batch axis first, to tensors by name. Called by several threads at once.
        prepare: from a request's payload to tensors; it runs on the worker, and its errors are that request's alone.
        max_batch: rows of a batch at most. A request of more rows is a batch of its own.
        queue_delay: seconds that a worker waits for a fuller batch.
        max_queue: rows that may wait.
        workers: threads that run batches.
        observe: called with (rows, seconds) after each batch, on the worker.

    Raises:
        ValueError: for limits out of range.
    """

    def __init__(
        self,
        run: Callable[[Tensors], Tensors],
        prepare: Callable[[Any], Tensors] = lambda payload: payload,
        *,
        max_batch: int = 16,
        queue_delay: float = 0.0,
        max_queue: int = 256,
        workers: int = 1,
        observe: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        for name, value in (("max_batch", max_batch), ("max_queue", max_queue), ("workers", workers)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 0 <= queue_delay <= 10:
            raise ValueError(f"queue_delay must be between 0 and 10 seconds, not {queue_delay}")
        self.max_batch, self.queue_delay, self.max_queue = max_batch, queue_delay, max_queue
        self._run, self._prepare, self._observe = run, prepare, observe
        self._queue: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._waiting = self._running = 0  # rows
        self._row_seconds = 0.0  # of one worker; 0 until something was measured
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workers = [
            threading.Thread(target=self._work, name=f"batcher-{number}", daemon=True) for number in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        return self._waiting

    @property
    def running(self) -> int:
        """Rows that run."""
        return self._running

    def expected_wait(self) -> float:
        """Seconds until rows that come now would be answered, by what rows took of late."""
        own_batch = min(self.max_batch, 2 * (self._waiting + 1))  # under load, others will join them in it
        return (self._waiting + self._running + own_batch) * self._row_seconds / len(self._workers)

    def admit(self, rows: int, deadline: float) -> None:
        """Raise unless so many rows may queue and can be answered in time; cheap, so that overload costs little.

        Raises:
            ClosedError, OverloadError, DeadlineError: see there.
        """
        if self._closed:
            raise ClosedError("the model is being unloaded")
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError("the deadline had passed when the request was read")
        wait = self.expected_wait() * _SAFETY
        if self._waiting and self._waiting + rows > self.max_queue:
            raise OverloadError(f"the queue is full ({self._waiting} rows wait)", wait)
        if self._waiting and wait > left:
            raise OverloadError(f"the queue takes {wait:.2f} s, and the request's deadline is in {left:.2f} s", wait)

    async def submit(self, payload: Any, rows: int, key: Hashable = None, deadline: float = float("inf")) -> Answer:
        """Queue a request and wait for its answer. Cancelling the task takes it out of the queue.

        Args:
            payload: for `prepare`.
            rows: how many rows that makes.
            key: only requests of equal keys share a batch: put what their tensors must have in common into it.
            deadline: by time.monotonic.

        Raises:
            ClosedError, OverloadError, DeadlineError: see there.
            Exception: what `prepare` or `run` raised for this request.
        """
        self.admit(rows, deadline)
        loop = asyncio.get_running_loop()
        job = _Job(payload, rows, key, deadline, loop.create_future(), time.monotonic())
        with self._changed:
            if self._closed:
                raise ClosedError("the model is being unloaded")
            self._loop = loop
            self._queue.append(job)
            self._waiting += rows
            self._changed.notify()
        try:
            return await job.future
        except asyncio.CancelledError:
            self._leave(job)
            raise

    def close(self, timeout: float | None = None) -> bool:
        """Take no more requests, answer those that wait, and end the threads; returns whether they ended in time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = None if timeout is None else time.monotonic() + timeout
        for worker in self._workers:
            worker.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(worker.is_alive() for worker in self._workers)

    def _leave(self, job: _Job) -> None:
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)
                self._waiting -= job.rows

    def _work(self) -> None:
        while (jobs := self._next_batch()) is not None:
            try:
                results = self._answer(jobs)
            except BaseException as error:  # a worker that died would leave its queue waiting for ever
                lost = RuntimeError(f"the batch was lost: {error!r}")
                results = [(job, lost) for job in jobs]
            with self._changed:
                self._running -= sum(job.rows for job in jobs)
            self._deliver(results)

    def _next_batch(self) -> list[_Job] | None:
        """Wait for work; None when there will be none."""
        with self._changed:
            while True:
                while not self._queue:
                    if self._closed:
                        return None
                    self._changed.wait()
                self._wait_for_company()
                jobs = self._take()
                if jobs:
                    return jobs

    def _wait_for_company(self) -> None:
        while self._queue and not self._closed and self._waiting < self.max_batch:
            takes = _SAFETY * self._waiting * self._row_seconds + _MARGIN
            last = min(min(job.arrived + self.queue_delay, job.deadline - takes) for job in self._queue)
            left = last - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _take(self) -> list[_Job]:
        """The oldest request and those that can share its batch; others keep their places."""
        jobs: list[_Job] = []
        passed: list[_Job] = []
        late: list[tuple[_Job, BaseException]] = []
        now, rows = time.monotonic(), 0
        while self._queue and rows < self.max_batch:
            job = self._queue.popleft()
            # What others wait behind is not run for nothing. With nobody behind it, the answer may yet come in time.
            takes = (rows + job.rows) * self._row_seconds if self._queue else 0.0
            if job.deadline <= now + takes:
                late.append((job, DeadlineError("the deadline passed in the queue, or would pass in the batch")))
                self._waiting -= job.rows
            elif jobs and (job.key != jobs[0].key or rows + job.rows > self.max_batch):
                passed.append(job)
            else:
                jobs.append(job)
                rows += job.rows
        self._queue.extendleft(reversed(passed))
        self._waiting -= rows
        self._running += rows
        if late:
            self._deliver(late)
        if self._queue:
            self._changed.notify()  # for another worker
        return jobs

    def _answer(self, jobs: list[_Job]) -> list[tuple[_Job, Answer | BaseException]]:
        """Run a batch; where it fails, each of its requests alone, so that one's fault is its own."""
        began = time.monotonic()
        results: list[tuple[_Job, Answer | BaseException]] = []
        ready = []
        for job in jobs:
            try:
                job.tensors = self._prepare(job.payload)
                ready.append(job)
            except Exception as error:
                results.append((job, error))
        prepared = time.monotonic()
        if ready:
            try:
                results += self._together(ready, began, prepared)
            except Exception as error:
                if len(ready) == 1:
                    results.append((ready[0], error))
                else:
                    results += [result for job in ready for result in self._alone(job, began, prepared)]
        return results

    def _alone(self, job: _Job, began: float, prepared: float) -> list[tuple[_Job, Answer | BaseException]]:
        try:
            return list(self._together([job], began, prepared))
        except Exception as error:
            return [(job, error)]

    def _together(self, jobs: Sequence[_Job], began: float, prepared: float) -> list[tuple[_Job, Answer]]:
        names = jobs[0].tensors
        stacked = {name: _stack([job.tensors[name] for job in jobs]) for name in names}
        rows = sum(job.rows for job in jobs)
        outputs = self._run(stacked)
        ended = time.monotonic()
        self._learn(rows, ended - began)
        answers, first = [], 0
        for job in jobs:
            mine = {name: values[first : first + job.rows] for name, values in outputs.items()}
            times = Times(began - job.arrived, prepared - began, ended - prepared, rows)
            answers.append((job, Answer(mine, times)))
            first += job.rows
        return answers

    def _learn(self, rows: int, seconds: float) -> None:
        newest = seconds / rows
        with self._changed:
            known = self._row_seconds or newest
            self._row_seconds = known + _SMOOTHING * (newest - known)
        self._observe(rows, seconds)

    def _deliver(self, results: Sequence[tuple[_Job, Answer | BaseException]]) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(_resolve, results)
        except RuntimeError:  # it was closed meanwhile: nobody waits any more
            return


def _stack(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _resolve(results: Sequence[tuple[_Job, Answer | BaseException]]) -> None:
    for job, result in results:
        if job.future.done():  # cancelled
            continue
        if isinstance(result, BaseException):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
