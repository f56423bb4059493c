"""Tasks, futures, async generators, executors and asyncio.Runner on the loop."""

import asyncio
import concurrent.futures
import contextvars
import gc
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import pytest

from support import ErrorLog

Loop = asyncio.AbstractEventLoop

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

ANY_KEYWORD = pytest.mark.skipif(
    sys.version_info < (3, 13, 3),
    reason="create_task() takes other keywords than name and context since CPython 3.13.3",
)


async def result_of(value: str) -> str:
    await asyncio.sleep(0)
    return value


async def test_create_task_runs_a_coroutine(loop: Loop) -> None:
    task = loop.create_task(result_of("done"))
    assert isinstance(task, asyncio.Task)
    assert task.get_loop() is loop
    assert not task.done()
    assert await task == "done"


async def test_a_task_has_a_name(loop: Loop) -> None:
    named = loop.create_task(result_of("x"), name="the name")
    unnamed = loop.create_task(result_of("x"))
    assert named.get_name() == "the name"
    assert unnamed.get_name().startswith("Task-")
    await asyncio.gather(named, unnamed)


async def test_a_task_runs_in_a_copy_of_the_context_or_in_the_given_one(loop: Loop) -> None:
    async def change() -> str:
        before = variable.get()
        variable.set("changed")
        await asyncio.sleep(0)
        assert variable.get() == "changed"
        return before

    given = contextvars.copy_context()
    given.run(variable.set, "given")
    assert await loop.create_task(change(), context=given) == "given"
    assert given[variable] == "changed"
    assert await loop.create_task(change()) == "unset"
    assert variable.get() == "unset"


async def test_context_variables_of_concurrent_tasks_are_apart(loop: Loop) -> None:
    async def body(number: int) -> str:
        variable.set(str(number))
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        return variable.get()

    expected = [str(number) for number in range(50)]
    assert await asyncio.gather(*(body(number) for number in range(50))) == expected


async def test_create_task_wants_a_coroutine(loop: Loop) -> None:
    with pytest.raises(TypeError, match="a coroutine was expected"):
        loop.create_task("not a coroutine")  # type: ignore[arg-type]


@ANY_KEYWORD
async def test_create_task_can_start_eagerly(loop: Loop) -> None:
    async def body() -> str:
        seen.append("started")
        return "done"

    seen: list[str] = []
    task = loop.create_task(body(), eager_start=True)
    assert seen == ["started"]
    assert task.done()
    assert await task == "done"


async def test_tasks_of_the_eager_task_factory_start_at_once(loop: Loop) -> None:
    async def body(wait: float) -> str:
        seen.append("started")
        if wait:
            await asyncio.sleep(wait)
        return "done"

    seen: list[str] = []
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        finished = loop.create_task(body(0))
        waiting = loop.create_task(body(0.001), name="waiting")
        assert seen == ["started", "started"]
        assert finished.done()
        assert not waiting.done()
        assert waiting.get_name() == "waiting"
        assert [await finished, await waiting] == ["done", "done"]
    finally:
        loop.set_task_factory(None)


