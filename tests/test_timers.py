"""call_later, call_at, time, and the handles of timers."""

import asyncio
import contextvars
import gc
import math
import random
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from support import ErrorLog, in_thread, wait_until_blocked

Loop = asyncio.AbstractEventLoop

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def named_callback() -> None:
    pass


class Weak:
    """Can be referred to weakly."""


def test_time_is_a_clock_that_runs_while_callbacks_run(loop: Loop) -> None:
    measured: list[float] = []

    def callback() -> None:
        start = loop.time()
        began = time.monotonic()
        while time.monotonic() - began < 0.01:
            pass
        measured.append(loop.time() - start)
        loop.stop()

    loop.call_soon(callback)
    loop.run_forever()
    assert isinstance(loop.time(), float)
    assert measured[0] >= 0.009


def test_time_never_goes_back(loop: Loop) -> None:
    moments = [loop.time() for _ in range(10_000)]
    assert moments == sorted(moments)


def test_timers_run_in_the_order_of_their_deadlines(loop: Loop) -> None:
    ran: list[int] = []
    for number in (3, 1, 4, 0, 2):
        loop.call_later(number * 0.004, ran.append, number)
    loop.call_later(0.03, loop.stop)
    loop.run_forever()
    assert ran == [0, 1, 2, 3, 4]


def test_timers_that_are_due_together_run_in_the_order_of_their_deadlines(loop: Loop) -> None:
    ran: list[int] = []
    now = loop.time()
    numbers = list(range(200))
    random.Random(7).shuffle(numbers)
    for number in numbers:
        loop.call_at(now - 1 + number / 1000, ran.append, number)
    loop.call_at(now, loop.stop)
    loop.run_forever()
    assert ran == list(range(200))


def test_two_timers_with_one_deadline_run_in_the_order_they_were_made(loop: Loop) -> None:
    ran: list[int] = []
    when = loop.time() + 0.002
    loop.call_at(when, ran.append, 0)
    loop.call_at(when, ran.append, 1)
    loop.call_at(when + 0.001, loop.stop)
    loop.run_forever()
    assert ran == [0, 1]


def test_many_timers_with_one_deadline_run_in_the_order_they_were_made(
    loop: Loop, loop_name: str
) -> None:
    ran: list[int] = []
    when = loop.time() + 0.002
    for number in range(100):
        loop.call_at(when, ran.append, number)
    loop.call_at(when + 0.001, loop.stop)
    loop.run_forever()
    if loop_name == "asyncio":
        ran.sort()  # its heap keeps no order among equals; kloop promises one
    assert ran == list(range(100))


def test_a_timer_is_never_early(loop: Loop) -> None:
    early: list[float] = []
    late: list[float] = []

    def callback(when: float) -> None:
        (early if loop.time() < when - 1e-6 else late).append(when)

    now = loop.time()
    for number in range(200):
        when = now + number * 0.000_137
        loop.call_at(when, callback, when)
    loop.call_at(now + 0.04, loop.stop)
    loop.run_forever()
    assert early == []
    assert len(late) == 200


@pytest.mark.parametrize("delay", [0, 0.0, -1, -1e9, -math.inf])
def test_a_delay_of_zero_or_less_runs_in_one_of_the_next_turns(loop: Loop, delay: float) -> None:
    ran: list[float] = []
    loop.call_later(delay, ran.append, delay)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert ran == [delay]


@pytest.mark.parametrize("delay", [86_400, 1e9, 1e30, math.inf])
def test_a_far_deadline_does_not_disturb_the_loop(loop: Loop, delay: float) -> None:
    ran: list[str] = []
    handle = loop.call_later(delay, ran.append, "far")
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    handle.cancel()
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert ran == []


def test_a_loop_that_waits_for_a_far_deadline_can_be_woken(loop: Loop) -> None:
    thread_id = threading.get_native_id()

    def waker() -> None:
        wait_until_blocked(thread_id)
        loop.call_soon_threadsafe(loop.stop)

    handle = loop.call_later(1e9, named_callback)
    with in_thread(waker):
        loop.run_forever()
    handle.cancel()


