"""Receiving on a TCP transport: data, end of stream, pausing, and changing the protocol."""

import asyncio
import itertools
import socket

import pytest

from support import (
    LOCALHOST,
    BufferedRecorder,
    ErrorLog,
    Recorder,
    connected_sockets,
    fill,
    in_thread,
    linked,
    pattern,
    settle,
)

Loop = asyncio.AbstractEventLoop

BOTH_KINDS = pytest.mark.parametrize(
    "make", [Recorder, BufferedRecorder], ids=["protocol", "buffered"]
)
Kind = type[Recorder] | type[BufferedRecorder]


@BOTH_KINDS
async def test_data_is_delivered(loop: Loop, make: Kind) -> None:
    async with linked(make) as link:
        link.send(b"one")
        assert await link.protocol.received(3) == b"one"
        link.send(b"two")
        assert await link.protocol.received(6) == b"onetwo"


@BOTH_KINDS
async def test_data_that_came_before_the_transport_is_delivered(loop: Loop, make: Kind) -> None:
    ours, theirs = connected_sockets()
    with theirs:
        theirs.send(b"early")
        theirs.shutdown(socket.SHUT_WR)
        _, protocol = await loop.connect_accepted_socket(make, ours)
        assert await protocol.received(5) == b"early"
        assert await protocol.lost is None
        assert protocol.calls[0] == "connection_made"
        assert protocol.calls[-2:] == ["eof_received", "connection_lost"]


@BOTH_KINDS
async def test_ten_megabytes_are_received_in_order(loop: Loop, make: Kind) -> None:
    data = pattern(10_000_000)
    async with linked(make) as link:
        sending = loop.create_task(loop.sock_sendall(link.peer, data))
        assert await link.protocol.received(len(data)) == data
        await sending


