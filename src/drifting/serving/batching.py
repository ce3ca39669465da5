"""Concurrent requests in common passes: while the generator makes a batch, the requests that arrive wait for the next one.

No request waits for others to come. A sample depends on its own request and index alone, so what it is made with changes nothing.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from drifting.sampling import Request
from drifting.serving.limits import RefusalError

# Makes samples of several requests: (request, indices) -> their samples, one after the other.
Make = Callable[[Sequence[tuple[Request, Sequence[int]]]], Tensor]
# Is told of every pass: number of samples, number of requests.
Watch = Callable[[int, int], None]


class _Waiting:
    """A request whose samples are not all made."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.done = 0
        self.made: list[Tensor] = []
        self.result: Future[Tensor] = Future()

    def take(self, most: int) -> range:
        """Return the indices of the next samples, at most so many."""
        start = self.done
        self.done = min(self.request.count, start + most)
        return range(start, self.done)

    def fail(self, error: BaseException) -> None:
        """End with an error, unless the client gave up."""
        with suppress(Exception):  # cancelled, or ended already
            self.result.set_exception(error)

    def add(self, samples: Tensor) -> None:
        """Keep samples, and end with the last ones."""
        self.made.append(samples)
        if self.done == self.request.count:
            with suppress(Exception):
                self.result.set_result(torch.cat(self.made))


class Batcher:
    """A thread with the generator, and the queue in front of it. It takes requests from `open` to `close`.

    Requests are served in the order of their arrival. One that is larger than a pass takes several.

    Args:
        make: makes the samples of a pass.
        batch_size: largest number of samples of a pass.
        max_waiting: largest number of requests in hand.
        watch: is called with the number of samples and of requests before each pass.
    """

    def __init__(self, make: Make, *, batch_size: int, max_waiting: int, watch: Watch = lambda samples, requests: None) -> None:
        self._make, self._batch_size, self._max_waiting, self._watch = make, batch_size, max_waiting, watch
        self._queue: deque[_Waiting] = deque()
        self._in_hand = 0
        self._closed = True
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def in_hand(self) -> int:
        """Number of requests that are not answered yet."""
        return self._in_hand

    @property
    def works(self) -> bool:
        """Whether requests are taken."""
        return not self._closed

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place in the queue, and keep it until the request is answered.

        Raises:
            RefusalError: if there is none (429), or the service ends (503).
        """
        with self._changed:
            if not self.works:
                raise RefusalError(503, "the service is ending: send the request again when it has started anew", 5)
            if self._in_hand >= self._max_waiting:
                raise RefusalError(429, f"{self._in_hand} requests are waiting, which is the limit: send this one again later", 1)
            self._in_hand += 1
        try:
            yield
        finally:
            with self._changed:
                self._in_hand -= 1

    def submit(self, request: Request) -> "Future[Tensor]":
        """Return the samples of a request in the future. Cancel it to give the request up."""
        waiting = _Waiting(request)
        with self._changed:
            self._queue.append(waiting)
            self._changed.notify()
        return waiting.result

    def open(self) -> None:
        """Start to make samples."""
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="generator", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more requests, end the pass that is being made, and give up what waits."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            self._make_batch(batch)
        while self._queue:
            self._queue.popleft().fail(
                RefusalError(503, "the service ended before the samples were made: send the request again", 5)
            )

    def _make_batch(self, batch: list[tuple[_Waiting, range]]) -> None:
        parts, sizes = [(one.request, indices) for one, indices in batch], [len(indices) for _, indices in batch]
        try:
            self._watch(sum(sizes), len(sizes))
            samples = self._make(parts).split(sizes)
        except Exception as error:  # the client is told; others are served
            if len(batch) == 1:
                batch[0][0].fail(error)
            else:
                for each in batch:
                    self._make_batch([each])
            return
        for (one, _), own in zip(batch, samples, strict=True):
            one.add(own)

    def _next_batch(self) -> list[tuple[_Waiting, range]]:
        """Return the next samples to make, once there are any; none if the service ends."""
        batch: list[tuple[_Waiting, range]] = []
        with self._changed:
            while not batch and not self._closed:
                left = self._batch_size
                while self._queue and left:
                    one = self._queue[0]
                    if not one.result.done():  # cancelled or failed
                        batch.append((one, one.take(left)))
                        left -= len(batch[-1][1])
                    if one.result.done() or one.done == one.request.count:
                        self._queue.popleft()
                if not batch:
                    self._changed.wait()
        return batch
