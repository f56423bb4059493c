"""connect_write_pipe(): data, order, flow control, the end, and readers that go away."""

import array
import asyncio
import errno
import gc
import logging
import random
from typing import Any

import pytest

from pipes import End, make_pipe, operations_of, writing
from support import ErrorLog, Recorder, fill, pattern, settle

Loop = asyncio.AbstractEventLoop
Writing = End[asyncio.WriteTransport]


def refill(end: Writing) -> int:
    """Write until the pipe takes no more and the transport has to buffer; bytes written."""
    return fill(end.transport)  # type: ignore[arg-type]


# Data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_bytes_likes_are_written(loop: Loop, kind: type) -> None:
    async with writing() as end:
        assert end.transport.write(kind(b"some ")) is None  # type: ignore[func-returns-value]
        end.transport.write(kind(b"data"))
        assert await end.receive(9) == b"some data"


async def test_a_memoryview_of_numbers_is_written_whole(loop: Loop, loop_name: str) -> None:
    if loop_name == "asyncio":
        pytest.skip("asyncio counts items where it should count bytes")
    numbers = array.array("I", range(1000))
    async with writing() as end:
        end.transport.write(memoryview(numbers))
        assert end.transport.get_write_buffer_size() == 0
        assert await end.receive(numbers.itemsize * 1000) == numbers.tobytes()


async def test_a_memoryview_with_gaps_is_reported(loop: Loop, errors: ErrorLog) -> None:
    async with writing() as end:
        end.transport.write(memoryview(b"0123456789")[::2])
        error = await end.protocol.lost
        assert isinstance(error, BufferError)
        assert await end.receive_all() == b""
    report = errors.take()
    assert report["message"] == "Fatal write error on pipe transport"
    assert report["exception"] is error
    assert report["transport"] is end.transport
    assert report["protocol"] is end.protocol


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_nothing_is_written_for_empty_data(loop: Loop, kind: type) -> None:
    async with writing() as end:
        end.transport.write(kind(b""))
        end.transport.writelines([])
        end.transport.writelines([kind(b"")])
        end.transport.write(b"x")
        end.transport.close()
        assert await end.receive_all() == b"x"


@pytest.mark.parametrize("data", ["text", None, 7, [b"list"]], ids=repr)
async def test_other_types_are_refused(loop: Loop, data: Any) -> None:
    async with writing() as end:
        with pytest.raises(AssertionError) as caught:
            end.transport.write(data)
        assert caught.value.args == (repr(data),)
        end.transport.write(b"still works")
        assert await end.receive(11) == b"still works"


async def test_a_bytearray_may_be_changed_after_the_call(loop: Loop) -> None:
    async with writing() as end:
        size = refill(end)
        data = bytearray(b"before")
        end.transport.write(data)
        data[:] = b"after, and longer"
        end.transport.close()
        assert (await end.receive_all())[size:] == b"before"


async def test_ten_megabytes_arrive_whole(loop: Loop) -> None:
    data = pattern(10 << 20)
    async with writing() as end:
        end.transport.write(data)
        assert end.transport.get_write_buffer_size() > 0
        end.transport.close()
        assert await end.receive_all() == data
        assert await end.protocol.lost is None


async def test_writes_of_all_kinds_and_sizes_keep_their_order(loop: Loop) -> None:
    numbers = random.Random(1)
    data = pattern(3 << 20)
    async with writing() as end:
        start = 0
        while start < len(data):
            kind = numbers.choice([bytes, bytearray, memoryview])
            stop = start + numbers.choice([1, 100, 5000, 16 * 1024, 70_000, 200_000])
            if numbers.random() < 0.3:
                middle = (start + stop) // 2
                end.transport.writelines([kind(data[start:middle]), b"", data[middle:stop]])
            else:
                end.transport.write(kind(data[start:stop]))
            start = stop
        end.transport.close()
        assert await end.receive_all() == data


async def test_what_waits_is_counted_to_the_byte(loop: Loop) -> None:
    async with writing() as end:
        written = refill(end)
        end.transport.write(b"more")
        end.transport.writelines([b"and ", b"more"])
        written += 12
        waiting = end.transport.get_write_buffer_size()
        end.transport.close()
        assert len(await end.receive_all()) == written
        assert 12 < waiting < written
        assert end.transport.get_write_buffer_size() == 0


