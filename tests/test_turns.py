"""The order within a turn: what was ready before, then I/O, then timers."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from support import BufferedRecorder, Recorder, Recording, connected_sockets, linked

Loop = asyncio.AbstractEventLoop


@pytest.mark.parametrize("debug", [False, True])
async def test_callbacks_then_a_transport_then_timers(loop: Loop, debug: bool) -> None:
    loop.set_debug(debug)
    order: list[str] = []
    over = loop.create_future()

    class Noting(Recorder):
        def data_received(self, data: bytes) -> None:
            order.append("data")
            loop.call_soon(order.append, "scheduled by the protocol")
            loop.call_soon(over.set_result, None)

    def callback() -> None:
        order.append("callback")
        loop.call_soon(order.append, "scheduled by the callback")

    async with linked(Noting) as link:
        link.send(b"x")
        loop.call_at(loop.time(), order.append, "timer")
        loop.call_soon(callback)
        await over
    assert order == [
        *("callback", "data", "timer"),
        *("scheduled by the callback", "scheduled by the protocol"),
    ]


@pytest.mark.parametrize("debug", [False, True])
async def test_callbacks_then_a_reader_then_timers(loop: Loop, debug: bool) -> None:
    loop.set_debug(debug)
    order: list[str] = []
    over = loop.create_future()
    ours, theirs = socket.socketpair()

    def readable() -> None:
        order.append("reader")
        loop.call_soon(order.append, "scheduled by the reader")
        loop.call_soon(over.set_result, None)
        loop.remove_reader(ours)

    with ours, theirs:
        loop.add_reader(ours, readable)
        theirs.send(b"x")
        loop.call_at(loop.time(), order.append, "timer")
        loop.call_soon(order.append, "callback")
        await over
    assert order == ["callback", "reader", "timer", "scheduled by the reader"]


async def test_a_reader_is_called_once_for_what_it_reads(loop: Loop) -> None:
    got: list[bytes] = []
    over = loop.create_future()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    def readable() -> None:
        got.append(ours.recv(100))  # BlockingIOError if there is nothing
        if got[-1] == b"last":
            over.set_result(None)

    with ours, theirs:
        loop.add_reader(ours, readable)
        for data in (b"one", b"two", b"three", b"last"):
            theirs.send(data)
            for _ in range(5):
                await asyncio.sleep(0)
        await over
        loop.remove_reader(ours)
    assert got == [b"one", b"two", b"three", b"last"]


async def test_who_awaits_a_connection_goes_on_before_its_first_bytes(loop: Loop) -> None:
    for _ in range(20):
        ours, theirs = connected_sockets()
        theirs.send(b"greeting")
        transport, protocol = await loop.create_connection(Recorder, sock=ours)
        assert protocol.calls == ["connection_made"]
        assert await protocol.received(8) == b"greeting"
        transport.close()
        await protocol.lost
        theirs.close()


async def test_a_protocol_set_by_who_awaited_the_connection_gets_all_bytes(loop: Loop) -> None:
    ours, theirs = connected_sockets()
    theirs.send(b"greeting")
    transport, first = await loop.create_connection(Recorder, sock=ours)
    second = Recorder()
    second.connection_made(transport)
    transport.set_protocol(second)
    assert await second.received(8) == b"greeting"
    assert first.calls == ["connection_made"]
    transport.close()
    await second.lost
    theirs.close()


class NotingTheEnd(Recording):
    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def arrived(self, data: bytes | bytearray | memoryview) -> None:
        super().arrived(data)
        self.loop.call_soon(self.order.append, "scheduled")

    def eof_received(self) -> None:
        super().eof_received()
        self.order.append("end")


class Noting(NotingTheEnd, Recorder):
    pass


class BufferedNoting(NotingTheEnd, BufferedRecorder):
    pass


@pytest.mark.parametrize("make", [Noting, BufferedNoting])
@pytest.mark.parametrize("size", [1, BufferedNoting.size], ids=["short", "full"])
async def test_what_the_last_data_schedules_runs_before_the_end_is_told(
    loop: Loop, make: Callable[[], Noting | BufferedNoting], size: int
) -> None:
    async with linked(make) as link:
        link.send(b"x" * size)
        link.peer.shutdown(socket.SHUT_WR)
        await link.protocol.lost
        assert link.protocol.order == ["scheduled", "end"]
        assert len(link.protocol.data) == size


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_turn_that_an_exception_ends_is_gone_on_with(
    new_loop: Callable[[], Loop], kind: type[BaseException]
) -> None:
    loop = new_loop()
    order: list[str] = []
    ours, theirs = socket.socketpair()

    def leave(name: str) -> None:
        order.append(name)
        raise kind

    def readable() -> None:
        loop.remove_reader(ours)
        leave("reader")

    with ours, theirs:
        loop.add_reader(ours, readable)
        theirs.send(b"x")
        loop.call_soon(leave, "callback")
        loop.call_soon(order.append, "after it")
        loop.call_at(loop.time(), leave, "timer")
        loop.call_at(loop.time(), order.append, "after all")
        for _ in range(3):
            with pytest.raises(kind):
                loop.run_forever()
        loop.call_soon(loop.stop)
        loop.run_forever()
    loop.close()
    assert sorted(order) == ["after all", "after it", "callback", "reader", "timer"]
    assert order.index("callback") < order.index("after it")
    assert order.index("timer") < order.index("after all")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_a_consumer_that_waits_anew_misses_nothing(loop: Loop, busy: bool) -> None:
    """Each piece of data finds the future that the consumer made when it got the one before."""

    class Protocol(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            self.waiter.set_result(data)
            theirs.send(data)  # there already when this returns

    def spin() -> None:
        if busy:
            loop.call_soon(spin)

    ours, theirs = connected_sockets()
    with theirs:
        transport, protocol = await loop.create_connection(Protocol, sock=ours)
        protocol.waiter = loop.create_future()
        spin()
        theirs.send(b"x")
        for _ in range(100):
            assert await protocol.waiter == b"x"
            protocol.waiter = loop.create_future()
        busy = False
        transport.close()


def test_what_io_schedules_waits_for_the_next_turn(loop: Loop) -> None:
    ran: list[str] = []

    def readable() -> None:
        loop.remove_reader(ours)
        loop.call_soon(ran.append, "scheduled")
        loop.stop()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        loop.add_reader(ours, readable)
        loop.run_forever()
        assert ran == []
        loop.stop()
        loop.run_forever()
        assert ran == ["scheduled"]


def test_one_turn_takes_in_what_is_due(loop: Loop) -> None:
    """As asyncio's users know it: stop() before run_forever() makes exactly one turn."""
    ran: list[str] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        loop.add_reader(ours, ran.append, "reader")
        loop.call_soon(ran.append, "ready")
        loop.call_later(0, ran.append, "timer")
        loop.stop()
        loop.run_forever()
        assert ran == ["ready", "reader", "timer"]
        loop.remove_reader(ours)
