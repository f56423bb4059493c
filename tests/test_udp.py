"""UDP endpoints: how they are made, what they send and receive, and how they end."""

import array
import asyncio
import contextvars
import errno
import gc
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from datagrams import Datagrams, Echo, endpoint, name, udp_socket
from support import LOCALHOST, ErrorLog, has_ipv6, settle

Loop = asyncio.AbstractEventLoop

LARGEST = 65507
"""The largest payload of a UDP datagram over IPv4."""


def ops_in_flight(loop: Loop) -> int:
    return loop.stats()["ops_in_flight"] if hasattr(loop, "stats") else 0


# How endpoints are made


async def test_an_endpoint_is_a_datagram_transport(loop: Loop) -> None:
    async with endpoint() as udp:
        assert isinstance(udp.transport, asyncio.DatagramTransport)
        assert isinstance(udp.transport, asyncio.Transport), "as asyncio's own is"
        assert udp.transport.get_protocol() is udp
        assert not udp.transport.is_closing()
        text = repr(udp.transport)
        assert f"fd={udp.transport.get_extra_info('socket').fileno()} " in text
        assert "write=<idle, bufsize=0>" in text


async def test_a_transport_takes_attributes(loop: Loop) -> None:
    async with endpoint() as udp:
        transport: Any = udp.transport
        transport.note = "a note"
        transport.itself = transport
        assert transport.note == "a note"
        sent: list[bytes] = []
        transport.sendto = sent.append
        transport.sendto(b"not sent")
        del transport.sendto
        transport.sendto(b"sent", name(udp))
        assert (await udp.received.get())[0] == b"sent"
        assert sent == [b"not sent"]


async def test_reading_is_polled_for_once_the_endpoint_is_there(loop: Loop) -> None:
    async with endpoint() as udp:
        await settle()
        assert "read=polling" in repr(udp.transport)
        assert udp.calls == ["connection_made"]


async def test_a_bound_endpoint(loop: Loop) -> None:
    async with endpoint() as udp:
        info = udp.transport.get_extra_info
        sock = info("socket")
        assert info("sockname") == sock.getsockname()
        assert info("sockname")[0] == LOCALHOST
        assert info("peername") is None
        assert info("unknown", "default") == "default"
        assert sock.type == socket.SOCK_DGRAM
        assert sock.gettimeout() == 0


async def test_a_connected_endpoint(loop: Loop) -> None:
    with udp_socket() as peer:
        async with endpoint(remote_addr=peer.getsockname()) as udp:
            assert udp.transport.get_extra_info("peername") == peer.getsockname()
            udp.transport.sendto(b"data")
            assert await loop.sock_recvfrom(peer, 100) == (b"data", name(udp))
            peer.sendto(b"answer", name(udp))
            assert await udp.received.get() == (b"answer", peer.getsockname())


async def test_an_endpoint_with_both_addresses(loop: Loop) -> None:
    with udp_socket() as peer:
        addresses = {"local_addr": (LOCALHOST, 0), "remote_addr": peer.getsockname()}
        async with endpoint(**addresses) as udp:
            udp.transport.sendto(b"data")
            assert await loop.sock_recvfrom(peer, 100) == (b"data", name(udp))


async def test_an_endpoint_for_a_host_name(loop: Loop) -> None:
    with udp_socket() as peer:
        remote = ("localhost", peer.getsockname()[1])
        async with endpoint(remote_addr=remote, family=socket.AF_INET) as udp:
            udp.transport.sendto(b"data")
            assert await loop.sock_recvfrom(peer, 100) == (b"data", name(udp))


async def test_an_endpoint_for_a_socket(loop: Loop) -> None:
    with udp_socket() as peer:
        async with endpoint(sock=udp_socket()) as udp:
            udp.transport.sendto(b"data", peer.getsockname())
            assert await loop.sock_recvfrom(peer, 100) == (b"data", name(udp))


async def test_an_endpoint_for_a_connected_socket(loop: Loop) -> None:
    """Whatever address is given, the datagram goes to the peer: as in asyncio."""
    with udp_socket() as peer, udp_socket() as other:
        ours = udp_socket()
        ours.connect(peer.getsockname())
        async with endpoint(sock=ours) as udp:
            udp.transport.sendto(b"one")
            udp.transport.sendto(b"two", other.getsockname())
            assert await loop.sock_recvfrom(peer, 100) == (b"one", name(udp))
            assert await loop.sock_recvfrom(peer, 100) == (b"two", name(udp))


