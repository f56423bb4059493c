"""Debug mode: what it checks, warns of and logs."""

import asyncio
import contextlib
import gc
import logging
import os
import re
import time
import traceback

import pytest

from support import LOCALHOST, ErrorLog, Recorder, StartChild, in_thread, linked

Loop = asyncio.AbstractEventLoop


@pytest.fixture
def debug_loop(loop: Loop) -> Loop:
    loop.set_debug(True)
    return loop


def run_ready(loop: Loop) -> None:
    loop.stop()
    loop.run_forever()


def the_one_about(name: str, caplog: pytest.LogCaptureFixture) -> str:
    """The message of the only warning that mentions the name."""
    [record] = [record for record in caplog.records if name in record.getMessage()]
    assert record.levelno == logging.WARNING
    return record.getMessage()


def nothing() -> None:
    pass


async def coroutine_function() -> None:
    pass


def test_debug_mode_is_off_unless_asked_for(loop: Loop) -> None:
    assert loop.get_debug() is False
    loop.set_debug(True)
    assert loop.get_debug() is True
    loop.set_debug(False)
    assert loop.get_debug() is False


def test_debug_mode_can_be_switched_on_by_the_environment(start_child: StartChild) -> None:
    child = start_child(
        "loop = new_event_loop()\nprint(loop.get_debug())\nloop.close()\n",
        env=os.environ | {"PYTHONASYNCIODEBUG": "1"},
    )
    output, complaints = child.communicate(timeout=30)
    assert (output, child.returncode) == ("True\n", 0), complaints


async def test_debug_mode_can_be_switched_while_running(loop: Loop) -> None:
    loop.set_debug(True)
    await asyncio.sleep(0)
    with pytest.raises(TypeError):
        loop.call_soon(coroutine_function)
    loop.set_debug(False)
    await asyncio.sleep(0)
    assert loop.get_debug() is False


