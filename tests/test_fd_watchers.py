"""add_reader, add_writer and their removal."""

import asyncio
import contextlib
import contextvars
import gc
import os
import socket
import tempfile
import weakref
from collections.abc import Iterator

import pytest

from support import LOCALHOST, ErrorLog, Recorder, fill_socket, linked, settle

Loop = asyncio.AbstractEventLoop

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def nothing() -> None:
    pass


async def test_a_reader_runs_when_there_is_data(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    got: asyncio.Future[bytes] = loop.create_future()

    def readable(*arguments: object) -> None:
        assert arguments == ("a", 1, None)
        got.set_result(ours.recv(10))
        loop.remove_reader(ours)

    loop.add_reader(ours, readable, "a", 1, None)
    await settle()
    assert not got.done()
    theirs.send(b"data")
    assert await got == b"data"


async def test_a_reader_runs_again_while_data_is_left(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    done = loop.create_future()
    got: list[bytes] = []

    def readable() -> None:
        got.append(ours.recv(1))
        if len(got) == 4:
            done.set_result(None)

    loop.add_reader(ours, readable)
    theirs.send(b"abcd")
    await done
    assert got == [b"a", b"b", b"c", b"d"]
    await settle()
    assert len(got) == 4
    assert loop.remove_reader(ours)


async def test_a_reader_runs_again_even_if_it_reads_nothing(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    done = loop.create_future()
    runs = 0

    def readable() -> None:
        nonlocal runs
        runs += 1
        if runs == 5:
            loop.remove_reader(ours)
            done.set_result(None)

    theirs.send(b"x")
    loop.add_reader(ours, readable)
    await done
    await settle()
    assert runs == 5


async def test_a_reader_runs_at_the_end_of_the_stream(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    done = loop.create_future()

    def readable() -> None:
        loop.remove_reader(ours)
        done.set_result(ours.recv(10))

    loop.add_reader(ours, readable)
    theirs.close()
    assert await done == b""


async def test_a_writer_runs_while_there_is_room(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    runs: list[str] = []
    third = asyncio.Event()
    room = asyncio.Event()

    def writable(argument: str) -> None:
        runs.append(argument)
        if len(runs) == 3:
            third.set()
            assert loop.remove_writer(ours)

    loop.add_writer(ours, writable, "argument")
    await third.wait()
    assert runs == ["argument"] * 3
    fill_socket(ours)
    loop.add_writer(ours, room.set)
    await settle()
    assert not room.is_set()
    while not room.is_set():
        with contextlib.suppress(BlockingIOError):
            theirs.recv(1 << 20)
        await asyncio.sleep(0)
    assert loop.remove_writer(ours)


async def test_a_writer_does_not_run_for_the_end_of_the_other_direction(
    loop: Loop, pair: Pair
) -> None:
    ours, theirs = pair
    runs: list[int] = []
    left = fill_socket(ours)
    loop.add_writer(ours, runs.append, 1)
    await settle()
    theirs.shutdown(socket.SHUT_WR)
    await settle()
    assert runs == []
    while left:
        left -= len(theirs.recv(left))
    await settle()
    assert runs != []
    loop.remove_writer(ours)


async def test_both_directions_of_one_descriptor(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    written: asyncio.Future[str] = loop.create_future()
    read: asyncio.Future[bytes] = loop.create_future()

    def writable() -> None:
        loop.remove_writer(ours)
        written.set_result("writable")

    def readable() -> None:
        loop.remove_reader(ours)
        read.set_result(ours.recv(10))

    loop.add_reader(ours, readable)
    loop.add_writer(ours, writable)
    assert await written == "writable"
    await settle()
    assert not read.done()
    theirs.send(b"data")
    assert await read == b"data"


async def test_removing_one_direction_keeps_the_other(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    read = asyncio.Event()
    written = asyncio.Event()
    loop.add_reader(ours, read.set)
    loop.add_writer(ours, written.set)
    assert loop.remove_reader(ours)
    theirs.send(b"x")
    await written.wait()
    await settle()
    assert not read.is_set()
    loop.add_reader(ours, read.set)
    assert loop.remove_writer(ours)
    await read.wait()
    assert loop.remove_reader(ours)


async def test_remove_tells_whether_there_was_something(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    assert loop.remove_reader(ours) is False
    assert loop.remove_writer(ours) is False
    loop.add_reader(ours, nothing)
    assert loop.remove_writer(ours) is False
    assert loop.remove_reader(ours) is True
    assert loop.remove_reader(ours) is False
    loop.add_writer(theirs, nothing)
    assert loop.remove_reader(theirs) is False
    assert loop.remove_writer(theirs) is True
    assert loop.remove_writer(theirs) is False


async def test_a_second_callback_replaces_the_first(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    ran: list[str] = []
    done = asyncio.Event()

    def second() -> None:
        ran.append("second")
        ours.recv(10)
        done.set()

    loop.add_reader(ours, ran.append, "first")
    loop.add_reader(ours, second)
    theirs.send(b"x")
    await done.wait()
    await settle()
    assert ran == ["second"]
    assert loop.remove_reader(ours) is True
    assert loop.remove_reader(ours) is False


async def test_a_callback_may_replace_itself(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    ran: list[str] = []
    done = asyncio.Event()

    def first() -> None:
        ran.append("first")
        loop.add_reader(ours, second)

    def second() -> None:
        ran.append("second")
        loop.remove_reader(ours)
        done.set()

    loop.add_reader(ours, first)
    theirs.send(b"x")
    await done.wait()
    await settle()
    assert ran == ["first", "second"]


async def test_a_removed_reader_does_not_run_even_if_it_was_due(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    ran: list[str] = []
    loop.add_reader(ours, ran.append, "reader")
    theirs.send(b"x")
    assert loop.remove_reader(ours)
    await settle()
    assert ran == []


async def test_readers_due_together_may_remove_each_other(loop: Loop) -> None:
    ran: list[int] = []
    with contextlib.ExitStack() as stack:
        ends = []
        for _ in range(2):
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            theirs.send(b"x")
            ends.append(ours)

        def readable(number: int) -> None:
            ran.append(number)
            for end in ends:
                loop.remove_reader(end)

        for number, end in enumerate(ends):
            loop.add_reader(end, readable, number)
        await settle()
    assert len(ran) == 1


async def test_a_descriptor_number_that_is_used_again_starts_anew(loop: Loop) -> None:
    ran: list[str] = []
    first, first_peer = socket.socketpair()
    number = first.fileno()
    loop.add_reader(number, ran.append, "first")
    loop.remove_reader(number)
    first.close()
    first_peer.close()
    second, second_peer = socket.socketpair()
    with second, second_peer:
        assert number in {second.fileno(), second_peer.fileno()}
        watched, other = (
            (second, second_peer) if second.fileno() == number else (second_peer, second)
        )
        event = asyncio.Event()
        loop.add_reader(watched, event.set)
        await settle()
        assert not event.is_set()
        other.send(b"x")
        await event.wait()
        loop.remove_reader(watched)
    assert ran == []


@pytest.mark.parametrize("direction", ["reader", "writer"])
async def test_a_watch_can_be_removed_after_its_file_was_closed(
    loop: Loop, pair: Pair, direction: str
) -> None:
    ours, _ = pair
    add, remove = getattr(loop, f"add_{direction}"), getattr(loop, f"remove_{direction}")
    add(ours, nothing)
    ours.close()
    assert remove(ours) is True
    with pytest.raises(ValueError, match="-1"):
        remove(ours)
    await settle()


async def test_a_watched_file_is_kept_open(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        reference = weakref.ref(ours)
        loop.add_reader(ours, nothing)
        del ours
        gc.collect()
        kept = reference()
        assert kept is not None
        loop.remove_reader(kept)
        kept.close()


async def test_many_descriptors_at_once(loop: Loop) -> None:
    count = 300
    got: dict[int, bytes] = {}
    done = asyncio.Event()
    with contextlib.ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(count)]

        def readable(number: int) -> None:
            got[number] = pairs[number][0].recv(10)
            loop.remove_reader(pairs[number][0])
            if len(got) == count:
                done.set()

        for number, (ours, theirs) in enumerate(pairs):
            stack.enter_context(ours)
            stack.enter_context(theirs)
            loop.add_reader(ours, readable, number)
        for number, (_, theirs) in enumerate(pairs):
            theirs.send(b"%d" % number)
        await done.wait()
    assert got == {number: b"%d" % number for number in range(count)}


async def test_an_exception_of_a_reader_is_reported_and_it_stays(
    loop: Loop, pair: Pair, errors: ErrorLog
) -> None:
    ours, theirs = pair
    second = asyncio.Event()

    def failing_reader() -> None:
        if ours.recv(1) == b"b":
            second.set()
        else:
            raise ZeroDivisionError

    loop.add_reader(ours, failing_reader)
    theirs.send(b"ab")
    await second.wait()
    loop.remove_reader(ours)
    report = errors.take()
    assert "failing_reader" in report["message"]
    assert type(report["exception"]) is ZeroDivisionError


async def test_a_reader_runs_in_the_context_it_was_added_in(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    seen: list[str] = []
    done = asyncio.Event()

    def readable() -> None:
        seen.append(variable.get())
        loop.remove_reader(ours)
        done.set()

    context = contextvars.copy_context()
    context.run(variable.set, "of the reader")
    context.run(loop.add_reader, ours, readable)
    theirs.send(b"x")
    await done.wait()
    assert seen == ["of the reader"]


async def test_pipes_can_be_watched(loop: Loop) -> None:
    reading, writing = os.pipe()
    try:
        event = asyncio.Event()
        loop.add_reader(reading, event.set)
        await settle()
        assert not event.is_set()
        os.write(writing, b"x")
        await event.wait()
        assert loop.remove_reader(reading)
        room = asyncio.Event()
        loop.add_writer(writing, room.set)
        await room.wait()
        assert loop.remove_writer(writing)
    finally:
        os.close(reading)
        os.close(writing)


async def test_a_regular_file_cannot_be_watched(loop: Loop) -> None:
    with tempfile.TemporaryFile() as file:
        with pytest.raises(PermissionError):
            loop.add_reader(file, nothing)
        with pytest.raises(PermissionError):
            loop.add_writer(file, nothing)
        assert loop.remove_reader(file) is False


async def test_bad_descriptors_are_refused(loop: Loop, pair: Pair) -> None:
    with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
        loop.add_reader(-1, nothing)
    with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
        loop.add_writer(-1, nothing)
    with pytest.raises(ValueError, match="Invalid file object"):
        loop.add_reader("not a file", nothing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Invalid file object"):
        loop.remove_writer(None)  # type: ignore[arg-type]
    closed = os.dup(pair[0].fileno())
    os.close(closed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.add_reader(closed, nothing)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.add_writer(closed, nothing)
    assert loop.remove_reader(closed) is False


async def test_the_descriptor_of_a_transport_cannot_be_watched(loop: Loop) -> None:
    async with linked(Recorder) as link:
        fd = link.transport.get_extra_info("socket").fileno()
        for method in (loop.add_reader, loop.add_writer):
            with pytest.raises(RuntimeError, match="is used by transport"):
                method(fd, nothing)
        for remove in (loop.remove_reader, loop.remove_writer):
            with pytest.raises(RuntimeError, match="is used by transport"):
                remove(fd)


def test_a_closed_loop_has_nothing_to_remove(loop: Loop, pair: Pair) -> None:
    loop.add_reader(pair[0], nothing)
    loop.add_writer(pair[1], nothing)
    loop.close()
    assert loop.remove_reader(pair[0]) is False
    assert loop.remove_writer(pair[1]) is False


def test_closing_a_loop_with_watchers_leaves_the_descriptors_open(loop: Loop, pair: Pair) -> None:
    ours, theirs = pair
    loop.add_reader(ours, nothing)
    theirs.send(b"x")
    loop.close()
    assert ours.recv(1) == b"x"


async def test_the_transports_of_asyncio_show_what_they_watch(loop: Loop) -> None:
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=(LOCALHOST, 0)
    )
    await asyncio.sleep(0)
    assert "read=polling" in repr(transport)
    assert "write=<idle" in repr(transport)
    transport.close()
    await asyncio.sleep(0)
    process = await asyncio.create_subprocess_exec("true", stdout=asyncio.subprocess.PIPE)
    pipe = process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
    assert "fd=" in repr(pipe)
    await process.communicate()


async def test_a_watch_removed_while_the_peer_ends_its_side_holds_no_file(loop: Loop) -> None:
    """What the kernel has reported by then must not start a wait for the number's next file."""
    ours, theirs = socket.socketpair()
    trigger, pull = socket.socketpair()
    others: list[socket.socket] = []

    def close_and_open() -> None:
        loop.remove_reader(trigger)
        loop.remove_writer(ours)
        ours.close()
        others.extend(socket.socketpair())
        others[0].setblocking(False)
        fill_socket(others[0])

    with trigger, pull, theirs:
        ours.setblocking(False)
        fill_socket(ours)
        loop.add_writer(ours, nothing)
        loop.add_reader(trigger, close_and_open)
        await settle()
        pull.send(b"x")
        theirs.shutdown(socket.SHUT_WR)
        while not others:
            await asyncio.sleep(0)
        await settle()
        others[0].close()
        with others[1] as peer:
            peer.settimeout(5)
            while peer.recv(1 << 20):
                pass
