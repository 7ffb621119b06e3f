"""Run requests that arrive within a few milliseconds of each other as one batch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import grpc
import numpy as np

from common.serving.refusals import Refusal

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class BatchingParameters:
    """How requests are batched; the names are those of TensorFlow Serving's batching parameters file."""

    max_batch_size: int = 32
    """Maximum number of examples per batch; a request with more is refused."""
    batch_timeout_micros: int = 2000
    """Maximum time that a request waits for its batch to fill; it waits only while other requests are in flight."""
    num_batch_threads: int = 2
    """Batches that run at the same time."""
    max_enqueued_batches: int = 100
    """Full batches that may be queued; further requests are refused."""


@dataclass
class _Waiting:
    inputs: Arrays
    size: int
    shapes: tuple
    arrived: float = field(default_factory=time.monotonic)
    answer: Future = field(default_factory=Future)


class Batcher:
    """A function with the results of `run` that runs the arrays of several callers as one batch.

    Args:
        run: arrays with a common first dimension, to arrays with the same first dimension.
        parameters: of batching.
        in_flight: returns the number of requests that have arrived at the server and are not answered yet. When all of
            them are queued here, there is no wait: a single client has no extra latency.
        observe: called with the size of each batch.
    """

    def __init__(
        self,
        run: Callable[[Arrays], dict[str, np.ndarray]],
        parameters: BatchingParameters,
        in_flight: Callable[[], int],
        observe: Callable[[int], None] = lambda size: None,
    ):
        self.run, self.parameters, self.in_flight, self.observe = run, parameters, in_flight, observe
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._running = 0  # requests that a thread is running
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name="batching", daemon=True)
            for _ in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Return the outputs for the inputs of one caller; blocks until they are ready.

        Raises:
            Refusal: more examples than a batch may have, or a full queue.
        """
        sizes = {len(array) for array in inputs.values()}
        largest = self.parameters.max_batch_size
        if max(sizes) > largest:  # as in the real server
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Task size {max(sizes)} is larger than maximum input batch size {largest}. Send at most {largest} "
                f"examples in a request, or start the server with a larger --max-batch-size.",
            )
        if len(sizes) != 1 or sizes == {0}:
            return self.run(inputs)
        shapes = tuple((name, inputs[name].shape[1:]) for name in sorted(inputs))
        waiting = _Waiting(inputs, sizes.pop(), shapes)
        with self._changed:
            if self._closed:
                return self.run(inputs)
            most = self.parameters.max_enqueued_batches * self.parameters.max_batch_size
            if sum(one.size for one in self._queue) + waiting.size > most:
                raise Refusal(
                    grpc.StatusCode.UNAVAILABLE,
                    f"The batch scheduling queue to which this task was submitted is full: {most} examples are "
                    f"waiting. Send more slowly.",
                )
            self._queue.append(waiting)
            self._changed.notify_all()
        return waiting.answer.result()

    def close(self) -> None:
        """Answer what waits, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return
                batch = self._gather()
                self._running += len(batch)
            try:
                self._answer(batch)
            finally:
                with self._changed:
                    self._running -= len(batch)

    def _gather(self) -> list[_Waiting]:
        """Take the oldest request and those that fit to it, after waiting for those that are about to come."""
        deadline = self._queue[0].arrived + self.parameters.batch_timeout_micros / 1e6
        while not self._closed:
            left = deadline - time.monotonic()
            coming = self.in_flight() - self._running - len(self._queue)
            if left <= 0 or coming <= 0 or not self._queue:
                break
            if sum(one.size for one in self._queue) >= self.parameters.max_batch_size:
                break
            self._changed.wait(left)
        batch, left_over, size = [], deque(), 0
        for one in self._queue:
            if size + one.size <= self.parameters.max_batch_size and (not batch or one.shapes == batch[0].shapes):
                batch.append(one)
                size += one.size
            else:
                left_over.append(one)
        self._queue = left_over
        return batch

    def _answer(self, batch: list[_Waiting]) -> None:
        if not batch:  # another thread was faster
            return
        self.observe(sum(one.size for one in batch))
        if len(batch) == 1:
            self._answer_alone(batch[0])
            return
        merged = {name: np.concatenate([one.inputs[name] for one in batch]) for name in batch[0].inputs}
        try:
            outputs = self.run(merged)
            ends = np.cumsum([one.size for one in batch])
            if any(len(array) != ends[-1] for array in outputs.values()):
                raise ValueError("the answer has another number of rows than the question")
        except Exception:
            # One bad image fails its whole batch, and the error does not name it: run one by one.
            for one in batch:
                self._answer_alone(one)
            return
        for one, end in zip(batch, ends, strict=True):
            one.answer.set_result({name: array[end - one.size : end] for name, array in outputs.items()})

    def _answer_alone(self, one: _Waiting) -> None:
        try:
            one.answer.set_result(self.run(one.inputs))
        except BaseException as error:
            one.answer.set_exception(error)
