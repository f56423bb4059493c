"""create_server and asyncio.Server."""

import asyncio
import contextlib
import errno
import os
import socket

import pytest

from support import (
    LOCALHOST,
    Echo,
    Factory,
    Recorder,
    address_of,
    has_ipv6,
    listener,
    reset,
    settle,
)

Loop = asyncio.AbstractEventLoop

IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback address")


async def answer(host: str, port: int, question: bytes = b"hello") -> bytes:
    """What an echo server at that address says."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(question)
    data = await reader.readexactly(len(question))
    writer.close()
    await writer.wait_closed()
    return data


async def test_a_server_accepts_and_serves(loop: Loop) -> None:
    protocols = Factory(Echo)
    server = await loop.create_server(protocols, LOCALHOST, 0)
    async with server:
        assert isinstance(server, asyncio.AbstractServer)
        assert server.is_serving()
        assert server.get_loop() is loop
        for number in range(20):
            assert await answer(*address_of(server), b"%d" % number) == b"%d" % number
            protocol = await protocols.next()
            assert await protocol.lost is None
            assert protocol.data == b"%d" % number
            assert protocol.calls[0] == "connection_made"


async def test_what_an_accepted_transport_tells(loop: Loop) -> None:
    protocols = Factory(Recorder)
    server = await loop.create_server(protocols, LOCALHOST, 0)
    async with server:
        with socket.create_connection(address_of(server)) as client:
            protocol = await protocols.next()
            await protocol.made
            info = protocol.transport.get_extra_info
            assert info("peername") == client.getsockname()
            assert info("sockname") == client.getpeername()
            accepted = info("socket")
            assert accepted.fileno() >= 0
            assert accepted.getpeername() == client.getsockname()
            assert accepted.gettimeout() == 0
            assert not os.get_inheritable(accepted.fileno())
            assert not os.get_blocking(accepted.fileno())
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        await protocol.lost
        assert info("peername") is not None


async def test_many_clients_at_once(loop: Loop) -> None:
    server = await loop.create_server(Echo, LOCALHOST, 0, backlog=300)
    async with server:
        questions = [b"%d" % number for number in range(300)]
        answers = await asyncio.gather(
            *(answer(*address_of(server), question) for question in questions)
        )
        assert answers == questions
    await server.wait_closed()


async def test_a_small_backlog_serves_all(loop: Loop) -> None:
    server = await loop.create_server(Echo, LOCALHOST, 0, backlog=1)
    async with server:
        questions = [b"%d" % number for number in range(10)]
        for question in questions:
            assert await answer(*address_of(server), question) == question
    await server.wait_closed()


@IPV6
async def test_a_server_on_ipv6(loop: Loop) -> None:
    protocols = Factory(Echo)
    server = await loop.create_server(protocols, "::1", 0)
    async with server:
        assert server.sockets[0].family == socket.AF_INET6
        host, port, *_ = server.sockets[0].getsockname()
        assert await answer(host, port) == b"hello"
        protocol = await protocols.next()
        assert protocol.transport.get_extra_info("sockname") == (host, port, 0, 0)
        assert len(protocol.transport.get_extra_info("peername")) == 4
        await protocol.lost


@IPV6
async def test_a_server_on_several_hosts(loop: Loop) -> None:
    server = await loop.create_server(Echo, [LOCALHOST, "::1", LOCALHOST], 0)
    async with server:
        hosts = [sock.getsockname()[0] for sock in server.sockets]
        assert sorted(hosts) == [LOCALHOST, "::1"]
        for sock in server.sockets:
            host, port, *_ = sock.getsockname()
            assert await answer(host, port) == b"hello"
    await server.wait_closed()


async def test_a_server_without_a_host_listens_on_all_that_getaddrinfo_gives(loop: Loop) -> None:
    # Without AI_PASSIVE no host means the loopback addresses.
    server = await loop.create_server(Echo, None, 0, family=socket.AF_INET, flags=0)
    async with server:
        assert [sock.getsockname()[0] for sock in server.sockets] == [LOCALHOST]
        assert await answer(*address_of(server)) == b"hello"
    await server.wait_closed()


async def test_a_server_on_a_given_socket(loop: Loop) -> None:
    with socket.socket() as sock:
        sock.bind((LOCALHOST, 0))
        server = await loop.create_server(Echo, sock=sock)
        async with server:
            assert server.sockets[0].fileno() == sock.fileno()
            assert sock.gettimeout() == 0
            assert await answer(*sock.getsockname()) == b"hello"
        await server.wait_closed()
        assert sock.fileno() == -1


async def test_two_servers_share_a_port(loop: Loop) -> None:
    protocols = Factory(Recorder)
    first = await loop.create_server(protocols, LOCALHOST, 0, reuse_port=True)
    host, port = address_of(first)
    second = await loop.create_server(protocols, host, port, reuse_port=True)
    async with first, second:
        assert address_of(second) == (host, port)
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(socket.create_connection((host, port)))
            for _ in range(50):
                await (await protocols.next()).made
        for protocol in protocols.made:
            await protocol.lost


async def test_a_port_in_use(loop: Loop) -> None:
    with listener() as used:
        host, port = used.getsockname()
        expected = rf"error while attempting to bind on address \('{host}', {port}\): .*already in"
        with pytest.raises(OSError, match=expected) as caught:
            await loop.create_server(Echo, host, port)
        assert caught.value.errno == errno.EADDRINUSE


async def test_wrong_arguments_are_refused(loop: Loop) -> None:
    with listener() as sock, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(ValueError, match="can not be specified at the same time"):
            await loop.create_server(Echo, LOCALHOST, 0, sock=sock)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="A Stream Socket was expected"):
            await loop.create_server(Echo, sock=datagrams)
    with pytest.raises(ValueError, match="Neither host/port nor sock were specified"):
        await loop.create_server(Echo)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="ssl argument must be an SSLContext or None"):
        await loop.create_server(Echo, LOCALHOST, 0, ssl=True)


async def test_a_server_can_start_later(loop: Loop) -> None:
    server = await loop.create_server(Echo, LOCALHOST, 0, start_serving=False)
    assert not server.is_serving()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address_of(server))
    await server.start_serving()
    await server.start_serving()
    assert server.is_serving()
    assert await answer(*address_of(server)) == b"hello"
    server.close()
    await server.wait_closed()


async def test_a_closed_server(loop: Loop) -> None:
    server = await loop.create_server(Echo, LOCALHOST, 0)
    address = address_of(server)
    server.close()
    server.close()
    assert not server.is_serving()
    assert server.sockets == ()
    await settle()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    await server.wait_closed()
    with pytest.raises(RuntimeError, match="is closed"):
        await server.serve_forever()


async def test_the_port_is_free_once_the_server_is_closed(loop: Loop) -> None:
    server = await loop.create_server(Echo, LOCALHOST, 0)
    host, port = address_of(server)
    for _ in range(10):
        assert await answer(host, port) == b"hello"
        server.close()
        await server.wait_closed()
        server = await loop.create_server(Echo, host, port)
    server.close()
    await server.wait_closed()


async def test_a_server_closed_at_once(loop: Loop) -> None:
    for _ in range(20):
        server = await loop.create_server(Echo, LOCALHOST, 0)
        server.close()
        await server.wait_closed()


async def test_connections_outlive_the_close_and_wait_closed_waits_for_them(loop: Loop) -> None:
    protocols = Factory(Echo)
    server = await loop.create_server(protocols, LOCALHOST, 0)
    reader, writer = await asyncio.open_connection(*address_of(server))
    protocol = await protocols.next()
    await protocol.made
    waiting = loop.create_task(server.wait_closed())
    await settle()
    assert not waiting.done()
    server.close()
    await settle()
    assert not waiting.done()
    writer.write(b"still there")
    assert await reader.readexactly(11) == b"still there"
    writer.close()
    await writer.wait_closed()
    await waiting
    assert protocol.lost.done()


async def test_wait_closed_waits_for_the_close(loop: Loop) -> None:
    server = await loop.create_server(Echo, LOCALHOST, 0)
    waiting = loop.create_task(server.wait_closed())
    await settle()
    assert not waiting.done()
    server.close()
    await waiting
    await server.wait_closed()


@pytest.mark.parametrize("way", ["close_clients", "abort_clients"])
async def test_the_clients_of_a_server_can_be_ended(loop: Loop, way: str) -> None:
    protocols = Factory(Recorder)
    server = await loop.create_server(protocols, LOCALHOST, 0)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(address_of(server)))
            await (await protocols.next()).made
        server.close()
        getattr(server, way)()
        await server.wait_closed()
        for protocol in protocols.made:
            assert await protocol.lost is None


async def test_close_clients_flushes_and_abort_clients_does_not(loop: Loop) -> None:
    protocols = Factory(Recorder)
    server = await loop.create_server(protocols, LOCALHOST, 0)
    with socket.create_connection(address_of(server)):
        protocol = await protocols.next()
        await protocol.made
        protocol.transport.write(b"x" * 50_000_000)  # more than the kernel takes
        server.close()
        server.close_clients()
        await settle()
        assert protocol.transport.is_closing()
        assert not protocol.lost.done()
        server.abort_clients()
        await server.wait_closed()
        assert await protocol.lost is None


async def test_a_server_is_a_context_manager(loop: Loop) -> None:
    async with await loop.create_server(Echo, LOCALHOST, 0) as server:
        assert await answer(*address_of(server)) == b"hello"
    assert not server.is_serving()
    assert server.sockets == ()


async def test_serve_forever_until_cancelled(loop: Loop) -> None:
    server = await loop.create_server(Echo, LOCALHOST, 0, start_serving=False)
    address = address_of(server)
    serving = loop.create_task(server.serve_forever())
    await asyncio.sleep(0)
    assert server.is_serving()
    with pytest.raises(RuntimeError, match="is already being awaited on serve_forever"):
        await server.serve_forever()
    assert await answer(*address) == b"hello"
    await settle()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not server.is_serving()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_close_ends_serve_forever(loop: Loop) -> None:
    server = await loop.create_server(Echo, LOCALHOST, 0)
    serving = loop.create_task(server.serve_forever())
    await settle()
    server.close()
    with pytest.raises(asyncio.CancelledError):
        await serving
    await server.wait_closed()


async def test_the_sockets_of_a_server_cannot_be_changed_through_it(loop: Loop) -> None:
    server = await loop.create_server(Echo, LOCALHOST, 0)
    async with server:
        sockets = server.sockets
        assert isinstance(sockets, tuple)
        assert sockets is not server.sockets
        assert not hasattr(sockets[0], "close")
        assert sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) != 0


async def test_a_client_that_is_gone_before_it_is_accepted(loop: Loop) -> None:
    protocols = Factory(Recorder)
    server = await loop.create_server(protocols, LOCALHOST, 0)
    async with server:
        for number in range(20):
            client = socket.create_connection(address_of(server))
            client.send(b"data")
            if number % 2:
                reset(client)
            else:
                client.close()
        for _ in range(20):
            protocol = await protocols.next()
            lost = await protocol.lost
            assert lost is None or isinstance(lost, ConnectionResetError)
        assert server.is_serving()


async def test_several_servers_side_by_side(loop: Loop) -> None:
    servers = [await loop.create_server(Echo, LOCALHOST, 0) for _ in range(10)]
    for server in servers[::2]:
        server.close()
    for server in servers[1::2]:
        assert await answer(*address_of(server)) == b"hello"
    for server in servers:
        server.close()
        await server.wait_closed()