def test_an_earlier_timer_made_while_waiting_for_a_later_one_is_not_missed(loop: Loop) -> None:
    thread_id = threading.get_native_id()

    def waker() -> None:
        wait_until_blocked(thread_id)
        loop.call_soon_threadsafe(loop.call_later, 0.001, loop.stop)

    handle = loop.call_later(30, named_callback)
    start = loop.time()
    with in_thread(waker):
        loop.run_forever()
    assert loop.time() - start < 20
    handle.cancel()


def test_none_is_not_a_delay_and_not_a_deadline(loop: Loop) -> None:
    with pytest.raises(TypeError, match="delay must not be None"):
        loop.call_later(None, named_callback)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="when cannot be None"):
        loop.call_at(None, named_callback)  # type: ignore[arg-type]


def test_a_delay_must_be_a_number(loop: Loop) -> None:
    with pytest.raises(TypeError):
        loop.call_later("1", named_callback)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 40])
def test_arguments_are_passed_on(loop: Loop, count: int) -> None:
    got: list[tuple[object, ...]] = []
    arguments = tuple(object() for _ in range(count))
    loop.call_later(0, lambda *passed: got.append(passed), *arguments)
    loop.call_at(loop.time(), lambda *passed: got.append(passed), *arguments)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert got == [arguments, arguments]


def test_handles_tell_when_they_are_due(loop: Loop) -> None:
    at = loop.call_at(loop.time() + 12.5, named_callback)
    before = loop.time()
    later = loop.call_later(60, named_callback)
    after = loop.time()
    assert before + 60 <= later.when() <= after + 60
    assert at.when() < later.when()
    when = loop.time() + 1000.125
    assert loop.call_at(when, named_callback).when() == when


def test_timers_run_in_the_context_they_were_given_or_made_in(loop: Loop) -> None:
    seen: list[str] = []
    given = contextvars.copy_context()
    given.run(variable.set, "given")

    def make() -> None:
        variable.set("current")
        loop.call_later(0, lambda: seen.append(variable.get()))
        loop.call_at(loop.time(), lambda: seen.append(variable.get()), context=given)
        variable.set("changed after scheduling")

    contextvars.copy_context().run(make)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert sorted(seen) == ["current", "given"]


def test_a_cancelled_timer_does_not_run(loop: Loop) -> None:
    ran: list[int] = []
    handles = [loop.call_later(0.001, ran.append, number) for number in range(4)]
    handles[0].cancel()
    handles[2].cancel()
    handles[2].cancel()
    assert [handle.cancelled() for handle in handles] == [True, False, True, False]
    loop.call_later(0.003, loop.stop)
    loop.run_forever()
    assert sorted(ran) == [1, 3]


def test_a_timer_cancelled_by_one_that_is_due_with_it_does_not_run(loop: Loop) -> None:
    ran: list[str] = []
    now = loop.time()
    loop.call_at(now - 0.002, lambda: handle.cancel())
    handle: asyncio.Handle = loop.call_at(now - 0.001, ran.append, "cancelled")
    loop.call_at(now, loop.stop)
    loop.run_forever()
    assert ran == []


def test_a_timer_cancelled_after_it_ran_is_no_error(loop: Loop) -> None:
    handle = loop.call_later(0, loop.stop)
    loop.run_forever()
    assert not handle.cancelled()
    handle.cancel()
    assert handle.cancelled()
    loop.call_later(0.001, loop.stop)
    loop.run_forever()


def test_cancel_lets_go_of_the_arguments(loop: Loop) -> None:
    argument = Weak()
    released = weakref.ref(argument)
    handle = loop.call_later(1000, lambda _: None, argument)
    del argument
    handle.cancel()
    gc.collect()
    assert released() is None


def test_pending_timers_are_released_by_close(loop: Loop) -> None:
    argument = Weak()
    released = weakref.ref(argument)
    argument.handle = loop.call_later(1000, lambda _: None, argument)  # type: ignore[attr-defined]
    del argument
    loop.close()
    gc.collect()
    assert released() is None