async def test_received_data_is_the_receivers_to_keep(loop: Loop) -> None:
    class Keeper(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[bytes] = []

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.kept.append(data)

    async with linked(Keeper) as link:
        for number in range(200):
            link.send(b"%03d" % number)
            await link.protocol.received(3 * (number + 1))
        assert link.protocol.kept == [b"%03d" % number for number in range(200)]


@pytest.mark.parametrize("size", [1, 3, 1000, 65536])
async def test_a_buffered_protocol_gets_no_more_than_its_buffer_holds(
    loop: Loop, size: int
) -> None:
    class Small(BufferedRecorder):
        pass

    Small.size = size
    data = pattern(300 * min(size, 1000))
    async with linked(Small) as link:
        sending = loop.create_task(loop.sock_sendall(link.peer, data))
        assert await link.protocol.received(len(data)) == data
        await sending


async def test_a_buffered_protocol_may_hand_out_slices_of_a_buffer(loop: Loop) -> None:
    data = pattern(1_000_000)

    class Sliced(BufferedRecorder):
        size = len(data)
        position = 0

        def get_buffer(self, sizehint: int) -> memoryview:  # type: ignore[override]
            return memoryview(self.buffer)[self.position :][:7001] or memoryview(bytearray(1))

        def buffer_updated(self, nbytes: int) -> None:
            self.arrived(self.buffer[self.position : self.position + nbytes])
            self.position += nbytes

    async with linked(Sliced) as link:
        sending = loop.create_task(loop.sock_sendall(link.peer, data))
        await link.protocol.received(len(data))
        await sending
        assert link.protocol.buffer == data


@BOTH_KINDS
async def test_the_end_of_the_stream_closes_the_transport(loop: Loop, make: Kind) -> None:
    async with linked(make) as link:
        link.send(b"last")
        link.peer.shutdown(socket.SHUT_WR)
        assert await link.protocol.lost is None
        assert link.protocol.data == b"last"
        assert link.protocol.calls[-2:] == ["eof_received", "connection_lost"]
        assert await link.receive_all() == b""


@BOTH_KINDS
async def test_eof_received_may_keep_the_transport_open(loop: Loop, make: Kind) -> None:
    data = pattern(1_000_000)
    async with linked(make, small=True) as link:
        link.protocol.keep_open = True
        link.send(b"question")
        link.peer.shutdown(socket.SHUT_WR)
        await link.protocol.eof
        await settle()
        assert link.protocol.data == b"question"
        assert not link.transport.is_closing()
        link.transport.write(data)
        assert await link.receive(len(data)) == data
        link.transport.write(b"the end")
        link.transport.close()
        assert await link.receive_all() == b"the end"
        assert await link.protocol.lost is None
        assert link.protocol.calls.count("eof_received") == 1


async def test_what_is_buffered_is_flushed_when_the_stream_ends(loop: Loop) -> None:
    async with linked(Recorder, small=True) as link:
        written = fill(link.transport)
        link.peer.shutdown(socket.SHUT_WR)
        await link.protocol.eof
        assert link.transport.is_closing()
        assert len(await link.receive_all()) == written
        assert await link.protocol.lost is None


async def test_both_ways_can_be_half_closed(loop: Loop) -> None:
    async with linked(Recorder) as link:
        link.protocol.keep_open = True
        link.transport.write_eof()
        assert await link.receive_all() == b""
        link.peer.shutdown(socket.SHUT_WR)
        await link.protocol.eof
        assert not link.transport.is_closing()
        link.transport.close()
        assert await link.protocol.lost is None


@BOTH_KINDS
async def test_nothing_is_delivered_while_paused(loop: Loop, make: Kind) -> None:
    async with linked(make) as link:
        link.transport.pause_reading()
        assert not link.transport.is_reading()
        link.send(b"while paused")
        await settle()
        assert link.protocol.data == b""
        link.transport.resume_reading()
        assert link.transport.is_reading()
        assert not link.protocol.data, "resume_reading() must not deliver by itself"
        assert await link.protocol.received(12) == b"while paused"


@BOTH_KINDS
async def test_data_that_is_due_is_held_back_by_pause_reading(loop: Loop, make: Kind) -> None:
    async with linked(make) as link:
        for number in range(20):
            link.send(b"x")
            for _ in range(number % 3):
                await asyncio.sleep(0)
            link.transport.pause_reading()
            before = bytes(link.protocol.data)
            await settle()
            assert link.protocol.data == before
            link.transport.resume_reading()
            await link.protocol.received(number + 1)


@BOTH_KINDS
async def test_reading_can_be_paused_while_data_is_received(loop: Loop, make: Kind) -> None:
    sent = pattern(2_000_000)
    async with linked(make) as link:
        protocol, transport = link.protocol, link.transport
        deliveries = 0
        delivered = asyncio.Event()
        arrived = protocol.arrived

        def pausing(data: bytes | bytearray | memoryview) -> None:
            nonlocal deliveries
            assert transport.is_reading()
            arrived(data)
            deliveries += 1
            transport.pause_reading()
            delivered.set()

        protocol.arrived = pausing  # type: ignore[method-assign]
        sending = loop.create_task(loop.sock_sendall(link.peer, sent))
        expected = 0
        while len(protocol.data) < len(sent):
            await delivered.wait()
            delivered.clear()
            expected += 1
            if expected <= 10:
                await settle()
            assert deliveries == expected
            transport.resume_reading()
        assert protocol.data == sent
        await sending


@BOTH_KINDS
async def test_a_stream_that_is_paused_again_and_again_stays_in_order(
    loop: Loop, make: Kind
) -> None:
    sent = pattern(2_000_000)
    async with linked(make) as link:
        protocol, transport = link.protocol, link.transport
        arrived = protocol.arrived

        def pausing(data: bytes | bytearray | memoryview) -> None:
            arrived(data)
            transport.pause_reading()

        protocol.arrived = pausing  # type: ignore[method-assign]

        def send() -> None:
            for start in range(0, len(sent), 3000):
                link.peer.sendall(sent[start : start + 3000])

        link.peer.setblocking(True)
        with in_thread(send):
            turns = itertools.cycle((0, 1, 2, 0, 5))
            while len(protocol.data) < len(sent):
                await settle(next(turns))
                transport.resume_reading()
                await asyncio.sleep(0)
        assert protocol.data == sent


async def test_pausing_and_resuming_twice_is_no_error(loop: Loop) -> None:
    async with linked(Recorder) as link:
        link.transport.resume_reading()
        link.transport.pause_reading()
        link.transport.pause_reading()
        link.send(b"x")
        await settle()
        assert link.protocol.data == b""
        link.transport.resume_reading()
        link.transport.resume_reading()
        assert await link.protocol.received(1) == b"x"


async def test_pause_and_resume_at_once_lose_nothing(loop: Loop) -> None:
    data = pattern(500_000)
    async with linked(Recorder) as link:
        sending = loop.create_task(loop.sock_sendall(link.peer, data))
        while len(link.protocol.data) < len(data):
            link.transport.pause_reading()
            link.transport.resume_reading()
            await asyncio.sleep(0)
            link.transport.pause_reading()
            await asyncio.sleep(0)
            link.transport.resume_reading()
            await settle(1)
        assert link.protocol.data == data
        await sending


async def test_reading_may_be_paused_in_connection_made(loop: Loop) -> None:
    class Paused(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    async with linked(Paused) as link:
        link.send(b"data")
        await settle()
        assert link.protocol.calls == ["connection_made"]
        link.transport.resume_reading()
        assert await link.protocol.received(4) == b"data"


@BOTH_KINDS
async def test_the_end_of_the_stream_waits_for_resume_reading(loop: Loop, make: Kind) -> None:
    async with linked(make) as link:
        link.transport.pause_reading()
        link.send(b"last")
        link.peer.close()
        await settle()
        assert link.protocol.calls == ["connection_made"]
        link.transport.resume_reading()
        assert await link.protocol.lost is None
        assert link.protocol.data == b"last"
        assert link.protocol.calls[-2:] == ["eof_received", "connection_lost"]


async def test_close_while_paused(loop: Loop) -> None:
    async with linked(Recorder) as link:
        link.transport.pause_reading()
        link.transport.close()
        link.transport.resume_reading()
        assert not link.transport.is_reading()
        assert await link.protocol.lost is None
        assert link.protocol.calls == ["connection_made", "connection_lost"]


@BOTH_KINDS
async def test_closing_while_data_is_received_ends_the_delivery(loop: Loop, make: Kind) -> None:
    async with linked(make) as link:
        protocol, transport = link.protocol, link.transport
        arrived = protocol.arrived

        def closing(data: bytes | bytearray | memoryview) -> None:
            assert not transport.is_closing()
            arrived(data)
            transport.close()

        protocol.arrived = closing  # type: ignore[method-assign]
        await loop.sock_sendall(link.peer, b"x" * 100_000)
        assert await protocol.lost is None
        assert len(protocol.calls) == 3


async def test_the_protocol_can_be_changed(loop: Loop) -> None:
    async with linked(Recorder) as link:
        first = link.protocol
        second = Recorder()
        second.connection_made(link.transport)
        link.send(b"first")
        await first.received(5)
        link.transport.set_protocol(second)
        assert link.transport.get_protocol() is second
        link.send(b"second")
        assert await second.received(6) == b"second"
        assert first.data == b"first"
        link.transport.close()
        assert await second.lost is None
        assert first.calls == ["connection_made", "data_received"]
        first.lost.set_result(None)


@pytest.mark.parametrize("from_within", [False, True], ids=["between", "in a callback"])
@pytest.mark.parametrize("to_buffered", [False, True], ids=["to plain", "to buffered"])
async def test_the_kind_of_the_protocol_can_be_changed(
    loop: Loop, from_within: bool, to_buffered: bool
) -> None:
    make_first: Kind = Recorder if to_buffered else BufferedRecorder
    make_second: Kind = BufferedRecorder if to_buffered else Recorder
    async with linked(make_first) as link:
        first, transport = link.protocol, link.transport
        second = make_second()
        second.connection_made(transport)
        if from_within:
            arrived = first.arrived

            def switching(data: bytes | bytearray | memoryview) -> None:
                arrived(data)
                transport.set_protocol(second)

            first.arrived = switching  # type: ignore[method-assign]
        link.send(b"first")
        await first.received(5)
        transport.set_protocol(second)
        link.send(b"second")
        assert await second.received(6) == b"second"
        transport.set_protocol(first)
        assert transport.get_protocol() is first
        transport.set_protocol(second)
        link.peer.close()
        assert await second.lost is None
        assert first.data == b"first"
        first.lost.set_result(None)


async def test_a_protocol_changed_while_paused_gets_what_comes_after(loop: Loop) -> None:
    async with linked(Recorder) as link:
        second = BufferedRecorder()
        second.connection_made(link.transport)
        link.transport.pause_reading()
        link.send(b"for the second")
        await settle()
        link.transport.set_protocol(second)
        link.transport.resume_reading()
        assert await second.received(14) == b"for the second"
        assert link.protocol.data == b""
        link.transport.set_protocol(link.protocol)


async def test_a_buffer_that_cannot_be_written_to_is_an_error(loop: Loop, errors: ErrorLog) -> None:
    class ReadOnly(BufferedRecorder):
        def get_buffer(self, sizehint: int) -> bytes:  # type: ignore[override]
            return b"read-only"

    async with linked(ReadOnly) as link:
        link.send(b"data")
        assert isinstance(await link.protocol.lost, (TypeError, BufferError))
    report = errors.take()
    assert isinstance(report["exception"], (TypeError, BufferError))
    assert report["transport"] is link.transport


async def test_a_thousand_connections_at_once(loop: Loop) -> None:
    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(LOCALHOST, port)
        for _ in range(3):
            message = b"%d\n" % number
            writer.write(message)
            assert await reader.readline() == message
        writer.close()
        await writer.wait_closed()

    class EchoOnly(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    server = await loop.create_server(EchoOnly, LOCALHOST, 0, backlog=1000)
    port = server.sockets[0].getsockname()[1]
    async with server:
        await asyncio.gather(*(one(number) for number in range(1000)))
    await server.wait_closed()
