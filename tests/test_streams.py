"""asyncio's streams over TCP."""

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable

import pytest

from support import LOCALHOST, ErrorLog, address_of, connected_sockets, pattern, reset, settle

Loop = asyncio.AbstractEventLoop
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Handler = Callable[[Reader, Writer], Awaitable[None]]


async def echo(reader: Reader, writer: Writer) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def end(writer: Writer) -> None:
    writer.close()
    await writer.wait_closed()


async def test_echo(loop: Loop) -> None:
    async with await asyncio.start_server(echo, LOCALHOST, 0) as server:
        reader, writer = await asyncio.open_connection(*address_of(server))
        writer.write(b"hello\nwor")
        assert await reader.readline() == b"hello\n"
        writer.writelines([b"ld|", b"rest"])
        assert await reader.readuntil(b"|") == b"world|"
        assert await reader.readexactly(4) == b"rest"
        assert writer.can_write_eof()
        writer.write_eof()
        assert await reader.read() == b""
        assert reader.at_eof()
        await end(writer)
        assert writer.is_closing()


async def test_a_stream_tells_its_addresses(loop: Loop) -> None:
    async with await asyncio.start_server(echo, LOCALHOST, 0) as server:
        _, writer = await asyncio.open_connection(*address_of(server))
        assert writer.get_extra_info("peername") == address_of(server)
        assert writer.get_extra_info("nothing", "default") == "default"
        assert isinstance(writer.transport, asyncio.Transport)
        await end(writer)
    await server.wait_closed()


async def test_ten_megabytes_there_and_back(loop: Loop) -> None:
    data = pattern(10_000_000)

    async def send() -> None:
        for start in range(0, len(data), 300_000):
            writer.write(data[start : start + 300_000])
            await writer.drain()
        writer.write_eof()

    async with await asyncio.start_server(echo, LOCALHOST, 0) as server:
        reader, writer = await asyncio.open_connection(*address_of(server))
        sending = loop.create_task(send())
        assert await reader.read() == data
        await sending
        await end(writer)


async def test_drain_waits_for_a_slow_reader(loop: Loop) -> None:
    ours, theirs = connected_sockets(small=True)
    with theirs:
        _, writer = await asyncio.open_connection(sock=ours)
        await writer.drain()
        writer.write(b"x" * 2_000_000)
        draining = loop.create_task(writer.drain())
        await settle()
        assert not draining.done()
        left = 2_000_000
        while left:
            left -= len(await loop.sock_recv(theirs, min(left, 50_000)))
        await draining
        writer.transport.abort()
        await writer.wait_closed()


async def test_drain_raises_when_the_connection_is_lost(loop: Loop) -> None:
    ours, theirs = connected_sockets(small=True)
    _, writer = await asyncio.open_connection(sock=ours)
    writer.write(b"x" * 2_000_000)
    draining = loop.create_task(writer.drain())
    await settle()
    reset(theirs)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await draining
    writer.close()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await writer.wait_closed()


async def test_a_reader_raises_when_the_peer_resets(loop: Loop) -> None:
    ours, theirs = connected_sockets()
    reader, writer = await asyncio.open_connection(sock=ours)
    reading = loop.create_task(reader.read(100))
    await settle()
    reset(theirs)
    with pytest.raises(ConnectionResetError):
        await reading
    assert isinstance(reader.exception(), ConnectionResetError)
    writer.close()
    with pytest.raises(ConnectionResetError):
        await writer.wait_closed()


async def test_an_incomplete_read(loop: Loop) -> None:
    ours, theirs = connected_sockets()
    reader, writer = await asyncio.open_connection(sock=ours)
    theirs.send(b"part")
    theirs.close()
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await reader.readexactly(10)
    assert caught.value.partial == b"part"
    await end(writer)


async def test_the_limit_pauses_the_transport(loop: Loop) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours, limit=1000)
        assert isinstance(writer.transport, asyncio.Transport)
        sending = loop.create_task(loop.sock_sendall(theirs, pattern(8_000_000)))
        await settle(10)
        assert not writer.transport.is_reading()
        assert not sending.done()
        assert await reader.readexactly(8_000_000) == pattern(8_000_000)
        await sending
        theirs.send(b"x" * 3000 + b"\n")
        with pytest.raises(ValueError, match="longer than limit"):
            await reader.readline()
        await end(writer)


async def test_lines_can_be_iterated(loop: Loop) -> None:
    ours, theirs = connected_sockets()
    reader, writer = await asyncio.open_connection(sock=ours)
    theirs.send(b"one\ntwo\nthree")
    theirs.close()
    assert [line async for line in reader] == [b"one\n", b"two\n", b"three"]
    await end(writer)


async def test_a_cancelled_read_loses_nothing(loop: Loop) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours)
        for number in range(20):
            reading = loop.create_task(reader.readexactly(1000))
            await asyncio.sleep(0)
            theirs.send(b"%d" % (number % 10))
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert await reader.readexactly(20) == b"01234567890123456789"
        await end(writer)


async def test_a_handler_that_fails_is_reported(loop: Loop, errors: ErrorLog) -> None:
    async def failing(reader: Reader, writer: Writer) -> None:
        raise ZeroDivisionError

    async with await asyncio.start_server(failing, LOCALHOST, 0) as server:
        reader, writer = await asyncio.open_connection(*address_of(server))
        assert await reader.read() == b""
        await end(writer)
    report = errors.take()
    assert report["message"] == "Unhandled exception in client_connected_cb"
    assert type(report["exception"]) is ZeroDivisionError
    assert isinstance(report["transport"], asyncio.Transport)


async def test_many_clients_at_once(loop: Loop) -> None:
    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(*address_of(server))
        for _ in range(5):
            message = b"%d\n" % number * 50
            writer.write(message)
            assert await reader.readexactly(len(message)) == message
        await end(writer)

    async with await asyncio.start_server(echo, LOCALHOST, 0, backlog=300) as server:
        await asyncio.gather(*(client(number) for number in range(200)))
    await server.wait_closed()


async def test_a_server_talks_first(loop: Loop) -> None:
    async def greet(reader: Reader, writer: Writer) -> None:
        writer.write(b"220 ready\r\n")
        await end(writer)

    async with await asyncio.start_server(greet, LOCALHOST, 0) as server:
        for _ in range(20):
            reader, writer = await asyncio.open_connection(*address_of(server))
            assert await reader.read() == b"220 ready\r\n"
            await end(writer)


async def test_a_reader_dropped_by_its_user_is_harmless(loop: Loop) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours)
        del reader
        gc.collect()
        theirs.send(b"data")
        await settle()
        writer.write(b"answer")
        assert await loop.sock_recv(theirs, 100) == b"answer"
        theirs.shutdown(socket.SHUT_WR)
        await end(writer)
