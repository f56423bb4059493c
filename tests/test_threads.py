"""Loops that run in other threads than they were made in, and several loops side by side."""

import asyncio
import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pipes import make_pipe
from support import LOCALHOST, Recorder, pattern

Loop = asyncio.AbstractEventLoop

LIMIT = 20.0


@contextmanager
def running(loop: Loop) -> Iterator[None]:
    """Runs the loop in a thread of its own."""
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LIMIT)
        assert not thread.is_alive()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
        await writer.drain()
    writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> bytes:
    writer.write(data)
    return await reader.readexactly(len(data))


async def end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


@pytest.mark.usefixtures("no_fd_left")
def test_servers_connections_and_readers_move_with_the_loop(new_loop: Callable[[], Loop]) -> None:
    loop = new_loop()

    async def start() -> tuple[asyncio.Server, asyncio.StreamReader, asyncio.StreamWriter]:
        server = await asyncio.start_server(echo, LOCALHOST, 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await ask(reader, writer, b"before") == b"before"
        return server, reader, writer

    async def go_on() -> None:
        assert await ask(reader, writer, b"after") == b"after"
        others = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await ask(*others, b"new") == b"new"
        await end(others[1])

    async def stop() -> None:
        await go_on()
        await end(writer)
        server.close()
        await server.wait_closed()

    server, reader, writer = loop.run_until_complete(start())
    for _ in range(2):
        with running(loop):
            asyncio.run_coroutine_threadsafe(go_on(), loop).result(LIMIT)
    loop.run_until_complete(stop())
    loop.close()


@pytest.mark.usefixtures("no_fd_left")
def test_pipes_move_with_the_loop(new_loop: Callable[[], Loop]) -> None:
    loop = new_loop()
    data = pattern(1 << 20)

    async def start() -> tuple[Recorder, Recorder, Recorder]:
        ours, theirs = make_pipe()
        _, reader = await loop.connect_read_pipe(Recorder, ours)
        _, writer = await loop.connect_write_pipe(Recorder, theirs)
        unread, idle = make_pipe()
        _, bystander = await loop.connect_write_pipe(Recorder, idle)
        writer.transport.write(data)
        loop.call_soon(unread.close)
        return reader, writer, bystander

    async def finish() -> None:
        assert await reader.received(len(data)) == data
        writer.transport.close()
        for protocol in (reader, writer, bystander):
            assert await protocol.lost is None

    reader, writer, bystander = loop.run_until_complete(start())
    assert len(reader.data) < len(data)
    with running(loop):
        asyncio.run_coroutine_threadsafe(finish(), loop).result(LIMIT)
    loop.close()


@pytest.mark.usefixtures("no_fd_left")
def test_a_loop_can_be_closed_by_another_thread(new_loop: Callable[[], Loop]) -> None:
    loop = new_loop()
    with running(loop):
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(LIMIT)
    loop.close()
    assert loop.is_closed()


@pytest.mark.usefixtures("no_fd_left")
def test_a_server_can_be_closed_by_another_thread(new_loop: Callable[[], Loop]) -> None:
    loop = new_loop()
    with running(loop):
        starting = asyncio.start_server(echo, LOCALHOST, 0)
        server = asyncio.run_coroutine_threadsafe(starting, loop).result(LIMIT)
        port = server.sockets[0].getsockname()[1]
    server.close()
    loop.run_until_complete(server.wait_closed())
    loop.close()
    # The kernel takes a ring down in the background when another thread than its own closes it.
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            with socket.create_server((LOCALHOST, port)):
                return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise


@pytest.mark.usefixtures("no_fd_left")
def test_loops_in_several_threads_talk_to_each_other(new_loop: Callable[[], Loop]) -> None:
    answers: list[bytes] = []

    def client(port: int) -> None:
        async def main() -> None:
            reader, writer = await asyncio.open_connection(LOCALHOST, port)
            for number in range(100):
                data = b"%d" % number
                assert await ask(reader, writer, data) == data
            answers.append(data)
            await end(writer)

        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())

    loop = new_loop()
    server = loop.run_until_complete(asyncio.start_server(echo, LOCALHOST, 0))
    with running(loop):
        port = server.sockets[0].getsockname()[1]
        clients = [threading.Thread(target=client, args=(port,)) for _ in range(4)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(LIMIT)
    assert answers == [b"99"] * 4
    server.close()
    loop.run_until_complete(server.wait_closed())
    loop.close()


def test_connections_that_were_accepted_before_a_move_are_served(
    new_loop: Callable[[], Loop],
) -> None:
    loop = new_loop()
    server = loop.run_until_complete(asyncio.start_server(echo, LOCALHOST, 0))
    ours, theirs = socket.socketpair()
    loop.add_reader(ours, print)
    clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(3)]
    loop.remove_reader(ours)  # a ring learns of the connections here
    with running(loop):
        for client in clients:
            with client:
                client.settimeout(LIMIT)
                client.sendall(b"hello")
                assert client.recv(10) == b"hello"
    server.close()
    loop.run_until_complete(server.wait_closed())
    loop.close()
    ours.close()
    theirs.close()


def test_a_loop_closed_by_another_thread_keeps_no_connection(
    new_loop: Callable[[], Loop],
) -> None:
    loop = new_loop()
    server = loop.run_until_complete(asyncio.start_server(echo, LOCALHOST, 0))
    ours, theirs = socket.socketpair()
    loop.add_reader(ours, print)
    client = socket.create_connection(server.sockets[0].getsockname())
    loop.remove_reader(ours)

    def close() -> None:
        server.close()
        loop.close()

    thread = threading.Thread(target=close)
    thread.start()
    thread.join(LIMIT)
    with client:
        client.settimeout(LIMIT)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(10) == b""
    ours.close()
    theirs.close()
