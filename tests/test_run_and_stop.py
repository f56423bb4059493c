"""run_forever, run_until_complete, stop and close: what they do and what they refuse."""

import asyncio
import gc
import sys
import threading
from collections.abc import Callable

import pytest

from support import in_thread, wait_until_blocked

Loop = asyncio.AbstractEventLoop


RUN_FOREVER_CHECKS_FIRST = pytest.mark.skipif(
    sys.version_info < (3, 14),
    reason="a refused run_forever() resets the loop that is running (seen on CPython 3.13.0)",
)


def nothing() -> None:
    pass


def test_stop_before_run_forever_runs_what_is_ready_once(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_soon(ran.append, "ready")
    loop.stop()
    loop.run_forever()
    assert ran == ["ready"]


def test_stop_lets_the_turn_end(loop: Loop) -> None:
    ran: list[str] = []

    def callback() -> None:
        loop.stop()
        loop.call_soon(ran.append, "next turn")

    loop.call_soon(callback)
    loop.call_soon(ran.append, "same turn")
    loop.run_forever()
    assert ran == ["same turn"]
    loop.stop()
    loop.run_forever()
    assert ran == ["same turn", "next turn"]


def test_a_stopped_loop_can_run_again(loop: Loop) -> None:
    for _ in range(50):
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert not loop.is_running()


def test_stop_from_a_thread(loop: Loop) -> None:
    thread_id = threading.get_native_id()

    def stopper() -> None:
        wait_until_blocked(thread_id)
        loop.call_soon_threadsafe(loop.stop)

    with in_thread(stopper):
        loop.run_forever()
    assert not loop.is_running()


def test_is_running_and_the_running_loop(loop: Loop) -> None:
    seen: list[object] = []

    def callback() -> None:
        seen.append(loop.is_running())
        seen.append(asyncio.get_running_loop())
        seen.append(asyncio.get_event_loop())
        loop.stop()

    assert not loop.is_running()
    loop.call_soon(callback)
    loop.run_forever()
    assert seen == [True, loop, loop]
    assert not loop.is_running()
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


def test_run_until_complete_returns_the_result(loop: Loop) -> None:
    async def result() -> int:
        await asyncio.sleep(0)
        return 7

    assert loop.run_until_complete(result()) == 7
    future = loop.create_future()
    loop.call_soon(future.set_result, 8)
    assert loop.run_until_complete(future) == 8
    assert loop.run_until_complete(future) == 8


def test_run_until_complete_raises_the_exception(loop: Loop) -> None:
    async def failing() -> None:
        raise LookupError("as planned")

    with pytest.raises(LookupError, match="as planned"):
        loop.run_until_complete(failing())


@pytest.mark.parametrize("exception", [SystemExit, KeyboardInterrupt])
def test_run_until_complete_raises_exit_exceptions_of_a_task(
    loop: Loop, exception: type[BaseException]
) -> None:
    async def leaving() -> None:
        await asyncio.sleep(0)
        raise exception("as planned")

    with pytest.raises(exception, match="as planned"):
        loop.run_until_complete(leaving())
    assert not loop.is_running()
    assert loop.run_until_complete(asyncio.sleep(0, "goes on")) == "goes on"


def test_run_until_complete_stopped_early(loop: Loop) -> None:
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match=r"Event loop stopped before Future completed\."):
        loop.run_until_complete(future)


def test_run_until_complete_of_a_future_of_another_loop(
    loop: Loop, new_loop: Callable[[], Loop]
) -> None:
    other = new_loop()
    try:
        future = other.create_future()
        with pytest.raises(ValueError, match="belongs to a different"):
            loop.run_until_complete(future)
    finally:
        other.close()


def test_run_until_complete_wants_an_awaitable(loop: Loop) -> None:
    with pytest.raises(TypeError, match=r"asyncio\.Future, a coroutine or an awaitable"):
        loop.run_until_complete(7)  # type: ignore[arg-type]


async def test_a_running_loop_cannot_run_until_complete(loop: Loop) -> None:
    future = loop.create_future()
    with pytest.raises(RuntimeError, match="This event loop is already running"):
        loop.run_until_complete(future)
    assert loop.is_running()
    assert asyncio.get_running_loop() is loop


