"""Handles as objects: their classes, comparisons, weak references, and use by other threads."""

import asyncio
import contextvars
import gc
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support import in_thread, wait_until_blocked

Loop = asyncio.AbstractEventLoop

since_3_14 = pytest.mark.skipif(
    sys.version_info < (3, 14), reason="asyncio's handles know threads since CPython 3.14"
)


def callback() -> None:
    pass


def test_handles_are_instances_of_asyncios_classes(loop: Loop) -> None:
    soon, threadsafe = loop.call_soon(callback), loop.call_soon_threadsafe(callback)
    timers = loop.call_later(10, callback), loop.call_at(loop.time() + 10, callback)
    for handle in (soon, threadsafe, *timers):
        assert isinstance(handle, asyncio.Handle)
        assert isinstance(handle, asyncio.TimerHandle) == (handle in timers)
        handle.cancel()


@pytest.mark.parametrize("cancel", [True, False])
def test_handles_can_be_referred_to_weakly(loop: Loop, cancel: bool) -> None:
    handles = [
        loop.call_soon(callback),
        loop.call_soon_threadsafe(callback),
        loop.call_later(0, callback),
    ]
    gone: list[int] = []
    references = [
        weakref.ref(handle, lambda _, number=number: gone.append(number))
        for number, handle in enumerate(handles)
    ]
    assert [reference() for reference in references] == handles
    while handles:
        if cancel:
            handles[-1].cancel()
        handles.pop()
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    gc.collect()
    assert sorted(gone) == [0, 1, 2]
    assert [reference() for reference in references] == [None] * 3


def test_new_handles_do_not_inherit_weak_references(loop: Loop) -> None:
    for _ in range(100):
        handle = loop.call_soon(callback)
        assert weakref.getweakrefcount(handle) == 0
        reference = weakref.ref(handle)
        handle.cancel()
        del handle
        loop.stop()
        loop.run_forever()
        assert reference() is None


def test_timers_are_ordered_by_their_deadlines(loop: Loop) -> None:
    now = loop.time()
    early, late = loop.call_at(now + 10, callback), loop.call_at(now + 20, callback)
    assert early < late
    assert early <= late
    assert late > early
    assert late >= early
    assert not early > late
    assert early != late
    assert hash(early) == hash(now + 10)
    assert sorted([late, early]) == [early, late]
    early.cancel()
    late.cancel()


def test_timers_are_equal_if_they_will_do_the_same(loop: Loop) -> None:
    when = loop.time() + 10
    one, same = loop.call_at(when, callback), loop.call_at(when, callback)
    other = loop.call_at(when, callback, 1)
    assert one == same
    assert one <= same
    assert one >= same
    assert hash(one) == hash(same)
    assert one != other
    assert {one, same, other} == {one, other}
    same.cancel()
    assert one != same
    one.cancel()
    other.cancel()


def test_timers_have_no_order_with_other_things(loop: Loop) -> None:
    timer: object = loop.call_later(10, callback)
    assert timer != 10
    for compare in (lambda: timer < 10, lambda: timer >= 10):  # type: ignore[operator]
        with pytest.raises(TypeError):
            compare()


@since_3_14
@pytest.mark.parametrize("question", ["cancel", "cancelled"])
@pytest.mark.parametrize("debug", [False, True])
def test_a_thread_that_asks_about_a_running_callback_waits_for_its_end(
    loop: Loop, question: str, debug: bool
) -> None:
    loop.set_debug(debug)
    loop.slow_callback_duration = 100  # type: ignore[attr-defined]
    happened: list[object] = []
    running = threading.Event()
    asker: list[int] = []

    def callback() -> None:
        running.set()
        wait_until_blocked(asker[0])
        happened.append("callback")
        loop.stop()

    def ask() -> None:
        asker.append(threading.get_native_id())
        handle = loop.call_soon_threadsafe(callback)
        running.wait()
        happened.append(getattr(handle, question)())

    with in_thread(ask):
        loop.run_forever()
    assert happened == ["callback", None if question == "cancel" else False]


@since_3_14
def test_several_threads_may_wait_for_the_end_of_one_callback(loop: Loop) -> None:
    running = threading.Event()
    askers: list[int] = []
    happened: list[object] = []

    def callback() -> None:
        running.set()
        while len(askers) < 3:
            pass
        for asker in askers:
            wait_until_blocked(asker)
        happened.append("callback")
        loop.stop()

    handle = loop.call_soon_threadsafe(callback)

    def ask() -> None:
        running.wait()
        askers.append(threading.get_native_id())
        handle.cancel()
        happened.append("asked")

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask) for _ in range(3)]
        loop.run_forever()
        for future in asked:
            future.result()
    assert happened == ["callback", "asked", "asked", "asked"]


@pytest.mark.parametrize("raises", [False, True])
def test_a_callback_may_cancel_its_own_thread_safe_handle(
    loop: Loop, errors: list[object], raises: bool
) -> None:
    def callback() -> None:
        handle.cancel()
        assert handle.cancelled()
        if raises:
            raise ZeroDivisionError

    handle = loop.call_soon_threadsafe(callback)
    loop.stop()
    loop.run_forever()
    assert len(errors) == raises
    errors.clear()
    with in_thread(handle.cancel):  # it is over: nobody waits
        pass