async def test_a_task_factory_makes_the_tasks(loop: Loop) -> None:
    class Mine(asyncio.Task[Any]):
        pass

    def factory(
        loop: Loop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        return Mine(coroutine, loop=loop, **options)

    assert loop.get_task_factory() is None
    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    task = loop.create_task(result_of("done"), name="mine")
    assert type(task) is Mine
    assert task.get_name() == "mine"
    assert await task == "done"
    loop.set_task_factory(None)
    plain = loop.create_task(result_of("done"))
    assert type(plain) is asyncio.Task
    await plain


@ANY_KEYWORD
async def test_a_task_factory_gets_any_keyword(loop: Loop) -> None:
    def factory(
        loop: Loop, coroutine: Coroutine[Any, Any, Any], *, flavour: str = "", **options: Any
    ) -> asyncio.Task[Any]:
        flavours.append(flavour)
        return asyncio.Task(coroutine, loop=loop, **options)

    flavours: list[str] = []
    loop.set_task_factory(factory)
    await loop.create_task(result_of("done"), flavour="sweet")  # type: ignore[call-arg]
    loop.set_task_factory(None)
    assert flavours == ["sweet"]


async def test_replaced_task_and_future_classes_are_used(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Task(asyncio.Task[None]):
        pass

    class Future(asyncio.Future[None]):
        pass

    async def body() -> None:
        pass

    monkeypatch.setattr(asyncio.tasks, "Task", Task)
    monkeypatch.setattr(asyncio.futures, "Future", Future)
    tasks = [loop.create_task(body()), loop.create_task(body(), name="named")]
    assert [type(task) for task in tasks] == [Task, Task]
    assert type(loop.create_future()) is Future
    monkeypatch.undo()
    assert type(loop.create_future()) is asyncio.Future
    await asyncio.gather(*tasks)


def test_a_task_factory_must_be_callable(loop: Loop) -> None:
    with pytest.raises(TypeError, match="task factory must be a callable or None"):
        loop.set_task_factory(7)  # type: ignore[arg-type]


async def test_create_future_makes_futures_of_this_loop(loop: Loop) -> None:
    future = loop.create_future()
    assert isinstance(future, asyncio.Future)
    assert asyncio.isfuture(future)
    assert future.get_loop() is loop
    loop.call_soon(future.set_result, 5)
    assert await future == 5


async def test_futures_and_tasks_of_another_than_the_running_loop(
    loop: Loop, new_loop: Callable[[], Loop]
) -> None:
    other = new_loop()
    assert other.create_future().get_loop() is other
    task = other.create_task(result_of("done"))
    assert task.get_loop() is other
    assert await asyncio.to_thread(other.run_until_complete, task) == "done"
    other.close()


async def test_done_callbacks_run_in_order_and_in_their_context(loop: Loop) -> None:
    seen: list[object] = []
    context = contextvars.copy_context()
    context.run(variable.set, "given")
    future = loop.create_future()
    future.add_done_callback(lambda _: seen.append(variable.get()), context=context)
    future.add_done_callback(lambda _: seen.append(variable.get()))
    future.add_done_callback(seen.append)
    future.set_result(None)
    assert seen == []
    await asyncio.sleep(0)
    assert seen == ["given", "unset", future]


async def test_cancelling_a_task(loop: Loop) -> None:
    async def body() -> None:
        try:
            await started_forever
        finally:
            seen.append("cleaned up")

    seen: list[str] = []
    started_forever = loop.create_future()
    task = loop.create_task(body())
    await asyncio.sleep(0)
    assert task.cancel("the reason")
    with pytest.raises(asyncio.CancelledError, match="the reason"):
        await task
    assert task.cancelled()
    assert started_forever.cancelled()
    assert seen == ["cleaned up"]


async def test_cancelling_a_sleep(loop: Loop) -> None:
    start = loop.time()
    task = loop.create_task(asyncio.sleep(1000))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loop.time() - start < 10


async def test_gather_keeps_the_order_and_hands_on_exceptions(loop: Loop) -> None:
    async def failing() -> None:
        raise LookupError

    assert list(await asyncio.gather(result_of("a"), result_of("b"))) == ["a", "b"]
    first, second = await asyncio.gather(failing(), result_of("b"), return_exceptions=True)
    assert isinstance(first, LookupError)
    assert second == "b"
    with pytest.raises(LookupError):
        await asyncio.gather(failing(), result_of("b"))


async def test_timeouts_fire(loop: Loop) -> None:
    forever = loop.create_future()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await forever
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(loop.create_future(), 0.001)
    async with asyncio.timeout(1000):
        await asyncio.sleep(0)
    assert await asyncio.wait_for(result_of("in time"), 1000) == "in time"


async def test_a_task_group_cancels_its_tasks_when_one_fails(loop: Loop) -> None:
    async def failing() -> None:
        await asyncio.sleep(0)
        raise LookupError("as planned")

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(failing())
            waiting.append(group.create_task(asyncio.sleep(1000)))

    waiting: list[asyncio.Task[None]] = []
    with pytest.raises(ExceptionGroup) as caught:
        await main()
    assert [type(exception) for exception in caught.value.exceptions] == [LookupError]
    assert waiting[0].cancelled()


async def test_ten_thousand_tasks(loop: Loop) -> None:
    results = await asyncio.gather(*(result_of(str(number)) for number in range(10_000)))
    assert results == [str(number) for number in range(10_000)]


async def test_queues_locks_and_events_between_tasks(loop: Loop) -> None:
    async def produce() -> None:
        for number in range(100):
            await queue.put(number)
        await queue.put(None)

    queue: asyncio.Queue[int | None] = asyncio.Queue(maxsize=3)
    producer = loop.create_task(produce())
    got = []
    while (item := await queue.get()) is not None:
        got.append(item)
    assert got == list(range(100))
    await producer


def test_an_exception_that_nobody_retrieves_is_reported(loop: Loop, errors: ErrorLog) -> None:
    async def failing() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        task = asyncio.create_task(failing())
        await asyncio.wait([task])

    loop.run_until_complete(main())
    gc.collect()
    report = errors.take()
    assert report["message"] == "Task exception was never retrieved"
    assert type(report["exception"]) is ZeroDivisionError


async def counter(seen: list[str]) -> AsyncGenerator[int]:
    try:
        for number in range(1000):
            yield number
            await asyncio.sleep(0)
    finally:
        await asyncio.sleep(0)
        seen.append("closed")


def test_shutdown_asyncgens_closes_those_left_open(loop: Loop) -> None:
    seen: list[str] = []
    kept = counter(seen)

    async def main() -> int:
        return await anext(kept)

    assert loop.run_until_complete(main()) == 0
    assert seen == []
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert seen == ["closed"]


def test_a_forgotten_async_generator_is_closed_by_the_running_loop(loop: Loop) -> None:
    seen: list[str] = []

    async def main() -> None:
        forgotten = counter(seen)
        assert await anext(forgotten) == 0
        del forgotten
        gc.collect()
        while not seen:
            await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert seen == ["closed"]


def test_an_async_generator_started_after_the_shutdown_warns(loop: Loop) -> None:
    async def main() -> None:
        late = counter([])
        assert await anext(late) == 0
        await late.aclose()

    loop.run_until_complete(loop.shutdown_asyncgens())
    with pytest.warns(ResourceWarning, match="asynchronous generator .* was scheduled after"):
        loop.run_until_complete(main())


async def test_run_in_executor_uses_a_thread(loop: Loop) -> None:
    def work(value: str) -> tuple[str, int]:
        return value, threading.get_ident()

    value, thread = await loop.run_in_executor(None, work, "value")
    assert value == "value"
    assert thread != threading.get_ident()
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="own") as own:
        assert (await loop.run_in_executor(own, work, "other"))[0] == "other"


async def test_run_in_executor_hands_on_exceptions(loop: Loop) -> None:
    def failing() -> None:
        raise LookupError("as planned")

    with pytest.raises(LookupError, match="as planned"):
        await loop.run_in_executor(None, failing)


async def test_to_thread_keeps_the_context(loop: Loop) -> None:
    token = variable.set("outer")
    results = await asyncio.gather(*(asyncio.to_thread(variable.get) for _ in range(50)))
    variable.reset(token)
    assert results == ["outer"] * 50


async def test_run_coroutine_threadsafe(loop: Loop) -> None:
    def body() -> str:
        return asyncio.run_coroutine_threadsafe(result_of("done"), loop).result(10)

    assert await asyncio.to_thread(body) == "done"


async def test_the_default_executor_can_be_set_and_shut_down(loop: Loop) -> None:
    executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="the-default")
    loop.set_default_executor(executor)
    name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
    assert name.startswith("the-default")
    await loop.shutdown_default_executor()
    with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
        await loop.run_in_executor(None, lambda: None)


