"""Reading from streams: asyncio's, on both loops, and kloop's own."""

import asyncio
from types import ModuleType as Streams
from typing import Any

import pytest

import kloop
from kloop.streams import StreamReader
from support import LOCALHOST, address_of, connected_sockets, pattern, settle

Loop = asyncio.AbstractEventLoop
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


async def echo_lines(reader: Reader, writer: Writer) -> None:
    async for line in reader:
        writer.write(line)
        await writer.drain()
    await end(writer)


async def end(writer: Writer) -> None:
    writer.close()
    await writer.wait_closed()


async def test_ten_thousand_small_lines(loop: Loop, streams: Streams) -> None:
    lines = [b"line %d\n" % number for number in range(10_000)]

    async def send() -> None:
        for line in lines:
            writer.write(line)
            await writer.drain()
        writer.write_eof()

    async with await streams.start_server(echo_lines, LOCALHOST, 0) as server:
        reader, writer = await streams.open_connection(*address_of(server))
        sending = loop.create_task(send())
        assert [line async for line in reader] == lines
        await sending
        await end(writer)


async def test_a_line_that_comes_byte_by_byte(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours)
        reading = loop.create_task(reader.readline())
        for byte in b"a line":
            theirs.send(bytes([byte]))
            await settle(1)
        assert not reading.done()
        theirs.send(b"\nmore")
        assert await reading == b"a line\n"
        assert await reader.read(100) == b"more"
        await end(writer)


@pytest.mark.parametrize("separator", [b"--", (b"----", b"--"), (b"-x-", b"--")])
async def test_a_separator_in_two_pieces(loop: Loop, streams: Streams, separator: Any) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours)
        reading = loop.create_task(reader.readuntil(separator))
        await settle()
        theirs.send(b"part one-")
        await settle()
        assert not reading.done()
        theirs.send(b"-rest")
        assert await reading == b"part one--"
        assert await reader.readexactly(4) == b"rest"
        await end(writer)


async def test_the_separator_that_ends_first_wins(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours)
        theirs.send(b"one\r\ntwo\n\r\nthree")
        assert await reader.readuntil((b"\n\r\n", b"\r\n")) == b"one\r\n"
        assert await reader.readuntil((b"\n\r\n", b"\r\n")) == b"two\n\r\n"
        await end(writer)


@pytest.mark.parametrize(
    ("separator", "error", "message"),
    [
        (b"", ValueError, "Separator should be at least one-byte string"),
        ((), ValueError, "Separator should contain at least one element"),
        ((b"x", b""), ValueError, "Separator should be at least one-byte string"),
        (5, TypeError, "int"),
        ("x", TypeError, "bytes-like object"),
    ],
)
async def test_wrong_separators(
    loop: Loop, streams: Streams, separator: Any, error: type[Exception], message: str
) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours)
        theirs.send(b"data")
        await settle()
        with pytest.raises(error, match=message):
            await reader.readuntil(separator)
        assert await reader.read(10) == b"data"
        await end(writer)


async def test_what_is_longer_than_the_limit(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    reader, writer = await streams.open_connection(sock=ours, limit=10)
    theirs.send(b"x" * 15 + b"|")
    with pytest.raises(asyncio.LimitOverrunError, match="longer than limit") as found:
        await reader.readuntil(b"|")
    assert found.value.consumed == 15
    assert await reader.readexactly(16) == b"x" * 15 + b"|"
    theirs.send(b"y" * 15)
    with pytest.raises(asyncio.LimitOverrunError, match="not found") as missed:
        await reader.readuntil(b"||")
    assert missed.value.consumed == 14
    with pytest.raises(ValueError, match="Separator is not found, and chunk exceed the limit"):
        await reader.readline()  # drops what it has
    theirs.send(b"z" * 15 + b"\nkept\n")
    with pytest.raises(ValueError, match="Separator is found, but chunk is longer than limit"):
        await reader.readline()
    assert await reader.readline() == b"kept\n"
    theirs.send(b"rest")
    theirs.close()
    with pytest.raises(asyncio.IncompleteReadError) as cut:
        await reader.readuntil(b"|")
    assert (cut.value.partial, cut.value.expected) == (b"rest", None)
    await end(writer)


@pytest.mark.parametrize("line", [b"x" * 15, b"x" * 15 + b"\n"])
async def test_a_line_that_grows_too_long(loop: Loop, streams: Streams, line: bytes) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours, limit=10)
        reading = loop.create_task(reader.readline())
        theirs.send(b"x")
        await settle()
        assert not reading.done()
        theirs.send(line)
        with pytest.raises(ValueError, match=r"Separator is (not )?found"):
            await reading
        theirs.send(b"short\n")
        assert await reader.readline() == b"short\n"
        await end(writer)


