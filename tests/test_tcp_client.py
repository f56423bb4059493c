"""create_connection and connect_accepted_socket."""

import asyncio
import socket
from typing import Any

import pytest

from support import (
    LOCALHOST,
    Echo,
    Factory,
    Recorder,
    address_of,
    connected_sockets,
    has_ipv6,
    listener,
    unused_port,
)

Loop = asyncio.AbstractEventLoop

IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback address")


async def end(protocol: Recorder) -> None:
    protocol.transport.close()
    await protocol.lost


async def test_create_connection_returns_the_transport_and_the_protocol(loop: Loop) -> None:
    protocols = Factory(Recorder)
    with listener() as listening:
        transport, protocol = await loop.create_connection(protocols, *listening.getsockname())
        assert protocols.made == [protocol]
        assert transport is protocol.transport
        assert protocol.calls == ["connection_made"]
        accepted, address = listening.accept()
        with accepted:
            assert transport.get_extra_info("sockname") == address
            assert transport.get_extra_info("peername") == listening.getsockname()
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
            await end(protocol)


async def test_a_name_is_resolved(loop: Loop) -> None:
    with listener() as listening:
        port = listening.getsockname()[1]
        transport, protocol = await loop.create_connection(
            Recorder, "localhost", port, family=socket.AF_INET
        )
        assert transport.get_extra_info("peername") == (LOCALHOST, port)
        await end(protocol)


async def test_a_connection_is_refused(loop: Loop) -> None:
    port = unused_port()
    protocols = Factory(Recorder)
    with pytest.raises(ConnectionRefusedError, match="Connect call failed"):
        await loop.create_connection(protocols, LOCALHOST, port)
    assert protocols.made == []


async def test_a_connection_of_a_given_socket_is_refused(loop: Loop) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(ConnectionRefusedError):
            await loop.sock_connect(sock, (LOCALHOST, unused_port()))


async def test_a_given_socket(loop: Loop) -> None:
    ours, theirs = connected_sockets()
    ours.setblocking(True)
    with theirs:
        transport, protocol = await loop.create_connection(Echo, sock=ours)
        assert ours.gettimeout() == 0
        assert transport.get_extra_info("socket").fileno() == ours.fileno()
        theirs.send(b"hello")
        assert await loop.sock_recv(theirs, 5) == b"hello"
        await end(protocol)
        assert ours.fileno() == -1


async def test_a_socket_pair(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        transport, protocol = await loop.create_connection(Echo, sock=ours)
        theirs.send(b"hello")
        assert await loop.sock_recv(theirs, 5) == b"hello"
        assert transport.get_extra_info("peername") == ""
        await end(protocol)


async def test_a_local_address(loop: Loop) -> None:
    with listener() as listening:
        local = (LOCALHOST, unused_port())
        transport, protocol = await loop.create_connection(
            Recorder, *listening.getsockname(), local_addr=local
        )
        accepted, address = listening.accept()
        accepted.close()
        assert address == local
        assert transport.get_extra_info("sockname") == local
        await protocol.lost


async def test_a_local_address_in_use(loop: Loop) -> None:
    with listener() as listening, listener() as used:
        with pytest.raises(OSError, match="error while attempting to bind on address"):
            await loop.create_connection(
                Recorder, *listening.getsockname(), local_addr=used.getsockname()
            )


async def test_wrong_arguments_are_refused(loop: Loop) -> None:
    with listener() as sock, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(ValueError, match="can not be specified at the same time"):
            await loop.create_connection(Echo, LOCALHOST, 0, sock=sock)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="A Stream Socket was expected"):
            await loop.create_connection(Echo, sock=datagrams)
        with pytest.raises(ValueError, match="A Stream Socket was expected"):
            await loop.connect_accepted_socket(Echo, datagrams)
    with pytest.raises(ValueError, match="host and port was not specified and no sock specified"):
        await loop.create_connection(Echo)
    with pytest.raises(ValueError, match="server_hostname is only meaningful with ssl"):
        await loop.create_connection(Echo, LOCALHOST, 1, server_hostname="x")