async def test_writelines_takes_any_iterable(loop: Loop) -> None:
    async with writing() as end:
        end.transport.writelines([b"one ", bytearray(b"two "), memoryview(b"three")])
        end.transport.writelines(iter([b" four"]))
        assert await end.receive(18) == b"one two three four"


async def test_writelines_with_thousands_of_chunks(loop: Loop) -> None:
    chunks = [b"%06d" % number for number in range(20_000)]  # more than one iovec or pipe holds
    async with writing() as end:
        end.transport.writelines(chunks)
        assert await end.receive(6 * len(chunks)) == b"".join(chunks)


async def test_writelines_with_a_wrong_type_writes_nothing(loop: Loop) -> None:
    async with writing() as end:
        with pytest.raises(TypeError):
            end.transport.writelines([b"never sent", "text"])  # type: ignore[list-item]
        end.transport.write(b"sent")
        end.transport.close()
        assert await end.receive_all() == b"sent"


# Flow control


async def test_the_protocol_is_paused_and_resumed_with_a_slow_reader(loop: Loop) -> None:
    async with writing() as end:
        end.transport.write(bytes(64 * 1024))
        assert end.protocol.calls == ["connection_made"]
        end.transport.write(bytes(200_000))
        assert end.protocol.calls == ["connection_made", "pause_writing"]
        end.transport.write(bytes(100_000))
        left = 364_000 + 1536
        while left > 0:
            left -= len(await end.receive(min(left, 10_000)))
        await end.protocol.resumed.wait()
        assert end.protocol.calls == ["connection_made", "pause_writing", "resume_writing"]
        assert end.transport.get_write_buffer_size() == 0


async def test_a_paused_protocol_writes_again_when_resumed(loop: Loop) -> None:
    data = pattern(4 << 20)

    class Steady(Recorder):
        position = 0
        may_write = True

        def pause_writing(self) -> None:
            self.may_write = False

        def resume_writing(self) -> None:
            self.may_write = True
            self.go_on()

        def go_on(self) -> None:
            while self.may_write and self.position < len(data):
                piece = data[self.position : self.position + 30_000]
                self.position += len(piece)
                self.transport.write(piece)
            if self.position == len(data):
                loop.call_soon(self.transport.close)

    async with writing(Steady) as end:
        end.protocol.go_on()  # type: ignore[attr-defined]
        assert end.transport.get_write_buffer_size() < 100_000
        assert await end.receive_all() == data


async def test_limits_can_be_set(loop: Loop) -> None:
    async with writing() as end:
        assert end.transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        end.transport.set_write_buffer_limits(high=100, low=10)
        assert end.transport.get_write_buffer_limits() == (10, 100)
        end.transport.set_write_buffer_limits(low=10)
        assert end.transport.get_write_buffer_limits() == (10, 40)
        end.transport.set_write_buffer_limits()
        assert end.transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        for high, low in ((10, 11), (10, -1)):
            with pytest.raises(ValueError, match="must be >="):
                end.transport.set_write_buffer_limits(high, low)


async def test_a_limit_of_zero_pauses_for_every_byte(loop: Loop) -> None:
    async with writing() as end:
        end.transport.set_write_buffer_limits(0)
        size = refill(end)
        assert end.protocol.calls[-1] == "pause_writing"
        await end.receive(size)
        await end.protocol.resumed.wait()
        assert end.transport.get_write_buffer_size() == 0


async def test_lowering_the_limit_pauses_at_once(loop: Loop) -> None:
    async with writing() as end:
        end.transport.set_write_buffer_limits(1 << 20)
        refill(end)
        assert not end.protocol.paused.is_set()
        end.transport.set_write_buffer_limits(0)
        assert end.protocol.paused.is_set()


