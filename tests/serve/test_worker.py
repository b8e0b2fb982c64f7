"""The queue of a server: order, bounds, time limits, and clients that leave."""

import asyncio
import threading

import pytest

pytest.importorskip("starlette", reason="Starlette is not installed")

from fcn_jax.serve.uploads import RequestError
from fcn_jax.serve.worker import Worker


async def stays() -> bool:
    return False


async def left() -> bool:
    return True


def test_jobs_run_one_after_the_other_in_their_order():
    ran, running = [], threading.Lock()

    def job(number: int) -> int:
        assert running.acquire(blocking=False)
        ran.append(number)
        running.release()
        return number

    async def main() -> list[int]:
        worker = Worker(9, 10)
        return await asyncio.gather(*(worker.run(lambda n=n: job(n), stays) for n in range(9)))

    assert asyncio.run(main()) == list(range(9)) == ran


def test_a_full_queue_says_when_to_come_again():
    worker = Worker(2, 10)
    with worker.place(), worker.place(), pytest.raises(RequestError, match="busy") as refused:
        worker.place().__enter__()
    assert refused.value.status == 503
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 1
    with worker.place():
        assert worker.in_progress == 1


def test_a_job_that_waits_too_long_never_runs_and_one_that_takes_too_long_ends_unheard():
    release, ran = threading.Event(), []

    def wait() -> bool:
        return release.wait(20)

    async def main() -> list[object]:
        worker = Worker(9, 0.3)
        jobs = [worker.run(wait, stays), worker.run(lambda: ran.append(1), stays)]
        errors = await asyncio.gather(*jobs, return_exceptions=True)
        release.set()
        assert await worker.run(lambda: "next", stays) == "next"
        return errors

    running, waiting = asyncio.run(main())
    assert isinstance(running, RequestError)
    assert isinstance(waiting, RequestError)
    assert (running.status, waiting.status) == (504, 503)
    assert running.retry_after_s is None
    assert waiting.retry_after_s is not None
    assert not ran


def test_the_job_of_a_client_that_left_is_dropped():
    release, ran = threading.Event(), []

    async def main() -> None:
        worker = Worker(9, 10)
        first = asyncio.ensure_future(worker.run(lambda: release.wait(20), stays))
        await asyncio.sleep(0)  # it begins
        with pytest.raises(RequestError, match="left"):
            await worker.run(lambda: ran.append(1), left)
        release.set()
        assert await first

    asyncio.run(main())
    assert not ran
