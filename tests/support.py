"""Protocols that record their calls, connected pairs, and other helpers of the tests."""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import certificate

LOCALHOST = "127.0.0.1"

StartChild = Callable[..., subprocess.Popen[str]]


def has_ipv6() -> bool:
    if "CI" in os.environ:
        return True  # there, its absence is a failure
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def open_fds() -> dict[int, str]:
    """The open file descriptors of this process and what they refer to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def wait_until_blocked(thread_id: int) -> None:
    """Return once a thread, of any process, sleeps in the kernel: seen five times running."""
    limit = time.monotonic() + 10
    seen = 0
    while seen < 5:
        with open(f"/proc/{thread_id}/stat") as file:
            state = file.read().rpartition(")")[2].split()[0]
        seen = seen + 1 if state == "S" else 0
        if time.monotonic() > limit:
            raise TimeoutError("the thread does not block")
        time.sleep(0.002)


@contextlib.contextmanager
def in_thread(function: Callable[[], None]) -> Iterator[None]:
    """Run function in a thread while the body runs, and hand on what it raises."""
    raised: list[BaseException] = []

    def body() -> None:
        try:
            function()
        except BaseException as exception:
            raised.append(exception)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if raised:
        raise raised[0]


class ErrorLog(list[dict[str, Any]]):
    """The contexts that reached the loop's exception handler."""

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.append(context)

    def take(self) -> dict[str, Any]:
        """The only report there is, which is then forgotten."""
        assert len(self) == 1, self
        return self.pop()


class Recording(asyncio.BaseProtocol):
    """Records the calls of a transport, in order, and lets a test wait for them."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.calls: list[str] = []
        self.data = bytearray()
        self.made = self.loop.create_future()
        self.eof = self.loop.create_future()
        self.lost: asyncio.Future[BaseException | None] = self.loop.create_future()
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()
        self.keep_open = False
        self._awaited: list[tuple[int, asyncio.Future[None]]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.BaseTransport)
        assert not self.calls
        self.calls.append("connection_made")
        self.transport = cast(asyncio.Transport, transport)
        self.made.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        assert self.calls[0] == "connection_made"
        assert not self.lost.done(), "connection_lost was called twice"
        self.calls.append("connection_lost")
        self.lost.set_result(exc)

    def pause_writing(self) -> None:
        self.calls.append("pause_writing")
        self.paused.set()

    def resume_writing(self) -> None:
        self.calls.append("resume_writing")
        self.resumed.set()

    def eof_received(self) -> bool | None:
        assert self.calls[0] == "connection_made"
        assert not self.eof.done(), "eof_received was called twice"
        assert not self.lost.done()
        self.calls.append("eof_received")
        self.eof.set_result(None)
        return self.keep_open

    def arrived(self, data: bytes | bytearray | memoryview) -> None:
        assert self.calls[0] == "connection_made"
        assert not self.lost.done()
        assert not self.eof.done()
        assert len(data) > 0
        self.data += data
        for size, waiter in self._awaited[:]:
            if len(self.data) >= size:
                self._awaited.remove((size, waiter))
                waiter.set_result(None)

    async def received(self, size: int) -> bytes:
        """All data so far, once it is at least size bytes."""
        if len(self.data) < size:
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._awaited.append((size, waiter))
            await waiter
        return bytes(self.data)


class Recorder(Recording, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.calls.append("data_received")
        self.arrived(data)


class BufferedRecorder(Recording, asyncio.BufferedProtocol):
    size = 4096

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(self.size)

    def get_buffer(self, sizehint: int) -> bytearray:
        assert isinstance(sizehint, int)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        assert 0 < nbytes <= self.size
        self.calls.append("buffer_updated")
        self.arrived(self.buffer[:nbytes])


class Echo(Recorder):
    """Writes back what it receives."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(data)


class Factory[P: asyncio.BaseProtocol]:
    """A protocol factory that hands out the protocols it makes, in order."""

    def __init__(self, make: Callable[[], P]) -> None:
        self.make = make
        self.made: list[P] = []
        self._queue: asyncio.Queue[P] = asyncio.Queue()

    def __call__(self) -> P:
        protocol = self.make()
        self.made.append(protocol)
        self._queue.put_nowait(protocol)
        return protocol

    async def next(self) -> P:
        return await self._queue.get()