@pytest.mark.parametrize("method", ["pause_writing", "resume_writing"])
async def test_an_error_in_flow_control_is_reported(
    loop: Loop, errors: ErrorLog, method: str
) -> None:
    def fail() -> None:
        raise LookupError("no")

    async with writing() as end:
        setattr(end.protocol, method, fail)
        size = refill(end)
        end.transport.set_write_buffer_limits(0)
        await end.receive(size)
        while end.transport.get_write_buffer_size():
            await asyncio.sleep(0)
        assert not end.transport.is_closing()
    report = errors.take()
    assert report["message"] == f"protocol.{method}() failed"
    assert isinstance(report["exception"], LookupError)


# The end


@pytest.mark.parametrize("method", ["close", "write_eof"])
async def test_the_end_comes_after_all_data(loop: Loop, method: str) -> None:
    async with writing() as end:
        assert end.transport.can_write_eof()
        size = refill(end)
        getattr(end.transport, method)()
        getattr(end.transport, method)()
        assert end.transport.is_closing()
        await settle()
        assert not end.protocol.lost.done()
        assert len(await end.receive_all()) == size
        assert await end.protocol.lost is None


@pytest.mark.parametrize("method", ["close", "write_eof", "abort"])
async def test_the_end_without_data(loop: Loop, method: str) -> None:
    async with writing() as end:
        getattr(end.transport, method)()
        assert end.protocol.calls == ["connection_made"]
        assert await end.protocol.lost is None
        assert await end.receive_all() == b""


