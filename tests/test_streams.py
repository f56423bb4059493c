"""Streams over TCP: asyncio's, on both loops, and kloop's own."""

import asyncio
import gc
import socket
import ssl
import warnings
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType as Streams

import pytest

from support import (
    LOCALHOST,
    ErrorLog,
    address_of,
    client_context,
    connected_sockets,
    pattern,
    reset,
    server_context,
    settle,
)

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


async def echo_lines(reader: Reader, writer: Writer) -> None:
    async for line in reader:
        writer.write(line)
        await writer.drain()
    await end(writer)


async def end(writer: Writer) -> None:
    writer.close()
    await writer.wait_closed()


async def test_echo(loop: Loop, streams: Streams) -> None:
    async with await streams.start_server(echo, LOCALHOST, 0) as server:
        reader, writer = await streams.open_connection(*address_of(server))
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


async def test_a_stream_tells_its_addresses(loop: Loop, streams: Streams) -> None:
    async with await streams.start_server(echo, LOCALHOST, 0) as server:
        _, writer = await streams.open_connection(*address_of(server))
        assert writer.get_extra_info("peername") == address_of(server)
        assert writer.get_extra_info("nothing", "default") == "default"
        assert isinstance(writer.transport, asyncio.Transport)
        await end(writer)
    await server.wait_closed()


async def test_ten_megabytes_there_and_back(loop: Loop, streams: Streams) -> None:
    data = pattern(10_000_000)

    async def send() -> None:
        for start in range(0, len(data), 300_000):
            writer.write(data[start : start + 300_000])
            await writer.drain()
        writer.write_eof()

    async with await streams.start_server(echo, LOCALHOST, 0) as server:
        reader, writer = await streams.open_connection(*address_of(server))
        sending = loop.create_task(send())
        assert await reader.read() == data
        await sending
        await end(writer)


