"""Signals: handlers of the loop, and interrupts of a loop that waits."""

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from support import StartChild, in_thread, wait_until_blocked

Loop = asyncio.AbstractEventLoop


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def nothing() -> None:
    pass


def wait_until_ready(child: subprocess.Popen[str]) -> None:
    """Return once the child has said that it is ready, and waits."""
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    wait_until_blocked(child.pid)


def finish(child: subprocess.Popen[str]) -> tuple[str, str]:
    return child.communicate(timeout=30)


async def test_a_signal_handler_runs_in_the_loop(loop: Loop) -> None:
    got: asyncio.Future[tuple[object, ...]] = loop.create_future()

    def handler(*arguments: object) -> None:
        assert asyncio.get_running_loop() is loop
        got.set_result(arguments)

    loop.add_signal_handler(signal.SIGUSR1, handler, "a", 1)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert await got == ("a", 1)
    assert loop.remove_signal_handler(signal.SIGUSR1)


def test_a_signal_wakes_a_blocked_loop(loop: Loop) -> None:
    thread_id = threading.get_native_id()

    def sender() -> None:
        wait_until_blocked(thread_id)
        os.kill(os.getpid(), signal.SIGUSR1)

    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    with in_thread(sender):
        loop.run_forever()
    assert loop.remove_signal_handler(signal.SIGUSR1)


async def test_each_signal_has_its_handler(loop: Loop) -> None:
    got: asyncio.Queue[str] = asyncio.Queue()
    loop.add_signal_handler(signal.SIGUSR1, got.put_nowait, "one")
    loop.add_signal_handler(signal.SIGUSR2, got.put_nowait, "two")
    for number, expected in ((signal.SIGUSR2, "two"), (signal.SIGUSR1, "one")) * 20:
        os.kill(os.getpid(), number)
        assert await got.get() == expected
    assert loop.remove_signal_handler(signal.SIGUSR1)
    assert loop.remove_signal_handler(signal.SIGUSR2)


async def test_a_second_handler_replaces_the_first(loop: Loop) -> None:
    got: asyncio.Queue[str] = asyncio.Queue()
    loop.add_signal_handler(signal.SIGUSR1, got.put_nowait, "first")
    loop.add_signal_handler(signal.SIGUSR1, got.put_nowait, "second")
    os.kill(os.getpid(), signal.SIGUSR1)
    assert await got.get() == "second"
    assert got.empty()
    assert loop.remove_signal_handler(signal.SIGUSR1)


async def test_remove_restores_the_default(loop: Loop) -> None:
    assert loop.remove_signal_handler(signal.SIGUSR1) is False
    loop.add_signal_handler(signal.SIGUSR1, nothing)
    loop.add_signal_handler(signal.SIGINT, nothing)
    assert loop.remove_signal_handler(signal.SIGUSR1) is True
    assert loop.remove_signal_handler(signal.SIGUSR1) is False
    assert loop.remove_signal_handler(signal.SIGINT) is True
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_close_removes_the_handlers(loop: Loop) -> None:
    loop.add_signal_handler(signal.SIGUSR1, nothing)
    loop.add_signal_handler(signal.SIGUSR2, nothing)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


async def test_what_cannot_be_handled_is_refused(loop: Loop) -> None:
    async def coroutine_function() -> None:
        pass

    with pytest.raises(RuntimeError, match="sig 9 cannot be caught"):
        loop.add_signal_handler(signal.SIGKILL, nothing)
    with pytest.raises(ValueError, match="invalid signal number 1000"):
        loop.add_signal_handler(1000, nothing)
    with pytest.raises(TypeError, match="sig must be an int, not 'SIGUSR1'"):
        loop.add_signal_handler("SIGUSR1", nothing)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="coroutines cannot be used with add_signal_handler"):
        loop.add_signal_handler(signal.SIGUSR1, coroutine_function)
    assert loop.remove_signal_handler(signal.SIGUSR1) is False


