"""connect_read_pipe(): pipes, FIFOs, sockets and files."""

import asyncio
import contextvars
import gc
import os
import socket
import weakref

import pytest

from pipes import End, make_pipe, operations_of, reading
from support import ErrorLog, Recorder, pattern, settle

Loop = asyncio.AbstractEventLoop
Reading = End[asyncio.ReadTransport]

SIZE = 256 * 1024
"""The most that asyncio reads at a time."""


# From connection_made() to connection_lost()


async def test_the_protocol_hears_of_data_the_end_and_the_loss(loop: Loop) -> None:
    async with reading() as end:
        end.peer.write(b"hello")
        assert await end.protocol.received(5) == b"hello"
        end.peer.close()
        assert await end.protocol.lost is None
    calls = ["connection_made", "data_received", "eof_received", "connection_lost"]
    assert end.protocol.calls == calls
    assert end.transport.is_closing()


async def test_data_and_the_end_may_be_there_already(loop: Loop) -> None:
    reader, writer = make_pipe()
    writer.write(b"hello")
    writer.close()
    async with reading(ends=(reader, writer)) as end:
        assert await end.protocol.lost is None
    assert end.protocol.data == b"hello"
    assert end.protocol.calls[-2:] == ["eof_received", "connection_lost"]


async def test_an_end_without_data(loop: Loop) -> None:
    async with reading() as end:
        end.peer.close()
        assert await end.protocol.lost is None
    assert end.protocol.calls == ["connection_made", "eof_received", "connection_lost"]


async def test_the_end_is_the_end_whatever_eof_received_returns(loop: Loop) -> None:
    async with reading() as end:
        end.protocol.keep_open = True
        end.peer.close()
        assert await end.protocol.lost is None


async def test_the_transport_is_closing_when_it_tells_of_the_end(loop: Loop) -> None:
    class Curious(Recorder):
        def eof_received(self) -> None:
            super().eof_received()
            self.was_closing = self.transport.is_closing()
            self.transport.close()

    async with reading(Curious) as end:
        end.peer.close()
        assert await end.protocol.lost is None
    assert end.protocol.was_closing  # type: ignore[attr-defined]


async def test_close_ends_reading_at_once(loop: Loop) -> None:
    async with reading() as end:
        end.peer.write(b"never read")
        end.transport.close()
        end.transport.close()
        assert end.transport.is_closing()
        assert end.protocol.calls == ["connection_made"]
        assert await end.protocol.lost is None
        with pytest.raises(BrokenPipeError):
            end.peer.write(b"x")
    assert end.protocol.calls == ["connection_made", "connection_lost"]


async def test_close_in_data_received(loop: Loop) -> None:
    class Closing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.close()

    async with reading(Closing) as end:
        end.peer.write(b"first")
        assert await end.protocol.received(5) == b"first"
        end.peer.write(b"second")
        assert await end.protocol.lost is None
    assert end.protocol.data == b"first"


async def test_connect_returns_after_connection_made(loop: Loop) -> None:
    reader, writer = make_pipe()
    with writer:
        transport, protocol = await loop.connect_read_pipe(Recorder, reader)
        assert isinstance(transport, asyncio.ReadTransport)
        assert protocol.calls == ["connection_made"]
        assert protocol.transport is transport
        transport.close()
        await protocol.lost


async def test_an_error_in_connection_made_is_reported(loop: Loop, errors: ErrorLog) -> None:
    class Failing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise LookupError("no")

    async with reading(Failing) as end:
        end.peer.write(b"data")
        assert await end.protocol.received(4) == b"data"
    assert isinstance(errors.take()["exception"], LookupError)


async def test_an_error_in_data_received_is_reported_and_reading_goes_on(
    loop: Loop, errors: ErrorLog
) -> None:
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if data == b"first":
                raise LookupError("no")

    async with reading(Failing) as end:
        end.peer.write(b"first")
        assert await end.protocol.received(5) == b"first"
        end.peer.write(b"second")
        assert await end.protocol.received(11) == b"firstsecond"
        assert not end.transport.is_closing()
    assert isinstance(errors.take()["exception"], LookupError)