async def test_drain_waits_for_a_slow_reader(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets(small=True)
    with theirs:
        _, writer = await streams.open_connection(sock=ours)
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


async def test_drain_raises_when_the_connection_is_lost(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets(small=True)
    _, writer = await streams.open_connection(sock=ours)
    writer.write(b"x" * 2_000_000)
    draining = loop.create_task(writer.drain())
    await settle()
    reset(theirs)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await draining
    writer.close()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await writer.wait_closed()


async def test_a_reader_raises_when_the_peer_resets(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    reader, writer = await streams.open_connection(sock=ours)
    reading = loop.create_task(reader.read(100))
    await settle()
    reset(theirs)
    with pytest.raises(ConnectionResetError):
        await reading
    assert isinstance(reader.exception(), ConnectionResetError)
    writer.close()
    with pytest.raises(ConnectionResetError):
        await writer.wait_closed()


async def test_an_incomplete_read(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    reader, writer = await streams.open_connection(sock=ours)
    theirs.send(b"part")
    theirs.close()
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await reader.readexactly(10)
    assert caught.value.partial == b"part"
    await end(writer)


async def test_the_limit_pauses_the_transport(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours, limit=1000)
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


async def test_lines_can_be_iterated(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    reader, writer = await streams.open_connection(sock=ours)
    theirs.send(b"one\ntwo\nthree")
    theirs.close()
    assert [line async for line in reader] == [b"one\n", b"two\n", b"three"]
    await end(writer)


async def test_a_cancelled_read_loses_nothing(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours)
        for number in range(20):
            reading = loop.create_task(reader.readexactly(1000))
            await asyncio.sleep(0)
            theirs.send(b"%d" % (number % 10))
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert await reader.readexactly(20) == b"01234567890123456789"
        await end(writer)


async def test_a_handler_that_fails_is_reported(
    loop: Loop, streams: Streams, errors: ErrorLog
) -> None:
    async def failing(reader: Reader, writer: Writer) -> None:
        raise ZeroDivisionError

    async with await streams.start_server(failing, LOCALHOST, 0) as server:
        reader, writer = await streams.open_connection(*address_of(server))
        assert await reader.read() == b""
        await end(writer)
    report = errors.take()
    assert report["message"] == "Unhandled exception in client_connected_cb"
    assert type(report["exception"]) is ZeroDivisionError
    assert isinstance(report["transport"], asyncio.Transport)


async def test_many_clients_at_once(loop: Loop, streams: Streams) -> None:
    async def client(number: int) -> None:
        reader, writer = await streams.open_connection(*address_of(server))
        for _ in range(5):
            message = b"%d\n" % number * 50
            writer.write(message)
            assert await reader.readexactly(len(message)) == message
        await end(writer)

    async with await streams.start_server(echo, LOCALHOST, 0, backlog=300) as server:
        await asyncio.gather(*(client(number) for number in range(200)))
    await server.wait_closed()


async def test_a_server_talks_first(loop: Loop, streams: Streams) -> None:
    async def greet(reader: Reader, writer: Writer) -> None:
        writer.write(b"220 ready\r\n")
        await end(writer)

    async with await streams.start_server(greet, LOCALHOST, 0) as server:
        for _ in range(20):
            reader, writer = await streams.open_connection(*address_of(server))
            assert await reader.read() == b"220 ready\r\n"
            await end(writer)


async def test_a_reader_dropped_by_its_user_is_harmless(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours)
        del reader
        gc.collect()
        theirs.send(b"data")
        await settle()
        writer.write(b"answer")
        assert await loop.sock_recv(theirs, 100) == b"answer"
        theirs.shutdown(socket.SHUT_WR)
        await end(writer)


async def test_drains_by_many_tasks(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets(small=True)
    with theirs:
        _, writer = await streams.open_connection(sock=ours)
        writer.write(b"x" * 1_000_000)
        drains = [asyncio.ensure_future(writer.drain()) for _ in range(5)]
        await settle()
        drains.pop().cancel()
        assert not any(drain.done() for drain in drains)
        left = 1_000_000
        while left:
            left -= len(await loop.sock_recv(theirs, 65536))
        assert await asyncio.gather(*drains) == [None] * 4
        await end(writer)


async def test_a_drain_after_close(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        _, writer = await streams.open_connection(sock=ours)
        writer.close()
        with pytest.raises(ConnectionResetError, match="Connection lost"):
            await writer.drain()
        await writer.wait_closed()


async def test_waiting_for_the_end_of_a_connection_that_was_reset(
    loop: Loop, streams: Streams
) -> None:
    ours, theirs = connected_sockets()
    reader, writer = await streams.open_connection(sock=ours)
    reset(theirs)
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            await writer.wait_closed()


async def test_wrong_data(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        _, writer = await streams.open_connection(sock=ours)
        with pytest.raises(TypeError, match="data argument must be a bytes"):
            writer.write("text")
        writer.writelines([b"good ", bytearray(b"data")])
        assert await loop.sock_recv(theirs, 100) == b"good data"
        await end(writer)


async def test_a_writer_that_nobody_closes(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        reader, writer = await streams.open_connection(sock=ours)
        del reader
        with pytest.warns(ResourceWarning, match="unclosed <StreamWriter"):
            del writer
        assert await loop.sock_recv(theirs, 1) == b""


async def test_a_plain_function_serves(loop: Loop, streams: Streams) -> None:
    def serve(reader: Reader, writer: Writer) -> None:
        writer.write(b"hello")
        writer.close()

    async with await streams.start_server(serve, LOCALHOST, 0) as server:
        reader, writer = await streams.open_connection(*address_of(server))
        assert await reader.read() == b"hello"
        await end(writer)


async def test_a_plain_function_fails(loop: Loop, streams: Streams, errors: ErrorLog) -> None:
    if streams is asyncio and not hasattr(Reader, "_replace_transport"):
        pytest.skip("asyncio closes the connection since CPython 3.14")

    def serve(reader: Reader, writer: Writer) -> None:
        raise ZeroDivisionError

    async with await streams.start_server(serve, LOCALHOST, 0) as server:
        reader, writer = await streams.open_connection(*address_of(server))
        assert await reader.read() == b""
        await end(writer)
    report = errors.take()
    assert report["message"] == "Unhandled exception in client_connected_cb"
    assert type(report["exception"]) is ZeroDivisionError


async def test_a_handler_that_is_cancelled_closes_its_connection(
    loop: Loop, streams: Streams
) -> None:
    tasks = []

    async def serve(reader: Reader, writer: Writer) -> None:
        tasks.append(asyncio.current_task())
        await reader.read()

    async with await streams.start_server(serve, LOCALHOST, 0) as server:
        reader, writer = await streams.open_connection(*address_of(server))
        await settle()
        [task] = tasks
        assert task is not None
        task.cancel()
        assert await reader.read() == b""
        await end(writer)


async def test_a_unix_server(
    loop: Loop, streams: Streams, tmp_path: Path, errors: ErrorLog
) -> None:
    path = tmp_path / "socket"
    async with await streams.start_unix_server(echo_lines, path, limit=100):
        reader, writer = await streams.open_unix_connection(path, limit=100)
        writer.write(b"one\ntwo\n")
        assert await reader.readline() == b"one\n"
        assert await reader.readexactly(4) == b"two\n"
        writer.write(b"x" * 300 + b"\n")
        writer.write_eof()
        assert await reader.read() == b""
        await end(writer)
    assert "longer than limit" in str(errors.take()["exception"])


async def test_tls(loop: Loop, streams: Streams) -> None:
    async with await streams.start_server(echo, LOCALHOST, 0, ssl=server_context()) as server:
        reader, writer = await streams.open_connection(
            *address_of(server), ssl=client_context(), server_hostname="localhost"
        )
        data = pattern(1_000_000)
        sending = loop.create_task(writer.drain())
        for start in range(0, len(data), 100_000):
            writer.write(data[start : start + 100_000])
        assert await reader.readexactly(len(data)) == data
        await sending
        assert isinstance(writer.get_extra_info("ssl_object"), ssl.SSLObject)
        await end(writer)


async def test_an_upgrade_to_tls(loop: Loop, streams: Streams) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"ready\n")
        await writer.start_tls(server_context())
        await echo_lines(reader, writer)

    async with await streams.start_server(serve, LOCALHOST, 0) as server:
        reader, writer = await streams.open_connection(*address_of(server))
        plain = writer.transport
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"ready\n"
        await writer.start_tls(client_context(), server_hostname="localhost")
        assert writer.transport is not plain
        for number in range(3):
            writer.write(b"secret %d\n" % number)
            await writer.drain()
            assert await reader.readline() == b"secret %d\n" % number
        await end(writer)


async def test_a_connection_is_freed(loop: Loop, streams: Streams) -> None:
    served: list[weakref.ref[object]] = []

    async def serve(reader: Reader, writer: Writer) -> None:
        served.extend(map(weakref.ref, (reader, writer)))
        await echo(reader, writer)

    async with await streams.start_server(serve, LOCALHOST, 0) as server:
        reader, writer = await streams.open_connection(*address_of(server))
        watched = [weakref.ref(each) for each in (reader, writer, writer.transport)]
        writer.write(b"data")
        assert await reader.read(10) == b"data"
        await end(writer)
        del reader, writer
        await server.wait_closed() if server.close() else await settle()
    gc.collect()
    assert [ref() for ref in [*watched, *served]] == [None] * 5


def test_a_loop_that_is_closed_under_its_streams(loop: Loop, streams: Streams) -> None:
    ours, theirs = connected_sockets()

    async def main() -> tuple[Reader, Writer, asyncio.Task[bytes]]:
        reader, writer = await streams.open_connection(sock=ours)
        reading = loop.create_task(reader.read(1))
        await asyncio.sleep(0)
        return reader, writer, reading

    with theirs:
        reader, writer, reading = loop.run_until_complete(main())
        watched = weakref.ref(reader)
        reading.cancel()
        loop.run_until_complete(asyncio.wait([reading]))
        loop.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del reader, writer, reading
            gc.collect()
        assert watched() is None
