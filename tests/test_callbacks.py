"""call_soon and call_soon_threadsafe, their handles, and exceptions raised by callbacks."""

import asyncio
import contextvars
import gc
import logging
import queue
import socket
import threading
import weakref
from typing import Any

import pytest

from support import ErrorLog, in_thread, wait_until_blocked

Loop = asyncio.AbstractEventLoop

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def run_ready(loop: Loop) -> None:
    """Run what is ready now."""
    loop.stop()
    loop.run_forever()


def named_callback() -> None:
    pass


class Weak:
    """Can be referred to weakly."""


def test_callbacks_run_in_the_order_they_were_scheduled(loop: Loop) -> None:
    ran: list[int] = []
    for number in range(1000):
        loop.call_soon(ran.append, number)
    run_ready(loop)
    assert ran == list(range(1000))


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 40])
def test_arguments_are_passed_on(loop: Loop, method: str, count: int) -> None:
    got: list[tuple[object, ...]] = []
    arguments = tuple(object() for _ in range(count))
    getattr(loop, method)(lambda *passed: got.append(passed), *arguments)
    run_ready(loop)
    assert got == [arguments]


def test_a_callback_runs_once(loop: Loop) -> None:
    ran: list[int] = []
    loop.call_soon(ran.append, 1)
    run_ready(loop)
    run_ready(loop)
    assert ran == [1]


def test_callbacks_scheduled_by_callbacks_wait_for_the_next_turn(loop: Loop) -> None:
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        loop.call_soon(ran.append, "third")

    loop.call_soon(first)
    loop.call_soon(ran.append, "second")
    run_ready(loop)
    assert ran == ["first", "second"]
    run_ready(loop)
    assert ran == ["first", "second", "third"]