def test_only_the_main_thread_can_handle_signals(new_loop: Callable[[], Loop]) -> None:
    def body() -> None:
        loop = new_loop()
        try:
            with pytest.raises((RuntimeError, ValueError)):
                loop.add_signal_handler(signal.SIGUSR1, nothing)
        finally:
            loop.close()

    with in_thread(body):
        pass


def test_a_handler_of_the_signal_module_runs_while_the_loop_waits(loop: Loop) -> None:
    thread_id = threading.get_native_id()
    ran: list[int] = []

    def handler(number: int, frame: object) -> None:
        ran.append(number)
        loop.call_soon_threadsafe(loop.stop)

    def sender() -> None:
        wait_until_blocked(thread_id)
        os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, handler)
    with in_thread(sender):
        loop.run_forever()
    assert ran == [signal.SIGUSR1]


def test_an_exception_of_a_handler_of_the_signal_module_leaves_the_loop(loop: Loop) -> None:
    thread_id = threading.get_native_id()

    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt("from the handler")

    def sender() -> None:
        wait_until_blocked(thread_id)
        os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, handler)
    with in_thread(sender), pytest.raises(KeyboardInterrupt, match="from the handler"):
        loop.run_forever()
    assert loop.run_until_complete(asyncio.sleep(0.001, "goes on")) == "goes on"


def test_an_interrupt_cancels_the_main_task_of_a_runner(start_child: StartChild) -> None:
    child = start_child(
        """
async def main():
    try:
        print("ready", flush=True)
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        print("cancelled", flush=True)
        await asyncio.sleep(0)
        raise

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""
    )
    wait_until_ready(child)
    child.send_signal(signal.SIGINT)
    output, complaints = finish(child)
    assert output == "cancelled\n"
    assert complaints.splitlines()[-1].startswith("KeyboardInterrupt")
    assert child.returncode == -signal.SIGINT


def test_a_second_interrupt_ends_a_runner_that_will_not_be_cancelled(
    start_child: StartChild,
) -> None:
    child = start_child(
        """
async def main():
    while True:
        print("ready", flush=True)
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass

try:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
    import os
    os._exit(5)
"""
    )
    wait_until_ready(child)
    child.send_signal(signal.SIGINT)
    wait_until_ready(child)
    child.send_signal(signal.SIGINT)
    # The closing runner cancels the task once more, which it survives: a third interrupt.
    wait_until_ready(child)
    child.send_signal(signal.SIGINT)
    output, complaints = finish(child)
    assert output.endswith("interrupted\n"), complaints
    assert child.returncode == 5


def test_an_interrupt_leaves_a_bare_loop_that_waits(start_child: StartChild) -> None:
    child = start_child(
        """
loop = new_event_loop()
loop.call_soon(lambda: print("ready", flush=True))
try:
    loop.run_forever()
except KeyboardInterrupt:
    print("interrupted", loop.is_running())
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    print("closed")
"""
    )
    wait_until_ready(child)
    child.send_signal(signal.SIGINT)
    output, complaints = finish(child)
    assert output == "interrupted False\nclosed\n", complaints
    assert child.returncode == 0


def test_a_signal_without_a_handler_ends_a_loop_that_waits(start_child: StartChild) -> None:
    child = start_child(
        """
loop = new_event_loop()
loop.call_soon(lambda: print("ready", flush=True))
loop.run_forever()
"""
    )
    wait_until_ready(child)
    child.terminate()
    assert finish(child) == ("", "")
    assert child.returncode == -signal.SIGTERM


def test_a_loop_stopped_by_a_signal_handler_exits_cleanly(start_child: StartChild) -> None:
    child = start_child(
        """
import signal

async def main():
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print("ready", flush=True)
    await stopped.wait()
    print("stopped")

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""
    )
    wait_until_ready(child)
    child.terminate()
    assert finish(child) == ("stopped\n", "")
    assert child.returncode == 0