class Interrupted(Exception):
    pass


@pytest.fixture
def raising_signal() -> Iterator[int]:
    """A signal whose handler raises Interrupted."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)


@since_3_14
def test_a_signal_interrupts_a_thread_that_waits_for_a_callback(
    new_loop: Callable[[], Loop], raising_signal: int
) -> None:
    loop = new_loop()
    running, over = threading.Event(), threading.Event()
    waiter, waiter_id = threading.get_ident(), threading.get_native_id()

    def callback() -> None:
        running.set()
        wait_until_blocked(waiter_id)
        signal.pthread_kill(waiter, raising_signal)
        over.wait()

    handle = loop.call_soon_threadsafe(callback)
    loop.call_soon(loop.stop)
    with in_thread(loop.run_forever):
        running.wait()
        try:
            with pytest.raises(Interrupted):
                handle.cancel()
        finally:
            over.set()
    loop.close()


@since_3_14
@pytest.mark.parametrize("delays", [(0.3,), (0.1, 0.3)], ids=["late", "several"])
def test_threads_that_ask_while_a_callback_ends_are_not_forgotten(
    new_loop: Callable[[], Loop], monkeypatch: pytest.MonkeyPatch, delays: tuple[float, ...]
) -> None:
    """What they wait with takes long to make: other threads run meanwhile."""
    delay = threading.local()
    initialize = threading.Event.__init__

    def slow(event: threading.Event) -> None:
        initialize(event)
        time.sleep(getattr(delay, "seconds", 0))

    loop = new_loop()
    together = threading.Barrier(len(delays) + 1)

    def callback() -> None:
        together.wait()
        time.sleep(0.2)

    def ask(seconds: float) -> None:
        together.wait()
        delay.seconds = seconds
        handle.cancel()

    handle = loop.call_soon_threadsafe(callback)
    monkeypatch.setattr(threading.Event, "__init__", slow)
    threads = [threading.Thread(target=ask, args=(each,), daemon=True) for each in delays]
    for thread in threads:
        thread.start()
    loop.call_later(0.5, loop.stop)
    loop.run_forever()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)
    loop.close()


# Handles that are made while the loop runs, and are part of a cycle afterwards


class Holder:
    """Refers to a handle whose context refers to it."""

    handle: asyncio.Handle


holder_variable: contextvars.ContextVar[Holder | None] = contextvars.ContextVar("holder")


@pytest.mark.parametrize("end", ["run", "cancel", "close"])
@pytest.mark.parametrize("timer", [False, True], ids=["soon", "timer"])
def test_a_handle_in_a_cycle_is_collected(
    new_loop: Callable[[], Loop], end: str, timer: bool
) -> None:
    loop = new_loop()
    gone: list[None] = []

    def schedule() -> None:
        holder = Holder()
        weakref.finalize(holder, gone.append, None)
        context = contextvars.copy_context()
        context.run(holder_variable.set, holder)
        if timer:
            delay = 0 if end == "run" else 1000
            holder.handle = loop.call_later(delay, callback, context=context)
        else:
            holder.handle = loop.call_soon(callback, context=context)
        if end == "cancel":
            holder.handle.cancel()

    loop.call_soon(schedule)
    loop.call_soon(loop.stop)
    loop.run_forever()
    if end != "close":
        loop.call_later(0.001, loop.stop)
        loop.run_forever()
    loop.close()
    gc.collect()
    assert gone == [None]


def test_a_cancelled_timer_that_its_loop_refers_to_is_collected(
    new_loop: Callable[[], Loop],
) -> None:
    async def cancel() -> None:
        loop = asyncio.get_running_loop()
        handle = loop.call_later(1000, callback)
        handle.cancel()
        loop.kept = handle  # type: ignore[attr-defined]

    loop = new_loop()
    gone: list[None] = []
    weakref.finalize(loop, gone.append, None)
    loop.run_until_complete(cancel())
    loop.close()
    del loop
    gc.collect()
    assert gone == [None]


def abandoned_loop(loop: Loop) -> weakref.ref[Loop]:
    """Leave a loop with handles in its queues, to which others refer, too."""
    held: list[asyncio.Handle] = []

    def schedule() -> None:
        for _ in range(100):
            held.append(loop.call_later(1000, held.append, None))
            held.append(loop.call_soon(held.append, None))

    loop.call_soon(schedule)
    loop.call_soon(loop.stop)
    loop.run_forever()
    return weakref.ref(loop)


def test_a_loop_that_nobody_closed_is_collected_with_its_handles(
    new_loop: Callable[[], Loop],
) -> None:
    loop = abandoned_loop(new_loop())
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        gc.collect()
    assert loop() is None


def test_garbage_is_collected_while_handles_wait_in_a_running_loop(loop: Loop) -> None:
    ran: list[int] = []

    def schedule() -> None:
        for number in range(3000):
            argument = [number]
            argument.append(argument)  # type: ignore[arg-type]
            loop.call_soon(lambda item: ran.append(item[0]), argument)
            loop.call_later(0, lambda item: ran.append(item[0]), argument)
        gc.collect()
        loop.call_later(0.001, loop.stop)

    loop.call_soon(schedule)
    loop.run_forever()
    assert sorted(ran) == sorted([*range(3000), *range(3000)])
