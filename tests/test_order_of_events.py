"""What runs before what: callbacks that were ready, what I/O brings, timers."""

import asyncio
import socket

import pytest

from support import Recorder, connected_sockets, linked

Loop = asyncio.AbstractEventLoop


async def test_the_caller_of_create_connection_goes_on_before_data_arrives(loop: Loop) -> None:
    class Protocol(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            received.set_result((data, self.prepared))

    received: asyncio.Future[tuple[bytes, bool]] = loop.create_future()
    ours, theirs = connected_sockets()
    with theirs:
        theirs.send(b"already there")
        transport, protocol = await loop.create_connection(Protocol, sock=ours)
        protocol.prepared = True
        assert await received == (b"already there", True)
        transport.close()


async def test_ready_callbacks_run_before_what_comes_meanwhile(loop: Loop) -> None:
    order: list[str] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with linked(Recorder) as link:

            class Order(asyncio.Protocol):
                def data_received(self, data: bytes) -> None:
                    order.append("data")

            link.transport.set_protocol(Order())
            loop.add_reader(ours, lambda: (order.append("reader"), loop.remove_reader(ours)))
            link.send(b"x")
            theirs.send(b"x")
            loop.call_later(0, order.append, "timer")
            loop.call_soon(order.append, "ready")
            await asyncio.sleep(0)
            assert order == ["ready"]
            while len(order) < 4:
                await asyncio.sleep(0)
            assert order[0] == "ready"
            assert order[-1] == "timer"
            link.transport.set_protocol(link.protocol)


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
