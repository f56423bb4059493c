"""What a TCP transport is and tells, and how it ends."""

import asyncio
import contextlib
import gc
import os
import socket
import weakref
from collections.abc import Callable

import pytest

from support import (
    BufferedRecorder,
    Recorder,
    connected_sockets,
    fill,
    linked,
    pattern,
    settle,
)

Loop = asyncio.AbstractEventLoop

BOTH_SIDES = pytest.mark.parametrize("accepted", [False, True], ids=["connected", "accepted"])


@BOTH_SIDES
async def test_a_transport_is_an_asyncio_transport(loop: Loop, accepted: bool) -> None:
    async with linked(Recorder, accepted=accepted) as link:
        assert isinstance(link.transport, asyncio.Transport)
        assert isinstance(link.transport, asyncio.ReadTransport)
        assert isinstance(link.transport, asyncio.WriteTransport)
        assert link.protocol.transport is link.transport
        assert link.transport.get_protocol() is link.protocol
        assert not link.transport.is_closing()
        assert link.transport.is_reading()


@BOTH_SIDES
async def test_connection_made_comes_first_and_once(loop: Loop, accepted: bool) -> None:
    async with linked(Recorder, accepted=accepted) as link:
        assert link.protocol.calls == ["connection_made"]
        await settle()
        assert link.protocol.calls == ["connection_made"]


@BOTH_SIDES
async def test_extra_info(loop: Loop, accepted: bool) -> None:
    async with linked(Recorder, accepted=accepted) as link:
        info = link.transport.get_extra_info
        assert info("peername") == link.peer.getsockname()
        assert info("sockname") == link.peer.getpeername()
        assert info("unknown") is None
        assert info("unknown", "default") == "default"
        assert info("unknown", default="default") == "default"
        assert info("peername", "default") == link.peer.getsockname()
        assert info("peername") is info("peername")


async def test_the_addresses_are_known_after_the_end(loop: Loop) -> None:
    async with linked(Recorder) as link:
        peername, sockname = link.peer.getsockname(), link.peer.getpeername()
        link.transport.close()
        await link.protocol.lost
        assert link.transport.get_extra_info("peername") == peername
        assert link.transport.get_extra_info("sockname") == sockname


async def test_the_socket_of_a_transport(loop: Loop) -> None:
    async with linked(Recorder) as link:
        sock = link.transport.get_extra_info("socket")
        assert sock.getsockname() == link.peer.getpeername()
        assert sock.getpeername() == link.peer.getsockname()
        assert sock.family == socket.AF_INET
        assert sock.type == socket.SOCK_STREAM
        assert sock.gettimeout() == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
        assert not os.get_inheritable(sock.fileno())
        link.transport.close()
        await link.protocol.lost
        assert sock.fileno() == -1


async def test_repr_tells_the_state(loop: Loop) -> None:
    async with linked(Recorder) as link:
        fd = link.transport.get_extra_info("socket").fileno()
        assert f"fd={fd}" in repr(link.transport)
        assert "clos" not in repr(link.transport)
        link.transport.close()
        assert "closing" in repr(link.transport)
        await link.protocol.lost
        assert "closed" in repr(link.transport)


async def test_arguments_may_be_named(loop: Loop) -> None:
    async with linked(Recorder) as link:
        other = Recorder()
        link.transport.set_protocol(protocol=other)
        assert link.transport.get_protocol() is other
        link.transport.set_protocol(link.protocol)
        link.transport.write(data=b"one ")
        link.transport.writelines(list_of_data=[b"two ", b"three"])
        assert await link.receive(13) == b"one two three"


@pytest.mark.parametrize("method", ["write", "writelines", "set_protocol"])
async def test_wrong_arguments_are_type_errors(loop: Loop, method: str) -> None:
    async with linked(Recorder) as link:
        call = getattr(link.transport, method)
        for arguments, named in (((), {}), ((b"", b""), {}), ((b"",), {"x": 1}), ((), {"x": 1})):
            with pytest.raises(TypeError, match=f"{method}\\(\\)"):
                call(*arguments, **named)


async def test_a_transport_can_be_referred_to_weakly_and_hashed(loop: Loop) -> None:
    async with linked(Recorder) as link:
        reference = weakref.ref(link.transport)
        assert reference() is link.transport
        assert {link.transport: "found"}[link.transport] == "found"
        assert link.transport in weakref.WeakSet([link.transport])


@BOTH_SIDES
async def test_a_transport_takes_attributes(loop: Loop, accepted: bool) -> None:
    async with linked(Recorder, accepted=accepted) as link:
        link.transport.note = "a note"
        assert link.transport.note == "a note"
        written: list[bytes] = []
        link.transport.write = written.append
        link.transport.write(b"not sent")
        del link.transport.write
        link.transport.write(b"sent")
        assert await link.receive(4) == b"sent"
        assert written == [b"not sent"]


async def test_a_closed_transport_is_released(loop: Loop) -> None:
    async with linked(Recorder) as link:
        transport_gone = weakref.ref(link.transport)
        link.transport.itself = link.transport
        protocol_gone = weakref.ref(link.protocol)
        link.transport.close()
        await link.protocol.lost
        del link.protocol.transport
        peer = link.peer
    del link
    await settle()
    gc.collect()
    assert transport_gone() is None
    assert protocol_gone() is None
    assert peer.fileno() == -1


