"""What kloop's own streams have, beyond what asyncio's do as well."""

import asyncio
import collections.abc
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import kloop
from kloop.streams import StreamReader, StreamReaderProtocol, StreamWriter
from support import LOCALHOST, StartChild, address_of, connected_sockets

Loop = asyncio.AbstractEventLoop

pytestmark = pytest.mark.parametrize("loop_name", ["kloop"])


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    await end(writer)


async def end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


def native_reader(loop: Loop, limit: int = 65536) -> StreamReader:
    return StreamReader(limit, loop)


async def test_native_streams_are_of_asyncios_classes(loop: Loop) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await kloop.open_connection(sock=ours)
        assert type(reader) is StreamReader
        assert type(writer) is StreamWriter
        assert isinstance(reader, asyncio.StreamReader)
        assert isinstance(writer, asyncio.StreamWriter)
        assert isinstance(writer.transport.get_protocol(), asyncio.StreamReaderProtocol)
        await end(writer)


async def test_asyncios_own_functions_keep_asyncios_classes(loop: Loop) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours)
        assert type(reader) is asyncio.StreamReader
        assert type(writer) is asyncio.StreamWriter
        await end(writer)


@pytest.mark.parametrize(
    "call",
    [
        lambda: kloop.open_connection(LOCALHOST, 1),
        lambda: kloop.start_server(echo, LOCALHOST, 0),
        lambda: kloop.open_unix_connection("/nowhere"),
        lambda: kloop.start_unix_server(echo, "/nowhere"),
    ],
    ids=["open_connection", "start_server", "open_unix_connection", "start_unix_server"],
)
def test_another_loop_is_refused(loop: Loop, call: Callable[[], Awaitable[Any]]) -> None:
    async def main() -> None:
        await call()

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        with pytest.raises(RuntimeError, match=r"needs a loop of kloop's.* use asyncio"):
            runner.run(main())


async def test_operations_are_coroutines(loop: Loop) -> None:
    reader = native_reader(loop)
    reader.feed_data(b"0123456789")
    operation = reader.read(1)
    assert isinstance(operation, collections.abc.Coroutine)
    assert asyncio.iscoroutine(operation)
    assert inspect.isawaitable(operation)
    assert not asyncio.isfuture(operation)
    assert await operation == b"0"
    assert await asyncio.create_task(reader.read(1)) == b"1"
    assert await asyncio.wait_for(reader.read(1), 10) == b"2"
    assert await asyncio.shield(reader.read(1)) == b"3"
    assert await asyncio.gather(reader.read(1), reader.read(1)) == [b"4", b"5"]
    [done], _ = await asyncio.wait([asyncio.ensure_future(reader.read(1))])
    assert done.result() == b"6"
    async with asyncio.TaskGroup() as group:
        task = group.create_task(reader.read(1))
    assert task.result() == b"7"
    with pytest.raises(StopIteration) as stop:
        reader.read(1).send(None)
    assert stop.value.value == b"8"
    with pytest.raises(StopIteration) as stop:
        next(reader.read(1))  # type: ignore[call-overload]
    assert stop.value.value == b"9"


def test_an_operation_runs_to_its_end_as_the_main_coroutine(loop: Loop) -> None:
    reader = native_reader(loop)
    loop.call_soon(reader.feed_data, b"data")
    assert loop.run_until_complete(reader.read(10)) == b"data"


async def test_an_operation_does_nothing_before_it_is_awaited(loop: Loop) -> None:
    reader = native_reader(loop)
    first, second = reader.read(1), reader.readexactly(-1)
    reader.feed_data(b"data")
    assert await reader.read(2) == b"da"
    assert await first == b"t"
    with pytest.raises(ValueError, match="less than zero"):
        await second


async def test_an_operation_that_is_never_awaited_warns(loop: Loop) -> None:
    reader = native_reader(loop)
    with pytest.warns(RuntimeWarning, match="coroutine 'StreamReader.readline' was never awaited"):
        reader.readline()
    closed = reader.readline()
    closed.close()
    del closed


async def test_an_operation_is_awaited_once(loop: Loop) -> None:
    reader = native_reader(loop)
    reader.feed_data(b"data")
    operation = reader.read(2)
    assert await operation == b"da"
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        await operation
    waiting = reader.readline()
    task = loop.create_task(waiting)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="being awaited already"):
        await waiting
    reader.feed_data(b"\n")
    assert await task == b"ta\n"


async def test_an_exception_thrown_into_an_operation(loop: Loop) -> None:
    reader = native_reader(loop)
    operation = reader.readline()
    operation.send(None)
    with pytest.raises(ZeroDivisionError):
        operation.throw(ZeroDivisionError)
    waiting = loop.create_task(reader.read(4))  # the reader is free again
    await asyncio.sleep(0)
    reader.feed_data(b"data")
    assert await waiting == b"data"


async def test_an_operation_closed_while_it_waits(loop: Loop) -> None:
    reader = native_reader(loop)

    async def body() -> None:
        await reader.readline()

    suspended = body()
    suspended.send(None)
    suspended.close()
    waiting = loop.create_task(reader.read(4))
    await asyncio.sleep(0)
    reader.feed_data(b"data")
    assert await waiting == b"data"