async def test_reads_of_nothing_and_of_less_than_nothing(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    reader, writer = await streams.open_connection(sock=ours)
    assert await reader.read(0) == b""
    assert await reader.readexactly(0) == b""
    with pytest.raises(ValueError, match="readexactly size can not be less than zero"):
        await reader.readexactly(-1)
    with pytest.raises(TypeError):
        await reader.read("5")
    theirs.send(b"all of it")
    theirs.close()
    assert await reader.read(2**70) == b"all of it"
    assert await reader.read(-5) == b""
    await end(writer)


async def test_two_readers_at_once(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours)
        reading = loop.create_task(reader.readline())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match=r"^read.. called while another coroutine"):
            await reader.read(1)
        theirs.send(b"line\n")
        assert await reading == b"line\n"
        await end(writer)


@pytest.mark.parametrize("how", ["read", "readline", "readexactly", "readuntil", "__anext__"])
async def test_a_cancelled_wait_leaves_everything(loop: Loop, streams: Streams, how: str) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours)
        arguments = {"read": [10], "readexactly": [1000], "readuntil": [b"|"]}.get(how, [])
        for _ in range(10):
            reading = asyncio.ensure_future(getattr(reader, how)(*arguments))
            await asyncio.sleep(0)
            reading.cancel("a reason")
            with pytest.raises(asyncio.CancelledError, match="a reason"):
                await reading
            if how != "read":  # for which it would be enough
                theirs.send(b"0")
                await settle(1)
        theirs.send(b"0|\n")
        zeros = 1 if how == "read" else 11
        assert await reader.readexactly(zeros + 2) == b"0" * zeros + b"|\n"
        await end(writer)


async def test_a_timeout_while_data_comes(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours)
        for number in range(50):
            theirs.send(b"%d" % (number % 10))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.readexactly(51), 0.001)
        theirs.send(b"!")
        assert await reader.readexactly(51) == b"0123456789" * 5 + b"!"
        await end(writer)


async def test_reading_everything_is_not_held_up_by_the_limit(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    reader, writer = await streams.open_connection(sock=ours, limit=1000)
    data = pattern(3_000_000)
    sending = loop.create_task(loop.sock_sendall(theirs, data))
    sending.add_done_callback(lambda _: theirs.close())
    assert await reader.read() == data
    await end(writer)


async def test_an_exception_set_from_outside(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours)
        reading = loop.create_task(reader.read(1))
        await asyncio.sleep(0)
        reader.set_exception(ZeroDivisionError("mine"))
        with pytest.raises(ZeroDivisionError, match="mine"):
            await reading
        for again in (reader.read(1), reader.readline(), reader.readexactly(1), writer.drain()):
            with pytest.raises(ZeroDivisionError, match="mine"):
                await again
        await end(writer)


async def test_data_fed_by_hand(loop: Loop, streams: Streams) -> None:
    class Odd(bytes):
        pass

    reader_class = StreamReader if streams is kloop else asyncio.StreamReader
    reader = reader_class(limit=10, loop=loop)
    for data in (b"one ", bytearray(b"two "), memoryview(b"three "), Odd(b"four"), b""):
        reader.feed_data(data)  # type: ignore[arg-type]
    assert await reader.readexactly(18) == b"one two three four"
    reading = loop.create_task(reader.read(5))
    await asyncio.sleep(0)
    reader.feed_data(b"more")
    assert await reading == b"more"
    reader.feed_eof()
    assert reader.at_eof()
    with pytest.raises(AssertionError, match="feed_data after feed_eof"):
        reader.feed_data(b"late")
    assert type(await reader.read()) is bytes