async def test_an_endpoint_without_addresses_gets_a_port_when_it_sends(loop: Loop) -> None:
    with udp_socket() as peer:
        async with endpoint(family=socket.AF_INET) as udp:
            udp.transport.sendto(b"data", peer.getsockname())
            data, address = await loop.sock_recvfrom(peer, 100)
            assert data == b"data"
            peer.sendto(b"answer", address)
            assert await udp.received.get() == (b"answer", peer.getsockname())


async def test_endpoints_that_share_a_port(loop: Loop) -> None:
    async with endpoint(local_addr=(LOCALHOST, 0), reuse_port=True) as first:
        async with endpoint(local_addr=name(first), reuse_port=True) as second:
            assert name(first) == name(second)
        with pytest.raises(OSError, match="in use"):
            await loop.create_datagram_endpoint(Datagrams, local_addr=name(first))


async def test_broadcasting_leaves_the_socket_unconnected(loop: Loop) -> None:
    with udp_socket() as peer, udp_socket() as other:
        remote = peer.getsockname()
        async with endpoint(remote_addr=remote, allow_broadcast=True) as udp:
            info = udp.transport.get_extra_info
            assert info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST) != 0
            assert info("peername") is None
            udp.transport.sendto(b"one")
            udp.transport.sendto(b"two", remote)
            data, address = await loop.sock_recvfrom(peer, 100)
            assert data == b"one"
            assert await loop.sock_recvfrom(peer, 100) == (b"two", address)
            other.sendto(b"from another", (LOCALHOST, address[1]))
            assert await udp.received.get() == (b"from another", other.getsockname())


async def test_stream_sockets_are_refused(loop: Loop) -> None:
    with socket.socket() as sock:
        with pytest.raises(ValueError, match="A datagram socket was expected"):
            await loop.create_datagram_endpoint(Datagrams, sock=sock)


async def test_a_cancelled_endpoint_is_closed(loop: Loop) -> None:
    sock = udp_socket()
    made = []

    def make() -> Datagrams:
        made.append(Datagrams())
        return made[0]

    task = loop.create_task(loop.create_datagram_endpoint(make, sock=sock))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await made[0].lost is None
    assert sock.fileno() == -1


async def test_the_socket_belongs_to_the_transport(loop: Loop) -> None:
    sock = udp_socket()
    async with endpoint(sock=sock):
        with pytest.raises(RuntimeError, match="is used by transport"):
            loop.add_reader(sock, print)
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.create_datagram_endpoint(Datagrams, sock=sock)
    assert sock.fileno() == -1


# Sending and receiving


async def test_echo(loop: Loop) -> None:
    async with endpoint(Echo) as server:
        async with endpoint(remote_addr=name(server)) as client:
            for number in range(100):
                client.transport.sendto(b"%d" % number)
                assert await client.received.get() == (b"%d" % number, name(server))


@pytest.mark.parametrize("size", [0, 1, 1472, LARGEST])
async def test_sizes(loop: Loop, size: int) -> None:
    data = bytes(range(256)) * 256
    async with endpoint(Echo) as server, endpoint() as client:
        client.transport.sendto(data[:size], name(server))
        assert await client.received.get() == (data[:size], name(server))


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        (bytearray(b"bytearray"), b"bytearray"),
        (memoryview(b"view")[1:], b"iew"),
        (memoryview(array.array("H", [0x3132, 0x3334])), array.array("H", [0x3132, 0x3334])),
    ],
    ids=["bytearray", "memoryview", "memoryview of shorts"],
)
async def test_bytes_likes(loop: Loop, data: Any, sent: Any) -> None:
    with udp_socket() as peer:
        async with endpoint() as udp:
            udp.transport.sendto(data=data, addr=peer.getsockname())
            assert await loop.sock_recv(peer, 100) == bytes(sent)


@pytest.mark.parametrize("data", ["text", None, 3, [b"x"], array.array("B", b"x")])
async def test_other_data_is_refused(loop: Loop, data: Any) -> None:
    async with endpoint() as udp:
        kind = type(data).__name__
        with pytest.raises(TypeError, match=f"must be a bytes-like object, not '{kind}'"):
            udp.transport.sendto(data, name(udp))
        with pytest.raises(TypeError):
            udp.transport.sendto()  # type: ignore[call-arg]


