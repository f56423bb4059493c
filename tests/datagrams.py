"""A datagram protocol that records its calls, and endpoints to use it with."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from support import LOCALHOST, ErrorLog

Received = tuple[bytes, Any]


class Datagrams(asyncio.DatagramProtocol):
    """Records the calls of a transport, in order, and hands out what came."""

    transport: asyncio.DatagramTransport

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.calls: list[str] = []
        self.received: asyncio.Queue[Received] = asyncio.Queue()
        self.errors: asyncio.Queue[Exception] = asyncio.Queue()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        assert not self.calls
        self.calls.append("connection_made")
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert self.calls[0] == "connection_made"
        assert not self.lost.done()
        assert type(data) is bytes
        self.calls.append("datagram_received")
        self.received.put_nowait((data, addr))

    def error_received(self, exc: Exception) -> None:
        assert not self.lost.done()
        self.calls.append("error_received")
        self.errors.put_nowait(exc)

    def pause_writing(self) -> None:
        self.calls.append("pause_writing")
        self.paused.set()

    def resume_writing(self) -> None:
        self.calls.append("resume_writing")
        self.resumed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        assert not self.lost.done(), "connection_lost was called twice"
        self.calls.append("connection_lost")
        self.lost.set_result(exc)


class Echo(Datagrams):
    """Sends back what it receives."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        super().datagram_received(data, addr)
        self.transport.sendto(data, addr)


@contextlib.asynccontextmanager
async def endpoint[P: Datagrams](
    make: Callable[[], P] = Datagrams,  # type: ignore[assignment]
    **options: Any,
) -> AsyncIterator[P]:
    """The protocol of a new endpoint, by default on a port of localhost.

    At the end the transport, if it is still open, is aborted, and its loss awaited.
    """
    loop = asyncio.get_running_loop()
    options = options or {"local_addr": (LOCALHOST, 0)}
    transport, protocol = await loop.create_datagram_endpoint(make, **options)
    assert protocol.transport is transport
    try:
        yield protocol
    finally:
        if not protocol.lost.done():
            transport.abort()
    await protocol.lost


def name(protocol: Datagrams) -> Any:
    """The address that an endpoint is bound to."""
    return protocol.transport.get_extra_info("sockname")


def udp_socket(family: int = socket.AF_INET, host: str = LOCALHOST) -> socket.socket:
    """A plain socket bound to a port of its own."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.setblocking(False)
    return sock


def refusal(family: int, address: Any) -> Exception:
    """What a plain socket raises for the address."""
    with socket.socket(family, socket.SOCK_DGRAM) as plain:
        try:
            plain.sendto(b"data", address)
        except Exception as error:
            return error
    raise AssertionError(f"a plain socket takes {address!r}")


async def check_refusal(udp: Datagrams, errors: ErrorLog, expected: Exception, to: Any) -> None:
    """Errors of the network are the protocol's business; all others end the transport."""
    udp.transport.sendto(b"data", to)
    if isinstance(expected, OSError):
        error: Any = udp.errors.get_nowait()
        assert error.errno == expected.errno
        assert not udp.transport.is_closing()
    else:
        error = await udp.lost
        report = errors.take()
        assert report["message"] == "Fatal write error on datagram transport"
        assert report["exception"] is error
        assert report["transport"] is udp.transport
        assert report["protocol"] is udp
    assert type(error) is type(expected)
    assert str(error) == str(expected)
