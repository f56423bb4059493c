"""Writing to a TCP transport: data, order, end of stream and flow control."""

import array
import asyncio
import contextlib
import logging
import random
import sys

import pytest

from support import ErrorLog, Link, Recorder, fill, linked, pattern, settle

Loop = asyncio.AbstractEventLoop


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_bytes_likes_are_written(loop: Loop, kind: type) -> None:
    async with linked(Recorder) as link:
        assert link.transport.write(kind(b"some ")) is None  # type: ignore[func-returns-value]
        link.transport.write(kind(b"data"))
        assert await link.receive(9) == b"some data"


async def test_a_memoryview_of_numbers_is_written_whole(loop: Loop) -> None:
    numbers = array.array("I", range(1000))
    async with linked(Recorder) as link:
        link.transport.write(memoryview(numbers))
        assert await link.receive(numbers.itemsize * 1000) == numbers.tobytes()
        link.transport.write(memoryview(b"a slice of it")[2:7])
        assert await link.receive(5) == b"slice"


async def test_a_memoryview_with_gaps_is_an_error(loop: Loop, errors: ErrorLog) -> None:
    """asyncio reports it and ends the connection; to raise it is as good."""
    async with linked(Recorder) as link:
        try:
            link.transport.write(memoryview(b"0123456789")[::2])
        except BufferError:
            link.transport.close()
            assert await link.protocol.lost is None
        else:
            assert isinstance(await link.protocol.lost, BufferError)
            assert isinstance(errors.take()["exception"], BufferError)
        assert await link.receive_all() == b""


async def test_a_bytearray_may_be_changed_once_it_is_written(loop: Loop) -> None:
    async with linked(Recorder) as link:
        data = bytearray(b"before")
        link.transport.write(data)
        data[:] = b"after, and longer"
        assert await link.receive(6) == b"before"
        link.transport.write(b".")
        assert await link.receive(1) == b"."


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_nothing_is_written_for_empty_data(loop: Loop, kind: type) -> None:
    async with linked(Recorder) as link:
        link.transport.write(kind(b""))
        link.transport.writelines([])
        link.transport.write(b"x")
        link.transport.close()
        assert await link.receive_all() == b"x"


@pytest.mark.parametrize("data", ["text", None, 7, [b"list"], object()], ids=repr)
async def test_other_types_are_refused(loop: Loop, data: object) -> None:
    async with linked(Recorder) as link:
        with pytest.raises(TypeError, match="data argument must be a bytes"):
            link.transport.write(data)  # type: ignore[arg-type]
        link.transport.write(b"still works")
        assert await link.receive(11) == b"still works"


async def test_writelines_writes_in_order(loop: Loop) -> None:
    chunks: list[bytes | bytearray | memoryview] = [
        b"one ",
        bytearray(b"two "),
        memoryview(b"three"),
    ]
    async with linked(Recorder) as link:
        link.transport.writelines(chunks)
        link.transport.writelines(iter([b" four"]))
        assert await link.receive(18) == b"one two three four"


async def test_writelines_with_empty_chunks(loop: Loop, loop_name: str) -> None:
    if loop_name == "asyncio" and sys.version_info < (3, 14):
        pytest.skip("asyncio spins on an empty chunk (gh-155888, seen on 3.13.0)")
    async with linked(Recorder) as link:
        link.transport.writelines([b""])
        link.transport.writelines([b"", b"a", b"", b"b", b""])
        assert await link.receive(2) == b"ab"
        assert link.transport.get_write_buffer_size() == 0


async def test_writelines_with_a_wrong_type_writes_nothing(loop: Loop) -> None:
    async with linked(Recorder) as link:
        with pytest.raises(TypeError):
            link.transport.writelines([b"never sent", "text"])  # type: ignore[list-item]
        link.transport.write(b"sent")
        link.transport.close()
        assert await link.receive_all() == b"sent"


async def test_writelines_with_thousands_of_chunks(loop: Loop) -> None:
    chunks = [b"%06d" % number for number in range(5000)]  # more than one iovec holds
    async with linked(Recorder, small=True) as link:
        link.transport.writelines(chunks)
        link.transport.write(b"the end")
        link.transport.close()
        assert await link.receive_all() == b"".join(chunks) + b"the end"


@pytest.mark.parametrize("small", [False, True], ids=["large buffers", "small buffers"])
async def test_ten_megabytes_reach_a_slow_reader(loop: Loop, small: bool) -> None:
    data = pattern(10_000_000 if not small else 3_000_000)
    sizes = random.Random(5)
    async with linked(Recorder, small=small) as link:
        link.transport.write(data)
        link.transport.close()
        got = bytearray()
        while chunk := await loop.sock_recv(link.peer, sizes.randrange(1, 200_000)):
            got += chunk
            await asyncio.sleep(0)
        assert got == data
        assert await link.protocol.lost is None