async def test_an_error_in_eof_received_is_reported(loop: Loop, errors: ErrorLog) -> None:
    class Failing(Recorder):
        def eof_received(self) -> None:
            super().eof_received()
            raise LookupError("no")

    async with reading(Failing) as end:
        end.peer.close()
        assert await end.protocol.lost is None
    assert isinstance(errors.take()["exception"], LookupError)


async def test_an_error_in_connection_lost_closes_the_pipe_all_the_same(
    loop: Loop, errors: ErrorLog
) -> None:
    class Failing(Recorder):
        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            raise LookupError("no")

    async with reading(Failing) as end:
        end.transport.close()
        await end.protocol.lost
        with pytest.raises(BrokenPipeError):
            end.peer.write(b"x")
    assert isinstance(errors.take()["exception"], LookupError)


async def test_callbacks_run_in_the_context_of_the_connecting_task(loop: Loop) -> None:
    place = contextvars.ContextVar("place", default="nowhere")

    class Placed(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.places = [place.get()]
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            self.places.append(place.get())
            super().data_received(data)

        def eof_received(self) -> None:
            self.places.append(place.get())
            super().eof_received()

    place.set("here")
    async with reading(Placed) as end:
        place.set("there")
        end.peer.write(b"x")
        await end.protocol.received(1)
        end.peer.close()
        await end.protocol.lost
    assert end.protocol.places == ["here"] * 3  # type: ignore[attr-defined]


# Data


async def test_ten_megabytes_arrive_whole(loop: Loop) -> None:
    data = pattern(10 << 20)
    async with reading() as end:

        def write() -> None:
            with end.peer:
                sent = 0
                while sent < len(data):
                    sent += end.peer.write(data[sent : sent + 300_000])

        await asyncio.gather(loop.run_in_executor(None, write), end.protocol.lost)
    assert end.protocol.data == data


async def test_a_read_takes_at_most_256_kib(loop: Loop) -> None:
    sizes: list[int] = []

    class Measuring(Recorder):
        def data_received(self, data: bytes) -> None:
            sizes.append(len(data))
            super().data_received(data)

    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.setblocking(False)
    data = pattern(theirs.send(pattern(1 << 20)))
    async with reading(Measuring, (ours, theirs)) as end:
        assert await end.protocol.received(len(data)) == data
    assert max(sizes) <= SIZE


async def test_one_busy_pipe_does_not_keep_others_waiting(loop: Loop) -> None:
    class Refilling(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            busy.peer.write(b"more")

    async with reading(Refilling) as busy, reading() as other:
        busy.peer.write(b"some")
        await busy.protocol.received(100)
        other.peer.write(b"hello")
        assert await other.protocol.received(5) == b"hello"
        assert not busy.transport.is_closing()


# Pausing


async def test_nothing_is_received_during_a_pause(loop: Loop) -> None:
    async with reading() as end:
        assert end.transport.is_reading()
        end.transport.pause_reading()
        assert not end.transport.is_reading()
        end.peer.write(b"hello")
        await settle()
        assert end.protocol.data == b""
        end.transport.resume_reading()
        assert end.transport.is_reading()
        assert await end.protocol.received(5) == b"hello"


async def test_the_end_waits_for_a_pause_to_end(loop: Loop) -> None:
    async with reading() as end:
        end.transport.pause_reading()
        end.peer.write(b"hello")
        end.peer.close()
        await settle()
        assert end.protocol.calls == ["connection_made"]
        end.transport.resume_reading()
        assert await end.protocol.lost is None
    assert end.protocol.data == b"hello"


async def test_pausing_in_connection_made(loop: Loop) -> None:
    class Pausing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    reader, writer = make_pipe()
    writer.write(b"hello")
    async with reading(Pausing, (reader, writer)) as end:
        await settle()
        assert end.protocol.data == b""
        end.transport.resume_reading()
        assert await end.protocol.received(5) == b"hello"


async def test_pausing_in_data_received(loop: Loop) -> None:
    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    async with reading(Pausing) as end:
        for word in (b"one", b"two"):
            before = len(end.protocol.data)
            end.peer.write(word)
            await settle()
            assert len(end.protocol.data) == before + (before == 0) * 3
        end.transport.resume_reading()
        assert await end.protocol.received(6) == b"onetwo"


async def test_pausing_and_resuming_many_times(loop: Loop) -> None:
    data = pattern(1 << 20)
    async with reading() as end:
        writing = loop.run_in_executor(None, lambda: os.write(end.peer.fileno(), data))
        while len(end.protocol.data) < len(data):
            end.transport.pause_reading()
            end.transport.pause_reading()
            await asyncio.sleep(0)
            end.transport.resume_reading()
            end.transport.resume_reading()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert await writing == len(data)
    assert end.protocol.data == data


async def test_pausing_and_resuming_after_close_do_nothing(loop: Loop) -> None:
    async with reading() as end:
        end.transport.close()
        end.transport.pause_reading()
        end.transport.resume_reading()
        await end.protocol.lost
        end.transport.pause_reading()
        end.transport.resume_reading()
        assert not end.transport.is_reading()


# The transport


async def test_extra_info_is_about_the_pipe(loop: Loop) -> None:
    reader, writer = make_pipe()
    async with reading(ends=(reader, writer)) as end:
        assert end.transport.get_extra_info("pipe") is reader
        assert end.transport.get_extra_info("peername") is None
        assert end.transport.get_extra_info("peername", "default") == "default"
    assert end.transport.get_extra_info("pipe") is reader
    assert reader.closed


async def test_another_protocol_takes_over(loop: Loop) -> None:
    async with reading() as end:
        second = Recorder()
        second.calls.append("connection_made")
        end.peer.write(b"one")
        await end.protocol.received(3)
        end.transport.set_protocol(second)
        assert end.transport.get_protocol() is second
        end.peer.write(b"two")
        assert await second.received(3) == b"two"
        end.peer.close()
        assert await second.lost is None
        end.protocol.lost.set_result(None)
    assert end.protocol.data == b"one"
    assert second.calls[-2:] == ["eof_received", "connection_lost"]


async def test_repr_shows_the_state(loop: Loop) -> None:
    async with reading() as end:
        fd = end.transport.get_extra_info("pipe").fileno()
        assert repr(end.transport).endswith(f"ReadPipeTransport fd={fd} polling>")
        end.transport.pause_reading()
        assert repr(end.transport).endswith(f"ReadPipeTransport fd={fd} idle>")
        end.transport.close()
        assert "ReadPipeTransport closing fd=" in repr(end.transport)
    assert "ReadPipeTransport closed fd=" in repr(end.transport)


async def test_the_loop_keeps_an_open_transport(loop: Loop) -> None:
    reader, writer = make_pipe()
    transport, protocol = await loop.connect_read_pipe(Recorder, reader)
    alive = weakref.ref(transport)
    del transport, protocol.transport
    gc.collect()
    with writer:
        writer.write(b"hello")
        assert await protocol.received(5) == b"hello"
    await protocol.lost
    await asyncio.sleep(0)
    gc.collect()
    assert alive() is None


def test_an_unclosed_transport_warns_and_closes_its_pipe(loop: Loop) -> None:
    reader, writer = make_pipe()

    async def connect() -> None:
        await loop.connect_read_pipe(asyncio.Protocol, reader)

    loop.run_until_complete(connect())

    def drop() -> None:
        loop.close()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed transport <.*ReadPipeTransport fd="):
        drop()
    assert reader.closed
    writer.close()


async def test_a_closed_transport_leaves_no_operation(loop: Loop) -> None:
    before = operations_of(loop)
    for close in (True, False):
        async with reading() as end:
            if close:
                end.transport.close()
            else:
                end.peer.close()
            await end.protocol.lost
        await settle()
        assert operations_of(loop) == before


async def test_a_stream_reader_reads_lines(loop: Loop) -> None:
    reader, writer = make_pipe()
    stream = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), reader)
    with writer:
        writer.write(b"one\ntwo\n")
        assert await stream.readline() == b"one\n"
        writer.write(b"three")
    assert await stream.read() == b"two\nthree"
    await asyncio.sleep(0)
