"""Time what a loop does without a socket, and print it as JSON: a name to nanoseconds each.

All figures are processor time of the process per operation, the least of some repetitions,
but for two: what `call_soon_threadsafe` costs is the calling thread's processor time, and the
wake-up is wall time, the median.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import statistics
import threading
import time
from typing import TYPE_CHECKING

import serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BATCH = 1000


def nothing(*_: object) -> None:
    """Be called."""


async def call_soon_batches(count: int) -> None:
    """Schedule callbacks, many for one turn."""
    loop = asyncio.get_running_loop()
    for _ in range(count // BATCH):
        for _ in range(BATCH):
            loop.call_soon(nothing)
        await asyncio.sleep(0)


async def call_soon_chain(count: int) -> None:
    """Schedule one callback a turn, each by the one before it."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(step)
        else:
            done.set_result(None)

    loop.call_soon(step)
    await done


async def call_later_cancel(count: int) -> None:
    """Set timers and cancel them, as a time limit that is kept does."""
    loop = asyncio.get_running_loop()
    for _ in range(count // BATCH):
        for _ in range(BATCH):
            loop.call_later(60.0, nothing).cancel()
        await asyncio.sleep(0)


async def call_later_fires(count: int) -> None:
    """Set timers in no order, and let them fire once all are due."""
    loop = asyncio.get_running_loop()
    for _ in range(count // BATCH):
        done = loop.create_future()
        for number in range(BATCH - 1):
            loop.call_later(0.001 + number * 7919 % BATCH * 1e-6, nothing)
        loop.call_later(0.0021, done.set_result, None)
        time.sleep(0.0025)
        await done


async def sleep_one_task(count: int) -> None:
    """Give way in one task."""
    for _ in range(count):
        await asyncio.sleep(0)


async def sleep_hundred_tasks(count: int) -> None:
    """Give way in a hundred tasks."""
    await asyncio.gather(*(sleep_one_task(count // 100) for _ in range(100)))


async def create_and_gather(count: int) -> None:
    """Run short tasks, a hundred at a time."""

    async def short() -> None:
        pass

    for _ in range(count // 100):
        await asyncio.gather(*(asyncio.create_task(short()) for _ in range(100)))


async def future_wakes(count: int) -> None:
    """Wait for a future that a callback sets."""
    loop = asyncio.get_running_loop()
    for _ in range(count):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future


async def executor(count: int) -> None:
    """Run a function in the default executor."""
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.run_in_executor(None, nothing)


async def threadsafe_cost(count: int) -> float:
    """Schedule callbacks from another thread; its processor time for each, in ns."""
    loop = asyncio.get_running_loop()

    def post() -> float:
        start = time.thread_time_ns()
        for _ in range(count):
            loop.call_soon_threadsafe(nothing)
        return (time.thread_time_ns() - start) / count

    return await from_thread(post)


async def threadsafe_wake(count: int) -> float:
    """Wake the loop from another thread; the median time until its callback runs, in ns."""
    loop = asyncio.get_running_loop()

    def wake() -> float:
        times = []
        arrived = threading.Event()

        def callback(start: int) -> None:
            times.append(time.perf_counter_ns() - start)
            arrived.set()

        for _ in range(count):
            arrived.clear()
            time.sleep(0.0003)  # the loop falls asleep
            loop.call_soon_threadsafe(callback, time.perf_counter_ns())
            arrived.wait()
        return statistics.median(times)

    return await from_thread(wake)


async def from_thread(function: Callable[[], float]) -> float:
    """Call `function` in a new thread, and wait for its result without looking for it."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[float] = loop.create_future()

    def body() -> None:
        loop.call_soon_threadsafe(result.set_result, function())

    thread = threading.Thread(target=body)
    thread.start()
    try:
        return await result
    finally:
        thread.join()


# How often each is done at a time: tens of milliseconds on the slowest loop.
BY_PROCESS: dict[str, tuple[Callable[[int], Awaitable[None]], int]] = {
    "call_soon, batches of 1000": (call_soon_batches, 100_000),
    "call_soon chain": (call_soon_chain, 20_000),
    "call_later and cancel": (call_later_cancel, 30_000),
    "call_later, fires": (call_later_fires, 10_000),
    "sleep(0), 1 task": (sleep_one_task, 20_000),
    "sleep(0), 100 tasks": (sleep_hundred_tasks, 50_000),
    "create_task and gather": (create_and_gather, 15_000),
    "future set and wake": (future_wakes, 10_000),
    "run_in_executor": (executor, 1_000),
}
BY_ITSELF: dict[str, tuple[Callable[[int], Awaitable[float]], int]] = {
    "call_soon_threadsafe, cost to caller": (threadsafe_cost, 10_000),
    "call_soon_threadsafe, wall time to wake": (threadsafe_wake, 60),
}


async def measure(repetitions: int) -> dict[str, float]:
    """Time everything, in turns."""
    times: dict[str, list[float]] = {name: [] for name in (*BY_PROCESS, *BY_ITSELF)}
    for _ in range(repetitions):
        for name, (operation, count) in BY_PROCESS.items():
            gc.collect()
            start = time.process_time_ns()
            await operation(count)
            times[name].append((time.process_time_ns() - start) / count)
        for name, (timed, count) in BY_ITSELF.items():
            gc.collect()
            times[name].append(await timed(count))
    return {name: min(found) for name, found in times.items()}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", default="asyncio", help="the module with new_event_loop")
    parser.add_argument("--cpu", type=int, help="stay on this CPU")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    serving.end_with_parent()
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    factory = importlib.import_module(arguments.loop).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(runner.run(measure(arguments.repetitions))))


if __name__ == "__main__":
    main()
