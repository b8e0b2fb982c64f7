"""Computes one image at a time in a thread, with a bounded queue and a time limit."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import TypeVar

from fcn_jax.serve.uploads import RequestError

T = TypeVar("T")

LOOK_EVERY_SECONDS = 0.25
"""Interval at which a waiting request is dropped if its client has left."""


class Worker:
    """A thread that runs jobs in the order of their arrival.

    Args:
        most: number of requests that may be in progress at the same time.
        time_limit_s: seconds that a request waits for its job.
    """

    def __init__(self, most: int, time_limit_s: float):
        self.most = most
        self.in_progress = 0
        self._time_limit_s = time_limit_s
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="segment")
        self._mean_s = 1.0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A context that holds one of the places for requests.

        Raises:
            RequestError: all places are taken (503, with Retry-After).
        """
        if self.in_progress >= self.most:
            raise RequestError(
                503,
                f"the server is busy with {self.in_progress} images: try again later",
                retry_after_s=max(1, math.ceil(self._mean_s * self.in_progress)),
            )
        self.in_progress += 1
        try:
            yield
        finally:
            self.in_progress -= 1

    async def run(self, job: Callable[[], T], has_left: Callable[[], Awaitable[bool]]) -> T:
        """Runs a job after those that came before.

        A job that has not begun is dropped when its client has left or its time is over; a job that
        has begun cannot be stopped, and ends unheard.

        Args:
            job: the job.
            has_left: returns whether the client has closed the connection.

        Raises:
            RequestError: the time is over (503 if the job had to wait too long, else 504), or the
                client has left.
        """
        began = False

        def timed() -> T:
            nonlocal began
            began = True
            started = perf_counter()
            try:
                return job()
            finally:
                self._mean_s = 0.8 * self._mean_s + 0.2 * (perf_counter() - started)

        ends = perf_counter() + self._time_limit_s
        submitted = self._executor.submit(timed)
        future = asyncio.wrap_future(submitted)
        while not (await asyncio.wait({future}, timeout=LOOK_EVERY_SECONDS))[0]:
            if await has_left():
                _drop(submitted, future)
                raise RequestError(400, "the client left before its answer was computed")
            if perf_counter() > ends:
                _drop(submitted, future)
                if began:
                    raise RequestError(
                        504,
                        f"the image took longer than this server's {self._time_limit_s:g} seconds: "
                        "send a smaller one",
                    )
                raise RequestError(
                    503,
                    f"the image waited longer than this server's {self._time_limit_s:g} seconds",
                    retry_after_s=max(1, math.ceil(self._mean_s * self.in_progress)),
                )
        return future.result()

    def close(self) -> None:
        """Waits for the job that has begun, and drops the others."""
        self._executor.shutdown(cancel_futures=True)


def _drop(submitted: Future[T], future: asyncio.Future[T]) -> None:
    """Takes a job out of the queue, or leaves its result or error unheard if it has begun."""
    submitted.cancel()
    future.cancel()