async def test_close_in_resume_writing(loop: Loop, loop_name: str) -> None:
    if loop_name == "asyncio":
        pytest.skip("asyncio calls connection_lost() twice")

    class Closing(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.close()

    async with writing(Closing) as end:
        end.transport.set_write_buffer_limits(0)
        size = refill(end)
        assert len(await end.receive_all()) == size
        assert await end.protocol.lost is None


async def test_abort_drops_what_waits(loop: Loop) -> None:
    async with writing() as end:
        refill(end)
        waiting = end.transport.get_write_buffer_size()
        assert waiting > 0
        end.transport.close()
        end.transport.abort()
        assert end.transport.get_write_buffer_size() == 0
        assert await end.protocol.lost is None
        assert len(await end.receive_all()) % 4096 == 0


async def test_what_is_written_after_close_is_dropped_with_a_warning(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    async with writing() as end:
        size = refill(end)
        end.transport.close()
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(5):
                end.transport.write(b"late")
            assert not caplog.messages
            end.transport.writelines([b"late"])
        assert caplog.messages == ["pipe closed by peer or os.write(pipe, data) raised exception."]
        assert len(await end.receive_all()) == size


async def test_writing_in_connection_lost_is_harmless(loop: Loop) -> None:
    class Late(Recorder):
        def connection_lost(self, exc: BaseException | None) -> None:
            self.transport.write(b"late")
            super().connection_lost(exc)

    async with writing(Late) as end:
        end.transport.close()
        assert await end.receive_all() == b""


# The reader is gone


async def test_an_idle_transport_notices_that_the_reader_is_gone(loop: Loop) -> None:
    async with writing() as end:
        end.peer.close()
        assert await end.protocol.lost is None
        assert end.transport.is_closing()


async def test_a_reader_that_leaves_data_unread(loop: Loop) -> None:
    async with writing() as end:
        end.transport.write(b"never read")
        end.peer.close()
        assert await end.protocol.lost is None


@pytest.mark.parametrize("closing", [False, True])
async def test_a_reader_that_is_gone_while_data_waits(loop: Loop, closing: bool) -> None:
    async with writing() as end:
        refill(end)
        if closing:
            end.transport.close()
        end.peer.close()
        assert isinstance(await end.protocol.lost, BrokenPipeError)
        assert end.transport.get_write_buffer_size() == 0


async def test_writing_before_it_is_noticed_that_the_reader_is_gone(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    async with writing() as end:
        end.peer.close()
        end.transport.write(b"x")
        assert end.transport.is_closing()
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(4):
                end.transport.write(b"late")
            assert not caplog.messages
            end.transport.write(b"late")
        assert len(caplog.messages) == 1
        error = await end.protocol.lost
        assert isinstance(error, BrokenPipeError)
        assert error.errno == errno.EPIPE


async def test_closing_a_pipe_whose_reader_is_gone(loop: Loop) -> None:
    async with writing() as end:
        end.peer.close()
        end.transport.close()
        assert await end.protocol.lost is None


# The transport


async def test_it_is_a_write_transport(loop: Loop) -> None:
    async with writing() as end:
        assert isinstance(end.transport, asyncio.WriteTransport)
        assert end.transport.get_protocol() is end.protocol
        for method in ("is_reading", "pause_reading", "resume_reading"):
            with pytest.raises(NotImplementedError):
                getattr(end.transport, method)()


async def test_extra_info_is_about_the_pipe(loop: Loop) -> None:
    reader, writer = make_pipe()
    async with writing(ends=(reader, writer)) as end:
        assert end.transport.get_extra_info("pipe") is writer
        assert end.transport.get_extra_info("socket", "default") == "default"
    assert end.transport.get_extra_info("pipe") is writer
    assert writer.closed


async def test_another_protocol_takes_over(loop: Loop) -> None:
    async with writing() as end:
        second = Recorder()
        second.calls.append("connection_made")
        end.transport.set_protocol(second)
        refill(end)
        end.transport.set_write_buffer_limits(0)
        end.peer.close()
        assert isinstance(await second.lost, BrokenPipeError)
        end.protocol.lost.set_result(None)
    assert second.calls == ["connection_made", "pause_writing", "connection_lost"]
    assert end.protocol.calls == ["connection_made"]


async def test_repr_shows_the_state(loop: Loop) -> None:
    async with writing() as end:
        fd = end.transport.get_extra_info("pipe").fileno()
        assert repr(end.transport).endswith(f"WritePipeTransport fd={fd} idle bufsize=0>")
        refill(end)
        size = end.transport.get_write_buffer_size()
        assert repr(end.transport).endswith(f"WritePipeTransport fd={fd} polling bufsize={size}>")
        end.transport.abort()
        assert "WritePipeTransport closing fd=" in repr(end.transport)
    assert "WritePipeTransport closed fd=" in repr(end.transport)


def test_an_unclosed_transport_warns_and_closes_its_pipe(loop: Loop) -> None:
    reader, writer = make_pipe()

    async def connect() -> None:
        transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, writer)
        transport.write(bytes(1 << 20))

    def drop() -> None:
        loop.close()
        gc.collect()

    loop.run_until_complete(connect())
    with pytest.warns(ResourceWarning, match="unclosed transport <.*WritePipeTransport fd="):
        drop()
    assert writer.closed
    reader.close()


async def test_a_closed_transport_leaves_no_operation(loop: Loop) -> None:
    before = operations_of(loop)
    for method in ("close", "abort"):
        async with writing() as end:
            size = refill(end)
            getattr(end.transport, method)()
            await end.receive(size)
            await end.protocol.lost
        await settle()
        assert operations_of(loop) == before


def test_bytes_that_wait_are_released_with_the_transport(loop: Loop) -> None:
    class Bytes(bytes):
        """Can be part of a cycle."""

    async def write(data: Bytes) -> None:
        async with writing() as end:
            data.cycle = end.transport  # type: ignore[attr-defined]
            end.transport.write(data)
            assert end.transport.get_write_buffer_size() > 0

    data = Bytes(pattern(1 << 20))
    loop.run_until_complete(write(data))
    loop.close()
    gc.collect()
    alive = [object for object in gc.get_objects() if type(object) is Bytes]
    assert alive == [data]
    del alive, data
    gc.collect()
    assert not [object for object in gc.get_objects() if type(object) is Bytes]


async def test_a_stream_writer_drains(loop: Loop) -> None:
    reader, writer = make_pipe()
    data = pattern(2 << 20)
    with reader:
        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, writer
        )
        stream = asyncio.StreamWriter(transport, protocol, None, loop)

        async def write() -> None:
            for start in range(0, len(data), 50_000):
                stream.write(data[start : start + 50_000])
                await stream.drain()
            stream.close()

        end = End(transport, Recorder(), reader)
        received, _ = await asyncio.gather(end.receive_all(), write())
        assert received == data
    await asyncio.sleep(0)