async def test_the_shutdown_of_the_default_executor_can_be_limited(loop: Loop) -> None:
    release = threading.Event()
    running = loop.run_in_executor(None, release.wait)
    with pytest.warns(RuntimeWarning, match=r"threads within 0\.01 seconds"):
        await loop.shutdown_default_executor(0.01)
    release.set()
    assert await running


def test_runner_runs_and_closes_the_loop(new_loop: Callable[[], Loop], no_fd_left: None) -> None:
    seen: list[str] = []

    async def main(value: str) -> str:
        variable.set(variable.get() + value)
        return variable.get()

    async def start() -> None:
        task = asyncio.create_task(wait())
        background.append(task)
        await asyncio.sleep(0)

    async def wait() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            seen.append("cancelled")

    background: list[asyncio.Task[None]] = []
    with asyncio.Runner(loop_factory=new_loop) as runner:
        loop = runner.get_loop()
        assert runner.run(main("+1")) == "unset+1"
        assert runner.run(main("+2")) == "unset+1+2"
        runner.run(start())
    assert loop.is_closed()
    assert background[0].cancelled()
    assert seen == ["cancelled"]


def test_asyncio_run_with_a_loop_factory(new_loop: Callable[[], Loop], no_fd_left: None) -> None:
    async def main() -> type[Loop]:
        await asyncio.to_thread(lambda: None)
        return type(asyncio.get_running_loop())

    expected = new_loop()
    assert asyncio.run(main(), loop_factory=new_loop, debug=True) is type(expected)
    expected.close()