def test_a_handle_can_be_cancelled_after_the_loop_is_closed(loop: Loop) -> None:
    handles = [loop.call_later(1000, named_callback), loop.call_soon(named_callback)]
    loop.close()
    for handle in handles:
        handle.cancel()
        assert handle.cancelled()


def test_thousands_of_timers_with_random_cancellations(loop: Loop) -> None:
    chance = random.Random(20)
    now = loop.time()
    deadlines = [now + chance.random() * 0.08 for _ in range(6000)]
    ran: list[float] = []
    handles = {when: loop.call_at(when, ran.append, when) for when in deadlines}
    cancelled = set(chance.sample(deadlines, 2000))
    for when in cancelled:
        handles[when].cancel()

    def cancel_some_that_have_not_run() -> None:
        for when in set(chance.sample(deadlines, 30)).difference(ran, cancelled):
            handles[when].cancel()
            cancelled.add(when)

    for step in range(60):
        loop.call_at(now + step * 0.001, cancel_some_that_have_not_run)
    loop.call_at(now + 0.081, loop.stop)
    loop.run_forever()
    assert len(cancelled) > 2000
    assert ran == sorted(set(deadlines) - cancelled)


def test_many_cancelled_timers_do_not_keep_their_callbacks(loop: Loop) -> None:
    objects = [Weak() for _ in range(5000)]
    references = [weakref.ref(item) for item in objects]
    handles = [loop.call_later(1000, lambda _: None, item) for item in objects]
    for handle in handles:
        handle.cancel()
    objects.clear()
    handles.clear()
    del handle
    loop.call_soon(loop.stop)
    loop.run_forever()
    gc.collect()
    assert sum(reference() is not None for reference in references) <= 1  # the comprehension's


def test_a_timer_made_by_a_timer_runs_in_a_later_turn(loop: Loop) -> None:
    turns = 0

    def again() -> None:
        nonlocal turns
        turns += 1
        if turns < 100:
            loop.call_later(0, again)
        else:
            loop.stop()

    loop.call_later(0, again)
    loop.run_forever()
    assert turns == 100


def test_repr_of_a_timer_names_its_callback_and_its_state(loop: Loop) -> None:
    handle = loop.call_later(1000, named_callback)
    assert "named_callback" in repr(handle)
    assert "when=" in repr(handle)
    handle.cancel()
    assert "cancelled" in repr(handle)


def test_an_exception_of_a_timer_reaches_the_exception_handler(
    loop: Loop, errors: ErrorLog
) -> None:
    def failing_timer() -> None:
        raise ZeroDivisionError

    handle = loop.call_later(0, failing_timer)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    report = errors.take()
    assert report["message"].startswith("Exception in callback ")
    assert "failing_timer" in report["message"]
    assert type(report["exception"]) is ZeroDivisionError
    assert report["handle"] is handle


@pytest.mark.parametrize("wait", [0.0, 0.001])
async def test_sleep_returns_its_result(loop: Loop, wait: float) -> None:
    start = loop.time()
    assert await asyncio.sleep(wait, "result") == "result"
    assert loop.time() - start >= wait


async def test_a_timer_can_be_made_from_any_callback_kind(loop: Loop) -> None:
    done = loop.create_future()
    steps: list[Callable[[], object]] = [
        lambda: loop.call_soon(steps[1]),
        lambda: loop.call_later(0.001, steps[2]),
        lambda: loop.call_soon_threadsafe(steps[3]),
        lambda: loop.call_at(loop.time(), done.set_result, "done"),
    ]
    steps[0]()
    assert await done == "done"


def test_not_a_number_is_due_at_once(new_loop: Callable[[], Loop]) -> None:
    if new_loop is asyncio.new_event_loop:
        pytest.skip("asyncio's selector raises ValueError for a timeout of NaN")
    loop = new_loop()
    ran: list[float] = []
    for delay in (math.nan, -math.nan, 0.0):
        loop.call_later(delay, ran.append, delay)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    loop.close()
    assert len(ran) == 3