@RUN_FOREVER_CHECKS_FIRST
async def test_a_running_loop_cannot_run_forever(loop: Loop) -> None:
    with pytest.raises(RuntimeError, match="This event loop is already running"):
        loop.run_forever()
    assert loop.is_running()
    assert asyncio.get_running_loop() is loop


async def test_another_loop_cannot_run_until_complete_inside_one(
    loop: Loop, new_loop: Callable[[], Loop]
) -> None:
    other = new_loop()
    try:
        future = other.create_future()
        with pytest.raises(
            RuntimeError, match="Cannot run the event loop while another loop is running"
        ):
            other.run_until_complete(future)
        assert not other.is_running()
        assert asyncio.get_running_loop() is loop
    finally:
        other.close()


@RUN_FOREVER_CHECKS_FIRST
async def test_another_loop_cannot_run_forever_inside_one(
    loop: Loop, new_loop: Callable[[], Loop]
) -> None:
    other = new_loop()
    try:
        with pytest.raises(
            RuntimeError, match="Cannot run the event loop while another loop is running"
        ):
            other.run_forever()
        assert asyncio.get_running_loop() is loop
    finally:
        other.close()


async def test_a_running_loop_cannot_be_closed(loop: Loop) -> None:
    with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
        loop.close()
    assert not loop.is_closed()
    await asyncio.sleep(0)


def test_a_loop_cannot_be_run_by_two_threads(loop: Loop) -> None:
    future = loop.create_future()

    def second() -> None:
        with pytest.raises(RuntimeError, match="This event loop is already running"):
            loop.run_until_complete(future)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=second)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


def test_a_closed_loop_refuses_work(loop: Loop) -> None:
    loop.close()
    assert loop.is_closed()
    future: asyncio.Future[None] = asyncio.Future(loop=loop)
    attempts: list[Callable[[], object]] = [
        lambda: loop.call_soon(nothing),
        lambda: loop.call_soon_threadsafe(nothing),
        lambda: loop.call_later(1, nothing),
        lambda: loop.call_at(1, nothing),
        lambda: loop.run_forever(),
        lambda: loop.run_until_complete(future),
        lambda: loop.run_in_executor(None, nothing),
        lambda: loop.add_reader(0, nothing),
        lambda: loop.add_writer(0, nothing),
    ]
    for attempt in attempts:
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            attempt()


def test_a_closed_loop_refuses_tasks(loop: Loop) -> None:
    async def coroutine() -> None:
        pass

    loop.close()
    refused = coroutine()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.create_task(refused)
    refused.close()


def test_close_twice_and_stop_after_close_are_no_errors(loop: Loop) -> None:
    loop.close()
    loop.close()
    loop.stop()
    assert loop.is_closed()


def test_close_drops_what_is_scheduled(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_soon(ran.append, "soon")
    loop.call_later(0, ran.append, "later")
    loop.call_soon_threadsafe(ran.append, "threadsafe")
    loop.close()
    assert ran == []


def test_a_loop_closes_in_another_thread_than_it_was_made_in(new_loop: Callable[[], Loop]) -> None:
    """asyncio's loops are free to move between threads while they do not run."""
    loop = new_loop()
    results: list[str] = []

    def body() -> None:
        results.append(loop.run_until_complete(asyncio.sleep(0.001, "ran")))
        loop.close()

    with in_thread(body):
        pass
    assert results == ["ran"]
    assert loop.is_closed()


def test_loops_run_in_several_threads_at_once(new_loop: Callable[[], Loop]) -> None:
    results: list[int] = []

    async def main(number: int) -> int:
        for _ in range(100):
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        return number

    def body(number: int) -> None:
        loop = new_loop()
        try:
            results.append(loop.run_until_complete(main(number)))
        finally:
            loop.close()

    threads = [threading.Thread(target=body, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(6))


@pytest.mark.usefixtures("no_fd_left")
def test_a_hundred_loops_leave_no_descriptor(new_loop: Callable[[], Loop]) -> None:
    for _ in range(100):
        loop = new_loop()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.mark.usefixtures("no_fd_left")
def test_an_unclosed_loop_warns(new_loop: Callable[[], Loop]) -> None:
    loops = [new_loop()]
    loops[0].run_until_complete(asyncio.sleep(0))

    def drop() -> None:
        loops.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        drop()


def test_repr_tells_the_state(loop: Loop) -> None:
    assert "running=False closed=False debug=False" in repr(loop)
    loop.close()
    assert "closed=True" in repr(loop)