async def resolving_to(*addresses: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    return [
        (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)
        for family, address in addresses
    ]


@IPV6
@pytest.mark.parametrize("delay", [None, 0.01, 10.0])
async def test_the_next_address_is_tried_when_one_refuses(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, delay: float | None
) -> None:
    with listener() as listening:
        port = listening.getsockname()[1]

        async def getaddrinfo(host: str, *rest: Any, **options: Any) -> Any:
            return await resolving_to(
                (socket.AF_INET6, ("::1", unused_port(), 0, 0)),
                (socket.AF_INET, (LOCALHOST, port)),
            )

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        transport, protocol = await loop.create_connection(
            Recorder, "some.name.invalid", port, happy_eyeballs_delay=delay
        )
        assert transport.get_extra_info("peername") == (LOCALHOST, port)
        await end(protocol)


async def test_happy_eyeballs_does_not_wait_for_an_address_that_does_not_answer(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener(backlog=0) as full, listener() as listening, socket.socket() as first:
        first.connect(full.getsockname())  # the backlog is full: the next one hangs

        async def getaddrinfo(host: str, *rest: Any, **options: Any) -> Any:
            return await resolving_to(
                (socket.AF_INET, full.getsockname()), (socket.AF_INET, listening.getsockname())
            )

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        transport, protocol = await loop.create_connection(
            Recorder, "some.name.invalid", 1, happy_eyeballs_delay=0.01
        )
        assert transport.get_extra_info("peername") == listening.getsockname()
        await end(protocol)


async def test_all_errors_are_told_if_asked_for(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def getaddrinfo(host: str, *rest: Any, **options: Any) -> Any:
        return await resolving_to(
            (socket.AF_INET, (LOCALHOST, unused_port())),
            (socket.AF_INET, (LOCALHOST, unused_port())),
        )

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    with pytest.raises(OSError, match=r"Multiple exceptions: .*Connect call failed"):
        await loop.create_connection(Recorder, "some.name.invalid", 1)
    with pytest.raises(ExceptionGroup) as caught:
        await loop.create_connection(Recorder, "some.name.invalid", 1, all_errors=True)  # type: ignore[call-overload]
    kinds = [type(exception) for exception in caught.value.exceptions]
    assert kinds == [ConnectionRefusedError, ConnectionRefusedError]


async def test_an_exception_of_the_factory_is_raised(loop: Loop) -> None:
    def failing_factory() -> asyncio.Protocol:
        raise LookupError("as planned")

    ours, theirs = connected_sockets()
    with ours, theirs, pytest.raises(LookupError, match="as planned"):
        await loop.create_connection(failing_factory, sock=ours)


async def test_connect_accepted_socket(loop: Loop) -> None:
    with listener() as listening, socket.create_connection(listening.getsockname()) as client:
        accepted, address = listening.accept()
        transport, protocol = await loop.connect_accepted_socket(Echo, accepted)
        assert transport.get_extra_info("peername") == address
        client.send(b"hello")
        await protocol.received(5)
        assert client.recv(5) == b"hello"
        await end(protocol)


async def test_two_transports_of_the_loop_talk(loop: Loop) -> None:
    protocols = Factory(Echo)
    server = await loop.create_server(protocols, LOCALHOST, 0)
    async with server:
        transport, client = await loop.create_connection(Recorder, *address_of(server))
        for number in range(1000):
            transport.write(b"x")
            await client.received(number + 1)
        transport.write_eof()
        assert await client.lost is None
        assert client.calls[-2:] == ["eof_received", "connection_lost"]
        await protocols.made[0].lost


async def test_a_hundred_connections_made_at_once(loop: Loop) -> None:
    protocols = Factory(Echo)
    server = await loop.create_server(protocols, LOCALHOST, 0, backlog=200)
    async with server:
        pairs = await asyncio.gather(
            *(loop.create_connection(Recorder, *address_of(server)) for _ in range(100))
        )
        for number, (transport, _) in enumerate(pairs):
            transport.write(b"%03d" % number)
        for number, (_, protocol) in enumerate(pairs):
            assert await protocol.received(3) == b"%03d" % number
            await end(protocol)
        assert len(protocols.made) == 100
        for accepted in protocols.made:
            await accepted.lost