async def test_data_that_is_not_contiguous_ends_the_transport(loop: Loop, errors: ErrorLog) -> None:
    async with endpoint() as udp:
        udp.transport.sendto(memoryview(b"abcd")[::2], name(udp))
        assert isinstance(await udp.lost, BufferError)
    report = errors.take()
    assert report["message"] == "Fatal write error on datagram transport"


async def test_a_burst_arrives_in_order(loop: Loop) -> None:
    with udp_socket() as peer:
        async with endpoint() as udp:
            for number in range(100):
                peer.sendto(b"%d" % number, name(udp))
            for number in range(100):
                assert await udp.received.get() == (b"%d" % number, peer.getsockname())


async def test_many_peers_are_told_apart(loop: Loop) -> None:
    async with endpoint(Echo) as server:
        socks = [udp_socket() for _ in range(20)]
        try:
            for turn in range(5):
                for number, sock in enumerate(socks):
                    sock.sendto(b"%d %d" % (number, turn), name(server))
                for number, sock in enumerate(socks):
                    answer = await loop.sock_recvfrom(sock, 100)
                    assert answer == (b"%d %d" % (number, turn), name(server))
                    assert (await server.received.get())[1] == sock.getsockname()
        finally:
            for sock in socks:
                sock.close()


async def test_many_endpoints(loop: Loop) -> None:
    async def ask(number: int) -> None:
        async with endpoint(remote_addr=name(server)) as client:
            for turn in range(5):
                client.transport.sendto(b"%d %d" % (number, turn))
                assert (await client.received.get())[0] == b"%d %d" % (number, turn)

    before = ops_in_flight(loop)
    async with endpoint(Echo) as server:
        async with asyncio.TaskGroup() as group:
            for number in range(150):
                group.create_task(ask(number))
    await settle()
    assert ops_in_flight(loop) == before


