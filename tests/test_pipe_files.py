"""Pipe transports on all kinds of files: pipes, FIFOs, sockets and devices."""

import asyncio
import errno
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pipes import make_pipe, open_raw, reading, writing
from support import ErrorLog, Recorder, connected_sockets, pattern, reset, settle

Loop = asyncio.AbstractEventLoop


class Descriptor:
    """A file that is only a number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        pass


class Listing(Recorder):
    """Keeps what comes as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.received_parts: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.received_parts.append(data)
        super().data_received(data)


@pytest.mark.parametrize("path", [__file__, "/"])
@pytest.mark.parametrize("direction", ["read", "write"])
async def test_other_files_are_refused_and_left_open(loop: Loop, path: str, direction: str) -> None:
    texts = {
        "read": r"^Pipe transport is for pipes/sockets only\.$",
        "write": "^Pipe transport is only for pipes, sockets and character devices$",
    }
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(ValueError, match=texts[direction]):
            await getattr(loop, f"connect_{direction}_pipe")(Recorder, Descriptor(fd))
        os.fstat(fd)
    finally:
        os.close(fd)


@pytest.mark.asyncio_leaks
async def test_closed_files_are_refused(loop: Loop) -> None:
    for file in make_pipe():
        file.close()
    for connect in (loop.connect_read_pipe, loop.connect_write_pipe):
        with pytest.raises(ValueError, match="closed file"):
            await connect(Recorder, file)
        with pytest.raises(OSError, match="Bad file descriptor"):
            await connect(Recorder, Descriptor(1 << 20))


async def test_pipes_become_non_blocking(loop: Loop) -> None:
    for connected in (reading(), writing()):
        async with connected as end:
            assert not os.get_blocking(end.transport.get_extra_info("pipe").fileno())
            assert os.get_blocking(end.peer.fileno())


async def test_transports_take_attributes(loop: Loop) -> None:
    for connected in (reading(), writing()):
        async with connected as end:
            transport: Any = end.transport
            closed: list[None] = []
            transport.close = lambda closed=closed: closed.append(None)
            transport.note = transport
            transport.close()
            assert transport.note.close is transport.close
            assert closed == [None]
            assert not transport.is_closing()
            del transport.close


# Reading


async def test_each_datagram_is_received_by_itself(loop: Loop) -> None:
    async with reading(Listing, socket.socketpair(type=socket.SOCK_DGRAM)) as end:
        for datagram in (b"one", b"two", b"three"):
            end.peer.send(datagram)
        await end.protocol.received(11)
    assert end.protocol.received_parts == [b"one", b"two", b"three"]


async def test_each_packet_of_a_pipe_is_received_by_itself(loop: Loop) -> None:
    async with reading(Listing, make_pipe(os.O_DIRECT)) as end:
        for packet in (b"one", b"two", b"three"):
            end.peer.write(packet)
        await end.protocol.received(11)
    assert end.protocol.received_parts == [b"one", b"two", b"three"]


async def test_messages_with_descriptors_hide_no_data(loop: Loop) -> None:
    async with reading(ends=socket.socketpair()) as end:
        for data in (b"one", b"two", b"three"):
            socket.send_fds(end.peer, [data], [end.peer.fileno()])
        assert await end.protocol.received(11) == b"onetwothree"


async def test_a_pipe_that_others_make_blocking_does_not_block_the_loop(loop: Loop) -> None:
    async with reading() as end:
        os.set_blocking(end.transport.get_extra_info("pipe").fileno(), True)
        end.peer.write(b"one")
        assert await end.protocol.received(3) == b"one"
        end.peer.write(b"two")
        assert await end.protocol.received(6) == b"onetwo"


async def test_a_fifo_has_no_end_before_a_writer_has_come(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = open_raw(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    async with reading(ends=(reader, None)) as end:
        await settle()
        assert end.protocol.calls == ["connection_made"]
        with open_raw(path, "wb") as writer:
            writer.write(b"hello")
            assert await end.protocol.received(5) == b"hello"
        assert await end.protocol.lost is None


@pytest.mark.parametrize("ends", [socket.socketpair, connected_sockets])
async def test_a_socket_is_read_like_a_pipe(loop: Loop, ends: Any) -> None:
    async with reading(ends=ends()) as end:
        end.peer.sendall(b"hello")
        assert await end.protocol.received(5) == b"hello"
        end.peer.shutdown(socket.SHUT_WR)
        assert await end.protocol.lost is None


async def test_a_reset_is_reported(loop: Loop, errors: ErrorLog) -> None:
    async with reading(ends=connected_sockets()) as end:
        reset(end.peer)
        error = await end.protocol.lost
    assert isinstance(error, ConnectionResetError)
    report = errors.take()
    assert report["message"] == "Fatal read error on pipe transport"
    assert report["exception"] is error
    assert report["transport"] is end.transport
    assert report["protocol"] is end.protocol
    assert end.protocol.calls == ["connection_made", "connection_lost"]


async def test_a_device_that_cannot_be_polled_is_reported(loop: Loop, errors: ErrorLog) -> None:
    async with reading(ends=(open_raw(os.devnull, "rb"), None)) as end:
        assert end.protocol.calls == ["connection_made"]
    error = errors.take()["exception"]
    assert isinstance(error, PermissionError)
    assert error.errno == errno.EPERM


# Writing


@pytest.mark.parametrize("ends", [socket.socketpair, connected_sockets])
async def test_a_socket_is_written_like_a_pipe(loop: Loop, ends: Any) -> None:
    async with writing(ends=ends()) as end:
        data = pattern(1 << 20)
        end.transport.write(data)
        assert await end.receive(len(data)) == data
        end.peer.close()
        assert await end.protocol.lost is None


async def test_a_socket_ends_with_its_peers_stream(loop: Loop) -> None:
    async with writing(ends=socket.socketpair()) as end:
        end.peer.shutdown(socket.SHUT_WR)
        assert await end.protocol.lost is None


async def test_a_device_takes_what_it_gets(loop: Loop) -> None:
    async with writing(ends=(None, open_raw(os.devnull, "wb"))) as end:
        end.transport.write(bytes(10 << 20))
        assert end.transport.get_write_buffer_size() == 0
        await settle()
        assert not end.transport.is_closing()


async def test_a_device_that_is_full_ends_the_transport(loop: Loop) -> None:
    async with writing(ends=(None, open_raw("/dev/full", "wb"))) as end:
        end.transport.write(b"x")
        error = await end.protocol.lost
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC


async def test_a_fifo_opened_both_ways_stays_open_with_unread_data(
    loop: Loop, loop_name: str, tmp_path: Path
) -> None:
    if loop_name == "asyncio":
        pytest.skip("asyncio takes unread data for the end of the reader")
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with open_raw(os.open(path, os.O_RDWR), "r+b") as file:
        reader = open_raw(path, "rb")
        async with writing(ends=(reader, file)) as end:
            end.transport.write(b"unread")
            await settle()
            assert not end.transport.is_closing()
            assert await end.receive(6) == b"unread"
