"""websockets' server and client on the loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.asyncio.server import (
    Server,
    ServerConnection,
    broadcast,
    serve,
    unix_serve,
)
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus

from support import LOCALHOST, client_context, fill, pattern, server_context

Handler = Callable[[ServerConnection], Awaitable[None]]


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@contextlib.asynccontextmanager
async def serving(handler: Handler, **options: Any) -> AsyncIterator[tuple[Server, str]]:
    """A server and its URL."""
    async with serve(handler, LOCALHOST, 0, max_size=None, **options) as server:
        scheme = "wss" if "ssl" in options else "ws"
        host, port = next(iter(server.sockets)).getsockname()
        yield server, f"{scheme}://{host}:{port}/"


def connected(url: str, **options: Any) -> connect:
    return connect(url, proxy=None, max_size=None, **options)


@contextlib.asynccontextmanager
async def pair(
    handler: Handler = echo,
    *,
    tls: bool = False,
    server: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[ClientConnection]:
    """A client whose server runs the handler."""
    server_options = (server or {}) | ({"ssl": server_context()} if tls else {})
    options |= {"ssl": client_context()} if tls else {}
    async with serving(handler, **server_options) as (_, url):
        async with connected(url, **options) as client:
            yield client


encrypted_or_not = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
compressed_or_not = pytest.mark.parametrize("compression", [None, "deflate"])


@encrypted_or_not
@compressed_or_not
async def test_messages(
    loop: asyncio.AbstractEventLoop, tls: bool, compression: str | None
) -> None:
    large = pattern(2_000_000)
    async with pair(tls=tls, compression=compression) as client:
        for message in ("text", "ünïcode", b"bytes", "", b"", large):
            await client.send(message)
            assert await client.recv() == message


@encrypted_or_not
async def test_fragments(loop: asyncio.AbstractEventLoop, tls: bool) -> None:
    async def fragments(connection: ServerConnection) -> None:
        received = [part async for part in connection.recv_streaming()]
        assert received == ["one", "two", "", "three", ""]
        await connection.send(received)

    async def parts() -> AsyncIterator[str]:
        for part in ("one", "two", "", "three"):
            yield part
            await asyncio.sleep(0)

    async with pair(fragments, tls=tls) as client:
        await client.send(parts())
        assert await client.recv() == "onetwothree"


async def test_many_messages_in_flight(loop: asyncio.AbstractEventLoop) -> None:
    count = 3000
    async with pair() as client:

        async def send() -> None:
            for number in range(count):
                await client.send(str(number))

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            for number in range(count):
                assert await client.recv() == str(number)


@encrypted_or_not
async def test_a_sender_waits_for_a_slow_receiver(
    loop: asyncio.AbstractEventLoop, tls: bool
) -> None:
    count, message = 100, pattern(200_000)
    sent = 0
    proceed = asyncio.Event()

    async def receive(connection: ServerConnection) -> None:
        await proceed.wait()
        for _ in range(count):
            assert await connection.recv() == message
        await connection.send("done")

    async with pair(receive, tls=tls, compression=None, server={"max_queue": 2}) as client:

        async def send() -> None:
            nonlocal sent
            for _ in range(count):
                await client.send(message)
                sent += 1

        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(sending), 0.3)
            assert sent < count
            proceed.set()
            assert await client.recv() == "done"


# Pings


async def test_pings_are_answered(loop: asyncio.AbstractEventLoop) -> None:
    async def ping(connection: ServerConnection) -> None:
        assert await (await connection.ping("from the server")) > 0
        await echo(connection)

    async with pair(ping) as client:
        first, second = await client.ping("first"), await client.ping("second")
        assert await second > 0
        assert await first > 0
        await client.send("after")
        assert await client.recv() == "after"


async def test_a_deaf_peer_is_given_up(loop: asyncio.AbstractEventLoop) -> None:
    async def deaf(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await connection.wait_closed()

    limits = {"ping_interval": 0.05, "ping_timeout": 0.05, "close_timeout": 0.05}
    async with pair(deaf, server={"close_timeout": 0.05}, **limits) as client:
        with pytest.raises(ConnectionClosedError) as closed:
            await client.recv()
        assert closed.value.sent is not None
        assert (closed.value.sent.code, closed.value.sent.reason) == (
            1011,
            "keepalive ping timeout",
        )


# Ends


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4999])
@pytest.mark.parametrize("closer", ["client", "server"])
async def test_close_codes(loop: asyncio.AbstractEventLoop, code: int, closer: str) -> None:
    ended: asyncio.Future[tuple[int | None, str | None]] = loop.create_future()

    async def handler(connection: ServerConnection) -> None:
        if closer == "server":
            await connection.close(code, "reason")
        await connection.wait_closed()
        ended.set_result((connection.close_code, connection.close_reason))

    async with pair(handler) as client:
        if closer == "client":
            await client.close(code, "reason")
        kind = ConnectionClosedOK if code in (1000, 1001) else ConnectionClosedError
        with pytest.raises(kind):
            await client.recv()
        assert (client.close_code, client.close_reason) == (code, "reason")
        assert await ended == (code, "reason")


@pytest.mark.parametrize(
    ("tls", "end"),
    [(False, "abort"), (False, "write_eof"), (False, "close"), (True, "abort"), (True, "close")],
)
async def test_a_connection_lost_without_a_close_frame(
    loop: asyncio.AbstractEventLoop, tls: bool, end: str
) -> None:
    ended = loop.create_future()

    async def handler(connection: ServerConnection) -> None:
        await connection.wait_closed()
        ended.set_result(connection.close_code)

    async with pair(handler, tls=tls) as client:
        getattr(client.transport, end)()
        assert await ended == 1006
        await client.wait_closed()
        assert client.close_code == 1006


async def test_a_server_that_closes_says_goodbye(loop: asyncio.AbstractEventLoop) -> None:
    async with serving(echo) as (server, url), connected(url) as client:
        await client.send("hello")
        assert await client.recv() == "hello"
        server.close()
        with pytest.raises(ConnectionClosedOK):
            await client.recv()
        assert client.close_code == 1001
        await server.wait_closed()
        with pytest.raises(ConnectionRefusedError):
            await connected(url)


async def test_a_handler_that_fails(loop: asyncio.AbstractEventLoop) -> None:
    async def fail(connection: ServerConnection) -> None:
        raise LookupError("the handler fails")

    async with pair(fail) as client:
        with pytest.raises(ConnectionClosedError):
            await client.recv()
        assert client.close_code == 1011


async def test_a_request_that_is_no_handshake(loop: asyncio.AbstractEventLoop) -> None:
    def refuse(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(403, "no")

    async with serving(echo, process_request=refuse) as (_, url):
        with pytest.raises(InvalidStatus) as refused:
            await connected(url)
        assert refused.value.response.status_code == 403
        reader, writer = await asyncio.open_connection(*url[5:-1].split(":"))
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 4")
        writer.close()
        await writer.wait_closed()


# Many connections


async def test_broadcast(loop: asyncio.AbstractEventLoop) -> None:
    count = 60
    everybody = asyncio.Event()

    async def subscribe(connection: ServerConnection) -> None:
        if len(server.connections) == count:
            everybody.set()
        await connection.wait_closed()

    async with contextlib.AsyncExitStack() as stack:
        server, url = await stack.enter_async_context(serving(subscribe))
        clients = [await stack.enter_async_context(connected(url)) for _ in range(count)]
        await everybody.wait()
        for message in ("to all", pattern(100_000)):
            broadcast(server.connections, message)
            for client in clients:
                assert await client.recv() == message


async def test_broadcast_does_not_wait_for_a_slow_client(loop: asyncio.AbstractEventLoop) -> None:
    everybody = asyncio.Event()

    async def subscribe(connection: ServerConnection) -> None:
        if len(server.connections) == 2:
            everybody.set()
        await connection.wait_closed()

    async with serving(subscribe, close_timeout=0.05) as (server, url):
        async with connected(url) as quick, connected(url, close_timeout=0.05) as slow:
            await everybody.wait()
            slow.transport.pause_reading()
            for connection in server.connections:
                if connection.remote_address == slow.local_address:
                    fill(connection.transport)
            for number in range(100):
                broadcast(server.connections, str(number))
                assert await quick.recv() == str(number)
            slow.transport.abort()


async def test_unix_socket(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> None:
    path = str(tmp_path / "websockets.sock")
    async with unix_serve(echo, path), unix_connect(path, "ws://localhost/") as client:
        await client.send(pattern(100_000))
        assert await client.recv() == pattern(100_000)


async def test_a_client_that_connects_again(loop: asyncio.AbstractEventLoop) -> None:
    async def once(connection: ServerConnection) -> None:
        await connection.send("hello")
        await connection.close(1011)

    greetings = 0
    async with serving(once) as (_, url):
        async for client in connected(url):
            assert await client.recv() == "hello"
            greetings += 1
            if greetings == 3:
                break
            with pytest.raises(ConnectionClosedError):
                await client.recv()
    assert greetings == 3