async def test_many_small_writes_arrive_in_order(loop: Loop) -> None:
    sizes = random.Random(6)
    data = pattern(1_000_000)
    async with linked(Recorder) as link:
        reading = loop.create_task(link.receive(len(data)))
        position = 0
        while position < len(data):
            size = sizes.randrange(1, 120)
            link.transport.write(data[position : position + size])
            position += size
            if size == 1:
                await asyncio.sleep(0)
        assert await reading == data


async def test_writes_behind_a_full_buffer_keep_their_order(loop: Loop) -> None:
    async with linked(Recorder, small=True) as link:
        written = fill(link.transport)
        expected = b"f" * written
        for number in range(300):
            chunk = b"%d" % number
            if number % 3:
                link.transport.write(chunk)
            else:
                link.transport.writelines([chunk, b"|", chunk])
                chunk = chunk + b"|" + chunk
            expected += chunk
        link.transport.close()
        assert await link.receive_all() == expected


async def test_writing_while_a_send_is_under_way(loop: Loop) -> None:
    expected = bytearray()
    async with linked(Recorder, small=True) as link:
        got = bytearray()
        for number in range(100):
            chunk = bytes([number]) * 20_011
            link.transport.write(chunk)
            expected += chunk
            got += await loop.sock_recv(link.peer, 15_000)
        link.transport.close()
        got += await link.receive_all()
        assert got == expected


async def test_write_eof_ends_the_stream_after_the_data(loop: Loop) -> None:
    data = pattern(1_000_000)
    async with linked(Recorder, small=True) as link:
        assert link.transport.can_write_eof()
        link.transport.write(data)
        link.transport.write_eof()
        link.transport.write_eof()
        assert not link.transport.is_closing()
        assert await link.receive_all() == data
        link.send(b"the other way is open")
        assert await link.protocol.received(21) == b"the other way is open"
        link.peer.close()
        assert await link.protocol.lost is None


async def test_write_eof_without_data(loop: Loop) -> None:
    async with linked(Recorder) as link:
        link.transport.write_eof()
        assert await link.receive_all() == b""
        link.send(b"data")
        assert await link.protocol.received(4) == b"data"


async def test_writing_after_write_eof_is_an_error(loop: Loop) -> None:
    async with linked(Recorder) as link:
        link.transport.write_eof()
        with pytest.raises(RuntimeError, match=r"Cannot call write\(\) after write_eof\(\)"):
            link.transport.write(b"x")
        with pytest.raises(RuntimeError, match=r"Cannot call writelines\(\) after write_eof\(\)"):
            link.transport.writelines([b"x"])


async def test_close_after_write_eof_flushes(loop: Loop) -> None:
    async with linked(Recorder, small=True) as link:
        written = fill(link.transport)
        link.transport.write_eof()
        link.transport.close()
        assert len(await link.receive_all()) == written
        assert await link.protocol.lost is None


@pytest.mark.parametrize("way", ["close", "abort"])
async def test_writing_after_the_end_is_ignored(loop: Loop, way: str) -> None:
    async with linked(Recorder) as link:
        getattr(link.transport, way)()
        link.transport.write(b"ignored")
        await link.protocol.lost
        link.transport.write(b"ignored")
        assert await link.receive_all() == b""