async def test_who_waits_goes_on_in_its_own_context(loop: Loop) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await kloop.open_connection(sock=ours)
        seen = []

        async def body(number: int) -> None:
            variable.set(number)
            await reader.read(1)
            seen.append((variable.get(), asyncio.current_task()))

        variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
        for number in (1, 2):
            task = loop.create_task(body(number))
            await asyncio.sleep(0)
            theirs.send(b"x")
            await task
            assert seen.pop() == (number, task)
        assert variable.get() == 0
        await end(writer)


async def test_a_protocol_in_between_sees_everything(loop: Loop) -> None:
    reader = native_reader(loop)
    inner = StreamReaderProtocol(reader, None, loop)
    seen = []

    class Between(asyncio.Protocol):
        connection_made = staticmethod(inner.connection_made)
        connection_lost = staticmethod(inner.connection_lost)

        def data_received(self, data: bytes) -> None:
            seen.append(data)
            inner.data_received(data.upper())

    ours, theirs = connected_sockets()
    with theirs:
        transport, _ = await loop.create_connection(Between, sock=ours)
        theirs.send(b"data")
        assert await reader.read(10) == b"DATA"
        assert seen == [b"data"]
        transport.close()
        await inner._get_close_waiter(StreamWriter(transport, inner, reader, loop))  # type: ignore[attr-defined]


async def test_debug_mode(loop: Loop) -> None:
    loop.set_debug(True)
    async with await kloop.start_server(echo, LOCALHOST, 0) as server:
        reader, writer = await kloop.open_connection(*address_of(server))
        assert reader._source_traceback  # type: ignore[attr-defined]
        writer.write(b"data")
        assert await reader.readexactly(4) == b"data"
        await end(writer)


@pytest.mark.parametrize(
    "make",
    [
        lambda loop: StreamReader(0, loop),
        lambda loop: StreamReader(-1, loop),
    ],
)
def test_a_limit_must_be_positive(loop: Loop, make: Callable[[Loop], object]) -> None:
    with pytest.raises(ValueError, match="Limit cannot be <= 0"):
        make(loop)


def test_constructors_want_what_is_native(loop: Loop) -> None:
    stock = asyncio.new_event_loop()
    with pytest.raises(TypeError, match="a Loop was expected"):
        StreamReader(100, stock)
    with pytest.raises(TypeError, match="a StreamReader was expected"):
        StreamReaderProtocol(asyncio.StreamReader(loop=stock), None, loop)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        StreamWriter()  # type: ignore[call-arg]
    stock.close()


async def test_the_limit_can_be_raised(loop: Loop) -> None:
    reader = native_reader(loop, 10)
    reader._limit = 100  # type: ignore[attr-defined]
    reader.feed_data(b"x" * 50 + b"\n")
    assert await reader.readline() == b"x" * 50 + b"\n"
    with pytest.raises(ValueError, match="Limit cannot be <= 0"):
        reader._limit = -1  # type: ignore[attr-defined]


def test_limits_are_numbers_of_any_kind(loop: Loop) -> None:
    assert StreamReader(1e3, loop)._limit == 1000  # type: ignore[arg-type, attr-defined]
    for limit in (0, -1, -(2**70), -0.5):
        with pytest.raises(ValueError, match="Limit cannot be <= 0"):
            StreamReader(limit, loop)  # type: ignore[arg-type]


async def test_a_read_that_was_dropped_blocks_no_other(loop: Loop) -> None:
    reader = native_reader(loop)
    first = reader.read(1)
    first.send(None)
    del first
    loop.call_soon(reader.feed_data, b"ab")
    assert await reader.read(2) == b"ab"


async def test_who_waits_hears_of_data_though_the_transport_cannot_pause(loop: Loop) -> None:
    class Unpausable(asyncio.Transport):
        def pause_reading(self) -> None:
            raise RuntimeError("no")

    reader = native_reader(loop, 1)
    reader.set_transport(Unpausable())
    reading = loop.create_task(reader.read(100))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="no"):
        reader.feed_data(b"abcdef")
    assert await reading == b"abcdef"


def test_a_result_is_not_kept(start_child: StartChild) -> None:
    script = """
import sys, kloop

async def main():
    reader = kloop.streams.StreamReader(10, asyncio.get_running_loop())
    counts = []
    for _ in range(3):
        reader.feed_data(b"x" * 10)
        data = await reader.readexactly(10)
        counts.append(sys.getrefcount(data))
    print(*counts)

asyncio.Runner(loop_factory=new_event_loop).run(main())
"""
    output, errors = start_child(script).communicate(timeout=20)
    first, *others = output.split()
    assert others == [first] * 2, errors


async def test_a_caught_result_is_not_changed_by_the_next(loop: Loop) -> None:
    reader = native_reader(loop)
    reader.feed_data(b"abc")
    caught = []
    for _ in range(3):
        with pytest.raises(StopIteration) as info:
            reader.read(1).send(None)
        caught.append(info.value)
    assert [each.value for each in caught] == [b"a", b"b", b"c"]
    assert len({id(each) for each in caught}) == 3