async def test_who_is_woken_runs_before_the_next_datagram(loop: Loop) -> None:
    order: list[object] = []

    class Waking(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            order.append(data)
            loop.call_soon(order.append, "woken")
            if data == b"2":
                self.received.put_nowait((data, addr))

    with udp_socket() as peer:
        async with endpoint(Waking) as udp:
            for number in range(3):
                peer.sendto(b"%d" % number, name(udp))
            await udp.received.get()
    assert order == [b"0", "woken", b"1", "woken", b"2", "woken"]


def test_a_coroutine_about_to_start_does_not_miss_what_has_come(loop: Loop) -> None:
    class Expecting(Datagrams):
        expected: asyncio.Future[bytes] | None = None

        def datagram_received(self, data: bytes, addr: Any) -> None:
            assert self.expected is not None
            self.expected.set_result(data)

    async def expect(protocol: Expecting) -> bytes:
        protocol.expected = loop.create_future()
        return await asyncio.wait_for(protocol.expected, 10)

    make = loop.create_datagram_endpoint(Expecting, local_addr=(LOCALHOST, 0))
    transport, protocol = loop.run_until_complete(make)
    with udp_socket() as peer:
        for number in range(3):
            peer.sendto(b"%d" % number, transport.get_extra_info("sockname"))
            assert loop.run_until_complete(expect(protocol)) == b"%d" % number
    transport.close()
    loop.run_until_complete(protocol.lost)


async def test_pausing_keeps_datagrams_in_the_kernel(loop: Loop) -> None:
    with udp_socket() as peer:
        async with endpoint() as udp:
            transport: Any = udp.transport
            transport.pause_reading()
            assert not transport.is_reading()
            for number in range(10):
                peer.sendto(b"%d" % number, name(udp))
            await settle()
            assert udp.received.empty()
            transport.resume_reading()
            for number in range(10):
                assert (await udp.received.get())[0] == b"%d" % number


async def test_a_protocol_that_pauses_gets_no_more(loop: Loop) -> None:
    class Pausing(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.pause_reading()  # type: ignore[attr-defined]

    with udp_socket() as peer:
        async with endpoint(Pausing) as udp:
            transport: Any = udp.transport
            for number in range(5):
                peer.sendto(b"%d" % number, name(udp))
            for number in range(5):
                assert (await udp.received.get())[0] == b"%d" % number
                await settle()
                assert udp.received.empty()
                transport.resume_reading()


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_a_protocol_that_ends_the_transport_gets_no_more(loop: Loop, end: str) -> None:
    class Ending(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            getattr(self.transport, end)()

    with udp_socket() as peer:
        async with endpoint(Ending) as udp:
            for number in range(5):
                peer.sendto(b"%d" % number, name(udp))
            assert await udp.lost is None
            assert udp.calls == ["connection_made", "datagram_received", "connection_lost"]


async def test_another_protocol_gets_the_next_datagram(loop: Loop) -> None:
    second = Datagrams()
    second.calls.append("connection_made")

    class First(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.set_protocol(second)

    with udp_socket() as peer:
        async with endpoint(First) as first:
            peer.sendto(b"one", name(first))
            peer.sendto(b"two", name(first))
            assert (await first.received.get())[0] == b"one"
            assert (await second.received.get())[0] == b"two"
            assert first.transport.get_protocol() is second
            first.transport.close()
            assert await second.lost is None
            first.lost.set_result(None)


async def test_callbacks_run_in_the_context_of_the_endpoint(loop: Loop) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    seen = {}

    class Looking(Datagrams):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            seen["connection_made"] = variable.get()

        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            seen["datagram_received"] = variable.get()

    variable.set("set")
    async with endpoint(Looking) as udp:
        variable.set("changed")
        udp.transport.sendto(b"data", name(udp))
        await udp.received.get()
    assert seen == {"connection_made": "set", "datagram_received": "set"}


async def test_debug_mode(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)
    with caplog.at_level(logging.DEBUG, "asyncio"):
        async with endpoint(Echo) as server, endpoint(remote_addr=name(server)) as client:
            client.transport.sendto(b"data")
            assert (await client.received.get())[0] == b"data"
            client.transport.pause_reading()  # type: ignore[attr-defined]
            client.transport.resume_reading()  # type: ignore[attr-defined]
    text = caplog.text
    assert "Datagram endpoint local_addr=" in text
    assert "pauses reading" in text
    assert "resumes reading" in text


# Errors


async def test_a_refused_datagram_is_an_error_and_no_end(loop: Loop) -> None:
    with udp_socket() as peer:
        address = peer.getsockname()
    async with endpoint(remote_addr=address) as udp:
        udp.transport.sendto(b"refused")
        assert isinstance(await udp.errors.get(), ConnectionRefusedError)
        with socket.socket(type=socket.SOCK_DGRAM) as peer:
            peer.setblocking(False)
            peer.bind(address)
            udp.transport.sendto(b"taken")
            assert await loop.sock_recvfrom(peer, 100) == (b"taken", name(udp))
            peer.sendto(b"answer", name(udp))
            assert (await udp.received.get())[0] == b"answer"


async def test_a_datagram_that_is_too_large(loop: Loop) -> None:
    async with endpoint(Echo) as server, endpoint() as client:
        client.transport.sendto(bytes(LARGEST + 1), name(server))
        error = client.errors.get_nowait()
        assert isinstance(error, OSError)
        assert error.errno == errno.EMSGSIZE
        client.transport.sendto(b"next", name(server))
        assert (await client.received.get())[0] == b"next"


async def test_an_exception_in_error_received_goes_to_the_sender(loop: Loop) -> None:
    class Failing(Datagrams):
        def error_received(self, exc: Exception) -> None:
            raise LookupError("in error_received")

    async with endpoint(Failing) as udp:
        with pytest.raises(LookupError, match="in error_received"):
            udp.transport.sendto(bytes(LARGEST + 1), name(udp))
        udp.transport.sendto(b"next", name(udp))
        assert (await udp.received.get())[0] == b"next"


async def test_an_exception_in_error_received_of_a_read(loop: Loop, errors: ErrorLog) -> None:
    class Failing(Datagrams):
        def error_received(self, exc: Exception) -> None:
            super().error_received(exc)
            raise LookupError("in error_received")

    with udp_socket() as peer:
        address = peer.getsockname()
    async with endpoint(Failing, remote_addr=address) as udp:
        udp.transport.sendto(b"refused")
        assert isinstance(await udp.errors.get(), ConnectionRefusedError)
        await settle()
        assert isinstance(errors.take()["exception"], LookupError)
        assert not udp.transport.is_closing()


async def test_an_exception_in_datagram_received_is_reported(loop: Loop, errors: ErrorLog) -> None:
    class Failing(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            if data == b"bad":
                raise LookupError("in datagram_received")
            super().datagram_received(data, addr)

    with udp_socket() as peer:
        async with endpoint(Failing) as udp:
            for data in (b"one", b"bad", b"two"):
                peer.sendto(data, name(udp))
            assert (await udp.received.get())[0] == b"one"
            assert (await udp.received.get())[0] == b"two"
            assert not udp.transport.is_closing()
    assert isinstance(errors.take()["exception"], LookupError)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_exits_leave_the_loop_and_lose_nothing(loop: Loop, kind: type[BaseException]) -> None:
    class Exiting(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            if data == b"exit":
                raise kind
            super().datagram_received(data, addr)

    make = loop.create_datagram_endpoint(Exiting, local_addr=(LOCALHOST, 0))
    transport, protocol = loop.run_until_complete(make)
    with udp_socket() as peer:
        for data in (b"exit", b"next"):
            peer.sendto(data, transport.get_extra_info("sockname"))
    with pytest.raises(kind):
        loop.run_forever()
    received = loop.run_until_complete(asyncio.wait_for(protocol.received.get(), 10))
    assert received[0] == b"next"
    transport.close()
    loop.run_until_complete(protocol.lost)


# The end


async def test_close(loop: Loop) -> None:
    async with endpoint() as udp:
        sock = udp.transport.get_extra_info("socket")
        udp.transport.close()
        assert udp.transport.is_closing()
        assert not udp.lost.done()
        udp.transport.close()
        assert await udp.lost is None
        assert sock.fileno() == -1
        assert udp.calls == ["connection_made", "connection_lost"]
        with udp_socket() as peer:
            assert name(udp)[0] == peer.getsockname()[0], "is known after the end"


async def test_the_port_is_free_after_the_end(loop: Loop) -> None:
    async with endpoint() as udp:
        address = name(udp)
    async with endpoint(local_addr=address) as again:
        assert name(again) == address


async def test_sending_after_the_end(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    with udp_socket() as peer:
        async with endpoint(remote_addr=peer.getsockname()) as udp:
            udp.transport.close()
            with caplog.at_level(logging.WARNING, "asyncio"):
                for _ in range(4):
                    udp.transport.sendto(b"lost")
                await udp.lost
                assert caplog.records == []
                udp.transport.sendto(b"lost")
                udp.transport.abort()
            await settle()
            with pytest.raises(BlockingIOError):
                peer.recv(100)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["socket.send() raised exception."]


async def test_sending_after_the_end_of_an_endpoint_without_a_peer(
    loop: Loop, loop_name: str
) -> None:
    if loop_name == "asyncio":
        pytest.skip("asyncio raises AttributeError: 'NoneType' has no 'call_exception_handler'")
    with udp_socket() as peer:
        async with endpoint() as udp:
            udp.transport.close()
            await udp.lost
            udp.transport.sendto(b"lost", peer.getsockname())
            udp.transport.sendto(b"lost")
            with pytest.raises(BlockingIOError):
                peer.recv(100)


@pytest.mark.usefixtures("no_fd_left")
def test_an_endpoint_left_open_by_the_loop_warns(new_loop: Callable[[], Loop]) -> None:
    async def main() -> None:
        await loop.create_datagram_endpoint(Datagrams, local_addr=(LOCALHOST, 0))

    loop = new_loop()
    loop.run_until_complete(main())
    loop.close()
    # The order in which the transport and its socket are finalised is the collector's.
    with pytest.warns(ResourceWarning, match="unclosed .*fd="):
        gc.collect()


@pytest.mark.usefixtures("no_fd_left")
def test_an_endpoint_moves_with_its_loop(new_loop: Callable[[], Loop]) -> None:
    loop = new_loop()

    async def start() -> tuple[Any, Echo]:
        return await loop.create_datagram_endpoint(Echo, local_addr=(LOCALHOST, 0))

    transport, protocol = loop.run_until_complete(start())
    with udp_socket() as peer:
        peer.settimeout(20)
        peer.sendto(b"while the loop does not run", name(protocol))
        for _ in range(2):
            thread = threading.Thread(target=loop.run_forever)
            thread.start()
            try:
                assert peer.recv(100) == b"while the loop does not run"
                peer.sendto(b"while it runs", name(protocol))
                assert peer.recv(100) == b"while it runs"
            finally:
                loop.call_soon_threadsafe(loop.stop)
                thread.join(20)
            peer.sendto(b"while the loop does not run", name(protocol))
    loop.call_soon(transport.close)
    loop.run_until_complete(protocol.lost)
    loop.close()


async def test_ipv6(loop: Loop) -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    async with endpoint(Echo, local_addr=("::1", 0)) as server:
        assert name(server)[0] == "::1"
        async with endpoint(remote_addr=name(server)[:2]) as client:
            assert client.transport.get_extra_info("peername") == name(server)
            client.transport.sendto(b"data")
            assert await client.received.get() == (b"data", name(server))