async def test_writing_on_and_on_after_the_end_is_logged(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(Recorder) as link:
        link.transport.abort()
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(10):
                link.transport.write(b"ignored")
        assert {record.getMessage() for record in caplog.records} == {
            "socket.send() raised exception."
        }


async def test_writing_after_the_peer_reset(loop: Loop) -> None:
    async with linked(Recorder) as link:
        link.reset()
        for _ in range(3):
            link.transport.write(b"x")
        assert isinstance(await link.protocol.lost, (ConnectionResetError, BrokenPipeError))
        assert link.protocol.calls == ["connection_made", "connection_lost"]


async def test_a_reset_while_data_is_buffered(loop: Loop) -> None:
    async with linked(Recorder, small=True) as link:
        fill(link.transport)
        link.transport.pause_reading()
        link.reset()
        assert isinstance(await link.protocol.lost, (ConnectionResetError, BrokenPipeError))
        assert link.transport.get_write_buffer_size() == 0
        assert link.protocol.calls[-1] == "connection_lost"


async def test_the_buffer_size_counts_what_the_kernel_has_not_taken(
    loop: Loop, loop_name: str
) -> None:
    async with linked(Recorder, small=True) as link:
        link.transport.write(b"sent at once")
        while loop_name == "kloop-sqpoll" and link.transport.get_write_buffer_size():
            await asyncio.sleep(0)  # or by a kernel thread, which tells afterwards
        assert link.transport.get_write_buffer_size() == 0
        written = fill(link.transport)
        size = link.transport.get_write_buffer_size()
        assert 0 < size <= written
        link.transport.write(b"x" * 1000)
        link.transport.write(b"y" * 234)
        assert link.transport.get_write_buffer_size() == size + 1234
        await link.receive(written + 1234 + 12)
        while link.transport.get_write_buffer_size():
            await asyncio.sleep(0)


class Resumed(Recorder):
    def resume_writing(self) -> None:
        super().resume_writing()
        self.unsent_when_resumed = self.transport.get_write_buffer_size()


async def receive_until_resumed(link: Link[Recorder]) -> int:
    """How many bytes were received. All may have come before the transport hears of it."""
    received = 0
    while not link.protocol.resumed.is_set():
        with contextlib.suppress(BlockingIOError):
            received += len(link.peer.recv(1000))
        await asyncio.sleep(0)
    return received


async def test_pause_and_resume_writing(loop: Loop) -> None:
    async with linked(Resumed, small=True) as link:
        link.transport.set_write_buffer_limits(high=50_000, low=10_000)
        fill(link.transport, 1000)
        link.protocol.calls.clear()
        while link.transport.get_write_buffer_size() <= 50_000:
            assert link.protocol.calls == []
            link.transport.write(b"x" * 1000)
        assert link.protocol.calls == ["pause_writing"]
        link.transport.write(b"x" * 1000)
        assert link.protocol.calls == ["pause_writing"]
        link.protocol.calls.insert(0, "connection_made")
        await receive_until_resumed(link)
        assert link.protocol.unsent_when_resumed <= 10_000
        assert link.protocol.calls == ["connection_made", "pause_writing", "resume_writing"]


async def test_writelines_pauses_the_protocol(loop: Loop, loop_name: str) -> None:
    if loop_name == "asyncio" and sys.version_info < (3, 14):
        pytest.skip("asyncio's writelines() does not pause the protocol on 3.13.0")
    async with linked(Recorder, small=True) as link:
        link.transport.writelines([b"x" * 1_000_000] * 3)
        assert link.protocol.calls == ["connection_made", "pause_writing"]


async def test_writing_is_resumed_again_and_again(loop: Loop) -> None:
    total = 0
    async with linked(Recorder, small=True) as link:
        link.transport.set_write_buffer_limits(high=10_000)
        for _ in range(5):
            link.protocol.paused.clear()
            link.protocol.resumed.clear()
            while not link.protocol.paused.is_set():
                link.transport.write(b"x" * 5000)
                total += 5000
            total -= await receive_until_resumed(link)
        calls = link.protocol.calls[1:]
        assert calls == ["pause_writing", "resume_writing"] * 5
        assert len(await link.receive(total)) == total


async def test_resume_writing_may_write(loop: Loop) -> None:
    class Refilling(Recorder):
        rounds = 0

        def resume_writing(self) -> None:
            super().resume_writing()
            self.rounds += 1
            if self.rounds <= 20:
                self.transport.write(b"r" * 100_000)
            else:
                self.transport.close()

    async with linked(Refilling, small=True) as link:
        link.transport.write(b"r" * 100_000)
        assert len(await link.receive_all()) == 2_100_000
        assert await link.protocol.lost is None


async def test_a_limit_of_zero_pauses_on_any_buffered_byte(loop: Loop, loop_name: str) -> None:
    async with linked(Recorder, small=True) as link:
        link.transport.set_write_buffer_limits(high=0)
        assert link.transport.get_write_buffer_limits() == (0, 0)
        link.transport.write(b"x")
        # A kernel thread tells afterwards that it has sent it.
        assert link.protocol.paused.is_set() == (loop_name == "kloop-sqpoll")
        fill(link.transport)
        assert link.protocol.paused.is_set()


async def test_write_buffer_limits(loop: Loop) -> None:
    async with linked(Recorder) as link:
        limits = link.transport.get_write_buffer_limits
        set_limits = link.transport.set_write_buffer_limits
        assert limits() == (16 * 1024, 64 * 1024)
        set_limits(high=1000)
        assert limits() == (250, 1000)
        set_limits(low=1000)
        assert limits() == (1000, 4000)
        set_limits(30, 20)
        assert limits() == (20, 30)
        set_limits(5, 5)
        assert limits() == (5, 5)
        with pytest.raises(ValueError, match=r"high \(10\) must be >= low \(20\) must be >= 0"):
            set_limits(high=10, low=20)
        with pytest.raises(ValueError, match=r"must be >= 0"):
            set_limits(high=-1, low=-2)
        assert limits() == (5, 5)
        set_limits(high=2e6)
        assert limits() == (500_000, 2_000_000)
        set_limits(high=1 << 70)  # without a limit, as it were
        assert limits()[1] >= 1 << 62
        with pytest.raises(TypeError):
            set_limits(high="10")
        set_limits()
        assert limits() == (16 * 1024, 64 * 1024)


async def test_the_kernel_is_tried_again_when_the_peer_reads(loop: Loop) -> None:
    async with linked(Recorder, small=True) as link:
        written = fill(link.transport)
        await settle()
        assert link.transport.get_write_buffer_size() > 0
        assert len(await link.receive(written)) == written
        while link.transport.get_write_buffer_size():
            await asyncio.sleep(0)
        link.transport.write(b"again")
        assert await link.receive(5) == b"again"
