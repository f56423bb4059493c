"""Pipe transports on both ends of pseudo-terminals."""

import asyncio
import errno
import io
import logging
import os
import pty
import subprocess
import sys
import termios
import tty

import pytest

from pipes import open_raw, operations_of, reading, writing
from support import Recorder, pattern, settle

Loop = asyncio.AbstractEventLoop


def make_pty(*, raw: bool = False) -> tuple[io.FileIO, io.FileIO]:
    """The master and the terminal; raw: without echo, lines and control characters."""
    master, slave = pty.openpty()
    if raw:
        tty.setraw(slave)
    else:
        modes = termios.tcgetattr(slave)
        modes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, modes)
    return open_raw(master, "r+b"), open_raw(slave, "r+b")


async def test_the_master_reads_what_the_terminal_gets(loop: Loop) -> None:
    async with reading(ends=make_pty()) as end:
        end.peer.write(b"one\n")
        assert await end.protocol.received(5) == b"one\r\n"
        end.peer.write(b"two\n")
        assert await end.protocol.received(10) == b"one\r\ntwo\r\n"


async def test_a_hang_up_is_a_quiet_end(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    async with reading(ends=make_pty()) as end:
        end.peer.write(b"last words\n")
        end.peer.close()
        error = await end.protocol.lost
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO
    assert end.protocol.data == b"last words\r\n"
    assert "eof_received" not in end.protocol.calls
    assert not caplog.messages


async def test_debug_mode_logs_a_hang_up(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.set_debug(True)
    with caplog.at_level(logging.DEBUG, "asyncio"):
        async with reading(ends=make_pty()) as end:
            end.peer.close()
            await end.protocol.lost
    assert any("Fatal read error on pipe transport" in line for line in caplog.messages)


async def test_a_terminal_gives_all_lines_that_wait(loop: Loop) -> None:
    master, slave = make_pty()
    async with reading(ends=(slave, master)) as end:
        end.transport.pause_reading()
        end.peer.write(b"one\ntwo\nthree\n")
        await settle()
        end.transport.resume_reading()
        assert await end.protocol.received(14) == b"one\ntwo\nthree\n"
        end.peer.write(b"four\n")
        assert await end.protocol.received(19) == b"one\ntwo\nthree\nfour\n"


async def test_a_terminal_holds_a_line_back_until_it_is_whole(loop: Loop) -> None:
    master, slave = make_pty()
    async with reading(ends=(slave, master)) as end:
        end.peer.write(b"half a")
        await settle()
        assert end.protocol.data == b""
        end.peer.write(b" line\n")
        assert await end.protocol.received(12) == b"half a line\n"


async def test_an_end_of_file_from_the_keyboard(loop: Loop) -> None:
    master, slave = make_pty()
    async with reading(ends=(slave, master)) as end:
        end.peer.write(b"line\n\x04")
        assert await end.protocol.lost is None
    assert end.protocol.data == b"line\n"
    assert end.protocol.calls[-2:] == ["eof_received", "connection_lost"]


async def test_the_master_hangs_up(loop: Loop) -> None:
    master, slave = make_pty()
    async with reading(ends=(slave, master)) as end:
        end.peer.close()
        assert await end.protocol.lost is None
    assert end.protocol.calls == ["connection_made", "eof_received", "connection_lost"]


async def test_the_master_writes_to_the_terminal(loop: Loop) -> None:
    master, slave = make_pty()
    async with writing(ends=(slave, master)) as end:
        end.transport.write(b"one\n")
        assert await end.receive(4) == b"one\n"
        end.transport.writelines([b"two", b"\n"])
        assert await end.receive(4) == b"two\n"


async def test_a_writer_does_not_notice_a_hang_up_before_it_writes(loop: Loop) -> None:
    async with writing(ends=make_pty()) as end:
        end.peer.close()
        await settle()
        assert not end.transport.is_closing()
        end.transport.write(b"x")
        error = await end.protocol.lost
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO


@pytest.mark.parametrize("to_terminal", [False, True])
async def test_a_megabyte_passes_in_raw_mode(loop: Loop, to_terminal: bool) -> None:
    data = pattern(1 << 20)
    master, slave = make_pty(raw=True)
    from_, to = (slave, master) if to_terminal else (master, slave)
    _, reader = await loop.connect_read_pipe(Recorder, from_)
    _, writer = await loop.connect_write_pipe(Recorder, to)
    writer.transport.write(data)
    assert writer.transport.get_write_buffer_size() > 0
    assert await reader.received(len(data)) == data
    writer.transport.close()
    await writer.lost
    reader.transport.close()
    await reader.lost


async def test_one_end_is_read_and_written(loop: Loop) -> None:
    master, slave = make_pty(raw=True)
    writer_file = open_raw(os.dup(master.fileno()), "wb")
    _, reader = await loop.connect_read_pipe(Recorder, master)
    _, writer = await loop.connect_write_pipe(Recorder, writer_file)
    with slave:
        for word in (b"one", b"two", b"three"):
            writer.transport.write(word)
            assert slave.read(len(word)) == word
            slave.write(word.upper())
            expected = len(reader.data) + len(word)
            assert (await reader.received(expected)).endswith(word.upper())
    assert isinstance(await reader.lost, OSError)
    writer.transport.close()
    await writer.lost


async def test_one_file_has_a_transport_for_each_direction(loop: Loop) -> None:
    master, slave = make_pty(raw=True)
    before = operations_of(loop)
    _, reader = await loop.connect_read_pipe(Recorder, master)
    _, writer = await loop.connect_write_pipe(Recorder, master)
    with slave:
        writer.transport.write(b"there")
        assert slave.read(5) == b"there"
        slave.write(b"back")
        assert await reader.received(4) == b"back"
        writer.transport.close()
        await writer.lost
    reader.transport.close()
    await reader.lost
    assert master.closed
    await settle()
    assert operations_of(loop) == before


async def test_a_terminal_made_blocking_by_others_does_not_block_the_loop(loop: Loop) -> None:
    master, slave = make_pty()
    async with reading(ends=(slave, master)) as end:
        subprocess.run(
            [sys.executable, "-c", "import os; os.set_blocking(0, True)"], stdin=slave, check=True
        )
        assert os.get_blocking(slave.fileno())
        end.peer.write(b"one\n")
        assert await end.protocol.received(4) == b"one\n"
        end.peer.write(b"two\n")
        assert await end.protocol.received(8) == b"one\ntwo\n"


async def test_a_program_in_a_terminal(loop: Loop) -> None:
    master, slave = make_pty()
    with slave:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sys; print(sys.stdin.isatty(), input().upper(), sys.stdout.isatty())",
            stdin=slave,
            stdout=slave,
            start_new_session=True,
        )
    async with reading(ends=(master, None)) as end:
        master.write(b"hello\n")
        await end.protocol.lost
    assert end.protocol.data == b"True HELLO True\r\n"
    assert await process.wait() == 0