async def test_the_loop_keeps_a_reading_transport_alive(loop: Loop) -> None:
    """The caller need not hold on to a transport that still delivers."""
    ours, theirs = connected_sockets()
    with theirs:
        _, protocol = await loop.create_connection(Recorder, sock=ours)
        reference = weakref.ref(protocol.transport)
        del protocol.transport
        lost, made = protocol.lost, protocol
        del protocol
        gc.collect()
        theirs.send(b"data")
        assert await made.received(4) == b"data"
        theirs.close()
        assert await lost is None
        assert made.calls[-1] == "connection_lost"
    del made, _
    gc.collect()
    assert reference() is None


@pytest.mark.usefixtures("no_fd_left")
def test_a_transport_left_open_by_the_loop_warns(new_loop: Callable[[], Loop]) -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_connection(Recorder, sock=ours)

    ours, theirs = connected_sockets()
    with theirs:
        loop = new_loop()
        loop.run_until_complete(main())
        loop.close()
        del loop
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            gc.collect()
        theirs.setblocking(True)
        assert theirs.recv(1) == b""


@BOTH_SIDES
async def test_close_ends_the_connection(loop: Loop, accepted: bool) -> None:
    async with linked(Recorder, accepted=accepted) as link:
        link.transport.close()
        assert link.transport.is_closing()
        assert not link.transport.is_reading()
        assert not link.protocol.lost.done()
        assert await link.protocol.lost is None
        assert await link.receive_all() == b""
        assert link.transport.is_closing()
        assert link.protocol.calls == ["connection_made", "connection_lost"]


async def test_close_is_called_in_connection_made(loop: Loop) -> None:
    class Closing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(b"bye")
            transport.close()

    async with linked(Closing) as link:
        link.peer.send(b"ignored")
        assert await link.protocol.lost is None
        assert link.protocol.calls == ["connection_made", "connection_lost"]


async def test_close_flushes_what_is_buffered(loop: Loop) -> None:
    data = pattern(2_000_000)
    async with linked(Recorder, small=True) as link:
        link.transport.write(data)
        link.transport.close()
        assert link.transport.get_write_buffer_size() > 0
        await settle()
        assert not link.protocol.lost.done()
        assert await link.receive_all() == data
        assert await link.protocol.lost is None


async def test_nothing_is_received_after_close(loop: Loop) -> None:
    async with linked(Recorder, small=True) as link:
        fill(link.transport)
        link.transport.close()
        link.send(b"late")
        await settle()
        assert link.protocol.data == b""
        with contextlib.suppress(ConnectionResetError):  # what was not received is lost
            await link.receive_all()
        await link.protocol.lost
        assert link.protocol.data == b""


async def test_abort_drops_what_is_buffered(loop: Loop) -> None:
    data = pattern(2_000_000)
    async with linked(Recorder, small=True) as link:
        link.transport.write(data)
        link.transport.abort()
        assert link.transport.is_closing()
        assert not link.protocol.lost.done()
        assert await link.protocol.lost is None
        got = await link.receive_all()
        assert len(got) < len(data)
        assert data.startswith(got)


async def test_abort_after_close_gives_up_the_flushing(loop: Loop) -> None:
    async with linked(Recorder, small=True) as link:
        fill(link.transport)
        link.transport.close()
        await settle()
        assert not link.protocol.lost.done()
        link.transport.abort()
        assert await link.protocol.lost is None


@pytest.mark.parametrize("first", ["close", "abort"])
@pytest.mark.parametrize("second", ["close", "abort"])
@pytest.mark.parametrize("between", [False, True], ids=["at once", "after the end"])
async def test_connection_lost_comes_once(
    loop: Loop, first: str, second: str, between: bool
) -> None:
    async with linked(Recorder) as link:
        getattr(link.transport, first)()
        if between:
            await link.protocol.lost
        getattr(link.transport, second)()
        await link.protocol.lost
        await settle()
        assert link.protocol.calls == ["connection_made", "connection_lost"]


async def test_a_connection_closed_by_the_peer(loop: Loop) -> None:
    async with linked(Recorder) as link:
        link.send(b"last")
        link.peer.close()
        assert await link.protocol.lost is None
        assert link.protocol.data == b"last"
        assert link.protocol.calls[-2:] == ["eof_received", "connection_lost"]
        assert link.transport.is_closing()


@BOTH_SIDES
@pytest.mark.parametrize("make", [Recorder, BufferedRecorder])
async def test_a_connection_reset_by_the_peer(
    loop: Loop, accepted: bool, make: type[Recorder]
) -> None:
    async with linked(make, accepted=accepted) as link:
        link.reset()
        assert isinstance(await link.protocol.lost, ConnectionResetError)
        assert link.protocol.calls == ["connection_made", "connection_lost"]


async def test_abort_of_a_connection_that_was_reset(loop: Loop) -> None:
    async with linked(Recorder) as link:
        link.transport.pause_reading()
        link.reset()
        await settle()
        link.transport.abort()
        await link.protocol.lost
        await settle()
        assert link.protocol.calls == ["connection_made", "connection_lost"]


async def test_every_query_works_after_the_end(loop: Loop) -> None:
    async with linked(Recorder) as link:
        link.transport.close()
        await link.protocol.lost
        assert link.transport.get_write_buffer_size() == 0
        assert link.transport.get_write_buffer_limits() == (16384, 65536)
        assert link.transport.is_reading() is False
        assert link.transport.can_write_eof() is True
        link.transport.pause_reading()
        link.transport.resume_reading()
        link.transport.write_eof()
        link.transport.write(b"ignored")
        await settle()
        assert link.protocol.calls == ["connection_made", "connection_lost"]