@dataclass
class Link[P: Recording]:
    """A transport of the loop under test and the plain socket at the other end."""

    transport: asyncio.Transport
    protocol: P
    peer: socket.socket

    def send(self, data: bytes) -> None:
        """Send from the plain socket: on loopback the data is there when this returns."""
        self.peer.sendall(data)

    async def receive(self, size: int) -> bytes:
        """Exactly size bytes, or what came before the end of the stream."""
        loop = asyncio.get_running_loop()
        data = bytearray()
        while len(data) < size:
            chunk = await loop.sock_recv(self.peer, min(size - len(data), 256 * 1024))
            if not chunk:
                break
            data += chunk
        return bytes(data)

    async def receive_all(self) -> bytes:
        return await self.receive(1 << 62)

    def reset(self) -> None:
        reset(self.peer)


def reset(sock: socket.socket) -> None:
    """Close a socket so that the other end gets an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def listener(**options: Any) -> socket.socket:
    return socket.create_server((LOCALHOST, 0), **options)


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind((LOCALHOST, 0))
        return int(sock.getsockname()[1])


def address_of(server: asyncio.Server) -> tuple[str, int]:
    host, port = server.sockets[0].getsockname()[:2]
    return host, port


def connected_sockets(*, small: bool = False) -> tuple[socket.socket, socket.socket]:
    """Two TCP sockets connected with each other; small: with the least kernel buffers."""
    family, kind, protocol = socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
    with socket.socket(family, kind, protocol) as listening, contextlib.ExitStack() as stack:
        if small:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listening.bind((LOCALHOST, 0))
        listening.listen()
        ours = stack.enter_context(socket.socket(family, kind, protocol))
        if small:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ours.connect(listening.getsockname())
        theirs = stack.enter_context(listening.accept()[0])
        stack.pop_all()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


@contextlib.asynccontextmanager
async def linked[P: Recording](
    make: Callable[[], P], *, accepted: bool = False, small: bool = False
) -> AsyncIterator[Link[P]]:
    """A transport connected with a plain socket; accepted: as a server gets it.

    At the end the transport, if it is still open, is aborted, and its loss awaited.
    """
    loop = asyncio.get_running_loop()
    ours, theirs = connected_sockets(small=small)
    try:
        if accepted:
            transport, protocol = await loop.connect_accepted_socket(make, ours)
        else:
            transport, protocol = await loop.create_connection(make, sock=ours)
    except BaseException:
        ours.close()
        theirs.close()
        raise
    link = Link(transport, protocol, theirs)
    try:
        yield link
    finally:
        if not protocol.lost.done():
            transport.abort()
        theirs.close()
    await protocol.lost


async def settle(rounds: int = 3) -> None:
    """Let the loop poll for I/O several times, so that whatever was ready has been delivered."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    try:
        for _ in range(rounds):
            waiting = loop.create_task(loop.sock_recv(ours, 1))
            await asyncio.sleep(0)
            theirs.send(b"x")
            assert await waiting == b"x"
            await asyncio.sleep(0)
    finally:
        ours.close()
        theirs.close()


def fill(transport: asyncio.Transport, chunk: int = 64 * 1024) -> int:
    """Write until the kernel takes no more and the transport has to buffer; bytes written."""
    written = 0
    while transport.get_write_buffer_size() == 0:
        transport.write(b"f" * chunk)
        written += chunk
    return written


def fill_socket(sock: socket.socket) -> int:
    """Send until the kernel takes no more; bytes sent."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(b"f" * 65536)
    return sent


def pattern(size: int) -> bytes:
    """size bytes in which every position can be told from its neighbours."""
    return b"".join(struct.pack(">I", number) for number in range(size // 4 + 1))[:size]


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with certificate.files() as (chain, key):
        context.load_cert_chain(chain, key)
    return context


def client_context() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=certificate.CERTIFICATE)