def test_a_chain_of_callbacks_does_not_starve_a_socket(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    turns = 0

    def again() -> None:
        nonlocal turns
        turns += 1
        if turns < 100_000:
            loop.call_soon(again)
        else:
            loop.stop()

    try:
        ours.setblocking(False)
        loop.add_reader(ours, loop.stop)
        loop.call_soon(again)
        theirs.send(b"x")
        loop.run_forever()
        assert turns < 1000
    finally:
        loop.remove_reader(ours)
        ours.close()
        theirs.close()


def test_missing_and_unknown_arguments_are_type_errors(loop: Loop) -> None:
    for method in (loop.call_soon, loop.call_soon_threadsafe):
        with pytest.raises(TypeError):
            method()  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            method(named_callback, unknown=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        loop.call_later(1)  # type: ignore[call-arg]


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe"])
def test_callbacks_run_in_a_copy_of_the_current_context(loop: Loop, method: str) -> None:
    seen: list[str] = []

    def callback() -> None:
        seen.append(variable.get())
        variable.set("changed by the callback")

    def schedule() -> None:
        variable.set("outer")
        getattr(loop, method)(callback)
        getattr(loop, method)(callback)
        variable.set("changed after scheduling")
        run_ready(loop)
        assert variable.get() == "changed after scheduling"

    contextvars.copy_context().run(schedule)
    assert seen == ["outer", "outer"]


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe"])
def test_a_given_context_is_entered(loop: Loop, method: str) -> None:
    context = contextvars.copy_context()
    context.run(variable.set, "given")
    seen: list[str] = []

    def callback() -> None:
        seen.append(variable.get())
        variable.set("changed by the callback")

    handle = getattr(loop, method)(callback, context=context)
    assert handle.get_context() is context
    run_ready(loop)
    assert seen == ["given"]
    assert context[variable] == "changed by the callback"
    assert variable.get() == "unset"


def test_handles_tell_the_context_they_captured(loop: Loop) -> None:
    token = variable.set("captured")
    try:
        handle = loop.call_soon(named_callback)
    finally:
        variable.reset(token)
    assert handle.get_context()[variable] == "captured"
    run_ready(loop)


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe"])
def test_a_cancelled_callback_does_not_run(loop: Loop, method: str) -> None:
    ran: list[int] = []
    handles = [getattr(loop, method)(ran.append, number) for number in range(5)]
    handles[1].cancel()
    handles[3].cancel()
    handles[3].cancel()
    assert [handle.cancelled() for handle in handles] == [False, True, False, True, False]
    run_ready(loop)
    assert ran == [0, 2, 4]


def test_a_callback_can_cancel_one_of_the_same_turn(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_soon(lambda: handle.cancel())
    handle: asyncio.Handle = loop.call_soon(ran.append, "cancelled")
    loop.call_soon(ran.append, "kept")
    run_ready(loop)
    assert ran == ["kept"]


def test_a_running_callback_may_cancel_itself(loop: Loop) -> None:
    ran: list[str] = []

    def callback() -> None:
        handle.cancel()
        ran.append("callback")

    handle = loop.call_soon(callback)
    run_ready(loop)
    assert ran == ["callback"]
    assert handle.cancelled()


def test_cancel_lets_go_of_the_callback_and_its_arguments(loop: Loop) -> None:
    argument = Weak()
    released = weakref.ref(argument)
    handle = loop.call_soon(lambda _: None, argument)
    del argument
    handle.cancel()
    gc.collect()
    assert released() is None
    run_ready(loop)


def test_arguments_are_released_once_the_callback_ran(loop: Loop) -> None:
    arguments = [Weak() for _ in range(6)]
    released = [weakref.ref(argument) for argument in arguments]
    loop.call_soon(lambda *_: None, *arguments)
    arguments.clear()
    run_ready(loop)
    assert [reference() for reference in released] == [None] * 6


def test_pending_callbacks_are_released_by_close(loop: Loop) -> None:
    argument = Weak()
    released = weakref.ref(argument)
    argument.handle = loop.call_soon(lambda _: None, argument)  # type: ignore[attr-defined]
    argument.other = loop.call_soon_threadsafe(lambda _: None, argument)  # type: ignore[attr-defined]
    del argument
    loop.close()
    gc.collect()
    assert released() is None


def test_repr_of_a_handle_names_its_callback(loop: Loop) -> None:
    handle = loop.call_soon(named_callback)
    assert "named_callback" in repr(handle)
    assert "cancelled" not in repr(handle)
    handle.cancel()
    assert "cancelled" in repr(handle)


def test_call_soon_threadsafe_wakes_a_blocked_loop(loop: Loop) -> None:
    thread_id = threading.get_native_id()

    def waker() -> None:
        wait_until_blocked(thread_id)
        loop.call_soon_threadsafe(loop.stop)

    with in_thread(waker):
        loop.run_forever()


def test_threads_and_loop_play_ping_pong(loop: Loop) -> None:
    rounds = 500
    to_thread: queue.SimpleQueue[int] = queue.SimpleQueue()
    seen: list[int] = []

    def pong(number: int) -> None:
        seen.append(number)
        if number + 1 < rounds:
            to_thread.put(number + 1)
        else:
            loop.stop()

    def ping() -> None:
        for _ in range(rounds):
            loop.call_soon_threadsafe(pong, to_thread.get(timeout=10))

    with in_thread(ping):
        to_thread.put(0)
        loop.run_forever()
    assert seen == list(range(rounds))


def test_callbacks_of_four_threads_all_arrive_in_the_order_of_each(loop: Loop) -> None:
    threads, each = 4, 5000
    arrived: list[list[int]] = [[] for _ in range(threads)]
    left = threads * each

    def arrive(thread: int, number: int) -> None:
        nonlocal left
        arrived[thread].append(number)
        left -= 1
        if left == 0:
            loop.stop()

    def send(thread: int) -> None:
        for number in range(each):
            loop.call_soon_threadsafe(arrive, thread, number)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(threads)]
    for sender in senders:
        loop.call_soon(sender.start)
    loop.run_forever()
    for sender in senders:
        sender.join()
    assert arrived == [list(range(each))] * threads


def test_call_soon_threadsafe_is_in_line_with_call_soon(loop: Loop) -> None:
    ran: list[int] = []
    for number in range(0, 10, 2):
        loop.call_soon(ran.append, number)
        loop.call_soon_threadsafe(ran.append, number + 1)
    loop.call_soon_threadsafe(loop.stop)
    loop.run_forever()
    assert sorted(ran) == list(range(10))
    assert [number for number in ran if number % 2] == [1, 3, 5, 7, 9]


def test_a_handle_of_call_soon_threadsafe_can_be_cancelled_by_the_thread(loop: Loop) -> None:
    ran: list[str] = []

    def body() -> None:
        handle = loop.call_soon_threadsafe(ran.append, "cancelled")
        handle.cancel()
        assert handle.cancelled()
        loop.call_soon_threadsafe(ran.append, "kept")

    with in_thread(body):
        pass
    run_ready(loop)
    assert ran == ["kept"]


def test_an_exception_of_a_callback_reaches_the_exception_handler(
    loop: Loop, errors: ErrorLog
) -> None:
    ran: list[str] = []

    def failing_callback() -> None:
        raise ZeroDivisionError("as planned")

    handle = loop.call_soon(failing_callback)
    loop.call_soon(ran.append, "after")
    run_ready(loop)
    report = errors.take()
    assert report["message"].startswith("Exception in callback ")
    assert "failing_callback" in report["message"]
    assert type(report["exception"]) is ZeroDivisionError
    assert report["handle"] is handle
    assert ran == ["after"]


def test_the_exception_handler_runs_in_the_context_of_the_callback(loop: Loop) -> None:
    seen: list[str] = []
    context = contextvars.copy_context()
    context.run(variable.set, "of the callback")
    loop.set_exception_handler(lambda *_: seen.append(variable.get()))

    def failing_callback() -> None:
        raise ZeroDivisionError

    loop.call_soon(failing_callback, context=context)
    run_ready(loop)
    assert seen == ["of the callback"]


def test_the_default_exception_handler_logs_the_exception(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    def failing_callback() -> None:
        raise ZeroDivisionError("as planned")

    loop.set_exception_handler(None)
    with caplog.at_level(logging.ERROR, "asyncio"):
        loop.call_soon(failing_callback)
        run_ready(loop)
    [record] = caplog.records
    assert "Exception in callback" in record.getMessage()
    assert "handle: " in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_an_exception_of_the_exception_handler_is_logged(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    def failing_handler(loop: Loop, context: dict[str, Any]) -> None:
        raise LookupError("in the handler")

    def failing_callback() -> None:
        raise ZeroDivisionError("in the callback")

    loop.set_exception_handler(failing_handler)
    with caplog.at_level(logging.ERROR, "asyncio"):
        loop.call_soon(failing_callback)
        loop.call_soon(ran.append, "after")
        run_ready(loop)
    [record] = caplog.records
    assert "Unhandled error in exception handler" in record.getMessage()
    assert ran == ["after"]


@pytest.mark.parametrize("exception", [SystemExit, KeyboardInterrupt])
def test_exit_exceptions_leave_the_loop_and_keep_the_other_callbacks(
    loop: Loop, exception: type[BaseException]
) -> None:
    ran: list[str] = []

    def leave() -> None:
        raise exception("as planned")

    loop.call_soon(ran.append, "before")
    loop.call_soon(leave)
    loop.call_soon(ran.append, "after")
    with pytest.raises(exception, match="as planned"):
        loop.run_forever()
    assert ran == ["before"]
    assert not loop.is_running()
    run_ready(loop)
    assert ran == ["before", "after"]