def test_a_slow_callback_is_logged(debug_loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    def slow_callback() -> None:
        time.sleep(0.03)

    debug_loop.slow_callback_duration = 0.02
    with caplog.at_level(logging.WARNING, "asyncio"):
        debug_loop.call_soon(nothing)
        debug_loop.call_soon(slow_callback)
        debug_loop.call_soon(nothing)
        run_ready(debug_loop)
    message = the_one_about("slow_callback", caplog)
    assert message.startswith("Executing <Handle ")
    assert re.search(r" took \d+\.\d\d\d seconds$", message)


def test_a_slow_timer_is_logged(debug_loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    def slow_timer() -> None:
        time.sleep(0.03)
        debug_loop.stop()

    debug_loop.slow_callback_duration = 0.02
    with caplog.at_level(logging.WARNING, "asyncio"):
        debug_loop.call_later(0, slow_timer)
        debug_loop.run_forever()
    assert the_one_about("slow_timer", caplog).startswith("Executing <TimerHandle ")


def test_a_slow_step_of_a_task_is_logged(
    debug_loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow_coroutine() -> None:
        await asyncio.sleep(0)
        time.sleep(0.03)

    debug_loop.slow_callback_duration = 0.02
    with caplog.at_level(logging.WARNING, "asyncio"):
        debug_loop.run_until_complete(slow_coroutine())
    assert the_one_about("slow_coroutine", caplog).startswith("Executing <Task ")


def test_a_slow_callback_is_not_logged_without_debug_mode(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.slow_callback_duration = 0.001
    with caplog.at_level(logging.WARNING, "asyncio"):
        loop.call_soon(time.sleep, 0.01)
        run_ready(loop)
    assert caplog.records == []


def test_calls_from_another_thread_are_refused(debug_loop: Loop) -> None:
    def body() -> None:
        message = "Non-thread-safe operation invoked on an event loop other than the current one"
        try:
            with pytest.raises(RuntimeError, match=message):
                debug_loop.call_soon(nothing)
            with pytest.raises(RuntimeError, match=message):
                debug_loop.call_later(1, nothing)
            with pytest.raises(RuntimeError, match=message):
                debug_loop.call_at(1, nothing)
        finally:
            debug_loop.call_soon_threadsafe(debug_loop.stop)

    with contextlib.ExitStack() as stack:
        debug_loop.call_soon(lambda: stack.enter_context(in_thread(body)))
        debug_loop.run_forever()


def test_a_loop_that_does_not_run_takes_calls_from_any_thread(debug_loop: Loop) -> None:
    ran: list[str] = []

    def body() -> None:
        debug_loop.call_soon(ran.append, "ran")

    with in_thread(body):
        pass
    run_ready(debug_loop)
    assert ran == ["ran"]


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_coroutine_functions_are_no_callbacks(debug_loop: Loop, method: str) -> None:
    arguments = (1,) if method in {"call_later", "call_at"} else ()
    named = "call_at" if method == "call_later" else method
    with pytest.raises(TypeError, match=rf"coroutines cannot be used with {named}\(\)"):
        getattr(debug_loop, method)(*arguments, coroutine_function)


def test_coroutines_are_no_callbacks(debug_loop: Loop) -> None:
    coroutine = coroutine_function()
    with pytest.raises(TypeError, match=r"coroutines cannot be used with call_soon\(\)"):
        debug_loop.call_soon(coroutine)  # type: ignore[arg-type]
    coroutine.close()


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_callbacks_must_be_callable(debug_loop: Loop, method: str) -> None:
    arguments = (1,) if method in {"call_later", "call_at"} else ()
    named = "call_at" if method == "call_later" else method
    message = rf"a callable object was expected by {named}\(\), got 'not callable'"
    with pytest.raises(TypeError, match=message):
        getattr(debug_loop, method)(*arguments, "not callable")


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later"])
def test_reports_tell_where_the_callback_was_scheduled(
    debug_loop: Loop, errors: ErrorLog, method: str
) -> None:
    def failing_callback() -> None:
        raise ZeroDivisionError

    def schedule_it_here() -> None:
        arguments = (0,) if method == "call_later" else ()
        getattr(debug_loop, method)(*arguments, failing_callback)

    schedule_it_here()
    debug_loop.call_later(0.001, debug_loop.stop)
    debug_loop.run_forever()
    report = errors.take()
    stack = report["source_traceback"]
    assert isinstance(stack, traceback.StackSummary)
    assert stack[-1].name == "schedule_it_here"


def test_reports_have_no_source_without_debug_mode(loop: Loop, errors: ErrorLog) -> None:
    def failing_callback() -> None:
        raise ZeroDivisionError

    loop.call_soon(failing_callback)
    run_ready(loop)
    assert "source_traceback" not in errors.take()


def test_repr_of_a_handle_tells_where_it_was_made(debug_loop: Loop) -> None:
    handle = debug_loop.call_soon(nothing)
    assert f"created at {__file__}:" in repr(handle)
    run_ready(debug_loop)


def test_a_cancelled_handle_still_names_its_callback(debug_loop: Loop) -> None:
    handle = debug_loop.call_soon(nothing)
    handle.cancel()
    assert "nothing" in repr(handle)
    assert "cancelled" in repr(handle)


def test_an_exception_that_nobody_retrieves_is_reported(debug_loop: Loop, errors: ErrorLog) -> None:
    async def failing() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        task = asyncio.create_task(failing(), name="forgotten")
        await asyncio.wait([task])

    debug_loop.run_until_complete(main())
    gc.collect()
    report = errors.take()
    assert report["message"] == "Task exception was never retrieved"
    assert type(report["exception"]) is ZeroDivisionError
    assert report["future"].get_name() == "forgotten"
    assert "main" in [frame.name for frame in report["source_traceback"]]


def test_a_coroutine_that_is_never_awaited_warns_with_its_origin(debug_loop: Loop) -> None:
    async def forget() -> None:
        coroutine_function()  # type: ignore[unused-coroutine]

    with pytest.warns(RuntimeWarning, match="was never awaited") as caught:
        debug_loop.run_until_complete(forget())
    [warning] = caught
    assert "Coroutine created at" in str(warning.message)
    assert "in forget" in str(warning.message)


def test_a_task_destroyed_while_pending_is_reported(debug_loop: Loop, errors: ErrorLog) -> None:
    async def wait_for(future: asyncio.Future[None]) -> None:
        await future

    async def main() -> None:
        asyncio.create_task(wait_for(debug_loop.create_future()))  # noqa: RUF006
        await asyncio.sleep(0)

    debug_loop.run_until_complete(main())
    gc.collect()
    assert errors.take()["message"] == "Task was destroyed but it is pending!"


def test_transports_work_and_are_logged(debug_loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with linked(Recorder) as link:
            link.send(b"in")
            assert await link.protocol.received(2) == b"in"
            link.transport.pause_reading()
            link.transport.resume_reading()
            link.transport.write(b"out")
            assert await link.receive(3) == b"out"

    with caplog.at_level(logging.DEBUG, "asyncio"):
        debug_loop.run_until_complete(main())
    messages = [record.getMessage() for record in caplog.records]
    assert any("pauses reading" in message for message in messages)
    assert any("resumes reading" in message for message in messages)


@pytest.mark.asyncio_leaks
async def test_an_exception_on_accept_is_reported(debug_loop: Loop, errors: ErrorLog) -> None:
    def failing_factory() -> asyncio.Protocol:
        called.set_result(None)
        raise ZeroDivisionError

    called = debug_loop.create_future()
    server = await debug_loop.create_server(failing_factory, LOCALHOST, 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await called
        report = errors.take()
        assert report["message"] == "Error on transport creation for incoming connection"
        assert type(report["exception"]) is ZeroDivisionError
        del report
        gc.collect()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


def test_a_slow_protocol_is_warned_of(debug_loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    class Slow(Recorder):
        def data_received(self, data: bytes) -> None:
            time.sleep(0.02)
            super().data_received(data)

    async def main() -> None:
        async with linked(Slow) as link:
            link.send(b"in")
            assert await link.protocol.received(2) == b"in"

    debug_loop.slow_callback_duration = 0.01
    with caplog.at_level(logging.WARNING, "asyncio"):
        debug_loop.run_until_complete(main())
    assert any("Executing" in record.getMessage() for record in caplog.records)
